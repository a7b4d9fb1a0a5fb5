"""The off-policy loop reaches optima known in closed form, and its packed passes are plain forward passes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rewardproof.data.encoding import EncodedGroup, shared_prefix
from rewardproof.data.pairs import Pair
from rewardproof.errors import ConfigError, DataError, TrainingError
from rewardproof.policy.baselines import with_sampled_answers
from rewardproof.policy.direct_alignment import DirectAlignment
from rewardproof.policy.off_policy import OffPolicyLoop
from rewardproof.policy.policy import Policy
from rewardproof.policy.sampling import Sampling
from rewardproof.training.batches import Collator, TrainingGroup
from rewardproof.training.freezing import freeze_all_but

WORDS = 12


def language_model(*, seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(
        vocab_size=WORDS, num_hidden_layers=layers, pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.12, **sizes
    )
    return LlamaForCausalLM(config).eval()


def group_of(prompt: tuple[int, ...], *answers: tuple[int, ...], pairs: tuple[Pair, ...] = (Pair(0, 1, None),)) -> TrainingGroup:
    conversations = tuple((*prompt, *answer) for answer in answers)
    return TrainingGroup(EncodedGroup(conversations, shared_prefix(conversations), (len(prompt),) * len(answers), 0), pairs)


GROUPS = [
    group_of((5, 6, 7), (8, 0, 9, 1), (8, 3, 1)),
    group_of((2, 4), (0, 1), (3, 3, 3, 3, 1)),
    group_of((9, 9, 2, 4), (6, 1), (7, 5, 1), (0, 0, 1), pairs=(Pair(0, 1, None), Pair(0, 2, None), Pair(1, 2, None))),
    group_of((3,), (7, 7, 1), (2, 1)),
]


def loop_of(
    model: LlamaForCausalLM, folder: Path, groups: list[TrainingGroup], /, *, tokens: int = 512, first_layer: int = 0, **changes: Any
) -> OffPolicyLoop:
    settings = DirectAlignment(**{"groups_per_step": len(groups), "learning_rate": 1e-2, "steps": 3, **changes})
    collator = Collator(tokens_per_batch=tokens, cache=None)
    loop = OffPolicyLoop(Policy(model, first_layer=first_layer), groups, settings, collator, precision="fp32", seed=0)
    loop.ask_reference(folder / "reference.json", progress=lambda done, total: None)
    return loop


def log_prob(model: LlamaForCausalLM, conversation: tuple[int, ...], start: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([conversation])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, conversation[place]].item() for place in range(start, len(conversation)))


def test_what_the_reference_says_is_a_plain_pass_over_each_answer_alone(tmp_path: Path) -> None:
    model = language_model()
    loop = loop_of(model, tmp_path, GROUPS)
    for entry in GROUPS:
        found = loop.reference.of([entry.group]).tolist()
        for conversation, start, value in zip(entry.group.conversations, entry.group.answer_starts, found, strict=True):
            assert value == pytest.approx(log_prob(model, conversation, start), abs=2e-5)


@pytest.mark.parametrize("tokens", [8, 512])
def test_the_first_update_starts_at_a_gap_of_nothing_at_all(tokens: int, tmp_path: Path) -> None:
    told = loop_of(language_model(), tmp_path, GROUPS, tokens=tokens, groups_per_step=2).update()
    assert (told["implicit/gap"], told["implicit/chosen"], told["implicit/rejected"], told["implicit/accuracy"]) == (0, 0, 0, 0.5)
    assert told["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_only_answer_tokens_are_kept_by_the_baselines_term_and_token_0_is_one(tmp_path: Path) -> None:
    model, settings = language_model(), {"eta": 0.5, "beta": 0.2}
    logs = [log_prob(model, entry.group.conversations[0], entry.group.answer_starts[0]) for entry in GROUPS[:2]]
    told = loop_of(model, tmp_path, GROUPS[:2], **settings).update()
    assert told["loss/baseline"] == pytest.approx(0.1 * -sum(logs) / 2, rel=1e-5)
    averaged = loop_of(language_model(), tmp_path / "mean", GROUPS[:2], sft_weight=0.2).update()
    lengths = [len(entry.group.conversations[0]) - entry.group.answer_starts[0] for entry in GROUPS[:2]]
    expected = 0.2 * -sum(value / length for value, length in zip(logs, lengths, strict=True)) / 2
    assert averaged["loss/baseline"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("changes", [{"form": "dpo"}, {"form": "ipo", "eta": 0.1}], ids=["dpo", "ipo and a baseline"])
def test_an_update_is_that_of_plain_forward_passes_however_it_is_packed(changes: dict[str, Any], tmp_path: Path) -> None:
    """The gradient of the mean over prompts of the mean over their pairs, by autograd on one unpacked conversation at a time."""
    model = language_model()
    plain, beta, eta = copy.deepcopy(model), 0.1, changes.get("eta", 0.0)
    losses = []
    for entry in GROUPS:
        values = []
        for conversation, start in zip(entry.group.conversations, entry.group.answer_starts, strict=True):
            logits = plain(torch.tensor([conversation])).logits[0].log_softmax(-1)
            values.append(sum(logits[place - 1, conversation[place]] for place in range(start, len(conversation))))
        for pair in entry.pairs:
            gap = values[pair.winner] - values[pair.loser]
            gap = gap - gap.detach()
            one = (beta * gap - 1) ** 2 if changes["form"] == "ipo" else -torch.nn.functional.logsigmoid(beta * gap)
            losses.append((one - eta * beta * values[pair.winner]) / len(entry.pairs) / len(GROUPS))
    torch.stack(losses).sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])
    for tokens in (8, 512):
        loop = loop_of(copy.deepcopy(model), tmp_path / str(tokens), GROUPS, tokens=tokens, max_grad_norm=0.0, **changes)
        found: list[torch.Tensor] = []
        loop.optimizer.zero_grad = lambda loop=loop, found=found: found.extend(
            parameter.grad.flatten() for parameter in loop.policy.model.parameters() if parameter.grad is not None
        )
        loop.update()
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-3, atol=1e-6)


def test_dpo_ends_at_the_policy_of_the_reward_behind_the_preferences(tmp_path: Path) -> None:
    """Labels as doubtful as Bradley-Terry of a reward makes them: π ∝ π_ref exp(r / β) among the answers."""
    answers, rewards, beta = (3, 6, 8, 10), torch.tensor([1.0, 0.2, -0.4, -0.9], dtype=torch.float64), 0.5
    ordered = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    pairs = tuple(Pair(i, j, None, float(torch.sigmoid(rewards[j] - rewards[i]))) for i, j in ordered)
    group = group_of((5, 6), *((answer,) for answer in answers), pairs=pairs)
    model = language_model()
    with torch.no_grad():
        before = model(torch.tensor([[5, 6]])).logits[0, -1].double()[list(answers)].log_softmax(-1)
    loop = loop_of(model, tmp_path, [group], beta=beta, steps=250, schedule="linear", learning_rate=5e-3)
    for _ in range(250):
        loop.update()
    with torch.no_grad():
        after = model(torch.tensor([[5, 6]])).logits[0, -1].double()[list(answers)].softmax(-1)
    optimum = (before + rewards / beta).softmax(-1)
    assert (optimum - before.exp()).abs().sum() > 0.5
    assert (after - optimum).abs().sum() < 0.02


def test_ipo_stops_at_its_target_where_dpo_goes_on(tmp_path: Path) -> None:
    gaps = {}
    for form in ("ipo", "dpo"):
        loop = loop_of(language_model(), tmp_path / form, GROUPS[:1], form=form, beta=0.2, steps=300, learning_rate=3e-3)
        for _ in range(300):
            told = loop.update()
        gaps[form] = told["implicit/gap"]
    assert gaps["ipo"] == pytest.approx(1.0, abs=0.02)
    assert gaps["dpo"] > 2.0


def test_frozen_layers_stay_as_they_are(tmp_path: Path) -> None:
    model = language_model()
    freeze_all_but(model, range(1, 2))
    start = copy.deepcopy(model.state_dict())
    loop = loop_of(model, tmp_path, GROUPS, first_layer=1, optimizer="rmsprop", length_penalty=0.5)
    for _ in range(3):
        loop.update()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all("layers.1" in name or name == "model.norm.weight" for name in moved)


def test_a_sampled_answer_is_the_last_of_its_group_and_repeats_with_its_seed() -> None:
    model, sampling = language_model(), Sampling(max_new_tokens=4, seed=3)
    made, again = (with_sampled_answers(model, GROUPS, sampling) for _ in range(2))
    assert made == again
    for before, after in zip(GROUPS, made, strict=True):
        assert after.group.conversations[:-1] == before.group.conversations
        assert after.pairs == before.pairs
        start = after.group.answer_starts[-1]
        assert after.group.conversations[-1][:start] == before.group.conversations[0][: before.group.answer_starts[0]]
        assert 1 <= len(after.group.conversations[-1]) - start <= 4
    with pytest.raises(DataError, match="preferences without a known prompt"):
        with_sampled_answers(model, [group_of((), (5, 1), (6, 1))], sampling)


def test_the_sampled_baselines_likelihood_is_kept_once_a_prompt(tmp_path: Path) -> None:
    model = language_model()
    groups = with_sampled_answers(model, GROUPS, Sampling(max_new_tokens=4, seed=3))
    logs = [log_prob(model, entry.group.conversations[-1], entry.group.answer_starts[-1]) for entry in groups]
    told = loop_of(model, tmp_path, groups, eta=0.5, beta=0.2, baseline="sampled", tokens=20).update()
    assert told["loss/baseline"] == pytest.approx(0.1 * -sum(logs) / len(logs), rel=1e-5)
    assert told["loss/preference"] == pytest.approx(0.693147, abs=1e-6)


def test_what_breaks_down_or_is_too_little_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Got 4 prompts with an order, expected at least direct\.groups_per_step=5"):
        loop_of(language_model(), tmp_path, GROUPS, groups_per_step=5)
    loop = loop_of(language_model(), tmp_path, GROUPS)
    torch.nn.init.constant_(loop.policy.model.lm_head.weight, float("nan"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TrainingError, match=r"the loss of step 1 is nan, expected finite numbers.*lower direct\.learning_rate"):
        loop.update()
