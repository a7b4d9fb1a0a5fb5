"""Two processes take the same optimiser steps as one with twice the batch, whatever their numbers of streams."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
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
for index in range(24):
    prompt = tuple(dice.randrange(4, 96) for _ in range(dice.randrange(2, 30)))
    answers = tuple(prompt + tuple(dice.randrange(4, 96) for _ in range(dice.randrange(1, 20))) for _ in range(2))
    encoded = EncodedGroup(answers, len(prompt), (len(prompt),) * 2, index).select([0, 1])
    groups.append(keep_paired(encoded, (Pair(0, 1, None),)))
model = tiny.classifier("llama")
if {experts}:
    upcycle(model, Upcycle(n_experts=4, n_active=3), seed=0)
per_process = 8 // int(os.environ.get("WORLD_SIZE", "1"))
fit(Fit(
    model=model, train=TrainingSet(groups), held_out=None, layers=range(3), folder=Path({out!r}) / "checkpoints", seed=0,
    trainer=dict(learning_rate=1e-2, per_device_train_batch_size=per_process, save_strategy="no", optim="sgd", max_grad_norm=0.0),
    loss=Loss(router_balance=0.0), compute=Compute(precision="fp32", tokens_per_batch=60),
))
if os.environ.get("RANK", "0") == "0":
    save_file({{name: tensor.contiguous() for name, tensor in model.state_dict().items()}}, Path({out!r}) / "trained.safetensors")
"""


def _train(out: Path, *, processes: int, experts: bool) -> dict[str, torch.Tensor]:
    out.mkdir()
    script = out / "train.py"
    models = str(Path(__file__).parents[1] / "models")
    script.write_text(SCRIPT.format(models=models, out=str(out), experts=experts))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "trained.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "mixture"])
def test_two_processes_take_the_steps_of_one(tmp_path, experts):
    alone = _train(tmp_path / "one", processes=1, experts=experts)
    together = _train(tmp_path / "two", processes=2, experts=experts)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
