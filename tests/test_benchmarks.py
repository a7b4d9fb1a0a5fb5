from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import experts, methods, policy, r2m, reform, rmb, scoring, serving, step_profile, workload
from rewardproof.models.packed import packed_rewards
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.training.batches import Collator, TrainingSet

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def counted(settings: Upcycle | None) -> tuple[float, float]:
    """FLOPs of one forward pass without attention scores: by formula, and counted by torch."""
    batch = next(Collator(tokens_per_batch=4096, cache=None).streams(workload.ragged_set(2).groups)).batch
    model = workload.random_model(SHAPE)
    if settings is not None:
        upcycle(model, settings)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        packed_rewards(model, batch)
    operators = counter.get_flop_counts()["Global"]
    products = sum(count for operator, count in operators.items() if str(operator).split(".")[1] in {"mm", "addmm"})
    one_segment_each = [one._replace(start=0, end=1, prefix_start=0, prefix_end=0) for one in batch.segments[:1]]
    per_token = experts.forward_flops(SHAPE, one_segment_each, settings) - SHAPE["num_hidden_layers"] * 4 * SHAPE["hidden_size"]
    head = 2 * 2 * SHAPE["hidden_size"] * batch.n_groups
    return per_token * batch.n_tokens + head, products


@pytest.mark.parametrize(
    "settings",
    [None, Upcycle(n_experts=4, n_active=2), Upcycle(n_experts=8, n_active=6), Upcycle(n_experts=4, n_active=3, experts="lora:4")],
    ids=["dense", "N=4 K=2", "N=8 K=6", "delta"],
)
def test_flops_by_formula_are_those_that_torch_counts(settings: Upcycle | None) -> None:
    formula, found = counted(settings)
    assert formula == pytest.approx(found)


def test_attention_flops_count_visible_keys_alone() -> None:
    segments = next(Collator(tokens_per_batch=4096, cache=None).streams(workload.ragged_set(2).groups)).batch.segments
    visible = sum(one.prefix_end - one.prefix_start + place for one in segments for place in range(1, one.end - one.start + 1))
    tokens = sum(one.end - one.start for one in segments)
    single = [one._replace(start=0, end=1, prefix_start=0, prefix_end=0) for one in segments[:1]]
    scores = 4 * SHAPE["hidden_size"] * SHAPE["num_hidden_layers"]
    expected = (experts.forward_flops(SHAPE, single) - scores) * tokens + scores * visible
    assert experts.forward_flops(SHAPE, segments) == pytest.approx(expected)


def test_ragged_pairs_are_seeded_and_of_the_lengths_asked_for() -> None:
    first, again = workload.ragged_set(12), workload.ragged_set(12)
    assert first.groups == again.groups
    longest = max(len(tokens) for entry in first.groups for tokens in entry.group.conversations)
    assert longest <= workload.PROMPT[2] + workload.RESPONSE[2] + 2
    assert all(entry.group.shared >= 16 for entry in first.groups)


def test_every_contender_has_its_turn_in_every_round() -> None:
    order: list[str] = []
    works = {name: lambda name=name: float(len(order.append(name) or order)) for name in "ab"}
    seconds = workload.in_turn(works, rounds=2)
    assert order == ["a", "b", "b", "a"]
    assert workload.ratio(seconds["a"], seconds["b"]) == {"median": 0.917, "range": [0.5, 1.333]}


def test_a_step_of_every_mixture_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "TOP6", SHAPE)
    monkeypatch.setattr(experts, "GROUPS", 2)
    found = experts.compare("fp32", rounds=1)
    assert set(found) == {experts.DENSE, *experts.MIXTURES}
    assert all(found[name]["over_dense_by_flops"]["median"] > 0 for name in experts.MIXTURES)


def test_both_ways_to_score_best_of_n_sets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rmb.contender(SHAPE, workload.word_tokenizer())
    groups = rmb.some_of(workload.ragged_groups(8, answers=3), model, 4)
    found = rmb.compare(groups, model, rounds=1)
    assert (found["prompts"], found["answers"]) == (4, 12)
    assert found["tokens_shared_prompts_once"] < found["tokens"]
    assert found["largest_difference_of_rewards"] < 1e-2 * found["spread_of_rewards"]
    monkeypatch.setattr(rmb, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="not the same work"):
        rmb.compare(groups, model, rounds=1)


def test_scoring_agrees_with_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SMALL", SHAPE)
    groups = workload.ragged_groups(1, answers=3)
    assert max(scoring.compare(groups, "fp32", rounds=1)["largest_difference_of_rewards"].values()) < 2e-4
    monkeypatch.setitem(scoring.TOLERANCE, "fp32", -1.0)
    with pytest.raises(RuntimeError, match="not the same work"):
        scoring.compare(groups, "fp32", rounds=1)


