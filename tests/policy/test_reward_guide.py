"""Reward-guided decoding: the batched search with its caches is the plain loop over whole prefixes, and its rules are the paper's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewardproof.errors import ModelError
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.policy.guidance import Direction, Guidance, argmin_choice, released_probabilities
from rewardproof.policy.reward_guide import RewardGuide, guided_answers, refuse_unguided
from rewardproof.policy.row_cache import in_rows
from rewardproof.policy.sampling import Sampling, sample

PROMPTS = [(5, 6, 7), (8, 9, 10, 11, 12), (13,), (14, 15, 16, 17), (20, 30, 40)]
CACHED = ("llama", "qwen2", "qwen3", "gpt_neox", "gpt2", "gemma3")
ENDS = {1, *range(74, 96)}


@torch.no_grad()
def reward_of(judge: PreTrainedModel, tokens: tuple[int, ...]) -> float:
    """What the head says at the last token, by a plain pass over the whole prefix."""
    return judge.score(judge.base_model(torch.tensor([tokens])).last_hidden_state[0, -1]).item()


@torch.no_grad()
def plain_search(
    policy: PreTrainedModel, judge: PreTrainedModel, prompt: tuple[int, ...], guidance: Guidance, direction: Direction, length: int
) -> tuple[int, ...]:
    """Equation 6 as it stands: no cache, no batch, one candidate after the other."""
    answer: list[int] = []
    while len(answer) < length:
        log_probs = policy(torch.tensor([(*prompt, *answer)])).logits[0, -1].log_softmax(-1)
        best, choice = -float("inf"), -1
        for token in log_probs.topk(guidance.top_k).indices.tolist():
            prefix = (*prompt, *answer) if token in ENDS else (*prompt, *answer, token)
            sign = 1 if direction == "up" else -1
            value = sign * reward_of(judge, prefix) + guidance.alpha * log_probs[token].item()
            if value > best:
                best, choice = value, token
        if choice in ENDS:
            break
        answer.append(choice)
    return tuple(answer)


@pytest.fixture(scope="module")
def policy(tiny: ModuleType) -> PreTrainedModel:
    """A tiny Llama that ends its answers now and then, by any of a quarter of its tokens."""
    model = tiny.causal("llama", seed=3)
    model.generation_config.eos_token_id = sorted(ENDS)
    return model


def searched(
    policy: PreTrainedModel,
    judge: PreTrainedModel,
    guidance: Guidance,
    direction: Direction,
    *,
    rows: int = 64,
    answers: int = 1,
    seed: int = 0,
) -> list[list[tuple[int, ...]]]:
    settings = Sampling(max_new_tokens=9, max_rows=rows, seed=seed)
    pairs = [(prompt, prompt) for prompt in PROMPTS]
    found = dict(guided_answers(policy, judge, pairs, guidance, direction, sampling=settings, answers=answers))
    return [[answer.token_ids for answer in found[place]] for place in range(len(PROMPTS))]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("rows", [2, 64])
@pytest.mark.parametrize("family", CACHED)
def test_cached_and_uncached_search_agree(tiny: ModuleType, policy: PreTrainedModel, family: str, rows: int, direction: Direction) -> None:
    judge = tiny.classifier(family, seed=5)
    if family == "gemma3":
        judge.config.sliding_window = 64
        for layer in judge.model.layers:
            layer.self_attn.sliding_window = None
    guidance = Guidance(top_k=4, alpha=0.3)
    expected = [[plain_search(policy, judge, prompt, guidance, direction, 9)] for prompt in PROMPTS]
    assert searched(policy, judge, guidance, direction, rows=rows) == expected
    assert any(len(answer) < 9 for (answer,) in expected)


def test_cached_and_uncached_scores_agree(tiny: ModuleType) -> None:
    """Candidates of rows of different lengths, token by token, to rounding."""
    judge = tiny.classifier("qwen3", seed=2)
    guide = RewardGuide(judge, PROMPTS, Guidance(top_k=3), "up", ends=ENDS, max_new_tokens=6)
    texts: list[list[int]] = [list(prompt) for prompt in PROMPTS]
    draw = torch.Generator().manual_seed(0)
    with in_rows(judge), torch.inference_mode():
        guide.open(len(PROMPTS))
        guide.start(0, range(len(PROMPTS)))
        for _ in range(6):
            tokens_RK = torch.randint(4, min(ENDS - {1}), (len(PROMPTS), 3), generator=draw)
            found_RK = guide._rewards(tokens_RK, slice(0, len(PROMPTS)))
            expected_RK = [[reward_of(judge, (*text, token)) for token in row] for text, row in zip(texts, tokens_RK.tolist(), strict=True)]
            torch.testing.assert_close(found_RK, torch.tensor(expected_RK), atol=2e-5, rtol=1e-5)
            chosen_R = torch.randint(0, 3, (len(PROMPTS),), generator=draw)
            guide._keep(chosen_R, slice(0, len(PROMPTS)), alive_R=torch.ones(len(PROMPTS), dtype=torch.bool))
            for text, row, place in zip(texts, tokens_RK.tolist(), chosen_R.tolist(), strict=True):
                text.append(row[place])


@pytest.mark.parametrize("guidance", [Guidance(top_k=1, alpha=0.0), Guidance(top_k=1, form="released"), Guidance(top_k=5, alpha=1e6)])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_one_candidate_or_a_large_alpha_is_greedy_decoding(
    tiny: ModuleType, policy: PreTrainedModel, guidance: Guidance, direction: Direction
) -> None:
    greedy = sample(policy, PROMPTS, 1, Sampling(max_new_tokens=9, temperature=0.0))
    assert searched(policy, tiny.classifier("llama"), guidance, direction) == [[answer.token_ids for answer in row] for row in greedy]


def test_alpha_0_takes_the_least_reward_of_the_top_k_and_the_greatest_the_other_way() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs_RK = torch.randn(50, 5, generator=generator).log_softmax(-1)
    rewards_RK = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    assert argmin_choice(log_probs_RK, rewards_RK, direction="down", alpha=0).equal(rewards_RK.argmin(-1))
    assert argmin_choice(log_probs_RK, rewards_RK, direction="up", alpha=0).equal(rewards_RK.argmax(-1))
    for direction, sign in (("down", -1), ("up", 1)):
        found_R = argmin_choice(log_probs_RK, rewards_RK, direction=direction, alpha=0.7)
        assert found_R.equal(argmin_choice(log_probs_RK, sign * rewards_RK, direction="up", alpha=0.7)), "the sign flips"


def brute_force(probs: Tensor, rewards: Tensor, sign: int, tau: float) -> Tensor:
    """The released sampler's lines, in float64."""
    q1 = torch.exp(probs / tau) / torch.exp(probs / tau).sum()
    q2 = torch.exp(sign * rewards / tau) / torch.exp(sign * rewards / tau).sum()
    q = torch.exp((q1 + q2) / tau)
    return q / q.sum()


