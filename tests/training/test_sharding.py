"""FSDP2 on two gloo processes: the upcycled model is sharded, takes the step of a single process, and is whole again afterwards."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch import nn

from rewardproof.errors import ConfigError
from rewardproof.training.sharding import shard_in_full_precision, whole, whole_afterwards, without_sharding

SCRIPT = """
import os, random, sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, {models!r})
import tiny
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rewardproof.losses import over_processes
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.training.batches import Collator, keep_paired
from rewardproof.training.objective import Loss, StepTotals, step_loss
from rewardproof.training.processes import leave
from rewardproof.training.sharding import shard_in_full_precision, whole_afterwards
from rewardproof.training.trainer import PackedRewardModule
from rewardproof.data.pairs import Pair

torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if world > 1:
    distributed.init_process_group("gloo")
groups = [keep_paired(group, (Pair(0, 1, None),)) for group in tiny.random_groups(3, sizes=(2,) * 6)]
model = tiny.classifier("llama")
upcycle(model, Upcycle(n_experts=4, n_active=3, experts={experts!r}), seed=0)
module = PackedRewardModule(model, trunk=None)
stream = Collator(tokens_per_batch=10**6, cache=None).share(groups, rank, world).streams[0]
seen = []
for block in moe_blocks(model).values():
    block.router.register_forward_hook(lambda router, _, routing: seen.append((router.weight.dtype, routing.probabilities_TE.dtype)))


def by_hand():
    reduced = {{"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}} if {bf16} else {{}}
    for block in moe_blocks(model).values():
        fully_shard(block.router)
    for layer in model.model.layers:
        fully_shard(layer, **reduced)
    fully_shard(module)
    assert all(isinstance(block.router, FSDPModule) for block in moe_blocks(model).values())


def by_accelerate():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False)
    shard_in_full_precision(plugin)
    state = SimpleNamespace(fsdp_plugin=plugin)
    fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no", is_main_process=rank == 0, device=torch.device("cpu")), module)


def step():
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    rewards = module(stream)
    loss = step_loss(rewards, stream.batch, Loss(router_balance=0.1), StepTotals(), total=over_processes) * world / len(groups)
    loss.backward()
    optimiser.step()


if world == 1:
    step()
else:
    with whole_afterwards(module):
        {how}()
        assert all(isinstance(layer, FSDPModule) for layer in model.model.layers)
        assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
        local = sum(parameter.to_local().numel() for parameter in module.parameters())
        assert local < 0.7 * sum(parameter.numel() for parameter in module.parameters())
        step()
        assert all(isinstance(parameter.grad, DTensor) for parameter in module.parameters() if parameter.grad is not None)
    assert not any(isinstance(part, FSDPModule) for part in module.modules())
    assert not any(isinstance(parameter, DTensor) for parameter in module.parameters())
    rewards = module(stream).rewards_C
    assert rewards.dtype == torch.float32
    {how}()  # a second training of the same model
    torch.testing.assert_close(module(stream).rewards_C, rewards, rtol=2e-2 if {bf16} else 1e-5, atol=2e-2 if {bf16} else 1e-6)
assert set(seen) == {{(torch.float32, torch.float32)}}, seen
state = {{}}
for name, parameter in model.named_parameters():
    state[name] = (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().contiguous()
if rank == 0:
    save_file(state, {out!r})
leave()
"""


def _step(launch, out: Path, *, processes: int, how: str = "by_hand", experts: str = "full", bf16: bool = False) -> dict[str, torch.Tensor]:
    script, models = out.with_suffix(".py"), str(Path(__file__).parents[1] / "models")
    script.write_text(SCRIPT.format(models=models, out=str(out), how=how, experts=experts, bf16=bf16))
    done = launch([str(script)], processes=processes)
    assert done.returncode == 0, done.stderr[:4000]
    return load_file(out)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "experts"), [("by_hand", "full"), ("by_hand", "lora:2"), ("by_accelerate", "full")])
def test_a_sharded_mixture_takes_the_step_of_one_process(tmp_path, launch, how, experts):
    alone = _step(launch, tmp_path / "one.safetensors", processes=1, experts=experts)
    sharded = _step(launch, tmp_path / "two.safetensors", processes=2, how=how, experts=experts)
    for name, tensor in alone.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_routers_stay_in_fp32_beside_layers_in_bf16(tmp_path, launch):
    alone = _step(launch, tmp_path / "one.safetensors", processes=1)
    sharded = _step(launch, tmp_path / "two.safetensors", processes=2, bf16=True)
    for name, tensor in alone.items():
        assert sharded[name].dtype == torch.float32
        torch.testing.assert_close(sharded[name], tensor, rtol=0.1, atol=0.1, msg=lambda text, name=name: f"{name}: {text}")


def test_what_was_done_to_a_module_is_undone():
    inner = nn.Linear(2, 2)
    module = nn.Sequential(inner, nn.Linear(2, 2))
    module[1].weight = inner.weight
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with whole_afterwards(module):
        inner.register_forward_hook(lambda *_: torch.zeros(1))
        inner.__class__ = type("Sharded", (nn.Linear,), {})
        inner.extra = 1
        inner.bias.requires_grad_(False)
    assert type(inner) is nn.Linear
    assert not hasattr(inner, "extra")
    assert module(torch.ones(1, 2)).shape == (1, 2)
    assert module[1].weight is inner.weight
    assert not inner.bias.requires_grad
    for parameter, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=0)


def test_a_parameter_that_is_not_sharded_is_whole():
    parameter = nn.Parameter(torch.ones(2))
    assert whole(parameter) is parameter


def test_a_launchers_sharding_can_be_left_out(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with without_sharding():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_the_first_version_of_fsdp_is_refused():
    with pytest.raises(ConfigError, match="Got fsdp_version: 1 in the launcher's configuration, expected 2"):
        shard_in_full_precision(FullyShardedDataParallelPlugin(fsdp_version=1))
