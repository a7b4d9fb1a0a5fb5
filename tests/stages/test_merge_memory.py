"""Merging under a limit on memory: a mixture whose experts do not fit twice merges, and by `uniform` one that does not fit once."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewardproof.models.checkpoints import EXPERTS_FILE, load_reward_model
from rewardproof.models.saving import save_reward_model
from rewardproof.models.upcycling import Upcycle, upcycle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and accounts of Linux")]
PROGRAM = Path(__file__).with_name("measure_merge.py")


def mixture(tiny: ModuleType, folder: Path, *, width: int, inner: int, experts: str) -> Path:
    """A stored mixture of eight experts in eight layers, its routers random."""
    config = copy.deepcopy(tiny.CONFIGS["llama"])
    config.hidden_size, config.head_dim, config.intermediate_size, config.num_hidden_layers = width, width // 4, inner, 8
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    upcycle(model, Upcycle(n_experts=8, n_active=6, experts=experts))
    return save_reward_model(model, tiny.word_tokenizer(), folder)


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small and a large mixture of full experts and of differences; 403 MB of full experts in the large one."""
    made = tmp_path_factory.mktemp("memory")
    for experts, name in (("full", "full"), ("lora:4", "lora")):
        mixture(tiny, made / f"{name}-small", width=32, inner=48, experts=experts)
        mixture(tiny, made / f"{name}-large", width=512, inner=1024, experts=experts)
    return made


FULL_EXPERTS = 8 * 8 * 3 * 512 * 1024 * 4
"""Bytes of the large mixture's experts in float32, as full matrices; memory is counted in these below."""
RESERVED = 0.25
"""What a process may reserve beyond what it uses at most: the limit counts that as well."""


def measured(folder: Path, out: Path, *, kind: str, method: str, data: str, bound: float) -> subprocess.CompletedProcess[str]:
    arguments = [folder / f"{kind}-small", folder / f"{kind}-large", data, method, int((bound + RESERVED) * FULL_EXPERTS), out]
    out.mkdir()
    return subprocess.run([sys.executable, str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, cwd=PROGRAM.parents[2])


@pytest.mark.parametrize(
    ("kind", "method", "with_data", "bound"),
    [
        ("full", "uniform", False, 0.5),
        ("full", "uniform", True, 1.5),
        ("full", "routing_mass", True, 1.5),
        ("full", "learned", True, 1.65),
        ("lora", "uniform", False, 0.5),
        ("lora", "learned", True, 1.0),
    ],
)
def test_merging_stays_below_a_limit(
    folder: Path, toy_file: Path, tmp_path: Path, kind: str, method: str, with_data: bool, bound: float
) -> None:
    assert (folder / "full-large" / EXPERTS_FILE).stat().st_size > FULL_EXPERTS
    data = str(toy_file) if with_data else ""
    done = measured(folder, tmp_path / "out", kind=kind, method=method, data=data, bound=bound)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "grown.json").read_text()) < bound * FULL_EXPERTS
    report = json.loads((tmp_path / "out" / "large" / "report.json").read_text())
    assert (report["accuracy"] is not None) == with_data
    assert load_reward_model(str(tmp_path / "out" / "large" / "model"))[0].num_parameters() < FULL_EXPERTS / 4 / 5


def test_the_limit_is_one_that_two_copies_exceed(folder: Path, tmp_path: Path) -> None:
    done = measured(folder, tmp_path / "out", kind="full", method="twice", data="", bound=1.5)
    assert done.returncode != 0
    assert "memory" in done.stderr.lower()
