"""The on-policy loop: sample answers, have them judged, and move the policy towards what was better than expected.

PPO, RLOO and GRPO are this loop with another estimator of advantages. What judges (`RewardSource`) may have several streams, reward single
tokens, read the policy's hidden states, and learn after every update.
"""

# P prompts, K answers to each, B = P·K answers, T tokens, S streams.
from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardproof.errors import ConfigError
from rewardproof.losses import clipped_surrogate, clipped_value_loss, sampled_kl, token_weights
from rewardproof.policy.estimators import Advantages, by_comparison, by_values
from rewardproof.policy.kl_penalty import Coefficient
from rewardproof.policy.policy import Policy, PolicyOutput
from rewardproof.policy.rewards import Moment, RewardSource
from rewardproof.policy.rollouts import Prompt, Rollouts, as_table, roll_out
from rewardproof.policy.settings import OnPolicy, check
from rewardproof.policy.stepping import Stepper
from rewardproof.policy.streams import Passes, Stream, by_streams
from rewardproof.policy.turns import in_turn
from rewardproof.training.processes import gathered


class OnPolicyLoop:
    """A policy, its reference, and who rewards it; `update` is one step of the run."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        sampler: Policy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        source: RewardSource,
        settings: OnPolicy,
        passes: Passes,
        *,
        seed: int,
    ) -> None:
        """Set up the loop.

        Args:
            policy: What is optimised, in place; under PPO with as many value heads as `value_heads` says.
            reference: What it is kept near, a frozen copy of where it starts.
            sampler: The copy of the policy that samples.
            tokenizer: The policy's.
            prompts: To sample answers to; each once before any comes again.
            source: Who rewards.
            settings: How to optimise.
            passes: How passes over the answers are made.
            seed: Of the prompts' order and of sampling.

        Raises:
            ConfigError: Fewer prompts than one step takes, or a step that the processes cannot share.
        """
        self.policy, self.reference, self.sampler, self.tokenizer, self.prompts = policy, reference, sampler, tokenizer, prompts
        self.source, self.settings, self.passes, self.seed = source, settings, passes, seed
        self.coefficient = Coefficient(settings.kl)
        self.sampling = settings.sampling(seed)
        parts = [
            {"params": [one for one in policy.model.parameters() if one.requires_grad], "lr": settings.learning_rate},
            {"params": [] if policy.values is None else list(policy.values.parameters()), "lr": settings.value_learning_rate},
        ]
        optimizer = torch.optim.AdamW([part for part in parts if part["params"]], betas=settings.betas, weight_decay=settings.weight_decay)
        self.stepper = Stepper(
            policy,
            optimizer,
            settings,
            precision=passes.precision,
            per_update=self._per_step,
            steps=settings.steps,
            warmup=settings.warmup_steps,
        )
        self.accelerator, self.optimizer, self.schedule = self.stepper.accelerator, self.stepper.optimizer, self.stepper.schedule
        self._check(settings, len(prompts))
        self.steps = settings.steps
        self.done = 0
        self.kept: list[Tensor] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def _check(self, settings: OnPolicy, n_prompts: int) -> None:
        world = self.accelerator.num_processes
        if settings.prompts_per_step % (settings.minibatches * world):
            raise ConfigError(
                f"prompts_per_step={settings.prompts_per_step} with {settings.minibatches} minibatches on {world} processes: expected a "
                "multiple of their product, so that all take the same share; change one of them."
            )
        check(settings)
        if n_prompts < settings.prompts_per_step:
            raise ConfigError(
                f"Got {n_prompts} prompts, expected at least prompts_per_step={settings.prompts_per_step}; give more prompts, or lower it."
            )

    @property
    def _per_step(self) -> int:
        return self.settings.epochs * self.settings.minibatches

    def update(self) -> dict[str, Any]:
        """Take the next step of the run; gives numbers for the log.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        torch.manual_seed(self.seed + self.done)
        before = time.perf_counter()
        self.seconds.clear()
        with self._timed("generation"):
            rollouts = self._sampled()
        with self._timed("reference"):
            streams = [self.passes.streams(self.policy, rollouts, groups) for groups in self._minibatches()]
            flat = [stream for part in streams for stream in part]
            sampled_LX = self.passes.over(self.policy, flat, self._read)
            reference_BT = rollouts.table(self.passes.over(self.reference, flat, lambda out: out.log_probs_L))
        sampled_BT, *values = (rollouts.table(column) for column in sampled_LX.unbind(dim=1))
        with self._timed("scoring"):
            rewards_SBT = self.source.rewards(rollouts, self._moment(flat))
        log_ratio_BT = sampled_BT - reference_BT
        advantages = self._advantages(rollouts, rewards_SBT, log_ratio_BT, values)
        with self._timed("update"):
            told = self._optimise(rollouts, streams, advantages, (sampled_BT, reference_BT, *values))
        with self._timed("learning"):
            learnt = self.source.learn(rollouts, rewards_SBT, self._moment(flat))
        kl = self.stepper.mean(log_ratio_BT.sum(dim=1))
        metrics = {
            "step": self.done + 1,
            **{f"reward/{name}": self.stepper.mean(reward.sum(dim=1)) for name, reward in zip(self.source.names, rewards_SBT, strict=True)},
            "reward": self.stepper.mean(torch.einsum("s,sbt->b", torch.tensor(self.source.weights())[: len(rewards_SBT)], rewards_SBT)),
            "kl": kl,
            "kl_k3": self.stepper.mean((sampled_kl(sampled_BT, reference_BT, "k3") * rollouts.mask_BT).sum(dim=1)),
            "sampler_gap": self.stepper.mean((rollouts.sampler_B - sampled_BT.sum(dim=1)) / rollouts.lengths_B),
            "kl_coefficient": self.coefficient.value,
            "answer_tokens": self.stepper.mean(rollouts.lengths_B.float()),
            "finished": self.stepper.mean(rollouts.finished_B.float()),
            **told,
            **learnt,
        }
        self.coefficient.steer(kl)
        self.done += 1
        whole = time.perf_counter() - before
        metrics["seconds"] = {**{name: round(spent, 3) for name, spent in self.seconds.items()}, "all": round(whole, 3)}
        return metrics

    def _chosen(self) -> list[int]:
        """Prompts of this step, in an order that every process draws alike."""
        return in_turn(len(self.prompts), self.done, size=self.settings.prompts_per_step, seed=self.seed)

    @property
    def _per_minibatch(self) -> int:
        """Prompts of a minibatch, over all processes."""
        return self.settings.prompts_per_step // self.settings.minibatches

    def _own(self) -> list[int]:
        """Positions in the step of this process's prompts, minibatch by minibatch."""
        size = self._per_minibatch
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return [first + place for first in range(0, self.settings.prompts_per_step, size) for place in range(rank, size, world)]

    def _minibatches(self) -> list[range]:
        """This process's prompts of each minibatch, as places in its own rollouts."""
        size = self._per_minibatch // self.accelerator.num_processes
        return [range(first, first + size) for first in range(0, size * self.settings.minibatches, size)]

    def _sampled(self) -> Rollouts:
        self.sampler.follow(self.policy)
        chosen, own = self._chosen(), self._own()
        streams = [self.done * self.settings.prompts_per_step + place for place in own]
        prompts = [self.prompts[chosen[place]] for place in own]
        return roll_out(self.sampler.model, self.tokenizer, prompts, streams, answers=self.settings.answers, sampling=self.sampling)

    def _further(self, count: int) -> Rollouts:
        """Answers of the policy, as it is, to `count` prompts that this step alone decides; each process has its share of them."""
        self.sampler.follow(self.policy)
        dice = np.random.default_rng([self.seed, self.done, count])
        chosen = dice.choice(len(self.prompts), count, replace=count > len(self.prompts))
        own = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        prompts, streams = [self.prompts[chosen[place]] for place in own], [self.done * count + place for place in own]
        sampling = self.settings.sampling(self.seed + 2**32)
        return roll_out(self.sampler.model, self.tokenizer, prompts, streams, answers=self.settings.answers, sampling=sampling)

    def _read(self, out: PolicyOutput) -> Tensor:
        self._keep(out.states_TD)
        return torch.cat((out.log_probs_L[:, None], out.values_LS), dim=1)

    def _keep(self, states_TD: Tensor) -> None:
        """Keep a stream's states for who reads them."""
        if self.source.reads_states:
            self.kept.append(states_TD.detach())

    def _moment(self, streams: Sequence[Stream]) -> Moment:
        """This step, with the states that were kept since the last call, or else of a pass made when they are asked for."""
        kept, self.kept = self.kept, []
        states = functools.cache(lambda: by_streams(streams, kept) if kept else self.passes.states(self.policy, streams))
        return Moment(self.done, self.settings.steps, states, self._further)

    def _advantages(self, rollouts: Rollouts, rewards_SBT: Tensor, log_ratio_BT: Tensor, values: Sequence[Tensor]) -> Advantages:
        settings, mask_BT = self.settings, rollouts.mask_BT
        weights_S = torch.tensor(self.source.weights(), dtype=rewards_SBT.dtype)
        if settings.penalised:
            penalty_BT = -self.coefficient.value * log_ratio_BT * mask_BT
            rewards_SBT = torch.cat((rewards_SBT, penalty_BT[None]))
            weights_S = torch.cat((weights_S, torch.ones(max(0, len(rewards_SBT) - len(weights_S)))))
        weights_S = weights_S[: len(rewards_SBT)]
        if settings.estimator == "ppo":
            return by_values(
                rewards_SBT,
                torch.stack(list(values)),
                mask_BT,
                weights_S,
                discount=settings.discount,
                trace=settings.trace,
                whiten=settings.whiten,
                whiten_streams=settings.whiten_streams,
                total=self.stepper.total,
            )
        scaled = settings.scaled if settings.estimator == "grpo" else None
        return by_comparison(
            rewards_SBT,
            mask_BT,
            weights_S,
            answers=settings.answers,
            scaled=scaled,
            token_weight=settings.token_weight,
            epsilon=settings.scale_epsilon,
        )

    def _optimise(
        self,
        rollouts: Rollouts,
        streams: Sequence[Sequence[Stream]],
        advantages: Advantages,
        tables: Sequence[Tensor],
    ) -> dict[str, float]:
        """All epochs over all minibatches; gives the means of what was met. Tables: log-probabilities when sampled, reference, values."""
        totals: defaultdict[str, float] = defaultdict(float)
        norms = 0.0
        for _ in range(self.settings.epochs):
            self.kept = []
            for groups, part in zip(self._minibatches(), streams, strict=True):
                rows = slice(groups.start * self.settings.answers, groups.stop * self.settings.answers)
                n_tokens = float(self.stepper.total(rollouts.mask_BT[rows].sum().float()))
                self._minibatch(rollouts, part, advantages, tables, n_tokens, totals)
                norms += self.stepper.step(self.done + 1)
        parts = gathered(dict(totals))
        return {name: sum(part[name] for part in parts) / self._per_step for name in totals} | {"gradient_norm": norms / self._per_step}

    def _minibatch(
        self,
        rollouts: Rollouts,
        streams: Sequence[Stream],
        advantages: Advantages,
        tables: Sequence[Tensor],
        n_tokens: float,
        totals: defaultdict[str, float],
    ) -> None:
        """Forward and backward over one minibatch's streams."""

        def loss_of(stream: Stream, out: PolicyOutput, counts: bool) -> Tensor:
            loss, told = self._loss(rollouts, stream, out, advantages, tables, n_tokens)
            if counts:
                self._keep(out.states_TD)
                for name, value in told.items():
                    totals[name] += value
            return loss

        self.stepper.accumulate(streams, loss_of, idle=False)

    def _loss(
        self, rollouts: Rollouts, stream: Stream, out: PolicyOutput, advantages: Advantages, tables: Sequence[Tensor], n_tokens: float
    ) -> tuple[Tensor, dict[str, float]]:
        settings, device, rows = self.settings, self.accelerator.device, stream.rows
        n_answers = self._per_minibatch * settings.answers
        mask_BT = rollouts.mask_BT[rows].to(device)
        sampled_BT, reference_BT, *values = (table[rows].to(device) for table in tables)
        weights_BT = token_weights(mask_BT, settings.aggregate, n_tokens=n_tokens, n_answers=n_answers)
        log_probs_BT = as_table(out.log_probs_L, mask_BT)
        advantages_BT = advantages.advantages_BT[rows].to(device)
        loss, clipped = clipped_surrogate(
            log_probs_BT, sampled_BT, advantages_BT, weights_BT, clip=settings.clip, whole_answers=settings.whole_answers
        )
        told = {"surrogate": float(loss.detach()), "clipped": float(clipped) / n_tokens}
        if settings.kl.place == "loss" and self.coefficient.value:
            estimate_BT = sampled_kl(log_probs_BT, reference_BT, settings.kl.estimate)
            # One ratio for a whole answer makes its gradient the sum over the tokens, whose estimates then add up as well.
            weights_BT = token_weights(mask_BT, "sum", n_answers=n_answers) if settings.whole_answers else weights_BT
            loss = loss + self.coefficient.value * (weights_BT * estimate_BT).sum()
        for place, (sampled_values_BT, coefficient) in enumerate(zip(values, settings.value_coefficients(len(values)), strict=True)):
            values_BT = as_table(out.values_LS[:, place], mask_BT)
            returns_BT = advantages.returns_SBT[place][rows].to(device)
            evenly_BT = token_weights(mask_BT, "token", n_tokens=n_tokens)
            value_loss = clipped_value_loss(values_BT, sampled_values_BT, returns_BT, evenly_BT, clip=settings.value_clip)
            told["value_loss"] = told.get("value_loss", 0.0) + float(value_loss.detach())
            loss = loss + coefficient * value_loss
        told["loss"] = float(loss.detach())
        self.stepper.require_finite(told["loss"], f"the loss of step {self.done + 1} is {told['loss']}")
        return loss, told

    def state(self) -> dict[str, Any]:
        """The penalty's weight, and what the source has learnt."""
        return {"kl_coefficient": self.coefficient.value, "source": dict(self.source.state())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.coefficient.value = state["kl_coefficient"]
        self.source.load_state(state["source"])

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started
