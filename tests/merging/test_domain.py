"""DogeRM's arithmetic: what a weight of 0, 1 or anything between gives, entries by name, embedding rows by token."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewardproof.errors import ModelError
from rewardproof.merging.domain import (
    Matching,
    Tokens,
    blend,
    blend_embedding,
    likeness,
    match_entries,
    match_tokens,
    merged_entries,
    shares,
)

GRID = [number / 20 for number in range(21)]
State = dict[str, Tensor]


def reward_state(seed: int = 0, dtype: torch.dtype = torch.float32, *, n_layers: int = 2, n_rows: int = 6) -> State:
    """Entries as a reward model has them, in its order."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    layers = {f"model.layers.{n}.{part}": draw(4, 4) for n in range(n_layers) for part in ("mlp.up.weight", "attention.q.weight")}
    norms = {f"model.layers.{n}.norm.weight": draw(4) for n in range(n_layers)}
    return {"model.embed.weight": draw(n_rows, 4), **layers, **norms, "model.norm.weight": draw(4), "score.weight": draw(1, 4)}


def domain_state(seed: int = 1, prefix: str = "transformer.", **shape: int) -> State:
    """The same backbone under another name and in another order, with an output layer in place of the reward head."""
    found = reward_state(seed, **shape)
    found.pop("score.weight")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in found.items()}
    names = random.Random(seed).sample(list(renamed), len(renamed))
    return {"lm_head.weight": torch.randn(6, 4), **{name: renamed[name] for name in names}}


def matching(reward: State, domain: State) -> Matching:
    return match_entries(reward, domain, head="score", lm_head="lm_head", embedding="model.embed.weight")


def same_tokens(reward: State, domain: State) -> Tokens:
    vocabulary = {f"t{row}": row for row in range(6)}
    return match_tokens(vocabulary, vocabulary, n_rows=(6, 6))


def merged(reward: State, domain: State, weight: float, reward_weight: float | None = None) -> State:
    how = shares(weight, reward_weight)
    return dict(merged_entries(reward, domain, matching(reward, domain), same_tokens(reward, domain), how))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weight_zero_is_the_reward_model_to_the_last_bit(dtype: torch.dtype) -> None:
    reward = reward_state(dtype=dtype)
    found = merged(reward, domain_state(), 0.0)
    assert list(found) == list(reward)
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in reward.items())


def test_weight_one_is_the_language_models_body_under_the_reward_head() -> None:
    reward, domain = reward_state(), domain_state()
    found = merged(reward, domain, 1.0)
    for name in reward:
        expected = reward[name] if name == "score.weight" else domain[name.replace("model.", "transformer.", 1)]
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", GRID)
def test_merging_two_equal_models_is_the_identity(weight: float, dtype: torch.dtype) -> None:
    reward = reward_state(dtype=dtype)
    same = {name.replace("model.", "transformer.", 1): tensor for name, tensor in reward.items() if name != "score.weight"}
    found = merged(reward, same, weight)
    assert all(torch.equal(found[name], tensor) for name, tensor in reward.items())


@pytest.mark.parametrize("weights", [(0.35, None), (0.35, 0.65), (0.2, 1.0), (1.0, 1.0), (0.0, 0.5)])
def test_every_entry_is_the_weighted_sum_with_weights_that_may_be_independent(weights: tuple[float, float | None]) -> None:
    lam, own = weights
    reward, domain = reward_state(), domain_state()
    found = merged(reward, domain, lam, own)
    for name, tensor in reward.items():
        other = domain.get(name.replace("model.", "transformer.", 1))
        expected = tensor.numpy().astype(np.float64)
        if other is not None:
            expected = (1 - lam if own is None else own) * expected + lam * other.numpy().astype(np.float64)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=2e-6, atol=2e-7, err_msg=name)


def test_it_is_computed_in_float32_and_cast_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, domain = (torch.randn(4096, generator=generator).bfloat16() for _ in range(2))
    exact = (0.7 * reward.double() + 0.3 * domain.double()).bfloat16()
    found = blend(reward, domain, shares(0.3))
    assert found.dtype == torch.bfloat16
    assert (found != exact).float().mean() < 0.01, "a value in float32 may fall on the other side of a rounding"
    assert ((0.7 * reward + 0.3 * domain) != exact).float().mean() > 0.1, "as computing in bfloat16 does often"
    assert blend(reward, domain.float(), shares(0.3)).dtype == torch.bfloat16


def test_neither_model_is_changed() -> None:
    reward, domain = reward_state(), domain_state()
    merged(reward, domain, 0.5)
    assert all(torch.equal(tensor, reward_state()[name]) for name, tensor in reward.items())
    assert all(torch.equal(tensor, domain_state()[name]) for name, tensor in domain.items() if name != "lm_head.weight")


