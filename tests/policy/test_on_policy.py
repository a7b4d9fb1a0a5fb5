"""The on-policy loop reaches optima known in closed form, and its parts agree with plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from transformers import LlamaConfig, LlamaForCausalLM

from rewardproof.data.group import Group, Message
from rewardproof.errors import ConfigError, EvaluationError, TrainingError
from rewardproof.models.precision import computing_in
from rewardproof.policy.evaluation import evaluate_policy
from rewardproof.policy.kl_penalty import KLPenalty
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.policy.policy import Policy, divergence
from rewardproof.policy.rewards import Moment, ScoredAnswers
from rewardproof.policy.rollouts import Prompt, Rollouts, roll_out
from rewardproof.policy.sampling import Sampling
from rewardproof.policy.settings import OnPolicy
from rewardproof.policy.streams import Passes
from rewardproof.scoring import Combine, Ensemble, Scale
from rewardproof.training.freezing import freeze_all_but

WORDS = 12
PASSES = Passes(precision="fp32", tokens_per_batch=512)


def language_model(*, seed: int = 0, words: int = WORDS, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.12,
    )
    return LlamaForCausalLM(config).eval()


class Digits:
    """A tokenizer that writes token ids as numbers."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


class ByToken:
    """Rewards an answer of one token by a table; an empty answer is the end token."""

    def __init__(self, table: Sequence[float]) -> None:
        self.table = table

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(self.table[int(text or 1)] for text in group.answer_texts) for group in groups]


def prompts_of(*tokens: tuple[int, ...]) -> list[Prompt]:
    return [Prompt(Group(prompt=(Message("user", str(ids)),), answers=()), ids) for ids in tokens]


def loop_of(model: LlamaForCausalLM, source: Any, settings: OnPolicy, prompts: list[Prompt], *, first_layer: int = 0) -> OnPolicyLoop:
    policy = Policy(model, n_values=settings.value_heads(len(source.names)), first_layer=first_layer, temperature=settings.temperature)
    tokenizer: Any = Digits()
    return OnPolicyLoop(policy, policy.frozen_copy(), policy.sampler("fp32"), tokenizer, prompts, source, settings, PASSES, seed=0)


def distribution(model: LlamaForCausalLM, prompt: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)


BETA = 0.5
BANDIT: dict[str, Any] = {"max_new_tokens": 1, "prompts_per_step": 2, "answers": 32, "learning_rate": 4e-3, "aggregate": "sum"}
ARMS = {
    "rloo": {"estimator": "rloo"},
    "rloo, whole answers, four epochs": {"estimator": "rloo", "epochs": 2, "minibatches": 2, "whole_answers": True, "aggregate": "answer"},
    "grpo, unscaled": {"estimator": "grpo", "scaled": False, "kl": {"coefficient": BETA, "place": "loss", "estimate": "k2"}},
    "ppo": {"estimator": "ppo", "whiten": False, "value_learning_rate": 3e-2, "value_clip": 100.0},
}


