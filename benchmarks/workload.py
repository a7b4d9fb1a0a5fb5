"""What the benchmarks share: real-shaped data, random models, contenders timed in turn, peak memory in a process of its own, results."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rewardproof.artifacts import provenance
from rewardproof.data import ordered_pairs, read_groups
from rewardproof.data.encoding import EncodedGroup, encode_group, shared_prefix
from rewardproof.data.group import Group, Message
from rewardproof.data.pairs import Pair
from rewardproof.models.checkpoints import load_tokenizer
from rewardproof.models.precision import computing_in, resolve_precision
from rewardproof.training.batches import TrainingGroup, TrainingSet

ROOT = Path(__file__).parents[1]
SPECIAL, VOCABULARY = 3, 8192
PROMPT, RESPONSE = (4.6, 0.8, 512), (5.2, 0.7, 700)
"""Mean and deviation of the logarithm of a length, and the longest; the shape of prompts and answers of public preference data."""
SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2}
TOP6 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9, "num_key_value_heads": 3}
"""Shape of the layers of the embedded model that the recipes train."""
Dtype = Literal["fp32", "bf16"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
DEFAULT_DTYPE: Dtype = "bf16" if resolve_precision("auto", torch.device("cpu")) == "bf16" else "fp32"
"""What training computes in on this machine unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in GB: before the work, with model and data in place, and at its highest."""

    before_gb: float
    peak_gb: float


def random_model(shape: Mapping[str, int], *, vocabulary: int = VOCABULARY) -> LlamaForSequenceClassification:
    """A reward model of random weights: only its shape matters."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, **shape}
    config = LlamaConfig(vocab_size=vocabulary, **settings)
    return LlamaForSequenceClassification(config)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer to which every word is one token, so that lengths in words are lengths in tokens."""
    names = ["<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(SPECIAL, VOCABULARY))]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + ' ' + eos_token + ' ' }}{% endfor %}"
    return tokenizer


def ragged_length(draw: random.Random, shape: tuple[float, float, int]) -> int:
    """A log-normal length between 16 and the longest."""
    mean, deviation, longest = shape
    return min(max(round(math.exp(draw.gauss(mean, deviation))), 16), longest)


def ragged_groups(count: int, *, answers: int, seed: int = 0) -> list[Group]:
    """Groups of random words with the lengths of real ones, the first answer the best."""
    draw = random.Random(seed)

    def words(shape: tuple[float, float, int]) -> str:
        return " ".join(f"w{draw.randrange(SPECIAL, VOCABULARY)}" for _ in range(ragged_length(draw, shape)))

    return [
        Group(
            prompt=(Message("user", words(PROMPT)),),
            answers=tuple((Message("assistant", words(RESPONSE)),) for _ in range(answers)),
            scores=tuple(float(-place) for place in range(answers)),
            id=str(number),
        )
        for number in range(count)
    ]


def ragged_set(count: int, *, seed: int = 0) -> TrainingSet:
    """Ordered pairs of random words."""
    tokenizer = word_tokenizer()
    groups = ragged_groups(count, answers=2, seed=seed)
    return TrainingSet([TrainingGroup(encode_group(group, tokenizer, index=n), (Pair(0, 1, None),)) for n, group in enumerate(groups)])


def hh_set(folder: str, count: int, *, seed: int = 0) -> TrainingSet:
    """Pairs of HH-RLHF in the embedded model's tokens, folded into the small vocabulary: lengths and shared prefixes stay."""
    groups = [group for group in read_groups(folder, on_bad="drop_unfit").groups if ordered_pairs(group)]
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    return TrainingSet([_folded(group, tokenizer, n) for n, group in enumerate(random.Random(seed).sample(groups, count))])


def _folded(group: Group, tokenizer: Any, index: int) -> TrainingGroup:
    whole = encode_group(group, tokenizer, index=index)
    folded = tuple(tuple(SPECIAL + token % (VOCABULARY - SPECIAL) for token in tokens) for tokens in whole.conversations)
    return TrainingGroup(EncodedGroup(folded, shared_prefix(folded), whole.answer_starts, index), ordered_pairs(group, limit=1))


def padding_free_tokens(groups: TrainingSet) -> dict[str, int]:
    """Tokens of all conversations, and of the streams that hold a shared prompt once."""
    conversations = sum(len(tokens) for entry in groups.groups for tokens in entry.group.conversations)
    return {"tokens": conversations, "tokens_shared_prompts_once": sum(entry.group.n_tokens for entry in groups.groups)}


def in_dtype(dtype: Dtype) -> Any:
    """The precision's context, the one that training uses."""
    return computing_in(dtype, torch.device("cpu"))


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(contenders: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, one after the other in every round, the first of a round changing."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(contenders[name]())
    return seconds


def spread(values: Sequence[float], *, digits: int = 3) -> dict[str, Any]:
    """Median and range."""
    return {"median": round(statistics.median(values), digits), "range": [round(min(values), digits), round(max(values), digits)]}


def ratio(over: Sequence[float], under: Sequence[float], *, scale: float = 1.0) -> dict[str, Any]:
    """Median and range of the quotients, round by round."""
    return spread([scale * first / second for first, second in zip(over, under, strict=True)])


def memory_of(work: Callable[[], object]) -> Memory:
    """Resident memory of this process before and at the peak of `work`; meant for a fresh process."""
    before = _resident_gb("VmRSS")
    with contextlib.suppress(OSError):  # the peak so far, of building models, is forgotten where the system can
        Path("/proc/self/clear_refs").write_text("5")
    work()
    return Memory(before, _resident_gb("VmHWM"))


def _resident_gb(name: str) -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the process that started this one
        return round(next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 1e6, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6), 3)


def memory_apart(module: str, *arguments: str) -> dict[str, float]:
    """What `python -m module --memory arguments…` prints last: its memory, measured in a process of its own."""
    command = [sys.executable, "-m", module, "--memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what trainers write."""
    return tempfile.TemporaryDirectory(prefix="rewardproof-bench-")


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write `results/bench_NAME.json` with the provenance."""
    target = ROOT / "results" / f"bench_{name}.json"
    target.parent.mkdir(exist_ok=True)
    threads = {"threads": torch.get_num_threads(), "load": [round(value, 2) for value in os.getloadavg()]}
    target.write_text(json.dumps({**result, "machine": threads, "provenance": provenance()}, indent=2) + "\n")
    print(target)
    return target
