"""The launcher configurations of examples/launch say to accelerate what their first lines say to a reader."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env

from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.training.trainer import PackedRewardModule

FOLDER = Path(__file__).parents[1] / "examples" / "launch"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def parsed(name: str) -> tuple[argparse.Namespace, ClusterConfig]:
    """What `accelerate launch --config_file` makes of a file."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "rewardproof", "train", "umm", "OUT"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return arguments, defaults


def test_every_file_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_loads_the_file(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes > 1
    first_lines = (FOLDER / f"{name}.yaml").read_text().splitlines()[:2]
    assert f"examples/launch/{name}.yaml -m rewardproof train" in first_lines[1]


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_starts_the_command_with_it(name):
    arguments, _ = parsed(name)
    assert (arguments.module, arguments.training_script, arguments.training_script_args) == (True, "rewardproof", ["train", "umm", "OUT"])
    assert arguments.use_fsdp == (name == "fsdp2")
    assert arguments.use_deepspeed == name.startswith("zero")
    assert arguments.num_processes == 8


def test_fsdp_cuts_decoder_layers_with_their_experts(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType):
    arguments, _ = parsed("fsdp2")
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    model = tiny.classifier("llama")
    upcycle(model, Upcycle(n_experts=4, n_active=3))
    module = PackedRewardModule(model, trunk=None)
    plugin.set_auto_wrap_policy(module)
    cut: Any = fsdp2_prepare_auto_wrap_policy(plugin, module)
    assert [part for part in module.modules() if cut(part)] == list(model.model.layers)
    assert not any(cut(block) for block in moe_blocks(model).values())


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_settings_are_deepspeeds(stage: int):
    arguments, _ = parsed(f"zero{stage}")
    file = FOLDER.parents[1] / arguments.deepspeed_config_file
    assert file.parent == FOLDER
    plugin = DeepSpeedPlugin(hf_ds_config=json.loads(file.read_text()), zero3_init_flag=arguments.zero3_init_flag)
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is False
    assert plugin.deepspeed_config["bf16"]["enabled"] is False
    plugin.set_mixed_precision("bf16")
    assert plugin.deepspeed_config["bf16"]["enabled"] is False