@pytest.mark.parametrize(("direction", "sign"), [("down", -1), ("up", 1)])
def test_the_released_sampler_is_a_softmax_of_probabilities(direction: Direction, sign: int) -> None:
    probs = torch.tensor([0.9, 0.05, 0.03, 0.01, 0.01], dtype=torch.float64)
    rewards = torch.tensor([0.3, -0.2, 1.1, 0.4, -2.0], dtype=torch.float64)
    found = released_probabilities(probs.log()[None], rewards[None], direction=direction, tau=0.6)[0]
    torch.testing.assert_close(found, brute_force(probs, rewards, sign, 0.6))
    likely = (probs / 0.6).softmax(-1)
    assert likely[0].item() == pytest.approx(0.52, abs=0.006), "the brief's numbers: .9 becomes .52"
    last = released_probabilities(probs.log()[None], sign * torch.tensor([[0.0, 0, 0, 0, 60]]), direction=direction, tau=0.6)[0, -1]
    assert last.item() == pytest.approx(0.52, abs=0.006)


def test_the_released_form_draws_by_its_probabilities(tiny: ModuleType, policy: PreTrainedModel) -> None:
    """First tokens of many answers to one prompt, against probabilities by plain passes."""
    judge, prompt = tiny.classifier("llama", seed=5), PROMPTS[1]
    guidance = Guidance(form="released", top_k=3)
    with torch.no_grad():
        log_probs, tokens = policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(3)
    rewards = torch.tensor([[reward_of(judge, prompt if token in ENDS else (*prompt, token)) for token in tokens.tolist()]])
    expected = released_probabilities(log_probs[None], rewards, direction="up", tau=guidance.tau)[0]
    ((_, answers),) = guided_answers(
        policy, judge, [(prompt, prompt)], guidance, "up", sampling=Sampling(max_new_tokens=1, max_rows=500), answers=4000
    )
    firsts = [answer.end if answer.end is not None else answer.token_ids[0] for answer in answers]
    frequency = torch.tensor([firsts.count(token) / len(firsts) for token in tokens.tolist()])
    torch.testing.assert_close(frequency, expected, atol=0.03, rtol=0)


