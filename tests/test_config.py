"""Configuration: YAML as a person means it, overrides, recipes, and messages that name the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from rewardproof.config import (
    Floats,
    Integers,
    Range,
    Section,
    Strings,
    apply_overrides,
    dump_yaml,
    load_recipe,
    load_yaml,
    nearest_hint,
    parse,
    recipe_names,
    recipe_text,
    split_tokens,
)
from rewardproof.errors import ConfigError


class Inner(Section):
    """A section."""

    steps: int = 3
    """Steps."""
    rate: float = 0.5
    """Rate."""
    kind: Literal["no", "steps"] = "steps"
    """Kind."""


class Outer(Section):
    """A configuration."""

    data: Strings
    """Sources."""
    name: str = "x"
    """Name."""
    flag: bool = False
    """Flag."""
    inner: Inner = Inner()
    """Inner."""
    maybe: Inner | None = None
    """Maybe."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("2.5e-3", 2.5e-3), (".5", 0.5), ("1.", 1.0), ("-3e2", -300.0), ("+1e1", 10.0),
        (".inf", float("inf")), ("12", 12), ("-4", -4), ("1e", "1e"), ("e5", "e5"), ("1e-5x", "1e-5x"), ("true", True), ("False", False),
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("null", None), ("a,b", "a,b"), ("[a, 1]", ["a", 1]),
        ("embedded:smollm2-135m", "embedded:smollm2-135m"), ("@odd", "@odd"), ("", ""), ("top:4", "top:4"),
    ],
)  # fmt: skip
def test_values_are_read_as_a_person_means_them(text: str, value: Any) -> None:
    found = apply_overrides({}, [f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)


class Lists(Section):
    """Lists of numbers."""

    places: Integers = ()
    """Whole numbers."""
    weights: Floats = ()
    """Numbers."""
    between: Range = (0.0, 1.0)
    """Two numbers."""


@pytest.mark.parametrize(
    ("text", "weights"),
    [("0,0.05,1", (0.0, 0.05, 1.0)), ("0.5", (0.5,)), ("1", (1.0,)), ("[0, 1e-1]", (0.0, 0.1)), ("0,1", (0.0, 1.0)), ("", ())],
)
def test_numbers_are_listed_with_commas(text: str, weights: tuple[float, ...]) -> None:
    assert parse(Lists, apply_overrides({}, [f"weights={text}"])).weights == weights
    assert parse(Lists, apply_overrides({}, ["places=0,12"])).places == (0, 12)
    assert parse(Lists, apply_overrides({}, ["between=0.25,1"])).between == (0.25, 1.0)
    for wrong in ("weights=0,half", "places=0.5", "between=0.5", "between=0,0.5,1"):
        with pytest.raises(ConfigError, match="Bad value for"):
            parse(Lists, apply_overrides({}, [wrong]))


def test_numbers_in_files_are_numbers_and_pyyaml_is_left_alone() -> None:
    assert load_yaml("trainer: {learning_rate: 1e-5, save_strategy: no}", origin="x") == {
        "trainer": {"learning_rate": 1e-5, "save_strategy": "no"}
    }
    assert yaml.safe_load("1e-5") == "1e-5", "if PyYAML ever reads it as a number, our resolver can go"
    assert yaml.safe_load("no") is False


def test_overrides_reach_into_sections_and_leave_the_settings_alone() -> None:
    settings = {"trainer": {"rate": 1.0}, "seed": 0, "merge": None}
    found = apply_overrides(settings, ["trainer.rate=2", "trainer.steps=3", "seed=5", "upcycle.n_experts=4", "merge.steps=2", "a.b.c=x=y"])
    assert found == {
        "trainer": {"rate": 2, "steps": 3}, "seed": 5, "upcycle": {"n_experts": 4}, "merge": {"steps": 2}, "a": {"b": {"c": "x=y"}},
    }  # fmt: skip
    assert settings == {"trainer": {"rate": 1.0}, "seed": 0, "merge": None}
    assert apply_overrides({}, ["seed=1", "seed=2"]) == {"seed": 2}, "the last one wins"


def test_an_override_cannot_reach_into_a_value() -> None:
    with pytest.raises(ConfigError, match=r"Cannot set 'seed.x': 'seed' is a value, not a section; write seed=… instead"):
        apply_overrides({"seed": 3}, ["seed.x=1"])


def test_tokens_with_an_equals_sign_are_overrides_unless_they_are_paths() -> None:
    plain, overrides = split_tokens(["umm", "./a=b", "seed=1", "/x/a=b", "A=b", "trainer.learning_rate=1e-5", "out", "../k=v", "data="])
    assert plain == ["umm", "./a=b", "/x/a=b", "A=b", "out", "../k=v"]
    assert overrides == ["seed=1", "trainer.learning_rate=1e-5", "data="]


@pytest.mark.parametrize(("text", "expected"), [("a,b", ("a", "b")), ("a", ("a",)), ("[a,b]", ("a", "b")), ("a,,b,", ("a", "b"))])
def test_lists(text: str, expected: tuple[str, ...]) -> None:
    assert parse(Outer, apply_overrides({}, [f"data={text}"])).data == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "a", "nam": 1}, r"Unknown key 'nam' \(did you mean 'name'\?\); the configuration has: data, name, flag, inner, maybe\."),
        (
            {"data": "a", "inner": {"step": 1}},
            r"Unknown key 'inner.step' \(did you mean 'steps'\?\); section 'inner' has: steps, rate, kind\.",
        ),
        ({"data": "a", "maybe": {"rat": 1}}, r"Unknown key 'maybe.rat' \(did you mean 'rate'\?\); section 'maybe' has"),
        ({"data": "a", "zzzz": 1}, r"Unknown key 'zzzz'; the configuration has"),
        ({}, r"Missing key 'data': it has no default; give it as data=… on the command line or in the recipe"),
        ({"data": "a", "inner": {"steps": "many"}}, r"Bad value for 'inner.steps': got 'many'; input should be a valid integer"),
        ({"data": "a", "inner": {"kind": "maybe"}}, r"Bad value for 'inner.kind': got 'maybe'; input should be 'no' or 'steps'"),
        ({"data": "a", "inner": 5}, r"Bad value for 'inner': got 5"),
        ({"data": 5}, r"Bad value for 'data': got 5"),
    ],
)
def test_settings_that_are_refused_name_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Outer, settings)