@pytest.mark.parametrize("prefix", ["transformer.", "model.", "base_model.model.model.", "model.language_model.", "module.gpt_neox.", ""])
def test_entries_are_paired_by_name_whatever_the_prefix_and_order(prefix: str) -> None:
    reward, domain = reward_state(), domain_state(prefix=prefix)
    found = matching(reward, domain)
    assert found.pairs == {name: name.replace("model.", prefix, 1) for name in reward if name != "score.weight"}
    assert (found.kept, found.dropped) == (("score.weight",), ("lm_head.weight",))


def test_a_renamed_layer_fails() -> None:
    reward, domain = reward_state(), domain_state()
    domain["transformer.layers.1.mlp.upward.weight"] = domain.pop("transformer.layers.1.mlp.up.weight")
    with pytest.raises(
        ModelError, match=r"Got 2 entries that only one of the two models has \(model\.layers\.1\.mlp\.up\.weight, transf"
    ) as stop:
        matching(reward, domain)
    assert "would silently not be merged. Name a language model" in str(stop.value)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2)])
def test_a_layer_that_one_model_does_not_have_fails(ours: int, theirs: int) -> None:
    with pytest.raises(ModelError, match=r"Got 3 entries that only one of the two models has \(\w+\.layers\.2\."):
        matching(reward_state(n_layers=ours), domain_state(n_layers=theirs))


def test_another_shape_fails_but_for_the_number_of_tokens() -> None:
    reward, domain = reward_state(), domain_state(n_rows=9)
    assert matching(reward, domain).embedding == "model.embed.weight"
    domain["transformer.layers.0.mlp.up.weight"] = torch.zeros(5, 4)
    with pytest.raises(ModelError, match=r"Got model\.layers\.0\.mlp\.up\.weight of shape \(4, 4\) .* and \(5, 4\) in the language"):
        matching(reward, domain)
    domain = domain_state() | {"transformer.embed.weight": torch.zeros(6, 5)}
    with pytest.raises(ModelError, match=r"Got model\.embed\.weight of shape \(6, 4\) .* and \(6, 5\)"):
        matching(reward, domain)


def test_a_model_without_a_reward_head_fails() -> None:
    with pytest.raises(ModelError, match="Got no entry of 'score' in the reward model, expected its head"):
        matching({name: tensor for name, tensor in reward_state().items() if name != "score.weight"}, domain_state())


def test_buffers_are_merged_too_and_those_that_hold_no_numbers_with_a_point_are_kept_and_reported() -> None:
    reward, domain = reward_state(), domain_state()
    reward |= {"model.scale": torch.tensor([1.0]), "model.mask": torch.tensor([True]), "model.steps": torch.tensor([3])}
    domain |= {"transformer.scale": torch.tensor([3.0]), "transformer.mask": torch.tensor([False])}
    found = matching(reward, domain)
    assert (found.kept, found.dropped) == (("score.weight", "model.mask", "model.steps"), ("lm_head.weight", "transformer.mask"))
    values = merged(reward, domain, 0.5)
    assert [values[f"model.{name}"].item() for name in ("scale", "mask", "steps")] == [2.0, True, 3]


def embeddings(n_rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_rows[0], 3, generator=generator), torch.randn(n_rows[1], 3, generator=generator)


REWARD_VOCABULARY = {"a": 0, "b": 1, "c": 2, "pad": 3}
DOMAIN_VOCABULARY = {"c": 0, "x": 1, "a": 2, "y": 3}


def test_tokens_of_one_model_alone_are_copied_and_common_ones_averaged_under_either_id() -> None:
    ours, theirs = embeddings((5, 6))
    tokens = match_tokens(REWARD_VOCABULARY, DOMAIN_VOCABULARY, n_rows=(5, 6), added={"x": 4, "y": 5})
    found = blend_embedding(ours, theirs, tokens, shares(0.25))
    assert found.shape == (6, 3)
    for token, row in REWARD_VOCABULARY.items():
        if token in DOMAIN_VOCABULARY:
            torch.testing.assert_close(found[row], 0.75 * ours[row] + 0.25 * theirs[DOMAIN_VOCABULARY[token]])
        else:
            assert torch.equal(found[row], ours[row]), "a token of the reward model alone is never lost"
    assert torch.equal(found[4], theirs[1])
    assert torch.equal(found[5], theirs[3])
    assert tokens.counts == {"common": 2, "moved": 2, "reward_only": 2, "domain_only": 2, "added": 2}


