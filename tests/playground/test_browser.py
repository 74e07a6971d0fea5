"""The page in headless Chromium, where there is one: used by keyboard only, on a wide screen and on a phone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromium import CONTRAST, SIZES, STRUCTURE, WIDTH, Browser, find_chromium
from pages import Page

_SECONDS = 30.0
_FOCUSED = (
    "((each) => each.labels?.[0]?.textContent.trim() || each.ariaLabel || each.textContent.trim())(document.activeElement)"
)
_OUTLINE = "getComputedStyle(document.activeElement.closest('fieldset label') ?? document.activeElement).outlineStyle"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium to look at the page with")
    with tempfile.TemporaryDirectory(prefix="genimg", ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        yield browser
        browser.close()


def until(browser: Browser, expression: str) -> Any:
    """Wait until an expression is true, and return its value."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if value := browser.evaluate(expression):
            return value
        time.sleep(0.02)
    raise AssertionError(f"{expression} stays false; the page says {browser.evaluate('document.body.innerText')!r}")


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{name}').textContent"))


def tab_to(browser: Browser, name: str) -> None:
    """Press Tab until the control called ``name`` has the focus, and check that the focus is visible."""
    for _ in range(60):
        if browser.evaluate(_FOCUSED).startswith(name):
            assert browser.evaluate(_OUTLINE) != "none", name
            return
        browser.press("Tab", 9)
    raise AssertionError(f"Tab does not lead to {name}")


def pictures(browser: Browser) -> list[str]:
    return list(browser.evaluate("[...document.querySelectorAll('#pictures img')].map((each) => each.src)"))


def says(command: str) -> str:
    """Return an expression that is true when the page shows the result of a command."""
    return f"document.getElementById('command').textContent.includes({command!r}) && results.ariaBusy === 'false'"


@pytest.mark.parametrize("size", SIZES)
def test_everything_can_be_done_with_the_keyboard(browser: Browser, page_of: Callable[[str], Page], size: str) -> None:
    width, height = SIZES[size]
    url = page_of("gan").url
    browser.open(url, width=width, height=height)
    until(browser, says("seed=0 num_images=3"))
    first = pictures(browser)
    assert len(set(first)) == 3
    tab_to(browser, "Seed")
    browser.press("ArrowUp", 38)
    until(browser, says("seed=1"))
    assert pictures(browser) != first
    browser.press("ArrowDown", 40)
    browser.press("Enter", 13)
    until(browser, says("seed=0"))
    assert pictures(browser) == first
    tab_to(browser, "Next seed")
    browser.press("Enter", 13)
    until(browser, says("seed=1"))
    tab_to(browser, "Label")
    browser.press("ArrowDown", 40)
    until(browser, says("label="))
    assert len(set(browser.evaluate("[...document.querySelectorAll('.caption span')].map((each) => each.textContent)"))) == 1
    tab_to(browser, "Enlarge 000000.png")
    browser.press("ArrowRight", 39)  # outside of the fields
    until(browser, says("seed=2"))
    browser.press("Enter", 13)
    assert until(browser, "dialog.open") is True
    browser.press("ArrowRight", 39)
    assert text(browser, "dialog-title") == "000001.png"
    assert text(browser, "large-command") == text(browser, "command")
    browser.press("Escape", 27)
    assert browser.evaluate("dialog.open") is False
    assert text(browser, "status").startswith("3 pictures in ")
    assert browser.evaluate(STRUCTURE) + browser.evaluate(WIDTH % width) + browser.complaints(url) == []


@pytest.mark.parametrize("size", SIZES)
def test_the_slider_between_two_seeds_follows_the_keyboard(browser: Browser, page_of: Callable[[str], Page], size: str) -> None:
    width, height = SIZES[size]
    url = page_of("gan").url
    browser.open(url, width=width, height=height)
    until(browser, says("seed=0"))
    tab_to(browser, "Generate")
    browser.press("ArrowRight", 39)
    until(browser, says("position=0.5"))
    middle = pictures(browser)
    tab_to(browser, "Position, slider")
    for _ in range(5):
        browser.press("ArrowRight", 39)
    until(browser, says("position=0.55"))
    assert pictures(browser) != middle
    assert browser.evaluate(STRUCTURE) + browser.evaluate(WIDTH % width) + browser.complaints(url) == []


def test_an_error_is_shown_beside_its_control_and_goes_away(browser: Browser, page_of: Callable[[str], Page]) -> None:
    browser.open(page_of("gan").url, width=1280, height=900)
    until(browser, says("seed=0"))
    tab_to(browser, "Truncation, slider")
    browser.press("Tab", 9)
    browser.type("-1")
    browser.press("Enter", 13)
    assert "truncation=-1" in until(browser, "!error.hidden && error.textContent")
    assert browser.evaluate("document.querySelector('[aria-invalid]').id") == "control-truncation"
    browser.press("Backspace", 8)
    browser.press("Backspace", 8)
    browser.press("Enter", 13)
    until(browser, "error.hidden && !document.querySelector('[aria-invalid]') && results.ariaBusy === 'false'")


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast(browser: Browser, page_of: Callable[[str], Page], dark: bool) -> None:
    url = page_of("vae").url
    browser.open(url, width=360, height=740, dark=dark)
    until(browser, says("seed=0"))
    tab_to(browser, "Generate")
    for _ in range(2):
        browser.press("ArrowRight", 39)
    until(browser, "document.getElementById('status').textContent.startsWith('Choose a picture')")
    browser.evaluate("fail('an error')")
    assert browser.evaluate(CONTRAST) + browser.evaluate(WIDTH % 360) + browser.complaints(url) == []
