"""The `rewardproof` command. A verb parses its tokens and calls its stage; whatever is heavy is imported inside the verb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewardproof.artifacts import require_writable
from rewardproof.cli.run import Options, guarded, session
from rewardproof.config import apply_overrides, load_recipe, load_study, parse, recipe_names, recipe_text, split_tokens
from rewardproof.errors import ConfigError

if TYPE_CHECKING:
    from rewardproof.report import Table

app = typer.Typer(
    help="Train reward models that are hard to game, and measure how hard. Settings follow as key=value.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes = typer.Typer(help="The shipped recipes.", no_args_is_help=True)
app.add_typer(recipes, name="recipes")

Tokens = Annotated[
    list[str], typer.Argument(help="Arguments, then settings as key=value; dotted keys reach into sections.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print report.json alone on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left at OUT.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what an interrupted run left at OUT.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _arguments(tokens: list[str], *names: str) -> tuple[list[str], list[str]]:
    """The verb's arguments and its overrides; the last name may repeat where it ends in an ellipsis."""
    plain, overrides = split_tokens(tokens)
    many = any(name.endswith("…") for name in names)
    if len(plain) < len(names) or (len(plain) > len(names) and not many):
        got = " ".join(plain) or "none"
        raise ConfigError(
            f"Got the arguments: {got}; expected {' '.join(names)}, then settings as key=value (write ./a=b for a path with =)."
        )
    return plain, overrides


def _print_table(table: Table) -> None:
    from rich.console import Console

    from rewardproof.report import console_table

    Console().print(console_table(table))


