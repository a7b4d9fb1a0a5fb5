"""The page in a real browser: every control is used, by pointer and by keyboard, on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, upcycle
from rewardproof.scoring import AnyModel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("REWARDPROOF_SCREENSHOTS", "")
"""Folder for pictures of the page; none are taken without it."""
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
PROMPT, ANSWERS = "w1 w2 w3", ("w4 w5 w6 w7", "w8 w9", "w10")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def mixed(start_server: Callable[..., Any], models: dict[str, AnyModel], tiny: ModuleType) -> Any:
    """A server of a dense model, an ensemble and a mixture."""
    mixture = tiny.classifier("llama", seed=3)
    upcycle(mixture, Upcycle(n_experts=4, n_active=3))
    moe = RewardModel(mixture, tiny.word_tokenizer())
    return start_server("dense", "ensemble", "moe", known={**models, "moe": moe})


def opened(browser: Any, address: str, *, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page at an address, and what its console complains of."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address)
    page.wait_for_selector("#model option", state="attached")
    return page, complaints


def type_in(page: Any, answers: tuple[str, ...] = ANSWERS) -> None:
    page.fill("#prompt", PROMPT)
    while page.locator(".answer").count() < len(answers):
        page.click("#add")
    for place, answer in enumerate(answers):
        page.locator(".answer textarea").nth(place).fill(answer)


def scored(page: Any) -> None:
    page.wait_for_selector("#score:not([disabled])")
    page.wait_for_selector(".result:not([hidden])")


def picture(page: Any, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_every_control(browser: Any, mixed: Any, models: dict[str, AnyModel]) -> None:
    page, complaints = opened(browser, mixed.address)
    type_in(page)
    page.click("#score")
    scored(page)
    group = Group((Message("user", PROMPT),), tuple((Message("assistant", answer),) for answer in ANSWERS))
    wanted = models["dense"].score([group])[0]
    shown = [float(text.replace("\u2212", "-")) for text in page.locator(".reward output").all_inner_texts()]
    assert shown == pytest.approx(wanted, abs=6e-4)
    assert page.locator(".answer.best").count() == 1
    assert page.locator(".best .rank").inner_text() == "the best"
    assert page.locator(".heat").nth(0).inner_text() == ANSWERS[0] + "end"
    assert not page.locator("#voices").is_visible()
    page.locator(".heat").nth(1).locator("span").nth(1).hover()
    assert page.locator(".reading").nth(1).inner_text().startswith('" w9" ')
    picture(page, "desktop-dense")

    page.select_option("#model", "ensemble")
    assert not page.locator(".result").first.is_visible(), "what was shown was another model's"
    page.locator("#prompt").press("Control+Enter")
    scored(page)
    assert page.locator("#voices tbody th").all_inner_texts() == ["member 1", "member 2"]
    assert page.locator("#voices .favourite").count() == 2
    picture(page, "desktop-ensemble")

    page.select_option("#model", "moe")
    page.click("#score")
    scored(page)
    assert page.locator("#voices tbody th").all_inner_texts() == ["expert 1", "expert 2", "expert 3"]

    page.locator(".answer .remove").nth(1).click()
    assert page.locator(".answer .name").all_inner_texts() == ["Answer A", "Answer B"]
    page.locator(".answer .remove").nth(1).click()
    assert not page.locator(".answer .remove").first.is_visible()
    for _ in range(7):
        page.click("#add")
    assert page.locator("#add").is_disabled()
    assert complaints == []


def test_changed_answers_are_paid_for_and_taken_up(browser: Any, mixed: Any) -> None:
    page, complaints = opened(browser, mixed.address)
    type_in(page, ANSWERS[:2])
    page.click("#perturb")
    page.wait_for_selector("#changes:not([hidden])")
    ways = page.locator("#changes tbody th").all_inner_texts()
    assert "saying everything twice" in ways
    gains = [float(text.replace("\u2212", "-")) for text in page.locator("#changes tbody tr:first-child td button").all_inner_texts()]
    every = [float(text.replace("\u2212", "-")) for text in page.locator("#changes td button").all_inner_texts()]
    assert max(gains) == max(every)
    picture(page, "desktop-changes")
    chosen = page.locator("#changes td button").first
    text = chosen.get_attribute("title")
    chosen.click()
    assert page.locator(".answer").count() == 3
    assert page.locator(".answer textarea").nth(2).input_value() == text
    assert not page.locator("#changes").is_visible(), "what was shown was of other answers"
    assert complaints == []


def test_what_was_asked_of_an_earlier_text_is_not_shown(browser: Any, mixed: Any) -> None:
    page, complaints = opened(browser, mixed.address)
    type_in(page)
    page.route("**/inspect", lambda route: (page.wait_for_timeout(500), route.continue_()))
    page.click("#score")
    page.locator(".answer textarea").first.fill("w50 w51")
    page.wait_for_selector("#score:not([disabled])")
    assert "Something was changed meanwhile" in page.inner_text("#status")
    assert page.locator(".result:not([hidden])").count() == 0
    page.click("#score")
    scored(page)
    assert not complaints


def test_by_keyboard_alone(browser: Any, mixed: Any) -> None:
    page, complaints = opened(browser, mixed.address)
    page.wait_for_selector("#prompt:focus")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    page.keyboard.type(ANSWERS[0])
    for key in ("Tab", "Tab"):
        page.keyboard.press(key)
    page.keyboard.type(ANSWERS[1])
    for key in ("Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    scored(page)
    page.locator(".answer textarea").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    first = page.locator(".reading").first.inner_text()
    page.keyboard.press("End")
    assert first.startswith('"w4" ')
    assert page.locator(".reading").first.inner_text().startswith('"end" ')
    assert complaints == []


def test_a_phone_and_the_dark(browser: Any, mixed: Any) -> None:
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark")):
        page, complaints = opened(browser, mixed.address, width=width, scheme=scheme)
        type_in(page, tuple(answer * 9 for answer in ANSWERS[:2]))
        page.select_option("#model", "ensemble")
        page.click("#score")
        scored(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        picture(page, f"{width}-{scheme}")
        assert complaints == []


def test_what_goes_wrong_is_said(browser: Any, start_server: Callable[..., Any]) -> None:
    server = start_server("dense", token="sesame")
    page, _ = opened(browser, server.address)
    type_in(page, ("w4", "<img src=x onerror=alert(1)>"))
    page.click("#score")
    page.wait_for_selector("#token:focus")
    assert "Authorization" in page.locator("#status.failed").inner_text()
    page.keyboard.type("sesame")
    page.keyboard.press("Enter")
    scored(page)
    assert page.locator(".heat img").count() == 0
    assert page.locator(".heat").nth(1).inner_text().startswith("<img src=x")
    page.locator(".answer textarea").first.fill("")
    page.click("#score")
    scored(page)
    page.fill("#prompt", " ")
    page.click("#score")
    page.wait_for_selector("#status.failed")
    assert "empty prompt" in page.locator("#status").inner_text()
