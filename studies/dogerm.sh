#!/usr/bin/env bash
# The study of dogerm.yaml on one family of the embedded world: studies/dogerm.sh FAMILY OUT [key=value …]
# FAMILY: case_and_punctuation, keywords, length, opening_and_closing or structure. No preference of that family trains a reward model:
# half of its training prompts teach a language model by their best answers, the other half choose the weight of the merge.
set -euo pipefail
family=$1 out=$2
mkdir -p "$out"

[[ -f $out/validation.jsonl ]] || python - "$family" "$out" <<'PY'
import json
import sys
from pathlib import Path

from rewardproof.data import read_groups, split_position, to_row

family, out = sys.argv[1], Path(sys.argv[2])
groups = read_groups("embedded:checkable/train", on_bad="drop_unfit").groups
inside = [group for group in groups if group.category == family]
parts = {
    "general": [group for group in groups if group.category != family],
    "domain": [group for group in inside if split_position(group, "domain") < 0.5],
    "validation": [group for group in inside if split_position(group, "domain") >= 0.5],
}
for name, part in parts.items():
    (out / f"{name}.jsonl").write_text("".join(json.dumps(to_row(group)) + "\n" for group in part))
PY

[[ -d $out/lm ]] || python examples/domain_sft.py embedded:smollm2-135m "$out/lm" "$out/domain.jsonl" --layers top:4 --epochs 3 --rate 1e-4

rewardproof study studies/dogerm.yaml "$out/study" paths.GENERAL="$out/general.jsonl" paths.VALIDATION="$out/validation.jsonl" \
  paths.LM="$out/lm" "${@:3}"
