"""The frozen layers' output for all groups of a run, computed before its first step and kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from transformers import PreTrainedModel

from rewardproof.data.encoding import EncodedGroup
from rewardproof.models.precision import Precision
from rewardproof.models.trunk import TrunkCache, group_key
from rewardproof.training.processes import agreed

log = logging.getLogger(__name__)


def stored_trunk(
    model: PreTrainedModel,
    first_layer: int,
    everything: Iterable[EncodedGroup],
    *,
    precision: Precision,
    limit_gb: float,
    tokens_per_batch: int,
    progress: Callable[[int, int], None],
) -> TrunkCache | None:
    """What enters the first layer that trains, for every group; nothing where it would take more than `limit_gb`."""
    cache = TrunkCache(model, first_layer, precision=precision, limit_gb=limit_gb)
    groups = list({group_key(group): group for group in everything}.values())
    if not agreed(cache.fits(groups)):
        log.warning("the activations of the frozen layers exceed trunk_cache_gb=%s; running them every step", limit_gb)
        return None
    for done in cache.add(groups, tokens_per_batch=tokens_per_batch):
        progress(done, len(groups))
    return cache
