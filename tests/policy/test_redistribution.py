"""Redistributed rewards: a potential's differences, on the policy's own tokens, that change no optimum and no comparison of answers."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError
from rewardproof.losses import gae
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.token_scores import TokenScores
from rewardproof.policy import on_policy
from rewardproof.policy.estimators import by_comparison, by_values
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.redistribution import Redistribution, Redistributor, by_word, potentials, refuse_others, spread
from rewardproof.policy.rewards import DISAGREEMENT, Moment, ScoredAnswers
from rewardproof.policy.rollouts import Prompt, Rollouts
from rewardproof.policy.settings import OnPolicy, check
from rewardproof.policy.streams import Passes
from rewardproof.scoring import CheckableGold, Combine, ModelEnsemble, Scale
from tests.models import tiny

NOW = Moment(0, 1, list)
SCALE = Scale(0.4, 1.7)
TINY: dict[str, Any] = {"prompts_per_step": 4, "answers": 3, "max_new_tokens": 7, "learning_rate": 1e-3, "steps": 3}


def own_reader(seed: int = 0) -> RewardModel:
    """A reward model that reads the policy's tokens."""
    return RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer())


def other_reader() -> RewardModel:
    """One of bytes, with a template of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny.COMMON, "vocab_size": 300})
    model = LlamaForSequenceClassification(config).eval()
    tiny._sharpen(model, 0)
    return RewardModel(model, tiny.byte_tokenizer())


def loop_of(source: Any, **settings: Any) -> OnPolicyLoop:
    chosen, tokenizer = OnPolicy(**{**TINY, **settings}), tiny.word_tokenizer()
    policy = Policy(cast("Any", tiny.causal("llama")), n_values=chosen.value_heads(len(source.names)))
    prompts = [Prompt.of(Group((Message("user", f"w{place} w{place + 9}"),), ()), tokenizer) for place in range(6)]
    return OnPolicyLoop(
        policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, chosen, Passes("fp32", 512), seed=0
    )


def source_of(*readers: RewardModel, **settings: Any) -> ScoredAnswers:
    redistribute = Redistribution(**{"share": 1.0, **settings})
    scorers = {str(place): reader for place, reader in enumerate(readers)}
    spreads = Redistributor(redistribute, tiny.word_tokenizer()) if redistribute.share else None
    return ScoredAnswers(scorers, dict.fromkeys(scorers, SCALE), redistributor=spreads)


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return loop_of(source_of(own_reader()))._sampled()


def random_scores(seed: int, length: int) -> TokenScores:
    dice = np.random.default_rng(seed)
    values = dice.normal(3.0, 5.0, size=length + 2)
    return TokenScores(values[0], values[1:-1], values[-1], np.sort(dice.choice(40, size=length, replace=False) + 1))


@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.parametrize("limit", [0.0, 0.8])
def test_gains_telescope_and_say_where_the_zero_is(length: int, limit: float) -> None:
    """Σ r̃ = R(x, y) − R(x, ∅) under `keep`, the zero in no gain; under `drop` it is the sparse reward, its zero in the first gain, once."""
    for seed in range(20):
        one = random_scores(seed, length)
        clamp = (lambda value: float(np.clip(value, -limit, limit))) if limit else float
        whole, prompt = (clamp((value - SCALE.mean) / SCALE.std) for value in (one.score, one.before))
        keep, drop, zero = (potentials(one, SCALE, initial=initial, limit=limit) for initial in ("keep", "drop", "zero"))
        assert len(keep) == length + 2
        assert np.diff(keep).sum() == pytest.approx(whole - prompt, abs=1e-12)
        assert np.diff(drop).sum() == pytest.approx(whole, abs=1e-12)
        assert zero[0] == (zero[1] if length else keep[0]), "without a token of its own an answer does not lose its reward"
        np.testing.assert_array_equal(np.diff(keep)[1:], np.diff(drop)[1:])
        if not limit:
            shifted = potentials(one, Scale(-20.0, SCALE.std))
            np.testing.assert_allclose(np.diff(shifted), np.diff(keep), atol=1e-12)
            np.testing.assert_allclose(np.diff(keep)[1:-1], np.diff(one.reached_A) / SCALE.std, atol=1e-12)


@pytest.mark.parametrize("smooth", ["token", "word"])
@pytest.mark.parametrize("initial", ["keep", "drop", "zero"])
@pytest.mark.parametrize("reader", [own_reader, other_reader])
def test_the_sum_over_an_answers_tokens_is_its_score_less_the_prompts(reader: Any, initial: Any, smooth: Any, rollouts: Rollouts) -> None:
    """Acceptance 1, through tokens and tokenizers: within 1e-5."""
    model = reader()
    (table_BT,) = source_of(model, initial=initial, smooth=smooth).rewards(rollouts, NOW)
    assert not table_BT[~rollouts.mask_BT].any()
    found = [one for row in model.score_tokens(rollouts.groups) for one in row]
    starts = {"keep": [one.before for one in found], "drop": [SCALE.mean] * 12, "zero": [[*one.reached_A, one.before][0] for one in found]}
    expected = [(one.score - start) / SCALE.std for one, start in zip(found, starts[initial], strict=True)]
    np.testing.assert_allclose(table_BT.sum(dim=1), expected, atol=1e-5)


def answers_of(rollouts: Rollouts) -> list[tuple[str, str, int, list[int]]]:
    """Prompt, text, tokens, and which of the tokens are words of the text: special ones are not written."""
    found = []
    for group, own in zip(rollouts.groups, rollouts.encoded, strict=True):
        for text, tokens, start in zip(group.answer_texts, own.conversations, own.answer_starts, strict=True):
            ids = tokens[start:]
            found.append((group.prompt[0].content, text, len(ids), [place for place, token in enumerate(ids) if token > 2]))
    return found


def test_with_one_tokenizer_each_token_earns_its_own_gain_and_the_end_the_suffix(rollouts: Rollouts) -> None:
    """Against brute force: every prefix of the conversation scored on its own (defect 6: the suffix is the last token's)."""
    model, tokenizer = own_reader(), tiny.word_tokenizer()
    (table_BT,) = source_of(model).rewards(rollouts, NOW)
    ended = 0
    for row, (prompt, text, length, words) in zip(table_BT, answers_of(rollouts), strict=True):
        opening = tokenizer(f"<bar> {prompt} <eos> <bar> ")["input_ids"]
        conversation = [*opening, *tokenizer(text)["input_ids"], 1]
        with torch.no_grad():
            scores = [float(model.model(torch.tensor([conversation[:end]])).logits) for end in range(len(opening), len(conversation) + 1)]
        *gains, closing = np.diff(scores) / SCALE.std
        expected = np.zeros(length)
        expected[words] = gains
        expected[-1] += closing
        ended += words[-1:] != [length - 1]
        np.testing.assert_allclose(row[:length], expected, atol=1e-5)
    assert 0 < ended < 12, "some answers are cut, and the suffix is then their last word's"


def test_with_another_tokenizer_a_gain_lies_where_its_last_character_does(rollouts: Rollouts) -> None:
    """Defect 7: against a walk over the characters."""
    model = other_reader()
    source = source_of(model)
    (table_BT,) = source.rewards(rollouts, NOW)
    found = [one for row in model.score_tokens(rollouts.groups) for one in row]
    pieces, idle = 0, 0
    for row, one, (_, text, length, words) in zip(table_BT, found, answers_of(rollouts), strict=True):
        owner = np.cumsum([character == " " for character in text])  # the policy's tokens are words, each with the space before it
        expected = np.zeros(length)
        for end, gain in zip(one.ends_A, np.diff([one.before, *one.reached_A]), strict=True):
            expected[words[owner[end - 1]]] += gain / SCALE.std
        expected[-1] += (one.score - [one.before, *one.reached_A][-1]) / SCALE.std
        np.testing.assert_allclose(row[:length], expected, atol=1e-5)
        pieces += len(one.ends_A) - len(words)
        idle += length - len(words)
    assert pieces > 12, "words are several of its tokens"
    ended = int(rollouts.finished_B.sum())
    assert source.learn(rollouts, table_BT[None], NOW)["redistribution/unmapped"] == idle - ended > 0


def test_what_no_token_maps_to_earns_nothing_and_is_counted() -> None:
    rewards_N, unmapped = spread(np.array([1.0, 2.0]), np.array([5, 6]), np.array([2, 4, 5, 6, 6]))
    assert (rewards_N.tolist(), unmapped) == ([0, 0, 1, 2, 0], 3)


def test_an_answer_that_the_template_rewrites_earns_at_its_end_and_is_counted(rollouts: Rollouts) -> None:
    model = own_reader()
    model.tokenizer.chat_template = "{% for m in messages %}{{ '<bar> ' + m['content'].replace('w', ' w') + '<eos> ' }}{% endfor %}"
    source = source_of(model)
    (table_BT,) = source.rewards(rollouts, NOW)
    told = source.learn(rollouts, table_BT[None], NOW)
    assert told["redistribution/unlocated"] == sum(bool(text) for group in rollouts.groups for text in group.answer_texts) > 8
    assert (table_BT != 0).sum(dim=1).max() == 1
    source.rewards(rollouts, NOW)
    again = source.learn(rollouts, table_BT[None], NOW)
    assert again["redistribution/unlocated"] == told["redistribution/unlocated"], "each step counts its own"


def test_the_log_says_how_large_token_rewards_are(rollouts: Rollouts) -> None:
    """Defect 4: heads are trained at the last token alone; what they say before has to be looked at."""
    source = source_of(other_reader())
    (table_BT,) = source.rewards(rollouts, NOW)
    told = source.learn(rollouts, table_BT[None], NOW)
    assert told["redistribution/tokens"] == int(rollouts.mask_BT.sum())
    assert told["redistribution/largest"] == pytest.approx(float(table_BT.abs().amax(dim=1).mean()), abs=1e-5)
    found = [one for row in other_reader().score_tokens(rollouts.groups) for one in row]
    closings = [abs(one.score - [one.before, *one.reached_A][-1]) / SCALE.std for one in found]
    assert told["redistribution/closing"] == pytest.approx(np.mean(closings), abs=1e-5)
    assert told["redistribution/initial"] == pytest.approx(np.mean([(one.before - SCALE.mean) / SCALE.std for one in found]), abs=1e-5)


def test_the_tokens_of_a_word_earn_alike() -> None:
    """Defect 4: the option that averages over the pieces of a word; sums stay."""
    rewards = np.array([1.0, 3.0, -1.0, 0.5])
    assert by_word(rewards, np.array([0, 0, 0, 1])).tolist() == [1, 1, 1, 0.5]
    assert by_word(np.zeros(0), np.zeros(0, dtype=np.intp)).tolist() == []
    tokenizer, text = tiny.byte_tokenizer(), "caught sitting"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = np.cumsum([len(tokenizer.decode([token])) for token in ids])
    one = TokenScores(0.0, np.random.default_rng(0).normal(size=len(ids)), 1.0, ends)
    rollouts = cast("Any", type("Rolled", (), {})())
    rollouts.mask_BT, rollouts.finished_B = torch.ones(1, len(ids), dtype=torch.bool), torch.tensor([False])
    rollouts.encoded = (cast("Any", type("Encoded", (), {"conversations": ((7, *ids),), "answer_starts": (1,)})()),)
    row, plain = (
        Redistributor(Redistribution(share=1.0, smooth=smooth), tokenizer).rewards([one], rollouts, Scale(0, 1), limit=0)[0]
        for smooth in ("word", "token")
    )
    first = int((ends <= len("caught ")).sum())
    assert len({round(float(value), 6) for value in row[:first]}) == 1
    torch.testing.assert_close(row[:first].sum(), plain[:first].sum())
    torch.testing.assert_close(row.sum(), plain.sum())
    assert plain.std() > 0.1


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_a_share_of_0_is_the_reward_at_the_last_token(limit: float, rollouts: Rollouts) -> None:
    """Acceptance 2, for the arithmetic and for the setting."""
    model = own_reader()
    sparse = ScoredAnswers({"0": model}, {"0": SCALE}, cut_penalty=0.5, limit=limit).rewards(rollouts, NOW)
    found = [one for row in model.score_tokens(rollouts.groups) for one in row]
    none = Redistributor(Redistribution(), tiny.word_tokenizer()).rewards(found, rollouts, SCALE, limit=limit)
    torch.testing.assert_close(none - rollouts.at_end(0.5 * ~rollouts.finished_B), sparse[0], atol=1e-5, rtol=0)
    assert OnPolicy().redistribute.share == 0
    whole = source_of(model, share=1.0)
    whole.cut_penalty, whole.limit = 0.5, limit
    half = source_of(model, share=0.5)
    half.cut_penalty, half.limit = 0.5, limit
    torch.testing.assert_close(
        half.rewards(rollouts, NOW), (whole.rewards(rollouts, NOW) + sparse) / 2, atol=1e-5, rtol=0, msg="shares mix linearly"
    )


def weights_of(table_SBT: Tensor) -> Tensor:
    return torch.ones(len(table_SBT), dtype=table_SBT.dtype)


def test_from_the_first_token_on_an_answers_own_start_is_left_out_of_the_comparison(rollouts: Rollouts) -> None:
    """`zero`: the return is the score less that of the first token, which differs from answer to answer; no potential's difference."""
    model = own_reader()
    dense = source_of(model, initial="zero").rewards(rollouts, NOW).double()
    sparse = ScoredAnswers({"0": model}, {"0": SCALE}).rewards(rollouts, NOW).double()
    one, other = (by_comparison(table, rollouts.mask_BT, weights_of(table), answers=3, scaled=None) for table in (dense, sparse))
    assert (one.advantages_BT - other.advantages_BT).abs().max() > 0.1


@pytest.mark.parametrize("scaled", [None, True, False])
@pytest.mark.parametrize("initial", ["keep", "drop"])
def test_comparisons_of_whole_answers_do_not_see_redistribution(scaled: bool | None, initial: Any, rollouts: Rollouts) -> None:
    """Acceptance 3, defect 1: RLOO and GRPO on returns are the same with and without; the prompt's score is one for all its answers."""
    model = own_reader()
    dense = source_of(model, initial=initial).rewards(rollouts, NOW).double()
    sparse = ScoredAnswers({"0": model}, {"0": SCALE}).rewards(rollouts, NOW).double()
    one, other = (by_comparison(table, rollouts.mask_BT, weights_of(table), answers=3, scaled=scaled) for table in (dense, sparse))
    torch.testing.assert_close(one.advantages_BT, other.advantages_BT, atol=2e-5, rtol=0)
    assert one.advantages_BT.abs().max() > 0.1
    assert (dense - sparse).abs().max() > 0.1


def test_the_token_term_is_centred_and_its_weight_of_0_is_plain(rollouts: Rollouts) -> None:
    """Acceptance 4 and 5."""
    mask = rollouts.mask_BT
    table = source_of(own_reader()).rewards(rollouts, NOW).double()
    plain, full = (
        by_comparison(table, mask, weights_of(table), answers=3, scaled=None, token_weight=weight).advantages_BT for weight in (0.0, 1.0)
    )
    returns_PK = table[0].sum(dim=1).view(-1, 3)
    others_PK = (returns_PK.sum(dim=1, keepdim=True) - returns_PK) / 2
    torch.testing.assert_close(plain, (returns_PK - others_PK).reshape(-1, 1) * mask, atol=1e-6, rtol=0)
    term = full - plain
    torch.testing.assert_close(term.sum(dim=1), torch.zeros(12, dtype=torch.float64), atol=1e-6, rtol=0)
    lengths = mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(term, (table[0] - table[0].sum(dim=1, keepdim=True) / lengths) * mask, atol=1e-6, rtol=0)
    assert term.abs().max() > 0.1


def test_the_published_difference_with_a_baseline_reinforces_everything_and_is_refused(rollouts: Rollouts) -> None:
    """Defect 2: with rewards below 0, a token's reward less the baseline of whole answers is positive for nearly every token."""
    mask, low = rollouts.mask_BT, Scale(6.0, 1.0)
    source = source_of(own_reader(), initial="drop")
    source.scales = {"0": low}
    (table,) = source.rewards(rollouts, NOW).double()
    returns_PK = table.sum(dim=1).view(-1, 3)
    assert (returns_PK < 0).all()
    baseline_B1 = ((returns_PK.sum(dim=1, keepdim=True) - returns_PK) / 2).reshape(-1, 1)
    unsafe = (table - baseline_B1)[mask & (torch.arange(mask.shape[1]) > 0)]
    safe = by_comparison(table[None], mask, torch.ones(1, dtype=torch.float64), answers=3, scaled=None, token_weight=1.0).advantages_BT
    assert (unsafe > 0).double().mean() > 0.95
    assert 0.3 < (safe[mask] > 0).double().mean() < 0.7
    for estimator in ("rloo", "grpo"):
        with pytest.raises(ConfigError, match=f"advantage=token_minus_baseline with estimator={estimator}, expected centred"):
            check(OnPolicy(estimator=estimator, redistribute=Redistribution(share=1.0, advantage="token_minus_baseline")))


@pytest.mark.parametrize("trace", [1.0, 0.9, 0.0])
def test_advantages_against_values_less_the_potential_are_unchanged(trace: float) -> None:
    """Shaping by a potential with γ = 1: with V − Φ for V, every estimate is the same to the last digits, at any λ."""
    lengths = [9, 4, 1]
    mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    sparse, dense, potential = (torch.zeros(3, 9, dtype=torch.float64) for _ in range(3))
    values = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * mask
    for place, length in enumerate(lengths):
        path = potentials(random_scores(place, length - 1), SCALE, initial="drop")
        sparse[place, length - 1] = path[-1]
        dense[place, :length], potential[place, :length] = torch.from_numpy(np.diff(path)), torch.from_numpy(path[:-1])
    plain, _ = gae(sparse, values, mask, trace=trace)
    shaped, _ = gae(dense, values - potential, mask, trace=trace)
    torch.testing.assert_close(shaped, plain, atol=1e-12, rtol=0)
    if trace == 1:
        nothing = torch.zeros_like(values)
        ours, returns = gae(dense, nothing, mask, trace=1.0)
        theirs, _ = gae(sparse, nothing, mask, trace=1.0)
        torch.testing.assert_close(ours, (theirs - potential) * mask, atol=1e-12, rtol=0)
        torch.testing.assert_close(ours[:, 0], sparse.sum(dim=1), atol=1e-12, rtol=0)
        torch.testing.assert_close(returns, ours)


def test_every_stream_is_spread_and_signs_of_weights_stay(rollouts: Rollouts) -> None:
    """The paper's safety variant: half the reward's gains, less half a cost model's."""
    tables = source_of(own_reader(), other_reader()).rewards(rollouts, NOW)
    assert tables.shape[0] == 2
    half = torch.tensor([0.5, -0.5])
    zero = torch.zeros(2, *rollouts.mask_BT.shape)
    found = by_values(tables, zero, rollouts.mask_BT, half, discount=1.0, trace=1.0, whiten=False).advantages_BT
    mixed = (0.5 * (tables[0] - tables[1])).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(found, mixed * rollouts.mask_BT, atol=1e-5, rtol=0)


def test_the_penalty_enters_once_and_ratios_are_to_who_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 3: KL is one more stream of rewards, and no term of the loss. Defect 9: the ratio is to the policy that sampled."""
    seen: list[Tensor] = []

    def watching(rewards_SBT: Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(rewards_SBT)
        return by_values(rewards_SBT, *arguments, **options)

    monkeypatch.setattr(on_policy, "by_values", watching)
    loop = loop_of(
        source_of(own_reader()), estimator="ppo", learning_rate=2e-2, kl={"coefficient": 0.1}, redistribute={"share": 1.0}, steps=4
    )
    told = [loop.update() for _ in range(4)]
    assert [len(one) for one in seen] == [2] * 4
    for one, rewards in zip(told, seen, strict=True):
        assert float(rewards[1].sum(dim=1).mean()) == pytest.approx(-0.1 * one["kl"], abs=1e-5)
        assert one["loss"] == pytest.approx(one["surrogate"] + loop.settings.value_coefficient * one["value_loss"], abs=1e-5)
    assert told[-1]["kl"] > 1, "far from the reference, yet the first pass over fresh answers clips nothing"
    assert told[-1]["clipped"] == 0


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_a_loop_with_tokens_that_weigh_nothing_takes_the_plain_steps(estimator: str) -> None:
    """Acceptance 3 and 5 through updates of a policy: token_weight=0 is plain, token_weight=1 is not."""
    made = {}
    for name, share, weight in (("plain", 0.0, 0.0), ("returns", 1.0, 0.0), ("tokens", 1.0, 1.0)):
        loop = loop_of(
            source_of(own_reader(), share=share),
            estimator=estimator,
            redistribute={"share": share},
            token_weight=weight,
            aggregate="answer",
        )
        loop.update()
        made[name] = torch.cat([one.detach().flatten() for one in loop.policy.model.parameters()])
    begin = torch.cat([one.detach().flatten() for one in tiny.causal("llama").parameters()])
    moved = (made["plain"] - begin).norm()
    assert (made["returns"] - made["plain"]).norm() < 0.05 * moved  # AdamW's first step turns rounding into signs where gradients are 0
    assert (made["tokens"] - made["plain"]).norm() > 0.3 * moved


def test_an_ensemble_is_spread_and_its_disagreement_is_still_told(rollouts: Rollouts) -> None:
    members = {str(seed): own_reader(seed) for seed in range(2)}
    ensemble = ModelEnsemble(members, dict.fromkeys(members, SCALE), Combine(combination="worst_case"))
    source = ScoredAnswers({"e": ensemble}, {"e": Scale(0, 1)}, redistributor=Redistributor(Redistribution(share=1), tiny.word_tokenizer()))
    plain = ScoredAnswers({"e": ensemble}, {"e": Scale(0, 1)})
    spread_out, sparse = (one.rewards(rollouts, NOW) for one in (source, plain))
    assert (spread_out != 0).sum() > (sparse != 0).sum()
    told, expected = (one.learn(rollouts, sparse, NOW)[DISAGREEMENT] for one in (source, plain))
    assert told == pytest.approx(expected, abs=1e-6)
    assert expected > 0.01


def test_what_cannot_be_redistributed_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"share=1 with the reward gold, expected reward models or ensembles of them, with fast tokenizers"
    ):
        refuse_others(Redistribution(share=1.0), {"model": own_reader(), "gold": CheckableGold()})
    refuse_others(Redistribution(), {"gold": CheckableGold()})
    with pytest.raises(ConfigError, match=r"token_weight=1 with estimator=ppo, expected 0"):
        check(OnPolicy(estimator="ppo", token_weight=1.0, redistribute=Redistribution(share=1.0)))
    with pytest.raises(ConfigError, match=r"discount=0.99 with redistribute.share=1, expected discount=1: only undiscounted"):
        check(OnPolicy(estimator="ppo", discount=0.99, redistribute=Redistribution(share=1.0)))
    check(OnPolicy(estimator="ppo", discount=0.99))
    with pytest.raises(ConfigError, match="whole_answers with advantages of single tokens"):
        check(OnPolicy(estimator="rloo", whole_answers=True, aggregate="answer", token_weight=1.0, redistribute=Redistribution(share=1.0)))
