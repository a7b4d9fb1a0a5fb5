from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rewardproof.data.group import Group, Message
from rewardproof.errors import CheckpointError, ConfigError, DataError
from rewardproof.models.families import family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.trunk import layers_in_common
from rewardproof.scoring import (
    CheckableGold,
    Combine,
    Ensemble,
    GivenScores,
    ModelEnsemble,
    RemoteScorer,
    Scale,
    load_model,
    load_scorer,
)

GROUPS = [
    Group(
        prompt=(Message("user", f"w{number} w{number + 7}"),),
        answers=tuple((Message("assistant", f"w{answer} w{number}" + " w3" * answer),) for answer in range(4)),
        scores=(0.0, 1.0, 2.0, 3.0),
        id=str(number),
    )
    for number in range(8)
]


@pytest.fixture
def models(tiny: ModuleType) -> dict[str, RewardModel]:
    return {str(number): RewardModel(tiny.classifier("llama", seed=number), tiny.word_tokenizer()) for number in range(3)}


def joined(models: dict[str, RewardModel], how: Combine | None = None) -> ModelEnsemble:
    return ModelEnsemble(models, {name: Scale.of(model.score(GROUPS), name=name) for name, model in models.items()}, how)


def test_tokens_and_texts_are_scored_alike_and_as_by_the_general_ensemble(models) -> None:
    ensemble = joined(models)
    encoded, _ = ensemble.encode(GROUPS)
    assert ensemble.score_encoded(encoded) == ensemble.score(GROUPS)
    np.testing.assert_allclose(ensemble.score(GROUPS), Ensemble.measured(models, GROUPS).score(GROUPS), atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_members_have_in_common_run_once_and_change_nothing(tiny: ModuleType, family: str) -> None:
    models = {}
    for number in range(3):
        model = tiny.classifier(family, seed=0)
        with torch.no_grad():
            for parameter in [*family_of(model).layer_list(model)[-1].parameters(), *model.score.parameters()]:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        models[str(number)] = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=40)
    depth = models["0"].model.config.num_hidden_layers - 1
    assert layers_in_common([one.model for one in models.values()]) == depth
    alone = [np.array(model.score(GROUPS)) for model in models.values()]
    runs: Counter[str] = Counter()
    for name, model in models.items():
        family_of(model.model).layer_list(model.model)[0].register_forward_hook(lambda *_, name=name: runs.update([name]))
    together = np.stack([*joined(models).by_member(GROUPS)], axis=1)
    for scores, raw in zip(together, alone, strict=True):
        np.testing.assert_allclose(scores, (raw - raw.mean()) / raw.std(), atol=1e-5)
    measured = 3 * [runs["0"] // 2]
    assert runs["0"] == 2 * measured[0] > 0  # once to measure its units, once for all members
    assert [runs["1"], runs["2"]] == measured[:2]  # to measure their units alone


def test_members_that_differ_below_share_nothing(models) -> None:
    assert layers_in_common([one.model for one in models.values()]) == 0


def test_an_ensemble_is_a_directory_that_can_be_moved_with_its_members(models, tmp_path: Path) -> None:
    for name, model in models.items():
        model.save(tmp_path / "run" / "members" / name)
    made = joined(models, Combine(combination="worst_case"))
    made.save(tmp_path / "run" / "model", {name: f"../members/{name}" for name in models}, reference="8 groups")
    (tmp_path / "run").rename(tmp_path / "moved")
    again = load_scorer(str(tmp_path / "moved" / "model"))
    assert isinstance(again, ModelEnsemble)
    assert again.how == made.how
    np.testing.assert_allclose(again.score(GROUPS), made.score(GROUPS), atol=1e-6)
    assert isinstance(load_model(str(tmp_path / "moved" / "members" / "0")), RewardModel)


def test_members_that_read_other_tokens_are_refused(models) -> None:
    models["1"].tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigError, match="different tokenizers or chat templates"):
        joined(models)


def test_what_is_no_ensemble_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no ensemble\.yaml, expected the directory of an ensemble"):
        ModelEnsemble.load(tmp_path)
    for text, key in (("members: []", "members"), ("members: [{model: a, mean: 0, std: 0}]", "std"), ("combine: {penalty: -1}", "penalty")):
        (tmp_path / "ensemble.yaml").write_text(text + "\n")
        with pytest.raises(ConfigError, match=key):
            ModelEnsemble.load(tmp_path)


def test_a_word_names_a_scorer() -> None:
    assert isinstance(load_scorer("embedded:checkable"), CheckableGold)
    assert isinstance(load_scorer("http://127.0.0.1:1/score"), RemoteScorer)
    given = load_scorer("scores")
    assert isinstance(given, GivenScores)
    assert given.score(GROUPS)[0] == GROUPS[0].scores
    with pytest.raises(DataError, match="bare: got answers without scores"):
        given.score([Group(prompt=GROUPS[0].prompt, answers=GROUPS[0].answers, id="bare")])
