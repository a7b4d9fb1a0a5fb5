"""What a policy and its reference have in common in memory."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from rewardproof.policy.policy import Policy
from rewardproof.training.freezing import add_adapters, freeze_all_but


def pointers(policy: Policy) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in policy.model.named_parameters()}


def test_under_adapters_a_reference_shares_the_policys_weights(tiny: ModuleType) -> None:
    pytest.importorskip("peft")
    model = tiny.causal("llama")
    add_adapters(model, range(3), {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]})
    policy = Policy(model, n_values=2)
    for copied in (policy.frozen_copy(), policy.sampler("fp32")):
        own, other = pointers(policy), pointers(copied)
        assert {name for name in own if own[name] != other[name]} == {name for name in own if "lora_" in name}
        adapters = sum(parameter.numel() for name, parameter in copied.model.named_parameters() if "lora_" in name)
        assert adapters < 0.1 * sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(1.0)
    reference = policy.frozen_copy()
    assert pointers(reference)["model.norm.weight"] == pointers(policy)["model.norm.weight"]


def test_of_top_layers_alone_a_reference_shares_those_below(tiny: ModuleType) -> None:
    model = tiny.causal("llama")
    freeze_all_but(model, range(2, 3))
    policy = Policy(model, first_layer=2)
    own, other = pointers(policy), pointers(policy.frozen_copy())
    apart = {name for name in own if own[name] != other[name]}
    assert apart == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("layers.2" in name or name == "model.norm.weight" for name in apart)
