"""A DMoERM as one scorer: who judges follows from what the user said, and the directory is all that is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rewardproof.data.encoding import encode_queries
from rewardproof.data.group import Group, Message
from rewardproof.errors import CheckpointError, ConfigError, DataError, ModelError
from rewardproof.models.cost import products_per_token
from rewardproof.models.double_mixture import CapabilityExperts, QueryRouter, add_experts, expert_parameters, put_category_head, save_expert
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import DoubleMixture, ModelEnsemble, Scale, load_model, load_scorer, models_of, reads_tokens
from rewardproof.scoring.double_mixture import BASE, EXPERTS, ROUTER, CategoryEntry, DoubleMixtureFile, load_category, write_file

NAMES = ("chat", "code", "text")
Make = Callable[..., Path]


def group(number: int, *turns: str) -> Group:
    said = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(turns)]
    answers = tuple((Message("assistant", f"w{answer} w{number} w{7 * answer}"),) for answer in range(3))
    return Group(prompt=tuple(said), answers=answers, scores=(0.0, 1.0, 2.0), id=str(number))


GROUPS = [group(number, f"w{number} w{3 * number + 7}", f"w{number}", f"w{80 - number}") for number in range(12)]


@pytest.fixture(scope="module")
def made(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made("last_query")`: the directory of a DMoERM with random parts; chat has three experts, code two, text none."""
    folders: dict[str, Path] = {}

    def make(reads: str = "conversation") -> Path:
        if reads in folders:
            return folders[reads]
        folder = tmp_path_factory.mktemp(reads) / "model"
        router = tiny.classifier("llama", seed=9)
        put_category_head(router, NAMES)
        with torch.no_grad():
            router.score.weight.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(3)))
        bias = QueryRouter(router, NAMES).save(folder / ROUTER, tiny.word_tokenizer())
        entries: list[CategoryEntry] = []
        for number, points in enumerate((("humour", "care", "tone"), ("logic", "style"), ())):
            place = folder / "categories" / str(number)
            model = tiny.classifier("llama", seed=number)
            RewardModel(model, tiny.word_tokenizer()).save(place / BASE)
            if points:
                adapted = add_experts(model, range(1, 3), len(points), {"r": 4}, seed=number)
                for expert in range(len(points)):
                    with torch.no_grad():
                        for parameter in expert_parameters(model, expert):
                            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(expert))
                    save_expert(adapted, expert, place / EXPERTS)
                CapabilityExperts(model, points, seed=number).save_mixer(place)
            entries.append(
                CategoryEntry(name=NAMES[number], folder=f"categories/{number}", points=points, mean=0.5 * number, std=1.0 + number)
            )
        write_file(folder, DoubleMixtureFile.model_validate({"reads": reads, "router_bias": bias, "categories": tuple(entries)}))
        folders[reads] = folder
        return folder

    return make


def by_hand(folder: Path, groups: list[Group], *, last_only: bool = False) -> tuple[list[str], list[list[float]]]:
    """Routes and rewards, group by group, from the parts of the directory."""
    from dataclasses import replace

    whole = load_model(str(folder))
    assert isinstance(whole, DoubleMixture)
    routes: list[str] = []
    rewards: list[list[float]] = []
    for one in groups:
        name = whole.router.route([encode_queries(one, whole.tokenizer)])[0]
        entry = NAMES.index(name)
        judge = load_category(folder / "categories" / str(entry), [("humour", "care", "tone"), ("logic", "style"), ()][entry])
        read = replace(one, prompt=one.prompt[-1:]) if last_only else one
        (raw,) = judge.score([read])
        routes.append(name)
        rewards.append([(value - 0.5 * entry) / (1.0 + entry) for value in raw])
    return routes, rewards


@pytest.mark.parametrize("reads", ["conversation", "last_query"])
def test_each_group_is_judged_by_the_category_of_its_users_words_in_that_categorys_units(made: Make, reads: str) -> None:
    whole = load_scorer(str(made(reads)))
    assert isinstance(whole, DoubleMixture)
    routes, rewards = by_hand(made(reads), GROUPS, last_only=reads == "last_query")
    assert len(set(routes)) > 1, "several categories judge"
    encoded, counts = whole.encode(GROUPS)
    assert whole.route(encoded) == routes
    assert not counts
    np.testing.assert_allclose(whole.score_encoded(encoded), rewards, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.score(GROUPS), rewards, rtol=1e-4, atol=1e-4)
    backwards = whole.score(GROUPS[::-1])[::-1]
    np.testing.assert_allclose(backwards, rewards, rtol=1e-4, atol=1e-4)
    assert whole.score([]) == []


def test_the_router_reads_all_turns_of_the_user_and_none_of_the_assistant(made: Make) -> None:
    whole = load_model(str(made("last_query")))
    assert isinstance(whole, DoubleMixture)
    one, other = group(1, "w5", "w6", "w7"), group(1, "w5", "w60 w61", "w7")
    (first,), (second,) = whole.encode([one])[0], whole.encode([other])[0]
    assert first.queries == second.queries == whole.encode([group(1, "w5\n\nw7")])[0][0].queries
    assert first.conversations == second.conversations, "the reward reads the last query alone"
    assert first.queries[-1] == whole.tokenizer.eos_token_id


