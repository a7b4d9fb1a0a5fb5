"""Whether the prompts that a run holds out had a part in the strengths that it trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from rewardproof.stages.row_file import RowFile

log = logging.getLogger(__name__)


def warn_of_held_out_judges(data: Sequence[str], *, split: float, split_seed: int) -> None:
    """Warn where models that judged the strength of training rows were trained on prompts that this run is evaluated on.

    Held-out accuracy would flatter: what is done to a training label then depends on held-out ones. `rewardproof strength` leaves its
    settings in `FILE.report/config.yaml`; a file without them is taken as it is.

    Args:
        data: Sources of rows with strengths.
        split: Share of their prompts that this run holds out.
        split_seed: Which of the possible splits it is.
    """
    for source in data:
        settings = RowFile.at(Path(source)).report / "config.yaml"
        found = yaml.safe_load(settings.read_text()) if settings.is_file() else None
        judges = found.get("train") if isinstance(found, dict) and "folds" in found else None
        if judges is None:
            continue
        if judges["eval_data"] or judges["split_seed"] != split_seed or judges["split"] < split:
            held = f"eval_data={','.join(judges['eval_data'])}" if judges["eval_data"] else f"split={judges['split']}"
            log.warning(
                "%s: its strengths were measured with %s split_seed=%s, and this run holds out split=%s split_seed=%s: held-out prompts "
                "have trained the models that judge the training rows, and held-out accuracy flatters; measure them with this run's split",
                source, held, judges["split_seed"], split, split_seed,
            )  # fmt: skip
