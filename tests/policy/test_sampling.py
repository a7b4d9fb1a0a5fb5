"""Sampling: the batched cache gives the model's own logits, and draws follow the distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rewardproof.policy.drawing import TRIES, draw
from rewardproof.policy.sampling import Request, Sampling, iterate, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [14, 15, 16, 17]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A random Llama of 20 000 parameters whose texts end now and then (eos is token 2)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def full_logprobs(model: LlamaForCausalLM, prompt: list[int], answer: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of an answer's tokens by one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("max_rows", [3, 64])
def test_logits_of_the_batched_cache_are_the_models_own(model: LlamaForCausalLM, max_rows: int) -> None:
    settings = Sampling(max_new_tokens=12, temperature=0.7, max_rows=max_rows)
    results = sample(model, PROMPTS, 9, settings)
    ended = 0
    for prompt, answers in zip(PROMPTS, results, strict=True):
        assert len(answers) == 9
        for answer in answers:
            tokens = [*answer.token_ids, *([2] if answer.finished else [])]
            assert 1 <= len(tokens) <= 12
            assert answer.logprob == pytest.approx(full_logprobs(model, prompt, tokens, 0.7).sum().item(), abs=1e-4)
            ended += answer.finished
    assert 0 < ended < 36


def test_greedy_is_the_models_argmax(model: LlamaForCausalLM) -> None:
    results = sample(model, PROMPTS, 1, Sampling(max_new_tokens=8, temperature=0.0))
    for prompt, (answer,) in zip(PROMPTS, results, strict=True):
        text = list(prompt)
        for token in answer.token_ids:
            with torch.no_grad():
                assert token == model(torch.tensor([text])).logits[0, -1].argmax().item()
            text.append(token)


def test_answers_depend_on_seed_stream_and_index_alone(model: LlamaForCausalLM) -> None:
    settings = Sampling(max_new_tokens=10, max_rows=5, seed=3)
    whole = sample(model, PROMPTS, 6, settings)
    alone = [dict(iterate(model, [Request(tuple(prompt), range(4, 6), stream)], settings))[0] for stream, prompt in enumerate(PROMPTS)]
    for answers, extension in zip(whole, alone, strict=True):
        assert [a.token_ids for a in answers[4:]] == [a.token_ids for a in extension]
    assert [a.token_ids for a in sample(model, PROMPTS, 6, Sampling(max_new_tokens=10, seed=4))[0]] != [a.token_ids for a in whole[0]]


def test_the_model_is_left_as_it_was(model: LlamaForCausalLM) -> None:
    before = model.config._attn_implementation
    model.train()
    sample(model, PROMPTS[:1], 1, Sampling(max_new_tokens=2))
    assert model.config._attn_implementation == before
    assert model.training
    model.eval()


def test_no_prompts_and_no_answers(model: LlamaForCausalLM) -> None:
    assert sample(model, [], 3) == []
    assert sample(model, PROMPTS[:1], 0) == [[]]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_follow_the_nucleus(top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf]).repeat(20_000, 1)
    uniforms = np.random.default_rng(0).random((20_000, TRIES), dtype=np.float32)
    tokens, logprobs = draw(logits, uniforms, temperature=1.0, top_p=top_p)
    probabilities = logits[0].softmax(-1)
    kept = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    frequency = torch.bincount(tokens, minlength=6) / len(tokens)
    torch.testing.assert_close(frequency, kept / kept.sum(), atol=0.012, rtol=0)
    torch.testing.assert_close(logprobs, probabilities.log()[tokens])


def test_draw_at_the_edges_stays_on_words_with_mass() -> None:
    logits = torch.full((2, 700), -torch.inf)
    logits[0, 300], logits[1, 699] = 0.0, 0.0
    for edge in (0.0, 1 - 2**-24):
        tokens, _ = draw(logits, np.full((2, TRIES), edge, dtype=np.float32), temperature=1.0, top_p=1.0)
        assert tokens.tolist() == [300, 699]
