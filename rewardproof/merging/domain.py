"""DogeRM: a reward model averaged, entry by entry, with a language model of a domain; the reward head stays as it is.

Entries are paired by name, never by the order in which two models happen to list them, and every entry is accounted for. Rows of the token
embedding are paired by token. Here is the arithmetic alone: no model is loaded and nothing is chosen.

Reference:
    Lin et al., DogeRM: Equipping Reward Models with Domain Knowledge through Model Merging, arXiv:2407.01470.
"""

# V rows of the reward model's token embedding, W of the language model's, D hidden width, X any shape.
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rewardproof.errors import ModelError

State = Mapping[str, Tensor]


class Shares(NamedTuple):
    """Weights of the two models; they need not sum to one.

    Attributes:
        reward: Of the reward model.
        domain: λ, of the domain's language model.
    """

    reward: float
    domain: float


def shares(weight: float, reward_weight: float | None = None) -> Shares:
    """λ for the language model, and 1 − λ for the reward model unless it has a weight of its own.

    Example:
        >>> shares(0.25), shares(0.25, 1.0)
        (Shares(reward=0.75, domain=0.25), Shares(reward=1.0, domain=0.25))
    """
    return Shares(1 - weight if reward_weight is None else reward_weight, weight)


def blend(reward_X: Tensor, domain_X: Tensor, weights: Shares) -> Tensor:
    r"""Weighted sum :math:`(1 - \lambda) W^{RM} + \lambda W^{LM}`, computed in float32 or better and cast at the end.

    Where the weights sum to one, equal entries stay what they are and a weight of 0 or 1 gives one of the two, all to the last bit.

    Args:
        reward_X: An entry of the reward model.
        domain_X: The same entry of the language model, same shape.
        weights: Weights of both.

    Returns:
        Their weighted sum, in the reward model's precision and on its device.

    Example:
        >>> blend(torch.tensor([2.0]), torch.tensor([4.0]), shares(0.25))
        tensor([2.5000])

    Reference:
        arXiv:2407.01470, section 3.
    """
    precision = torch.promote_types(torch.promote_types(reward_X.dtype, domain_X.dtype), torch.float32)
    reward, domain = reward_X.to(precision), domain_X.to(reward_X.device, precision)
    if math.isclose(weights.reward + weights.domain, 1.0):
        return torch.lerp(reward, domain, weights.domain).to(reward_X.dtype)
    return (weights.reward * reward + weights.domain * domain).to(reward_X.dtype)


@dataclass(frozen=True, slots=True)
class Matching:
    """Which entries of a reward model and a language model belong together, and what becomes of the others.

    Attributes:
        pairs: The language model's name of every entry that is averaged, by the reward model's.
        embedding: The reward model's name of the token embedding, one of `pairs`.
        kept: Entries of the reward model that stay as they are: its head, and buffers that hold no floating-point numbers.
        dropped: Entries of the language model that nothing takes up: its head, and such buffers.
    """

    pairs: Mapping[str, str]
    embedding: str
    kept: tuple[str, ...]
    dropped: tuple[str, ...]


