"""WARM's average of whole models."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from rewardproof.errors import ModelError
from rewardproof.merging import average


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor([7, 8]),
    }


def test_every_entry_is_the_mean() -> None:
    states = [state(seed) for seed in range(3)]
    found = average(states)
    assert list(found) == list(states[0])
    expected = np.mean([entry["weight"].numpy().astype(np.float64) for entry in states], axis=0)
    np.testing.assert_allclose(found["weight"].numpy(), expected, rtol=1e-7)
    assert torch.equal(found["half"], torch.stack([entry["half"].double() for entry in states]).mean(dim=0).bfloat16())
    assert torch.equal(found["steps"], torch.tensor([7, 8]))
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: tensor.dtype for name, tensor in states[0].items()}


def test_the_order_of_models_does_not_matter() -> None:
    states = [state(seed) for seed in range(4)]
    first = average(states)
    for order in permutations(states):
        for name, tensor in average(order).items():
            torch.testing.assert_close(tensor, first[name], rtol=1e-7, atol=0)


def test_the_average_of_one_model_with_itself_is_that_model() -> None:
    assert all(torch.equal(tensor, state(0)[name]) for name, tensor in average([state(0), state(0), state(0)]).items())


def test_the_models_given_are_left_alone() -> None:
    states = [state(0), state(1)]
    average(states)
    assert all(torch.equal(tensor, state(number)[name]) for number, entry in enumerate(states) for name, tensor in entry.items())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_models(count: int) -> None:
    with pytest.raises(ModelError, match=f"Got {count} model.* at least two; name more"):
        average([state(0)] * count)


def test_models_of_another_shape_or_with_other_entries() -> None:
    wider = {**state(1), "weight": torch.zeros(4, 4)}
    missing = {name: tensor for name, tensor in state(1).items() if name != "half"}
    more = {**state(1), "extra": torch.zeros(1)}
    for other, named in ((wider, "weight"), (missing, "half"), (more, "extra")):
        with pytest.raises(ModelError, match=f"differ: '{named}' .*share their architecture"):
            average([state(0), other])
