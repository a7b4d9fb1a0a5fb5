"""What a token costs: the products that torch itself counts, and those of the experts that a token meets."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rewardproof.models.cost import products_per_token
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle

TOKENS = 8


def test_a_dense_models_products_are_those_that_torch_counts(any_family: str, tiny: ModuleType) -> None:
    model = tiny.classifier(any_family)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=torch.arange(5, 5 + TOKENS)[None])
    counted = counter.get_flop_counts()["Global"]
    linear = sum(count for name, count in counted.items() if str(name) in ("aten.mm", "aten.addmm"))
    assert linear == 2 * TOKENS * products_per_token(model)


@pytest.mark.parametrize(("experts", "active"), [("full", 2), ("full", 3), ("lora:2", 3)])
def test_a_token_of_a_mixture_meets_the_shared_expert_and_those_it_chooses(experts: str, active: int, tiny: ModuleType) -> None:
    dense = products_per_token(tiny.classifier("llama"))
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=active, experts=experts))
    block = next(iter(moe_blocks(model).values())).experts
    layers = len(moe_blocks(model))
    if experts == "full":
        of_one = sum(block.expert(0)[name].numel() for name in block.names)
        assert products_per_token(model) == dense + layers * (active - 1) * of_one
    else:
        low_rank = sum(block.get_parameter(f"{name}_{side}").numel() for name in block.names for side in "ab")
        assert products_per_token(model) == dense + layers * (active - 1) * low_rank
