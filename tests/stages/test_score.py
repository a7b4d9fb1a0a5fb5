"""What `rewardproof score` refuses, what it leaves behind when it stops halfway, and how it treats rows that do not fit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from rewardproof.data import Group, Message, read_groups
from rewardproof.errors import CheckpointError, ConfigError, DataError
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model
from rewardproof.scoring import Implicit, ImplicitReward
from rewardproof.stages.row_file import as_line
from rewardproof.stages.score import Score, run

POSITIONS = 24
"""Of the tiny GPT-2; a chat turn of n words takes n + 2 tokens."""


def row_of(prompt_words: int, number: int = 0) -> dict[str, Any]:
    prompt = " ".join(f"w{40 + (number + place) % 50}" for place in range(prompt_words))
    return {"prompt": prompt, "chosen": f"w{number % 10} w1", "rejected": "w15 w16 w17"}


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def report_of(out: Path) -> dict[str, Any]:
    return json.loads(Path(f"{out}.report/report.json").read_text())


def stop_after(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """Let so many chunks be scored, then fail as a killed machine would."""
    score_encoded, seen = RewardModel.score_encoded, [0]

    def broken(self: RewardModel, *args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        if seen[0] > chunks:
            raise KeyboardInterrupt
        return score_encoded(self, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score_encoded", broken)


@pytest.fixture(scope="module")
def gpt2_dir(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    settings = {**tiny.CONFIGS["gpt2"].to_dict(), "n_positions": POSITIONS}
    settings.pop("model_type", None)
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    return save_reward_model(GPT2ForSequenceClassification(GPT2Config(**settings)).eval(), tiny.word_tokenizer(), folder)


@pytest.fixture
def mixed(tmp_path: Path, write_jsonl: Callable[..., Path]) -> Path:
    """Twelve rows; 1, 4 and 9 are longer than the tiny GPT-2 can be."""
    rows = [{**row_of(40 if number in (1, 4, 9) else 5, number), "id": number} for number in range(12)]
    return write_jsonl(tmp_path / "mixed.jsonl", rows)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize(
    ("data", "out", "message"),
    [
        ("in.jsonl", "in.jsonl", r"Got .*in.jsonl to read and .*expected two different files.*Name another OUT"),
        ("in.jsonl", "sub/../in.jsonl", r"expected two different files"),
        ("link.jsonl", "in.jsonl", r"expected two different files"),
        ("in.jsonl", "hard.jsonl", r"expected two different files"),
        ("out.jsonl.report/in.jsonl", "out.jsonl", r"expected two different files"),
        ("folder", "folder/out.jsonl", r"out.jsonl lies in .*folder, the folder to read; expected it elsewhere.*outside that folder"),
        ("folder", "folder/deep/out.jsonl", r"lies in .*folder"),
        ("in.jsonl", "sub", r"sub is a directory; expected a file.*Name a file in it"),
    ],
)
def test_what_would_destroy_rows_is_refused_before_anything_is_opened(
    data: str, out: str, message: str, options: dict[str, bool], tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    for folder in ("sub", "folder", "out.jsonl.report"):
        (tmp_path / folder).mkdir()
    for file in ("in.jsonl", "folder/in.jsonl", "out.jsonl.report/in.jsonl"):
        write_jsonl(tmp_path / file, [row_of(3)])
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "in.jsonl")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        run(Score(model=str(tmp_path / "no model is opened"), data=str(tmp_path / data)), tmp_path / out, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_appears_whole_and_an_interrupted_run_goes_on_from_its_partial(
    reward_dir: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Score(model=str(reward_dir), data=str(toy_file), chunk=32)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(config, whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(config, out)
    partial = tmp_path / "out.jsonl.partial"
    assert not out.exists()
    assert len(rows_in(partial)) == 96
    with pytest.raises(CheckpointError, match=r"partial exists, rows of an interrupted run; .*--resume .*--overwrite"):
        run(config, out)
    partial.write_bytes(partial.read_bytes()[:-9])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(config, out, resume=True)
    assert not partial.exists()
    assert [row["prompt"] for row in rows_in(out)] == [row["prompt"] for row in rows_in(whole)]
    torch.testing.assert_close(
        torch.tensor([row["rewards"] for row in rows_in(out)]), torch.tensor([row["rewards"] for row in rows_in(whole)]), atol=1e-6, rtol=0
    )
    assert report_of(out)["rows"] == report_of(whole)["rows"] == {"read": 160, "written": 160, "dropped": {}, "prompt_truncated": 0}
    assert report_of(out)["rewards"] == pytest.approx(report_of(whole)["rewards"], abs=1e-6)


def test_overwrite_keeps_the_earlier_rows_until_all_new_ones_are_there(
    reward_dir: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    run(Score(model=str(reward_dir), data=str(toy_file), chunk=32), out)
    before, report = out.read_bytes(), (tmp_path / "out.jsonl.report" / "report.json").read_bytes()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{no row\n")
    with pytest.raises(CheckpointError, match="No model at"):
        run(Score(model=str(tmp_path / "none"), data=str(toy_file)), out, overwrite=True)
    with pytest.raises(DataError, match=r"broken.jsonl:1: got broken JSON"):
        run(Score(model=str(reward_dir), data=str(broken)), out, overwrite=True)
    assert (tmp_path / "out.jsonl.report" / "report.json").read_bytes() == report
    changed = Score(model=str(reward_dir), data=str(toy_file), chunk=64)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(changed, out, overwrite=True)
    assert out.read_bytes() == before
    assert len(rows_in(tmp_path / "out.jsonl.partial")) == 64
    run(changed, out, resume=True)
    assert len(rows_in(out)) == 160
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.report", "broken.jsonl"}


def test_resume_appends_to_no_file_that_is_not_a_scored_one(reward_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    config, out = Score(model=str(reward_dir), data=str(toy_file)), tmp_path / "thesis.jsonl"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(CheckpointError, match=r"thesis.jsonl was not written by rewardproof score .*Name another OUT"):
        run(config, out, resume=True)
    run(config, out, overwrite=True)
    out.write_text('{"mine": 1}\n')
    with pytest.raises(CheckpointError, match=r"thesis.jsonl:1: got a line without rewards \(KeyError\).*--overwrite"):
        run(config, out, resume=True)
    assert out.read_text() == '{"mine": 1}\n'


def test_values_that_json_does_not_know(reward_dir: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    strange = {
        "day": date(2024, 2, 29), "at": datetime(2024, 2, 29, 12, 30), "price": Decimal("1.10"), "body": b"na\xc3\xafve",
        "blob": b"\xff\x00", "nested": {"days": [date(2023, 1, 1)]},
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row_of(3) | strange]), tmp_path / "in.parquet")
    run(Score(model=str(reward_dir), data=str(tmp_path / "in.parquet")), tmp_path / "out.jsonl")
    found = rows_in(tmp_path / "out.jsonl")[0]
    assert found.pop("rewards")
    assert found == row_of(3) | {
        "day": "2024-02-29", "at": "2024-02-29T12:30:00", "price": "1.10", "body": "naïve", "blob": "\\xff\x00",
        "nested": {"days": ["2023-01-01"]},
    }  # fmt: skip


def test_numpy_values_and_half_characters_become_json() -> None:
    line = as_line({"a": np.float32(0.5), "b": np.arange(2), "c": np.bool_(True), "d": "\ud800é", "e": base64.b64decode("AA==")})
    assert json.loads(line) == {"a": 0.5, "b": [0, 1], "c": True, "d": "\ud800é", "e": "\x00"}
    assert line.endswith(b"\n")


def test_a_conversation_beyond_the_position_table_is_named(gpt2_dir: Path, mixed: Path, tmp_path: Path) -> None:
    config = Score(model=str(gpt2_dir), data=str(mixed), chunk=4)
    message = (
        r"mixed.jsonl:2: got a conversation of 47 tokens, expected at most 24: this gpt2 model has a table of 24 positions.*overlong=drop"
    )
    with pytest.raises(DataError, match=message):
        run(config, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    model = RewardModel.load(gpt2_dir)
    with pytest.raises(DataError, match=message):
        model.score(read_groups(str(mixed)).groups)
    with pytest.raises(DataError, match=r"^answer group 1: got a conversation of 47 tokens"):
        model.score_encoded(model.encode(read_groups(str(mixed)).groups)[0])
    with pytest.raises(
        ConfigError, match=r"Got max_length=25; expected 0 for the model's own limit, or at most 24 tokens.*lower max_length"
    ):
        run(config.model_copy(update={"max_length": 25}), tmp_path / "out.jsonl")


def test_the_last_position_can_be_used(gpt2_dir: Path) -> None:
    model = RewardModel.load(gpt2_dir)
    fits, longer = (model.tokenizer.decode(range(4, 4 + size)) for size in (POSITIONS - 1, POSITIONS))
    assert model.longest == POSITIONS
    group = {"prompt": (), "raw": True}
    assert len(model.score([Group(answers=((Message("assistant", fits),),), **group)])) == 1
    with pytest.raises(DataError, match=f"conversation of {POSITIONS + 1} tokens"):
        model.score([Group(answers=((Message("assistant", longer),),), **group)])


def test_rotary_models_have_no_limit_of_their_own(reward_dir: Path, mixed: Path, tmp_path: Path) -> None:
    assert RewardModel.load(reward_dir).longest is None
    run(Score(model=str(reward_dir), data=str(mixed)), tmp_path / "a.jsonl")
    assert report_of(tmp_path / "a.jsonl")["rows"]["written"] == 12
    with pytest.raises(DataError, match=r"mixed.jsonl:2: got a conversation of 47 tokens, expected at most max_length=30"):
        run(Score(model=str(reward_dir), data=str(mixed), max_length=30), tmp_path / "b.jsonl")


@pytest.mark.parametrize("overlong", ["drop", "truncate_prompt"])
def test_long_rows_are_counted_and_a_resumed_run_counts_them_alike(
    overlong: Any, gpt2_dir: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Score(model=str(gpt2_dir), data=str(mixed), chunk=4, overlong=overlong)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(config, whole)
    kept = [number for number in range(12) if overlong != "drop" or number not in (1, 4, 9)]
    assert [row["id"] for row in rows_in(whole)] == kept
    counts = {"dropped": {"overlong": 3}, "prompt_truncated": 0} if overlong == "drop" else {"dropped": {}, "prompt_truncated": 3}
    assert report_of(whole)["rows"] == {"read": 12, "written": len(kept), **counts}
    model, source = RewardModel.load(gpt2_dir), rows_in(mixed)
    assert {key: value for key, value in rows_in(whole)[1].items() if key != "rewards"} == source[kept[1]]
    groups = read_groups(str(mixed)).groups
    short = [groups[number] for number in kept if number not in (1, 4, 9)]
    found = [row["rewards"] for row in rows_in(whole) if row["id"] not in (1, 4, 9)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(model.score(short)), atol=1e-5, rtol=0)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(config, out)
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(b"".join(partial.read_bytes().splitlines(keepends=True)[:3]) + b'{"prompt"')
    run(config, out, resume=True)
    assert [row["id"] for row in rows_in(out)] == kept
    assert report_of(out)["rows"] == report_of(whole)["rows"]
    assert report_of(out)["rewards"] == pytest.approx(report_of(whole)["rewards"], abs=1e-5)


def test_a_policy_scores_by_the_reward_that_it_implies(base_dir: Path, tied_dir: Path, toy_file: Path, tmp_path: Path) -> None:
    how = Implicit(reference=str(tied_dir), beta=0.3)
    run(Score(model=str(base_dir), data=str(toy_file), implicit=how), tmp_path / "out.jsonl")
    expected = ImplicitReward.load(str(base_dir), how).score(read_groups(str(toy_file), purpose="score").groups)
    rows = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [value for row in rows for value in row] == pytest.approx([value for row in expected for value in row], abs=1e-5)


def test_raw_text_takes_no_template(reward_dir: Path, mixed: Path, tmp_path: Path) -> None:
    run(Score(model=str(reward_dir), data=str(mixed), text="raw"), tmp_path / "out.jsonl")
    expected = RewardModel.load(reward_dir).score(read_groups(str(mixed), text="raw").groups)
    chat = RewardModel.load(reward_dir).score(read_groups(str(mixed)).groups)
    found = torch.tensor([row["rewards"] for row in rows_in(tmp_path / "out.jsonl")])
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    assert not torch.allclose(found, torch.tensor(chat), atol=1e-3)
