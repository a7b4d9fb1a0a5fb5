"""Merging from the file layer by layer gives what merging in memory gives, to the last bit and in every entry of the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rewardproof.errors import CheckpointError, ModelError
from rewardproof.merging import streaming
from rewardproof.merging.divergence import expert_divergence
from rewardproof.merging.experts import merge_experts
from rewardproof.merging.streaming import merge_stored, open_mixture
from rewardproof.models.checkpoints import EXPERTS_FILE, load_reward_model
from rewardproof.models.saving import save_reward_model
from rewardproof.models.tensor_files import TensorFile
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle

KINDS = ("full", "lora:3")


def stored(tiny: ModuleType, path: Path, *, family: str = "llama", kind: str = "full", layers: str = "top:2", n_experts: int = 4) -> Path:
    """A mixture on disk whose experts differ."""
    model = tiny.classifier(family)
    upcycle(model, Upcycle(n_experts=n_experts, n_active=2, experts=kind, layers=layers))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in moe_blocks(model).values():
            for parameter in block.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return save_reward_model(model, tiny.word_tokenizer(), path)


def drawn(layers: list[int], n_experts: int, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(n_experts, generator=generator).softmax(dim=0) for layer in layers}


def in_memory(source: Path, weights: Mapping[int, Tensor], out: Path, dtype: torch.dtype) -> PreTrainedModel:
    model, tokenizer = load_reward_model(str(source))
    merge_experts(model, weights)
    save_reward_model(model, tokenizer, out, dtype=dtype)
    return model


def same_checkpoints(one: Path, other: Path) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    assert {file.name for file in one.iterdir()} == {file.name for file in other.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_is_merging_in_memory(tiny: ModuleType, any_family: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = stored(tiny, tmp_path / "moe", family=any_family, kind=kind)
    weights = drawn([1, 2], 4)
    merge_stored(open_mixture(str(source)), weights, tmp_path / "streamed", dtype=dtype)
    model = in_memory(source, weights, tmp_path / "memory", dtype)
    same_checkpoints(tmp_path / "streamed", tmp_path / "memory")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "streamed", dtype=torch.float32)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(dtype).float()), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_stored_in_bf16_is_folded_in_float32(tiny: ModuleType, kind: str, tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(str(stored(tiny, tmp_path / "wide", family="llama_biased", kind=kind)))
    source = save_reward_model(model, tokenizer, tmp_path / "moe", dtype=torch.bfloat16)
    weights = drawn([1, 2], 4)
    merge_stored(open_mixture(str(source)), weights, tmp_path / "streamed", dtype=torch.float32)
    in_memory(source, weights, tmp_path / "memory", torch.float32)
    same_checkpoints(tmp_path / "streamed", tmp_path / "memory")
    folded = load_file(tmp_path / "streamed" / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    assert not torch.equal(folded, folded.bfloat16().float())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(["llama_biased", "gpt2", "phi3"]),
    kind=st.sampled_from(["full", "lora:1", "lora:5"]),
    layers=st.sampled_from(["all", "top:1", "top:2"]),
    n_experts=st.integers(3, 6),
    seed=st.integers(0, 1000),
)
def test_streaming_is_merging_in_memory_whatever_the_mixture(
    tiny: ModuleType, family: str, kind: str, layers: str, n_experts: int, seed: int, tmp_path: Path
) -> None:
    source = stored(tiny, tmp_path / "moe", family=family, kind=kind, layers=layers, n_experts=n_experts)
    opened = open_mixture(str(source))
    weights = drawn(list(opened.blocks), n_experts, seed)
    merge_stored(opened, weights, tmp_path / "streamed", dtype=torch.float32)
    in_memory(source, weights, tmp_path / "memory", torch.float32)
    same_checkpoints(tmp_path / "streamed", tmp_path / "memory")


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_comes_with_the_merge(tiny: ModuleType, kind: str, tmp_path: Path) -> None:
    source = stored(tiny, tmp_path / "moe", kind=kind)
    found = merge_stored(open_mixture(str(source)), drawn([1, 2], 4), tmp_path / "out", dtype=torch.float32)
    assert found == expert_divergence(load_reward_model(str(source))[0])


def test_no_weight_is_read_on_opening_and_experts_one_layer_at_a_time(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stored(tiny, tmp_path / "moe", layers="all")
    read: list[str] = []

    class Watched(TensorFile):
        def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
            read.append(name)
            return super().read(name, dtype)

    monkeypatch.setattr(streaming, "TensorFile", Watched)
    opened = open_mixture(str(source))
    assert not read
    assert all(tensor.is_meta for tensor in (*opened.mixture.parameters(), *opened.merged.parameters()))
    merge_stored(opened, drawn([0, 1, 2], 4), tmp_path / "out", dtype=torch.float32)
    experts = [name.split(".")[2] for name in read if ".experts." in name]
    assert experts == sorted(experts)
    assert len(read) == len(set(read)), "nothing is read twice"
    assert not [name for name in read if "router" in name]
    assert all(tensor.is_meta for tensor in (*opened.mixture.parameters(), *opened.merged.parameters()))


def test_a_layer_without_coefficients(tiny: ModuleType, tmp_path: Path) -> None:
    opened = open_mixture(str(stored(tiny, tmp_path / "moe")))
    with pytest.raises(ModelError, match=r"Got coefficients for layers \[1\], expected every upcycled layer \(\[1, 2\]\)"):
        merge_stored(opened, drawn([1], 4), tmp_path / "out", dtype=torch.float32)
    assert not (tmp_path / "out").exists()


def test_a_dense_model_has_nothing_to_merge(tiny: ModuleType, tmp_path: Path) -> None:
    path = save_reward_model(tiny.classifier("llama"), tiny.word_tokenizer(), tmp_path / "dense")
    with pytest.raises(ModelError, match="is dense, expected a mixture of experts: it has nothing to merge"):
        open_mixture(str(path))


def test_weights_of_another_model(tiny: ModuleType, tmp_path: Path) -> None:
    path, other = stored(tiny, tmp_path / "moe"), stored(tiny, tmp_path / "other", n_experts=5)
    (other / EXPERTS_FILE).replace(path / EXPERTS_FILE)
    for load in (open_mixture, load_reward_model):
        with pytest.raises(
            CheckpointError, match=r"has model\.layers\.1\.mlp\.experts\.gate as \(5, 48, 32\), expected \(4, 48, 32\) by its"
        ):
            load(str(path))


def test_a_torn_file(tiny: ModuleType, tmp_path: Path) -> None:
    path = stored(tiny, tmp_path / "moe")
    (path / EXPERTS_FILE).write_bytes((path / EXPERTS_FILE).read_bytes()[:-100])
    for load in (open_mixture, load_reward_model):
        with pytest.raises(CheckpointError, match="the end of its weights is missing"):
            load(str(path))
