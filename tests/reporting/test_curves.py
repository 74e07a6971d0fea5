"""Ticks, colours and the points of curves. Takes a second."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from pretend_runs import NAME, write_run

from genimg.reporting.curves import NUM_LOOKS, charts_of, looks, nice_ticks, tick_digits
from genimg.reporting.run_files import read_run
from genimg.reporting.text import format_number

RANGES = [
    (0.0, 90_000.0),
    (-3.0, 8.5),
    (5.0, 5.0),
    (0.0, 0.0),
    (-0.2, -0.2),
    (1e-4, 1e-4),
    (0.5, 0.5 + 1e-9),
    (209.8456, 209.8459),
    (0.0, 5e-324),
    (-1e150, 1e150),
]


def test_ticks_are_round_evenly_spaced_and_around_the_values() -> None:
    assert nice_ticks(0, 90_000, 6) == pytest.approx([0, 20_000, 40_000, 60_000, 80_000, 100_000])
    for low, high in np.sort(np.random.default_rng(0).normal(size=(50, 2)).cumsum(axis=1)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-9
        assert ticks[-1] >= high - 1e-9
        assert 2 <= len(ticks) <= 8
        assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.0, 0.0, (0, 1)), (1e-4, 1e-4, (0, 2e-4)), (-0.2, -0.2, (-0.4, 0)), (0.3, 0.1 + 0.2, (0, 0.6))],
)
def test_the_axis_of_a_constant_begins_at_zero(low: float, high: float, ends: tuple[float, float]) -> None:
    ticks = nice_ticks(low, high)
    assert (ticks[0], ticks[-1]) == pytest.approx(ends)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_neighbouring_ticks_have_different_labels(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    labels = [format_number(tick, tick_digits(ticks)) for tick in ticks]
    assert len(set(labels)) == len(labels)


def test_the_script_of_the_page_has_the_same_ticks() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed, so the page's script cannot run")
    script = (files("genimg.reporting") / "templates" / "script.js").read_text(encoding="utf-8")
    functions = script[script.index("  const CONSTANT") : script.index("  const logTicks")]
    program = f"{functions} console.log(JSON.stringify({json.dumps(RANGES)}.map(([low, high]) => niceTicks(low, high, 5))))"
    found = json.loads(subprocess.run([node, "-e", program], capture_output=True, text=True, check=True).stdout)
    for ticks, ends in zip(found, RANGES, strict=True):
        assert ticks == pytest.approx(nice_ticks(*ends), rel=1e-12)


def test_no_two_of_many_runs_look_alike_and_the_others_share_a_grey_that_no_other_has() -> None:
    order = list(reversed(range(60)))
    found = looks(order)
    assert len({found[run] for run in order[:NUM_LOOKS]}) == NUM_LOOKS == 48
    assert {found[run] for run in order[NUM_LOOKS:]} == {"rest"}
    assert len({look.split()[0] for look in looks(range(8))}) == 8  # the first also differ in both colour and dashes
    assert len({look.split()[1] for look in looks(range(6))}) == 6


def test_curves_keep_their_peaks_and_equal_learning_rates_are_drawn_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", values=[])
    peak = 7321
    lines = [
        {"images": n, "loss/x": 99.0 if n == peak else math.sin(n / 50), "lr/a": 0.1, "lr/b": 0.1, "logits/real": 0.0}
        for n in range(1, 10_001)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = charts_of([read_run(folder, "a")], None)
    assert list(found) == ["Losses", "Learning rates", "Other training values"]
    series = found["Losses"][0].series[0]
    assert found["Losses"][0].thinned
    assert len(series.x) <= 800
    assert (series.x[0], series.x[-1]) == (1, 10_000)
    assert series.y[series.x.index(peak)] == 99.0
    assert [chart.name for chart in found["Learning rates"]] == ["lr/a, lr/b"]


def test_evaluations_have_their_intervals_and_the_best(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", intervals=True), "a")
    chart = charts_of([run], run.primary)["Evaluation"][0]
    assert (chart.name, chart.has_points, chart.extent) == (NAME, True, (19.0, 32.0))
    assert (chart.series[0].y, chart.series[0].best) == ([30.0, 20.0, 25.0], 1)
    assert chart.series[0].bounds[1] == (2000, 19.0, 22.0)
