"""What the tests of stages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewardproof.policy.off_policy import OffPolicyLoop
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.stages.align import Align, run


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stopped(config, out, after=3)`: a policy run that is interrupted after so many updates; what it left is there to go on from."""

    def stop(config: Align, out: Path, *, after: int) -> None:
        loop = OnPolicyLoop if config.direct is None else OffPolicyLoop
        update = loop.update

        def stopping(self: Any) -> dict[str, Any]:
            if self.done == after:
                raise KeyboardInterrupt
            return update(self)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "update", stopping)
            with pytest.raises(KeyboardInterrupt):
                run(config, out)

    return stop