def test_sections_are_frozen_and_numbers_may_be_names() -> None:
    config = parse(Outer, {"data": "a", "name": 5})
    assert config.name == "5"
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"


def test_a_resolved_configuration_survives_yaml() -> None:
    config = parse(Outer, {"data": "a,b", "inner": {"rate": 1e-5, "kind": "no"}, "maybe": {"steps": 7}, "flag": True})
    assert parse(Outer, load_yaml(dump_yaml(config), origin="x")) == config
    assert set(load_yaml(dump_yaml(config), origin="x")) == set(Outer.model_fields), "every field is written out"


@pytest.mark.parametrize("name", recipe_names("train"))
def test_shipped_recipes_parse_and_survive_yaml(name: str) -> None:
    from rewardproof.stages.train import Train, check_settings

    given = ["model=m", "data=d", *(["domain.model=lm"] if "domain" in load_recipe(name) else [])]
    config = parse(Train, apply_overrides(load_recipe(name), given))
    check_settings(config)
    assert parse(Train, load_yaml(dump_yaml(config), origin=name)) == config
    text = recipe_text(name)
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 25


def test_recipes_are_the_issue_s() -> None:
    assert {"dense", "linear_probe", "moe_unmerged", "umm", "umm_delta", "warm"} <= set(recipe_names())
    umm = load_recipe("umm")
    assert (umm["upcycle"]["n_experts"], umm["upcycle"]["n_active"], umm["merge"]["method"]) == (8, 6, "learned")
    assert "experts" not in umm["upcycle"], "the faithful recipe has full experts"
    assert load_recipe("warm")["members"] == 4


def test_a_recipe_file_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\n")
    assert load_recipe(str(file)) == {"seed": 3}
    file.write_text("# nothing\n")
    assert load_recipe(str(file)) == {}


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown recipe 'ummm' \(did you mean 'umm'\?\); shipped recipes: .*dense.*path of a YAML file"):
        recipe_text("ummm")
    with pytest.raises(ConfigError, match=r"Unknown recipe '/nowhere/a.yaml'; shipped"):
        recipe_text("/nowhere/a.yaml")


def test_broken_recipes_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\nloss: {a: 1\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:3: not valid YAML .*correct the file"):
        load_recipe(str(file))
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: got a list, expected settings as `key: value` lines"):
        load_recipe(str(file))


def test_the_hint_is_empty_when_nothing_is_near() -> None:
    assert nearest_hint("zzz", ["umm"]) == ""
    assert nearest_hint("um", ["umm", "dense"]) == " (did you mean 'umm'?)"
