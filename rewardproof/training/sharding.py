"""Parameters cut over processes while they train (FSDP2, DeepSpeed ZeRO), and whole again for merging, saving and scoring."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from rewardproof.errors import ConfigError

ASKED_FOR = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables by which accelerate's launcher asks for sharding."""


@contextlib.contextmanager
def without_sharding() -> Iterator[None]:
    """Train data parallel while the context is open, whatever the launcher asks for: a few coefficients are not worth cutting up."""
    kept = {name: os.environ.pop(name) for name in ASKED_FOR if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def shard_in_full_precision(plugin: Any) -> None:
    """Let accelerate's FSDP plugin gather the parameters as they are, in fp32; autocast makes bf16 of them where that is safe.

    The plugin's own policy rounds everything to bf16, the routers' weights and the rewards too.

    Raises:
        ConfigError: The launcher asks for FSDP's first version.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"Got fsdp_version: {plugin.fsdp_version} in the launcher's configuration, expected 2: the first version flattens parameters, "
            "and experts could not be taken out of it again. Write fsdp_version: 2, or start from examples/launch/fsdp2.yaml."
        )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, on every process; the parameter itself where it is not sharded. Every process must call it."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):
        import deepspeed  # pyright: ignore[reportMissingImports]

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


@contextlib.contextmanager
def whole_afterwards(module: nn.Module) -> Iterator[None]:
    """Undo at the end what sharding does to a module while the context is open: hooks, classes, and parameters in pieces.

    Neither FSDP2 nor ZeRO can be taken off again, and a recipe goes on with the model: it merges it, saves it, scores it, trains it again.
    """
    before = [(part, type(part), {name: _as_it_is(name, value) for name, value in vars(part).items()}) for part in module.modules()]
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
    yield
    found: dict[int, nn.Parameter] = {}
    for parameter in module.parameters():
        found[id(parameter)] = nn.Parameter(whole(parameter).detach(), requires_grad=parameter.requires_grad)
    for part, kind, attributes in before:
        parameters = {name: None if old is None else found[id(old)] for name, old in part._parameters.items()}
        part.__class__ = kind
        vars(part).clear()
        vars(part).update(attributes)
        part._parameters = parameters
        _module_state_mapping.pop(part, None)  # where torch remembers that a module was sharded, which it does only once
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])


def _as_it_is(name: str, value: Any) -> Any:
    """A copy of a module's table of hooks or submodules; its parameters are not kept, or they would stay in memory unsharded."""
    if name == "_parameters":
        return {}
    return value.copy() if isinstance(value, dict) else value