@app.command()
@guarded
def train(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """RECIPE OUT: run a recipe on preference data; OUT/model is the deliverable."""
    (recipe, out), overrides = _arguments(tokens, "RECIPE", "OUT")
    settings = apply_overrides(load_recipe(recipe), overrides)
    from rewardproof.stages.train import Train, run

    with session(Options(as_json, several=True)) as progress:
        return run(parse(Train, settings), out, overwrite=overwrite, resume=resume, progress=progress)


@app.command()
@guarded
def upcycle(tokens: Tokens, overwrite: Overwrite = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL OUT: replace a dense reward model's feed-forward blocks by mixtures of experts."""
    (model, out), overrides = _arguments(tokens, "MODEL", "OUT")
    from rewardproof.stages.upcycle import UpcycleModel, run

    with session(Options(as_json)):
        return run(parse(UpcycleModel, apply_overrides({"model": model}, overrides)), out, overwrite=overwrite)


@app.command()
@guarded
def merge(tokens: Tokens, overwrite: Overwrite = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MOE OUT, or MODEL MODEL… OUT method=average|domain: experts into one dense model, or models into one."""
    (*models, out), overrides = _arguments(tokens, "MODEL…", "OUT")
    from rewardproof.stages.merge import MergeModels, run

    with session(Options(as_json)) as progress:
        return run(parse(MergeModels, apply_overrides({"models": models}, overrides)), out, overwrite=overwrite, progress=progress)


@app.command()
@guarded
def score(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL IN OUT: write the rows of IN to the file OUT with their rewards."""
    (model, data, out), overrides = _arguments(tokens, "MODEL", "IN", "OUT")
    from rewardproof.stages.score import Score, run

    with session(Options(as_json)) as progress:
        settings = parse(Score, apply_overrides({"model": model, "data": data}, overrides))
        return run(settings, out, overwrite=overwrite, resume=resume, progress=progress)


@app.command()
@guarded
def strength(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """DATA OUT: write the rows of DATA with each pair's preference strength, by reward models that did not see its prompt."""
    (data, out), overrides = _arguments(tokens, "DATA", "OUT")
    from rewardproof.stages.strength import run, settings_of

    with session(Options(as_json)) as progress:
        return run(settings_of(data, overrides), out, overwrite=overwrite, resume=resume, progress=progress)


@app.command()
@guarded
def evaluate(
    tokens: Tokens,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory to write; without it the table is only printed.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Any:
    """MODEL DATA…: pair accuracy with its interval, by subset, beside the length rule; a benchmark's own score on its data."""
    (model, *data), overrides = _arguments(tokens, "MODEL", "DATA…")
    from rewardproof.stages.evaluate import Evaluate, run

    with session(Options(as_json)) as progress:
        settings = parse(Evaluate, apply_overrides({"model": model, "data": data}, overrides))
        report, table = run(settings, out, overwrite=overwrite, resume=resume, progress=progress)
    if not as_json:
        _print_table(table)
    return report


@app.command()
@guarded
def stress(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL… OUT: optimise against each model by best of n; proxy and gold against KL, side by side."""
    (*models, out), overrides = _arguments(tokens, "MODEL…", "OUT")
    from rewardproof.stages.stress import Stress, run

    with session(Options(as_json)) as progress:
        settings = parse(Stress, apply_overrides({"models": models}, overrides))
        return run(settings, out, overwrite=overwrite, resume=resume, progress=progress)


@app.command()
@guarded
def audit(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL… OUT: what would a policy exploit? Answers changed in ways that deserve no better reward; limits=FILE makes it a gate."""
    (*models, out), overrides = _arguments(tokens, "MODEL…", "OUT")
    from rewardproof.stages.audit import Audit, run

    with session(Options(as_json)) as progress:
        settings = parse(Audit, apply_overrides({"models": models}, overrides))
        report, table = run(settings, out, overwrite=overwrite, resume=resume, progress=progress)
    if not as_json:
        _print_table(table)
    return report


@app.command()
@guarded
def search(tokens: Tokens, overwrite: Overwrite = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL OUT: write answers that MODEL mis-scores, by policies of each class; OUT/failures.jsonl holds them as preferences."""
    (model, out), overrides = _arguments(tokens, "MODEL", "OUT")
    from rewardproof.stages.search import Search, run

    with session(Options(as_json)) as progress:
        settings = parse(Search, apply_overrides({"model": model}, overrides))
        return run(settings, out, overwrite=overwrite, progress=progress)


@app.command()
@guarded
def align(tokens: Tokens, overwrite: Overwrite = False, resume: Resume = False, as_json: Json = False, debug: Debug = False) -> Any:
    """RECIPE OUT: optimise a policy against rewards (ppo, rloo, grpo, xi_ppo) or by preferences (dpo, ipo, slic, rpo); OUT/model is it."""
    (recipe, out), overrides = _arguments(tokens, "RECIPE", "OUT")
    settings = apply_overrides(load_recipe(recipe, verb="align"), overrides)
    from rewardproof.stages.align import Align, run

    with session(Options(as_json, several=True)) as progress:
        return run(parse(Align, settings), out, overwrite=overwrite, resume=resume, progress=progress)


@app.command("proxy_points")
@guarded
def proxy_points(tokens: Tokens, overwrite: Overwrite = False, as_json: Json = False, debug: Debug = False) -> Any:
    """RUN… OUT: how far each reward may be raised before gold falls, out of what align's runs came to."""
    (*runs, out), overrides = _arguments(tokens, "RUN…", "OUT")
    from rewardproof.evaluation import ProxyPoints
    from rewardproof.stages.proxy_points import run

    with session(Options(as_json)):
        return run(parse(ProxyPoints, apply_overrides({"runs": runs}, overrides)), out, overwrite=overwrite)


@app.command()
@guarded
def export(tokens: Tokens, overwrite: Overwrite = False, as_json: Json = False, debug: Debug = False) -> Any:
    """MODEL OUT: a reward model as stock libraries load it (format=dense, qwen2_moe or experts), checked, with its card."""
    (model, out), overrides = _arguments(tokens, "MODEL", "OUT")
    from rewardproof.stages.export import Export, run

    with session(Options(as_json)):
        return run(parse(Export, apply_overrides({"model": model}, overrides)), out, overwrite=overwrite)


@app.command()
@guarded
def serve(
    tokens: Tokens,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8000,
    debug: Debug = False,
) -> None:
    """MODEL…: rewards over HTTP for trainers, and a page for a person."""
    models, overrides = _arguments(tokens, "MODEL…")
    from rewardproof.stages.serve import Serve, run

    with session(Options(as_json=False)):
        settings = parse(Serve, apply_overrides({"models": models, "host": host, "port": port}, overrides))
        run(settings, say=lambda line: typer.echo(line))


@app.command()
@guarded
def demo(
    tokens: Annotated[list[str] | None, typer.Argument(help="OUT, then settings as key=value.", show_default=False)] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Any:
    """[OUT]: the whole story on the embedded model and world, on a CPU."""
    plain, overrides = split_tokens(tokens or [])
    if len(plain) > 1:
        raise ConfigError(f"Got the arguments {' '.join(plain)}, expected at most OUT, then settings as key=value.")
    from rewardproof.stages.demo import Demo, run

    with session(Options(as_json)) as progress:
        settings = parse(Demo, apply_overrides({}, overrides))
        return run(
            settings,
            plain[0] if plain else "runs/demo",
            overwrite=overwrite,
            progress=progress,
            say=lambda line: typer.echo(line, err=True),
        )


@app.command()
@guarded
def study(tokens: Tokens, as_json: Json = False, debug: Debug = False) -> Any:
    """STUDY.yaml OUT: methods by settings by seeds, a row each in OUT/cells; run again, it goes on where it stopped."""
    (file, out), overrides = _arguments(tokens, "STUDY.yaml", "OUT")
    settings = apply_overrides(load_study(file), overrides)
    from rewardproof.stages.study import run
    from rewardproof.stages.study_plan import Study

    with session(Options(as_json)) as progress:
        report = run(parse(Study, settings), out, progress=progress, say=lambda line: typer.echo(line, err=True))
    if report.results["failures"]:
        typer.echo(f"{report.path}: {report.headline}", err=True)
        raise typer.Exit(1)
    return report


@recipes.command("ls")
@guarded
def list_recipes(debug: Debug = False) -> None:
    """List the shipped recipes with their first lines."""
    width = max(len(name) for name in recipe_names())
    for name in recipe_names():
        typer.echo(f"{name:<{width}}  {recipe_text(name).splitlines()[0].removeprefix('# ')}")


@recipes.command("cat")
@guarded
def show_recipe(name: str, debug: Debug = False) -> None:
    """Print a recipe."""
    typer.echo(recipe_text(name), nl=False)


@recipes.command("cp")
@guarded
def copy_recipe(name: str, target: Path, debug: Debug = False) -> None:
    """Copy a recipe to a file, to change it there."""
    text = recipe_text(name)
    if target.exists():
        raise ConfigError(f"{target} exists; expected a file to be made, since a copy never replaces what is there; name another file.")
    require_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def main() -> None:
    """Entry point of the console script."""
    app()
