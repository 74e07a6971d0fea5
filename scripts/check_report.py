#!/usr/bin/env python3
"""Open a report in headless Chromium and check that it is usable, with the standard library only.

    scripts/check_report.py report.html [--screenshots DIR]

The page must have no errors, no requests, no sideways scrolling and enough contrast, and every control must work with the
keyboard. If there are problems, the exit code is 1 and each problem is printed on its own line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from chromium import CONTRAST, NAMES, SIZES, STRUCTURE, WIDTH, Browser, find_chromium


def check_keyboard(browser: Browser) -> list[str]:
    """Use the controls of the page with the keyboard only, and return a list of problems."""
    tries = (
        ("the leaderboard", "th[aria-sort='none'] button", ("Enter", 13), "document.activeElement.parentNode.ariaSort"),
        (
            "the samples",
            ".kind input",
            ("ArrowLeft", 37),
            "document.activeElement.parentNode.querySelector('output').textContent",
        ),
        ("a chart", ".drawing", ("ArrowLeft", 37), "document.activeElement.getAttribute('aria-valuetext')"),
        ("the legend", ".legend [data-run]", (" ", 32), "document.activeElement.ariaPressed"),
        ("the logarithmic scale", "#logarithmic", (" ", 32), "document.activeElement.checked"),
        ("the smoothing", "#smoothing", ("ArrowRight", 39), "document.getElementById('smoothing-value').textContent"),
        ("the parallel coordinates", ".lines > g", ("Tab", 9), "document.querySelector('.readout').textContent"),
    )
    wrong = []
    for name, selector, key, state in tries:
        # Use the first element that can change: in a chart with a single point, there is nothing to select.
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => !each.matches('[aria-valuemin=\"' + "
        found += "each.ariaValueMax + '\"]'))"
        if not browser.evaluate(f"!!{found}"):
            continue
        browser.evaluate(f"{found}.focus({{focusVisible: true}})")
        before = browser.evaluate(state)
        browser.press(*key)
        if browser.evaluate(state) == before:
            wrong.append(f"{name} does not answer to {key[0]!r}: stays {before!r}")
        if key[0] != "Tab" and browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "none":
            wrong.append(f"{name} does not show its focus")
    return wrong


def check(page: Path, program: str, screenshots: Path | None = None) -> list[str]:
    """Return all problems of a page.

    Args:
        page: Path of the page.
        program: Path of Chromium.
        screenshots: Directory for pictures of the page; None writes none.
    """
    wrong = []
    with tempfile.TemporaryDirectory(prefix="check_report", ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for name, (width, height) in SIZES.items():
                for dark in (False, True):
                    view = f"{name}, {'dark' if dark else 'light'}"
                    browser.open(page.resolve().as_uri(), width=width, height=height, dark=dark)
                    found = browser.evaluate(STRUCTURE) + browser.evaluate(WIDTH % width)
                    if screenshots is not None:
                        _photograph(browser, screenshots, view.replace(", ", "-"))
                    found += check_keyboard(browser) if name == "wide" and not dark else []
                    found += browser.evaluate(CONTRAST) + browser.evaluate(WIDTH % width)
                    wrong += [f"{view}: {each}" for each in found + browser.complaints()]
            browser.open(page.resolve().as_uri(), width=1280, height=900, scripts=False)
            found = [each for each in browser.complaints() if "script execution" not in each.lower()]
            if screenshots is not None:
                _photograph(browser, screenshots, "without-script")
            wrong += [f"without scripts: {each}" for each in found]
        finally:
            browser.close()
    return wrong


def _photograph(browser: Browser, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tops = browser.evaluate(
        "[...document.querySelectorAll('main > section')]"
        ".map((each) => [each.id, Math.round(each.getBoundingClientRect().top + scrollY)])"
    )
    for place, (section, top) in enumerate([("top", 0), *tops]):
        browser.screenshot(folder / f"{name}-{place}-{section}.png", top=max(0, top - 46) if place else 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path, help="directory for pictures of the page")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        print(f"no browser: install one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    wrong = check(options.page, program, options.screenshots)
    print("\n".join(wrong) if wrong else f"{options.page}: nothing is wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
