"""Sweeps by hydra/launcher=gpu_queue: processes of their own, failures as rows, and a second launch that does what is left."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from sweeping import TINY, launch, start, table, train

from genimg import cli
from genimg.config import resolvers
from genimg.sweeps import queue
from genimg.sweeps.display import row as row_of
from genimg.sweeps.job import Job, fails_for_all
from genimg.utils.durations import to_seconds
from genimg.utils.paths import config_dir


def wait_for(found: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_failing_job_is_a_row_and_a_second_launch_runs_what_is_left(tmp_path: Path) -> None:
    arguments = ["trainer.duration=2 steps", "model.latent_dim=3,0,4", "hydra.launcher.n_jobs=2"]
    code, output = launch(tmp_path, *arguments)
    assert code == 2, output
    assert "1 of 3 jobs failed, #1: the reasons are above" in output
    assert f"the same command with hydra.sweep.dir={tmp_path / 'sweep'} runs only these again" in output
    assert "Traceback" not in output
    assert "Error executing" not in output
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["completed", "failed", "completed"]
    assert [row["directory"] for row in rows] == [f"{i:03d}_model.latent-dim-{dim}" for i, dim in enumerate((3, 0, 4))]
    assert "model.latent_dim=0 must be 1 or more" in rows[1]["note"]
    assert "#1 failed (model.latent_dim=0 must be 1 or more): model.latent_dim=0" in output
    for row in (rows[0], rows[2]):
        folder = tmp_path / "sweep" / row["directory"]
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["best"]) == pytest.approx(summary["best"]["nll_iw2_nats"], rel=1e-6)
        assert "training for 2 steps" in (folder / "console.log").read_text()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("summary.json")}
    code, output = launch(tmp_path, *arguments)
    assert code == 2
    assert "#0 is complete" in output
    assert "#2 is complete" in output
    assert "#0 starts" not in output
    assert "#1 starts" in output
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_job_that_was_killed_is_continued_and_one_that_is_stopped_too(tmp_path: Path) -> None:
    arguments = [
        "trainer.duration=1000000 images", "trainer.checkpoint_interval=20 steps", "seed=0,1", "hydra.launcher.n_jobs=2",
        "evaluation.interval=1000000 images",
    ]  # fmt: skip
    process = start(tmp_path, *arguments)
    folders = [tmp_path / "sweep" / f"00{i}_seed-{i}" for i in range(2)]
    wait_for(lambda: all((folder / "checkpoints" / "last.pt").exists() for folder in folders))
    found = subprocess.run(["pgrep", "-f", f"run_dir=.*{folders[0]}"], capture_output=True, text=True, check=True)
    for number in found.stdout.split():
        os.kill(int(number), signal.SIGKILL)
    wait_for(lambda: not subprocess.run(["pgrep", "-f", f"run_dir=.*{folders[0]}"], capture_output=True).stdout)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopping the jobs; each saves a checkpoint" in output
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["failed", "stopped"]
    assert rows[0]["note"] == "killed by SIGKILL"
    assert json.loads((folders[1] / "summary.json").read_text())["status"] == "stopped"
    before = len((folders[1] / "metrics.jsonl").read_text().splitlines())
    process = start(tmp_path, *arguments)
    wait_for(lambda: all("resuming from" in (folder / "console.log").read_text() for folder in folders))
    wait_for(lambda: len((folders[1] / "metrics.jsonl").read_text().splitlines()) > before)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_what_does_not_compose_is_said_before_any_job_starts(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "trainer.duration=1 steps", "loss=elbo,nosuchloss")
    assert code == 2
    assert "unknown option loss=nosuchloss" in output
    assert "#0 starts" not in output


@pytest.mark.exhaustive
def test_a_summary_of_an_earlier_launch_does_not_count(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "trainer.duration=2 steps", "seed=0")
    assert code == 0, output
    folder = tmp_path / "sweep" / "000"
    longer = ["trainer.duration=1000000 images", "evaluation.interval=1000000 images", "seed=0"]
    process = start(tmp_path, *longer)
    wait_for(lambda: "resuming from" in (folder / "console.log").read_text())
    wait_for(lambda: not (folder / "summary.json").exists())
    other = launch(tmp_path, *longer)  # while the first still runs
    assert other[0] == 2
    assert "is in use by another sweep" in other[1]
    assert [row["status"] for row in table(tmp_path)] == ["running"]
    found = subprocess.run(["pgrep", "-f", f"run_dir=.*{folder}"], capture_output=True, text=True, check=True)
    for number in found.stdout.split():
        os.kill(int(number), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "#0 failed (killed by SIGKILL)" in output
    process = start(tmp_path, *longer)
    wait_for(lambda: (folder / "console.log").read_text().count("resuming from") == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "#0 starts" in output


@pytest.mark.exhaustive
def test_another_sweep_in_the_same_directory_is_refused_and_a_longer_one_is_not(tmp_path: Path) -> None:
    code, output = launch(tmp_path, "trainer.duration=1 steps", "seed=0,1")
    assert code == 0, output
    before = (tmp_path / "sweep" / "sweep.csv").read_text()
    code, output = launch(tmp_path, "trainer.duration=1 steps", "seed=1,0")
    assert code == 2
    assert "holds another sweep, whose job #0 is 000_seed-0 and not 000_seed-1" in output
    assert (tmp_path / "sweep" / "sweep.csv").read_text() == before
    code, output = launch(tmp_path, "trainer.duration=1 steps", "seed=0,1,2")
    assert code == 0, output
    assert re.findall(r"#(\d) starts", output) == ["2"]
    assert [row["status"] for row in table(tmp_path)] == ["completed"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budget=1 minutes"], "set trainer.duration='1 minutes' for one run"),
        (["-m", "seed=0,1", "budget=1 minutes"], "add hydra/launcher=gpu_queue"),
        (["hydra/launcher=gpu_queue", "seed=0"], "hydra/launcher=gpu_queue has no effect on a single run: add -m for a sweep"),
        (["-m", "sweep=gan_losses,r1_gamma"], "sweep=gan_losses: choose only one predefined search, without -m"),
        (["-m", "run_dir=here", "seed=0,1"], "run_dir=here has no effect in a sweep: give hydra.sweep.dir"),
    ],
)
def test_what_would_have_no_effect_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, output = train(tmp_path, *arguments)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(("arguments", "statuses"), [
    (["data.root=absent", "seed=0,1,2"], ["failed", "waiting", "waiting"]),
    (["data.root=absent,away", "seed=0"], ["failed", "failed"]),
])  # fmt: skip
def test_jobs_with_the_data_of_one_that_found_no_images_are_not_started(
    arguments: list[str], statuses: list[str], tmp_path: Path
) -> None:
    common = [each for each in TINY if not each.startswith("data")]
    code, output = launch(tmp_path, "data=folder", *arguments, common=common)
    assert code == 2
    assert [row["status"] for row in table(tmp_path)] == statuses
    assert f"{statuses.count('failed')} of {len(statuses)} jobs failed, #0" in output
    assert ("2 were not started" in output) == ("waiting" in statuses)


@pytest.mark.parametrize(("note", "own", "data", "expected"), [
    ("data.root=photos holds no images: ...", [], {"root": "photos"}, True),
    ("data.root is required: ...", [], {"root": "photos"}, True),
    ("data.image_size=[33,33] does not fit this network: ...", [], {"root": "photos"}, False),
    ("data.root=photos holds no images: ...", [], {"root": "drawings"}, False),
    ("data.root=photos holds no images: ...", [], {"root": "${oc.env:GENIMG_ABSENT}"}, False),
    ("data.root=photos holds no images: ...", ["data.root=photos"], {"root": "photos"}, False),
])  # fmt: skip
def test_only_an_error_about_the_place_of_shared_images_is_that_of_all_jobs(
    note: str, own: list[str], data: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    job, other = Job(0, [], tmp_path, own, status="failed", note=note), Job(1, [], tmp_path)
    job.result.cfg, other.result.cfg = (OmegaConf.create({"data": each}) for each in ({"root": "photos"}, data))
    assert fails_for_all(job, [job, other]) is expected
    other.status = "completed"
    assert fails_for_all(job, [job, other]) is (expected or (not own and note.startswith("data.root")))
    (tmp_path / "console.log").write_text("training for 1 epochs: 640 images in 10 steps of 64\n")
    assert not fails_for_all(job, [job, other])


def test_each_job_sees_a_gpu_and_a_share_of_the_cores_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Process:
        def __init__(self, command: list[str], *, env: dict[str, str], **_: object) -> None:
            started.append((command, env.get("CUDA_VISIBLE_DEVICES"), env.get("OMP_NUM_THREADS")))

        def poll(self) -> int:
            return 0

    class Jobs:
        total, num_done, is_pointless = 3, 0, False

        def __init__(self) -> None:
            self.left = [Job(i, [f"seed={i}", "x='a b'"], tmp_path / str(i)) for i in range(3)]

        def next(self) -> Job | None:
            return self.left.pop(0) if self.left else None

        def why_hopeless(self, job: Job) -> None:
            return None

        def started(self, job: Job) -> None:
            assert job.status == "running"

        def ended(self, job: Job) -> None:
            assert job.status == "completed"

    monkeypatch.setattr(queue.subprocess, "Popen", Process)
    monkeypatch.setattr(queue, "num_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", ["genimg-train", "-m", "--config-dir", "mine", "-cp=there", "seed=0,1,2"])
    queue.work_off(Jobs(), ["3", "5"])
    assert [gpu for _, gpu, _ in started] == ["3", "5", "3"]
    assert {threads for *_, threads in started} == {"8"}
    folder = tmp_path / "1"
    queue.work_off(Jobs(), [None])
    assert started[-1][2] is None  # alone, a job chooses the number of its threads itself
    flags = ["--config-dir", "mine", "-cp=there"]
    assert started[1][0] == [sys.executable, "-m", "genimg.train", *flags, "seed=1", "x='a b'", f"run_dir='{folder}'"]


@pytest.mark.parametrize(("summary", "is_complete"), [
    ({"status": "completed"}, True), ({"status": "stopped"}, False), ({}, False),
])  # fmt: skip
def test_a_job_is_complete_if_its_run_is(summary: dict[str, Any], is_complete: bool, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"overrides": ["seed=0"]}))
    assert Job(0, ["seed=0"], tmp_path).is_complete is is_complete


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_launcher_that_is_killed_takes_its_jobs_with_it_after_they_have_saved(tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.duration=1000000 images", "evaluation.interval=1000000 images", "seed=0")
    folder = tmp_path / "sweep" / "000_seed-0"
    folder_of = [tmp_path / "sweep" / "000", folder]
    wait_for(lambda: any((each / "metrics.jsonl").exists() for each in folder_of))
    folder = next(each for each in folder_of if each.exists())
    process.kill()
    process.communicate()
    wait_for(lambda: (folder / "summary.json").exists(), 30.0)
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    assert (folder / "checkpoints" / "last.pt").is_file()


@pytest.mark.parametrize("option", sorted(path.stem for path in Path(config_dir(), "sweep").glob("*.yaml")))
def test_a_ready_search_holds_as_many_jobs_as_its_budget_says(option: str) -> None:
    text = Path(config_dir(), "sweep", f"{option}.yaml").read_text()
    (budget,) = re.findall(r"^#.* ?Budget: (\d+) (?:jobs|trials) of (?:at most )?(\d+k images|\d+ seconds)", text, re.MULTILINE)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("train", overrides=[f"sweep={option}"], return_hydra_config=True)
    sweeper = composed.hydra.sweeper
    assert composed.hydra.mode == RunMode.MULTIRUN
    assert composed.hydra.launcher._target_.endswith(".GpuQueueLauncher")
    parser = OverridesParser.create()
    swept = [parser.parse_override(f"{key}={value}") for key, value in sweeper.params.items()]
    discrete = [len(list(each.sweep_string_iterator())) for each in swept if each.is_discrete_sweep()]
    assert int(budget[0]) == (sweeper.n_trials if "n_trials" in sweeper else math.prod(discrete))
    if composed.budget is None:
        assert sweeper.params["trainer.duration"] == budget[1]
    else:
        assert to_seconds(composed.budget) == int(budget[0]) * to_seconds(budget[1])


def test_a_sweep_of_ones_own_needs_no_flag_and_makes_no_sweep_of_its_jobs(tmp_path: Path) -> None:
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    text = (
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 3,4\n      model.latent_dim: 2\n"
    )
    (tmp_path / "mine" / "sweep" / "seeds.yaml").write_text(text)
    arguments = ["--config-dir", "mine", *TINY, "sweep=seeds", "trainer.duration=1 steps"]
    code, output = train(tmp_path, *arguments)
    assert code == 0, output
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert [row["directory"] for row in rows] == ["000_seed-3", "001_seed-4"]
    assert "sweep=" not in rows[0]["overrides"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0"),
        ("hydra.launcher.gpus=1", "hydra.launcher.gpus=1"),
        ("hydra.launcher.gpus='0,1'", "hydra.launcher.gpus=0,1"),
        ("hydra.launcher.skip_finished=no_", "hydra.launcher.skip_finished=no_"),
        ("hydra.sweeper.max_batch_size=1", "hydra.sweeper.max_batch_size"),
        ("dry_run=true", "dry_run=true"),
        ("run_dir=here", "run_dir"),
        ("resume=.", "resume=."),
        ("hydra.launcher.n_job=2", "'hydra.launcher.n_jobs'"),
        (["hydra.launcher.n_jobs=2", "hydra.launcher.gpus=[0]"], "n_jobs=2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str | list[str], named: str, tmp_path: Path) -> None:
    code, output = launch(tmp_path, "seed=0,1", *([setting] if isinstance(setting, str) else setting))
    assert code == 2
    assert named in output.partition("genimg-train: error:")[2]
    assert "Traceback" not in output


def test_a_row_says_how_far_a_job_is(tmp_path: Path) -> None:
    job = Job(3, ["seed=3"], tmp_path, own=["seed=3"], started_at=time.monotonic() - 10.0)
    assert row_of(job).split() == ["#3", "starting", "seed=3"]
    (tmp_path / "console.log").write_text("training for 2 epochs: 1000 images in 10 steps of 100\n")
    records = [{"images": 100, "loss/total": 1.0}, {"images": 200, "evaluation/fd5k": 7.25, "evaluation/is5k": 2.0},
               {"images": 250, "loss/total": 0.5}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"images": 3')
    row = row_of(job)
    assert (job.images, job.metric, job.measured) == (250, "fd5k", {200: 7.25})
    assert re.fullmatch(r"  #3     25%  00:(29|30) left +fd5k 7\.25 +seed=3", row), row
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('00, "evaluation/fd5k": 6.5}\n')  # the rest of the line that was cut
    assert row_of(job).split()[-3:] == ["fd5k", "6.5", "seed=3"]
    job.started_at -= 100 * 3600.0
    assert re.search(r" \d{3}:\d\d:\d\d left", row_of(job))  # days
    job.images = 250
    job.images_before = 250  # nothing since it was continued
    assert "left" not in row_of(job)


def test_directories_are_called_by_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "GENIMG_COMMAND_LINE", shlex.join(["-m", "data=mnist", "trainer.duration='2 steps'", "loss=a,b", "+x=range(3)"])
    )
    assert resolvers.job_name(3, ["data=mnist", "trainer.duration=2 steps", "loss=a", "+x=1"]) == "003_loss-a_x-1"
    assert resolvers.job_name(4, ["data=mnist", "optimizer.lr=0.1"]) == "004_optimizer.lr-0.1"  # of a sweeper's own
    assert resolvers.job_name(0, ["data=mnist"]) == "000"
    assert (
        resolvers.job_name(5, ["optimizer.lr=0.00044303752452", "x=-1.23456789e-07"])
        == "005_optimizer.lr-0.000443_x--1.235e-07"
    )
    several = ["evaluation=inception", "+evaluation@evaluation.additional.dinov2=dinov2"]  # evaluation=[inception,dinov2]
    monkeypatch.setenv("GENIMG_COMMAND_LINE", shlex.join(["-m", *several, "seed=0,1"]))
    assert resolvers.job_name(1, [*several, "seed=1"]) == "001_seed-1"


TRACE = "Traceback (most recent call last):\n  File 'a.py', line 1, in b\n    c()\nKeyError: 'absent'\n"
ENDINGS = {  # what a job prints, and its exit code -> its note, and whether it is a bug
    "bug": (TRACE + "\ngenimg-train: this is a bug in genimg: ...\n", 1, "a bug, see console.log: KeyError: 'absent'", True),
    "no traceback": ("", 1, "a bug, see console.log", True),
    "setting": ("genimg-train: error: width=0 must be 1 or more\n", 2, "width=0 must be 1 or more", False),
    "usage": ("usage: genimg-train ...\n", 2, "ended with 2", False),
    "killed": ("", -signal.SIGKILL, "killed by SIGKILL", False),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bug_in_a_job_is_told_apart_from_a_setting_that_cannot_work(ending: str, tmp_path: Path) -> None:
    said, code, note, has_bug = ENDINGS[ending]
    (tmp_path / "console.log").write_text(said)
    job = Job(3, ["seed=3"], tmp_path, process=SimpleNamespace(poll=lambda: code))  # type: ignore[arg-type]
    assert queue.has_ended(job)
    assert (job.status, job.note, job.has_bug) == ("failed", note, has_bug)
    error = queue.SweepError([job, Job(4, [], tmp_path, status="completed")], tmp_path, 2, None)
    assert error.has_bug == has_bug
    assert str(error).startswith(f"1 of 2 jobs failed, #3{' because of a bug' if has_bug else ''}: ")
    assert (f"the bug in {tmp_path / 'console.log'}" in str(error)) == has_bug


@pytest.mark.usefixtures("unchanged_process")
@pytest.mark.parametrize(("seeds", "code"), [("0,2", 2), ("0,1", 1), ("1,2", 1)])
def test_a_sweep_with_a_bug_ends_as_a_bug_does(
    seeds: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs are programs that end with their seed, as 0, a bug or a setting that cannot work would."""
    program = "import sys, re; sys.exit(int(re.search(r'seed=(\\d)', ' '.join(sys.argv))[1]))"
    real = subprocess.Popen
    monkeypatch.setattr(queue.subprocess, "Popen", lambda words, **more: real([words[0], "-c", program, *words[3:]], **more))
    monkeypatch.chdir(tmp_path)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # which the command wraps
    monkeypatch.setattr(
        sys, "argv", ["genimg-train", "-m", "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep", f"seed={seeds}"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.train()
    assert ended.value.code == code
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    place = seeds.split(",").index("1") if "1" in seeds else 0
    assert ("because of a bug" in errors) == ("the bug in sweep/" in errors) == (code == 1)
    assert (f"the bug in sweep/00{place}_seed-1/console.log; the same command" in errors) == (code == 1)
    notes = {row["job"]: row["note"] for row in table(tmp_path)}
    assert {number: note for number, note in notes.items() if note} == {
        str(number): {"1": "a bug, see console.log", "2": "ended with 2"}[seed]
        for number, seed in enumerate(seeds.split(","))
        if seed != "0"
    }
