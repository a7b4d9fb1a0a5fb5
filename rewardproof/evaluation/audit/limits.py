"""Limits that a user sets on weaknesses, and which of them a reward model misses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rewardproof.config import load_yaml, nearest_hint
from rewardproof.errors import ConfigError
from rewardproof.evaluation.audit.features import FEATURES
from rewardproof.evaluation.audit.suite import PERTURBATIONS
from rewardproof.statistics import Interval

FLIPS, SLOPES, SERVING = "flips.", "slope.", "serving."
Measured = Mapping[str, Interval | float | None]
"""What was measured, by the name that a limit calls it: a number that is known exactly, or an interval; nothing where it was not."""


def read_limits(file: str, serving: tuple[str, ...]) -> dict[str, float]:
    """Limits by name, from a YAML file of `name: number` lines.

    Args:
        file: Its path.
        serving: Names of the serving checks.

    Raises:
        ConfigError: There is no such file, or it names what is not measured or sets no number.
    """
    if not Path(file).is_file():
        raise ConfigError(f"limits={file} is no file, expected a YAML file of lines like `padding: 0.1`; correct the path.")
    others = [*(SLOPES + name for name in FEATURES), *(SERVING + name for name in serving)]
    known = [*PERTURBATIONS, *(FLIPS + name for name in PERTURBATIONS), *others]
    limits = load_yaml(Path(file).read_text(), origin=file)
    for name, limit in limits.items():
        if name not in known:
            raise ConfigError(
                f"{file}: got a limit on {name!r}{nearest_hint(str(name), known)}, expected what an audit measures: "
                f"{', '.join(PERTURBATIONS)}, {FLIPS}… of each, or {', '.join(others)}. Nothing would hold it; correct the name."
            )
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise ConfigError(f"{file}: got {limit!r} as the limit on {name}, expected a number, the most that is let pass; correct it.")
    if not limits:
        raise ConfigError(f"{file} sets no limit, expected lines like `padding: 0.1`: without any, no audit would fail. Write some.")
    return {name: float(limit) for name, limit in limits.items()}


def missed_limits(limits: Mapping[str, float], measured: Measured, *, model: str, strict: bool = False) -> list[str]:
    """A sentence for every limit that a model misses.

    A limit is missed where what it limits lies beyond it by its whole interval, or was not measured.

    Args:
        limits: The most that is let pass, by name.
        measured: What was measured.
        model: What sentences call the model.
        strict: An interval that only reaches beyond the limit misses it too.

    Example:
        >>> wide = Interval(0.2, 0.05, 0.35, 90, 90)
        >>> missed_limits({"padding": 0.1}, {"padding": wide}, model="dense")
        []
        >>> missed_limits({"padding": 0.1}, {"padding": wide}, model="dense", strict=True)
        ['dense: padding is +0.200 [+0.050, +0.350], its limit 0.1']
    """
    sentences: list[str] = []
    for name, limit in limits.items():
        found = measured.get(name)
        if found is None or (isinstance(found, Interval) and not found.known):
            sentences.append(f"{model}: {name} could not be measured, its limit {limit:g}; give data that allows for it, or drop the limit")
            continue
        if isinstance(found, Interval):
            bound, shown = found.high if strict else found.low, f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        else:
            bound, shown = found, f"{found:.3g}"
        if bound > limit:
            sentences.append(f"{model}: {name} is {shown}, its limit {limit:g}")
    return sentences
