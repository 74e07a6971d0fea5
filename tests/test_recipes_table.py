"""docs/recipes.md has every experiment, and no recipe quotes a number that the table does not place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genimg.utils.paths import config_dir

EXPERIMENTS = {path.stem: path for path in (Path(config_dir()) / "experiment").glob("*.yaml")}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
STATES = ("expected", "not expected", "reached", "none")


def rows() -> dict[str, list[str]]:
    """Name of the experiment -> its cells."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            assert match[1] not in found, f"{match[1]} has two rows"
            found[match[1]] = [cell.strip() for cell in line.strip("|").split("|")]
    return found


def test_every_experiment_has_one_row_and_every_row_is_an_experiment() -> None:
    assert rows().keys() == EXPERIMENTS.keys()


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_a_row_says_what_to_expect_of_the_number(name: str) -> None:
    _, number, equal, differs, state = rows()[name]
    assert state.startswith(STATES), state
    if number.startswith("none"):
        assert state.startswith("none")
        return
    if not state.startswith("none"):
        assert equal
        assert "reached" in state or "measured" in state
    if state.startswith("not expected"):
        assert differs


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_a_number_of_a_recipe_is_in_the_table(name: str) -> None:
    header = EXPERIMENTS[name].read_text(encoding="utf-8").partition("defaults:")[0].replace("\n# ", " ")
    number = rows()[name][1]
    quoted = re.findall(r"FID (\d+\.\d+)", header)
    assert not quoted or any(value in number for value in quoted)
