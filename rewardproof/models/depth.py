"""Smaller models out of larger ones: the layers nearest the embeddings, for proxies far smaller than the model that plays gold."""

from __future__ import annotations

from transformers import PreTrainedModel

from rewardproof.errors import ConfigError
from rewardproof.models.families import family_of


def keep_first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """Cut a model, in place, to its first layers; final norm and head stay.

    Args:
        model: Of a known family.
        count: Layers to keep.

    Returns:
        The same model.

    Raises:
        ConfigError: It has fewer.
    """
    layers = family_of(model).layer_list(model)
    if not 1 <= count <= len(layers):
        raise ConfigError(f"Got depth={count} for a model of {len(layers)} layers, expected 1 to {len(layers)}; correct it, or write 0.")
    del layers[count:]
    model.config.num_hidden_layers = count
    kinds = getattr(model.config, "layer_types", None)
    if kinds is not None:
        model.config.layer_types = list(kinds)[:count]
    return model
