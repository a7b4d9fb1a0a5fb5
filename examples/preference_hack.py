"""Preferences with a bias on one answer, as rows that `evaluate` reads: its table then has a line for every bias and side.

    python examples/preference_hack.py runs/hack.jsonl preferences.jsonl
    rewardproof evaluate runs/activation/model runs/hack.jsonl
    python examples/preference_hack.py runs/shown.jsonl few.jsonl --biases length --sides rejected --without-plain

The last makes the confounded examples of a few-shot set: what is learned of them is judged by `length/chosen` against `length/rejected`.
Noisy examples are `read.label_noise=0.2` of `rewardproof train activation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rewardproof.artifacts import write_whole
from rewardproof.data import read_groups, to_row
from rewardproof.errors import RewardproofError
from rewardproof.evaluation.preference_hack import BIASES, SIDES, biased_pairs


def main() -> None:
    """Read, bias, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSONL file to write; never one that exists")
    parser.add_argument("data", nargs="+", help="preferences of any format that rewardproof reads")
    parser.add_argument("--biases", nargs="+", choices=list(BIASES), default=list(BIASES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--without-plain", action="store_true", help="leave out the pairs as they are")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists; expected a file to be made. Name another.")
    try:
        groups = read_groups(given.data, on_bad="drop_unfit")
    except RewardproofError as error:
        sys.exit(f"error: {error}")
    found = biased_pairs(groups.groups, biases=given.biases, sides=given.sides, plain=not given.without_plain, seed=given.seed)
    write_whole(given.out, "".join(json.dumps(to_row(group), ensure_ascii=False) + "\n" for group in found.groups))
    left_out = groups.counts.bad + found.counts
    print(f"{given.out}: {len(found.groups)} pairs of {groups.counts.read} rows; left out: {dict(left_out) or 'none'}")


if __name__ == "__main__":
    main()
