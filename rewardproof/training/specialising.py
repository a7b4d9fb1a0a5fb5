"""What drives experts apart: routers that start on a part of the prompts each, a hard start, experts trained apart and joined.

Copies of one block that see nearly the same mixture of tokens through small weights stay copies. Here each gets a regime of its own.

Reference:
    Sukhbaatar et al., Branch-Train-MiX, arXiv:2403.07816 (experts trained apart, the other weights averaged).
"""

# G prompts, D hidden width, E routed experts.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.merging import average
from rewardproof.models.families import family_of
from rewardproof.models.precision import computing_in
from rewardproof.models.routing import Prompts, Router
from rewardproof.models.upcycling import moe_blocks
from rewardproof.statistics import cluster, gated_labels, softmax_regression
from rewardproof.training.batches import TrainingGroup
from rewardproof.training.fit import Fit, feature_differences, fed_module
from rewardproof.training.processes import agreed


def prompt_states(run: Fit, layers: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """Mean state of every training group's prompt at the feed-forward blocks' inputs, by layer, shape `(G, D)`.

    Args:
        run: The training run; its model may be dense or a mixture.
        layers: Indices of the layers asked for.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    blocks = family_of(run.model).layer_list(run.model)
    device = run.model.device
    with fed_module(run) as (module, collator):
        prompts: list[Prompts] = []

        def keep(layer: int, hidden: Tensor) -> None:
            found[layer].append(prompts[-1].mean(hidden.reshape(-1, hidden.shape[-1])))

        hooks = [
            blocks[layer].get_submodule("mlp").register_forward_hook(lambda _mlp, inputs, _output, layer=layer: keep(layer, inputs[0]))
            for layer in layers
        ]
        module.eval()
        try:
            with torch.no_grad(), computing_in(run.compute.precision, device):
                for stream in collator.streams(run.train.groups):
                    batch = stream.batch.to(device)
                    prompts.append(Prompts(batch.group_T, batch.prompt_T, batch.n_groups))
                    module.features(stream.to(device))
        finally:
            for hook in hooks:
                hook.remove()
    return {layer: torch.cat(states).double().cpu().numpy() for layer, states in found.items()}


def prompt_parts(run: Fit, layer: int, n_parts: int, *, by: Literal["clusters", "preferences"]) -> NDArray[np.int64]:
    """Part that every training group belongs to, shape `(G,)`; what tells them apart is their prompts' mean state at one layer.

    Args:
        run: The training run, its model dense.
        layer: Index of the layer.
        n_parts: How many parts.
        by: `clusters` of the states; or `preferences`, prompts whose preferences follow different rules on the frozen features.
    """
    states_GD = prompt_states(run, [layer])[layer]
    if by == "clusters":
        return agreed(cluster(states_GD, n_parts, seed=run.seed))
    with fed_module(run) as (module, collator):
        differences_PD = feature_differences(module, run.train.groups, collator=collator, precision=run.compute.precision)
    group_P = np.repeat(np.arange(len(run.train)), [len(entry.pairs) for entry in run.train.groups])
    return agreed(gated_labels(states_GD, differences_PD, group_P, n_parts, seed=run.seed))


def start_routers(run: Fit, labels_G: NDArray[np.int64]) -> None:
    """Make every layer's router a classifier of the parts: part i belongs to routed expert i."""
    blocks = moe_blocks(run.model)
    states = prompt_states(run, list(blocks))
    for layer, block in blocks.items():
        weight_ED = agreed(softmax_regression(states[layer], labels_G, block.experts.n_experts - 1))
        with torch.no_grad():
            block.router.weight.copy_(torch.from_numpy(weight_ED))


def of_part(groups: Sequence[TrainingGroup], labels_G: NDArray[np.int64], number: int) -> list[TrainingGroup]:
    """The groups of one part."""
    return [group for group, label in zip(groups, labels_G, strict=True) if label == number]


def average_branches(model: PreTrainedModel, branches: Sequence[Mapping[str, Tensor]]) -> None:
    """Give a dense model the mean of the branches' weights, in place: what the experts do not hold, and the shared expert's start."""
    model.load_state_dict(average(branches))


def put_branches(model: PreTrainedModel, branches: Sequence[PreTrainedModel]) -> None:
    """Make each branch's feed-forward weights a routed expert of the mixture, in place."""
    family = family_of(branches[0])
    with torch.no_grad():
        for layer, block in moe_blocks(model).items():
            for number, branch in enumerate(branches, start=1):
                for name, matrix in family.read(family.layer_list(branch)[layer].get_submodule("mlp")).items():
                    block.experts.get_parameter(name)[number].copy_(matrix)


class HardStart(TrainerCallback):
    """Lets the most probable routed expert compute a token alone during the first share of the steps."""

    def __init__(self, module: nn.Module, share: float) -> None:
        """Switch the routers of `module` for `share` of the steps."""
        self.routers = [entry for entry in module.modules() if isinstance(entry, Router)]
        self.share = share

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Hard in the first share, mixed from then on."""
        self._switch(state.global_step < self.share * state.max_steps)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the mixture in the form in which it is merged and delivered."""
        self._switch(False)

    def _switch(self, hard: bool) -> None:
        for router in self.routers:
            router.hard = hard
