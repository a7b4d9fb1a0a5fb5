"""Preferences that teach a known weakness, and preferences between the same answers that do not: does `audit` find what was planted?

    python examples/planted.py bullets runs/planted                    # writes planted.jsonl and balanced.jsonl there
    rewardproof train dense runs/guilty model=embedded:smollm2-135m data=runs/planted/planted.jsonl
    rewardproof train dense runs/innocent model=embedded:smollm2-135m data=runs/planted/balanced.jsonl
    rewardproof audit runs/guilty/model runs/innocent/model runs/audit

WEAKNESS is `length`, or a change that `audit` makes. Of two answers to a prompt of the embedded world the longer one is preferred, or
the one that the change was made to. In the balanced file the better one by the world's rules is, which in half of the pairs is the longer
or the changed one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewardproof.artifacts import write_whole
from rewardproof.data import Group, Message, read_groups, to_row
from rewardproof.evaluation.audit import PERTURBATIONS
from rewardproof.evaluation.audit.passages import Passage
from rewardproof.evaluation.audit.suite import perturbed

LENGTH = "length"
Texts = tuple[str, str]


def planted(groups: Sequence[Group], weakness: str, *, seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Pairs whose first answer is preferred: for the weakness, and for its worth, with the weakness on either side equally often."""
    guilty: list[Group] = []
    innocent: list[tuple[bool, Group]] = []
    for group, better, worse in _pairs(groups, random.Random(seed)):
        first = (
            _longer_first((better, worse)) if weakness == LENGTH else _changed_first(group, (better, worse), weakness, len(innocent) % 2)
        )
        if first is None:
            continue
        (winner, loser), on_better = first
        guilty.append(_pair(group, winner, loser))
        innocent.append((on_better, guilty[-1] if on_better else _pair(group, loser, winner)))
    each = min(sum(on for on, _ in innocent), sum(not on for on, _ in innocent))
    balanced = [pair for side in (True, False) for pair in [pair for on, pair in innocent if on is side][:each]]
    return guilty, balanced


def _pairs(groups: Sequence[Group], draw: random.Random) -> Iterator[tuple[Group, str, str]]:
    """Two answers to each prompt that differ in worth, the better one first."""
    for group in groups:
        scores = group.scores or ()
        places = [pair for pair in ((i, j) for i in range(len(scores)) for j in range(len(scores))) if scores[pair[0]] > scores[pair[1]]]
        if places:
            better, worse = draw.choice(places)
            yield group, group.answer_texts[better], group.answer_texts[worse]


def _longer_first(texts: Texts) -> tuple[Texts, bool] | None:
    one, other = (len(text.split()) for text in texts)
    return None if one == other else (texts, True) if one > other else ((texts[1], texts[0]), False)


def _changed_first(group: Group, texts: Texts, change: str, place: int) -> tuple[Texts, bool] | None:
    made = perturbed(change, Passage(texts[place], group.prompt_text, texts[1 - place]))
    return None if made is None else ((made, texts[1 - place]), place == 0)


def _pair(group: Group, winner: str, loser: str) -> Group:
    answers = tuple((Message("assistant", text),) for text in (winner, loser))
    return dataclasses.replace(group, answers=answers, scores=(1.0, 0.0), meta={})


def main() -> None:
    """Read, plant, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weakness", choices=[LENGTH, *PERTURBATIONS])
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = planted(read_groups("embedded:checkable/train", on_bad="drop_unfit").groups, given.weakness, seed=given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in zip(("planted", "balanced"), found, strict=True):
        write_whole(given.out / f"{name}.jsonl", "".join(json.dumps(to_row(pair), ensure_ascii=False) + "\n" for pair in pairs))
        print(f"{given.out / name}.jsonl: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
