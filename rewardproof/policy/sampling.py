"""Batched sampling from a stock causal language model: many prompts, many answers each, no row ever idle for long.

Each prompt is computed once and its keys and values are copied to its answers. All answers live as rows of one preallocated cache that is
written in place; finished rows are closed up and the next answers take their place, so that the batch stays full until the last prompts.
An answer's random numbers depend on `(seed, stream, answer index)` alone, not on its neighbours: sampling can stop, go on, or extend a
pool, and in exact arithmetic gives the same answers.

This is not a serving engine: rows share one length of attention per step, and a sliding window must be longer than the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rewardproof.policy.drawing import TRIES, draw
from rewardproof.policy.row_cache import Step, in_rows, row_cache

# R rows (answers alive), P prompts of a block, T text positions, V vocabulary.
PREFILL_PROMPTS = 32


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 64
    """Tokens after which an answer is cut."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Mass of the nucleus: the tokens such that those more likely sum to less than this."""
    seed: int = 0
    """Root of all random numbers."""
    max_rows: int = 384
    """Answers alive at once; bounds memory and sets speed."""


@dataclass(frozen=True)
class Request:
    """Answers wanted for one prompt: `answers` are their indices, `stream` names the prompt in the random numbers."""

    prompt_ids: tuple[int, ...]
    answers: range
    stream: int


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        token_ids: The answer's tokens, without the end-of-sequence token.
        logprob: Sum of log-probabilities (nats, at the sampling temperature, before top-p), the end token's included.
        end: The end-of-sequence token that was drawn, or `None` where the answer was cut at `max_new_tokens`.
    """

    token_ids: tuple[int, ...]
    logprob: float
    end: int | None

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.end is not None


def sample(model: PreTrainedModel, prompts: Sequence[Sequence[int]], n: int, settings: Sampling | None = None) -> list[list[Answer]]:
    """Draws n answers for each prompt.

    Args:
        model: A causal language model; in bfloat16 it is about twice as fast on a CPU.
        prompts: Token ids of each prompt, the generation prompt included.
        n: Answers per prompt.
        settings: How to draw; the defaults of `Sampling` if left out.
    Returns:
        One list of n answers per prompt, in order.
    """
    requests = [Request(tuple(prompt), range(n), stream) for stream, prompt in enumerate(prompts)]
    results: list[list[Answer]] = [[] for _ in prompts]
    for place, answers in iterate(model, requests, settings or Sampling()):
        results[place] = answers
    return results


class Chooser(Protocol):
    """Chooses rows' next tokens out of a model's logits, and may keep of every row what it needs for that."""

    def open(self, rows: int) -> None:
        """So many rows will be alive at once at most."""
        ...

    def start(self, first: int, places: Sequence[int]) -> None:
        """Rows from `first` on begin answers to the requests at these places."""
        ...

    def move(self, source_R: Tensor, target_R: Tensor) -> None:
        """Rows take others' places."""
        ...

    def choose(self, logits_RV: Tensor, uniforms: np.ndarray, first: int, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Next tokens of the rows from `first` on, and their log-probabilities; `uniforms` are each row's own numbers in [0, 1)."""
        ...


@torch.inference_mode()
def iterate(
    model: PreTrainedModel, requests: Sequence[Request], settings: Sampling, chooser: Chooser | None = None
) -> Iterator[tuple[int, list[Answer]]]:
    """Yields `(place in requests, its answers)` as soon as a request is complete, in any order; the model is left as it was found.

    Tokens are drawn as the settings say, or chosen by what is given for that.
    """
    with in_rows(model):
        yield from _Engine(model, requests, settings, chooser or _Drawing(settings)).run()


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens with which a model ends its answers."""
    eos = model.config.eos_token_id if model.generation_config is None else model.generation_config.eos_token_id
    return set(eos if isinstance(eos, list) else [] if eos is None else [eos])


class _Drawing:
    """Draws tokens at random."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings

    def open(self, rows: int) -> None: ...

    def start(self, first: int, places: Sequence[int]) -> None: ...

    def move(self, source_R: Tensor, target_R: Tensor) -> None: ...

    def choose(self, logits_RV: Tensor, uniforms: np.ndarray, first: int, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        return draw(logits_RV, uniforms, temperature=self.settings.temperature, top_p=self.settings.top_p)


@dataclass
class Row:
    """One answer in the making."""

    place: int
    index: int
    uniforms: np.ndarray
    text: list[int] = field(default_factory=list)
    logprob: float = 0.0
    alive: bool = True


@dataclass
class _Block:
    """Prompts whose keys and values are known, and `(prompt of the block, row)` of the answers still to be started, last first."""

    stored: list[tuple[Tensor, Tensor]]
    logits_PV: Tensor
    lengths: list[int]
    queue: list[tuple[int, Row]]


class _Engine:
    """The rows alive, from the first prompt to the last answer."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], settings: Sampling, chooser: Chooser) -> None:
        self.chooser = chooser
        self.model, self.requests, self.settings, self.device = model, requests, settings, model.device
        self.order = sorted((i for i, r in enumerate(requests) if len(r.answers)), key=lambda i: -len(requests[i].prompt_ids))
        self.capacity = max(1, min(settings.max_rows, sum(len(request.answers) for request in requests)))
        length = max((len(request.prompt_ids) for request in requests), default=0) + settings.max_new_tokens
        self.eos = end_tokens(model)
        self.step = Step()
        self.block: _Block | None = None
        self.cache, self.layers = row_cache(self.step, layers=model.config.num_hidden_layers, rows=self.capacity, length=length)
        self.mask_RT = torch.full((self.capacity, length), -torch.inf, dtype=model.dtype, device=self.device)
        self.token_R = torch.zeros(self.capacity, dtype=torch.long, device=self.device)
        self.position_R = np.zeros(self.capacity, dtype=np.int64)
        self.rows: list[Row] = []
        self.done: dict[int, dict[int, Answer]] = {}

    def run(self) -> Iterator[tuple[int, list[Answer]]]:
        """Yields requests as they complete."""
        self.chooser.open(self.capacity)
        while True:
            yield from self._admit()
            if not self.rows:
                return
            dead = sum(not row.alive for row in self.rows)
            # Closing up costs copies, so finished rows wait until they are a sixteenth of the batch.
            while dead == 0 or dead < len(self.rows) // 16:
                yield from self._record(self._advance(), self.rows)
                dead = sum(not row.alive for row in self.rows)
            self._close_up()

    def _advance(self) -> Tensor:
        """Runs the model on the last token of every row; returns the next token's logits, `(rows, vocabulary)`."""
        count = len(self.rows)
        position = torch.from_numpy(self.position_R[:count]).to(self.device)
        self.step.rows, self.step.place_RW = slice(0, count), position[:, None]
        self.step.span = int(self.position_R[:count].max()) + 1
        self.mask_RT[torch.arange(count, device=self.device), position] = 0
        out = self.model(
            input_ids=self.token_R[:count, None],
            position_ids=position[:, None],
            attention_mask=self.mask_RT[:count, None, None, : self.step.span],
            past_key_values=self.cache,
            use_cache=True,
        )
        # A finished row waits to be closed up: its position stays, so that it never runs out of the cache.
        self.position_R[:count] += np.array([row.alive for row in self.rows])
        return out.logits[:, -1]

    def _record(self, logits_RV: Tensor, rows: Sequence[Row]) -> Iterator[tuple[int, list[Answer]]]:
        """Takes the next token of the last `len(rows)` rows; yields the requests that this completes."""
        steps, first = self.settings.max_new_tokens, len(self.rows) - len(rows)
        uniforms = np.stack([row.uniforms[min(len(row.text), steps - 1)] for row in rows])
        tokens, logprobs = self.chooser.choose(logits_RV, uniforms, first, rows)
        self.token_R[first : len(self.rows)] = tokens
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not row.alive:
                continue
            row.text.append(token)
            row.logprob += logprob
            if token in self.eos or len(row.text) == steps:
                row.alive = False
                yield from self._finish(row)

    def _finish(self, row: Row) -> Iterator[tuple[int, list[Answer]]]:
        """Files an answer; yields its request if that was the last one."""
        end = row.text[-1] if row.text[-1] in self.eos else None
        answers = self.done.setdefault(row.place, {})
        answers[row.index] = Answer(tuple(row.text if end is None else row.text[:-1]), row.logprob, end)
        if len(answers) == len(self.requests[row.place].answers):
            yield row.place, [answers[index] for index in self.requests[row.place].answers]

    def _close_up(self) -> None:
        """Moves the last rows alive into the places of finished ones."""
        kept = sum(row.alive for row in self.rows)
        holes = [i for i in range(kept) if not self.rows[i].alive]
        movers = [i for i in range(kept, len(self.rows)) if self.rows[i].alive]
        if holes:
            source, target = torch.tensor(movers, device=self.device), torch.tensor(holes, device=self.device)
            for layer in self.layers:
                layer.move(source, target)
            self.mask_RT[target], self.token_R[target] = self.mask_RT[source], self.token_R[source]
            self.position_R[holes] = self.position_R[movers]
            self.chooser.move(source, target)
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[kept:]

    def _admit(self) -> Iterator[tuple[int, list[Answer]]]:
        """Fills free rows with answers that have not been started; yields requests that end with their first token."""
        while len(self.rows) < self.capacity and (self.block is not None or self.order):
            block = self.block or self._prefill()
            taken = [block.queue.pop() for _ in range(min(len(block.queue), self.capacity - len(self.rows)))]
            self.block = block if block.queue else None
            yield from self._start(block, taken)

    def _start(self, block: _Block, taken: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, list[Answer]]]:
        """Copies prompts into free rows and draws their first tokens."""
        first = len(self.rows)
        source = torch.tensor([prompt for prompt, _ in taken], device=self.device)
        for mine, (keys, values) in zip(self.layers, block.stored, strict=True):
            mine.place(first, keys[source], values[source])
        self.mask_RT[first : first + len(taken)] = -torch.inf
        for place, (prompt, row) in enumerate(taken, start=first):
            self.mask_RT[place, : block.lengths[prompt]] = 0
            self.position_R[place] = block.lengths[prompt]
            self.rows.append(row)
        self.chooser.start(first, [row.place for _, row in taken])
        yield from self._record(block.logits_PV[source], [row for _, row in taken])

    def _prefill(self) -> _Block:
        """Computes the next prompts, longest first, padded on the right where causal attention cannot see it."""
        places, self.order = self.order[:PREFILL_PROMPTS], self.order[PREFILL_PROMPTS:]
        prompts = [torch.tensor(self.requests[place].prompt_ids) for place in places]
        ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(self.device)
        lengths = [len(prompt) for prompt in prompts]
        ends, which = torch.unique(torch.tensor(lengths) - 1, return_inverse=True)
        empty = DynamicCache(config=self.model.config)
        out = self.model(input_ids=ids, past_key_values=empty, use_cache=True, logits_to_keep=ends.to(self.device))
        queue = [(prompt, self._row(place, index)) for prompt, place in enumerate(places) for index in self.requests[place].answers]
        stored = [(keys, values) for keys, values, *_ in out.past_key_values]
        return _Block(stored, out.logits[torch.arange(len(places)), which], lengths, queue[::-1])

    def _row(self, place: int, index: int) -> Row:
        """An answer not yet started, with all random numbers it will use."""
        key = np.array([self.settings.seed, (self.requests[place].stream << 32) | index], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return Row(place, index, generator.random((self.settings.max_new_tokens, TRIES), dtype=np.float32))
