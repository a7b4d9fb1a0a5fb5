"""What the phases of DMoERM train on, and what each of them changes."""

from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewardproof.config import parse
from rewardproof.data.capability_labels import Labels, point_pairs
from rewardproof.data.encoding import encode_queries
from rewardproof.data.group import Group, Message
from rewardproof.data.packing import pack
from rewardproof.errors import ConfigError, DataError
from rewardproof.evaluation import pair_accuracy
from rewardproof.losses import bradley_terry
from rewardproof.models.double_mixture import (
    CapabilityExperts,
    add_experts,
    category_logits,
    expert_parameters,
    put_category_head,
    switch_to,
)
from rewardproof.models.heads import Head
from rewardproof.models.packed import packed_rewards
from rewardproof.training.batches import Collator, TrainingSet
from rewardproof.training.double_mixture import (
    Capabilities,
    QueryLabels,
    category_sets,
    enough,
    n_pairs,
    part_of,
    query_set,
)
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss
from rewardproof.training.preparation import Prepared, Read, Sources, prepare
from rewardproof.training.trainer import PackedRewardModule

CATEGORIES = ("blue", "red")


def rows(count: int) -> list[dict[str, Any]]:
    """Rankings of three answers to prompts of two categories, judged at two points; a prompt in five is there twice."""
    draw = random.Random(0)

    def words(first: int, last: int, n: int) -> str:
        return " ".join(f"w{draw.randint(first, last)}" for _ in range(n))

    found: list[dict[str, Any]] = []
    for number in range(count):
        name = CATEGORIES[number % 2]
        prompt = found[-2]["prompt"] if number % 10 > 7 else words(40 if name == "red" else 60, 55 if name == "red" else 75, 6)
        caps = {"humour": [draw.random() for _ in range(3)], "care": [draw.choice([0.0, 1.0]) for _ in range(3)]}
        scores = [one + other for one, other in zip(caps["humour"], caps["care"], strict=True)]
        found.append({"prompt": prompt, "answers": [words(0, 30, 4) for _ in range(3)], "scores": scores, "category": name, "caps": caps})
    return found


@pytest.fixture(scope="module")
def prepared(tiny: ModuleType, write_jsonl, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    file = write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows(200))
    sources = Sources((str(file),), (), 0.2, 0.0, Read(), 64, queries=True)
    return prepare(sources, tiny.word_tokenizer())


def labelled(prepared: Prepared) -> tuple[list[str], list[Any]]:
    categories = [group.category for group in prepared.training]
    points, _ = point_pairs(prepared.training, categories, Labels(capabilities="caps"))
    return categories, [entry.pairs for entry in points]


def prompts(found: TrainingSet, prepared: Prepared) -> set[str]:
    return {prepared.training[entry.group.index].prompt_key for entry in found.groups}


@pytest.mark.parametrize("split_seed", [0, 1])
def test_acceptance_5_and_defect_2_the_parts_are_disjoint_seeded_and_larger_on_the_training_side(
    prepared: Prepared, split_seed: int
) -> None:
    categories, points = labelled(prepared)
    settings = Capabilities(validation=0.2)
    every: dict[str, set[str]] = {}
    for name in CATEGORIES:
        sets = category_sets(prepared, categories, points, settings, category=name, split_seed=split_seed)
        parts = {part: prompts(found, prepared) for part, found in sets.human.items()}
        assert sum(map(len, parts.values())) == len(set().union(*parts.values())), "no prompt is in two parts"
        assert len(parts["base"]) + len(parts["mix"]) > 2 * len(parts["validation"]) > 0
        assert sum(map(len, sets.human.values())) == sum(categories[entry.group.index] == name for entry in prepared.train.groups)
        every |= {f"{name} {part}": found for part, found in parts.items()}
        assert prompts(sets.both, prepared) == parts["base"] | parts["mix"]
    held_out = {group.prompt_key for group in prepared.held_out}
    assert not held_out & set().union(*every.values())
    many = [Group((Message("user", str(number)),), ()) for number in range(3000)]
    share = Counter(part_of(group, settings, split_seed=split_seed) for group in many)
    assert share["base"] / 3000 == pytest.approx(0.8 * 0.6, abs=0.04)
    assert share["mix"] / 3000 == pytest.approx(0.8 * 0.4, abs=0.04)
    again = category_sets(prepared, categories, points, settings, category="red", split_seed=split_seed)
    assert prompts(again.human["base"], prepared) == every["red base"]
    other = category_sets(prepared, categories, points, settings, category="red", split_seed=split_seed + 7)
    assert prompts(other.human["base"], prepared) != every["red base"]


