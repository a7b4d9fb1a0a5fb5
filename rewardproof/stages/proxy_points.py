"""`rewardproof proxy_points RUN… OUT`: how far each reward may be raised before gold falls, out of policy runs that raised them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from rewardproof.artifacts import Report, RunDirectory, refuse_inputs_inside, require_free
from rewardproof.config import load_yaml
from rewardproof.errors import ConfigError
from rewardproof.evaluation import FoundProxyPoints, ProxyPoints, SeenRun, find_proxy_points, run_evaluations
from rewardproof.report import Page, Section, Table, provenance_rows, proxy_points_figure, save_figure, write_page
from rewardproof.scoring import stream_names
from rewardproof.stages.experts_page import shown


def run(config: ProxyPoints, out: Path | str, *, overwrite: bool = False) -> Report:
    """Find the proxy points and draw them.

    Args:
        config: The runs, and how.
        out: Run directory; `proxy_points.json` has them by name.
        overwrite: Delete an earlier run there.

    Returns:
        The report; its headline has the points.

    Raises:
        ConfigError: There are no runs, or a directory is none.
        EvaluationError: No points can be found in them.
    """
    started = time.perf_counter()
    require_free(out, overwrite=overwrite, resume=False)
    refuse_inputs_inside(out, config.runs)
    found = found_in(config)
    directory = RunDirectory(out, config, overwrite=overwrite, resume=False, started=started)
    directory.write_text("proxy_points.json", json.dumps(found.thresholds, indent=2) + "\n")
    report = directory.finish(_verdict(found), found.as_dict())
    page = Page(
        title="How far rewards may be raised",
        subtitle=f"{len(found.gold_M)} evaluations of {len(config.runs)} policy runs",
        verdict=f"{report.headline[0].upper()}{report.headline[1:]}.",
        facts=(("evaluations", len(found.gold_M)), ("prompts judged", len(found.prompts)), ("gold there", f"{found.gold:.3f}")),
        sections=[proxy_points_section(directory, found)],
        provenance=provenance_rows(directory.path),
    )
    write_page(directory.path / "report.html", page)
    return report


def found_in(config: ProxyPoints) -> FoundProxyPoints:
    """The proxy points in the runs that the settings name.

    Raises:
        ConfigError: There are none, or a directory is no policy run.
        EvaluationError: No points can be found in them.
    """
    if not config.runs:
        raise ConfigError(
            "Got no runs to find proxy points in, expected directories of align; write proxy_points.runs=runs/ppo,runs/other."
        )
    return find_proxy_points([_seen(Path(folder)) for folder in config.runs], config)


def _seen(folder: Path) -> SeenRun:
    settings = folder / "config.yaml"
    kept = load_yaml(settings.read_text(), origin=str(settings)) if settings.is_file() else {}
    evaluations = run_evaluations(folder)
    if "reward" not in kept or not evaluations:
        raise ConfigError(
            f"{folder} has no policy run with evaluations, expected the directory that `rewardproof align` wrote: proxy points are found "
            "in what policies came to. Correct the path."
        )
    names = stream_names(kept["reward"])
    return SeenRun(evaluations, dict(zip(names, kept.get("weights") or [1.0] * len(names), strict=True)))


def proxy_points_section(directory: RunDirectory, found: FoundProxyPoints) -> Section:
    """What the points are, and the figure of how correlation moves them."""
    rows = tuple(
        (name, f"{joint:.4g}", _range(*bounds), f"{alone:.4g}", f"{joint - alone:+.3g}")
        for name, joint, bounds, alone in zip(found.names, found.joint_N, found.range_N2, found.alone_N, strict=True)
    )
    text = (
        "Where a polynomial surface through the policies' mean rewards and mean gold is highest, where evaluations lie densely enough "
        "for it to be believed. Rewards that rise together are best together: the joint points are not those of each reward alone.",
        f"The surface is off the evaluations by {found.surface.residual:.3g} in the root mean square.",
    )
    figure = save_figure(proxy_points_figure(found), directory.path, "proxy_points")
    caption = "Gold over the rewards where evaluations lie; the arrow leads from the best of each alone to the best of all together."
    columns = ("reward", "proxy point", "without a run", "alone", "moved by")
    return Section("Proxy points", text, Table(columns, rows), figures=(shown(figure, caption),))


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if np.isfinite(low) else "–"


def _verdict(found: FoundProxyPoints) -> str:
    points = ", ".join(
        f"{name} {joint:.4g}" + (f" ({low:.4g} to {high:.4g} without a run)" if np.isfinite(low) else "")
        for name, joint, (low, high) in zip(found.names, found.joint_N, found.range_N2, strict=True)
    )
    return f"proxy points {points}: gold {found.gold:.3f} there, by {len(found.gold_M)} evaluations"
