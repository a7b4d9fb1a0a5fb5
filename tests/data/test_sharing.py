"""Conversations of many rows or requests as the groups that cost least, against every cut there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest

from rewardproof.data.encoding import EncodedGroup, shared_prefix
from rewardproof.data.sharing import DistinctTokens, computed_once, runs_that_share, shared_groups
from rewardproof.models.reward_model import RewardModel

Tokens = tuple[int, ...]


def cost(runs: Sequence[Sequence[Tokens]]) -> int:
    return sum(EncodedGroup(tuple(run), shared_prefix(run), (0,) * len(run), 0).n_tokens for run in runs)


def stretches(items: list[Tokens]) -> Iterator[list[list[Tokens]]]:
    """Every way to cut a list."""
    for cuts in itertools.product([False, True], repeat=len(items) - 1):
        places = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(items)]
        yield [items[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_of_the_sorted_texts_computes_fewer_tokens(seed: int) -> None:
    draw = random.Random(seed)
    texts = list({tuple(draw.randrange(2) for _ in range(draw.randint(1, 7))) for _ in range(7)})
    found = runs_that_share(texts)
    assert sorted(itertools.chain.from_iterable(found)) == sorted(texts)
    assert cost(found) == min(cost(one) for one in stretches(sorted(texts)))


@pytest.mark.parametrize("seed", range(10))
def test_distinct_tokens_are_the_beginnings_that_differ(seed: int) -> None:
    draw = random.Random(seed)
    texts = [tuple(draw.randrange(3) for _ in range(draw.randint(1, 6))) for _ in range(30)]
    tokens = DistinctTokens()
    for text in texts:
        tokens.add([text])
    assert tokens.count == len({text[:length] for text in texts for length in range(1, len(text) + 1)})


def test_equal_texts_are_computed_once_and_prompts_are_shared_across_requests() -> None:
    prompt = (5, 6, 7, 8)
    asked = [EncodedGroup(((*prompt, answer),), 0, (4,), 0) for answer in (9, 10, 9)]
    (joined,) = shared_groups(asked)
    assert joined.conversations == ((*prompt, 9), (*prompt, 10))
    assert (joined.shared, joined.answer_starts) == (4, (4, 4))


def test_a_prompt_cut_away_of_one_answer_alone_moves_no_beginning() -> None:
    """An answer that fills the limit by itself begins at 0, that beside it later: what is counted of it may not change."""
    cut = EncodedGroup(((7, 8, 9, 7), (5, 6, 9, 3)), 0, (0, 2), 0)
    plain = EncodedGroup(((5, 6, 9, 3), (1, 2)), 0, (0, 0), 1)
    seen: list[tuple[Tokens, int]] = []

    def score(groups: Sequence[EncodedGroup]) -> list[tuple[int, ...]]:
        seen.extend(pair for group in groups for pair in zip(group.conversations, group.answer_starts, strict=True))
        return [tuple(len(tokens) - start for tokens, start in zip(g.conversations, g.answer_starts, strict=True)) for g in groups]

    assert computed_once([cut, plain, cut], score) == [(4, 2), (4, 2), (4, 2)]
    assert sorted(seen) == [((1, 2), 0), ((5, 6, 9, 3), 0), ((5, 6, 9, 3), 2), ((7, 8, 9, 7), 0)]


def test_prompts_are_kept_apart_because_some_mixtures_route_by_them() -> None:
    asked = [
        EncodedGroup(((5, 6, 7, 9),), 0, (3,), 0),
        EncodedGroup(((5, 6, 7, 9),), 0, (2,), 1),
        EncodedGroup(((5, 6, 7, 9),), 0, (3,), 2, (1,)),
    ]
    assert len(shared_groups(asked)) == 3


@pytest.mark.parametrize("known", [True, False], ids=["prompts known", "prompts unknown"])
def test_rewards_come_back_to_whom_they_belong(tiny: ModuleType, known: bool) -> None:
    model = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer())
    groups = [one for seed in range(4) for one in tiny.random_groups(seed)]
    groups += [EncodedGroup(one.conversations[:1], 0, one.answer_starts[:1], one.index) for one in groups]
    if not known:
        groups = [EncodedGroup(one.conversations, one.shared, (0,) * len(one.conversations), one.index) for one in groups]
    asked: list[Tokens] = []

    def score(joined: Sequence[EncodedGroup]) -> list[tuple[float, ...]]:
        asked.extend(tokens for group in joined for tokens in group.conversations)
        return model.score_encoded(joined)

    found = computed_once(groups, score)
    alone = [model.score_encoded([group])[0] for group in groups]
    assert [one == pytest.approx(other, abs=2e-5) for one, other in zip(found, alone, strict=True)] == [True] * len(groups)
    assert sorted(asked) == sorted({tokens for group in groups for tokens in group.conversations}), "each once"