def test_experts_learn_the_pairs_of_their_own_point_on_prompts_that_the_network_is_not_shown(prepared: Prepared) -> None:
    categories, points = labelled(prepared)
    for where, taught in (("base", {"base"}), ("all", {"base", "mix"})):
        settings = Capabilities(points_on=where)
        sets = category_sets(prepared, categories, points, settings, category="blue", split_seed=0)
        assert list(sets.points) == ["care", "humour"]
        for point, found in sets.points.items():
            parts = {part_of(prepared.training[entry.group.index], settings, split_seed=0) for entry in found.groups}
            assert parts == taught
            for entry in found.groups:
                group = prepared.training[entry.group.index]
                scores = group.meta["caps"][point]
                texts = list(group.answer_texts)
                for pair in entry.pairs:
                    winner, loser = (_text_of(entry.group.conversations[place]) for place in pair[:2])
                    assert scores[texts.index(winner)] > scores[texts.index(loser)]
        validated = {
            part_of(prepared.training[entry.group.index], settings, split_seed=0) for entry in sets.point_validation["humour"].groups
        }
        assert validated == {"validation"}


def _text_of(tokens: tuple[int, ...]) -> str:
    """The last message of a conversation of the tiny tokenizer: `<bar> words <eos>`."""
    inside = tokens[:-1]
    start = len(inside) - inside[::-1].index(3)
    return " ".join(f"w{token - 4}" for token in inside[start:])


def test_the_router_reads_every_prompt_once_and_the_users_words_alone(prepared: Prepared, tiny: ModuleType) -> None:
    wanted = [group.category == "red" for group in prepared.training]
    found = query_set(prepared.training, prepared.training_tokens, wanted)
    keys = [prepared.training[entry.group.index].prompt_key for entry in found.groups]
    assert len(keys) == len(set(keys)) == len({group.prompt_key for group in prepared.training if group.category == "red"})
    for entry in found.groups:
        assert entry.pairs == ()
        assert entry.group.conversations == (encode_queries(prepared.training[entry.group.index], tiny.word_tokenizer()),)
    short = query_set(prepared.training, prepared.training_tokens, wanted, limit=3)
    assert [entry.group.conversations[0] for entry in short.groups] == [entry.group.conversations[0][-3:] for entry in found.groups]


def test_a_group_without_a_prompt_cannot_be_routed(prepared: Prepared) -> None:
    from dataclasses import replace

    bare = [replace(prepared.training_tokens[0], queries=())]
    with pytest.raises(DataError, match="got a group without a prompt, expected what the user said"):
        query_set(prepared.training, bare, [True] * len(prepared.training))


def test_too_few_pairs_stop_or_fall_away(prepared: Prepared) -> None:
    categories, points = labelled(prepared)
    points = [{name: pairs for name, pairs in entry.items() if name != "humour" or index < 20} for index, entry in enumerate(points)]
    sets = category_sets(prepared, categories, points, Capabilities(), category="red", split_seed=0)
    least = n_pairs(sets.points["humour"]) + 1
    with pytest.raises(DataError, match=rf"Category 'red': got pairs for humour {least - 1}; expected {least} or more"):
        enough(sets, "red", Capabilities(min_pairs=least))
    assert enough(sets, "red", Capabilities(min_pairs=least, small="fallback")) == ("care",)
    assert enough(sets, "red", Capabilities(min_pairs=10_000, small="fallback")) == ()
    none = category_sets(prepared, categories, [{}] * len(points), Capabilities(), category="red", split_seed=0)
    with pytest.raises(DataError, match="got pairs for capability points 0"):
        enough(none, "red", Capabilities())


