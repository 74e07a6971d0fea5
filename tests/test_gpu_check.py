"""The check of a GPU records what each part has done, also when it fails; its parts themselves need a GPU."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_part_is_recorded_whatever_becomes_of_it(script: ModuleType, tmp_path: Path) -> None:
    check = script.Check(tmp_path, "cpu", time.monotonic() + 60)
    assert check.run("good", ["-c", "print('done')"], 30)
    assert not check.run("bad", ["-c", "raise SystemExit(3)"], 30)
    assert not check.run("slow", ["-c", "import time; time.sleep(30)"], 0.5)
    check.deadline = time.monotonic()
    assert not check.run("late", ["-c", "pass"], 30)
    results = json.loads((tmp_path / "gpu_check.json").read_text())["results"]
    assert results["good"]["output"].startswith("done")
    outcomes = [results[part]["outcome"] for part in ("good", "bad", "slow", "late")]
    assert outcomes[:2] == ["passed", "failed with exit code 3"]
    assert outcomes[2].startswith("stopped after")
    assert outcomes[3].startswith("not run")
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f"| {part} | {outcome} |" in table for part, outcome in zip(results, outcomes, strict=True))


def test_benchmarks_are_a_table_of_their_own(script: ModuleType) -> None:
    result = {
        "genimg": {"images_per_second": 300.0}, "plain": {"images_per_second": 100.0}, "ratio": {"totals": 3.0},
        "share_of_matrix_rate": 0.4, "peak_memory_mib": {"genimg": 50.0},
    }  # fmt: skip
    record = {
        "hardware": {"name": "a GPU"}, "versions": {"torch": "9"}, "commit": "c",
        "results": {"dcgan_32, graph": {"outcome": "passed", "seconds": 2.0, "benchmark": result}},
    }  # fmt: skip
    lines = script.as_markdown(record).splitlines()
    assert lines[0] == "a GPU, torch 9, commit c"
    assert "| dcgan_32, graph | 300 | 100 | 3.00 | 40.0% | 50 |" in lines
    assert "| dcgan_32, graph | passed | 2 |" in lines


def test_recipes_are_those_of_the_benchmark(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = importlib.import_module("benchmark")
    assert set(script._RECIPES) <= set(benchmark.RECIPES)
