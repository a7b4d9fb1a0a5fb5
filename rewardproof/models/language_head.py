"""A language model's head beside a reward head: what the same pass says of the answers' tokens."""

# L answer tokens, D hidden width, V vocabulary.
from __future__ import annotations

import copy
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rewardproof.errors import ConfigError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.packed import final_logits

HeadKind = Literal["auto", "tied", "own", "frozen"]
CHUNK = 1024
"""Tokens whose logits are in memory at a time, in the backward pass too."""


class LanguageHead(nn.Module):
    """The head of the language model that a reward model starts from: final hidden states to log-probabilities of tokens.

    Attributes:
        kind: `tied`: the model's input embedding, trained or not as that is; `own`: weights of its own that train; `frozen`: fixed.
        own: The head's own weights; `None` where the model's input embedding serves.
    """

    def __init__(self, model: PreTrainedModel, kind: Literal["tied", "own", "frozen"], own: nn.Module | None) -> None:
        """Take the model whose hidden states are read, and the head where it has weights of its own."""
        super().__init__()
        self.kind = kind
        self.own = None if own is None else own.requires_grad_(kind == "own")
        self.model_config = model.config
        self._embedding = (model.get_input_embeddings(),)  # in a tuple it stays the model's alone: neither counted nor saved twice

    @property
    def trains(self) -> bool:
        """Whether its weights change."""
        return bool(self._weight.requires_grad)

    @property
    def products(self) -> int:
        """Multiplications for one token."""
        return self._weight.numel()

    @property
    def _weight(self) -> Tensor:
        source = self._embedding[0] if self.own is None else self.own
        return cast("Tensor", source.weight)

    def log_probs(self, states_LD: Tensor, target_L: Tensor, *, chunk: int = 0) -> Tensor:
        """Log-probability of a token after each final hidden state, shape `(L,)`.

        At no time are there more than `chunk` rows of logits (0 is `CHUNK`): where a gradient is asked for they are computed again for it.
        """
        chunk = chunk or CHUNK
        pieces: list[Tensor] = []
        for states, targets in zip(states_LD.split(chunk), target_L.split(chunk), strict=True):
            if torch.is_grad_enabled():
                piece = checkpoint(self._log_probs, states, targets, use_reentrant=False, preserve_rng_state=False)
                pieces.append(cast("Tensor", piece))
            else:
                pieces.append(self._log_probs(states, targets))
        return torch.cat(pieces)

    def _log_probs(self, states_LD: Tensor, target_L: Tensor) -> Tensor:
        logits_LV = F.linear(states_LD, self._weight) if self.own is None else self.own(states_LD)
        logits_LV = final_logits(self.model_config, logits_LV)
        return logits_LV.gather(1, target_L[:, None])[:, 0] - logits_LV.logsumexp(dim=-1)


def load_language_head(spec: str, model: PreTrainedModel, *, kind: HeadKind = "auto") -> LanguageHead:
    """The head of the language model that a reward model was made from, before either is trained.

    Args:
        spec: The language model.
        model: The reward model, what trains in it chosen.
        kind: `auto` is what training the language model itself would do where the model's embeddings train, `tied` or `own` by the
            language model; where they do not it is `frozen`.

    Raises:
        ConfigError: `tied`, and the language model's head is not its input embedding.
        ModelError: It is a reward model already, or packing cannot hold its positions.
        CheckpointError: It cannot be read.
    """
    embedding = cast("Tensor", model.get_input_embeddings().weight)
    with torch.random.fork_rng(devices=[]):  # tokens that the tokenizer was given get the same rows in every run
        torch.manual_seed(0)
        causal, _ = load_causal(spec, dtype=embedding.dtype)
    head = cast("nn.Module", causal.get_output_embeddings())
    ties = head.weight is causal.get_input_embeddings().weight
    if kind == "tied" and not ties:
        raise ConfigError(
            f"Got lm_head=tied for {spec}, whose head has weights apart from its input embedding; expected a model that ties the two, or "
            "the head would start as another matrix. Write lm_head=own or lm_head=frozen, or leave it at auto."
        )
    trains = embedding.requires_grad
    if kind == "auto":
        kind = ("tied" if ties else "own") if trains else "frozen"
    if ties and (kind == "tied" or (kind == "frozen" and not trains)):
        return LanguageHead(model, kind, None)
    return LanguageHead(model, kind, copy.deepcopy(head))