def test_shares_that_leave_nothing_are_refused() -> None:
    for settings, key in (
        ({"base_share": 1.0}, "base_share"),
        ({"validation": 0.5}, "validation"),
        ({"trainer": {"phase4": {}}}, "phase4"),
    ):
        with pytest.raises(ConfigError, match=key):
            parse(Capabilities, settings)


def test_acceptance_4_and_defect_3_lower_ranks_are_better_in_training_and_in_evaluation(
    write_jsonl, tiny: ModuleType, tmp_path: Path
) -> None:
    ranked = [{"prompt": f"w{number}", "responses": ["w1", "w2", "w3"], "ranks": [2, 1, 3]} for number in range(20)]
    file = write_jsonl(tmp_path / "ranked.jsonl", ranked)
    found = prepare(Sources((str(file),), (), 0.3, 0.0, Read(), 64), tiny.word_tokenizer())
    for entry in found.train.groups:
        assert {pair[:2] for pair in entry.pairs} == {(1, 0), (1, 2), (0, 2)}
    for sign, accuracy in ((-1, 1.0), (1, 0.0)):
        rewards = [[float(sign * rank) for rank in (2, 1, 3)]] * len(found.held_out)
        assert pair_accuracy(found.held_out, rewards).overall.estimate == accuracy


