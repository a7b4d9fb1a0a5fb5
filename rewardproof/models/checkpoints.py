"""Loading under the checkpoint contract, by which a delivered model drops into every consumer unchanged; `saving.py` writes it.

The contract: a stock `*ForSequenceClassification` with one label, `problem_type="regression"`, a pad token that is not eos, the chat
template saved with the tokenizer, safetensors. An unmerged mixture is saved as `experts.safetensors`, a name that stock loaders do not
look for: they would otherwise fill the blocks that they do not know with random weights. A model with a head of factors is saved so too, as
`factors.safetensors`. Both are written and read one tensor at a time, so that their weights are in memory once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewardproof.data.encoding import Reads, prepare_tokenizer
from rewardproof.errors import CheckpointError, ModelError
from rewardproof.models.embedded import embedded_model_dir
from rewardproof.models.factor_head import FACTORS_FILE, FACTORS_KEY, restore_factors
from rewardproof.models.families import is_padded_only
from rewardproof.models.tensor_files import TensorFile
from rewardproof.models.upcycling import CONFIG_KEY, restore_structure

EXPERTS_FILE = "experts.safetensors"
READS_KEY = "rewardproof_reads"
"""Where a configuration says what the model reads, if not the conversation as it is."""
EMBEDDED = {"embedded:smollm2-135m": embedded_model_dir}
log = logging.getLogger(__name__)


def resolve(spec: str) -> str:
    """Turn MODEL (a directory, a hub id, or `embedded:…`) into what `from_pretrained` takes.

    Raises:
        CheckpointError: Nothing of that name exists.
    """
    if spec.startswith("embedded:"):
        if spec not in EMBEDDED:
            raise CheckpointError(
                f"Unknown embedded model {spec!r}; expected one of: {', '.join(EMBEDDED)}. Nothing else can be had without a hub; "
                "correct the name, or give a directory or a hub id."
            )
        return str(EMBEDDED[spec]())
    path = Path(spec)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inner = path / "model" / "config.json"
            hint = (
                f"; did you mean {path / 'model'}? A run keeps its model there: name that directory."
                if inner.is_file()
                else ": transformers reads the architecture from that file. Name the directory that `save_pretrained` or a run wrote."
            )
            raise CheckpointError(f"{spec} holds no config.json; expected a model directory{hint}")
        return str(path)
    if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") != 1:
        raise CheckpointError(
            f"No model at {spec!r}; expected a directory, a hub id such as Qwen/Qwen3-0.6B, or embedded:smollm2-135m. "
            "No directory has this name and it cannot be a hub id; correct the path, or train the model first."
        )
    return spec


def _load_config(spec: str) -> tuple[str, Any]:
    resolved = resolve(spec)
    try:
        return resolved, AutoConfig.from_pretrained(resolved)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Could not load a model from {spec!r} ({str(error).splitlines()[0]}); expected a local directory or a reachable hub id. "
            "Check the name, or use embedded:smollm2-135m, which needs no hub."
        ) from error


def load_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token apart from eos and a chat template; what had to be changed is logged."""
    resolved = resolve(spec)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"No tokenizer could be loaded from {spec!r} ({str(error).splitlines()[0]}); check the name, or save one beside the model."
        ) from error
    for change in prepare_tokenizer(tokenizer):
        log.warning("%s: %s", spec, change)
    return tokenizer


