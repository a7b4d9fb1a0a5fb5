"""An activation reward model: a language model asked about answers while some of its heads say what they said of labelled examples.

The directory holds `activation.yaml`, which names the language model, and `activations.safetensors` with the heads' mean activations and
the masks that choose among them. The language model's weights stay where they are. It reads text and nothing else.

Reference:
    Activation Reward Models for Few-Shot Model Alignment, arXiv:2507.01368.
"""

# N conversations, M masks, L layers, H query heads, D head width.
from __future__ import annotations

import functools
import hashlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import write_whole, writing
from rewardproof.config import Section, dump_yaml, load_yaml, parse
from rewardproof.data.encoding import EncodedGroup, OverlongOrCut, encode_groups
from rewardproof.data.group import Group
from rewardproof.data.questions import Question, encode_questions, option_tokens
from rewardproof.errors import CheckpointError, ConfigError, EvaluationError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.cost import products_per_token
from rewardproof.models.head_activations import head_shape
from rewardproof.models.option_reader import OptionReader
from rewardproof.models.packed import position_table
from rewardproof.models.precision import Precision, default_device

ACTIVATION_FILE = "activation.yaml"
TENSORS_FILE = "activations.safetensors"
SAMPLED = 64
"""Entries of a parameter that `weights_key` reads."""
Reward = Literal["probability", "log_odds", "vocabulary"]
"""What becomes of the log-probabilities of the two options, averaged over masks."""


class ActivationFile(Section):
    """What `activation.yaml` says."""

    model: str
    """The language model: a directory, taken from this one where it is relative, a hub id, or `embedded:…`."""
    question: Question
    """What it is asked."""
    reward: Reward = "probability"
    """What is made of its reply."""
    chat_template: str
    """SHA-256 of the template by which the activations were read."""
    weights: str
    """SHA-256 over the beginnings of the language model's parameters: heads mean something in their own model alone."""
    made_of: str = ""
    """What the activations are of."""


@dataclass(frozen=True, slots=True)
class MeanHeads:
    """Mean activations, and which heads put them out.

    Attributes:
        values_LHD: Mean activation of every head, shape `(L, H, D)`.
        masks_MLH: Masks of the heads that are replaced, one a seed, shape `(M, L, H)`; the reward is their mean.
    """

    values_LHD: Tensor
    masks_MLH: Tensor


