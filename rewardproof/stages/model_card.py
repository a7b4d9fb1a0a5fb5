"""The card of an exported reward model: how it was made, how well it judges, how it can be gamed, and under which licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from rewardproof.config import load_yaml

UNKNOWN = "not known"
_LICENCES = {"embedded:smollm2-135m": "apache-2.0"}
"""Licences of base models that have no card."""
_OF_A_RUN = ("config.yaml", "report.json")
_USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

The reward is `logits[:, 0]`, in units of its own and without a bound: only differences between answers to one prompt mean something.
It is read at the last token of the conversation as the chat template writes it."""


def model_card(spec: str, form: str, name: str, *, audit: str = "", licence: str = "") -> str:
    """Markdown with the metadata that hubs read.

    Args:
        spec: The model that was exported; the run around it is asked for recipe, data and metrics.
        form: The format.
        name: Of what was written.
        audit: Run directory of an audit.
        licence: Of the base model.
    """
    run = _run_of(Path(spec))
    config, report = _read(run, "config.yaml"), _read(run, "report.json")
    base = str(config.get("model") or UNKNOWN)
    data = config.get("data") or UNKNOWN
    sections = {
        "Use": _USE.format(name=name),
        "Recipe": _block(config) or f"No run lies around `{spec}`: how it was trained is {UNKNOWN}.",
        "Data": ", ".join(map(str, data)) if isinstance(data, list | tuple) else str(data),
        "Metrics": str(report.get("headline") or f"What it achieves is {UNKNOWN}: no report lies around it."),
        "Audit": str(_read(Path(audit), "report.json").get("headline") or f"{audit} holds no report.") if audit else "It was not audited.",
        "Licence": f"Of the base model `{base}`: {licence or licence_of(base)}. The data's own terms apply as well.",
    }
    head = {"tags": ["reward-model", "rewardproof"], "library_name": "transformers", "pipeline_tag": "text-classification"}
    known = licence or licence_of(base)
    front = yaml.safe_dump(head | ({"license": known} if known != UNKNOWN else {}) | ({"base_model": base} if base.count("/") == 1 else {}))
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{front}---\n\n# A reward model\n\nExported as `{form}` by rewardproof.\n\n{body}\n"


def licence_of(base: str) -> str:
    """What a base model's own card says of its licence."""
    if base in _LICENCES:
        return _LICENCES[base]
    card = Path(base) / "README.md"
    if not card.is_file():
        return UNKNOWN
    _, found, rest = card.read_text(errors="replace").partition("---\n")
    front = load_yaml(rest.partition("\n---")[0], origin=str(card)) if found else {}
    return str(front.get("license") or UNKNOWN)


def _run_of(model: Path) -> Path:
    """The run directory that a model lies in: its parent, or that of the folder of a member. A hub's model lies in none."""
    if not model.is_dir():
        return model
    return next((folder for folder in list(model.absolute().parents)[:3] if all((folder / name).is_file() for name in _OF_A_RUN)), model)


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        return {}
    text = file.read_text()
    return json.loads(text) if name.endswith(".json") else load_yaml(text, origin=str(file))


def _block(config: dict[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```" if config else ""
