"""Tiny random models of every family, their weights scaled so that windows, soft-capping and positions matter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rewardproof.data.encoding import EncodedGroup, shared_prefix

COMMON = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "num_labels": 1,
}  # fmt: skip

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "llama_biased": LlamaConfig(**COMMON, mlp_bias=True, attention_bias=True),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=8),
    "mistral": MistralConfig(**COMMON, sliding_window=7, head_dim=8),
    "gemma2": Gemma2Config(
        **COMMON, head_dim=8, sliding_window=7, attn_logit_softcapping=2.0, query_pre_attn_scalar=5, layer_types=None,
        final_logit_softcapping=3.0,
    ),
    "gemma3": Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=7, query_pre_attn_scalar=5, sliding_window_pattern=2),
    "phi3": Phi3Config(**COMMON, sliding_window=9),
    "gpt_neox": GPTNeoXConfig(**{**COMMON, "num_key_value_heads": None}, rotary_pct=0.5),
    "gpt2": GPT2Config(
        vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=512, n_inner=48, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        num_labels=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, scale_attn_by_inverse_layer_idx=True,
    ),
}  # fmt: skip
FAMILY_NAMES = tuple(CONFIGS)


def _sharpen(model: PreTrainedModel, seed: int) -> None:
    """Random weights at a scale where attention is far from uniform and every bias differs from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and "bias" not in name:
                parameter.add_(0.1 * draw)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * draw)
            else:
                parameter.copy_(
                    draw
                    * (1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn", "query_key")) else 1.0)
                    * parameter.shape[-1] ** -0.5
                )


def classifier(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A random reward model of a family, eager attention as the stock reference, some entries of its configuration changed."""
    torch.manual_seed(seed)
    settings = {**CONFIGS[family].to_dict(), **changes}
    model = AutoModelForSequenceClassification.from_config(CONFIGS[family].__class__(**settings), attn_implementation="eager")
    _sharpen(model, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # not model.to(dtype), which would round the rotary frequencies as well
    return model.eval()


def causal(family: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random causal model of a family, some entries of its configuration changed."""
    torch.manual_seed(seed)
    settings = {**CONFIGS[family].to_dict(), **changes}
    model = AutoModelForCausalLM.from_config(CONFIGS[family].__class__(**settings), attn_implementation="eager")
    _sharpen(model, seed)
    return model.eval()


WORDS = tuple(f"w{number}" for number in range(92))


def word_tokenizer(known: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over w0 … w91, or other words, with a small chat template."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "<bar>": 3, **{word: number + 4 for number, word in enumerate(known)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<bar> ' + message['content'] + ' <eos> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<bar> ' }}{% endif %}"
    )
    return tokenizer


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str = CHATML, *, size: int = 262) -> PreTrainedTokenizerFast:
    """Byte-level BPE with hardly any merges: most words are several tokens, and so are characters of several bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def random_groups(seed: int, *, sizes: tuple[int, ...] = (1, 2, 5, 2, 1), longest: int = 14) -> list[EncodedGroup]:
    """Groups in random order whose conversations share prefixes of any length, 0 included; some answers are identical."""
    dice = random.Random(seed)
    groups: list[EncodedGroup] = []
    for place, size in enumerate(dice.sample(sizes, len(sizes))):
        prompt = [dice.randrange(4, 96) for _ in range(dice.choice([0, 1, dice.randint(2, 12)]))]
        answers = [[dice.randrange(4, 96) for _ in range(dice.randint(1, longest))] for _ in range(size)]
        if size > 2:
            answers[-1] = list(answers[0])
        if size == 2 and dice.random() < 0.5:
            answers[1] = answers[0][: dice.randint(0, len(answers[0]))] + answers[1]
        conversations = tuple(tuple(prompt + answer) for answer in answers)
        shared = dice.randint(0, shared_prefix(conversations))
        groups.append(EncodedGroup(conversations, shared, tuple(min(len(prompt), len(tokens) - 1) for tokens in conversations), place))
    return groups


def conversations(groups: Sequence[EncodedGroup]) -> list[tuple[int, ...]]:
    """Every conversation of the groups, in order."""
    return [tokens for group in groups for tokens in group.conversations]


def stock_rewards(model: PreTrainedModel, groups: Sequence[EncodedGroup]) -> Tensor:
    """Rewards of every conversation alone, through the model's own forward."""
    return torch.stack([model(input_ids=torch.tensor([tokens])).logits[0, 0] for tokens in conversations(groups)])


def output_projection(model: PreTrainedModel, layer: int) -> nn.Module:
    """The output projection of a layer's attention."""
    paths = {"gpt_neox": "gpt_neox.layers.{}.attention.dense", "gpt2": "transformer.h.{}.attn.c_proj"}
    return model.get_submodule(paths.get(model.config.model_type, "model.layers.{}.self_attn.o_proj").format(layer))


def replaced_forward(
    model: PreTrainedModel, tokens: Sequence[int], mask_LH: Tensor | None = None, values_LHD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One conversation through the stock forward, with heads of its last token replaced by hooks, one head at a time.

    Returns what the heads put out before that, `(L, H, D)`, and the log-probabilities of the next token, `(V,)`, in float64.
    """
    heads = model.config.num_attention_heads
    seen: list[Tensor] = []

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            entering = inputs[0].clone()
            by_head = entering[0, -1].view(heads, -1)
            seen.append(by_head.clone())
            for head in range(heads):
                if mask_LH is not None and values_LHD is not None and mask_LH[layer, head]:
                    by_head[head] = values_LHD[layer, head]
            return (entering,)

        return hook

    hooks = [output_projection(model, layer).register_forward_pre_hook(hook_of(layer)) for layer in range(model.config.num_hidden_layers)]
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([list(tokens)])).logits[0, -1].double()
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), logits_V.log_softmax(dim=-1)
