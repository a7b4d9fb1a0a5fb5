"""The course of a policy run: judge, optimise, judge again; on policy against rewards, or off policy from preferences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Progress, RunDirectory, is_main
from rewardproof.errors import ConfigError
from rewardproof.evaluation import EVALUATIONS
from rewardproof.models.precision import resolve_precision
from rewardproof.models.upcycling import select_layers
from rewardproof.policy.checkpoints import load_loop, save_loop
from rewardproof.policy.evaluation import evaluate_policy
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.redistribution import Redistributor
from rewardproof.policy.rewards import RewardSource, ScoredAnswers
from rewardproof.policy.rollouts import Prompt
from rewardproof.policy.stepping import Loop
from rewardproof.policy.streams import Passes
from rewardproof.scoring import Scale, Scorer
from rewardproof.stages import align_constraints
from rewardproof.stages.align_direct import off_policy_loop, with_implicit_reward
from rewardproof.stages.align_learning import Learning
from rewardproof.stages.align_prompts import Prompts
from rewardproof.training.batches import TrainingGroup
from rewardproof.training.checkpoints import latest_whole
from rewardproof.training.freezing import add_adapters, freeze_all_but
from rewardproof.training.processes import agreed, wait

if TYPE_CHECKING:
    from rewardproof.stages.align import Align

GOLD = "gold"


class PolicyCourse:
    """One run from its first evaluation to its last."""

    def __init__(
        self,
        config: Align,
        directory: RunDirectory,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        preferences: Sequence[TrainingGroup],
        learning: Learning,
        gold: Scorer | None,
    ) -> None:
        """Set up a run.

        Args:
            config: Its settings.
            directory: Where evaluations and checkpoints go.
            model: The policy's, optimised in place.
            tokenizer: The policy's.
            prompts: To learn on, to be judged on, to seek thresholds on.
            preferences: To learn from, with `direct`.
            learning: The rewards, which may learn.
            gold: Who judges without the policy's learning from it.

        Raises:
            ConfigError: No layer trains.
        """
        self.config, self.directory, self.tokenizer, self.prompts, self.preferences = config, directory, tokenizer, prompts, preferences
        self.learning, self.scorers, self.gold = learning, dict(learning.scorers), gold
        self.points = align_constraints.proxy_points(config, [prompt.group for prompt in prompts.judged])
        self.passes = Passes(resolve_precision(config.compute.precision, model.device), config.compute.tokens_per_batch)
        layers = select_layers(config.way.layers, model.config.num_hidden_layers)
        if not len(layers):
            raise ConfigError(
                f"{config.way.section}.layers=top:0: expected layers that train, since nothing else of a policy does; write top:1 or more."
            )
        torch.manual_seed(config.seed)
        self.adapters = add_adapters(model, layers, config.way.lora) if config.way.lora else None
        if self.adapters is None:
            freeze_all_but(model, layers)
        self.model = model
        heads = 0 if config.direct else config.optimise.value_heads(len(self.scorers))
        self.policy = Policy(model, n_values=heads, first_layer=layers.start, temperature=config.way.temperature)
        self.reference = self.policy.frozen_copy()
        self.sampler = self.policy.sampler(self.passes.precision)
        self.scales: dict[str, Scale] = {}

    def follow(self, *, resume: bool, progress: Progress) -> None:
        """Judge, optimise, judge again."""
        folder = self.directory.path / "checkpoints"
        self._measure_scales()
        loop = self._loop(folder, progress)
        checkpoint = agreed(latest_whole(folder) if resume and is_main() else None)
        if checkpoint is not None:
            load_loop(loop, checkpoint)
        if resume:
            self._forget_beyond(loop.done)
        while loop.done < loop.steps:
            progress("optimising", loop.done, loop.steps)
            self.directory.log({"phase": "optimising", **loop.update()})
            if (trial := self._searched(loop)) is not None:
                self.directory.log({"phase": "searching", "step": loop.done, **trial})
            if loop.done % self.config.evaluate.every == 0 or loop.done == loop.steps:
                self._judge(loop.done)
            if is_main() and loop.done % self.config.compute.save_every == 0:
                save_loop(loop, folder)
            wait()
        progress("optimising", loop.steps, loop.steps)

    def _searched(self, loop: Loop) -> dict[str, Any] | None:
        """What a search for thresholds, where there is one, makes of the policy as it is."""
        if not isinstance(loop, OnPolicyLoop):
            return None
        return align_constraints.scored(loop.source, lambda: self._validated({GOLD: self.gold}, loop.done))

    def _loop(self, folder: Path, progress: Progress) -> Loop:
        """The updates to come: on policy, or off policy from preferences."""
        config = self.config
        if config.direct is not None:
            return off_policy_loop(
                config, config.direct, self.policy, self.preferences, passes=self.passes, folder=folder, progress=progress
            )
        return OnPolicyLoop(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            self.prompts.training,
            self._source(),
            config.optimise,
            self.passes,
            seed=config.seed,
        )

    def _source(self) -> RewardSource:
        """The scorers, which learn where the recipe says so."""
        settings = self.config.optimise
        scored = ScoredAnswers(
            self.scorers,
            align_constraints.units(self.config, self.scales),
            weights=self.config.weights,
            cut_penalty=settings.cut_penalty,
            limit=settings.reward_limit,
            redistributor=Redistributor(settings.redistribute, self.tokenizer) if settings.redistribute.share else None,
        )
        if self.config.constrained is not None:
            return align_constraints.source(self.config, scored, self.scales, self.points, self._scored_at_first)
        return self.learning.source(scored)

    def _forget_beyond(self, step: int) -> None:
        """Drop what the interrupted run found after its last checkpoint: it is found anew, on some machines not to the last bit."""
        for file in (self.directory.path / EVALUATIONS).glob("*.jsonl") if is_main() else ():
            if int(file.stem) > step:
                file.unlink()
        self.directory.forget_beyond(step)
        wait()

    def delivered(self) -> PreTrainedModel:
        """The policy's model, adapters folded in."""
        return self.model if self.adapters is None else self.adapters.merge_and_unload()

    def _measure_scales(self) -> None:
        """Judge the policy as it starts; a scorer's zero and unit are those of these answers, the same for every scorer."""
        rows = self._judge(0)
        self.scales = {name: Scale.of([row[f"proxy/{name}"] for row in rows], name=name) for name in self.scorers}

    def _judge(self, step: int) -> list[dict[str, Any]]:
        """Rows of `evaluations/STEP.jsonl`: read where an interrupted run has written them, else made."""
        file = self.directory.path / EVALUATIONS / f"{step:06d}.jsonl"
        if agreed(file.is_file()):
            return [json.loads(line) for line in file.read_text().splitlines()]
        chosen = self.config.evaluate
        judges = self.learning.judges()
        if self.gold is not None:
            judges[GOLD] = self.gold
        rows = self._rows(self.prompts.judged, judges, step, answers=chosen.answers, exact=chosen.exact, states=chosen.states)
        if is_main():
            self.directory.write_text(f"{EVALUATIONS}/{file.name}", "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def _scored_at_first(self) -> list[dict[str, Any]]:
        """What each reward gives the initial policy's answers to those prompts, in `proxy/NAME`."""
        return self._validated({f"proxy/{name}": scorer for name, scorer in self.scorers.items()}, 0)

    def _validated(self, judges: Mapping[str, Scorer | None], step: int) -> list[dict[str, Any]]:
        """Rows of the prompts that thresholds are sought on, which are neither those to learn on nor those of the evaluations."""
        assert self.config.constrained is not None
        assert self.config.constrained.search is not None
        known = {name: judge for name, judge in judges.items() if judge is not None}
        return self._rows(self.prompts.validation, known, step, answers=self.config.constrained.search.answers)

    def _rows(
        self, prompts: Sequence[Prompt], judges: Mapping[str, Scorer], step: int, *, answers: int, exact: bool = False, states: bool = False
    ) -> list[dict[str, Any]]:
        direct = self.config.direct
        rows = evaluate_policy(
            self.policy,
            self.reference,
            self.sampler,
            self.tokenizer,
            prompts,
            judges,
            answers=answers,
            sampling=self.config.way.sampling(self.config.seed + 2**31),
            passes=self.passes,
            exact=exact,
            states=states,
            step=step,
            steps=direct.updates(len(self.preferences)) if direct else self.config.optimise.steps,
        )
        return with_implicit_reward(rows, direct) if direct is not None and not self.scorers else rows
