"""The off-policy loop: take preferences, and move the policy's log-ratios to its reference apart as their order says."""

# C conversations of a stream, P ordered pairs, G groups.
from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError
from rewardproof.models.precision import Precision
from rewardproof.policy.direct_alignment import DirectAlignment, baseline_losses, check_direct, optimizer_of, preference_losses
from rewardproof.policy.policy import Policy, PolicyOutput
from rewardproof.policy.stepping import Stepper
from rewardproof.policy.turns import in_turn
from rewardproof.training.answer_pairs import AnswerPairs, gap_of, wins
from rewardproof.training.batches import Collator, Stream, TrainingGroup
from rewardproof.training.objective import PairIndex
from rewardproof.training.processes import gathered
from rewardproof.training.reference import Reference, answer_lengths, summed, values_of


class OffPolicyLoop:
    """A policy and the preferences that it learns from; `update` is one step of the run."""

    def __init__(
        self,
        policy: Policy,
        groups: Sequence[TrainingGroup],
        settings: DirectAlignment,
        collator: Collator,
        *,
        precision: Precision,
        seed: int,
    ) -> None:
        """Set up the loop; `ask_reference` comes before the first update.

        Args:
            policy: What is optimised, in place.
            groups: Prompts with ordered answers; with `baseline=sampled` the last answer of each is the baseline's.
            settings: How to optimise.
            collator: Packs groups into streams.
            precision: Of the policy's passes.
            seed: Of the groups' order.

        Raises:
            ConfigError: Fewer groups than one step takes.
        """
        check_direct(settings)
        if len(groups) < settings.groups_per_step:
            raise ConfigError(
                f"Got {len(groups)} prompts with an order, expected at least direct.groups_per_step={settings.groups_per_step}; give more "
                "preferences, or lower it."
            )
        self.policy, self.groups, self.settings, self.collator, self.seed = policy, groups, settings, collator, seed
        self.precision: Precision = precision
        self.steps = settings.updates(len(groups))
        self.stepper = Stepper(
            policy,
            optimizer_of(settings, [one for one in policy.model.parameters() if one.requires_grad]),
            settings,
            precision=precision,
            steps=self.steps,
            warmup=settings.warmup(self.steps),
        )
        self.optimizer, self.schedule = self.stepper.optimizer, self.stepper.schedule
        self.reference = Reference()
        self.done = 0

    def ask_reference(self, file: Path, *, progress: Callable[[int, int], None]) -> None:
        """Ask the policy as it starts for the log-probability of every answer, once, and keep it in a file.

        Groups are read step by step as the first epoch will, with a gradient that nobody takes: so the first update meets exactly what the
        reference has said, and gaps start at 0.
        """
        per_step, count = self.settings.groups_per_step, len(self.groups)
        order = (place for step in range(min(self.steps, -(-count // per_step))) for place in self._places(step))
        asked = [self.groups[place].group for place in dict.fromkeys(order)]

        def read(groups: Sequence[EncodedGroup]) -> Iterator[tuple[EncodedGroup, list[float]]]:
            device = self.policy.model.device
            for first in range(0, len(groups), per_step):
                part = groups[first : first + per_step]
                yield from values_of(self.policy, part, self._said, collator=self.collator, device=device, precision=self.precision)

        self.reference.keep(file, asked, read, progress=progress)

    def _said(self, stream: Stream) -> Tensor:
        with torch.enable_grad():
            return summed(self.policy(stream.batch, stream.trunk_TD).log_probs_L, stream.batch).detach()

    def _places(self, step: int) -> list[int]:
        return in_turn(len(self.groups), step, size=self.settings.groups_per_step, seed=self.seed)

    def update(self) -> dict[str, Any]:
        """Take the next step of the run; gives numbers for the log, means over prompts.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        torch.manual_seed(self.seed + self.done)
        before = time.perf_counter()
        entries = [self.groups[place] for place in self._places(self.done)]
        share = self.collator.share(entries, self.stepper.accelerator.process_index, self.stepper.processes)
        share = share.to(self.policy.model.device)
        totals: defaultdict[str, float] = defaultdict(float)

        def loss_of(stream: Stream, out: PolicyOutput, counts: bool) -> Tensor:
            loss, told = self._loss(stream, out)
            self.stepper.require_finite(float(loss.detach()), f"the loss of step {self.done + 1} is {float(loss.detach())}")
            for name, value in told.items() if counts else ():
                totals[name] += value
            return loss / len(entries)

        self.stepper.accumulate(share.streams, loss_of, idle=share.idle)
        norm = self.stepper.step(self.done + 1)
        parts = gathered(dict(totals))
        told = {name: sum(part.get(name, 0.0) for part in parts) / len(entries) for name in sorted({key for part in parts for key in part})}
        self.done += 1
        spent = round(time.perf_counter() - before, 3)
        return {"step": self.done, **told, "gradient_norm": norm, "seconds": {"update": spent, "all": spent}}

    def _loss(self, stream: Stream, out: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
        """Sum of the groups' losses, and of what the log tells of them."""
        batch, settings = stream.batch, self.settings
        log_prob_C = summed(out.log_probs_L, batch)
        index = PairIndex.of(batch, log_prob_C.device)
        pairs = AnswerPairs.of(log_prob_C, self.reference.of(stream.groups), batch, index)
        losses_P = preference_losses(settings, pairs, index.doubt_P)
        loss = (index.weight_P * losses_P).sum()
        told_P = {
            "loss/preference": losses_P,
            "implicit/accuracy": wins(gap_of(*pairs)),
            "implicit/gap": settings.beta * gap_of(*pairs),
            "implicit/chosen": settings.beta * pairs.chosen.log_ratio_P,
            "implicit/rejected": settings.beta * pairs.rejected.log_ratio_P,
            "log_prob/chosen": pairs.chosen.log_prob_P,
            "log_prob/rejected": pairs.rejected.log_prob_P,
        }
        told = {name: float((index.weight_P * value_P.detach()).sum()) for name, value_P in told_P.items()}
        if settings.keeps_baseline:
            kept = self._baseline(log_prob_C, stream, pairs, index)
            told["loss/baseline"] = float(kept.detach())
            loss = loss + kept
        return loss, told | {"loss": float(loss.detach())}

    def _baseline(self, log_prob_C: Tensor, stream: Stream, pairs: AnswerPairs, index: PairIndex) -> Tensor:
        """What the likelihood of the baseline's answers adds, summed over groups."""
        if self.settings.baseline == "chosen":
            return (index.weight_P * baseline_losses(self.settings, pairs.chosen.log_prob_P, pairs.chosen.length_P)).sum()
        last_G = torch.tensor(stream.batch.conversations_per_group, device=log_prob_C.device).cumsum(0) - 1
        length_C = torch.tensor(answer_lengths(stream.batch), device=log_prob_C.device)
        return baseline_losses(self.settings, log_prob_C[last_G], length_C[last_G]).sum()

    def state(self) -> dict[str, Any]:
        """Nothing: what the reference said lies in a file of its own."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