class ActivationRewardModel:
    r"""A language model with some heads replaced; scores and encodes as `RewardModel` does.

    .. math:: r = \frac1M \sum_m \frac{P_m(\text{Yes})}{P_m(\text{Yes}) + P_m(\text{No})}
    """

    routes = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heads: MeanHeads,
        question: Question,
        *,
        reward: Reward = "probability",
        precision: Precision = "fp32",
    ) -> None:
        """Join a language model and its heads.

        Args:
            model: A causal model.
            tokenizer: Its tokenizer, with the chat template by which the activations were read.
            heads: What replaces heads, and where.
            question: What is asked of answers.
            reward: What is made of the reply.
            precision: Of the forward pass.

        Raises:
            CheckpointError: The heads are not those of this model.
            ConfigError: The tokenizer cannot tell the options apart.
        """
        shape, found = tuple(head_shape(model)), tuple(heads.values_LHD.shape)
        if found != shape or tuple(heads.masks_MLH.shape[1:]) != shape[:2]:
            raise CheckpointError(
                f"Got activations of shape {found} and masks of {tuple(heads.masks_MLH.shape)} for a model with layers, heads and width "
                f"{shape}, expected those of one model: a head's activation means something in its own model alone. Name the model that "
                f"they were read from in {ACTIVATION_FILE}, or make them again."
            )
        self.model, self.tokenizer = model, tokenizer
        self.heads, self.question = heads, question
        self.reward: Reward = reward
        self.reader = OptionReader(model, option_tokens(question.words, tokenizer), precision)
        self._template = template_key(tokenizer)

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "fp32", device: torch.device | None = None) -> ActivationRewardModel:
        """Load what a directory describes, with the language model that it names.

        Args:
            path: The directory.
            precision: Of the forward pass.
            device: Where to put the language model; the accelerator if there is one.

        Raises:
            CheckpointError: A file is missing or damaged, or does not belong to the language model.
            ConfigError: `activation.yaml` says something else, or the language model's chat template has changed.
        """
        folder = Path(path)
        file = folder / ACTIVATION_FILE
        if not file.is_file():
            raise CheckpointError(
                f"{path} has no {ACTIVATION_FILE}, expected the directory of an activation reward model; make one with `rewardproof train "
                "activation`."
            )
        found = parse(ActivationFile, load_yaml(file.read_text(), origin=str(file)))
        heads = _read_heads(folder / TENSORS_FILE)
        beside = folder / found.model
        model, tokenizer = load_causal(str(beside) if beside.is_dir() else found.model)
        if template_key(tokenizer) != found.chat_template:
            raise _other_template(str(file))
        if weights_key(model) != found.weights:
            raise CheckpointError(
                f"{found.model} holds other weights than those that the activations in {path} were read from, expected the same: it was "
                f"trained or exchanged since. Restore it, correct `model` in {file}, or make the activations again."
            )
        model.to(device or default_device())  # pyright: ignore[reportArgumentType]
        return cls(model.eval(), tokenizer, heads, found.question, reward=found.reward, precision=precision)

    def save(self, path: str | Path, model: str, *, made_of: str = "") -> Path:
        """Write the directory; `activation.yaml`, which makes it whole, comes last.

        Args:
            path: The directory.
            model: Where the language model is.
            made_of: What the activations are of.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"mean_activations": self.heads.values_LHD.contiguous(), "masks": self.heads.masks_MLH.bool().contiguous()}
        with writing(folder / TENSORS_FILE, discard=folder / TENSORS_FILE):
            save_file(tensors, folder / TENSORS_FILE)
        content = ActivationFile(
            model=model,
            question=self.question.resolved,
            reward=self.reward,
            chat_template=self._template,
            weights=weights_key(self.model),
            made_of=made_of,
        )
        return write_whole(folder / ACTIVATION_FILE, dump_yaml(content))

    @property
    def relative(self) -> bool:
        """Whether an answer's reward depends on those that it is scored beside."""
        return self.question.form == "ranked"

    @property
    def parameters(self) -> int:
        """Parameters of the language model, and the activations."""
        return sum(parameter.numel() for parameter in self.model.parameters()) + self.heads.values_LHD.numel()

    @property
    def products(self) -> int:
        """Multiplications of the matrix products that one token takes part in, the head left out; only last tokens are read once a mask."""
        return products_per_token(self.model)

    @property
    def longest(self) -> int | None:
        """Tokens that a question may have at most; `None` where the model computes at any length."""
        return position_table(self.model)

    def encode(
        self, groups: Sequence[Group], *, max_length: int = 0, overlong: OverlongOrCut = "fail"
    ) -> tuple[list[EncodedGroup], Counter[str]]:
        """Tokenise the questions about groups' answers; as `RewardModel.encode`.

        Raises:
            ConfigError: `max_length` is beyond the model's own limit, tokens are to be cut, or the chat template is another than that by
                which the activations were read.
            DataError: A question is too long under `fail`, or a ranked one has one answer only.
        """
        own = self.longest or sys.maxsize
        if not 0 <= max_length <= own:
            raise ConfigError(
                f"Got max_length={max_length}, expected 0 or at most {own} tokens, beyond which the language model has no positions; lower "
                "it."
            )
        if overlong in ("cut_left", "cut_right"):
            raise ConfigError(
                f"Got overlong={overlong}, expected fail, drop or truncate_prompt: cutting tokens would cut the question, which a language "
                "model has to read whole. Write overlong=truncate_prompt."
            )
        if template_key(self.tokenizer) != self._template:
            raise _other_template("this model's tokenizer")
        ask = functools.partial(encode_questions, question=self.question)
        limit = max_length or (sys.maxsize if overlong == "fail" else own)  # what exceeds the model's own is refused when it is scored
        return encode_groups(groups, self.tokenizer, max_length=limit, overlong=overlong, encode=ask)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Rewards of every answer of every group, in the caller's order; `context` is unused."""
        return self.score_encoded(self.encode(groups)[0], origins=[group.origin or group.id for group in groups])

    def score_encoded(self, groups: Iterable[EncodedGroup], *, origins: Sequence[str] = ()) -> list[tuple[float, ...]]:
        """Rewards of encoded groups, in order; as `RewardModel.score_encoded`.

        Raises:
            DataError: A question has more tokens than the model has positions.
            EvaluationError: A reward is not finite.
        """
        wanted = list(groups)
        replies_NO = self._replies(wanted)
        rewards: list[tuple[float, ...]] = []
        done = 0
        for place, group in enumerate(wanted):
            own = replies_NO[done : done + len(group.conversations)]
            done += len(own)
            row = tuple(good for good, _ in own) if self.question.form == "scalar" else _against_the_others(own)
            if not all(map(math.isfinite, row)):
                raise EvaluationError(
                    f"The rewards of {origins[place] if origins else f'answer group {place}'} are {row}, expected finite numbers; the "
                    "language model's weights, its precision or the activations are broken. Score in fp32, or make the activations again."
                )
            rewards.append(row)
        return rewards

    def _replies(self, groups: Sequence[EncodedGroup]) -> list[tuple[float, float]]:
        """What is made of either option as the reply to every question, averaged over masks."""
        log_probs_NMO = self.reader.log_probs(groups, self.heads.values_LHD, self.heads.masks_MLH).double()
        either = [reply_rewards(one, self.reward).mean(dim=1).tolist() for one in (log_probs_NMO, log_probs_NMO.flip(-1))]
        return list(zip(*either, strict=True))