def test_unequal_prompts_in_one_batch_are_as_each_alone(tiny: ModuleType, policy: PreTrainedModel) -> None:
    """The released code reads logits at the last column of right-padded prompts."""
    judge, guidance = tiny.classifier("llama", seed=5), Guidance(form="released")
    together = searched(policy, judge, guidance, "down", answers=3, seed=4)
    assert together == searched(policy, judge, guidance, "down", answers=3, seed=4, rows=1)
    assert len({len(prompt) for prompt in PROMPTS}) > 1


def test_the_search_stops_at_the_end_token(tiny: ModuleType, policy: PreTrainedModel) -> None:
    """The released code runs to its longest length."""
    settings = Sampling(max_new_tokens=60)
    pairs = [(prompt, prompt) for prompt in PROMPTS]
    found = dict(guided_answers(policy, tiny.classifier("llama", seed=5), pairs, Guidance(top_k=6, alpha=0.1), "down", sampling=settings))
    ended = [answer for (answer,) in found.values() if answer.finished]
    assert ended
    assert all(not ENDS & set(answer.token_ids) and len(answer.token_ids) < 60 for answer in ended)


def test_the_reward_model_makes_one_pass_a_token(tiny: ModuleType, policy: PreTrainedModel) -> None:
    """The released code makes K + 1 for every answer, each over the whole prefix."""
    judge, read = tiny.classifier("llama", seed=5), []
    judge.model.register_forward_pre_hook(lambda module, args, given: read.append(given["input_ids"].shape), with_kwargs=True)
    found = searched(policy, judge, Guidance(top_k=4, alpha=0.3), "down")
    (prompts, *steps) = read
    assert prompts == (len(PROMPTS), max(map(len, PROMPTS)))
    assert len(steps) <= 9
    assert all(shape[1] == 4 for shape in steps)
    assert max(len(answer) for (answer,) in found) <= len(steps)


def test_what_cannot_run_on_rows_is_refused(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match=r"gemma2\) bends its attention scores .* expected a reward model that does not.*Take another"):
        refuse_unguided(tiny.classifier("gemma2"), 5, what="reward model", name="runs/rm")
    with pytest.raises(ModelError, match=r"up to 40 tokens for runs/pi \(mistral\), expected at most 7.*sliding window.*Lower max_new"):
        refuse_unguided(tiny.causal("mistral"), 40, what="policy", name="runs/pi")
    with pytest.raises(ModelError, match=r"up to 600 tokens for runs/pi \(gpt2\), expected at most 512: it has 512 positions"):
        refuse_unguided(tiny.causal("gpt2"), 600, what="policy", name="runs/pi")
    mixture = tiny.classifier("llama")
    upcycle(mixture, Upcycle(n_experts=3, n_active=2))
    with pytest.raises(ModelError, match=r"runs/moe is a mixture, expected a dense reward model.*rewardproof merge MOE OUT"):
        refuse_unguided(mixture, 5, what="reward model", name="runs/moe")
