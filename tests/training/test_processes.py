"""Two processes take the same optimiser steps as one with twice the batch, whatever their numbers of streams; one of them writes."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rewardproof.artifacts import FollowedRun
from rewardproof.cli.main import app
from rewardproof.config import Section
from rewardproof.models.precision import default_device
from rewardproof.training.batches import Collator
from rewardproof.training.objective import Loss, StepTotals
from rewardproof.training.processes import agreed, gathered, wait
from rewardproof.training.trainer import PackedRewardModule, evaluate_set

FIT = """
import os, random, sys
from pathlib import Path

sys.path.insert(0, {models!r})
import tiny
import torch
from safetensors.torch import save_file

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.pairs import Pair
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.training.batches import TrainingSet, keep_paired
from rewardproof.training.fit import Compute, Fit, fit
from rewardproof.training.objective import Loss

torch.set_num_threads(1)
dice = random.Random(0)
groups = []
for index in range({groups}):
    prompt = tuple(dice.randrange(4, 96) for _ in range(dice.randrange(2, 30)))
    answers = tuple(prompt + tuple(dice.randrange(4, 96) for _ in range(dice.randrange(1, 20))) for _ in range(2))
    encoded = EncodedGroup(answers, len(prompt), (len(prompt),) * 2, index).select([0, 1])
    groups.append(keep_paired(encoded, (Pair(0, 1, None),)))
model = tiny.classifier("llama")
if {experts}:
    upcycle(model, Upcycle(n_experts=4, n_active=3), seed=0)
per_process = 8 // int(os.environ.get("WORLD_SIZE", "1")) // {accumulated}
fit(Fit(
    model=model, train=TrainingSet(groups), held_out=None, layers=range(3), folder=Path({out!r}) / "checkpoints", seed=0,
    trainer=dict(learning_rate=1e-2, per_device_train_batch_size=per_process, save_strategy="no", optim="sgd", max_grad_norm=0.0,
        gradient_accumulation_steps={accumulated}),
    loss=Loss(router_balance=0.0, bsr={bsr}, bsr_scope={scope!r}), compute=Compute(precision="fp32", tokens_per_batch=60),
))
if os.environ.get("RANK", "0") == "0":
    save_file({{name: tensor.contiguous() for name, tensor in model.state_dict().items()}}, Path({out!r}) / "trained.safetensors")
"""

BALANCE = """
import torch
from torch import distributed

from rewardproof.losses import importance_load_balance, over_processes, switch_balance
from rewardproof.training.processes import leave

distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
logits_TE, groups, parts = torch.randn(12, 4, dtype=torch.float64), (2.0, 3.0), (slice(0, 5), slice(5, 12))


def loss(logits_TE, form, **total):
    probabilities_TE = logits_TE.softmax(dim=1)
    chosen_TE = probabilities_TE >= probabilities_TE.topk(2).values[:, -1:]
    return form(probabilities_TE, chosen_TE, **total)


for form in (importance_load_balance, switch_balance):
    whole_TE = logits_TE.clone().requires_grad_()
    expected = loss(whole_TE, form)
    (expected * sum(groups)).backward()
    own_TE = logits_TE[parts[rank]].clone().requires_grad_()
    found = loss(own_TE, form, total=over_processes)
    (found * groups[rank]).backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(own_TE.grad, whole_TE.grad[parts[rank]], rtol=1e-10, atol=1e-14)

    half_TE = logits_TE[parts[0]].clone().requires_grad_()
    expected = loss(half_TE, form)
    expected.backward()
    own_TE = logits_TE[parts[rank]].clone().requires_grad_()
    found = loss(own_TE, form, total=over_processes if rank == 0 else lambda part: over_processes(0 * part))
    (found * (1 - rank)).backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(own_TE.grad, half_TE.grad if rank == 0 else torch.zeros_like(own_TE), rtol=1e-10, atol=1e-14)
