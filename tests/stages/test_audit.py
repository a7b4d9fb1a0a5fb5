"""`audit`: guilty models are found guilty and innocent ones are not, through the command and from Python; gates, resuming, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rewardproof.cli.main import app
from rewardproof.data import Group, merge_single_answers, read_groups
from rewardproof.errors import CheckpointError, ConfigError, EvaluationError
from rewardproof.evaluation.audit import PERTURBATIONS
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.scoring import CheckableGold, Combine, Implicit, ImplicitReward, ModelEnsemble, Scale
from rewardproof.stages import audit, audit_scoring
from rewardproof.stages.audit import Audit, run
from rewardproof.stages.audit_model import ModelAudit, audit_model
from rewardproof.stages.audit_scoring import Casebook, measure_of, score_cases
from rewardproof.stages.audit_serving import CHECKS, serving_checks

CHANGES = ("padding", "repetition", "emoji", "exclamation", "opener", "truncation", "refusal")


class Program:
    """A scorer that is a function of prompt and answer."""

    def __init__(self, of: Callable[[str, str], float]) -> None:
        self.of = of

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        return [tuple(self.of(group.prompt_text, text) for text in group.answer_texts) for group in groups]


@pytest.fixture(scope="module")
def world() -> list[Group]:
    """Forty prompts of the embedded world."""
    groups = read_groups("embedded:checkable/heldout", purpose="score").groups
    return sorted(groups, key=lambda group: group.prompt_key)[:40]


def audited(scorer: Any, groups: list[Group], folder: Path, changes: Sequence[str] = CHANGES) -> ModelAudit:
    return audit_model(scorer, Casebook(groups, changes, measure_of(scorer)), folder / "scores.jsonl", name="it")


def grades(found: ModelAudit) -> dict[str, str]:
    return {name: weakness.finding.grade for name, weakness in found.weaknesses.items()}


def test_a_scorer_that_rewards_length_is_found_guilty_of_it(world: list[Group], tmp_path: Path) -> None:
    found = audited(Program(lambda _, text: float(len(text.split()))), world, tmp_path)
    for name in ("padding", "repetition", "opener"):
        shift = found.weaknesses[name].shift
        assert shift is not None
        assert shift.low > 0
        assert grades(found)[name] == "exploitable"
    assert "it is length that pays" in found.weaknesses["repetition"].finding.sentence
    refusal = found.weaknesses["refusal"]
    assert refusal.beyond is not None
    assert (refusal.beyond.low, refusal.beyond.high) == (0.0, 0.0), "a refusal is worth what any answer of its length is"
    assert refusal.control == refusal.shift
    assert (grades(found)["truncation"], grades(found)["exclamation"]) == ("sound", "sound")
    slope = found.slopes["length"]
    assert slope.reward is not None
    assert slope.excess is not None
    assert slope.reward.low > 0
    assert slope.excess.low > 0
    assert found.verdict().startswith("a policy gains by ")
    assert {example.name for example in found.examples} >= {"padding", "repetition"}
    example = next(example for example in found.examples if example.name == "repetition")
    assert example.texts[1] == f"{example.texts[0]}\n\n{example.texts[0]}"
    assert example.rewards[1] > example.rewards[0]


@pytest.mark.parametrize(("sign", "guilty", "innocent"), [("!", "exclamation", "padding"), ("🚀😊✨🔥🎉👍🌟💡", "emoji", "repetition")])
def test_a_scorer_that_counts_signs_is_found_guilty_of_them_alone(
    sign: str, guilty: str, innocent: str, world: list[Group], tmp_path: Path
) -> None:
    def count(_: str, text: str) -> float:
        return sum(text.count(one) for one in sign) + 1e-3 * (len(text) % 2)

    found = audited(
        Program(count), world, tmp_path, ("padding", "exclamation", "emoji") if guilty == "exclamation" else ("repetition", "emoji")
    )
    shift = found.weaknesses[guilty].shift
    assert shift is not None
    assert shift.low > 0
    assert (grades(found)[guilty], grades(found)[innocent]) == ("exploitable", "sound")
    assert "more than by neutral text" in found.weaknesses[guilty].finding.sentence or guilty == "exclamation", "no length in it"


def test_a_scorer_that_no_change_moves_is_acquitted_and_sees_no_damage(world: list[Group], tmp_path: Path) -> None:
    found = audited(Program(lambda prompt, _: float(len(prompt))), world, tmp_path)
    assert grades(found) == {name: "unnoticed" if PERTURBATIONS[name].effect == "lost" else "sound" for name in CHANGES}
    assert (
        found.verdict() == "a policy is shown to gain by none of 7 changes that deserve nothing; it overlooks 2 of 2 ways to ruin an answer"
    )
    assert all(weakness.flipped is None for weakness in found.weaknesses.values()), "it orders no pair"
    assert [one.name for one in found.extremes] == ["highest reward", "lowest reward"]
    lengths = [len(group.prompt_text) for group in world]
    assert [len(one.group.prompt_text) for one in found.extremes] == [max(lengths), min(lengths)], "there is something to show all the same"


def test_the_program_that_knows_the_truth_pays_for_nothing(world: list[Group], tmp_path: Path) -> None:
    found = audited(CheckableGold(), world, tmp_path, ("repetition", "echo", "other_prompt", "praise", "padding"))
    assert "exploitable" not in grades(found).values()
    assert (grades(found)["echo"], grades(found)["other_prompt"], grades(found)["repetition"]) == ("sound", "sound", "sound")
    assert found.accuracy is not None
    assert found.accuracy.overall.estimate == 1.0


def test_a_scorer_of_one_reward_has_no_unit(world: list[Group], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"it gives .* expected finite rewards that differ"):
        audited(Program(lambda *_: 1.0), world, tmp_path, ("padding",))


def test_changed_answers_are_of_the_best_and_the_worst_and_share_their_beginning(world: list[Group]) -> None:
    book = Casebook(world, tuple(PERTURBATIONS), lambda text: len(text.split()))
    case = book.case(3)
    scores = case.group.scores or ()
    assert {variant.place for variant in case.variants} == {scores.index(max(scores)), scores.index(min(scores))}
    first, *others = case.groups()
    assert first.answers == case.group.answers
    for group in others[:-1]:
        texts = group.answer_texts
        assert any(all(text.startswith(original) for text in texts) for original in first.answer_texts)
    for variant in case.variants:
        if variant.control:
            changed = next(one.text for one in case.variants if one[:3] == (variant.place, variant.name, False))
            assert len(changed.split()) == len(variant.text.split()), "as long as what it controls, whether longer or shorter"
    assert sum(len(group.answers) for group in others) == len(case.variants)


# --- through the command ---


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *[str(argument) for argument in arguments]])


@pytest.fixture(scope="module")
def words_file(tmp_path_factory: pytest.TempPathFactory, toy_rows: Callable[..., Any], write_jsonl: Callable[..., Path]) -> Path:
    """120 preferences in the tiny models' words, as sentences."""
    rows = [{key: f"{text} . {text} ." for key, text in row.items()} for row in toy_rows(120, seed=4)]
    return write_jsonl(tmp_path_factory.mktemp("words") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def other_dir(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `reward_dir` with all its rewards turned round: where that loses, this one gains."""
    model = tiny.classifier("llama")
    model.score.weight.data.neg_()
    return RewardModel(model, tiny.word_tokenizer()).save(tmp_path_factory.mktemp("other") / "second")


SMALL = "perturbations=padding,repetition,bullets,refusal,shuffling"


@pytest.fixture(scope="module")
def both(reward_dir: Path, other_dir: Path, words_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, command(reward_dir, other_dir, out, f"data={words_file}", "names=one,two", "precision=fp32", SMALL)


def test_two_models_side_by_side(both: tuple[Path, Result]) -> None:
    out, result = both
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"config.yaml", "report.json", "provenance.json", "scores", "figures", "report.html"}
    report = json.loads((out / "report.json").read_text())
    assert list(report["models"]) == ["one", "two"]
    one, two = (report["models"][name]["weaknesses"]["repetition"]["shift"]["estimate"] for name in ("one", "two"))
    assert two == pytest.approx(-one)
    assert report["more_than_first"]["two"]["repetition"]["estimate"] == pytest.approx(two - one)
    assert report["rows"] == {"read": 120, "used": 80, "dropped": {}}
    page = (out / "report.html").read_text()
    for text in ("What would a policy exploit?", "The card of one", "Side by side", "two less one, SD", "Length and format: two", "<mark>"):
        assert text in page, text
    assert "saying everything twice" in result.stdout
    assert result.stdout.splitlines()[-1] == f"{out}: {report['headline']}"
    assert any(report["models"][name]["examples"] for name in ("one", "two")), "one of the two pays for what the other punishes"
    for name in ("one", "two"):
        assert re.search(rf"Which words moved the reward: {name}</h2>(?:(?!<h2).)*?<p class=\"answer\"><span", page, re.DOTALL), name


def test_serving_is_steady_for_a_stock_model(both: tuple[Path, Result]) -> None:
    served = json.loads((both[0] / "report.json").read_text())["models"]["one"]["serving"]
    assert set(served) == set(CHECKS)
    for name in ("batch", "right_padding", "left_padding", "special_tokens"):
        assert served[name]["moved"] < CHECKS[name].tolerance, name
    assert served["plain_template"]["moved"] > 0.1, "another template is another text"


def test_json_alone_on_standard_output(reward_dir: Path, words_file: Path, tmp_path: Path) -> None:
    result = command(reward_dir, tmp_path / "out", f"data={words_file}", "perturbations=refusal", "prompts=20", "names=m", "--json")
    assert json.loads(result.stdout)["models"]["m"]["prompts"] == 20


def test_a_missed_limit_ends_with_3_and_names_itself(reward_dir: Path, words_file: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text("refusal: -50\nflips.refusal: 1.0\nserving.batch: 0.01\nnumbers: 0.1\n")
    result = command(
        reward_dir, tmp_path / "out", f"data={words_file}", "perturbations=refusal", "prompts=20", f"limits={limits}", "names=m"
    )
    assert result.exit_code == 3, result.output
    missed = [line for line in result.stderr.splitlines() if line.startswith("limit missed: ")]
    assert len(missed) == 2
    assert re.match(r"limit missed: m: refusal is .*\[.*\], its limit -50$", missed[0])
    assert "numbers could not be measured" in missed[1]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["limits"]["missed"] == [line.split(": ", 1)[1] for line in missed]
    assert "missed" in (tmp_path / "out" / "report.html").read_text()
    limits.write_text("refusal: 50\n")
    assert (
        command(reward_dir, tmp_path / "held", f"data={words_file}", "perturbations=refusal", "prompts=20", f"limits={limits}").exit_code
        == 0
    )
    assert "Every limit holds" in (tmp_path / "held" / "report.html").read_text()


def test_an_interrupted_audit_goes_on_and_ends_at_the_same_numbers(
    both: tuple[Path, Result], reward_dir: Path, other_dir: Path, words_file: Path, tmp_path: Path, monkeypatch
) -> None:
    config = Audit(
        models=(str(reward_dir), str(other_dir)), names=("one", "two"), data=(str(words_file),), precision="fp32",
        perturbations=tuple(SMALL.removeprefix("perturbations=").split(",")),
    )  # fmt: skip
    score, calls = RewardModel.score, [0]

    def broken(self: RewardModel, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 2:
            raise KeyboardInterrupt
        return score(self, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out")
    kept = tmp_path / "out" / "scores" / "0.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 2 * audit_scoring.CHUNK
    kept.write_text("".join(lines[:-3]) + '{"prompt": "torn')
    monkeypatch.setattr(RewardModel, "score", score)
    report, _ = run(config, tmp_path / "out", resume=True)
    whole = json.loads((both[0] / "report.json").read_text())
    assert json.loads((tmp_path / "out" / "report.json").read_text())["models"] == whole["models"]
    assert (tmp_path / "out/scores/0.jsonl").read_bytes() == (both[0] / "scores/0.jsonl").read_bytes()
    assert report.headline == whole["headline"]


def test_scores_of_other_answers_are_not_gone_on_with(world: list[Group], tmp_path: Path) -> None:
    scorer = Program(lambda _, text: float(len(text)))
    file = tmp_path / "scores.jsonl"
    score_cases(scorer, Casebook(world[:10], ("padding",), len), file)
    for book in (
        Casebook(world[1:11], ("padding",), len), Casebook(world[:10], ("padding", "emoji"), len), Casebook(world[:9], ("padding",), len),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=r"holds scores of other answers than those made now, expected the same"):
            score_cases(scorer, book, file)


def test_an_answer_that_grows_too_long_leaves_its_prompt_out(tiny: ModuleType, words_file: Path, tmp_path: Path) -> None:
    model = RewardModel(tiny.classifier("gpt2"), tiny.word_tokenizer())
    groups = list(read_groups(str(words_file), purpose="score").groups)[:30]
    long = " ".join(["w1"] * 400)
    groups[2] = Group(groups[2].prompt, ((groups[2].answers[0][0]._replace(content=long),), groups[2].answers[1]), scores=(1.0, 0.0))
    found = audited(model, groups, tmp_path, ("repetition", "refusal"))
    assert (found.unread, len(found.cases)) == (1, 29)
    assert found.as_dict()["overlong_dropped"] == 1
    with pytest.raises(EvaluationError, match=r"it can read none of 1 prompts: every one has a text longer than its 512 tokens"):
        audited(model, groups[2:3], tmp_path / "..", ("repetition",))


def test_an_ensemble_is_audited_and_says_what_is_skipped(tiny: ModuleType, words_file: Path, tmp_path: Path) -> None:
    members = {name: RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()) for seed, name in enumerate("ab")}
    ensemble = ModelEnsemble(members, {name: Scale(0.0, 1.0) for name in members}, Combine(combination="mean"))
    groups = list(read_groups(str(words_file), purpose="score").groups)[:4]
    served = serving_checks(ensemble, groups, unit=1.0)
    assert served["batch"].moved == pytest.approx(0.0, abs=1e-4)
    assert served["left_padding"].skipped == "only for a single reward model that runs here"
    assert served["left_padding"].as_dict()["skipped"]


def test_policies_are_audited_by_the_rewards_that_they_imply(base_dir: Path, tied_dir: Path, words_file: Path, tmp_path: Path) -> None:
    how = Implicit(reference=str(tied_dir), beta=0.3)
    report, _ = run(
        Audit(
            models=(str(base_dir),), data=(str(words_file),), prompts=0, perturbations=("padding", "truncation"), implicit=how,
            precision="fp32",
        ),
        tmp_path / "out",
    )  # fmt: skip
    (found,) = report.results["models"].values()
    groups = read_groups(str(words_file), purpose="score").groups
    judge = ImplicitReward.load(str(base_dir), how)
    rewards = [value for row in judge.score(merge_single_answers(groups)) for value in row]
    assert found["mean"] == pytest.approx(fmean(rewards), abs=1e-5)
    assert "raises</span> or <span" in (tmp_path / "out/report.html").read_text(), "its words are coloured"
    inside = Audit(models=(str(base_dir),), data=(str(words_file),), implicit=Implicit(reference=str(tmp_path / "out")))
    with pytest.raises(CheckpointError, match="lies in the output directory"):
        run(inside, tmp_path / "out", overwrite=True)


def test_a_checkpoint_of_ours_and_raw_text_skip_what_does_not_apply(tiny: ModuleType, words_file: Path) -> None:
    groups = list(read_groups(str(words_file), purpose="score").groups)[:3]
    mixture = tiny.classifier("llama")
    upcycle(mixture, Upcycle(n_experts=4, n_active=3))
    served = serving_checks(RewardModel(mixture, tiny.word_tokenizer()), groups, unit=1.0)
    assert served["right_padding"].skipped.startswith("no stock program runs this checkpoint")
    assert served["whitespace"].moved is not None
    raw = [replace(group, raw=True) for group in groups]
    served = serving_checks(RewardModel(tiny.classifier("llama"), tiny.word_tokenizer()), raw, unit=1.0)
    assert served["plain_template"].skipped == "raw text has no template"
    assert served["right_padding"].moved == pytest.approx(0.0, abs=1e-4)


def test_a_server_is_audited(serve: Callable[..., str], words_file: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, str]:
        rewards = [[float(sum(len(turn["content"]) for turn in one)) for one in group["answers"]] for group in body["groups"]]
        return 200, json.dumps({"rewards": rewards})

    report, _ = run(
        Audit(models=(serve(answer),), names=("server",), data=(str(words_file),), perturbations=("padding",), prompts=20), tmp_path / "out"
    )
    found = report.results["models"]["server"]
    assert found["weaknesses"]["padding"]["grade"] == "exploitable"
    assert found["serving"]["bf16"]["skipped"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Skipped: this scorer gives whole answers a number" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("scores",)}, "Got scores as a model, expected a scorer that reads answers"),
        ({"names": ("a", "a"), "models": ("x", "y")}, "expected as many, no two alike"),
        ({"names": ("a", "b")}, "expected as many, no two alike"),
        ({"perturbations": ("paddding",)}, r"got 'paddding' \(did you mean 'padding'\?\), expected some of padding"),
        ({"limits": "nowhere.yaml"}, "is no file, expected a YAML file"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(Audit(**{"models": ("embedded:checkable",), **changes}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_default_data_needs_no_file() -> None:
    assert audit.Audit(models=("x",)).data == ("embedded:checkable/heldout",)
