"""A term of the objective with weights of its own: trained, logged and resumed with the model, and not delivered."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.models.heads import Head
from rewardproof.models.packed import Auxiliary, PackedRewards, answer_log_probs, packed_rewards, target_log_probs
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream, TrainingSet
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss


class Distance(AuxiliaryTerm):
    """Squared distance of what the head reads from a point that is learned."""

    needs_answers = True

    def __init__(self, width: int, made: list[Distance]) -> None:
        super().__init__()
        self.point_D = nn.Parameter(torch.zeros(width))
        self.read: list[tuple[int, ...]] = []
        made.append(self)

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        assert output.answer_states_LD is not None
        assert len(stream.groups) == stream.batch.n_groups
        self.read.append(tuple(output.answer_states_LD.shape))
        loss = 0.1 * (output.states_CD - self.point_D).square().mean(dim=1).sum()
        return Auxiliary(loss, {"distance/mean": float(loss.detach())})


def run(model: PreTrainedModel, data: TrainingSet, folder: Path, **changes: Any) -> tuple[Distance, list[dict[str, Any]], PreTrainedModel]:
    model = copy.deepcopy(model)
    made: list[Distance] = []
    records: list[dict[str, Any]] = []
    trainer = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_steps": 1, **changes.pop("trainer", {})}
    fit(
        Fit(
            model=model,
            train=data,
            held_out=data,
            folder=folder,
            trainer=trainer,
            layers=range(1, 3),
            seed=0,
            loss=Loss(),
            compute=Compute(precision="fp32"),
            head=Head(init="normal"),
            record=records.append,
            auxiliaries=lambda model: [Distance(model.config.hidden_size, made)],
            **changes,
        )
    )
    return made[-1], records, model


def test_it_trains_with_the_model_and_is_logged(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data = random_set(12)
    term, records, model = run(tiny.classifier("llama"), data, tmp_path)
    assert float(term.point_D.detach().norm()) > 1e-3
    logged = [entry["distance/mean"] for entry in records if "distance/mean" in entry]
    assert len(logged) == 3
    assert all(value > 0 for value in logged)
    assert any("eval_distance/mean" in entry for entry in records)
    assert all(length > 0 and width == model.config.hidden_size for length, width in term.read)
    assert not any("point" in name for name in model.state_dict())


def test_it_is_in_the_loss(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data, model = random_set(4), tiny.classifier("llama")
    still = {"learning_rate": 0.0}
    _, records, _ = run(model, data, tmp_path, trainer=still)
    found = next(entry for entry in records if "loss" in entry)
    plain: list[dict[str, Any]] = []
    fit(
        Fit(
            model=copy.deepcopy(model),
            train=data,
            held_out=None,
            folder=tmp_path / "plain",
            layers=range(1, 3),
            seed=0,
            loss=Loss(),
            trainer={**still, "per_device_train_batch_size": 4, "logging_steps": 1},
            compute=Compute(precision="fp32"),
            head=Head(init="normal"),
            record=plain.append,
        )
    )
    without = next(entry for entry in plain if "loss" in entry)
    assert abs(found["loss"] - without["loss"] - found["distance/mean"]) < 1e-5


def test_a_resumed_run_ends_at_the_same_weights(tiny: ModuleType, random_set: Callable[..., TrainingSet], tmp_path: Path) -> None:
    data, model = random_set(12), tiny.classifier("llama")
    whole, _, _ = run(model, data, tmp_path, trainer={"save_total_limit": 3})
    shutil.rmtree(tmp_path / "checkpoint-3")
    again, records, _ = run(model, data, tmp_path, trainer={"save_total_limit": 3}, resume=True)
    torch.testing.assert_close(again.point_D, whole.point_D, atol=0, rtol=0)
    assert [entry["step"] for entry in records if "loss" in entry] == [3]


def test_answers_states_are_those_that_log_probabilities_are_read_from(tiny: ModuleType, random_set: Callable[..., TrainingSet]) -> None:
    entries = random_set(4).groups
    batch = pack([entry.group for entry in entries])
    causal, classifier = tiny.causal("llama"), tiny.classifier("llama")
    classifier.base_model.load_state_dict(causal.base_model.state_dict())
    states: Tensor | None = packed_rewards(classifier, batch, answers=True).answer_states_LD
    assert states is not None
    torch.testing.assert_close(target_log_probs(causal, states, batch.target_L), answer_log_probs(causal, batch))
