#!/usr/bin/env bash
# The study of dogerm.yaml on one domain: studies/dogerm.sh FAMILY OUT [key=value …], or studies/dogerm.sh gsm8k OUT DATA [key=value …]
# FAMILY of the embedded world: case_and_punctuation, keywords, length, opening_and_closing or structure. No preference of that family trains a
# reward model: half of its training prompts teach a language model by their best answers, the other half choose the weight of the merge.
# gsm8k: DATA has gsm8k/ and alpaca_eval/ as published. A reward model learns from AlpacaEval's verdicts, a language model from a quarter of
# GSM8K's worked solutions; the test problems' sampled solutions, right against wrong, choose the weight (a fifth of the problems) and judge
# (the others).
set -euo pipefail
domain=$1 out=$2
shift 2
setting=embedded general=$out/general.jsonl solutions=$out/domain.jsonl schedule=(--epochs 3) solved=""
if [[ $domain == gsm8k ]]; then
  setting=gsm8k general=$1/alpaca_eval/alpaca_eval_gpt4.jsonl.gz solutions=$1/gsm8k/train.jsonl.gz schedule=(--steps 120)
  solved=$1/gsm8k/example_model_solutions.jsonl.gz
  shift
fi
mkdir -p "$out"

[[ -f $out/validation.jsonl ]] || python - "$domain" "$out" "$solved" <<'PY'
import gzip
import json
import sys
from pathlib import Path

from rewardproof.data import Group, read_groups, split_position, to_row

domain, out, solved = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


def of_a_family() -> dict[str, list[Group]]:
    groups = read_groups("embedded:checkable/train", on_bad="drop_unfit").groups
    inside = [group for group in groups if group.category == domain]
    return {
        "general": [group for group in groups if group.category != domain],
        "domain": [group for group in inside if split_position(group, "domain") < 0.5],
        "validation": [group for group in inside if split_position(group, "domain") >= 0.5],
    }


def of_problems() -> dict[str, list[Group]]:
    rows = []
    for problem in map(json.loads, gzip.open(solved, "rt")):
        found = [value for name, value in problem.items() if name not in ("question", "ground_truth")]
        right = {one["solution"]: float(one["is_correct"]) for one in found if one["solution"].strip()}
        if len(set(right.values())) == 2:
            rows.append({"prompt": problem["question"], "answers": list(right), "scores": list(right.values())})
    (out / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = read_groups(str(out / "problems.jsonl")).groups
    return {
        "heldout": [group for group in groups if split_position(group, "domain") >= 0.2],
        "validation": [group for group in groups if split_position(group, "domain") < 0.2],
    }


for name, part in (of_problems() if solved else of_a_family()).items():
    (out / f"{name}.jsonl").write_text("".join(json.dumps(to_row(group)) + "\n" for group in part))
PY

[[ -d $out/lm ]] || python examples/domain_sft.py embedded:smollm2-135m "$out/lm" "$solutions" --layers top:4 "${schedule[@]}" --rate 1e-4

rewardproof study studies/dogerm.yaml "$out/study" "only=$setting/*/*" paths.GENERAL="$general" paths.VALIDATION="$out/validation.jsonl" \
  paths.HELDOUT="$out/heldout.jsonl" paths.LM="$out/lm" "$@"