def test_copied_rows_are_not_scaled_by_weights_that_do_not_sum_to_one() -> None:
    ours, theirs = embeddings((4, 4))
    tokens = match_tokens(REWARD_VOCABULARY, DOMAIN_VOCABULARY, n_rows=(4, 4), added={"x": 4})
    found = blend_embedding(ours, theirs, tokens, shares(0.5, 1.0))
    assert torch.equal(found[[1, 3]], ours[[1, 3]])
    assert torch.equal(found[4], theirs[1])
    torch.testing.assert_close(found[0], ours[0] + 0.5 * theirs[2])


def test_without_adding_them_tokens_of_the_language_model_are_left_out_and_counted() -> None:
    tokens = match_tokens(REWARD_VOCABULARY, DOMAIN_VOCABULARY, n_rows=(4, 4))
    assert (tokens.n_rows, tokens.added) == (4, ())
    assert (tokens.counts["domain_only"], tokens.counts["added"]) == (2, 0)


def test_rows_of_no_token_are_averaged_where_both_models_have_them() -> None:
    vocabulary = {"a": 0, "b": 1}
    ours, theirs = embeddings((4, 5))
    found = blend_embedding(ours, theirs, match_tokens(vocabulary, vocabulary, n_rows=(4, 5)), shares(1.0))
    assert torch.equal(found, theirs[:4])


def test_a_token_without_a_row_is_no_token_of_the_language_model() -> None:
    tokens = match_tokens({"a": 0, "b": 1}, {"a": 0, "b": 7}, n_rows=(2, 2))
    assert tokens.shared == ((0, 0),)
    assert tokens.counts["reward_only"] == 1


def test_vocabularies_with_nothing_in_common_fail() -> None:
    with pytest.raises(ModelError, match="Got vocabularies of 1 and 2 tokens with none in common, expected two models of one base"):
        match_tokens({"a": 0}, {"b": 0, "c": 1}, n_rows=(1, 2))


words = st.lists(st.sampled_from([f"t{number}" for number in range(12)]), min_size=2, max_size=10, unique=True)


@settings(max_examples=60, deadline=None)
@given(ours=words, theirs=words, spare=st.integers(0, 3), add=st.booleans(), weight=st.sampled_from(GRID))
def test_any_two_vocabularies_token_by_token(ours: list[str], theirs: list[str], spare: int, add: bool, weight: float) -> None:
    own, other = ({token: row for row, token in enumerate(tokens)} for tokens in (ours, theirs))
    if not own.keys() & other.keys():
        return
    reward_VD, domain_WD = embeddings((len(ours) + spare, len(theirs) + 1))
    new = {token: len(ours) + place for place, token in enumerate(sorted(other.keys() - own.keys()))} if add else {}
    tokens = match_tokens(own, other, n_rows=(len(reward_VD), len(domain_WD)), added=new)
    found = blend_embedding(reward_VD, domain_WD, tokens, shares(weight))
    assert len(found) == max(len(reward_VD), len(ours) + len(new))
    for token, row in own.items():
        expected = (1 - weight) * reward_VD[row] + weight * domain_WD[other[token]] if token in other else reward_VD[row]
        torch.testing.assert_close(found[row], expected)
    for token, row in new.items():
        assert torch.equal(found[row], domain_WD[other[token]])


def test_likeness_is_that_of_all_averaged_entries_as_one_vector() -> None:
    reward, domain = reward_state(), domain_state()
    found = likeness(reward, domain, matching(reward, domain), same_tokens(reward, domain))
    names = [name for name in reward if name != "score.weight"]
    left = torch.cat([reward[name].flatten() for name in names]).double()
    right = torch.cat([domain[name.replace("model.", "transformer.", 1)].flatten() for name in names]).double()
    assert found.cosine == pytest.approx(float(left @ right / (left.norm() * right.norm())))
    assert found.relative_distance == pytest.approx(float((right - left).norm() / left.norm()))
    assert likeness(reward, reward, _same(reward), same_tokens(reward, reward)) == pytest.approx((1.0, 0.0))


def _same(reward: State) -> Matching:
    return match_entries(reward, reward, head="score", lm_head="score", embedding="model.embed.weight")


def test_models_of_zeros_are_like_nothing() -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in reward_state().items()}
    assert all(np.isnan(likeness(zeros, zeros, _same(zeros), same_tokens(zeros, zeros))))


def test_real_architectures_match_whole(any_family: str, tiny: ModuleType) -> None:
    reward, domain = tiny.classifier(any_family), tiny.causal(any_family, seed=1)
    embedding = next(name for name, module in reward.named_modules() if module is reward.get_input_embeddings()) + ".weight"
    found = match_entries(reward.state_dict(), domain.state_dict(), head="score", lm_head="lm_head", embedding=embedding)
    assert (found.kept, found.dropped) == (("score.weight",), ("lm_head.weight",))
    assert len(found.pairs) == len(reward.state_dict()) - 1
    assert set(found.pairs.values()) == domain.state_dict().keys() - {"lm_head.weight"}
