"""A model cut to its first layers computes what those layers compute, and is a checkpoint like any other."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from rewardproof.errors import ConfigError
from rewardproof.models.checkpoints import load_reward_model
from rewardproof.models.depth import keep_first_layers
from rewardproof.models.families import family_of
from rewardproof.models.saving import save_reward_model


def test_the_layers_kept_compute_what_they_did(any_family: str, tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.classifier(any_family)
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        whole = model.base_model(input_ids=tokens, output_hidden_states=True).hidden_states
        keep_first_layers(model, 1)
        cut = model.base_model(input_ids=tokens, output_hidden_states=True).hidden_states
    assert len(family_of(model).layer_list(model)) == 1
    assert len(cut) == 2
    torch.testing.assert_close(cut[0], whole[0])
    seen: list[torch.Tensor] = []
    family_of(model).layer_list(model)[0].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        rewards = model(input_ids=tokens).logits
    first = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(first.reshape(whole[1].shape), whole[1])
    save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
    loaded, _ = load_reward_model(str(tmp_path / "model"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=tokens).logits, rewards)


@pytest.mark.parametrize("count", [0, 99])
def test_layers_that_are_not_there_cannot_be_kept(count: int, tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=f"Got depth={count} for a model of"):
        keep_first_layers(tiny.classifier("llama"), count)
