"""The count of what a reader must open runs, and its numbers are possible ones."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import genimg

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reading_cost.py"
PACKAGE = Path(genimg.__file__).resolve().parent
ROWS = [
    "files",
    "lines of these files",
    "functions",
    "lines of these functions",
    "frames to the loss, of genimg",
    "frames to the loss, all",
    "leaf keys",
    "interpolations",
    "lines of the package",
    "lines that are not blank",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> dict[str, list[int]]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path_factory.mktemp("cost"), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["step", "run"]
    return {line[:32].rstrip(): [int(word.replace(",", "")) for word in line[32:].split()] for line in lines}


def test_the_table_has_a_number_for_each_row_and_two_for_what_is_traced(table):
    assert list(table) == ROWS
    assert [len(table[row]) for row in ROWS] == [2] * 4 + [1] * 6


def test_a_step_is_part_of_a_run_and_that_part_of_the_package(table):
    for row in ROWS[:4]:
        assert 0 < table[row][0] < table[row][1]
    for column in (0, 1):
        files, lines, functions, of_functions = (table[row][column] for row in ROWS[:4])
        assert files <= functions < of_functions < lines < table["lines of the package"][0]
    assert table["lines that are not blank"] < table["lines of the package"]


def test_a_step_can_be_read_in_an_evening(table):
    """Raise these numbers only for what every step of every training needs."""
    assert 10 < table["files"][0] <= 21
    assert 1000 < table["lines of these files"][0] <= 4300
    assert 5 < table["frames to the loss, of genimg"][0] <= 9 < table["frames to the loss, all"][0]
    assert 0 < table["interpolations"][0] < table["leaf keys"][0] < 300


def test_lines_of_the_package_are_those_of_its_files(table):
    total = sum(path.read_bytes().count(b"\n") for path in PACKAGE.rglob("*.py"))
    assert table["lines of the package"] == [total]


def test_functions_inside_others_belong_to_the_outermost_one(tmp_path):
    spec = importlib.util.spec_from_file_location("reading_cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "example.py"
    source = (
        "class A:\n    @property\n    def b(self):\n        def c():\n            return 1\n        return c\n\n\n"
        "d = lambda: 2\n"
    )
    path.write_text(source)
    assert script.functions_of(path) == [(2, 6)]
    assert script.num_lines(path, blank=False) == 7
    module = compile(ast.parse(source), str(path), "exec")
    body = next(each for each in module.co_consts if hasattr(each, "co_code") and each.co_name == "A")
    b = next(each for each in body.co_consts if hasattr(each, "co_code"))
    c = next(each for each in b.co_consts if hasattr(each, "co_code"))
    function = next(each for each in module.co_consts if hasattr(each, "co_code") and each.co_name == "<lambda>")
    assert script.place_of(b) == script.place_of(c) == (path, 2, 6)
    assert script.place_of(function) == (path, 9, 9)
    assert script.place_of(body) is None
    assert script.cost_of({b, c, function}) == [1, 9, 2, 6]
