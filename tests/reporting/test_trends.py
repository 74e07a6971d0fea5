"""What longer training would change, against power laws. Takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretend_runs import write_run

from genimg.reporting.ranking import rank
from genimg.reporting.run_files import read_run
from genimg.reporting.runs import Run
from genimg.reporting.trends import advice, trends


def run(folder: Path, **settings: object) -> Run:
    return read_run(write_run(folder, **settings), folder.name)  # type: ignore[arg-type]


def power_law(exponent: float, count: int = 4) -> list[float]:
    return [100.0 * number**exponent for number in range(1, count + 1)]


def test_a_power_law_is_continued_exactly(tmp_path: Path) -> None:
    ranking = rank([run(tmp_path / "a", values=power_law(-0.5)), run(tmp_path / "b", values=power_law(-0.01))])
    found = {each.run.label: each for each in trends(ranking)}
    assert found["a"].change == pytest.approx(2**-0.5 - 1)
    assert found["a"].expected == pytest.approx(100.0 * 8**-0.5)
    assert (found["a"].verdict, found["b"].verdict) == ("still improving", "level")


@pytest.mark.parametrize("higher", [False, True])
def test_the_direction_decides_what_is_better(tmp_path: Path, higher: bool) -> None:
    exponents = {"a": 0.5, "b": -0.5}
    runs = [run(tmp_path / name, values=power_law(each), higher_is_better=higher) for name, each in exponents.items()]
    found = {each.run.label: each for each in trends(rank(runs))}
    assert found["a"].verdict == ("still improving" if higher else "getting worse")
    assert found["b"].verdict == ("getting worse" if higher else "still improving")


def test_a_run_that_has_diverged_is_not_to_be_trained_longer(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", values=[50.0, 50.0]), run(tmp_path / "b", values=[90.0, 40.0], status="diverged")]
    assert [each.run.label for each in trends(rank(runs))] == ["a"]


def test_only_the_second_half_counts_and_at_least_two_evaluations(tmp_path: Path) -> None:
    late = run(tmp_path / "late", values=[900.0, 100.0, 100.0, 100.0])
    two = run(tmp_path / "two", values=[100.0, 50.0])
    once = run(tmp_path / "once", values=[10.0])
    negative = run(tmp_path / "negative", values=[1.0, 0.0])
    found = {each.run.label: each for each in trends(rank([late, two, once, negative]))}
    assert found.keys() == {"late", "two"}
    assert found["late"].change == pytest.approx(0.0, abs=1e-12)
    assert found["two"].change == pytest.approx(-0.5)


def test_the_advice_names_improving_runs_that_may_become_the_best_and_copies(tmp_path: Path) -> None:
    first = run(tmp_path / "first", values=[50.0, 50.0])
    ahead = run(tmp_path / "ahead", values=power_law(-1.0, 2))  # 50, then 25 after twice as many images
    slow = run(tmp_path / "slow", values=[2000.0, 1000.0])
    copies = run(tmp_path / "copies", values=[60.0, 60.0])
    last = next(each for each in reversed(copies.records) if "evaluation/fd500_shapes" in each)
    last |= {"evaluation/memorised500_shapes": 0.4, "time/seconds_per_generated_image": 0.5}
    ranking = rank([first, ahead, slow, copies])
    found = trends(ranking)
    sentences = advice(ranking, found)
    named = [name for name in ("first", "ahead", "slow", "copies") if any(f" {name} " in each for each in sentences)]
    assert named == ["ahead", "copies"]
    assert "25" in sentences[0]
    assert "40 %" in sentences[1]
    assert copies.seconds_per_generated_image == 0.5
    assert advice(rank([first]), trends(rank([first]))) != []
    assert advice(rank([first]), []) == []
