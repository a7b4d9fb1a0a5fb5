"""Copies what a run found into `results/NAME.json`: headline, accuracy, seconds, settings, command, commit and versions.

    python scripts/publish.py hh_dense runs/hh-dense '$HH_RLHF=/data/hh-rlhf' 'OUT=runs/hh-dense'

Each further argument `NAME=PATH` writes NAME wherever PATH stands, so that results name no machine's folders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = (
    "headline",
    "rows",
    "accuracy",
    "best_of_n",
    "gold_gain_over_dense",
    "phases_seconds",
    "scoring_seconds",
    "parameters",
    "members",
    "merge",
    "precision",
    "seconds",
)
DROPPED = ("calibration",)


def published(run: Path) -> dict[str, Any]:
    """The parts of a run's report worth keeping, with its settings and provenance."""
    report = json.loads((run / "report.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = {key: _without(report[key]) for key in KEPT if key in report}
    return {**kept, "peak_memory_gb": report["peak_memory_gb"], "config": config, "provenance": provenance}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry) for key, entry in value.items() if key not in DROPPED}
    return value


def main(name: str, run: str, *renamings: str) -> None:
    """Write `results/NAME.json`."""
    text = json.dumps(published(Path(run)), indent=2, ensure_ascii=False)
    for renaming in sorted(renamings, key=lambda entry: -len(entry)):
        shown, _, path = renaming.partition("=")
        text = text.replace(path, shown)
    target = Path(__file__).parents[1] / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text + "\n")
    print(target.relative_to(target.parents[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
