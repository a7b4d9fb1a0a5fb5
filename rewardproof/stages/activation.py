"""A run that makes an activation reward model of a language model and few preferences: heads read, averaged, and selected. Nothing trains.

What a seed's selection came to is kept beside the checkpoints; a run that goes on does not learn it again.
"""

# N examples, M masks, L layers, H query heads, D head width, O options.
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rewardproof.artifacts import n_processes
from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.questions import Question, check_question, option_tokens
from rewardproof.errors import ConfigError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.head_activations import head_shape
from rewardproof.models.option_reader import OptionReader
from rewardproof.models.precision import default_device
from rewardproof.scoring import ActivationRewardModel, MeanHeads
from rewardproof.scoring.activation import Reward
from rewardproof.stages.member_context import Member, MemberContext
from rewardproof.statistics import denoised_mean
from rewardproof.training.exemplars import Exemplars, Parts, check_exemplars, parts_of, question_groups, shown_prompts
from rewardproof.training.head_selection import HeadSelection, check_selection, final_mask, learned_logits

if TYPE_CHECKING:
    from rewardproof.stages.train import Train

log = logging.getLogger(__name__)


class Denoise(Section):
    """What `average=denoised` does before it averages."""

    energy: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a head's weighted second moment that is kept, by its strongest directions; 1 keeps all, which is the plain mean."""
    weights: Literal["confidence", "uniform"] = "confidence"
    """How much an example counts for the directions: the probability that the model, shown the same shots, gives its right reply, or all
    alike."""


class Activation(Section):
    """A few-shot reward model by activations."""

    question: Question = Question()
    """What is asked about answers."""
    exemplars: Exemplars = Exemplars()
    """The labelled examples."""
    average: Literal["mean", "denoised"] = "mean"
    """How examples' activations become one a head: their mean, or that of their projections on common directions."""
    denoise: Denoise = Denoise()
    """Settings of `average=denoised`."""
    heads: HeadSelection = HeadSelection()
    """How the heads that are replaced are selected."""
    reward: Reward = "probability"
    """What is made of the reply: the good option's share of both, the logarithm of its odds, or its probability among all tokens."""


def check_activation(config: Train) -> None:
    """Refuse settings that mean nothing where nothing trains, before any work is done.

    Raises:
        ConfigError: Names the keys.
    """
    settings = config.activation
    if settings is None:
        return
    check_question(settings.question)
    check_exemplars(settings.exemplars)
    check_selection(settings.heads)
    if settings.average == "mean" and settings.denoise != Denoise():
        raise ConfigError(
            "Got activation.denoise with average=mean, expected average=denoised: nothing else reads it. Write "
            "activation.average=denoised, or drop it."
        )
    kept = {"model", "data", "eval_data", "split", "split_seed", "seed", "max_length", "read", "compute", "activation"}
    given = [
        name for name in type(config).model_fields if name not in kept and getattr(config, name) != type(config).model_fields[name].default
    ]
    if config.read.strength.treatment != "none":
        given.append("read.strength")
    if given:
        raise ConfigError(
            f"Got `activation` with {', '.join(given)}, expected it alone: no weight trains, and one scorer is made. Drop them, or use "
            "another recipe."
        )
    if n_processes() > 1:
        raise ConfigError(
            f"Got {n_processes()} processes for `activation`, expected one: few examples are not shared out. Run it without the launcher."
        )


def make_activation(context: MemberContext) -> tuple[Member, ActivationRewardModel]:
    """Read heads, average them, select some, and write `OUT/model`.

    Returns:
        What is to be reported, and the scorer.

    Raises:
        DataError: There are too few preferences.
        ModelError: The model is no language model, or of no known architecture.
        ConfigError: The tokenizer cannot tell the options apart.
    """
    config = context.config
    settings = config.activation
    assert settings is not None
    model, tokenizer = load_causal(config.model)
    model.to(default_device()).eval()  # pyright: ignore[reportArgumentType]
    groups = [context.prepared.training[entry.group.index] for entry in context.prepared.train.groups]
    parts = parts_of(groups, config.read, settings.question, settings.exemplars)
    options = option_tokens(settings.question.words, tokenizer)
    reader = OptionReader(model, options, config.compute.precision, config.compute.tokens_per_batch)
    work = _Making(context, settings, reader, parts)
    values_LHD, kept = work.average()
    masks_MLH = torch.stack([work.mask(values_LHD, config.seed + number) for number in range(settings.heads.masks)])
    heads = MeanHeads(values_LHD.float(), masks_MLH)
    scorer = ActivationRewardModel(model, tokenizer, heads, settings.question, reward=settings.reward, precision=config.compute.precision)
    place = str(Path(config.model).resolve()) if Path(config.model).is_dir() else config.model
    scorer.save(context.directory.path / "model", place, made_of=f"{len(parts.extract)} labelled examples, {settings.average}")
    summary = {
        "examples": {name: len(part) for name, part in parts._asdict().items()},
        "options": {word: tokenizer.convert_ids_to_tokens(list(ids)) for word, ids in zip(settings.question.words, options, strict=True)},
        "directions_kept": kept,
        "heads": masks_MLH[0].numel(),
        **work.compared(values_LHD, masks_MLH),
    }
    return Member(model, {"activation": summary}), scorer


