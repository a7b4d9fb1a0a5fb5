"""The packed forward: a stream of groups through a stock model, rewards read at each conversation's last token by position."""

# T tokens of the stream, C conversations, B answers, P positions of the longest, D hidden width, L answer tokens, V vocabulary.
from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rewardproof.data.packing import PackedBatch
from rewardproof.errors import ModelError
from rewardproof.models.attention import AttentionPlan, default_backend, packed_attention
from rewardproof.models.families import is_padded_only
from rewardproof.models.routing import Prompts, Router, Routing, knowing_prompts

log = logging.getLogger(__name__)
_WARNED = "_rewardproof_warned_of_padding"
"""Set on a model whose user has been told that it is scored padded."""


class Auxiliary(NamedTuple):
    """What a further term of the objective found on a stream.

    Attributes:
        loss: Sum over the stream's groups of each group's loss, the term's weight included; a scalar with a gradient.
        metrics: Quantities for the log, `room/quantity`, each summed over the stream's groups.
        pairs: Weight of the pairs' own loss beside this term, in this pass.
    """

    loss: Tensor
    metrics: Mapping[str, float]
    pairs: float = 1.0


class PackedRewards(NamedTuple):
    """Result of a packed forward.

    Attributes:
        rewards_C: One reward a conversation, shape `(C,)`, float32.
        routings: What each router decided, lowest layer first; empty for a dense model.
        states_CD: What the head read, the final hidden state of each conversation's last token, shape `(C, D)`.
        answer_states_LD: Final hidden states from which a language model predicts the answers' tokens, shape `(L, D)`, where asked for.
        states_TD: Final hidden states of all tokens of the stream, shape `(T, D)`, where asked for.
        auxiliary: What further terms of the objective found, while training.
    """

    rewards_C: Tensor
    routings: tuple[Routing, ...]
    states_CD: Tensor
    answer_states_LD: Tensor | None = None
    states_TD: Tensor | None = None
    auxiliary: tuple[Auxiliary, ...] = ()


class RewardsAndStates(NamedTuple):
    """What a reward model makes of answers, group by group.

    Attributes:
        rewards_B: The rewards, float32, on the CPU.
        states_BD: What the head read, float32, on the model's device, without gradient.
    """

    rewards_B: Tensor
    states_BD: Tensor


def hidden_states(model: PreTrainedModel, batch: PackedBatch, *, backend: str = "") -> Tensor:
    """Final hidden states of the stream, after the last norm, shape `(T, D)`.

    Args:
        model: A classification or causal model.
        batch: The stream, on the model's device.
        backend: Attention backend; empty chooses by device.
    """
    base = cast("PreTrainedModel", model.base_model)
    device = batch.token_ids_T.device
    plan = AttentionPlan(batch, device)
    prompts = Prompts(batch.group_T, batch.prompt_T, batch.n_groups)
    with packed_attention(base, backend or default_backend(device)), knowing_prompts(base, prompts):
        output = base(input_ids=batch.token_ids_T[None], position_ids=batch.position_ids_T[None], use_cache=False, plan=plan)
    return output.last_hidden_state[0]


def end_states(model: PreTrainedModel, batch: PackedBatch, *, backend: str = "") -> Tensor:
    """Final hidden state of each conversation's last token, shape `(C, D)`."""
    return _states(model, batch, backend)[batch.end_index_C]


def packed_rewards(
    model: PreTrainedModel, batch: PackedBatch, *, backend: str = "", answers: bool = False, tokens: bool = False
) -> PackedRewards:
    """Rewards of every conversation in the stream, and with `answers` what a language model's head would read of the same pass.

    With `tokens` the final hidden states of all tokens are kept too.

    Raises:
        ModelError: `answers` of a model that has to be padded.
    """
    if answers and is_padded_only(model):
        raise ModelError(
            f"Got {model.config.model_type}, expected a model whose streams are packed: log-probabilities are read from packed ones. Use "
            "another base model."
        )
    with capture_routing(model) as routings:
        states_TD = _states(model, batch, backend)
    states_CD, answer_states_LD = states_TD[batch.end_index_C], states_TD[batch.logit_index_L] if answers else None
    return PackedRewards(head_rewards(model, states_CD), tuple(routings), states_CD, answer_states_LD, states_TD if tokens else None)


def head_rewards(model: PreTrainedModel, states_CD: Tensor) -> Tensor:
    """What the model's head makes of final hidden states, shape `(C,)`, float32."""
    head = model.get_submodule("score")
    return head(states_CD.to(next(head.parameters()).dtype))[:, 0].float()