def reply_rewards(log_probs_O: Tensor, reward: Reward) -> Tensor:
    """What is made of the log-probabilities of two options, the last dimension; the first is the good one.

    Example:
        >>> log_probs = torch.tensor([0.3, 0.1]).log()
        >>> [round(reply_rewards(log_probs, kind).item(), 4) for kind in ("probability", "log_odds", "vocabulary")]
        [0.75, 1.0986, 0.3]
    """
    if reward == "vocabulary":
        return log_probs_O[..., 0].exp()
    log_odds = log_probs_O[..., 0] - log_probs_O[..., 1]
    return log_odds.sigmoid() if reward == "probability" else log_odds


def _against_the_others(replies: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Mean of what the replies say of each answer, over all that it stood beside and both orders."""
    n = math.isqrt(len(replies)) + 1  # there are n (n - 1) ordered pairs
    sums = [0.0] * n
    for (first, second), (of_first, of_second) in zip(itertools.permutations(range(n), 2), replies, strict=True):
        sums[first] += of_first
        sums[second] += of_second
    return tuple(total / (2 * (n - 1)) for total in sums)


def template_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells one chat template from another."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def weights_key(model: PreTrainedModel) -> str:
    """What tells a model's weights from others, of the first entries of every parameter; rows given to new tokens are not among them."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(f"{name} {tuple(parameter.shape[1:])}".encode())
        found.update(parameter.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return found.hexdigest()


def _other_template(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: the chat template is another than that by which the activations were read, expected the same: heads of one template mean "
        "nothing under another. Restore it, or make the activations again with this one."
    )


def _read_heads(file: Path) -> MeanHeads:
    try:
        tensors = load_file(file)
        return MeanHeads(tensors["mean_activations"], tensors["masks"])
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}: {str(error)[:200]}), expected mean_activations and masks: the directory is "
            "incomplete. Copy it again, or make it again with `rewardproof train activation`."
        ) from error
