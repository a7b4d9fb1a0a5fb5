"""The user's mistakes: exit code 2, one message that says where and what to do, no traceback; ours: exit code 1."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.errors import ConfigError
from rewardproof.models.saving import save_reward_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert re.search(message, result.stderr), result.stderr


MISTAKES: dict[str, tuple[str, str]] = {
    "broken line": (
        "train dense OUT model={base} data={broken_jsonl}",
        r"broken.jsonl:3: got broken JSON.*expected one JSON value.*on_bad=drop",
    ),
    "not preferences": ("train dense OUT model={base} data={recipes_jsonl}", r"recipes.jsonl:1: .*unknown format.*(expected|columns)"),
    "csv columns": ("train dense OUT model={base} data={columns_csv}", r"columns.csv:\d: .*unknown format"),
    "empty file": ("train dense OUT model={base} data={empty_jsonl}", r"empty.jsonl: got 0 rows.*expected at least one"),
    "not a data file": (
        "train dense OUT model={base} data={notes_txt}",
        r"notes.txt: got a file that ends in '.txt'; expected .*rename or convert",
    ),
    "missing data file": (
        "train dense OUT model={base} data={nowhere}/a.jsonl",
        r"nowhere/a.jsonl', which is no file or folder.*correct the path",
    ),
    "unknown embedded data": ("train dense OUT model={base} data=embedded:chekable", r"chekable.*checkable"),
    "unknown key": ("train dense OUT model={base} data={toy} sed=1", r"Unknown key 'sed' \(did you mean 'seed'\?\)"),
    "unknown nested key": (
        "train umm OUT model={base} data={toy} upcycle.n_expert=4",
        r"Unknown key 'upcycle.n_expert' \(did you mean 'n_experts'\?\); section 'upcycle' has",
    ),
    "unknown recipe": ("train dens OUT model={base} data={toy}", r"Unknown recipe 'dens' \(did you mean 'dense'\?\)"),
    "broken recipe": ("train {bad_yaml} OUT model={base} data={toy}", r"bad.yaml:2: not valid YAML"),
    "missing model dir": ("train dense OUT model={nowhere} data={toy}", r"No model at '.*nowhere'; expected a directory, a hub id"),
    "unreachable hub id": ("train dense OUT model=no/model data={toy}", r"'no/model' \(.+\); check the name"),
    "hollow model dir": ("evaluate {hollow} {toy}", r"hollow holds no config.json; expected a model directory"),
    "run dir as model": ("evaluate {run} {toy}", r"holds no config.json.*did you mean .*model\?"),
    "unknown embedded model": (
        "evaluate embedded:smol {toy}",
        r"Unknown embedded model 'embedded:smol'; expected one of: embedded:smollm2-135m",
    ),
    "evaluate a causal model": ("evaluate {base} {toy}", r"is LlamaForCausalLM: it has no reward head.*train dense OUT model="),
    "score a causal model": ("score {base} {toy} OUT", r"is LlamaForCausalLM: it has no reward head"),
    "upcycle a causal model": ("upcycle {base} OUT", r"is LlamaForCausalLM: it has no reward head"),
    "serve a causal model": ("serve {base} --port 0", r"is LlamaForCausalLM: it has no reward head"),
    "serve too many names": ("serve {reward} names=a,b --port 0", r"Got 2 names for 1 models, expected one each, in order"),
    "serve an unknown limit": ("serve {reward} limits.text=3", r"Unknown key 'limits.text' \(did you mean 'texts'\?\)"),
    "export a mixture as dense": ("export {moe} OUT", r"Got a mixture for format=dense, expected a dense model; merge it first"),
    "upcycle a mixture": ("upcycle {moe} OUT", r"holds experts already, expected a dense one; merge it first"),
    "train from a mixture": (
        "train dense OUT model={moe} data={toy}",
        r"moe holds experts, expected a dense model to start from; merge it first",
    ),
    "one expert": ("upcycle {reward} OUT n_experts=1", r"n_experts=1: .*at least one routed expert; write n_experts=2 or more"),
    "one expert in train": ("train umm OUT model={base} data={toy} upcycle.n_experts=1", r"upcycle.n_experts=1: "),
    "two experts and s_max": ("upcycle {reward} OUT n_experts=2 n_active=2", r"n_experts=2.*n_experts=3 or more, or mixing=fixed"),
    "too many active": ("upcycle {reward} OUT n_experts=4 n_active=5", r"n_active=5: expected 2 to n_experts=4"),
    "merge a dense model": (
        "merge {reward} OUT data={toy}",
        r"is dense, expected a mixture of experts: it has nothing to merge. Give OUT/moe",
    ),
    "merge a causal model": ("merge {base} OUT data={toy}", r"has no reward head"),
    "merge without data": ("merge {moe} OUT", r"Missing data=: .*name the training data"),
    "merge two mixtures": (
        "merge {moe} {moe} OUT data={toy}",
        r"Got 2 models for method=learned, expected one mixture; to average models write method=average",
    ),
    "average one": ("merge {reward} OUT method=average", r"method=average got 1 model, expected two or more"),
    "average a mixture": ("merge {reward} {moe} OUT method=average", r"moe is a mixture, expected dense models.*merge its experts first"),
    "a domain without data": ("merge {reward} {base} OUT method=domain", r"Missing data=: λ is chosen by accuracy on validation"),
    "a domain of one model": ("merge {reward} OUT method=domain weight=0.5", r"Got 1 models for method=domain, expected two"),
    "a domain's model that judges": (
        "merge {reward} {reward} OUT method=domain weight=0.5",
        r"is a reward model, expected a language model, which writes answers",
    ),
    "a weight beyond one": ("merge {reward} {base} OUT method=domain weight=1.5", r"Bad value for 'weight"),
    "dogerm without its model": ("train dogerm OUT model={base} data={toy}", r"Missing domain.model: .*give its directory or hub id"),
    "unknown method": ("merge {moe} OUT data={toy} method=magic", r"Bad value for 'method': got 'magic'; input should be 'uniform'"),
    "missing model=": ("train dense OUT data={toy}", r"Missing key 'model': .*give it as model=…"),
    "missing data=": ("train dense OUT model={base}", r"Missing key 'data': .*give it as data=…"),
    "empty data=": ("train dense OUT model={base} data=", r"no source: got 0 rows|Missing|No data"),
    "value of a wrong type": (
        "train dense OUT model={base} data={toy} seed=many",
        r"Bad value for 'seed': got 'many'; input should be a valid integer",
    ),
    "section for a value": ("train dense OUT model={base} data={toy} loss=3", r"Bad value for 'loss': got 3"),
    "bad trainer key": (
        "train dense OUT model={base} data={toy} trainer.learning_rat=1",
        r"Unknown key .trainer\.learning_rat.*did you mean .learning_rate.*Correct the key",
    ),
    "bad trainer value": ("train dense OUT model={base} data={toy} trainer.lr_scheduler_type=wavy", r"Bad `trainer:` settings: .*wavy"),
    "too many layers": (
        "train dense OUT model={base} data={toy} layers=top:99",
        r"layers='top:99': expected `all` or `top:K` with K from 0 to 3",
    ),
    "evaluation without held-out data": (
        "train dense OUT model={base} data={toy} split=0 trainer.eval_strategy=epoch",
        r"trainer.eval_strategy=epoch: nothing is held out",
    ),
    "too little for the merge": (
        "train umm OUT model={base} data={toy} merge.held_out=0.001",
        r"merge.held_out=0.001 of \d+ training groups leaves 0",
    ),
    "reuse more than members": (
        "train dense OUT model={base} data={toy} reuse={reward},{reward}",
        r"reuse names 2 models but members=1; raise members",
    ),
    "reuse a missing model": ("train warm OUT model={base} data={toy} reuse={nowhere}", r"No model at '.*nowhere'"),
    "OUT is not ours": (
        "train dense {mine} model={base} data={toy} --overwrite",
        r"mine was not written by rewardproof .*refusing to delete",
    ),
    "resume what is not ours": ("train dense {mine} model={base} data={toy} --resume", r"mine was not written by rewardproof"),
    "OUT is a file": ("train dense {toy} model={base} data={toy}", r"toy.jsonl is a file; expected a directory to write to"),
    "OUT is occupied": ("train dense {mine} model={base} data={toy}", r"mine is not empty; .*--overwrite.*--resume"),
    "overwrite and resume": (
        "train dense OUT model={base} data={toy} --overwrite --resume",
        r"Got --overwrite and --resume, expected one of them: .*Drop one",
    ),
    "overwrite and resume scores": ("score {reward} {toy} OUT --resume --overwrite", r"Got --overwrite and --resume"),
    "merge into the input": ("merge {moe} {moe} data={toy} --overwrite", r"moe lies in the output directory .*Name another"),
    "score OUT exists": ("score {reward} {toy} {existing_jsonl}", r"existing.jsonl exists; .*--overwrite or --resume"),
    "score a broken line": ("score {reward} {broken_jsonl} OUT", r"broken.jsonl:3: got broken JSON"),
    "too few arguments": ("train dense", r"Got the arguments: dense; expected RECIPE OUT, then settings as key=value \(write ./a=b"),
    "too many arguments": ("score {reward} {toy} OUT OUT", r"expected MODEL IN OUT"),
    "unknown key of evaluate": ("evaluate {reward} {toy} splitt=0.1", r"Unknown key 'splitt' \(did you mean 'split'\?\)"),
    "split that holds out nothing": (
        "evaluate {reward} {toy} split=0.000001",
        r"toy.jsonl: split=1e-06 holds out none of its 160 groups.*Raise split",
    ),
    "text in UTF-16": (
        "train dense OUT model={base} data={utf16_jsonl}",
        r"utf16.jsonl:1: got broken JSON: .*expected one JSON value in UTF-8",
    ),
    "a score that is no number": (
        "train dense OUT model={base} data={scores_jsonl}",
        r"scores.jsonl:1: got non-finite score: score nan; expected finite scores",
    ),
    "ties alone": ("train dense OUT model={base} data={ties_jsonl}", r"got 1 rows of which none can be used \(1 × identical answers\)"),
    "a conversation beyond the limit": (
        "train dense OUT model={base} data={long_jsonl} split=0",
        r"long.jsonl:1: got a conversation of 3005 tokens, expected at most max_length=2048; raise max_length",
    ),
    "an archive cut off": (
        "train dense OUT model={base} data={cut_gz}",
        r"cut.jsonl.gz: got a file that cannot be read to its end \(EOFError",
    ),
    "an array cut off": ("evaluate {reward} {cut_json}", r"cut.json: got a file that cannot be read to its end .*broken JSON array"),
    "junk for Parquet": ("evaluate {reward} {junk}", r"junk.parquet: got a file that cannot be read to its end \(ArrowInvalid"),
    "a ragged table": ("score {reward} {ragged_csv} OUT", r"ragged.csv:2: got ragged CSV row: 2 cells under 3 columns"),
    "unknown format": ("train dense OUT model={base} data={toy} read.format=trll", r"Unknown data format 'trll'; .*did you mean 'trl'"),
    "weights cut off": ("evaluate {torn_model} {toy}", r"The weights of '.*torn' cannot be read \(.*Copy or download the model again"),
    "weights cut off in training": ("train dense OUT model={torn_model} data={toy}", r"The weights of '.*torn' cannot be read"),
    "no weights": (
        "score {weightless_model} {toy} OUT",
        r"The weights of '.*weightless' cannot be read \(.*no file named model.safetensors",
    ),
    "weights of another shape": (
        "evaluate {wider_model} {toy}",
        r"The weights of '.*wider' cannot be read .*files that fit the config.json",
    ),
    "broken config.json": ("evaluate {unconfigured_model} {toy}", r"Could not load a model from '.*unconfigured' \(.*not a valid JSON"),
    "architecture of the future": ("evaluate {unknown_model} {toy}", r"Could not load a model from '.*unknown' \(.*model type `nomodel`"),
    "two labels": ("evaluate {two_labels_model} {toy}", r"two_labels has 2 labels, expected 1: a reward is one number"),
    "no tokenizer": ("evaluate {speechless_model} {toy}", r"No tokenizer could be loaded from '.*speechless'.*save one beside the model"),
    "broken tokenizer": ("evaluate {garbled_model} {toy}", r"No tokenizer could be loaded from '.*garbled'"),
    "weights that are no numbers": ("evaluate {nan_model} {toy}", r"The reward of .*toy.jsonl:1 is nan, expected a finite number"),
    "a file as model": ("evaluate {toy} {toy}", r"No model at '.*toy.jsonl'; expected a directory"),
    "a mixture to reuse": (
        "train warm OUT model={base} data={toy} reuse={moe}",
        r"reuse=.*moe is a mixture, expected dense models: .*Merge it",
    ),
    "OUT below a file": (
        "train dense {toy}/out model={base} data={toy}",
        r"Cannot write .*out: .*toy.jsonl is a file, expected a directory",
    ),
    "score OUT below a file": ("score {reward} {toy} {toy}/out", r"Cannot write .*out: .*toy.jsonl is a file"),
    "copy below a file": ("recipes cp umm {toy}/umm.yaml", r"Cannot write .*umm.yaml: .*toy.jsonl is a file, .*Name another place"),
    "a word for a number": (
        "train dense OUT model={base} data={toy} trainer.learning_rate=fast",
        r"Got trainer.learning_rate='fast', expected a number.*write one",
    ),
    "batches of none": (
        "train dense OUT model={base} data={toy} trainer.per_device_train_batch_size=0",
        r"Got trainer.per_device_train_batch_size=0, expected 1 or more: .*Correct it",
    ),
    "fewer than no epochs": (
        "train dense OUT model={base} data={toy} trainer.num_train_epochs=-1",
        r"num_train_epochs=-1, expected 0 or more",
    ),
    "a negative seed": (
        "train dense OUT model={base} data={toy} seed=-1",
        r"Bad value for 'seed': got -1; input should be greater than or",
    ),
    "a tracker that is not installed": (
        "train dense OUT model={base} data={toy} trainer.report_to=clearml",
        r"Got trainer.report_to=\['clearml'\], expected its package to be here: .*Install it, or drop report_to",
    ),
    "an optimizer that is none": (
        "train dense OUT model={base} data={toy} trainer.optim=nope",
        r"Bad `trainer:` settings: nope is not a valid",
    ),
    "no data to evaluate on": ("evaluate {reward} data=", r"Got the arguments: .*; expected MODEL DATA…"),
    "too many arguments of the demo": ("demo OUT OUT", r"Got the arguments .* expected at most OUT"),
    "unknown recipe to copy": ("recipes cp umn OUT", r"Unknown recipe 'umn' \(did you mean 'umm'\?\)"),
    "copy over a file": ("recipes cp umm {existing_jsonl}", r"existing.jsonl exists; expected .*; name another file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    command, message = MISTAKES[name]
    refused(run(*command.replace("OUT", str(tmp_path / "out")).format(**places).split()), message)
    assert (places["mine"] / "thesis.txt").read_text() == "years of work"
    assert places["existing_jsonl"].read_text() == "mine\n"


def test_mistakes_of_every_kind_are_here() -> None:
    kinds = {
        "files": r"OUT |below a file|file|exists|input|archive|cut off|run dir",
        "configuration": r"key|value|recipe|missing|settings|batches|seed|number|method|layers|members",
        "models": r"model|mixture|weights|label|tokenizer|config.json|causal|expert",
        "data": r"line|data|format|score|ties|table|array|Parquet|UTF-16|columns|preferences|split",
    }
    found = {kind: [name for name in MISTAKES if re.search(words, name)] for kind, words in kinds.items()}
    assert all(len(names) >= 8 for names in found.values()), found
    assert len(MISTAKES) >= 80


def test_a_directory_that_must_not_be_written(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    command = ("train", "dense", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}")
    refused(run(*command), r"Cannot write .*out: .* must not be written, expected a directory that may. Name another place")


def test_evaluating_on_nothing(places: dict[str, Path]) -> None:
    from rewardproof.stages.evaluate import Evaluate
    from rewardproof.stages.evaluate import run as evaluate

    with pytest.raises(ConfigError, match=r"No data to evaluate on, expected at least one source; name files, folders or embedded"):
        evaluate(Evaluate(model=str(places["reward"]), data=()), None)


def test_adapters_without_peft(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    command = ("train", "dense", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}", "lora={r: 2}")
    refused(run(*command), r"lora= needs peft, which is not installed; install it with: pip install 'rewardproof\[lora\]'")


def test_a_full_disk_says_how_to_go_on(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rewardproof.stages.train as stage

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "train_member", full)
    command = ("train", "dense", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}")
    refused(
        run(*command), r"its disk is full.*What was finished before is kept\. Free some space there; run the same .* --resume to go on$"
    )


def test_an_earlier_run_is_kept_replaced_or_continued_only_as_told(places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("train", "dense", out, f"model={places['base']}", f"data={places['toy']}", "trainer.max_steps=1")
    assert run(*command).exit_code == 0
    before = (out / "report.json").read_text()
    refused(run(*command), r"out is not empty; a run never overwrites another.*--overwrite to delete it, or --resume")
    refused(
        run(*command, "seed=1", "--resume"),
        r"config.yaml differs from the settings given now; --resume .*Restore them, or pass --overwrite",
    )
    assert (out / "report.json").read_text() == before
    (out / "stale").write_text("x")
    assert run(*command, "seed=1", "--overwrite").exit_code == 0
    assert not (out / "stale").exists()
    assert "seed: 1" in (out / "config.yaml").read_text()


def test_reused_members_of_another_shape(places: dict[str, Path], tiny: ModuleType, tmp_path: Path) -> None:
    other = save_reward_model(tiny.classifier("gpt2"), tiny.word_tokenizer(), tmp_path / "gpt2")
    command = ("train", "warm", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}", "members=2", "trainer.max_steps=1")
    refused(run(*command, f"reuse={other}"), r"Cannot average models that differ: .*share their architecture")


def test_debug_shows_the_traceback_and_keeps_the_exit_code(places: dict[str, Path], tmp_path: Path) -> None:
    result = run("train", "dens", tmp_path / "out", "--debug")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "rewardproof.errors.ConfigError" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: Unknown recipe 'dens'")


def test_a_bug_of_ours_exits_with_one(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rewardproof.stages.train as stage

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("our fault")

    monkeypatch.setattr(stage, "prepare", broken)
    result = run("train", "dense", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interruption_says_how_to_go_on(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rewardproof.stages.train as stage

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "train_member", stopped)
    result = run("train", "dense", tmp_path / "out", f"model={places['base']}", f"data={places['toy']}")
    assert result.exit_code == 130
    assert result.stderr.strip() == "interrupted; run the same command with --resume to go on"


@pytest.mark.parametrize(
    ("stage", "verb", "options", "advice"),
    [
        ("train", "train dense OUT model={base} data={toy}", "--overwrite", "with --resume in place of --overwrite to go on"),
        ("merge", "merge {moe} OUT data={toy}", "", "again, with --overwrite if it has left a directory behind"),
        ("merge", "merge {moe} OUT data={toy}", "--overwrite", "again"),
    ],
)
def test_an_interruption_names_only_options_that_the_verb_has(
    stage: str, verb: str, options: str, advice: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rewardproof.stages.{stage}.prepare", stopped)
    result = run(*f"{verb} {options}".replace("OUT", str(tmp_path / "out")).format(**places).split())
    assert result.exit_code == 130
    assert result.stderr.strip() == f"interrupted; run the same command {advice}"


def test_no_progress_bars_where_nobody_watches(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewardproof.cli.run.PATIENCE", 0.0)
    result = run("score", places["reward"], places["toy"], tmp_path / "s.jsonl")
    assert result.exit_code == 0
    assert result.stderr == ""
