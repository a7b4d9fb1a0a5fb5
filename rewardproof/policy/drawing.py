"""Drawing the next token of many rows from their logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# R rows, V vocabulary.
TRIES = 8
"""Random numbers a row may use per token: at top_p = .9 a nucleus draw fails eight times in a row once in 10^8 tokens."""
CHUNK, BLOCK = 16, 256
"""Rows at a time (16 of a 49 152-word vocabulary stay in a core's cache), and words whose mass is summed first."""


def draw(logits_RV: Tensor, uniforms: np.ndarray, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws one token a row by inverting the cumulative distribution, and rejects tokens outside the nucleus.

    A token is in the nucleus if the tokens more likely than it sum to less than `top_p`; drawing again until that holds samples the
    renormalised nucleus exactly and needs no sorting.

    Args:
        logits_RV: Next-token logits, any float dtype.
        uniforms: `(rows, TRIES)` numbers in [0, 1).
        temperature: 0 for the most likely token.
        top_p: In (0, 1].
    Returns:
        Token ids, and their log-probabilities (nats, at this temperature, nucleus left aside), both of shape `(rows,)`.
    """
    if temperature <= 0:
        best_R = logits_RV.argmax(-1)
        return best_R, torch.zeros(len(best_R), device=best_R.device)
    starts = range(0, len(logits_RV), CHUNK)
    parts = [_draw_chunk(logits_RV[i : i + CHUNK].float() / temperature, uniforms[i : i + CHUNK], top_p) for i in starts]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _draw_chunk(logits_RV: Tensor, uniforms: np.ndarray, top_p: float) -> tuple[Tensor, Tensor]:
    """`draw` for a few rows."""
    mass_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)).exp_()
    total_R1 = mass_RV.sum(-1, keepdim=True)
    chosen_R = _invert(mass_RV, uniforms[:, 0])
    for attempt in range(1, TRIES if top_p < 1 else 1):
        above_R1 = (mass_RV * (mass_RV > mass_RV.gather(1, chosen_R[:, None]))).sum(-1, keepdim=True)
        outside = (above_R1 >= top_p * total_R1).squeeze(1).nonzero().squeeze(1)
        if not len(outside):
            break
        chosen_R[outside] = _invert(mass_RV[outside], uniforms[outside.cpu().numpy(), attempt])
    return chosen_R, (mass_RV.gather(1, chosen_R[:, None]) / total_R1).log().squeeze(1)


def _invert(mass_RV: Tensor, uniform_R: np.ndarray) -> Tensor:
    """Word at which each row's cumulative mass passes its share; in two levels, since a cumulative sum over the vocabulary is slow."""
    mass = functional.pad(mass_RV, (0, -mass_RV.shape[1] % BLOCK)).view(len(mass_RV), -1, BLOCK)
    cumulative = mass.sum(-1).cumsum(-1)
    target = torch.from_numpy(uniform_R.astype(np.float32)).to(mass.device)[:, None] * cumulative[:, -1:]
    which = torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)
    before = functional.pad(cumulative, (1, 0)).gather(1, which)
    inside = mass[torch.arange(len(mass), device=mass.device), which.squeeze(1)].cumsum(-1)
    offset = torch.searchsorted(inside, torch.minimum(target - before, inside[:, -1:]), right=True)
    # Rounding may point past the last word that has any mass: go no further than where the block's sum is reached.
    last = torch.searchsorted(inside, inside[:, -1:].contiguous())
    return (which * BLOCK + torch.minimum(offset, last)).squeeze(1)
