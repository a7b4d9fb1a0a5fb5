"""How the models of a study are judged beyond pairs: what they pick among many answers, and what policies make of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewardproof.artifacts import LOG, Progress, write_whole
from rewardproof.config import dump_yaml, load_yaml, parse
from rewardproof.data import Group
from rewardproof.evaluation import BestOfNRuns, PolicyRuns
from rewardproof.report import format_interval
from rewardproof.scoring import ENSEMBLE_FILE, AnyModel, Combine, EnsembleFile, ModelEnsemble, Scorer, load_scorer
from rewardproof.scoring.combination import Floats
from rewardproof.stages.align import GOLD, Align, run_evaluations
from rewardproof.stages.align import run as run_align
from rewardproof.stages.stress_best_of_n import sharing_trunk
from rewardproof.stages.stress_pools import PoolSettings, read_pools
from rewardproof.stages.train import Train

TOLD = ("constrained", "feedback", "metarm", "cooper", "redistribution")
"""What a policy's report has of the method's own, kept in the row of each run."""
Known = dict[tuple[str, str], Floats]
"""Scores by a model or by an ensemble's members, `(M,)`, of an answer to a prompt."""


def best_of_n_found(model: Path, config: Train, pools: Mapping[str, PoolSettings], *, kept: Path) -> dict[str, Any]:
    """What a model picks from every pool, and what a forward pass of it costs; empty where there is no pool.

    Args:
        model: A reward model or an ensemble.
        config: How it was trained.
        pools: What it picks from.
        kept: Folder of the scores by an ensemble's members, which other ways to combine them need too.
    """
    if not pools:
        return {}
    compute = config.compute
    scorer = sharing_trunk(str(model), precision=compute.precision, layers=config.layers, limit_gb=compute.trunk_cache_gb)
    found: dict[str, Any] = {}
    known: Known = {}
    for name, settings in pools.items():
        read = read_pools(settings)
        gold = load_scorer(settings.gold, precision=compute.precision).score(read.groups)
        keys = [group.prompt_key for group in read.groups]
        if isinstance(scorer, ModelEnsemble):
            scores = _combined(scorer, read.groups, kept / f"{name}.json", known)
        else:
            alone = _unless_known(lambda groups: [np.array([row]) for row in scorer.score(groups)], read.groups, known)
            scores = [tuple(scores_1N[0].tolist()) for scores_1N in alone]
        found[name] = {"rows": read.rows, **BestOfNRuns([scores], gold, read.ns, keys, lengths=read.lengths).stored()}
    return {"best_of_n": found, "forward_gflops": float(f"{_forward_gflops(scorer):.4g}")}


def _combined(ensemble: ModelEnsemble, pools: Sequence[Group], file: Path, known: Known) -> list[tuple[float, ...]]:
    """An ensemble's scores, out of its members' where those of the same answers are known already."""
    answers = [f"{group.prompt_key} {len(group.answers)}" for group in pools]
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("answers") != answers:
        made = _unless_known(ensemble.by_member, pools, known)
        write_whole(file, json.dumps({"answers": answers, "scores": [scores_MN.tolist() for scores_MN in made]}))
        return ensemble.combined(made)
    return ensemble.combined([np.array(scores_MN) for scores_MN in kept["scores"]])


def _unless_known(by_member: Callable[[Sequence[Group]], list[Floats]], pools: Sequence[Group], known: Known) -> list[Floats]:
    """Scores `(M, N)` of pools; one whose answers other pools had too is not read again."""
    names = [[(group.prompt_key, text) for text in group.answer_texts] for group in pools]
    new = [place for place, own in enumerate(names) if not all(name in known for name in own)]
    for place, scores_MN in zip(new, by_member([pools[place] for place in new]), strict=True):
        known.update(zip(names[place], scores_MN.T, strict=True))
    return [np.stack([known[name] for name in own], axis=1) for own in names]


def _forward_gflops(scorer: Scorer) -> float:
    """Operations of the matrix products that one token takes part in, in 10^9; of an ensemble, those of all members."""
    return 2 * scorer.products / 1e9 if isinstance(scorer, AnyModel) else 0.0


def members_of(ensemble: Path) -> EnsembleFile:
    """What an ensemble says of itself, its members by their whole paths."""
    found = parse(EnsembleFile, load_yaml((ensemble / ENSEMBLE_FILE).read_text(), origin=str(ensemble)))
    members = [entry.model_copy(update={"model": str((ensemble / entry.model).resolve())}) for entry in found.members]
    return found.model_copy(update={"members": tuple(members)})


def recombine(ensemble: Path, how: Combine, target: Path) -> None:
    """Write an ensemble of the same members that judge in another way."""
    target.mkdir(parents=True, exist_ok=True)
    write_whole(target / ENSEMBLE_FILE, dump_yaml(members_of(ensemble).model_copy(update={"combine": how})))


def run_policies(config: Align, runs: int, folder: Path, resolved: Callable[[Align], Align], progress: Progress) -> None:
    """Optimise so many policies, each with its own seed; those of an interrupted study go on, those of other settings start anew."""
    for number in range(runs):
        settings = resolved(config).model_copy(update={"seed": config.seed + number})
        out = folder / str(number)
        written = out / "config.yaml"
        if out.exists() and (not written.is_file() or written.read_text() != dump_yaml(settings)):
            shutil.rmtree(out)
        run_align(settings, out, resume=out.exists(), progress=progress)


def policies_found(folder: Path, config: Align, runs: int) -> dict[str, Any]:
    """What policies came to, and what their steps were spent on."""
    folders = [folder / str(number) for number in range(runs)]
    together = PolicyRuns([run_evaluations(one) for one in folders], weights=config.weights, gold=GOLD if config.gold else "")
    found = together.summary()
    seconds: Counter[str] = Counter()
    for record in (json.loads(line) for one in folders for line in (one / LOG).read_text().splitlines()):
        if record["phase"] == "optimising":
            seconds.update(record["seconds"])
    reports = [json.loads((one / "report.json").read_text()) for one in folders]
    told = {part: [report.get(part) for report in reports] for part in TOLD}
    judged = "" if found.end_gold is None else f"gold {format_interval(found.end_gold, percent=False)}, "
    return {
        "headline": f"{judged}{found.end_kl:.2f} nats from the start after {together.steps[-1]} updates",
        "policies": together.stored(),
        "seconds_by_phase": {name: round(value, 1) for name, value in seconds.items()},
        **{part: own for part, own in told.items() if any(own)},
    }