def match_entries(reward: State, domain: State, *, head: str, lm_head: str, embedding: str) -> Matching:
    """Pair the entries of two state dicts by name, leaving aside how each model calls its backbone (`model.`, `transformer.` …).

    Args:
        reward: State dict of the reward model; tensors may be without data.
        domain: State dict of the language model; likewise.
        head: Name of the reward head's module.
        lm_head: Name of the language model's output layer.
        embedding: The reward model's name of the token embedding's entry.

    Returns:
        What is averaged with what, and what is not.

    Raises:
        ModelError: An entry of either has no counterpart, or one of another shape; or there is no reward head.

    Example:
        >>> entry, head = torch.zeros(2, 1), torch.zeros(1, 1)
        >>> reward = {"model.embed.weight": entry, "model.norm.weight": entry[0], "score.weight": head}
        >>> domain = {"transformer.embed.weight": entry, "transformer.norm.weight": entry[0], "lm_head.weight": entry}
        >>> found = match_entries(reward, domain, head="score", lm_head="lm_head", embedding="model.embed.weight")
        >>> found.pairs["model.norm.weight"], found.kept, found.dropped
        ('transformer.norm.weight', ('score.weight',), ('lm_head.weight',))
    """
    ours, own_head = _backbone(reward, head)
    theirs, their_head = _backbone(domain, lm_head)
    if not own_head:
        raise ModelError(
            f"Got no entry of {head!r} in the reward model, expected its head: it alone is kept as it is. Name a reward model."
        )
    averaged = {short for short, name in ours.items() if reward[name].is_floating_point()}
    wanted = {short for short, name in theirs.items() if domain[name].is_floating_point()}
    unmatched = [ours[short] for short in ours if short in averaged - wanted]
    unmatched += [theirs[short] for short in theirs if short in wanted - averaged]
    if unmatched:
        shown = ", ".join(unmatched[:3]) + (", …" if len(unmatched) > 3 else "")
        raise ModelError(
            f"Got {len(unmatched)} entries that only one of the two models has ({shown}), expected the same layers in both: what is left "
            "out would silently not be merged. Name a language model fine-tuned from the reward model's own base."
        )
    for short in averaged:
        first = 1 if ours[short] == embedding else 0
        if reward[ours[short]].shape[first:] != domain[theirs[short]].shape[first:]:
            raise ModelError(
                f"Got {ours[short]} of shape {tuple(reward[ours[short]].shape)} in the reward model and "
                f"{tuple(domain[theirs[short]].shape)} in the language model, expected one shape: weights are averaged element by element. "
                "Name a language model fine-tuned from the reward model's own base."
            )
    pairs = {name: theirs[short] for short, name in ours.items() if short in averaged}
    assert embedding in pairs, f"{embedding} is no entry of the reward model's backbone"
    rest = [name for short, name in theirs.items() if short not in averaged]
    return Matching(pairs, embedding, tuple(name for name in reward if name not in pairs), (*their_head, *rest))


