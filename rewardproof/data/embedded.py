"""Data that travels with packages: the checkable world of ours, and AlpacaEval's annotations where the user has installed them."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from rewardproof.data.group import Group
from rewardproof.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

EMBEDDED: dict[str, str] = {
    "checkable": "instruction following judged by a program; /PART names a part, train without one",
    "alpaca-annotations": "42 000 pairs by annotators of AlpacaEval 0.1.7 (CC BY-NC 4.0)",
}
"""What may stand behind `embedded:`."""


def world_groups(part: str) -> list[Group]:
    """The groups of one part of the checkable world."""
    from rewardproof.data.world import load_world

    return list(load_world(part or "train"))


def annotation_files() -> list[Path]:
    """AlpacaEval's annotation files, one folder an annotator and one file a seed.

    Raises:
        MissingExtraError: When the package is not installed, or is a release that holds none.
    """
    spec = importlib.util.find_spec("alpaca_eval")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(path for root in roots for path in Path(root).glob("evaluators_configs/*/annotations_seed*_configs.json"))
    if not files:
        raise MissingExtraError(
            f"Got {'an alpaca-eval without annotations' if roots else 'no package alpaca-eval'} for embedded:alpaca-annotations; expected "
            "release 0.1.7, the one whose wheel holds the annotations. Run: pip install --no-deps alpaca-eval==0.1.7"
        )
    logger.warning("embedded:alpaca-annotations is licensed CC BY-NC 4.0: not for commercial use, and not to be redistributed")
    return files


def unknown_embedded(name: str) -> DataError:
    """The error for a name that is not in `EMBEDDED`."""
    return DataError(
        f"Got embedded:{name}; expected one of {', '.join(f'embedded:{known}' for known in EMBEDDED)}. Only these travel with a package; "
        "name one of them, or a file."
    )
