"""`rewardproof stress`: who picks what from which pools, what is kept when it stops halfway, and what it refuses."""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rewardproof.artifacts import plain
from rewardproof.cli.main import app
from rewardproof.config import recipe_names
from rewardproof.data import read_groups
from rewardproof.errors import ConfigError, DataError, EvaluationError
from rewardproof.evaluation import BestOfNRuns, PolicyRuns, run_evaluations
from rewardproof.models.reward_model import RewardModel
from rewardproof.policy.on_policy import OnPolicyLoop
from rewardproof.scoring import Combine, ModelEnsemble, Scale, load_scorer, method_names
from rewardproof.stages import stress_pools
from rewardproof.stages.stress import Stress, run
from rewardproof.stages.stress_picks import picks_of
from rewardproof.stages.stress_policies import plan


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two seeds of one method and one of another, and the ensemble of the first two."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: RewardModel(tiny.classifier("llama", seed=seed), tiny.word_tokenizer()) for seed, name in enumerate(("a-0", "a-1", "b-0"))
    }
    for name, model in made.items():
        model.save(folder / name / "model")
    pair = {name: made[name] for name in ("a-0", "a-1")}
    ensemble = ModelEnsemble(pair, {"a-0": Scale(0.0, 1.0), "a-1": Scale(0.1, 2.0)}, Combine(combination="worst_case"))
    ensemble.save(folder / "ensemble-0" / "model", {name: f"../../{name}/model" for name in pair})
    return [str(folder / name / "model") for name in (*made, "ensemble-0")]


def settings(models: list[str], pool: Path, **changes: Any) -> Stress:
    return Stress(**{"models": tuple(models), "pool": (str(pool),), "gold": "scores", "precision": "fp32", **changes})


def test_every_model_picks_from_the_same_pools_and_gold_judges(models, pool_file: Path, tmp_path: Path) -> None:
    report = run(settings(models, pool_file), tmp_path / "out")
    found = report.results["methods"]
    assert list(found) == ["a", "b", "ensemble"]
    assert (found["a"]["n_seeds"], found["b"]["n_seeds"], found["a"]["ns"]) == (2, 1, [1, 2, 4, 8])
    pools = sorted(read_groups(str(pool_file), purpose="score").groups, key=lambda group: group.prompt_key)
    gold = [group.scores or () for group in pools]
    keys = [group.prompt_key for group in pools]
    for name, places in (("a", (0, 1)), ("b", (2,)), ("ensemble", (3,))):
        scores = [load_scorer(models[place]).score(pools) for place in places]
        expected = BestOfNRuns(scores, gold, (1, 2, 4, 8), keys).summary().as_dict()
        for entry, one in zip(found[name]["gold"], expected["gold"], strict=True):
            assert entry["estimate"] == pytest.approx(one["estimate"], abs=1e-9)
        assert found[name]["fall"]["estimate"] == pytest.approx(expected["fall"]["estimate"], abs=1e-9)
    assert found["b"]["gain_over_first"] is None, "two seeds and one do not pair"
    assert found["b"]["lengths"][0] == pytest.approx(np.mean([np.mean([len(text) for text in pool.answer_texts]) for pool in pools]))
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(text in page for text in ("gamed most", "served best", "lost since the peak", pools[0].prompt_text.split()[0]))
    assert "gold of the best of 8: a " in report.headline
    assert (tmp_path / "out" / "figures" / "best-of-n.svg").is_file()


