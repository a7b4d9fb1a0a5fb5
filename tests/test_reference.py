"""The pages of docs/: a verb's settings are those of the code, and every page can be found from the first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewardproof.cli.main import app
from scripts import reference

DOCS = Path(__file__).parents[1] / "docs"


def test_every_verb_has_its_page() -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert verbs == set(reference.SETTINGS)
    assert {file.name for file in reference.FOLDER.iterdir()} == set(reference.pages())


@pytest.mark.parametrize("verb", reference.SETTINGS)
def test_a_page_says_what_the_code_reads(verb: str) -> None:
    assert (reference.FOLDER / f"{verb}.md").read_text() == reference.page(verb), "run python scripts/reference.py"


@pytest.mark.parametrize("verb", reference.SETTINGS)
def test_every_setting_is_documented_and_has_a_kind(verb: str) -> None:
    rows = list(reference.settings(reference.SETTINGS[verb]))
    assert rows
    assert [row.key for row in rows if not row.meaning or not row.kind] == []


def test_links_lead_to_files_and_no_page_is_left_out() -> None:
    linked: set[Path] = set()
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            place = (page.parent / target).resolve()
            assert place.exists(), f"{page.relative_to(DOCS)} links to {target}"
            linked |= {place} if page == DOCS / "README.md" else set()
    assert {page.resolve() for page in DOCS.rglob("*.md")} - linked == {(DOCS / "README.md").resolve()}
