"""The language model of a domain as what a reward model is averaged with: its weights by name, its vocabulary, and how it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.errors import ModelError
from rewardproof.models.checkpoints import causal_config, load_causal

MEANING = (
    "model_type",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
    "partial_rotary_factor",
    "rotary_pct",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
    "scale_attn_by_inverse_layer_idx",
)
"""Settings that decide what weights mean: weights learned under different ones cannot be averaged."""
OF_NO_MATTER = frozenset(
    "_name_or_path architectures dtype torch_dtype id2label label2id num_labels problem_type pad_token_id eos_token_id bos_token_id "
    "use_cache transformers_version value_head_prefix mean std vocab_size chunk_size_feed_forward output_hidden_states return_dict".split()
)
"""Settings of the checkpoint rather than of the function."""


@dataclass(frozen=True, slots=True)
class DomainModel:
    """A language model, ready to be matched with a reward model.

    Attributes:
        spec: What the user called it.
        state: Its state dict; tensors are without data where only its structure was read.
        lm_head: Name of its output layer's module.
        config: Its configuration.
        tokenizer: Its own tokenizer, as it was saved.
    """

    spec: str
    state: Mapping[str, Tensor]
    lm_head: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ids by token, as its training had them."""
        return self.tokenizer.get_vocab()

    def added_tokens(self, tokens: Mapping[str, int]) -> list[AddedToken | str]:
        """Tokens of it by id, with what its tokenizer knows of them (special, stripped …), to be given to another tokenizer."""
        known = self.tokenizer.added_tokens_decoder
        return [known.get(number, token) for token, number in sorted(tokens.items(), key=lambda entry: entry[1])]


def domain_structure(spec: str) -> DomainModel:
    """Names and shapes of a language model, without its weights.

    Raises:
        CheckpointError: Nothing of that name exists.
        ModelError: It is a reward model.
    """
    resolved, config = causal_config(spec)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    return _domain_model(spec, resolved, model)


def load_domain_model(spec: str) -> DomainModel:
    """A language model in float32, on the CPU.

    Raises:
        CheckpointError: Nothing of that name exists, or its weights cannot be read.
        ModelError: It is a reward model, or adds position biases inside its attention.
    """
    resolved, _ = causal_config(spec)
    return _domain_model(spec, resolved, load_causal(spec, dtype=torch.float32)[0])


def _domain_model(spec: str, resolved: str, model: PreTrainedModel) -> DomainModel:
    # Not `load_tokenizer`, which gives a tokenizer without a pad token one: the model has learned no row for it.
    tokenizer = AutoTokenizer.from_pretrained(resolved)
    return DomainModel(spec, model.state_dict(), name_of(model, model.get_output_embeddings()), model.config, tokenizer)


def name_of(model: PreTrainedModel, module: nn.Module | None) -> str:
    """The dotted name of a model's module."""
    return next(name for name, found in model.named_modules() if found is module)


def other_settings(reward: Any, domain: Any) -> dict[str, tuple[Any, Any]]:
    """Settings in which two configurations differ and the merged model keeps the reward model's, for the report; dropout is none of them.

    Args:
        reward: The reward model's configuration.
        domain: The language model's.

    Raises:
        ModelError: They differ in what decides what the weights mean.
    """
    ours, theirs = reward.to_dict(), domain.to_dict()
    differing = {
        name: (ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if name not in OF_NO_MATTER and "drop" not in name and ours.get(name) != theirs.get(name)
    }
    for name in MEANING:
        if name in differing:
            raise ModelError(
                f"Got {name}={differing[name][0]!r} in the reward model and {differing[name][1]!r} in the language model, expected one "
                "value: it decides what the weights mean, so their average would compute neither function. Name a language model "
                "fine-tuned from the reward model's own base."
            )
    return differing