def test_acceptance_6_the_order_of_the_experts_survives_loading(made: Make) -> None:
    whole = DoubleMixture.load(made())
    experts = whole.categories["chat"].experts
    assert experts is not None
    assert experts.points == ("humour", "care", "tone")
    assert whole.categories["text"].experts is None
    text = (made() / "dmoerm.yaml").read_text()
    assert text.index("humour") < text.index("care") < text.index("tone")
    suffixes = {file.suffix for file in made().rglob("*") if file.is_file() and file.stat().st_size}
    assert suffixes <= {".safetensors", ".json", ".yaml", ".jinja"}


def test_the_cost_is_the_router_and_the_category_with_most_experts(made: Make) -> None:
    whole = DoubleMixture.load(made())
    most = max(model.products for model in whole.models)
    assert most == whole.categories["chat"].products
    assert whole.products == products_per_token(whole.router.model) + most
    assert whole.parameters == sum(p.numel() for p in whole.router.model.parameters()) + sum(model.parameters for model in whole.models)


def test_an_ensemble_takes_it_beside_a_dense_model(made: Make, tiny: ModuleType, tmp_path: Path) -> None:
    dense = RewardModel(tiny.classifier("llama", seed=4), tiny.word_tokenizer())
    dense.save(tmp_path / "dense")
    members: dict[str, Any] = {"0": DoubleMixture.load(made()), "1": dense}
    scales = {name: Scale.of(member.score(GROUPS), name=name) for name, member in members.items()}
    ensemble = ModelEnsemble(members, scales)
    ensemble.save(tmp_path / "both", {"0": str(made()), "1": "../dense"})
    again = load_model(str(tmp_path / "both"))
    assert isinstance(again, ModelEnsemble)
    for found, (ours, theirs) in zip(
        again.by_member(GROUPS), zip(members["0"].score(GROUPS), dense.score(GROUPS), strict=True), strict=True
    ):
        np.testing.assert_allclose(found[0], scales["0"].standardised(ours), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[1], scales["1"].standardised(theirs), rtol=1e-4, atol=1e-4)
    assert again.products == members["0"].products + dense.products
    assert len(models_of(again)) == 3 + 1
    with pytest.raises(ConfigError, match="or of which one reads only the last query, expected one reading"):
        ModelEnsemble({"0": DoubleMixture.load(made("last_query")), "1": dense}, scales)


def test_two_of_them_route_by_themselves_in_one_ensemble(made: Make) -> None:
    members = {"0": DoubleMixture.load(made()), "1": DoubleMixture.load(made())}
    with torch.no_grad():
        members["1"].router.model.score.weight.neg_()
    scales = {name: Scale(0.0, 1.0) for name in members}
    for found, ours, theirs in zip(
        ModelEnsemble(members, scales).by_member(GROUPS), members["0"].score(GROUPS), members["1"].score(GROUPS), strict=True
    ):
        np.testing.assert_allclose(found, [ours, theirs], rtol=1e-4, atol=1e-4)


def test_a_group_without_a_prompt_or_encoded_elsewhere_is_refused(made: Make) -> None:
    whole = DoubleMixture.load(made())
    bare = Group(prompt=(), answers=GROUPS[0].answers, raw=True, origin="rows.jsonl:3")
    with pytest.raises(DataError, match=r"rows.jsonl:3: got a group without what its user said, expected a prompt"):
        whole.score([bare])
    (foreign,), _ = whole.categories["chat"].encode(GROUPS[:1])
    with pytest.raises(DataError, match="answer group 0: got a group without what its user said"):
        whole.score_encoded([foreign])


def test_what_is_no_whole_directory_is_refused(made: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no dmoerm.yaml, expected the directory of a DMoERM.*--resume"):
        DoubleMixture.load(tmp_path)
    text = (made() / "dmoerm.yaml").read_text()
    (tmp_path / "dmoerm.yaml").write_text(text.replace("router_bias:\n", "router_bias:\n- 0.5\n"))
    with pytest.raises(CheckpointError, match=r"has 4 router_bias for 3 categories, expected one each"):
        DoubleMixture.load(tmp_path)
    (tmp_path / "dmoerm.yaml").write_text(text.replace("std:", "stdev:"))
    with pytest.raises(ConfigError, match="stdev"):
        DoubleMixture.load(tmp_path)
    (tmp_path / "dmoerm.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="The router in"):
        DoubleMixture.load(tmp_path)


def test_experts_say_nothing_of_single_tokens(made: Make, tiny: ModuleType) -> None:
    whole = load_model(str(made()))
    assert isinstance(whole, DoubleMixture)
    assert not reads_tokens(whole)
    assert not reads_tokens(whole.categories["chat"])
    assert reads_tokens(whole.categories["text"])
    with pytest.raises(ModelError, match="Got a model of experts by capability, expected one with a reward head"):
        whole.categories["chat"].score_tokens(GROUPS[:1])
    members = {"experts": whole, "dense": RewardModel(tiny.classifier("llama"), tiny.word_tokenizer())}
    ensemble = ModelEnsemble(members, dict.fromkeys(members, Scale(0.0, 1.0)))
    assert not reads_tokens(ensemble)
    with pytest.raises(ModelError, match="Got an ensemble with a DMoERM in it, expected reward models alone"):
        ensemble.score_tokens(GROUPS[:1])
