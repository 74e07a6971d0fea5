"""A seeded part of what ``scripts/fuzz.py`` does: nonsense ends in one line, or in a result, never in a traceback."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"


def test_calls_with_nonsense_are_refused_in_one_line_or_succeed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    refused = tmp_path / "refused.txt"
    calls = 30 if pytestconfig.getoption("--all") else 8
    words = [sys.executable, str(SCRIPT), "--calls", str(calls), "--seed", "7", "--refused", str(refused)]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert f"{calls} calls: " in ran.stdout
    assert len(refused.read_text().splitlines()) > calls, "most of the calls are nonsense that must be refused, two lines each"


def test_a_traceback_a_hang_and_a_signal_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # the scripts share what starts a command
    spec = importlib.util.spec_from_file_location("genimg_fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = fuzz
    spec.loader.exec_module(fuzz)
    assert fuzz.Outcome(0, "", 1.0).failure == ""
    assert fuzz.Outcome(2, "genimg-train: error: seed=x must be a whole number", 1.0).failure == ""
    for code, text in ((2, "Traceback (most recent call last):"), (1, "genimg-train: error: x"), (-11, ""), (None, "")):
        assert fuzz.Outcome(code, text, 1.0).failure
    one, other = (fuzz.Fuzzer(Path(), 3).make(0) for _ in range(2))
    assert one == other
    assert one != fuzz.Fuzzer(Path(), 4).make(0)


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the driver forks")
