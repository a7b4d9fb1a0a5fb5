"""The row formats that `rewardproof` reads, in the order in which a row is held against them."""

from __future__ import annotations

import difflib

from rewardproof.data.checks import BadRow
from rewardproof.data.formats import dsp
from rewardproof.data.formats.alpaca_eval import ALPACA_ANSWERS, ALPACA_EVAL
from rewardproof.data.formats.benchmarks import LLMBAR, REWARDBENCH, RM_BENCH, RMB
from rewardproof.data.formats.dsp import DSP
from rewardproof.data.formats.fields import Format, JsonRow
from rewardproof.data.formats.gsm8k import GSM8K
from rewardproof.data.formats.helpsteer import HELPSTEER
from rewardproof.data.formats.hh import HH
from rewardproof.data.formats.llama_factory import LLAMA_FACTORY
from rewardproof.data.formats.openrlhf import OPENRLHF
from rewardproof.data.formats.prompts import PROMPTS
from rewardproof.data.formats.ranked import RANKED
from rewardproof.data.formats.rows import ROWS, to_row
from rewardproof.data.formats.trl import TRL
from rewardproof.data.formats.webgpt import WEBGPT
from rewardproof.errors import ConfigError

__all__ = ["FORMATS", "Format", "detect", "find_format", "to_row"]

FORMATS: dict[str, Format] = {
    "rows": ROWS,
    "rmb": RMB,
    "dsp": DSP,
    "webgpt": WEBGPT,
    "llmbar": LLMBAR,
    "helpsteer": HELPSTEER,
    "rm_bench": RM_BENCH,
    "rewardbench": REWARDBENCH,
    "llama_factory": LLAMA_FACTORY,
    "alpaca_eval": ALPACA_EVAL,
    "ranked": RANKED,
    "openrlhf": OPENRLHF,
    "gsm8k": GSM8K,
    "hh": HH,
    "trl": TRL,
    "prompts": PROMPTS,
}
"""Every format by the name that `format=` takes. The order is that of detection: the more particular first."""


def detect(row: JsonRow) -> Format:
    """The first format whose columns the row has.

    Raises:
        BadRow: When no format fits; names the columns found and the formats known.
    """
    for candidate in FORMATS.values():
        if candidate.matches(row):
            return candidate
    found = ", ".join(sorted(map(str, row))[:20]) or "none"
    raise BadRow("unknown format", f"unknown format: columns {found}; known formats: {', '.join(FORMATS)}; name one with format=")


def find_format(name: str) -> Format:
    """The format of that name; `dsp:DOMAIN` is `dsp` with one domain's answer preferred, `alpaca_eval:answers` the second answers alone.

    Raises:
        ConfigError: For an unknown name; names the nearest.
    """
    base, _, argument = name.partition(":")
    if base == "dsp" and argument:
        return dsp.for_domain(argument)
    if name == ALPACA_ANSWERS.name:
        return ALPACA_ANSWERS
    if name in FORMATS:
        return FORMATS[name]
    nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)[0]
    raise ConfigError(
        f"Unknown data format {name!r}; expected auto, dsp:DOMAIN, alpaca_eval:answers or one of {', '.join(FORMATS)}. The format says "
        f"which column holds the preferred answer, so none is guessed from a misspelt name; did you mean {nearest!r}?"
    )
