"""`merge RM LM OUT method=domain`: what is delivered, two vocabularies, and a weight that is chosen on validation pairs alone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from rewardproof.artifacts import Report
from rewardproof.data import Pair, read_groups
from rewardproof.data.encoding import EncodedGroup
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model
from rewardproof.stages.domain import SWEEP
from rewardproof.stages.domain_choice import _in_order, _prompt
from rewardproof.stages.evaluate import Evaluate
from rewardproof.stages.evaluate import run as evaluate
from rewardproof.stages.merge import MergeModels, run
from rewardproof.training.batches import keep_paired

OWN = "model.embed_tokens.weight"
FEW = (0.0, 0.25, 0.5, 0.75, 1.0)


def save_causal(tiny: ModuleType, folder: Path, *, words: tuple[str, ...] | None = None, change: Callable[[Any], object] = id) -> Path:
    model = tiny.causal("llama", seed=1)
    tokenizer = tiny.word_tokenizer(words or tiny.WORDS)
    if words:
        generator = torch.Generator().manual_seed(2)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(torch.randn(len(tokenizer), 32, generator=generator))
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' <eos> ' }}{% endfor %}"
    change(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm_dir(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the reward model's shape, with a chat template of its own."""
    return save_causal(tiny, tmp_path_factory.mktemp("lm") / "llama2-math")


OTHER_WORDS = (*(f"w{number}" for number in range(40, 20, -1)), "x1", "x2", "x3", *(f"w{number}" for number in range(0, 20)))
"""A vocabulary of 40 common words under other ids and three of its own."""


@pytest.fixture(scope="module")
def other_dir(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tiny, tmp_path_factory.mktemp("lm") / "other", words=OTHER_WORDS)


