r"""A mixture of ours in an architecture that stock libraries know: Qwen2Moe, whose shared expert has a gate of its own.

With a constant shared weight :math:`\lambda` and routed weights that share :math:`1 - \lambda`, the block of ours is

.. math:: y = \lambda E_0(x) + (1 - \lambda) \sum_i w_i E_i(x), \qquad \sum_i w_i = 1

and Qwen2Moe's :math:`\sigma(g \cdot x) E_0'(x) + \sum_i w_i E_i'(x)`. With :math:`g = 0` the sigmoid is one half for every token, so the
same function has the down projections :math:`D_0' = 2 \lambda D_0` and :math:`D_i' = (1 - \lambda) D_i`.
"""

# E routed experts, F feed-forward width, D hidden width.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForSequenceClassification

from rewardproof.errors import ModelError
from rewardproof.models.experts import UpcycledSparseMoeBlock
from rewardproof.models.families import family_of
from rewardproof.models.upcycling import CONFIG_KEY, moe_blocks

BASES = ("llama", "qwen2")
"""Dense architectures whose attention Qwen2Moe has, by `config.model_type`."""
_TAKEN = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act max_position_embeddings "
    "initializer_range rms_norm_eps rope_parameters tie_word_embeddings pad_token_id bos_token_id eos_token_id id2label label2id "
    "problem_type mean std"
).split()


def as_qwen2_moe(mixture: PreTrainedModel) -> Qwen2MoeForSequenceClassification:
    """The stock model that computes what a mixture computes; router and head are kept in the mixture's precision.

    Args:
        mixture: An upcycled Llama or Qwen2 with a constant shared weight.

    Raises:
        ModelError: Qwen2Moe cannot say what the mixture computes.
    """
    _check(mixture)
    blocks = moe_blocks(mixture)
    with torch.device("meta"):
        stock = Qwen2MoeForSequenceClassification(_config(mixture, blocks))
    state = {name: tensor for name, tensor in mixture.state_dict().items() if not any(f"layers.{layer}.mlp." in name for layer in blocks)}
    for layer, block in blocks.items():
        state |= {f"model.layers.{layer}.mlp.{name}": tensor for name, tensor in _block(block).items()}
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    missing, unexpected = stock.load_state_dict(copies, strict=False, assign=True)
    if missing or unexpected:
        raise ModelError(
            f"Got a mixture whose tensors are not Qwen2Moe's ({', '.join([*missing, *unexpected][:3])} …), expected a Llama or Qwen2 "
            "without further parts: they would be lost. Export format=dense after merging, or format=experts."
        )
    rotary = type(stock.model.rotary_emb)(stock.config)  # its frequencies are in no file: they are computed
    stock.model.rotary_emb = rotary
    return stock.eval()


def _check(mixture: PreTrainedModel) -> None:
    entry = getattr(mixture.config, CONFIG_KEY, None)
    if entry is None:
        raise ModelError("Got a dense model, expected a mixture: Qwen2Moe holds experts. Export format=dense.")
    kind, mixing, route_by = mixture.config.model_type, entry["mixing"], entry.get("route_by", "token")
    layers = set(getattr(mixture.config, "layer_types", None) or ["full_attention"])
    if kind not in BASES or mixing != "fixed" or route_by != "token" or layers != {"full_attention"}:
        raise ModelError(
            f"Got a {kind} mixture with mixing={mixing}, route_by={route_by} and {', '.join(sorted(layers))}, expected "
            f"{' or '.join(BASES)} with mixing=fixed, route_by=token and full attention: Qwen2Moe can say nothing else. Merge it and "
            "export format=dense, or export format=experts."
        )


def _config(mixture: PreTrainedModel, blocks: Mapping[int, UpcycledSparseMoeBlock]) -> Qwen2MoeConfig:
    source = mixture.config
    first = next(iter(blocks.values()))
    taken = {name: getattr(source, name) for name in _TAKEN if hasattr(source, name)}
    width = first.experts.expert(0)["up"].shape[0]
    labels: Any = {"num_labels": 1, "value_head_prefix": "score"}
    config = Qwen2MoeConfig(
        **taken,
        **labels,
        moe_intermediate_size=width,
        shared_expert_intermediate_size=width,
        num_experts=first.experts.n_experts - 1,
        num_experts_per_tok=first.router.n_routed,
        norm_topk_prob=True,
        mlp_only_layers=[layer for layer in range(source.num_hidden_layers) if layer not in blocks],
        qkv_bias=source.model_type == "qwen2" or bool(getattr(source, "attention_bias", False)),
        use_cache=False,
    )
    if getattr(source, "head_dim", None):
        config.head_dim = source.head_dim
    return config


def _block(block: UpcycledSparseMoeBlock) -> dict[str, Tensor]:
    """One block's tensors by Qwen2Moe's names."""
    shared, *routed = (block.experts.expert(number) for number in range(block.experts.n_experts))
    weight = block.router.shared_weight
    dtype = shared["up"].dtype
    return {
        "gate.weight": block.router.weight.to(dtype),
        "experts.gate_up_proj": torch.stack([torch.cat((one["gate"], one["up"])) for one in routed]),
        "experts.down_proj": torch.stack([(1 - weight) * one["down"] for one in routed]),
        "shared_expert.gate_proj.weight": shared["gate"],
        "shared_expert.up_proj.weight": shared["up"],
        "shared_expert.down_proj.weight": 2 * weight * shared["down"],
        "shared_expert_gate.weight": torch.zeros(1, shared["up"].shape[1], dtype=dtype),
        **{name: tensor for name, tensor in shared.items() if name.endswith("_bias")},  # which Qwen2Moe refuses
    }


def put_expert(model: PreTrainedModel, blocks: Mapping[int, UpcycledSparseMoeBlock], number: int) -> None:
    """Write one expert of every upcycled layer into the dense model that was put in the mixture's place, the shared one being 0.

    A weighted average of the models so made, one constant weight an expert, is the merge with these coefficients: all else they share.
    """
    family = family_of(model)
    for layer, block in blocks.items():
        family.write(family.layer_list(model)[layer].get_submodule("mlp"), block.experts.expert(number))