@contextlib.contextmanager
def capture_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """Collect what every router returns while the context is open."""
    captured: list[Routing] = []

    def keep(_module: nn.Module, _inputs: object, output: Routing) -> None:
        captured.append(output)

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, Router)]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def answer_log_probs(model: PreTrainedModel, batch: PackedBatch, *, backend: str = "", chunk: int = 1024) -> Tensor:
    """Log-probability of every answer token under a causal model, shape `(L,)`, in the order of `batch.target_L`.

    The logits of an answer's first token lie at the last position of the shared prefix; `batch.logit_index_L` says where.

    Raises:
        ModelError: The model has no language-model head.
    """
    states_LD = hidden_states(model, batch, backend=backend)[batch.logit_index_L]
    return target_log_probs(model, states_LD, batch.target_L, chunk=chunk)


def target_log_probs(model: PreTrainedModel, states_LD: Tensor, target_L: Tensor, *, temperature: float = 1.0, chunk: int = 1024) -> Tensor:
    """Log-probability of a token after each final hidden state, shape `(L,)`; raises as `next_token_log_probs`."""
    pieces = zip(next_token_log_probs(model, states_LD, temperature=temperature, chunk=chunk), target_L.split(chunk), strict=True)
    return torch.cat([log_probs.gather(1, targets[:, None])[:, 0] for log_probs, targets in pieces])


def next_token_log_probs(model: PreTrainedModel, states_LD: Tensor, *, temperature: float = 1.0, chunk: int = 1024) -> Iterator[Tensor]:
    """Log-probabilities over the vocabulary after each final hidden state, `(chunk, V)` at a time.

    Raises:
        ModelError: The model has no language-model head.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-model head, expected a causal model; log-probabilities need one.")
    for states in states_LD.split(chunk):
        yield (final_logits(model.config, head(states)) / temperature).log_softmax(dim=-1)


def final_logits(config: PreTrainedConfig, logits: Tensor) -> Tensor:
    """What a language model makes of its head's output, in float32: some families bend large logits."""
    cap = getattr(config, "final_logit_softcapping", None)
    logits = logits.float()
    return logits if cap is None else torch.tanh(logits / cap) * cap


def by_conversation(batch: PackedBatch, values_T: Tensor) -> list[Tensor]:
    """What belongs to each conversation's tokens out of values of the stream, first dimension T, shared prefix included."""
    ends = set(batch.end_index_C.tolist())
    return [
        torch.cat((values_T[segment.prefix_start : segment.prefix_end], values_T[segment.start : segment.end]))
        for segment in batch.segments
        if segment.end - 1 in ends
    ]


def _states(model: PreTrainedModel, batch: PackedBatch, backend: str) -> Tensor:
    """Final hidden states of the stream, shape `(T, D)`, of models that have to be padded too."""
    return _padded_states(model, batch) if is_padded_only(model) else hidden_states(model, batch, backend=backend)


def _padded_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    if not getattr(model, _WARNED, False):
        log.warning("%s adds position biases inside its attention (ALiBi); scoring it padded instead of packed", model.config.model_type)
        setattr(model, _WARNED, True)
    rows = by_conversation(batch, batch.token_ids_T)
    lengths = torch.tensor([len(row) for row in rows], device=batch.token_ids_T.device)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    mask = torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
    states_CPD = model.base_model(input_ids=padded, attention_mask=mask.long(), use_cache=False).last_hidden_state
    pieces: list[Tensor] = []
    ends, conversation = set(batch.end_index_C.tolist()), 0
    for segment in batch.segments:  # what is shared is taken from the first conversation that has it
        first = segment.prefix_end - segment.prefix_start
        pieces.append(states_CPD[conversation, first : first + segment.end - segment.start])
        conversation += segment.end - 1 in ends
    return torch.cat(pieces)


def position_boundary(model: PreTrainedModel) -> int | None:
    """Length up to which a model's rotary factors do not depend on the longest text of a stream, or `None` where they never do."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default") if isinstance(parameters, dict) else "default"
    if kind not in {"longrope", "dynamic"}:
        return None
    original = parameters.get("original_max_position_embeddings") or getattr(model.config, "original_max_position_embeddings", None)
    return int(original or model.config.max_position_embeddings)


def position_table(model: PreTrainedModel) -> int | None:
    """Length of the model's table of absolute positions; `None` for rotary positions and ALiBi."""
    config = model.config
    if is_padded_only(model) or getattr(config, "rope_parameters", None):
        return None
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None
