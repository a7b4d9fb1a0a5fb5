"""What the tests of stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from rewardproof.config import dump_yaml
from rewardproof.policy.off_policy import OffPolicyLoop
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.stages.align import Align, run
from tests.undrawn import blank


@pytest.fixture(scope="package", autouse=True)
def undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matplotlib.figure.Figure.savefig", blank)
        yield


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


@pytest.fixture
def by_processes(launch: Callable[..., CompletedProcess[str]]) -> Callable[[Align, Path], None]:
    """`by_processes(config, folder)`: the same policy run by one process into FOLDER/1, and by two into FOLDER/2."""

    def align(config: Align, folder: Path) -> None:
        recipe = folder / "recipe.yaml"
        recipe.write_text(dump_yaml(config))
        for processes in (1, 2):
            done = launch(["-m", "rewardproof", "align", str(recipe), str(folder / str(processes))], processes=processes)
            assert done.returncode == 0, done.stderr[-4000:]

    return align
