"""REINFORCE finds the head that matters, and what is made of the probabilities that it learns."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError
from rewardproof.losses import mask_probabilities
from rewardproof.models.head_activations import head_shape
from rewardproof.models.option_reader import OptionReader
from rewardproof.training.head_selection import HeadSelection, check_selection, final_mask, learned_logits

SHAPE = (3, 4)


EFFECT = torch.linspace(-0.05, 0.05, 12).view(SHAPE).index_put((torch.tensor([1, 0]), torch.tensor([2, 0])), torch.tensor([-1.0, 0.8]))
"""On the loss: replacing head 2 of layer 1 helps, head 0 of layer 0 hurts, the others do a little of either."""


def planted(_example: int, masks_MLH: Tensor) -> Tensor:
    return 2.0 + (masks_MLH.float() * EFFECT).sum(dim=(1, 2))


def no_check(_masks_MLH: Tensor) -> Tensor:
    raise AssertionError("nothing is compared")


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_head_is_found(seed: int) -> None:
    """It is the likeliest soon, and in the end those heads are taken that lower the loss, and no others."""
    soon = learned_logits(planted, SHAPE, 5, HeadSelection(iterations=15), seed=seed)
    assert int(soon.argmax()) == 6
    assert int(soon.argmin()) == 0
    settings = HeadSelection(iterations=250)
    mask = final_mask(learned_logits(planted, SHAPE, 5, settings, seed=seed), settings, no_check, seed=seed)
    assert torch.equal(mask, EFFECT < 0)


def test_a_planted_head_of_a_language_model_is_found(tiny: ModuleType) -> None:
    """One head's mean activation is made to say the right word; all others' say the wrong one."""
    model = tiny.causal("llama")
    shape = head_shape(model)
    good, bad = 20, 30
    towards = model.get_output_embeddings().weight[good] - model.get_output_embeddings().weight[bad]
    values = torch.zeros(shape)
    with torch.no_grad():
        for layer in range(shape.layers):
            weight = model.get_submodule(f"model.layers.{layer}.self_attn.o_proj").weight
            for head in range(shape.heads):
                part = weight[:, head * shape.width : (head + 1) * shape.width]
                values[layer, head] = (2.0 if (layer, head) == (2, 1) else -0.5) * torch.linalg.lstsq(part, towards).solution
    dice = torch.Generator().manual_seed(0)
    questions = [EncodedGroup((tuple(torch.randint(4, 96, (9,), generator=dice).tolist()),), 0, (8,), number) for number in range(6)]
    reader = OptionReader(model, ((good,), (bad,)))

    def loss_of(example: int, masks_MLH: Tensor) -> Tensor:
        return -reader.log_probs([questions[example]], values, masks_MLH).log_softmax(dim=-1)[0, :, 0]

    settings = HeadSelection(iterations=150)
    logits = learned_logits(loss_of, shape[:2], len(questions), settings, seed=0)
    assert int(logits.argmax()) == 2 * shape.heads + 1
    mask = final_mask(logits, settings, no_check, seed=0)
    chosen, none = (float(sum(loss_of(place, one[None]) for place in range(6))) for one in (mask, torch.zeros_like(mask)))
    assert chosen < none


def test_the_same_seed_learns_the_same_and_another_something_else() -> None:
    settings = HeadSelection(iterations=30)
    first, again, other = (learned_logits(planted, SHAPE, 5, settings, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_course_is_recorded_every_fifty_steps_and_at_the_end() -> None:
    seen: list[tuple[int, float, Any]] = []
    learned_logits(planted, SHAPE, 5, HeadSelection(iterations=120), seed=0, record=lambda *entry: seen.append(entry))
    assert [step for step, _, _ in seen] == [50, 100, 120]
    assert seen[-1][1] < seen[0][1]
    assert all(probabilities.shape == SHAPE for _, _, probabilities in seen)


def test_heads_start_replaced_as_often_as_published() -> None:
    assert float(mask_probabilities(torch.tensor(HeadSelection().start_logit))) == pytest.approx(0.27, abs=0.002)


LOGITS = torch.tensor([[-3.0, 0.1, 2.0], [1.0, -0.1, -9.0]])


def test_a_threshold_takes_what_is_above_it() -> None:
    assert final_mask(LOGITS, HeadSelection(), no_check, seed=0).int().tolist() == [[0, 1, 1], [1, 0, 0]]
    assert final_mask(LOGITS, HeadSelection(threshold=0.8), no_check, seed=0).int().tolist() == [[0, 0, 1], [0, 0, 0]]


def test_the_likeliest_are_taken_where_a_number_is_given() -> None:
    assert final_mask(LOGITS, HeadSelection(final="top", n_heads=2), no_check, seed=0).int().tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ConfigError, match=r"Got heads.n_heads=7, expected at most 6"):
        final_mask(LOGITS, HeadSelection(final="top", n_heads=7), no_check, seed=0)


def test_all_takes_every_head() -> None:
    assert final_mask(LOGITS, HeadSelection(final="all"), no_check, seed=0).all()


def test_of_drawn_masks_the_one_with_the_lowest_loss_on_kept_examples_is_taken() -> None:
    drawn: list[Tensor] = []

    def check_loss(masks_MLH: Tensor) -> Tensor:
        drawn.append(masks_MLH)
        return -masks_MLH.float().sum(dim=(1, 2))

    settings = HeadSelection(final="sampled", candidates=6, floor=0.2)
    found = final_mask(LOGITS, settings, check_loss, seed=4)
    assert len(drawn[0]) == 6
    assert found.sum() == max(int(mask.sum()) for mask in drawn[0])
    assert not drawn[0][:, 0, 0].any(), "below the floor"
    assert not drawn[0][:, 1, 2].any()
    assert len({str(mask) for mask in drawn[0]}) > 1
    final_mask(LOGITS, settings, check_loss, seed=4)
    assert torch.equal(*drawn), "a seed draws the same masks"


def test_a_number_of_heads_belongs_to_top_alone() -> None:
    for settings in (HeadSelection(final="top"), HeadSelection(n_heads=3)):
        with pytest.raises(ConfigError, match=r"expected a number of heads with final=top and with nothing else"):
            check_selection(settings)
    check_selection(HeadSelection(final="top", n_heads=3))