def towards_the_rewarded(reference: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """π ∝ π_ref exp(r / β), the optimum of E r − β KL(π ‖ π_ref)."""
    return (reference.log() + rewards / BETA).softmax(-1)


def the_other_way_round(reference: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """π = β π_ref / (ν − r), the optimum of E r − β KL(π_ref ‖ π), with ν such that it sums to 1."""
    low, high = float(rewards.max()) + 1e-9, float(rewards.max()) + BETA + 10
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * reference / (middle - rewards)).sum() > 1 else (low, middle)
    return BETA * reference / (low - rewards)


def after_training(settings: dict[str, Any], *, steps: int = 140) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Distributions of the first token after two prompts, before and after, and the rewards."""
    model = language_model()
    prompts = [(5, 6), (7, 8, 9)]
    before = [distribution(model, prompt) for prompt in prompts]
    rewards = torch.linspace(-1, 1, WORDS, dtype=torch.float64)[torch.randperm(WORDS, generator=torch.Generator().manual_seed(1))]
    source = ScoredAnswers({"table": ByToken(rewards.tolist())}, {"table": Scale(0.0, 1.0)})
    chosen = OnPolicy(**{**BANDIT, "kl": KLPenalty(coefficient=BETA), "schedule": "linear", "steps": steps, **settings})
    loop = loop_of(model, source, chosen, prompts_of(*prompts))
    for _ in range(steps):
        loop.update()
    return before, [distribution(model, prompt) for prompt in prompts], rewards


@pytest.mark.parametrize("arm", ARMS)
def test_a_bandit_ends_at_its_closed_form(arm: str) -> None:
    before, after, rewards = after_training(ARMS[arm])
    for reference, found in zip(before, after, strict=True):
        optimum = towards_the_rewarded(reference, rewards)
        assert (optimum - reference).abs().sum() > 0.5
        assert (found - optimum).abs().sum() < 0.12


def test_the_published_estimate_in_the_loss_has_another_optimum() -> None:
    before, after, rewards = after_training(
        {"estimator": "grpo", "scaled": False, "kl": {"coefficient": BETA, "place": "loss", "estimate": "k3"}}
    )
    for reference, found in zip(before, after, strict=True):
        assert (found - the_other_way_round(reference, rewards)).abs().sum() < 0.12
        assert (found - towards_the_rewarded(reference, rewards)).abs().sum() > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["reward", "loss"])
def test_answers_of_two_tokens_end_at_their_closed_form(place: str) -> None:
    """One ratio a whole answer: the penalty must count as much as the reward, however long answers are."""
    model, prompt = language_model(), (5, 6)

    def pairs() -> torch.Tensor:
        first = distribution(model, prompt).log()
        then = torch.stack([distribution(model, (*prompt, token)).log() for token in range(WORDS)])
        then[1], then[1, 0] = -torch.inf, 0.0  # an answer that ends with its first token has no second
        return (first[:, None] + then).flatten()

    before = pairs()
    table = torch.linspace(-1, 1, WORDS, dtype=torch.float64)[torch.randperm(WORDS, generator=torch.Generator().manual_seed(1))]
    rewards = (table[:, None] + table[None]).clone()
    rewards[:, 1], rewards[1] = table, 0.0
    optimum = (before + rewards.flatten() / BETA).softmax(-1)
    source = ScoredAnswers({"sum": SumOfTokens(table.tolist())}, {"sum": Scale(0.0, 1.0)})
    kl = KLPenalty(coefficient=BETA, place=place, estimate="k2")
    changes = {"max_new_tokens": 2, "prompts_per_step": 1, "answers": 128, "whole_answers": True, "aggregate": "answer"}
    loop = loop_of(model, source, OnPolicy(**{**BANDIT, **changes, "kl": kl, "schedule": "linear", "steps": 250}), prompts_of(prompt))
    for _ in range(250):
        loop.update()
    assert (pairs().exp() - optimum).abs().sum() < 0.25
    assert (before.exp() - optimum).abs().sum() > 1


class SumOfTokens:
    """Rewards an answer by the sum of a table's entries for its tokens; the end token has none."""

    def __init__(self, table: Sequence[float]) -> None:
        self.table = table

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(sum(self.table[int(word)] for word in text.split()) for text in group.answer_texts) for group in groups]


def test_without_a_penalty_only_the_reward_counts() -> None:
    before, after, rewards = after_training({"kl": {"coefficient": 0.0}}, steps=80)
    for reference, found in zip(before, after, strict=True):
        assert reference @ rewards < 0.5
        assert found @ rewards > 0.75