def merged(reward: Path, domain: Path, out: Path, **settings: Any) -> Report:
    config = {"models": (str(reward), str(domain)), "method": "domain", "compute": {"precision": "fp32"}}
    return run(MergeModels(**(config | settings)), out)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_weight_zero_delivers_the_reward_model_exactly(reward_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    report = merged(reward_dir, lm_dir, tmp_path / "out", weight=0)
    found = weights(report.path / "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(reward_dir).items())
    assert report.results["domain"]["validation"] is None


def test_weight_one_delivers_the_language_models_body_with_the_reward_head(reward_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    found, body = weights(merged(reward_dir, lm_dir, tmp_path / "out", weight=1).path / "model"), weights(lm_dir)
    assert all(torch.equal(tensor, body[name]) for name, tensor in found.items() if name != "score.weight")
    assert torch.equal(found["score.weight"], weights(reward_dir)["score.weight"])
    assert found.keys() == weights(reward_dir).keys(), "no trace of the language model's head"


def test_every_entry_between_is_reported_and_stock_transformers_loads_it(reward_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    report = merged(reward_dir, lm_dir, tmp_path / "out", weight=0.3)
    ours, theirs = weights(reward_dir), weights(lm_dir)
    model = AutoModelForSequenceClassification.from_pretrained(report.path / "model")
    for name, tensor in model.state_dict().items():
        expected = ours[name] if name == "score.weight" else 0.7 * ours[name] + 0.3 * theirs[name]
        torch.testing.assert_close(tensor, expected, msg=name)
    summary = report.results["domain"]
    assert (summary["averaged"], summary["kept"], summary["dropped"]) == (len(ours) - 1, ["score.weight"], ["lm_head.weight"])
    assert (summary["weight"], summary["reward_weight"], summary["chosen"]) == (0.3, 0.7, False)
    assert summary["likeness"]["cosine"] < 0.5, "two models without a common start"
    assert report.headline == "language model of the domain at weight 0.3 (given)"
    page = (report.path / "report.html").read_text()
    assert "1: lm_head.weight" in page
    assert page.count("<figure") == 0


def test_models_without_a_common_start_are_warned_of(
    reward_dir: Path, lm_dir: Path, base_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merged(reward_dir, lm_dir, tmp_path / "out", weight=0.3)
    assert "the cosine of its weights and the reward model's is" in caplog.text
    caplog.clear()
    report = merged(reward_dir, base_dir, tmp_path / "same", weight=0.3)
    assert "cosine" not in caplog.text
    assert report.results["domain"]["likeness"] == pytest.approx({"cosine": 1.0, "relative_distance": 0.0})


def test_independent_weights_need_not_sum_to_one(reward_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    found = weights(merged(reward_dir, lm_dir, tmp_path / "out", weight=0.3, reward_weight=1.0).path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], weights(reward_dir)[name] + 0.3 * weights(lm_dir)[name])


def test_the_reward_models_tokens_are_all_kept_and_its_tokenizer_stays(reward_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    report = merged(reward_dir, other_dir, tmp_path / "out", weight=0.5)
    found, ours, theirs = weights(report.path / "model")[OWN], weights(reward_dir)[OWN], weights(other_dir)[OWN]
    own, other = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (reward_dir, other_dir))
    for token, row in own.items():
        expected = 0.5 * ours[row] + 0.5 * theirs[other[token]] if token in other else ours[row]
        torch.testing.assert_close(found[row], expected, msg=token)
    read = AutoTokenizer.from_pretrained(report.path / "model")
    assert read.get_vocab() == own
    assert read.chat_template == AutoTokenizer.from_pretrained(reward_dir).chat_template, "never the language model's"
    counts = report.results["domain"]["tokens"]
    assert counts == {"common": 44, "moved": 40, "reward_only": 52, "domain_only": 3, "added": 0}


def test_the_language_models_own_tokens_can_be_added_with_their_rows(reward_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    report = merged(reward_dir, other_dir, tmp_path / "out", weight=0.5, domain_tokens="add")
    read = AutoTokenizer.from_pretrained(report.path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(report.path / "model")
    other = AutoTokenizer.from_pretrained(other_dir).get_vocab()
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == len(read) == model.config.vocab_size == 99
    for token in ("x1", "x2", "x3"):
        assert read(f"w1 {token}")["input_ids"][1] == read.get_vocab()[token], "the reward model reads it now"
        assert torch.equal(rows[read.get_vocab()[token]], weights(other_dir)[OWN][other[token]])
    assert report.results["domain"]["tokens"]["added"] == 3
    without = merged(reward_dir, other_dir, tmp_path / "left", weight=0.5)
    assert torch.equal(rows[:96], weights(without.path / "model")[OWN])


def test_special_tokens_that_are_added_stay_special(reward_dir: Path, tiny: ModuleType, tmp_path: Path) -> None:
    folder = save_causal(tiny, tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    model = tiny.causal("llama", seed=1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = merged(reward_dir, folder, tmp_path / "out", weight=0.5, domain_tokens="add")
    read = AutoTokenizer.from_pretrained(report.path / "model")
    assert read.added_tokens_decoder[read.get_vocab()["<think>"]].special
    assert read.decode(read("w1 <think> w2")["input_ids"], skip_special_tokens=True).split() == ["w1", "w2"]


def test_a_tied_output_layer_leaves_the_reward_models_policy(reward_dir: Path, tiny: ModuleType, tmp_path: Path) -> None:
    def tie(model: PreTrainedModel) -> None:
        model.config.tie_word_embeddings = True
        model.tie_weights()

    folder = save_causal(tiny, tmp_path / "tied", change=tie)
    report = merged(reward_dir, folder, tmp_path / "out", weight=1)
    assert json.loads((report.path / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    assert report.results["domain"]["differing"] == {"tie_word_embeddings": [False, True]}
    assert torch.equal(weights(report.path / "model")[OWN], weights(folder)[OWN])
    assert "tie_word_embeddings: False and True" in (report.path / "report.html").read_text()


@pytest.fixture(scope="module")
def chosen(reward_dir: Path, lm_dir: Path, toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return merged(reward_dir, lm_dir, tmp_path_factory.mktemp("chosen") / "out", weights=FEW, data=(str(toy_file),))


def test_the_curve_is_that_of_evaluating_each_merge(chosen: Report, reward_dir: Path, lm_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    curve = chosen.results["domain"]["validation"]["curve"]
    assert [entry["weight"] for entry in curve] == list(FEW)
    for entry in curve:
        report = merged(reward_dir, lm_dir, tmp_path / str(entry["weight"]), weight=entry["weight"])
        judged, _ = evaluate(Evaluate(model=str(report.path / "model"), data=(str(toy_file),), precision="fp32"))
        accuracy = judged.results["accuracy"][str(toy_file)]
        assert entry["accuracy"] == accuracy["overall"]
        assert entry["reward_mean"] == pytest.approx(accuracy["reward_mean"], abs=1e-5)
        assert entry["reward_std"] == pytest.approx(accuracy["reward_std"], abs=1e-5)


def test_rankings_and_repeated_prompts_count_as_evaluate_counts_them(
    reward_dir: Path, lm_dir: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    draw = random.Random(3)

    def row(number: int) -> dict[str, Any]:
        answers = [" ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 5))) for _ in range(4)]
        return {"prompt": f"w{number // 2} w{number // 2 + 1}", "answers": answers, "scores": [draw.randrange(3) for _ in answers]}

    file = str(write_jsonl(tmp_path / "rankings.jsonl", [row(number) for number in range(60)]))
    report = merged(reward_dir, lm_dir, tmp_path / "out", weights="0.5", data=(file,))
    judged, _ = evaluate(Evaluate(model=str(report.path / "model"), data=(file,), precision="fp32"))
    expected, found = judged.results["accuracy"][file], report.results["domain"]["validation"]
    assert found["accuracy"] == pytest.approx(expected["overall"], rel=1e-12)
    assert (found["pairs"], found["groups"]) == (expected["n_pairs"], expected["n_groups"])
    assert found["prompts"] == expected["overall"]["n_clusters"] < found["groups"]


def test_a_tie_is_half_a_pair_and_text_without_a_prompt_stands_for_itself() -> None:
    entry = keep_paired(EncodedGroup(((5, 6, 7), (5, 8), (5, 9)), 1, (0, 0, 0), 0), [Pair(0, 1, None), Pair(0, 2, None)])
    assert [_in_order(entry, rewards) for rewards in ((1, 1, 0), (0, 1, 1), (2, 1, 0))] == [0.75, 0.0, 1.0]
    assert _prompt(entry.group) == (5,)
    assert _prompt(EncodedGroup(((5, 6), (7, 8)), 0, (0, 0), 0)) == (5, 6)
    assert _prompt(EncodedGroup(((5, 6, 7), (5, 6, 8)), 2, (1, 1), 0)) == (5,)


def test_the_best_weight_is_delivered_and_the_smaller_of_equals(chosen: Report, reward_dir: Path, lm_dir: Path, tmp_path: Path) -> None:
    summary = chosen.results["domain"]
    curve = {entry["weight"]: entry["accuracy"]["estimate"] for entry in summary["validation"]["curve"]}
    assert len(set(curve.values())) > 2, "weights that differ in accuracy"
    assert summary["weight"] == min(weight for weight in FEW if curve[weight] == max(curve.values()))
    assert summary["chosen"]
    again = merged(reward_dir, lm_dir, tmp_path / "out", weight=summary["weight"])
    for name, tensor in weights(again.path / "model").items():
        assert torch.equal(tensor, weights(chosen.path / "model")[name])
    gain = summary["validation"]["gain"]
    assert gain["estimate"] == pytest.approx(max(curve.values()) - curve[0.0])
    assert gain["low"] <= gain["estimate"] <= gain["high"]


def test_equal_models_tie_and_the_reward_model_wins(reward_dir: Path, base_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    report = merged(reward_dir, base_dir, tmp_path / "out", data=(str(toy_file),), weights="1,0.5,0.25")
    assert report.results["domain"]["weight"] == 0.25
    assert report.results["domain"]["validation"]["gain"] is None, "the reward model alone was not tried"


def test_the_report_shows_the_curve(chosen: Report) -> None:
    summary = chosen.results["domain"]
    assert f"at weight {summary['weight']:g} (chosen): validation accuracy" in chosen.headline
    assert "on 160 pairs" in chosen.headline
    assert (chosen.path / "figures" / "domain-weight.svg").is_file()
    page = (chosen.path / "report.html").read_text()
    assert page.count("<figure") == 1
    assert "rewards of two weights are never compared" in page
    assert chosen.results["rows"]["validation"] == 160


def test_the_scale_of_rewards_is_that_of_the_delivered_model_alone(chosen: Report, toy_file: Path) -> None:
    config = json.loads((chosen.path / "model" / "config.json").read_text())
    rewards = np.concatenate(RewardModel.load(chosen.path / "model").score(read_groups(str(toy_file)).groups))
    assert config["mean"] == pytest.approx(rewards.mean(), abs=1e-5)
    assert config["std"] == pytest.approx(rewards.std(), rel=1e-4)


def test_a_stale_scale_is_dropped_and_weights_are_saved_as_asked(tiny: ModuleType, lm_dir: Path, tmp_path: Path) -> None:
    model = tiny.classifier("llama")
    model.config.mean, model.config.std = 123.0, 456.0
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "rm")
    report = merged(path, lm_dir, tmp_path / "out", weight=0.5, compute={"save_dtype": "bf16"})
    config = json.loads((report.path / "model" / "config.json").read_text())
    assert {"mean", "std"} & config.keys() == set()
    assert {tensor.dtype for tensor in weights(report.path / "model").values()} == {torch.bfloat16}


def test_sharing_equal_layers_changes_nothing_in_the_curve(reward_dir: Path, tiny: ModuleType, toy_file: Path, tmp_path: Path) -> None:
    def upper(model: PreTrainedModel) -> None:
        model.load_state_dict(tiny.causal("llama", seed=0).state_dict())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".layers.2." in name:
                    parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))

    folder = save_causal(tiny, tmp_path / "upper", change=upper)
    fp32 = {"precision": "fp32"}
    shared = merged(reward_dir, folder, tmp_path / "shared", data=(str(toy_file),), weights=FEW, compute=fp32)
    whole = merged(reward_dir, folder, tmp_path / "whole", data=(str(toy_file),), weights=FEW, compute=fp32 | {"trunk_cache_gb": 0})
    left, right = (report.results["domain"]["validation"]["curve"] for report in (shared, whole))
    assert len({entry["accuracy"]["estimate"] for entry in left}) > 1
    for one, other in zip(left, right, strict=True):
        assert one["reward_mean"] == pytest.approx(other["reward_mean"], abs=1e-5)
        assert one["accuracy"] == other["accuracy"]


def test_the_path_of_a_model_says_nothing_about_its_template(chosen: Report, reward_dir: Path) -> None:
    ours, read = (AutoTokenizer.from_pretrained(folder) for folder in (reward_dir, chosen.path / "model"))
    turn = [{"role": "user", "content": "w1"}]
    assert chosen.results["models"][1].endswith("llama2-math")
    assert read.apply_chat_template(turn, tokenize=False) == ours.apply_chat_template(turn, tokenize=False)


def test_the_published_sweep_is_the_default() -> None:
    assert MergeModels(models=("a", "b")).weights == SWEEP == tuple(round(0.05 * number, 2) for number in range(21))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("a/b",)}, "Got 1 models for method=domain, expected two: a reward model and the language model of a domain"),
        ({}, "Missing data=: λ is chosen by accuracy on validation preferences .* or write weight=0.3"),
        ({"weights": "0,1.5", "data": ("v.jsonl",)}, r"Got weights=0\.0,1\.5, expected one or more different numbers from 0"),
        ({"weights": "0,0", "data": ("v.jsonl",)}, r"Got weights=0\.0,0\.0, expected one or more different"),
        ({"weights": "", "data": ("v.jsonl",)}, "Got weights=, expected one or more different"),
        ({"weights": "0,1", "weight": 0.5}, r"Got weight=0\.5 and weights=0\.0,1\.0, expected one of them.*Drop one"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(MergeModels(**({"models": ("a/b", "c/d"), "method": "domain"} | settings)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_merged_are_refused(reward_dir: Path, tiny: ModuleType, tmp_path: Path) -> None:
    from rewardproof.models.upcycling import Upcycle, upcycle

    mixture = tiny.classifier("llama")
    upcycle(mixture, Upcycle(n_experts=4, n_active=3))
    moe = save_reward_model(mixture, tiny.word_tokenizer(), tmp_path / "moe")
    lm = save_causal(tiny, tmp_path / "lm")

    def deeper(model: PreTrainedModel) -> None:
        model.model.layers.append(copy.deepcopy(model.model.layers[0]))
        model.config.num_hidden_layers += 1

    for models, message in (
        ((moe, lm), "is a mixture, expected a dense model for method=domain; merge its experts first"),
        ((lm, reward_dir), "it has no reward head"),
        ((reward_dir, reward_dir), "is a reward model, expected a language model"),
        ((reward_dir, save_causal(tiny, tmp_path / "deep", change=deeper)), "Got 9 entries that only one of the two models has"),
    ):
        with pytest.raises(ModelError, match=message):
            merged(*models, tmp_path / "out", weight=0.5)
    assert not (tmp_path / "out").exists()
