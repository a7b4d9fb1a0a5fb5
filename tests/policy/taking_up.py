"""What the tests of loops that learn share: a state that goes through a file into another loop, and updates that are to be the same."""

from __future__ import annotations

import io

import torch

from rewardproof.policy.on_policy import OnPolicyLoop


def take_up(loop: OnPolicyLoop, whole: OnPolicyLoop) -> None:
    """Bring a loop to where another is, by what a checkpoint keeps."""
    file = io.BytesIO()
    torch.save({"source": whole.source.state(), "policy": whole.policy.state_dict(), "optimizer": whole.optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    loop.source.load_state(kept["source"])
    loop.policy.load_state_dict(kept["policy"])
    loop.optimizer.load_state_dict(kept["optimizer"])
    loop.done = whole.done


def assert_same_updates(whole: OnPolicyLoop, parts: OnPolicyLoop, *, count: int) -> None:
    """The next updates of both log the same numbers, but for their seconds."""
    for _ in range(count):
        one, other = whole.update(), parts.update()
        one.pop("seconds"), other.pop("seconds")
        assert one == other