def test_profile_accounts_for_all_of_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step_profile, "TOP6", SHAPE)
    groups = TrainingSet(workload.ragged_set(2).groups)
    found = step_profile.shares(groups, step_profile.MODELS["umm, N=4 K=2"], "fp32", str(tmp_path))
    assert sum(found["share"].values()) == pytest.approx(1, abs=0.01)
    assert {step_profile.FEED_FORWARD, "attention", "dispatch to experts", "optimiser and gradient norm"} <= set(found["share"])


def test_both_searches_write_the_same_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reform, "PROMPTS", 3)
    monkeypatch.setattr(reform, "TOKENS", 4)
    found = reform.compare(SHAPE, rounds=1)
    assert 0 < found["tokens_written"] <= 12
    assert found["times_as_fast"]["median"] > 0
    monkeypatch.setattr(reform, "batched_search", lambda *_: [])
    with pytest.raises(RuntimeError, match="not the same work"):
        reform.compare(SHAPE, rounds=1)


def test_memory_in_a_process_of_its_own() -> None:
    measure = "import torch; from benchmarks.workload import memory_of; print(memory_of(lambda: torch.ones(25_000_000).sum()))"
    printed = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True, cwd=workload.ROOT).stdout
    before, peak = (float(number) for number in re.findall(r"[0-9.]+", printed))
    assert peak >= before + 0.09
    with pytest.raises(RuntimeError, match="no_such_module --memory fp32 failed"):
        workload.memory_apart("benchmarks.no_such_module", "fp32")


def test_results_carry_their_provenance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workload, "ROOT", tmp_path)
    written = json.loads(workload.write("nothing", {"speed": 1}).read_text())
    assert written["provenance"]["versions"]["torch"]


def test_training_benchmark_imports_where_trl_is_installed() -> None:
    pytest.importorskip("trl")
    training = importlib.import_module("benchmarks.training")
    settings = training.shared_settings(32, 16)
    assert settings["optim"] == "adamw_torch"


def test_both_sides_of_direct_alignment_train_on_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    contestants = importlib.import_module("benchmarks.direct_alignment")
    monkeypatch.setattr(contestants, "SMALL", SHAPE)
    contest = contestants.Contest(contestants.small_model, 2, dtype="fp32")
    for row, entry in zip(contest.rows, contest.groups, strict=True):
        for answer, conversation in zip(("chosen", "rejected"), entry.group.conversations, strict=True):
            text = contest.tokenizer.apply_chat_template(row["prompt"] + row[answer], tokenize=False)
            assert contest.tokenizer(text)["input_ids"] == list(conversation)
    contest.work(contestants.OURS, "")()
    assert 0 < contest.losses[contestants.OURS] < 0.6931


def test_shares_of_a_step_add_up() -> None:
    found = policy.shares({"generation": 3.0, "update": 1.5, "all": 5.0})
    assert found == {"generation": 0.6, "update": 0.3, "outside": pytest.approx(0.1)}


def test_steps_with_and_without_feedback_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROMPTS": 2, "ANSWERS": 3, "TOKENS": 3, "WORDS": 4}.items():
        monkeypatch.setattr(r2m, name, value)
    found = r2m.compare(SHAPE, rounds=1)
    assert set(found["over_rloo"]) == set(r2m.FEEDBACK)
    assert all(0 < one["median"] < 1 for one in found["share_of_learning"].values())


def test_runs_of_all_training_methods_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "PER_STEP", 4)
    found = methods.compare(methods.Contest(tmp_path, SHAPE, pairs=8), rounds=1)
    flops = {name: entry["flop_ratio"] for name, entry in found.items()}
    assert {*methods.RECIPES} < {*found}
    assert flops["dense"] == flops["secrets_flip_margin"] == flops["bsr"] == 1  # four pairs are one stream, which BSR reads once
    assert flops["haf"] > flops["grm_bnrm"] > flops["bnrm"] > 1
    assert flops["dmoerm, expert"] < 1
    assert found["dense"]["over_dense_by_flops"]["median"] == 1


def test_good_words_are_counted() -> None:
    assert [policy.share(text) for text in ("w4 w8 w5 w3", "", "w7")] == [0.5, 0.0, 0.0]


@pytest.mark.slow
def test_servers_are_compared() -> None:
    found = serving.compare(SHAPE, serving.workload(prompts=2, answers=4, prompt=40, answer=8), clients=4, rounds=2)
    assert set(found["answers_per_second"]) == {serving.OFFLINE, serving.OURS, serving.NAIVE}
    assert max(found["largest_difference_of_rewards"].values()) <= serving.TOLERANCE
    assert found["milliseconds"][serving.OURS]["p50"] <= found["milliseconds"][serving.OURS]["p99"]


def test_requests_of_the_server_are_one_an_answer() -> None:
    asked = serving.requests_of(serving.workload(prompts=2, answers=3, prompt=5, answer=2))
    assert [len(one["query"]) for one in asked] == [1] * 6
    assert len({one["query"][0][:20] for one in asked}) == 2