def load_base(spec: str, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A language model as the start of a reward model: its backbone, and a head of zeros.

    Dropout is switched off, so that training and scoring compute the same function. A checkpoint that already is a reward model keeps its
    head.
    """
    resolved, config = _load_config(spec)
    if hasattr(config, CONFIG_KEY):
        raise ModelError(f"{spec} holds experts, expected a dense model to start from; merge it first (rewardproof merge {spec} OUT).")
    if hasattr(config, FACTORS_KEY):
        raise ModelError(
            f"{spec} has a head of factors, expected a language model or a linear reward model to start from: training draws a head. Name "
            "the model that it was trained from."
        )
    if _has_head(config):
        _check_one_label(spec, config)
    config.num_labels = 1
    _switch_dropout_off(config)
    try:
        with _readable(spec):
            model = AutoModelForSequenceClassification.from_pretrained(resolved, config=config, dtype=dtype, use_safetensors=True)
    except ValueError as error:
        raise ModelError(
            f"{spec} ({config.model_type}) has no sequence-classification class in transformers, expected a decoder that has one "
            "(Llama, Qwen, Mistral, Gemma, Phi-3, GPT-NeoX, GPT-2 …); choose such a model."
        ) from error
    _apply_contract(model, tokenizer)
    if not _has_head(config):
        torch.nn.init.zeros_(model.get_submodule("score").get_parameter("weight"))
    return model


def load_causal(spec: str, *, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model that writes, with its head, and its tokenizer; dropout is switched off.

    Raises:
        CheckpointError: Nothing of that name exists, or its weights cannot be read.
        ModelError: It is a reward model, or packing cannot hold its positions.
    """
    resolved, config = causal_config(spec)
    _switch_dropout_off(config)
    tokenizer = load_tokenizer(spec)
    with _readable(spec):
        model = AutoModelForCausalLM.from_pretrained(resolved, config=config, dtype=dtype, use_safetensors=True)
    _make_room(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    if is_padded_only(model):
        raise ModelError(f"{spec} adds position biases inside its attention (ALiBi), expected rotary or learnt positions; take another.")
    return model, tokenizer


def causal_config(spec: str) -> tuple[str, Any]:
    """What `from_pretrained` takes for MODEL, and the configuration found there, which is that of a language model.

    Raises:
        CheckpointError: The checkpoint is missing.
        ModelError: It is a reward model.
    """
    resolved, config = _load_config(spec)
    if _has_head(config) or hasattr(config, CONFIG_KEY):
        raise ModelError(f"{spec} is a reward model, expected a language model, which writes answers. Name the one it was trained from.")
    return resolved, config


@contextlib.contextmanager
def _readable(spec: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The weights of {spec!r} cannot be read ({str(error).strip().splitlines()[0]}), expected whole files that fit the config.json "
            "beside them: a copy that broke off, a full disk or an exchanged file leaves such a directory. Copy or download the model "
            "again, or train it again."
        ) from error


def _switch_dropout_off(config: Any) -> None:
    for name, value in vars(config).items():
        if isinstance(value, float) and value > 0 and ("drop" in name):
            setattr(config, name, 0.0)


def _has_head(config: Any) -> bool:
    return any("ForSequenceClassification" in name for name in (config.architectures or []))


def _check_one_label(spec: str, config: Any) -> None:
    if config.num_labels != 1:
        raise ModelError(f"{spec} has {config.num_labels} labels, expected 1: a reward is one number. Choose a reward model.")


def _apply_contract(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _make_room(model, tokenizer)
    apply_contract_to_config(model, tokenizer)


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokens that the tokenizer was given an embedding."""
    if len(tokenizer) > model.get_input_embeddings().get_parameter("weight").shape[0]:
        model.resize_token_embeddings(len(tokenizer))


def apply_contract_to_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into a model's configuration what every consumer of a reward model looks for."""
    config = model.config
    config.num_labels = 1
    config.problem_type = "regression"
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.use_cache = False
    config.value_head_prefix = "score"
    config.architectures = [type(model).__name__]


def reading_of(model: PreTrainedModel) -> Reads:
    """What a reward model reads of a group."""
    return getattr(model.config, READS_KEY, "conversation")


def set_reading(model: PreTrainedModel, reads: Reads) -> None:
    """Write into a model's configuration what it reads; plain conversations are not mentioned."""
    if reads != "conversation":
        setattr(model.config, READS_KEY, reads)
    elif hasattr(model.config, READS_KEY):
        delattr(model.config, READS_KEY)


def forget_reward_scale(model: PreTrainedModel) -> None:
    """Drop `mean` and `std` from the configuration: they describe the rewards of the weights that the model had before."""
    for name in ("mean", "std"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def load_reward_model(spec: str, *, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model, dense or with experts, and its tokenizer.

    Raises:
        ModelError: The checkpoint has no reward head, or more than one label.
        CheckpointError: The checkpoint is missing or incomplete.
    """
    resolved, config = reward_model_config(spec)
    tokenizer = load_tokenizer(spec)
    if hasattr(config, CONFIG_KEY):
        model = _load_own(experts_file(resolved), config, dtype)
    elif hasattr(config, FACTORS_KEY):
        model = _load_own(_own_file(resolved, FACTORS_FILE, "a head of factors"), config, dtype)
    else:
        _switch_dropout_off(config)
        with _readable(spec):
            model = AutoModelForSequenceClassification.from_pretrained(resolved, config=config, dtype=dtype, use_safetensors=True)
    _apply_contract(model, tokenizer)
    model.eval()
    return model, tokenizer


def reward_model_config(spec: str) -> tuple[str, Any]:
    """What `from_pretrained` takes for MODEL, and the configuration found there, which is that of a reward model.

    Raises:
        ModelError: The checkpoint has no reward head, or more than one label.
        CheckpointError: The checkpoint is missing.
    """
    resolved, config = _load_config(spec)
    if not _has_head(config):
        named = ", ".join(config.architectures or ["an unnamed class"])
        raise ModelError(
            f"{spec} is {named}: it has no reward head, expected a *ForSequenceClassification with one label. "
            f"Train one from it: rewardproof train dense OUT model={spec} data=…"
        )
    _check_one_label(spec, config)
    return resolved, config


def experts_file(folder: Path | str) -> Path:
    """The file of a mixture's weights.

    Raises:
        CheckpointError: There is none.
    """
    return _own_file(folder, EXPERTS_FILE, "experts")


def _own_file(folder: Path | str, name: str, what: str) -> Path:
    file = Path(folder) / name
    if not file.is_file():
        raise CheckpointError(f"{folder} says that it holds {what} but has no {name}; the checkpoint is incomplete. Train it again.")
    return file


def structure(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model that a configuration describes, with its experts or factors, its parameters without data (on the meta device)."""
    with init_empty_weights(include_buffers=False):  # rotary frequencies and the like are in no file: they are computed here
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    if hasattr(config, CONFIG_KEY):
        restore_structure(model, getattr(config, CONFIG_KEY))
    if hasattr(config, FACTORS_KEY):
        restore_factors(model, getattr(config, FACTORS_KEY))
    return model


def check_tensors(file: TensorFile, model: PreTrainedModel) -> None:
    """Refuse a file that does not hold exactly the tensors of a model.

    Raises:
        CheckpointError: Names the first tensor that is missing, left over, or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: place.shape for name, place in file.places.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{file.path} has {name} as {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')} by its config.json: "
                "weights and configuration are not of one model. Restore the pair, or train the model again."
            )


def _load_own(path: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    model = structure(config, dtype)
    with TensorFile(path) as file:
        check_tensors(file, model)
        # With assign=True the tensors read become the parameters: at no time are there two copies.
        model.load_state_dict({name: file.read(name, empty.dtype) for name, empty in model.state_dict().items()}, assign=True)
    return model