leave()
"""


def _fit(
    launch, out: Path, *, processes: int, experts: bool, groups: int, bsr: float = 0.0, scope: str = "step", accumulated: int = 1
) -> dict[str, torch.Tensor]:
    out.mkdir()
    script, models = out / "train.py", str(Path(__file__).parents[1] / "models")
    script.write_text(
        FIT.format(models=models, out=str(out), experts=experts, groups=groups, bsr=bsr, scope=scope, accumulated=accumulated)
    )
    done = launch([str(script)], processes=processes)
    assert done.returncode == 0, done.stderr[:4000]
    return load_file(out / "trained.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("experts", "groups"), [(False, 24), (True, 24), (False, 17)], ids=["dense", "mixture", "one group left over"])
def test_two_processes_take_the_steps_of_one(tmp_path, launch, experts, groups):
    alone = _fit(launch, tmp_path / "one", processes=1, experts=experts, groups=groups)
    together = _fit(launch, tmp_path / "two", processes=2, experts=experts, groups=groups)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_acceptance_2_of_bsr_two_processes_have_the_penalty_of_one(tmp_path, launch):
    plain = _fit(launch, tmp_path / "plain", processes=1, experts=False, groups=17)
    alone = _fit(launch, tmp_path / "one", processes=1, experts=False, groups=17, bsr=0.3)
    together = _fit(launch, tmp_path / "two", processes=2, experts=False, groups=17, bsr=0.3)
    assert any(not torch.allclose(plain[name], tensor, rtol=1e-3, atol=1e-4) for name, tensor in alone.items())
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_defect_a_of_bsr_the_released_penalty_is_one_a_process(tmp_path, launch):
    settings = {"experts": False, "groups": 24, "bsr": 0.3, "scope": "device"}
    whole = _fit(launch, tmp_path / "whole", processes=1, **settings)
    halves = _fit(launch, tmp_path / "halves", processes=1, accumulated=2, **settings)
    together = _fit(launch, tmp_path / "two", processes=2, **settings)
    assert any(not torch.allclose(whole[name], tensor, rtol=1e-3, atol=1e-4) for name, tensor in together.items())
    for name, tensor in halves.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_balance_over_two_processes_is_that_of_the_whole_batch(tmp_path, launch):
    script = tmp_path / "balance.py"
    script.write_text(BALANCE)
    done = launch([str(script)], processes=2)
    assert done.returncode == 0, done.stderr[:4000]


def _command(recipe: str, out: Path, base_dir: Path, data: Path, *, processes: int) -> list[str]:
    settings = {
        "model": base_dir,
        "data": data,
        "max_length": 64,
        "compute.precision": "fp32",
        "compute.tokens_per_batch": 100_000,  # one stream a process, so that the balance loss sees a step's tokens at once
        "trainer.per_device_train_batch_size": 32 // processes,
        "trainer.logging_steps": 1,
        "trainer.learning_rate": 1e-3,
    }
    if recipe == "umm":
        settings |= {"upcycle.n_experts": 4, "upcycle.n_active": 3, "merge.steps": 10, "merge.groups_per_step": 4}
    return ["-m", "rewardproof", "train", recipe, str(out), *(f"{key}={value}" for key, value in settings.items())]


def _losses(out: Path) -> list[tuple[str, int, str, float]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    names = ("loss", "eval_loss", "pair/accuracy", "reward/gap", "reward/std", "loss/balance")
    return [(record["phase"], record["step"], name, record[name]) for record in records for name in names if name in record]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dense", "umm"])
def test_the_command_on_two_processes_has_the_losses_of_one(tmp_path, launch, base_dir, toy_file, recipe):
    for processes in (1, 2):
        done = launch(_command(recipe, tmp_path / str(processes), base_dir, toy_file, processes=processes), processes=processes)
        assert done.returncode == 0, done.stderr[:4000]
        assert done.stdout.count("held-out accuracy") == 1
    alone, together = _losses(tmp_path / "1"), _losses(tmp_path / "2")
    assert [entry[:3] for entry in alone] == [entry[:3] for entry in together]
    assert {phase for phase, *_ in alone} == ({"training"} if recipe == "dense" else {"mixture", "merge"})
    assert len(alone) > 10
    for (*where, one), (*_, two) in zip(alone, together, strict=True):
        assert math.isclose(one, two, rel_tol=1e-5, abs_tol=1e-6), (where, one, two)
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == sorted(path.name for path in (tmp_path / "2").iterdir())
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("1", "2"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path, launch, base_dir, toy_file):
    (tmp_path / "kept").write_text("")
    done = launch(_command("dense", tmp_path, base_dir, toy_file, processes=2), processes=2)
    assert done.returncode != 0
    assert "a run never overwrites another" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_other_verbs_run_on_one_process(tmp_path, monkeypatch, reward_dir, toy_file):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    done = CliRunner().invoke(app, ["score", str(reward_dir), str(toy_file), str(tmp_path / "scored.jsonl")])
    assert done.exit_code == 2
    assert "process 1: error: Got 2 processes, expected one" in done.output
    assert not list(tmp_path.iterdir())


def test_a_process_alone_agrees_with_itself():
    assert (agreed(3), gathered("a"), wait()) == (3, ["a"], None)


def test_who_follows_a_run_writes_nothing(tmp_path):
    followed = FollowedRun(tmp_path / "run", Section(), started=0.0)
    followed.log({"phase": "training"})
    assert followed.write_json("summary.json", {}) == tmp_path / "run" / "summary.json"
    assert followed.finish("done", {"rows": 3}).results["rows"] == 3
    assert not list(tmp_path.iterdir())


def test_the_cpu_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device() == torch.device("cpu")


@pytest.mark.parametrize("n_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_every_group_of_a_step_is_in_one_share(random_set, n_processes, count):
    groups = random_set(count).groups
    shares = [Collator(tokens_per_batch=64, cache=None).share(groups, process, n_processes) for process in range(n_processes)]
    assert sum(share.n_groups for share in shares) == count
    counted = [token for share in shares if not share.idle for stream in share.streams for token in stream.batch.token_ids_T.tolist()]
    whole = Collator(tokens_per_batch=10**6, cache=None).share(groups, 0, 1).streams[0].batch.token_ids_T.tolist()
    assert counted == whole
    assert all(share.streams and share.idle == (share.n_tokens == 0) for share in shares)
    assert max(share.n_groups for share in shares) - min(share.n_groups for share in shares) <= 1


def test_totals_of_parts_are_the_totals_of_the_whole(tiny, random_set):
    module = PackedRewardModule(tiny.classifier("llama"), trunk=None)
    collator, groups = Collator(tokens_per_batch=64, cache=None), random_set(9)

    def totals(part: slice) -> StepTotals:
        return evaluate_set(module, type(groups)(groups.groups[part]), collator=collator, loss=Loss(), precision="fp32")[0]

    joined, whole = StepTotals.joined((totals(slice(0, 4)), totals(slice(4, 9)))), totals(slice(0, 9))
    assert joined.metrics() == pytest.approx(whole.metrics(), rel=1e-5)
