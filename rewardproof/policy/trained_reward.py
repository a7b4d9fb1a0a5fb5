"""A reward model whose own layers learn beside a policy, and the data that it is taken back to."""

# C conversations of a stream.
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewardproof.artifacts import n_processes, process_number
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, fill, pack
from rewardproof.data.pairs import Pair
from rewardproof.errors import ConfigError
from rewardproof.losses import over_processes
from rewardproof.models.checkpoints import forget_reward_scale
from rewardproof.models.families import family_of
from rewardproof.models.packed import packed_rewards
from rewardproof.models.precision import computing_in
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import select_layers
from rewardproof.policy.learning import Descent, RewardSteps
from rewardproof.policy.turns import in_turn
from rewardproof.training.batches import TrainingGroup, TrainingSet
from rewardproof.training.checkpoints import load_trained_state, trained_state
from rewardproof.training.freezing import freeze_all_but


class RewardLearning(Descent):
    """How a reward model's own layers learn."""

    layers: str = "all"
    """Layers of the reward model that learn, its head with them: `all`, or `top:K`."""


class Scored(NamedTuple):
    """One pass: the groups of a stream, the stream, and its rewards with their gradient."""

    groups: Sequence[EncodedGroup]
    batch: PackedBatch
    rewards_C: Tensor


class TrainedReward:
    """A reward model that learns, and beside it the same as it was given."""

    def __init__(self, model: RewardModel, settings: RewardLearning, *, name: str, key: str) -> None:
        """Choose what learns.

        Args:
            model: Changes in place; whoever scores by it scores by what it has learned.
            settings: How it learns.
            name: Of its stream.
            key: Of the settings, for messages.

        Raises:
            ConfigError: It is made of experts by capability.
        """
        if model.experts is not None:
            raise ConfigError(
                f"Got a model of experts by capability as reward {name} with `{key}`, expected one with a reward head: nothing says "
                "which of its parts should learn. Name another reward model."
            )
        self.model, self.settings, self.key = model, settings, key
        network = model.model
        layers = select_layers(settings.layers, len(family_of(network).layer_list(network)))
        freeze_all_but(network, layers, head=network.get_submodule("score"))
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.given = self._copy()
        self.steps = RewardSteps(self.parameters, settings, name=name, key=key)

    def _copy(self) -> RewardModel:
        """The model as it is now; what does not learn is shared."""
        one = self.model
        shared = {id(parameter): parameter for parameter in one.model.parameters() if not parameter.requires_grad}
        network, budget = copy.deepcopy(one.model, shared), one.tokens_per_batch
        return RewardModel(network, one.tokenizer, precision=one.precision, tokens_per_batch=budget, backend=one.backend)

    def passes(self, groups: Sequence[EncodedGroup], pairs: Sequence[tuple[Pair, ...]] = ()) -> Iterator[Scored]:
        """Rewards of encoded groups, stream by stream, with a gradient where one is computed; no group is cut."""
        self.model.model.eval()  # dropout would make the reward another one than the policy is given
        of_group = {id(group): own for group, own in zip(groups, pairs, strict=bool(pairs))}
        for run in fill(groups, tokens_per_batch=self.model.tokens_per_batch):
            batch = pack(run, [of_group[id(group)] for group in run] if pairs else ()).to(self.model.model.device)
            with computing_in(self.model.precision, self.model.model.device):
                rewards_C = packed_rewards(self.model.model, batch, backend=self.model.backend).rewards_C
            yield Scored(run, batch, rewards_C)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the reward model as it stands, as any is written.

        Raises:
            CheckpointError: It cannot be written.
        """
        forget_reward_scale(self.model.model)
        return self.model.save(folder, dtype=dtype)

    def fill_in(self) -> None:
        """Gradients of 0 where this process had nothing to learn from: the others wait for its part of the sum."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def state(self) -> Mapping[str, Any]:
        """What has learnt, and its optimiser."""
        learnt = {name: parameter.detach() for name, parameter in trained_state(self.model.model).items()}
        return {"parameters": learnt, "optimizer": self.steps.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state."""
        load_trained_state(self.model.model, state["parameters"])
        self.steps.optimizer.load_state_dict(state["optimizer"])


class Turns:
    """Training groups by turns, shared out among the processes."""

    def __init__(self, groups: TrainingSet, *, size: int, seed: int) -> None:
        """Take `size` groups each time, over all processes."""
        self.groups, self.size, self.seed = groups.groups, size, seed

    def take(self, number: int) -> list[TrainingGroup]:
        """This process's share of those whose turn it is."""
        chosen = in_turn(len(self.groups), number, size=self.size, seed=self.seed)
        return [self.groups[place] for place in chosen[process_number() :: n_processes()]]


def summed(totals: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sums over all processes, by name."""
    names = sorted(totals)
    found = over_processes(torch.tensor([totals[name] for name in names], dtype=torch.float64, device=device))
    return dict(zip(names, found.tolist(), strict=True))
