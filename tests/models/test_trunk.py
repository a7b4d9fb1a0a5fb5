"""The frozen trunk: fed from disk, the upper layers compute what all layers do; the store survives crashes and knows its limit."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import pack
from rewardproof.models import trunk as trunk_module
from rewardproof.models.families import family_of
from rewardproof.models.packed import packed_rewards
from rewardproof.models.trunk import FrozenTrunk, TrunkCache, group_key, trunk_states
from tests.models import tiny

GROUPS = tiny.random_groups(2)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's."""
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of groups of every trunk forward pass."""
    calls: list[int] = []

    def counting(model: object, groups: Sequence[EncodedGroup], *arguments: object, **options: object) -> list[torch.Tensor]:
        calls.append(len(groups))
        return trunk_states(model, groups, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trunk_module, "trunk_states", counting)
    return calls


def filled(model: torch.nn.Module, first_layer: int, groups: Sequence[EncodedGroup] = GROUPS, *, precision: str = "fp32") -> TrunkCache:
    """A store with the groups' activations."""
    cache = TrunkCache(model, first_layer, precision=precision, limit_gb=1)  # type: ignore[arg-type]
    for _ in cache.add(groups, tokens_per_batch=40):
        pass
    return cache


@pytest.mark.parametrize("first_layer", [1, 2])
@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_a_fed_model_equals_the_whole_one(family: str, first_layer: int) -> None:
    model = tiny.classifier(family)
    upper = [parameter for module in [*family_of(model).layer_list(model)[first_layer:], model.score] for parameter in module.parameters()]

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        rewards = packed_rewards(model, pack(GROUPS)).rewards_C
        return rewards.detach(), list(torch.autograd.grad(torch.sin(3 * rewards).sum(), upper))

    before = {name: id(module) for name, module in model.named_modules()}
    plain, plain_gradients = run()
    cache = filled(model, first_layer)
    trunk = FrozenTrunk(model, first_layer)
    with trunk.detached(), trunk.feeding(cache.read(GROUPS)):
        fed, fed_gradients = run()
    torch.testing.assert_close(fed, plain, atol=2e-6, rtol=0)
    for one, other in zip(fed_gradients, plain_gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7
    assert {name: id(module) for name, module in model.named_modules()} == before, "the frozen layers are back"
    with torch.no_grad(), trunk.detached(), trunk.feeding(torch.roll(cache.read(GROUPS), 1, dims=0)):
        assert (packed_rewards(model, pack(GROUPS)).rewards_C - plain).abs().max() > 1e-3, "the stored activations are really used"


def test_reading_follows_the_order_asked_for() -> None:
    model = tiny.classifier("gemma2")
    cache = filled(model, 2)
    for groups in (GROUPS[::-1], GROUPS[2:3], [GROUPS[1], GROUPS[1]]):
        expected = torch.cat(trunk_states(model, groups, 2, precision="fp32"))
        torch.testing.assert_close(cache.read(groups), expected, atol=1e-5, rtol=0)


def test_bf16_rows_are_those_of_a_bf16_forward() -> None:
    model = tiny.classifier("llama")
    cache = filled(model, 1, precision="bf16")
    expected = torch.cat(trunk_states(model, GROUPS, 1, precision="bf16")).float()
    torch.testing.assert_close(cache.read(GROUPS), expected, atol=0.05, rtol=0.02)
    assert cache.rows_file.stat().st_size == 2 * 32 * sum(group.n_tokens for group in GROUPS)


def test_a_second_opening_computes_nothing(computed: list[int]) -> None:
    model = tiny.classifier("llama")
    first = filled(model, 2)
    assert sum(computed) == len(GROUPS)
    computed.clear()
    again = filled(tiny.classifier("llama"), 2)
    assert computed == []
    assert again.folder == first.folder
    assert torch.equal(again.read(GROUPS), first.read(GROUPS))
    extra = EncodedGroup(((5, 6, 7),), 0, (1,), 0)
    filled(model, 2, [*GROUPS, extra, extra])
    assert computed == [1], "what is missing is computed once, and only that"


def test_progress_counts_groups() -> None:
    cache = TrunkCache(tiny.classifier("llama"), 1, precision="fp32", limit_gb=1)
    assert list(cache.add(GROUPS, tokens_per_batch=10_000)) == [0, len(GROUPS)]
    assert list(cache.add(GROUPS, tokens_per_batch=10_000)) == [len(GROUPS)]


def _with_another_weight(place: Callable[[torch.nn.Module], torch.Tensor]) -> torch.nn.Module:
    model = tiny.classifier("llama")
    with torch.no_grad():
        place(model).view(-1)[3] += 1e-3
    return model


def test_a_folder_belongs_to_weights_layer_and_precision() -> None:
    def folder(model: torch.nn.Module, layer: int = 1, precision: str = "fp32") -> Path:
        return TrunkCache(model, layer, precision=precision, limit_gb=1).folder  # type: ignore[arg-type]

    model = tiny.classifier("llama")
    others = [
        folder(model, 2),
        folder(model, 1, "bf16"),
        folder(_with_another_weight(lambda changed: changed.model.layers[0].mlp.up_proj.weight)),
        folder(_with_another_weight(lambda changed: changed.model.embed_tokens.weight)),
    ]
    assert len({folder(model), *others}) == 5
    upper = _with_another_weight(lambda changed: changed.model.layers[1].mlp.up_proj.weight)
    head = _with_another_weight(lambda changed: changed.score.weight)
    assert folder(upper) == folder(head) == folder(model), "models that share the trunk share its store"


def test_a_group_is_named_by_its_tokens_and_its_shared_part() -> None:
    group = EncodedGroup(((5, 6, 7), (5, 6, 8)), 2, (2, 2), 0)
    assert group_key(group) == group_key(EncodedGroup(group.conversations, 2, (1, 1), 9))
    others = [
        EncodedGroup(group.conversations, 1, (2, 2), 0),
        EncodedGroup(((5, 6), (7, 5, 6, 8)), 0, (0, 0), 0),
        EncodedGroup(group.conversations[::-1], 2, (2, 2), 0),
    ]
    assert len({group_key(other) for other in [group, *others]}) == 4


def _tear_index(cache: TrunkCache) -> None:
    text = cache.index_file.read_text()
    cache.index_file.write_text(text[: len(text) - 9])


def _lose_index_lines(cache: TrunkCache) -> None:
    cache.index_file.write_text("".join(cache.index_file.read_text().splitlines(keepends=True)[:2]))


def _half_a_row(cache: TrunkCache) -> None:
    with cache.rows_file.open("ab") as rows:
        rows.write(b"\x01" * 37)


def _lose_rows(cache: TrunkCache) -> None:
    os.truncate(cache.rows_file, cache.rows_file.stat().st_size - 300)


def _several(cache: TrunkCache) -> None:
    _half_a_row(cache)
    _tear_index(cache)


@pytest.mark.parametrize("crash", [_tear_index, _lose_index_lines, _half_a_row, _lose_rows, _several])
def test_a_crash_between_rows_and_index_is_recovered(crash: Callable[[TrunkCache], None]) -> None:
    model = tiny.classifier("llama")
    cache = filled(model, 2)
    expected = cache.read(GROUPS).clone()
    crash(cache)
    for _ in range(2):
        torch.testing.assert_close(filled(model, 2).read(GROUPS), expected, atol=1e-5, rtol=0)
    more = [*GROUPS, EncodedGroup(((5, 6, 7),), 0, (1,), 0)]
    torch.testing.assert_close(filled(model, 2, more).read(GROUPS), expected, atol=1e-5, rtol=0)


def test_an_interrupted_filling_keeps_what_was_stored(computed: list[int]) -> None:
    model = tiny.classifier("llama")
    cache = TrunkCache(model, 2, precision="fp32", limit_gb=1)
    progress: Iterator[int] = cache.add(GROUPS, tokens_per_batch=1)
    assert [next(progress), next(progress)] == [0, 1]
    progress.close()  # type: ignore[attr-defined]
    computed.clear()
    filled(model, 2)
    assert sum(computed) == len(GROUPS) - 1


def test_fits_says_no_beyond_the_limit(computed: list[int]) -> None:
    model = tiny.classifier("llama")
    wanted = sum(group.n_tokens for group in GROUPS) * 32 * 4
    assert TrunkCache(model, 2, precision="fp32", limit_gb=(wanted + 0.5) / 1e9).fits(GROUPS)
    assert not TrunkCache(model, 2, precision="fp32", limit_gb=(wanted - 0.5) / 1e9).fits(GROUPS)
    filled(model, 2)
    assert TrunkCache(model, 2, precision="fp32", limit_gb=(wanted + 0.5) / 1e9).fits(GROUPS), "what is stored already costs nothing"
    assert not TrunkCache(model, 2, precision="fp32", limit_gb=(wanted + 0.5) / 1e9).fits([*GROUPS, EncodedGroup(((5, 6),), 0, (1,), 0)])


def test_other_stores_are_deleted_oldest_first_to_stay_under_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    models = [tiny.classifier("llama", seed=seed) for seed in range(3)]
    caches = [filled(model, 2) for model in models]
    for age, cache in enumerate(caches):
        os.utime(cache.folder, (1000 + age, 1000 + age))
    size = sum(file.stat().st_size for file in caches[0].folder.iterdir())
    current = TrunkCache(tiny.classifier("llama", seed=9), 2, precision="fp32", limit_gb=1.5 * size / 1e9)
    list(current.add(GROUPS[:1], tokens_per_batch=100))
    assert [cache.folder.exists() for cache in caches] == [False, False, True]
    assert current.folder.exists()
    assert "trunk cache: deleting" in caplog.text


def test_room_is_made_for_what_is_about_to_be_added() -> None:
    old = filled(tiny.classifier("llama", seed=1), 2)
    os.utime(old.folder, (1000, 1000))
    size = sum(file.stat().st_size for file in old.folder.iterdir())
    adding = sum(group.n_tokens for group in GROUPS) * 32 * 4
    assert adding < size + 10_000
    for limit, stays in ((size + adding + 2000, True), (size + adding - 1, False)):
        current = TrunkCache(tiny.classifier("llama", seed=2), 2, precision="fp32", limit_gb=limit / 1e9)
        list(current.add(GROUPS, tokens_per_batch=100))
        assert old.folder.exists() == stays
        shutil.rmtree(current.folder)


def test_a_store_that_another_process_fills_is_not_deleted(caplog: pytest.LogCaptureFixture) -> None:
    busy = filled(tiny.classifier("llama", seed=1), 2)
    current = TrunkCache(tiny.classifier("llama", seed=2), 2, precision="fp32", limit_gb=1e-6)
    with (busy.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        list(current.add(GROUPS, tokens_per_batch=100))
        assert busy.rows_file.exists()
        assert "being filled by another process" in caplog.text
    shutil.rmtree(current.folder)
    list(current.add(GROUPS, tokens_per_batch=100))
    assert not busy.folder.exists()
    assert len(current.read(GROUPS)) == sum(group.n_tokens for group in GROUPS), "a store that was deleted meanwhile is filled again"


def test_the_key_is_computed_again_only_where_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.classifier("llama")
    hashed: list[int] = []
    sha256 = trunk_module.hashlib.sha256
    monkeypatch.setattr(trunk_module.hashlib, "sha256", lambda data: hashed.append(len(data)) or sha256(data))

    def key(first_layer: int = 1) -> tuple[str, int]:
        before = len(hashed)
        return trunk_module._trunk_key(model, first_layer, "fp32"), len(hashed) - before

    first, work = key()
    assert work == 1
    assert key() == (first, 0)
    assert key(2)[1] == 1
    assert key() == (first, 0), "every layer has a key of its own"
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
        model.score.weight.mul_(2)
    assert key() == (first, 0), "upper layers do not matter"
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
    changed, work = key()
    assert (changed != first, work) == (True, 1)
    with torch.no_grad():
        weight.copy_(kept)
    assert key() == (first, 1), "the same weights have the same key"
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(kept * 2)
    assert key() == (changed, 1), "a parameter put in another's place counts"