def run(model: Any, train: TrainingSet, folder: Path, **changes: Any) -> dict[str, Any]:
    """One phase; gives the last records of the log."""
    records: dict[str, Any] = {}
    trainer = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1, "save_strategy": "no"}
    settings: dict[str, Any] = {
        "model": model, "train": train, "held_out": None, "layers": range(1, 3), "folder": folder, "seed": 0,
        "trainer": {**trainer, **changes.pop("trainer", {})}, "loss": Loss(), "compute": Compute(precision="fp32"),
        "head": Head(init="keep", learning_rate=1e-2), "record": records.update,
    }  # fmt: skip
    result = fit(Fit(**{**settings, **changes}))
    return {**records, "trained": result.trainable_parameters}


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_acceptance_2_and_defect_4_phase_2_trains_one_adapter_and_its_head_and_phase_3_the_network_alone(
    tiny: ModuleType, random_set, tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    add_experts(model, range(1, 3), 3, {"r": 4}, seed=0)
    before = snapshot(model)
    switch_to(model, 1)
    found = run(model, random_set(12), tmp_path / "2", trainable=lambda model: expert_parameters(model, 1))
    own = {name for name in before if ".point_001." in name}
    assert changed(model, before) == own
    assert sum("lora_" in name for name in own) == 2 * 2 * 2
    assert any("score" in name for name in own)
    assert found["trained"] == sum(parameter.numel() for parameter in expert_parameters(model, 1))
    experts = CapabilityExperts(model, ["a", "b", "c"], seed=0)
    before, network = snapshot(model), snapshot(experts)
    with experts.keeping():
        found = run(model, random_set(12), tmp_path / "3", trainable=lambda _: (), experts=experts, head=None)
    assert changed(model, before) == set()
    assert changed(experts, network) == {name for name in network if "2.bias" not in name} | {"mixer.2.bias"}
    assert found["trained"] == sum(parameter.numel() for parameter in experts.parameters())


def test_acceptance_7_and_defect_6_dropout_is_active_in_training_and_off_in_evaluation(tiny: ModuleType, random_set) -> None:
    model = tiny.classifier("llama")
    add_experts(model, range(1, 3), 2, {"r": 4, "lora_dropout": 0.5}, seed=0)
    with torch.no_grad():
        for parameter in expert_parameters(model, 0):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    switch_to(model, 0)
    module = PackedRewardModule(model, trunk=None)
    (stream,) = Collator(tokens_per_batch=4096, cache=None).streams(random_set(4).groups)
    module.train()
    assert not torch.equal(module(stream).rewards_C, module(stream).rewards_C)
    module.eval()
    assert torch.equal(module(stream).rewards_C, module(stream).rewards_C)
    over = PackedRewardModule(model, trunk=None, experts=CapabilityExperts(model, ["a", "b"]))
    over.train()
    assert torch.equal(over(stream).rewards_C, over(stream).rewards_C), "frozen experts are read without dropout"
    assert model.training


def test_acceptance_7_evaluation_leaves_training_as_it_was(tiny: ModuleType, random_set, tmp_path: Path) -> None:
    model = tiny.classifier("llama")
    add_experts(model, range(1, 3), 1, {"r": 4, "lora_dropout": 0.5}, seed=0)
    switch_to(model, 0)
    modes: list[bool] = []
    model.model.layers[2].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    data = random_set(8)
    run(
        model, data, tmp_path, held_out=data, trainable=lambda model: expert_parameters(model, 0),
        trainer={"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
    )  # fmt: skip
    assert modes[0] is False, "evaluated first"
    assert modes.count(True) == 3, "and trained with dropout all the same"


def test_acceptance_7_and_defect_8_the_pair_loss_is_finite_at_a_gap_of_minus_100() -> None:
    gap = torch.tensor([-100.0], requires_grad=True)
    loss = bradley_terry(gap, torch.zeros(1))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert gap.grad is not None
    assert gap.grad.item() == pytest.approx(-1.0)


def test_defect_7_the_router_learns_by_cross_entropy_on_its_logits_and_its_best_state_is_kept(
    prepared: Prepared, tiny: ModuleType, tmp_path: Path
) -> None:
    model = tiny.classifier("llama")
    put_category_head(model, CATEGORIES)
    label_of = {index: CATEGORIES.index(group.category) for index, group in enumerate(prepared.training)}
    data = query_set(prepared.training, prepared.training_tokens, [True] * len(prepared.training))
    (stream,) = Collator(tokens_per_batch=100_000, cache=None).streams(data.groups)
    term = QueryLabels(model.score, label_of)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
        output = packed_rewards(model, stream.batch)
        logits = category_logits(model, output.states_CD)
        labels = torch.tensor([label_of[entry.group.index] for entry in data.groups])
        torch.testing.assert_close(term(output, stream).loss, -F.log_softmax(logits, dim=1)[range(len(labels)), labels].sum())
    start = copy.deepcopy(model)
    losses: list[float] = []
    run(
        model, data, tmp_path, held_out=data, patience=2, auxiliaries=lambda _: (term,),
        trainer={"learning_rate": 5e-3, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "constant",
                 "per_device_train_batch_size": 16},
        record=lambda entry: losses.extend([entry["eval_loss"]] if "eval_loss" in entry else []),
    )  # fmt: skip
    with torch.no_grad():
        logits = category_logits(model, packed_rewards(model, pack([entry.group for entry in data.groups])).states_CD)
        assert float(F.cross_entropy(logits, labels)) == pytest.approx(min(losses), rel=1e-4)
    assert float((logits.argmax(dim=1) == labels).float().mean()) > 0.95
    assert not torch.equal(model.model.layers[2].mlp.up_proj.weight, start.model.layers[2].mlp.up_proj.weight), "the backbone trains too"


def test_queries_alone_leave_no_pair_metrics_in_the_log(prepared: Prepared, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.classifier("llama")
    put_category_head(model, CATEGORIES)
    label_of = {index: CATEGORIES.index(group.category) for index, group in enumerate(prepared.training)}
    data = query_set(prepared.training, prepared.training_tokens, [True] * len(prepared.training))
    found = run(model, data, tmp_path, auxiliaries=lambda model: (QueryLabels(model.score, label_of),))
    assert 0 <= found["router/accuracy"] <= 1
    assert not {"pair/accuracy", "reward/mean"} & set(found)