def test_picks_are_those_that_promise_most_and_least_beyond_gold_read_word_by_word(models, pool_file: Path, tmp_path: Path) -> None:
    pools = read_groups(str(pool_file), purpose="score").groups
    scorer = load_scorer(models[0])
    scores, gold = scorer.score(pools), [group.scores or () for group in pools]
    picks = picks_of(pools, scores, gold, lambda: scorer, tmp_path / "a.json", name="a")
    flat, golds = ([value for row in rows for value in row] for rows in (scores, gold))
    beyond = {}
    for group, row, truth in zip(pools, scores, gold, strict=True):
        promised = (max(row) - statistics.fmean(flat)) / statistics.pstdev(flat)
        delivered = (truth[row.index(max(row))] - statistics.fmean(golds)) / statistics.pstdev(golds)
        beyond[group.prompt_key, group.answer_texts[row.index(max(row))]] = promised - delivered
    ranked = sorted(beyond, key=lambda pick: -beyond[pick])
    assert [(pick.group.prompt_key, *pick.group.answer_texts) for pick in picks.shown] == [*ranked[:3], *ranked[-3:]]
    assert [pick.kind for pick in picks.shown] == ["gamed most"] * 3 + ["served best"] * 3
    for pick in picks.shown:
        assert pick.tokens is not None
        assert picks.scale.standardised([pick.tokens.score])[0] == pytest.approx(pick.promised, abs=1e-4)
    program = picks_of(pools, gold, gold, lambda: load_scorer("embedded:checkable"), tmp_path / "gold.json", name="gold")
    assert {pick.tokens for pick in program.shown} == {None}


def test_a_page_is_drawn_again_word_by_word_without_the_model(models, pool_file: Path, tmp_path: Path) -> None:
    model = shutil.copytree(models[0], tmp_path / "model")
    config = settings([str(model)], pool_file)
    run(config, tmp_path / "out")
    shutil.rmtree(model)
    page = tmp_path / "out" / "report.html"
    gains = re.findall(r'title="([^"]*), then', page.read_text())
    page.unlink()
    run(config, tmp_path / "out", resume=True)
    assert gains
    assert re.findall(r'title="([^"]*), then', page.read_text()) == gains


def test_methods_with_as_many_seeds_compare(models, pool_file: Path, tmp_path: Path) -> None:
    config = settings(models[1:3], pool_file, names=("one", "two"), n=(1, 4), prompts=12)
    found = run(config, tmp_path / "out").results
    assert found["rows"] == {"read": 20, "used": 12, "dropped": {}}
    gold = {name: found["methods"][name]["gold"][-1]["estimate"] for name in ("one", "two")}
    assert found["methods"]["two"]["gain_over_first"]["estimate"] == pytest.approx(gold["two"] - gold["one"])


