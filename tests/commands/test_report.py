"""genimg-report through the command line, the report that a run writes by itself, and the page in a browser.

Takes about 30 seconds, two thirds of them in the browser, where there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import check_report
import pytest
from chromium import find_chromium
from fork_server import run_command
from pretend_runs import write_run, write_sweep

PROGRAM = (
    "import sys, atexit; from genimg import cli; name = sys.argv.pop(1); sys.argv[0] = f'genimg-{name}'\n"
    "atexit.register(lambda: print('TORCH' if 'torch' in sys.modules else ''))\n"
    "getattr(cli, name)()"
)
ODD = ("a, b='c' [x]", "loss=hinge", '100 % "und" {y}', "$HOME é ✓")
SMALL = [
    "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.duration=4 steps", "model.generator.width=4",
    "trainer.preview_images=4", "evaluation.num_images=20", "evaluation.num_real=20", "evaluation.interval=2 steps",
    "device=cpu",
]  # fmt: skip


def run(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_directories_with_odd_names_and_no_torch(tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        write_run(tmp_path / name, values=[float(number)])
    result = run("report", *ODD, "output=all of it.html", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "TORCH" not in result.stdout
    lines = result.stdout.splitlines()
    for number, name in enumerate(ODD, start=1):
        assert re.match(rf"{number}  {re.escape(name)} +{number - 1} +completed$", lines[number]), lines
    assert "report:   all of it.html" in lines
    assert "tables:   all of it.csv, all of it.md" in lines
    assert {path.name for path in tmp_path.iterdir()} == {*ODD, "all of it.html", "all of it.csv", "all of it.md"}


def test_where_the_report_lies_by_default(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name)
    assert run("report", "a", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a" / "report.html").is_file()
    result = run("report", "runs=[a,b]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "report.csv").read_text().count("completed") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "runs is required"),
        (("nothing",), "nothing does not exist"),
        (("empty",), "empty holds neither a run nor a sweep"),
        (("a", "runs=[a]"), "runs=\\[a\\] and a both name runs"),
        (("a", "output=a"), "output=a must name a file that ends in .html"),
        (("a", "output=file/x.html"), "output=file/x.html cannot be written"),
        (("a", "outptu=x.html"), "unknown key outptu"),
        (("runs={a: b}",), "must be directories"),
    ],
)
def test_what_a_user_can_cause_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    result = run("report", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(rf"genimg-report: error: .*{message}.*\n", result.stderr), result.stderr


def test_a_run_writes_its_own_report_and_lives_without(tmp_path: Path) -> None:
    result = run_command("train", *SMALL, "run_dir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^report: +run/report.html$", result.stdout + result.stderr, re.MULTILINE)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "This run completed 64 images." in text
    assert 'alt="samples of run after 64 images"' in text
    assert "fd20_shapes_v2" in text
    for name in ("report.html", "report.csv", "report.md"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "report.html").mkdir()
    again = run_command("train", "resume=run", "trainer.duration=5 steps", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "report.html cannot be written" in again.stdout + again.stderr
    assert (tmp_path / "run" / "summary.json").is_file()


def _chromium() -> str:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium: scripts/check_report.py could not look at the page")
    return program


def check(page: Path) -> list[str]:
    return check_report.check(page, _chromium())


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    _chromium()
    sweep = write_sweep(
        tmp_path / "sweep",
        {
            f"{number}_<b>": ([f"loss={loss}", f"optimizer.lr={rate}"], value)
            for number, (loss, rate, value) in enumerate(
                [("hinge", 1e-4, 20.0), ("hinge", 1e-2, 10.0), ("wasserstein", 1e-4, 200.0), ("elbo", 1e-4, None)]
            )
        },
    )
    assert run("report", str(sweep), cwd=tmp_path).returncode == 0
    return sweep


def test_in_a_browser_the_report_of_a_sweep_has_no_errors_requests_or_obstacles(sweep: Path) -> None:
    assert check(sweep / "report.html") == []


def test_in_a_browser_what_is_wrong_with_a_page_would_be_noticed(sweep: Path) -> None:
    text = (sweep / "report.html").read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    text = text.replace("--quiet: #5c646c", "--quiet: #b0b4b8").replace(
        "th button { ", "th button { outline: none !important; "
    )
    text = text.replace("</main>", '<img src="missing.png"><div style="width: 500px">wide</div></main>')
    text = text.replace('"use strict";', '"use strict"; console.error("a complaint"); setTimeout(() => nothing.here, 0);')
    text = text.replace('slider.addEventListener("input", moved);', "")
    (sweep / "broken.html").write_text(text, encoding="utf-8")
    found = "\n".join(check(sweep / "broken.html"))
    for complaint in (
        "contrast ", "the leaderboard does not show its focus", "request: file:", "image: without alt", "a complaint",
        "phone, light: the page scrolls sideways", "nothing is not defined", "the samples does not answer to 'ArrowLeft'",
    ):  # fmt: skip
        assert complaint in found, complaint


def test_the_terminal_shows_a_row_for_all_seeds_of_a_setting(tmp_path: Path) -> None:
    jobs: dict[str, tuple[list[str], float | None]] = {
        f"{number}": ([f"lr={lr}", f"seed={seed}"], value)
        for number, (lr, seed, value) in enumerate([(1, 0, 30.0), (1, 1, 32.0), (2, 0, 10.0), (2, 1, 12.0), (3, 0, None)])
    }
    lines = run("report", str(write_sweep(tmp_path / "sweep", jobs)), cwd=tmp_path).stdout.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["1", "lr=2", "11", "±", "1.4", "2", "of", "2", "seeds", "measured"],
        ["2", "lr=1", "31", "±", "1.4", "2", "of", "2", "seeds", "measured"],
        ["-", "lr=3", "-", *["0", "of", "1", "seeds", "measured;", "failed:", "the", "loss", "does", "not", "fit"]],
    ]
