"""Who reads answers token by token: reward models and ensembles, whose members are joined at every token as they are at the last."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rewardproof.data.group import Group, Message
from rewardproof.models.families import family_of
from rewardproof.models.reward_model import RewardModel
from rewardproof.scoring import (
    CheckableGold,
    Combine,
    GivenScores,
    ModelEnsemble,
    RemoteScorer,
    Scale,
    TokenScorer,
    reads_tokens,
    tokens_and_disagreement,
)

GROUPS = [
    Group(
        prompt=(Message("user", f"w{number} w{number + 7}"),),
        answers=tuple((Message("assistant", f"w{answer} w{number}" + " w3" * answer),) for answer in range(3)),
    )
    for number in range(5)
]


def joined(tiny: ModuleType, how: Combine, *, budget: int = 0) -> ModelEnsemble:
    """Three members with their lowest two layers in common."""
    models: dict[str, RewardModel] = {}
    for number in range(3):
        model = tiny.classifier("llama", seed=0)
        with torch.no_grad():
            for parameter in [*family_of(model).layer_list(model)[-1].parameters(), *model.score.parameters()]:
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        models[str(number)] = RewardModel(model, tiny.word_tokenizer(), tokens_per_batch=budget)
    return ModelEnsemble(models, {name: Scale(0.1 * int(name), 1.0 + int(name)) for name in models}, how)


@pytest.mark.parametrize("combination", ["mean", "worst_case", "uncertainty"])
def test_an_ensemble_joins_its_members_at_every_token(tiny: ModuleType, combination: Any) -> None:
    ensemble = joined(tiny, Combine(combination=combination, penalty=0.7), budget=30)
    found, apart = tokens_and_disagreement(ensemble, GROUPS)
    by_member = [model.score_tokens(GROUPS) for model in ensemble.models.values()]
    variances = []
    for place, (rows, scores) in enumerate(zip(found, ensemble.score(GROUPS), strict=True)):
        for number, (one, score) in enumerate(zip(rows, scores, strict=True)):
            parts = [member[place][number] for member in by_member]
            standard = np.stack(
                [
                    (np.array([part.before, *part.reached_A, part.score]) - scale.mean) / scale.std
                    for part, scale in zip(parts, ensemble.scales.values(), strict=True)
                ]
            )
            mean, variance = standard.mean(axis=0), ((standard - standard.mean(axis=0)) ** 2).mean(axis=0)
            expected = {"mean": mean, "worst_case": standard.min(axis=0), "uncertainty": mean - 0.7 * variance}[combination]
            np.testing.assert_allclose([one.before, *one.reached_A, one.score], expected, atol=1e-5)
            assert one.score == pytest.approx(score, abs=1e-6)
            assert one.ends_A.tolist() == parts[0].ends_A.tolist()
            variances.append(variance[-1])
    assert apart == pytest.approx(np.mean(variances), abs=1e-6)


def test_layers_that_members_have_in_common_run_once_for_tokens_too(tiny: ModuleType) -> None:
    ensemble, runs = joined(tiny, Combine()), {}
    for name, model in ensemble.models.items():
        runs[name] = 0
        family_of(model.model).layer_list(model.model)[0].register_forward_hook(
            lambda *_, name=name: runs.__setitem__(name, runs[name] + 1)
        )
    ensemble.score_tokens(GROUPS)
    assert (runs["0"] > 0, runs["1"], runs["2"]) == (True, 0, 0)


def test_who_reads_tokens(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ensemble = RewardModel(tiny.classifier("llama"), tiny.word_tokenizer()), joined(tiny, Combine())
    for scorer in (model, ensemble):
        assert isinstance(scorer, TokenScorer)
        assert reads_tokens(scorer)
    for scorer in (CheckableGold(), GivenScores(), RemoteScorer("http://127.0.0.1:1/score")):
        assert not reads_tokens(scorer)
    assert tokens_and_disagreement(model, GROUPS)[1] is None
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    assert not reads_tokens(model)