def test_an_interrupted_run_goes_on_and_ends_at_the_same_numbers(models, pool_file: Path, tmp_path: Path, monkeypatch) -> None:
    config = settings(models[:3], pool_file)
    whole = run(config, tmp_path / "whole").results["methods"]
    score, calls = RewardModel.score, [0]

    def broken(self: RewardModel, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > 3:
            raise KeyboardInterrupt
        return score(self, *args, **kwargs)

    monkeypatch.setattr(RewardModel, "score", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out")
    kept = tmp_path / "out" / "scores" / "1.jsonl"
    kept.write_text(kept.read_text() + '{"prompt": "torn')
    calls[0] = -100
    again = run(config, tmp_path / "out", resume=True).results["methods"]
    assert calls[0] == -97, "what was scored is not scored again"
    for name, one in whole.items():
        assert again[name]["gold"] == one["gold"]
        assert again[name]["law"] == one["law"]


def test_policies_are_judged_beside_best_of_n(
    models, pool_file: Path, base_dir: Path, reward_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    config = settings(
        models[1:3], pool_file, methods=("bon", "rloo"), gold=str(reward_dir), policy=str(base_dir), policy_prompts=(str(pool_file),),
        kl=0.2, optimise={"steps": 3, "prompts_per_step": 3, "max_new_tokens": 5, "learning_rate": 3e-3}, seeds=2,
        evaluate={"every": 1, "prompts": 4, "answers": 3},
    )  # fmt: skip
    whole = run(config, tmp_path / "whole").results["policies"]["rloo"]
    assert (list(whole), whole["a"]["n_runs"], whole["b"]["gain_over_first"]["n"]) == (["a", "b"], 2, 2 * whole["a"]["n_prompts"])
    written = yaml.safe_load((tmp_path / "whole/policies/rloo/1-1/config.yaml").read_text())
    assert (written["seed"], written["optimise"]["kl"]["coefficient"], written["reward"]) == (1, 0.2, [models[2]])
    own = PolicyRuns([run_evaluations(tmp_path / f"whole/policies/rloo/1-{seed}") for seed in (0, 1)]).summary()
    assert (whole["b"]["fall"], whole["b"]["distance"][-1]) == (plain(own.as_dict())["fall"], own.distance[-1]), "over its own range"
    ends = [whole[name]["distance"][-1] ** 2 for name in whole]
    assert whole["b"]["at_matched_kl"]["kl"] == pytest.approx(min(ends))
    assert whole["b"]["at_matched_kl"]["gain_over_first"]["n"] == 2 * whole["a"]["n_prompts"]
    page = (tmp_path / "whole/report.html").read_text()
    assert all(text in page for text in ("Policies by rloo", "What rloo against a says", "gamed most", "exact at every token"))
    update, calls = OnPolicyLoop.update, [0]

    def broken(self: OnPolicyLoop) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(OnPolicyLoop, "update", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    assert run(config, tmp_path / "parts", resume=True).results["policies"]["rloo"] == whole
    assert calls[0] == 8 + 6, "two runs were whole; the third had kept no checkpoint yet"


def test_a_sum_of_rewards_is_judged_by_its_weights(models, pool_file: Path, base_dir: Path, reward_dir: Path, tmp_path: Path) -> None:
    config = settings(
        models[1:2], pool_file, methods=("rloo",), gold=str(reward_dir), policy=str(base_dir), policy_prompts=(str(pool_file),),
        optimise={"steps": 1, "prompts_per_step": 3, "max_new_tokens": 5, "learning_rate": 3e-3},
        evaluate={"every": 1, "prompts": 4, "answers": 3}, align={"rloo": {"reward": f"$MODEL,{models[2]}", "weights": "1,0.1"}},
    )  # fmt: skip
    found = run(config, tmp_path / "out").results["policies"]["rloo"]["a"]
    evaluations = [run_evaluations(tmp_path / "out/policies/rloo/0-0")]
    own, even = (PolicyRuns(evaluations, weights=weights).summary() for weights in ((1.0, 0.1), (1.0, 1.0)))
    assert found["proxy"] == plain(own.as_dict())["proxy"] != plain(even.as_dict())["proxy"]


def test_policies_by_preferences_stand_in_a_section_of_their_own(
    models, pool_file: Path, base_dir: Path, reward_dir: Path, tmp_path: Path
) -> None:
    config = settings(
        models[1:3], pool_file, methods=("bon", "rloo", "dpo"), gold=str(reward_dir), policy=str(base_dir),
        policy_prompts=(str(pool_file),), optimise={"steps": 1, "prompts_per_step": 3, "max_new_tokens": 5},
        direct={"steps": 2, "groups_per_step": 4, "max_new_tokens": 5, "learning_rate": 3e-3, "read": {"pairs_per_group": 2}},
        evaluate={"every": 1, "prompts": 4, "answers": 3},
    )  # fmt: skip
    found = run(config, tmp_path / "out").results["policies"]
    assert {method: list(names) for method, names in found.items()} == {"rloo": ["a", "b"], "dpo": ["a", "b"]}
    written = yaml.safe_load((tmp_path / "out/policies/dpo/0-0/config.yaml").read_text())
    assert (written["direct"]["steps"], written["direct"]["read"]["pairs_per_group"], written["reward"]) == (2, 2, [models[1]])
    rows = [json.loads((tmp_path / f"out/policies/dpo/{place}-0/evaluations/000002.jsonl").read_text().splitlines()[0]) for place in (0, 1)]
    assert rows[0]["answers"] == rows[1]["answers"], "a model that only judges changes nothing of the policy"
    page = (tmp_path / "out/report.html").read_text()
    assert all(f"Policies by {method}" in page for method in ("rloo", "dpo"))
    assert {file.stem for file in (tmp_path / "out/figures").glob("*.svg")} == {"best-of-n", "rloo", "dpo"}, "no two ways share an axis"
    with pytest.raises(ConfigError, match=r"Got kl=0\.1 with dpo, expected no penalty"):
        run(config.model_copy(update={"kl": 0.1}), tmp_path / "other")


def test_what_a_recipe_says_of_a_section_stays_where_nothing_else_is_asked(models, pool_file: Path) -> None:
    config = settings(
        models[:1], pool_file, gold=models[2], methods=("grpo", "r2m", "red_ppo"), kl=0.3, policy_prompts=(str(pool_file),),
        optimise={"kl": {"estimate": "k2"}, "redistribute": {"initial": "drop"}}, evaluate={"every": 7},
    )  # fmt: skip
    (grpo,), (r2m,), (red,) = (plan(config, method)[0] for method in config.methods)
    assert (grpo.optimise.kl.place, grpo.optimise.kl.estimate, grpo.optimise.kl.coefficient) == ("loss", "k2", 0.3)
    assert (red.optimise.redistribute.share, red.optimise.redistribute.initial) == (1.0, "drop")
    assert (r2m.evaluate.states, r2m.evaluate.every, grpo.evaluate.states) == (True, 7, False)
    plain = settings(models[:1], pool_file, gold=models[2], methods=("r2m",), policy_prompts=(str(pool_file),), evaluate={"states": False})
    assert not plan(plain, "r2m")[0][0].evaluate.states, "what is said is obeyed, where it is the default too"


def test_recipes_that_need_more_than_a_model_are_given_it(models, pool_file: Path) -> None:
    """MetaRM needs preferences, constraints need thresholds and further rewards: settings of one recipe alone."""
    asked = {
        "metarm": {"metarm": {"data": [str(pool_file)]}},
        "mu_ppo": {
            "reward": "$MODEL,embedded:checkable/length",
            "weights": "1,0.5",
            "constrained": {"thresholds": {"$MODEL": 1.0, "length": 0.5}},
        },
    }
    config = settings(models[:2], pool_file, gold=models[2], methods=("rloo", *asked), align=asked, policy_prompts=(str(pool_file),))
    ((meta,), (second,)), ((mu,), _) = (plan(config, method) for method in asked)
    assert meta.metarm is not None
    assert mu.constrained is not None
    assert (meta.metarm.data, meta.reward, second.reward) == ((str(pool_file),), (models[0],), (models[1],))
    assert (mu.reward, mu.weights) == ((models[0], "embedded:checkable/length"), (1.0, 0.5))
    assert mu.constrained.thresholds == {"a": 1.0, "length": 0.5}
    assert plan(config, "rloo")[0][0].metarm is None
    with pytest.raises(ConfigError, match=r"methods=metarm: .*In stress, settings of one recipe are align\.metarm\.KEY"):
        plan(config.model_copy(update={"align": {}}), "metarm")
    with pytest.raises(ConfigError, match=r"expected \$MODEL among them"):
        plan(config.model_copy(update={"align": {"mu_ppo": {"reward": ["embedded:checkable"]}}}), "mu_ppo")
    with pytest.raises(ConfigError, match=r"align\.ppo: expected the name of a policy recipe among methods="):
        run(config.model_copy(update={"align": {"ppo": {}}}), pool_file.parent / "none")


def test_answers_are_sampled_live_and_kept(models, pool_file: Path, base_dir, reward_dir, tmp_path: Path, monkeypatch) -> None:
    config = settings(models[:1], pool_file, sample=6, policy=str(base_dir), gold=str(reward_dir), max_new_tokens=5, n=(1, 2, 4))
    whole = run(config, tmp_path / "whole").results
    assert (whole["answers"], whole["rows"]["used"]) == ({"6": 20}, 20)
    monkeypatch.setattr(stress_pools, "PROMPTS_AT_ONCE", 7)
    roll_out, calls = stress_pools.roll_out, [0]

    def broken(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return roll_out(*arguments, **options)

    monkeypatch.setattr(stress_pools, "roll_out", broken)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    file = tmp_path / "parts" / "pools.jsonl"
    assert len(file.read_text().splitlines()) == 7
    file.write_text(file.read_text() + '{"id": "torn')
    again = run(config, tmp_path / "parts", resume=True).results
    assert file.read_bytes() == (tmp_path / "whole" / "pools.jsonl").read_bytes()
    assert again["methods"] | {"a": None} == whole["methods"] | {"a": None}
    assert again["methods"]["a"]["gold"] == whole["methods"]["a"]["gold"]
    file.write_text(file.read_text().replace('"id": "', '"id": "x', 1))
    with pytest.raises(EvaluationError, match="holds answers to other prompts than those read now"):
        run(config, tmp_path / "parts", resume=True)
    with pytest.raises(ConfigError, match="gold=scores with sample=6"):
        run(settings(models[:1], pool_file, sample=6, policy=str(base_dir)), tmp_path / "x")


def test_answers_longer_than_the_policy_can_read_are_refused(models, pool_file: Path, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.causal("gpt2").save_pretrained(tmp_path / "policy")
    tiny.word_tokenizer().save_pretrained(tmp_path / "policy")
    config = settings(models[:1], pool_file, gold=models[1], policy=str(tmp_path / "policy"), sample=3, n=(1, 2), max_new_tokens=600)
    with pytest.raises(DataError, match=r"max_new_tokens=600: expected at most 512 together, since .*policy has 512 positions"):
        run(config, tmp_path / "out")


def test_scores_of_other_pools_are_not_taken(models, pool_file: Path, tmp_path: Path, write_jsonl) -> None:
    rows = [json.loads(line) for line in pool_file.read_text().splitlines()]
    file = write_jsonl(tmp_path / "pools.jsonl", rows)
    run(settings(models[:1], file), tmp_path / "out")
    write_jsonl(file, [{**row, "prompt": f"w1 {row['prompt']}"} for row in rows])
    with pytest.raises(EvaluationError, match=r"gold\.jsonl holds scores of other pools than those read now"):
        run(settings(models[:1], file), tmp_path / "out", resume=True)


def test_what_cannot_be_judged_is_refused(models, pool_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"methods=tpo: expected some of bon, {', '.join(recipe_names('align'))}: best of n"):
        run(settings(models, pool_file, methods=("bon", "tpo")), tmp_path / "a")
    with pytest.raises(ConfigError, match="methods is empty"):
        run(settings(models, pool_file, methods=()), tmp_path / "a")
    with pytest.raises(ConfigError, match="Got 'scores' as a scorer"):
        run(settings(models, pool_file, methods=("bon", "rloo")), tmp_path / "a")
    with pytest.raises(ConfigError, match="names has 1 entries for 4 models"):
        run(settings(models, pool_file, names=("x",)), tmp_path / "a")
    with pytest.raises(DataError, match="has 9 answers for n up to 9, expected more answers than the largest n"):
        run(settings(models, pool_file, n=(1, 9)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_names_come_from_paths() -> None:
    assert method_names(["runs/dense/model", "/x/warm_3/model", "mine", "m.7"]) == ["dense", "warm", "mine", "m"]
    assert method_names(["runs/dense-seed0/model", "runs/umm/moe", "runs/umm/2/model"]) == ["dense", "umm (moe)", "umm"]


def test_the_command_prints_the_headline(models, pool_file: Path, tmp_path: Path) -> None:
    arguments = ["stress", models[0], models[2], str(tmp_path / "out"), f"pool={pool_file}", "gold=scores", "n=1,2,4", "precision=fp32"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "gold of the best of 4: a " in done.output
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0
    rewards = np.array([json.loads(line)["scores"] for line in (tmp_path / "out" / "scores" / "0.jsonl").read_text().splitlines()])
    assert rewards.shape == (20, 9)


def test_answers_in_rows_of_their_own_make_pools(models, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    draw = random.Random(0)
    rows = [
        {"instruction": f"w{prompt}", "output_1": "w1", "output_2": f"w{draw.randrange(90)} w{answer}", "preference": 1 + draw.random()}
        for answer in range(5)
        for prompt in range(4)
    ]
    config = settings(models[:1], write_jsonl(tmp_path / "rows.jsonl", rows), format="alpaca_eval:answers")
    found = run(config, tmp_path / "out").results
    assert found["answers"] == {5: 4} or found["answers"] == {"5": 4}
    assert found["methods"]["a"]["random_gold"]["estimate"] == pytest.approx(sum(row["preference"] - 1 for row in rows) / 20)
