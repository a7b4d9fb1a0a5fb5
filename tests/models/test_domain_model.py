"""A domain's language model: what is read of it before and after training, its own vocabulary, and settings that cannot be averaged."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rewardproof.errors import CheckpointError, ModelError
from rewardproof.models.domain_model import domain_structure, load_domain_model, other_settings


def saved(tiny: ModuleType, folder: Path, model: PreTrainedModel | None = None, tokenizer: Any = None) -> str:
    (tiny.causal("llama", seed=1) if model is None else model).save_pretrained(folder)
    (tokenizer or tiny.word_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_the_structure_has_the_names_and_shapes_of_the_model_and_no_data(tiny: ModuleType, any_family: str, tmp_path: Path) -> None:
    spec = saved(tiny, tmp_path, tiny.causal(any_family))
    empty, whole = domain_structure(spec), load_domain_model(spec)
    assert {name: tensor.shape for name, tensor in empty.state.items()} == {name: tensor.shape for name, tensor in whole.state.items()}
    assert all(tensor.is_meta for name, tensor in empty.state.items() if name.endswith("weight"))
    assert empty.lm_head == whole.lm_head == "lm_head"
    assert all(torch.equal(whole.state[name], tensor) for name, tensor in tiny.causal(any_family).state_dict().items())


def test_a_pad_token_that_training_never_had_is_no_token_of_it(tiny: ModuleType, tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer(tiny.WORDS[:80])
    tokenizer.pad_token = None
    tokenizer.unk_token = None
    model = tiny.causal("llama", seed=1)
    model.resize_token_embeddings(84)
    spec = saved(tiny, tmp_path, model, tokenizer)
    found = load_domain_model(spec)
    assert "<|pad|>" not in found.vocabulary
    assert len(found.vocabulary) == 84


def test_a_tied_output_layer_is_the_embedding_and_both_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.causal("gpt2", seed=1)
    assert model.config.tie_word_embeddings
    found = load_domain_model(saved(tiny, tmp_path, model))
    assert torch.equal(found.state["lm_head.weight"], found.state["transformer.wte.weight"])
    assert found.lm_head == "lm_head"


def test_what_is_no_language_model(reward_dir: Path, tmp_path: Path) -> None:
    for load in (domain_structure, load_domain_model):
        with pytest.raises(ModelError, match="is a reward model, expected a language model"):
            load(str(reward_dir))
        with pytest.raises(CheckpointError, match="No model at"):
            load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_parameters", {"rope_theta": 1e6, "rope_type": "default"}),
        ("num_attention_heads", 8),
        ("hidden_act", "gelu"),
        ("head_dim", 4),
    ],
)
def test_settings_that_decide_what_weights_mean_may_not_differ(name: str, value: Any, tiny: ModuleType) -> None:
    ours = tiny.classifier("llama").config
    theirs = copy.deepcopy(tiny.causal("llama").config)
    setattr(theirs, name, value)
    with pytest.raises(ModelError, match=rf"Got {name}=.* in the reward model and .*, expected one value: .*fine-tuned from"):
        other_settings(ours, theirs)


def test_other_architectures_are_refused(tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match="Got model_type='llama' in the reward model and 'qwen2' in the language model"):
        other_settings(tiny.classifier("llama").config, tiny.causal("qwen2").config)


def test_other_settings_are_the_reward_models_and_are_reported(tiny: ModuleType) -> None:
    ours, theirs = tiny.classifier("llama").config, copy.deepcopy(tiny.causal("llama").config)
    assert other_settings(ours, theirs) == {}
    theirs.rms_norm_eps, theirs.tie_word_embeddings, theirs.max_position_embeddings, theirs.attention_dropout = 1e-3, True, 99, 0.5
    theirs.vocab_size, theirs.eos_token_id = 100, 7
    assert other_settings(ours, theirs) == {
        "rms_norm_eps": (1e-6, 1e-3),
        "tie_word_embeddings": (False, True),
        "max_position_embeddings": (512, 99),
    }