class _Making:
    """Activations and masks of one run."""

    def __init__(self, context: MemberContext, settings: Activation, reader: OptionReader, parts: Parts) -> None:
        self.context, self.settings, self.reader, self.parts = context, settings, reader, parts
        self.select, self.check = (question_groups(part, context.tokenizer) for part in (parts.select, parts.check))

    def average(self) -> tuple[Tensor, float | None]:
        """One activation a head, shape `(L, H, D)`, and with denoising the mean number of directions kept."""
        activations_NLHD = self.reader.activations(self.prompts(replied=self.settings.exemplars.read_at == "reply"))
        if self.settings.average == "mean":
            return activations_NLHD.mean(dim=0), None
        weights_N = self.confidence() if self.settings.denoise.weights == "confidence" else None
        columns = activations_NLHD.flatten(1, 2).unbind(dim=1)
        found = [denoised_mean(one.numpy(), energy=self.settings.denoise.energy, weights_n=weights_N) for one in columns]
        means_LHD = torch.from_numpy(np.stack([one.mean_d for one in found])).view(activations_NLHD.shape[1:])
        return means_LHD.to(activations_NLHD.dtype), float(np.mean([one.kept for one in found]))

    def prompts(self, *, replied: bool) -> list[EncodedGroup]:
        settings = self.settings
        return shown_prompts(
            self.parts.extract,
            settings.question,
            settings.exemplars,
            self.context.tokenizer,
            seed=self.context.config.seed,
            replied=replied,
        )

    def confidence(self) -> np.ndarray:
        """Probability of the right reply to each prompt that heads are read from, by the model as it is."""
        shape = head_shape(self.reader.model)
        log_probs_NMO = self.reader.log_probs(
            self.prompts(replied=False), torch.zeros(shape), torch.zeros(1, shape.layers, shape.heads, dtype=torch.bool)
        )
        right_N = [one.right for one in self.parts.extract for _ in range(self.settings.exemplars.draws)]
        return (-self.losses(log_probs_NMO, right_N))[:, 0].exp().numpy()

    def losses(self, log_probs_NMO: Tensor, right_N: list[int]) -> Tensor:
        """Cross-entropy of the right reply, shape `(N, M)`: among the two options, or among all tokens where the reward is."""
        if self.settings.reward != "vocabulary":
            log_probs_NMO = log_probs_NMO.log_softmax(dim=-1)
        return -torch.stack([row_MO[:, right] for row_MO, right in zip(log_probs_NMO, right_N, strict=True)])

    def mask(self, values_LHD: Tensor, seed: int) -> Tensor:
        """One seed's mask, or that which an interrupted run came to."""
        name = f"checkpoints/mask-{seed}.json"
        file = self.context.directory.path / name
        if self.context.resume and file.is_file():
            return torch.tensor(json.loads(file.read_text())["mask"], dtype=torch.bool)
        right = [one.right for one in self.parts.select]

        def loss_of(example: int, masks_MLH: Tensor) -> Tensor:
            return self.losses(self.reader.log_probs([self.select[example]], values_LHD, masks_MLH), [right[example]])[0]

        def record(step: int, loss: float, probabilities_LH: Tensor) -> None:
            self.context.progress(f"selecting heads, seed {seed}", step, self.settings.heads.iterations)
            self.context.directory.log(
                {"phase": "heads", "seed": seed, "step": step, "loss": loss, "heads_expected": float(probabilities_LH.sum())}
            )

        shape = (values_LHD.shape[0], values_LHD.shape[1])
        logits_LH = torch.zeros(shape)
        if self.settings.heads.final != "all":
            logits_LH = learned_logits(loss_of, shape, len(right), self.settings.heads, seed=seed, record=record)
        mask_LH = final_mask(logits_LH, self.settings.heads, lambda masks_MLH: self.judged(values_LHD, masks_MLH)[0].mean(dim=0), seed=seed)
        if not mask_LH.any():
            log.warning("seed %d selects no head: its share of the reward is the unmodified model's", seed)
        self.context.directory.write_json(name, {"mask": mask_LH.int().tolist(), "logits": logits_LH.tolist()})
        return mask_LH

    def judged(self, values_LHD: Tensor, masks_MLH: Tensor) -> tuple[Tensor, Tensor]:
        """Losses on the examples kept for comparison, and whether the right reply is the likelier one, both `(N, M)`."""
        right_N = [one.right for one in self.parts.check]
        log_probs_NMO = self.reader.log_probs(self.check, values_LHD, masks_MLH)
        hits = torch.stack([row_MO[:, right] > row_MO[:, 1 - right] for row_MO, right in zip(log_probs_NMO, right_N, strict=True)])
        return self.losses(log_probs_NMO, right_N), hits

    def compared(self, values_LHD: Tensor, masks_MLH: Tensor) -> dict[str, Any]:
        """The masks beside no head and all heads, on the examples kept for that."""
        none_all = torch.stack([torch.zeros_like(masks_MLH[0]), torch.ones_like(masks_MLH[0])])
        together = torch.cat([masks_MLH, none_all])
        losses_NM, hits_NM = self.judged(values_LHD, together)
        names = [*(f"seed {self.context.config.seed + number}" for number in range(len(masks_MLH))), "no head", "all heads"]
        return {
            "masks": {
                name: {
                    "heads": int(mask_LH.sum()),
                    "by_layer": mask_LH.sum(dim=1).tolist(),
                    "loss": float(losses_NM[:, place].mean()),
                    "accuracy": float(hits_NM[:, place].float().mean()),
                }
                for place, (name, mask_LH) in enumerate(zip(names, together, strict=True))
            }
        }