class Lengths:
    """Rewards long answers."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(float(len(text.split())) for text in group.answer_texts) for group in groups]


def longer_texts(
    settings: dict[str, Any], *, first_layer: int = 0, updates: int = 3, passes: Passes = PASSES
) -> tuple[OnPolicyLoop, list[dict[str, Any]]]:
    model = language_model(words=40, layers=3)
    if first_layer:
        freeze_all_but(model, range(first_layer, 3))
    source = ScoredAnswers({"length": Lengths()}, {"length": Scale(3.0, 2.0)}, cut_penalty=0.5)
    chosen = OnPolicy(**{"max_new_tokens": 7, "prompts_per_step": 4, "answers": 3, "learning_rate": 1e-3, "steps": updates, **settings})
    loop = loop_of(model, source, chosen, prompts_of((5, 6), (7, 8, 9), (4,), (3, 3, 3), (9, 2)), first_layer=first_layer)
    loop.passes = passes
    return loop, [loop.update() for _ in range(updates)]


@pytest.mark.parametrize("estimator", ["ppo", "rloo", "grpo"])
def test_an_update_moves_the_policy_alone_and_says_how_far(estimator: str) -> None:
    loop, metrics = longer_texts({"estimator": estimator, "epochs": 2, "minibatches": 2})
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[2]["kl_k3"] > 0
    assert metrics[2]["kl"] != 0
    assert 1 <= metrics[0]["answer_tokens"] <= 7
    assert metrics[0]["seconds"]["all"] >= sum(value for name, value in metrics[0]["seconds"].items() if name != "all") - 0.01
    reference = language_model(words=40, layers=3)
    for name, parameter in loop.reference.model.named_parameters():
        assert torch.equal(parameter, reference.state_dict()[name])
    assert (loop.policy.values is None) == (estimator != "ppo")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_its_first_update_a_policy_is_its_reference_to_the_last_bit(precision: Any) -> None:
    model = language_model(words=40, layers=3)
    freeze_all_but(model, range(1, 3))
    policy = Policy(model, first_layer=1)
    reference, passes, tokenizer = policy.frozen_copy(), Passes(precision, 64), Digits()
    rollouts = roll_out(model, tokenizer, prompts_of((5, 6), (4,)), [0, 1], answers=5, sampling=Sampling(max_new_tokens=9))  # pyright: ignore
    streams = passes.streams(policy, rollouts, range(2))
    own, other = (passes.over(one, streams, lambda out: out.log_probs_L) for one in (policy, reference))
    assert torch.equal(own, other)
    with computing_in(precision, torch.device("cpu")):
        update = torch.cat([policy(one.batch, one.trunk_TD).log_probs_L for one in streams])
    assert torch.equal(own, update.float())
    assert not any(one is other for one, other in zip(policy.parameters(), reference.parameters(), strict=True) if one.requires_grad)


def test_frozen_layers_computed_once_change_nothing() -> None:
    whole, _ = longer_texts({"layers": "top:2"}, first_layer=0)
    for _, parameter in whole.policy.model.model.layers[0].named_parameters():
        assert parameter.requires_grad
    shared, metrics = longer_texts({}, first_layer=1)
    plain, expected = longer_texts({}, first_layer=1)
    plain.policy.trunk, plain.reference.trunk = None, None
    plain.passes, shared.passes = PASSES, PASSES
    assert [one["kl"] for one in metrics] == [one["kl"] for one in expected]
    one, other = shared.update(), plain.update()
    assert one["kl"] == pytest.approx(other["kl"], abs=1e-6)
    for name, parameter in shared.policy.model.named_parameters():
        torch.testing.assert_close(parameter, plain.policy.model.state_dict()[name], atol=2e-5, rtol=0)


def test_a_step_is_one_of_the_written_out_policy_gradient() -> None:
    settings = {"estimator": "rloo", "aggregate": "sum", "kl": {"coefficient": 0.0}, "max_grad_norm": 0.0, "learning_rate": 0.0}
    loop, _ = longer_texts(settings, updates=0)
    rollouts = loop._sampled()
    rewards = loop.source.rewards(rollouts, Moment(0, 1, list)).sum(dim=(0, 2)).view(4, 3)
    loss = torch.zeros(())
    for group, reward_K in zip(rollouts.encoded, rewards, strict=True):
        for place, conversation in enumerate(group.conversations):
            others = [float(reward_K[other]) for other in range(3) if other != place]
            start = group.answer_starts[place]
            log_probs = loop.policy.model(torch.tensor([conversation])).logits[0, start - 1 : -1].log_softmax(-1)
            chosen = log_probs.gather(1, torch.tensor(conversation[start:])[:, None]).sum()
            loss = loss - (float(reward_K[place]) - sum(others) / 2) * chosen / 12
    expected = torch.autograd.grad(loss, list(loop.policy.model.parameters()))
    found: list[torch.Tensor] = []
    loop.optimizer.zero_grad = lambda: found.extend(one.grad.clone() for one in loop.policy.model.parameters() if one.grad is not None)
    loop.update()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_large_groups_are_cut_and_nothing_changes() -> None:
    whole, _ = longer_texts({"estimator": "ppo"})
    cut, metrics = longer_texts({"estimator": "ppo"}, passes=Passes("fp32", 8))
    rollouts = cut._sampled()
    streams = [stream for groups in cut._minibatches() for stream in cut.passes.streams(cut.policy, rollouts, groups)]
    assert len(streams) > len(rollouts.encoded)
    assert [row for stream in streams for row in range(stream.rows.start, stream.rows.stop)] == list(range(12))
    for one, other in zip(cut.policy.parameters(), whole.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert abs(metrics[-1]["sampler_gap"]) < 1e-4


def test_the_exact_divergence_is_the_mean_of_its_estimates() -> None:
    policy, reference = Policy(language_model(seed=0)), Policy(language_model(seed=3))
    tokenizer: Any = Digits()
    prompts = prompts_of((5, 6))
    rollouts = roll_out(policy.model, tokenizer, prompts, [0], answers=600, sampling=Sampling(max_new_tokens=1))
    (stream,) = Passes("fp32", 10**6).streams(policy, rollouts, range(1))
    exact, entropy = divergence(policy, reference, stream.batch)
    own, other = (PASSES.over(one, [stream], lambda out: out.log_probs_L) for one in (policy, reference))
    assert exact.std() < 1e-5
    assert (own - other).mean().item() == pytest.approx(exact[0].item(), abs=4 * (own - other).std().item() / 600**0.5)
    assert (-own).mean().item() == pytest.approx(entropy[0].item(), abs=4 * own.std().item() / 600**0.5)
    assert divergence(policy, policy, stream.batch)[0].abs().max() == 0


def test_divergences_of_an_evaluation_are_sums_over_the_answer_s_own_tokens() -> None:
    """By the stock forward of each answer alone: the end token counts, the prompt and the other rows of the batch do not."""
    policy, reference = Policy(language_model(seed=0)), Policy(language_model(seed=3))
    tokenizer: Any = Digits()
    prompts = prompts_of((5, 6), (7, 8, 9, 10, 11))
    rows = evaluate_policy(
        policy, reference, policy.sampler("fp32"), tokenizer, prompts, {}, answers=6, sampling=Sampling(max_new_tokens=9, seed=2),
        passes=PASSES, exact=True, step=0, steps=1,
    )  # fmt: skip
    lengths = set()
    for prompt, row in zip(prompts, rows, strict=True):
        for place, text in enumerate(row["answers"]):
            tokens = [int(word) for word in text.split()] + [1] * row["finished"][place]
            lengths.add(len(tokens))
            ids = torch.tensor([[*prompt.token_ids, *tokens]])
            with torch.no_grad():
                own, other = (
                    torch.log_softmax(one.model(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1].double(), dim=-1)
                    for one in (policy, reference)
                )
            ratio = (own - other).gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert row["tokens"][place] == len(tokens)
            assert row["kl"][place] == pytest.approx(ratio.sum().item(), abs=1e-4)
            assert row["kl_k3"][place] == pytest.approx((torch.exp(-ratio) - 1 + ratio).sum().item(), rel=1e-3, abs=1e-4)
            assert row["kl_exact"][place] == pytest.approx((own.exp() * (own - other)).sum().item(), rel=1e-3, abs=1e-4)
    assert len(lengths) > 3


def test_every_pass_over_a_step_s_answers_compares_with_who_sampled_them() -> None:
    """Were the old log-probabilities read anew, no ratio of the second pass would be far enough from 1 to be clipped."""
    settings = {"estimator": "rloo", "learning_rate": 0.05, "clip": 0.05}
    clipped = [longer_texts({**settings, "epochs": epochs}, updates=1)[1][0]["clipped"] for epochs in (1, 2)]
    assert clipped[0] == 0 < clipped[1]


def test_an_ensemble_judges_a_policy_as_it_judges_a_pool() -> None:
    """Uncertainty-weighted, member by member in its unit: the same program rewards answers here and picks them in best of n."""
    members = {"length": Lengths(), "last": ByLastToken()}
    ensemble = Ensemble(members, {"length": Scale(3.0, 2.0), "last": Scale(5.0, 3.0)}, Combine(combination="uncertainty", penalty=0.7))
    source = ScoredAnswers({"reward": ensemble}, {"reward": Scale(0.0, 1.0)})
    tokenizer: Any = Digits()
    rollouts = roll_out(language_model(), tokenizer, prompts_of((5, 6), (7,)), [0, 1], answers=5, sampling=Sampling(max_new_tokens=6))
    found_B = source.rewards(rollouts, Moment(0, 1, list))[0].sum(dim=1)
    table_MB = torch.tensor([[value for row in one.score(rollouts.groups) for value in row] for one in members.values()])
    table_MB = (table_MB - torch.tensor([[3.0], [5.0]])) / torch.tensor([[2.0], [3.0]])
    torch.testing.assert_close(found_B.double(), (table_MB.mean(0) - 0.7 * table_MB.var(0, unbiased=False)).double(), atol=1e-5, rtol=1e-5)
    assert table_MB.var(0).max() > 0.1


class ByLastToken:
    """Rewards an answer by the number that it ends with."""

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(float((text.split() or ["0"])[-1]) for text in group.answer_texts) for group in groups]


class Constant:
    """Two streams: one says nothing, one rewards long answers; it learns how often it was asked."""

    names = ("nothing", "length")

    def __init__(self, *, reads_states: bool) -> None:
        self.reads_states = reads_states
        self.asked = 0
        self.widths: list[tuple[int, ...]] = []

    def rewards(self, rollouts: Rollouts, moment: Moment) -> torch.Tensor:
        states = moment.policy_states()
        self.widths = [tuple(one.shape) for one in states]
        conversations = [len(tokens) for group in rollouts.encoded for tokens in group.conversations]
        assert [len(one) for one in states] == conversations
        table = rollouts.mask_BT.float()
        return torch.stack((0 * table, table))

    def weights(self) -> Sequence[float]:
        return (5.0, 1.0)

    def learn(self, rollouts: Rollouts, rewards_SBT: torch.Tensor, moment: Moment) -> dict[str, float]:
        self.asked += 1
        return {"asked": float(self.asked)}

    def state(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state(self, state: Any) -> None:
        self.asked = state["asked"]


@pytest.mark.parametrize("reads_states", [True, False])
def test_streams_of_token_rewards_see_the_policy_and_learn(reads_states: bool) -> None:
    model, source = language_model(words=40), Constant(reads_states=reads_states)
    settings = OnPolicy(estimator="ppo", max_new_tokens=6, prompts_per_step=2, answers=3, steps=12, learning_rate=3e-3)
    loop = loop_of(model, source, settings, prompts_of((5, 6), (7, 8, 9)))
    metrics = [loop.update() for _ in range(12)]
    assert loop.policy.values is not None
    assert loop.policy.values.out_features == 3
    assert {width for _, width in source.widths} == {32}
    assert metrics[-1]["asked"] == 12
    assert metrics[0]["reward/nothing"] == 0
    assert metrics[0]["reward/length"] == pytest.approx(metrics[0]["answer_tokens"])
    assert metrics[-1]["value_loss"] < metrics[0]["value_loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts_per_step": 6}, "Got 5 prompts, expected at least prompts_per_step=6"),
        ({"whole_answers": True, "aggregate": "sum"}, "aggregate=sum with one ratio for a whole answer"),
        ({"whole_answers": True, "aggregate": "answer", "estimator": "ppo"}, "whole_answers with advantages of single tokens"),
        ({"answers": 1}, "answers=1 with estimator=rloo: expected 2 or more"),
        ({"kl": {"place": "loss", "estimate": "k1"}}, "kl.estimate=k1 in the loss, expected k2 or k3"),
        ({"kl": {"target": 1.0, "coefficient": 0.0}}, "kl.target with kl.coefficient=0"),
        ({"lora": {"lora_dropout": 0.1}}, "lora.lora_dropout=0.1, expected none"),
        ({"minibatches": 3}, "prompts_per_step=4 with 3 minibatches on 1 processes: expected a multiple"),
    ],
)
def test_a_step_that_cannot_be_made_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        longer_texts(settings)


@pytest.mark.parametrize(("scores", "message"), [([(1.0,)], "gave .* scores, expected"), ([(1.0, float("nan"), 2.0)] * 4, "gave answer 1")])
def test_a_scorer_that_fails_is_named(scores: list[tuple[float, ...]], message: str) -> None:
    loop, _ = longer_texts({}, updates=0)
    loop.source.scorers["length"].score = lambda groups, context=None: scores
    with pytest.raises(EvaluationError, match=f"length {message}"):
        loop.update()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    loop, _ = longer_texts({"reward_limit": 0.0}, updates=0)
    loop.source.cut_penalty = float("inf")
    with pytest.raises(TrainingError, match=r"loss of step 1 is|gradient of step 1"):
        loop.update()


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_spoilt() -> None:
    loop, _ = longer_texts({}, updates=0)
    before = [one.detach().clone() for one in loop.policy.parameters()]
    loop.accelerator.clip_grad_norm_ = lambda *_: torch.tensor(float("nan"))  # pyright: ignore
    with pytest.raises(TrainingError, match="gradient of step 1 has length nan"):
        loop.update()
    assert all(torch.equal(one, other) for one, other in zip(before, loop.policy.parameters(), strict=True))


def test_sharded_policies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="a launcher that asks for FSDP, expected DDP or one process"):
        longer_texts({}, updates=0)
