"""`rewardproof export MODEL OUT`: a reward model in a form that stock libraries load, checked by loading it, with its card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import Report, RunDirectory, refuse_inputs_inside, require_free
from rewardproof.config import Section
from rewardproof.errors import CheckpointError, ModelError
from rewardproof.merging.stock_mixture import as_qwen2_moe, put_expert
from rewardproof.models.checkpoints import load_reward_model
from rewardproof.models.saving import save_model
from rewardproof.models.upcycling import is_upcycled, moe_blocks, to_dense
from rewardproof.stages.model_card import model_card

PROBES, PROBE_TOKENS = 4, 24
"""Random texts by which a written model is compared with the one in memory, and their tokens."""
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Largest difference of a reward, over the largest reward of the probes."""


class Export(Section):
    """A reward model for others."""

    model: str
    """The reward model: a directory, with the run it came from around it where that is wanted on the card, or a hub id."""
    format: Literal["dense", "qwen2_moe", "experts"] = "dense"
    """`dense`: the model as it is. `qwen2_moe`: a mixture with a constant shared weight as the stock architecture of that name. `experts`:
    a mixture as one dense model an expert, the shared one first, which any tool that averages models can merge."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights written."""
    audit: str = ""
    """Run directory of an audit of the model, for the card."""
    licence: str = ""
    """Licence of the base model, for the card; else what its own card says, or that it is not known."""


def run(config: Export, out: Path | str, *, overwrite: bool = False) -> Report:
    """Write `OUT/model`, or `OUT/expert_0` and so on, each with its card, and load each as a stranger would.

    Raises:
        ModelError: The format cannot say what the model computes.
        CheckpointError: What was written gives other rewards, OUT holds something, or MODEL does not exist.
    """
    started = time.perf_counter()
    refuse_inputs_inside(out, [config.model, *([config.audit] if config.audit else [])])
    require_free(out, overwrite=overwrite, resume=False)
    model, tokenizer = load_reward_model(config.model)
    _check(model, config.format)
    directory = RunDirectory(out, config, overwrite=overwrite, started=started)
    gaps: dict[str, float] = {}
    for name, one in _models(model, config.format):
        target = save_model(one, tokenizer, directory.path / name, dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float32)
        gaps[name] = _gap(model if config.format == "qwen2_moe" else one, target, tokenizer, config.dtype)
        (target / "README.md").write_text(model_card(config.model, config.format, name, audit=config.audit, licence=config.licence))
    files = sorted(gaps)
    headline = f"{len(files)} model{'s' * (len(files) > 1)} as {config.format} in {config.dtype}, loaded again with equal rewards"
    return directory.finish(headline, {"format": config.format, "models": files, "largest_difference_of_rewards": gaps})


def _check(model: PreTrainedModel, form: str) -> None:
    mixed = is_upcycled(model)
    if form == "dense" and mixed:
        raise ModelError("Got a mixture for format=dense, expected a dense model; merge it first (rewardproof merge MOE OUT).")
    if form != "dense" and not mixed:
        raise ModelError(f"Got a dense model for format={form}, expected a mixture, which has experts; take format=dense.")


def _models(model: PreTrainedModel, form: str) -> Iterator[tuple[str, PreTrainedModel]]:
    """What is written, by name; of the experts one at a time in the place of the mixture."""
    if form == "dense":
        yield "model", model
    elif form == "qwen2_moe":
        yield "model", as_qwen2_moe(model)
    else:
        blocks = moe_blocks(model)
        to_dense(model)
        for number in range(next(iter(blocks.values())).experts.n_experts):
            put_expert(model, blocks, number)
            yield f"expert_{number}", model


def _gap(model: PreTrainedModel, target: Path, tokenizer: PreTrainedTokenizerBase, dtype: str) -> float:
    """Largest difference between the rewards of a model and of what was written, over the largest of them."""
    loaded, problems = AutoModelForSequenceClassification.from_pretrained(
        target, dtype=torch.float32, output_loading_info=True, use_safetensors=True
    )
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in problems[kind]]
    draw = torch.Generator().manual_seed(0)
    kept = [number for number in range(len(tokenizer)) if number != tokenizer.pad_token_id]
    probes_NT = torch.tensor(kept)[torch.randint(len(kept), (PROBES, PROBE_TOKENS), generator=draw)]
    wanted, found = _rewards(model, probes_NT), _rewards(loaded.eval(), probes_NT)
    gap = float((wanted - found).abs().max() / wanted.abs().max().clamp_min(1e-6))
    if wrong or gap > TOLERANCE[dtype]:
        raise CheckpointError(
            f"{target} loads with rewards that differ by {gap:.2g} of the largest (tensors missing or too many: "
            f"{', '.join(map(str, wrong)) or 'none'}), expected at most {TOLERANCE[dtype]:g}: others would get another model. Report it, "
            "and export format=dense meanwhile."
        )
    return gap


@torch.inference_mode()
def _rewards(model: Any, probes_NT: Tensor) -> Tensor:
    return model(input_ids=probes_NT.to(model.device)).logits[:, 0].float().cpu()