def _backbone(state: State, head: str) -> tuple[dict[str, str], list[str]]:
    """Entries outside the head, by their names without the parts that all of these share at the beginning; and the head's entries."""
    heads = [name for name in state if name.startswith(f"{head}.")]
    body = [name for name in state if name not in heads]
    paths = [name.split(".")[:-1] for name in body]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return {".".join(name.split(".")[shared:]): name for name in body}, heads


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which rows of two token embeddings belong together.

    Attributes:
        shared: Rows of the reward model and of the language model that are averaged: of tokens that both have, and of no token in either.
        added: Rows of the grown embedding and of the language model that are copied: of tokens that only the latter has.
        n_rows: Rows of the merged embedding.
        counts: For the report: `common` tokens, how many of them `moved` to another id, tokens `reward_only` (kept) and `domain_only`,
            and how many of the last were `added`.
    """

    shared: tuple[tuple[int, int], ...]
    added: tuple[tuple[int, int], ...]
    n_rows: int
    counts: Mapping[str, int]


def match_tokens(
    reward: Mapping[str, int], domain: Mapping[str, int], *, n_rows: tuple[int, int], added: Mapping[str, int] | None = None
) -> Tokens:
    """Pair rows of the token embeddings by token.

    Args:
        reward: The reward model's vocabulary: ids by token.
        domain: The language model's.
        n_rows: Rows of the two embeddings, which may exceed the vocabularies.
        added: Ids that tokens of the language model alone were given in the reward model's tokenizer; without it these are left out.

    Returns:
        Pairs of rows, and counts.

    Raises:
        ModelError: No token is in both.

    Example:
        >>> found = match_tokens({"a": 0, "b": 1, "c": 2}, {"b": 0, "a": 1, "d": 2}, n_rows=(3, 3), added={"d": 3})
        >>> found.shared, found.added, found.n_rows
        (((0, 1), (1, 0)), ((3, 2),), 4)
    """
    grown = dict(added or {})
    held = {token: row for token, row in domain.items() if row < n_rows[1]}
    common = {token: (row, held[token]) for token, row in reward.items() if token in held}
    if not common:
        raise ModelError(
            f"Got vocabularies of {len(reward)} and {len(domain)} tokens with none in common, expected two models of one base: rows of the "
            "embedding are averaged by token. Name a language model fine-tuned from the reward model's own base."
        )
    taken = {*reward.values(), *held.values(), *grown.values()}
    unnamed = [(row, row) for row in range(min(n_rows)) if row not in taken]
    copied = tuple((row, held[token]) for token, row in grown.items())
    counts = {
        "common": len(common),
        "moved": sum(row != other for row, other in common.values()),
        "reward_only": len(reward) - len(common),
        "domain_only": len(held) - len(common),
        "added": len(copied),
    }
    return Tokens((*common.values(), *unnamed), copied, max([n_rows[0], *(row + 1 for row, _ in copied)]), counts)


def blend_embedding(reward_VD: Tensor, domain_WD: Tensor, tokens: Tokens, weights: Shares) -> Tensor:
    """Rows of tokens that both models have averaged, the reward model's others kept, and rows of added tokens copied.

    Args:
        reward_VD: Token embedding of the reward model.
        domain_WD: Token embedding of the language model.
        tokens: Which rows belong together.
        weights: Weights of both; what is copied is not scaled by them.

    Returns:
        The merged embedding, in the reward model's precision.

    Example:
        >>> tokens = match_tokens({"a": 0, "b": 1}, {"a": 1}, n_rows=(2, 2))
        >>> blend_embedding(torch.tensor([[0.0], [5.0]]), torch.tensor([[9.0], [4.0]]), tokens, shares(0.5))
        tensor([[2.],
                [5.]])
    """
    domain_WD = domain_WD.to(reward_VD.device)
    merged = reward_VD.new_zeros((tokens.n_rows, reward_VD.shape[1]))
    merged[: len(reward_VD)] = reward_VD
    ours, theirs = _columns(tokens.shared, reward_VD)
    merged[ours] = blend(reward_VD[ours], domain_WD[theirs], weights)
    new, source = _columns(tokens.added, reward_VD)
    merged[new] = domain_WD[source].to(merged.dtype)
    return merged


def merged_entries(reward: State, domain: State, matching: Matching, tokens: Tokens, weights: Shares) -> Iterator[tuple[str, Tensor]]:
    """Entries of the merged reward model one after the other, in the reward model's order; neither model is changed.

    Args:
        reward: State dict of the reward model.
        domain: State dict of the language model.
        matching: From `match_entries`.
        tokens: From `match_tokens`.
        weights: Weights of both.
    """
    for name, tensor in reward.items():
        if name == matching.embedding:
            yield name, blend_embedding(tensor, domain[matching.pairs[name]], tokens, weights)
        else:
            yield name, blend(tensor, domain[matching.pairs[name]], weights) if name in matching.pairs else tensor


class Likeness(NamedTuple):
    """How alike two models are, all entries that are averaged taken as one vector.

    Attributes:
        cosine: cos(RM, LM): near 1 for fine-tunings of one base, near 0 for models that share no start, whose average is noise.
        relative_distance: ‖LM − RM‖ / ‖RM‖.
    """

    cosine: float
    relative_distance: float


def likeness(reward: State, domain: State, matching: Matching, tokens: Tokens) -> Likeness:
    """Likeness of a reward model and a language model, summed in float64."""
    inner = ours = theirs = apart = 0.0
    for name, other in matching.pairs.items():
        left_X, right_X = reward[name], domain[other].to(reward[name].device)
        if name == matching.embedding:
            rows, others = _columns(tokens.shared, left_X)
            left_X, right_X = left_X[rows], right_X[others]
        left_X, right_X = left_X.double(), right_X.double()
        inner += float((left_X * right_X).sum())
        ours += float(left_X.square().sum())
        theirs += float(right_X.square().sum())
        apart += float((right_X - left_X).square().sum())
    norm = (ours * theirs) ** 0.5
    return Likeness(inner / norm if norm else math.nan, (apart / ours) ** 0.5 if ours else math.nan)


def _columns(pairs: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of pairs as two index tensors."""
    table = torch.tensor(pairs, dtype=torch.long, device=like.device).reshape(-1, 2)
    return table[:, 0], table[:, 1]
