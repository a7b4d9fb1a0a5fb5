"""What `rewardproof evaluate` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rewardproof.config import Section, Strings
from rewardproof.data import Scenarios
from rewardproof.data.encoding import OverlongOrCut
from rewardproof.errors import ConfigError
from rewardproof.models.precision import Precision
from rewardproof.scoring import Implicit, Judge, load_judge, method_names, share_trunks

"""What can be evaluated."""


class AsPublished(Section):
    """What a benchmark's own code leaves to its user, and published numbers differ in."""

    system: str = ""
    """A system prompt for every conversation that has none of its own."""
    chat_template: str = ""
    """A file with the chat template to use in place of the model's own."""
    name: str = ""
    """What result files call the model; empty is a hub id as it stands, or a run's directory."""


class Evaluate(Section):
    """Accuracy of a reward model on preferences, and its scores on benchmarks."""

    model: str
    """The reward model: a directory or a hub id; with `implicit` a language model."""
    data: Strings
    """Preferences: files, folders, hub ids or `embedded:…`; each is reported by itself, a benchmark over all of them."""
    split: float = 0.0
    """Only the prompts that training with the same `split` holds out; 0 evaluates all."""
    split_seed: int = 0
    """Which of the possible splits, as in training."""
    scenarios: Scenarios | None = None
    """Judge by all data together, cut by prompt and by the answers' sources into four scenarios, as training with the same keys was."""
    layers: str = "all"
    """Layers in which models that are judged on the same data differ (`all`, or `top:K`): what those below put out is kept for the next."""
    trunk_cache_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk for that; 0 runs every model whole."""
    precision: Precision = "auto"
    """Of the forward pass."""
    format: str = "auto"
    """Name of the row format, or `auto`."""
    text: Literal["chat", "raw"] = "chat"
    """`chat` makes a plain prompt the user's turn; `raw` joins plain texts as they are, with no template."""
    on_bad: Literal["fail", "drop_unfit", "drop"] = "drop_unfit"
    """What happens at a bad row; dropped rows are counted by reason."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Longest conversation, in tokens; 0 is the model's own limit, which models with rotary positions do not have."""
    overlong: OverlongOrCut = "fail"
    """What happens at a longer conversation: stop, leave its group out, score it with its prompt shortened from the beginning, or cut its
    tokens at the left or right, as benchmarks' own code does."""
    implicit: Implicit | None = None
    """Judge by the reward that a policy trained by DPO implies, instead of a reward head."""
    as_published: AsPublished = AsPublished()
    """What a benchmark's own code leaves to its user."""

    def load(self) -> Judge:
        """The model, with the chat template that is asked for.

        Raises:
            ConfigError: There is no such template, a system prompt for texts without turns, or no such layer.
        """
        if self.text == "raw" and self.as_published.system:
            raise ConfigError(
                "Got text=raw and a system prompt, expected one of them: raw text has no turns that a system prompt could come before. "
                "Drop as_published.system, or write text=chat."
            )
        if self.implicit is not None and self.layers != "all":
            raise ConfigError(
                f"Got layers={self.layers} with implicit, expected all: a policy and its reference are run whole. Leave layers out."
            )
        template = Path(self.as_published.chat_template)
        if self.as_published.chat_template and not template.is_file():
            raise ConfigError(
                f"as_published.chat_template={template} is no file, expected one with a Jinja chat template: rewards depend on it. Correct "
                "the path."
            )
        model = load_judge(self.model, self.implicit, precision=self.precision)
        share_trunks(model, self.layers, limit_gb=self.trunk_cache_gb)
        if self.as_published.chat_template:
            model.tokenizer.chat_template = template.read_text()
        return model

    @property
    def submitted_as(self) -> str:
        """What result files call the model."""
        if self.as_published.name:
            return self.as_published.name
        return method_names([self.model])[0] if Path(self.model).exists() else self.model.replace(":", "-")
