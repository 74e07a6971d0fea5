"""Resuming is exact, and no moment of a kill loses the last good checkpoint."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import run_command
from sampling import sampled

TINY = [
    "data.num_images=96",
    "data.image_size=16",
    "trainer.batch_size=16",
    "trainer.log_interval=2 steps",
    "trainer.preview_interval=6 steps",
    "trainer.checkpoint_interval=3 steps",
    "trainer.preview_images=4",
    "data.horizontal_flip=true",
    "device=cpu",
]
EVALUATED = ["evaluation.interval=4 steps", "evaluation.num_images=40", "evaluation.batch_size=20"]


def ramp(start: float, end: float, duration: str = "200 steps") -> str:
    return f"{{_target_:genimg.schedules.Cosine,start:{start},end:{end},duration:{duration}}}"


MODELS = {
    "dcgan": [
        "model=dcgan_small", "model.generator.width=8", "model.latent.dim=8", f"ema.exponential.half_life={ramp(0, 500)}",
        "penalty=[r1]", f"penalty.r1.gamma={ramp(1.0, 0.1)}", f"optimizer.betas=[0.0,{ramp(0.9, 0.99)}]",
    ],
    "vae": ["model=vae_small", "model.encoder.width=8", "model.latent_dim=4", "loss.warm_up=200 steps"],
}  # fmt: skip


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dcgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run."""
    run_dir = tmp_path_factory.mktemp("runs") / "dcgan"
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.duration=2 steps", f"run_dir={run_dir}"]
    train(arguments, {**os.environ, "OMP_NUM_THREADS": "1"})
    return run_dir


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from genimg.cli import train; train()", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(arguments: list[str], environment: dict[str, str]) -> str:
    result = run_command("train", *arguments, env=environment)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    return output


def refusal(arguments: list[str], environment: dict[str, str]) -> str:
    """Return what a training prints that is refused."""
    result = run_command("train", *arguments, env=environment)
    assert result.returncode == 2, result.stdout + result.stderr
    return result.stdout + result.stderr


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is a matter of time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def losses_of(run_dir: Path) -> list[dict[str, float]]:
    """Losses and gradient norms of every record that has them."""
    found = [{k: v for k, v in record.items() if k.startswith(("loss/", "grad_norm/"))} for record in records(run_dir)]
    found = [record for record in found if record]
    assert len(found) >= 2
    return found


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in tensors(item, f"{name}.{key}").items()}
    return {}


def assert_same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    left, right = (torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (one, other))
    for key in ("method", "optimizers", "means"):
        a, b = tensors(left[key]), tensors(right[key])
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"{key}{name}"
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    assert summaries[0]["last"] == summaries[1]["last"]
    assert summaries[0]["best"] == summaries[1]["best"]


def wait_for_records(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    path = run_dir / "metrics.jsonl"
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(("model", "precision"), sampled(product(MODELS, ("fp32", "bf16")), lambda row: row))
def test_stopping_at_any_step_and_resuming_equals_going_straight_on(
    model: str, precision: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    base = [*TINY, *EVALUATED, *MODELS[model], f"precision={precision}"]
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    process = start([*base, "trainer.duration=20k steps", f"run_dir={halves}"], environment)
    wait_for_records(halves, 5, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"genimg-train resume={halves}" in output
    summary = json.loads((halves / "summary.json").read_text())
    assert summary["status"] == "stopped"
    duration = f"trainer.duration={summary['steps'] + 21} steps"
    train([f"resume={halves}", duration], environment)
    train([*base, duration, f"run_dir={straight}"], environment)
    assert_same_run(straight, halves)
    assert json.loads((halves / "summary.json").read_text())["status"] == "completed"
    name, start_value, end = {"dcgan": ("penalties.r1.gamma", 1.0, 0.1), "vae": ("loss.kl_weight", 0.0, 1.0)}[model]
    logged = {record["images"]: record[f"schedule/{name}"] for record in records(halves) if f"schedule/{name}" in record}
    assert len(logged) > 5
    for images, value in logged.items():  # of the step that ends there
        done = min((images - 16) / (200 * 16), 1.0)
        share = 0.5 * (1 - math.cos(math.pi * done)) if model == "dcgan" else done
        assert value == pytest.approx(start_value + (end - start_value) * share, rel=1e-9)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
run_dir, rounds, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
from genimg import cli
import genimg.commands.train  # imported once; every round is a fork
from genimg.training.checkpoint import CheckpointFolder
folder, chance, newest = CheckpointFolder(run_dir / "checkpoints", keep_last=2), random.Random(0), -1
killed_while_saving = 0
for number in range(rounds):
    saved = seen = max((path.name for path in run_dir.glob("checkpoints/step-*.pt")), default="")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["genimg-train", *arguments]
        cli.train()
        os._exit(0)
    end = time.monotonic() + 60
    while number % 2 == 0 and saved == seen and time.monotonic() < end:  # on a busy machine, too, some lives save
        seen = max((path.name for path in run_dir.glob("checkpoints/step-*.pt")), default="")
        time.sleep(0.001)
    deadline = time.monotonic() + (chance.uniform(0, 0.5) if number % 2 == 0 else chance.uniform(0.4, 1.6))
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        print("FINISHED EARLY")
    killed_while_saving += bool(list(run_dir.glob("checkpoints/*.tmp")))
    found = folder.load_last()
    step = found[0]["training"]["images"] // 16 if found else -1
    assert step >= newest, f"lost progress: step {newest} was saved, but step {step} is the last that can be read"
    for name in ("last.pt", "best.pt"):
        path = run_dir / "checkpoints" / name
        if path.exists():
            from genimg.training import checkpoint
            checkpoint.load(path)
    newest = step
print("NEWEST", newest, "KILLED WHILE SAVING", killed_while_saving)
"""


def test_kills_at_random_moments_never_lose_the_last_good_checkpoint(
    tmp_path: Path, environment: dict[str, str], pytestconfig: pytest.Config
) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    # A checkpoint after every step, so that many of the kills fall into a save.
    base = [
        *TINY,
        *EVALUATED,
        *MODELS["dcgan"],
        "trainer.checkpoint_interval=1 steps",
        "trainer.duration=4k steps",
        "precision=fp32",
    ]
    command = [
        sys.executable,
        "-c",
        KILLER,
        str(killed),
        "20" if pytestconfig.getoption("--all") else "6",
        *base,
        f"run_dir={killed}",
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "FINISHED EARLY" not in run.stdout
    state = torch.load(killed / "checkpoints" / "last.pt", weights_only=True)
    step = state["training"]["images"] // 16
    assert step > 0
    # What all those lives trained is what one life trains.
    train([*base, f"trainer.duration={step + 2} steps", f"run_dir={killed}"], environment)
    train([*base, f"trainer.duration={step + 2} steps", f"run_dir={straight}"], environment)
    assert_same_run(straight, killed)


def test_resuming_with_a_changed_config_lists_what_differs(tmp_path: Path, environment: dict[str, str]) -> None:
    run_dir = tmp_path / "run"
    base = [*TINY, *MODELS["vae"], "evaluation=none", f"run_dir={run_dir}"]
    train([*base, "trainer.duration=3 steps"], environment)
    before = (run_dir / "checkpoints" / "last.pt").read_bytes()
    output = refusal([*base, "trainer.duration=6 steps", "optimizer.lr=5e-4", "seed=3"], environment)
    assert "optimizer.lr: 0.001 -> 0.0005" in output
    assert "seed: 0 -> 3" in output
    assert "trainer.duration" not in output.split("in ways that change the result")[1]
    assert "Traceback" not in output
    assert (run_dir / "checkpoints" / "last.pt").read_bytes() == before
    train([*base, "trainer.duration=6 steps", "optimizer.lr=5e-4", "resume_force=true"], environment)
    state = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    assert state["training"]["images"] == 6 * 16
    assert state["optimizers"]["autoencoder"]["param_groups"][0]["lr"] == 5e-4


@pytest.mark.parametrize(
    ("changes", "lines", "reason"),
    [
        (["conditioning=projection"], ["conditioning.encoder._target_: ", "conditioning.head: none -> projection"], "weights"),
        (["data.image_size=32"], ["data.image_size: 16 -> 32"], "weights"),
        (["model.generator.width=4", "seed=1"], ["model.generator.width: 8 -> 4", "seed: 0 -> 1"], "weights"),
        (["optimizer=rmsprop", "optimizer.lr=1"], ["optimizer: 3 keys, such as optimizer.lr: 0.001 -> 1"], "another optimizer"),
        (["trainer.batch_size=32"], ["trainer.batch_size: 16 -> 32"], "steps are counted in batches"),
        (["penalty=[r1]", "optimizer.lr=1"], ["optimizer.lr: 0.001 -> 1", "penalty: "], ""),
        (["schedule=linear"], ["schedule: "], ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_force_is_offered_only_where_weights_and_optimizers_fit(
    changes: list[str], lines: list[str], reason: str, dcgan: Path, environment: dict[str, str]
) -> None:
    outputs = []
    for force in ([], ["resume_force=true"]) if reason else ([],):
        outputs.append(refusal([f"resume={dcgan}", *changes, *force], environment))
    assert len(set(outputs)) == 1
    message = outputs[0].split("in ways that change the result:\n")[1].splitlines()
    assert len(message) == len(lines) + 1
    for found, expected in zip(message, lines, strict=False):
        assert found.startswith(f"  {expected}")
    assert ("resume_force=true" in message[-1]) == (not reason)
    assert reason in message[-1]
    assert "choose another run_dir" in message[-1]


def test_resume_auto_passes_over_a_truncated_newest_checkpoint(tmp_path: Path, environment: dict[str, str]) -> None:
    run_dir, straight = tmp_path / "run", tmp_path / "straight"
    base = [*TINY, *MODELS["vae"], "evaluation=none"]
    train([*base, "trainer.duration=6 steps", f"run_dir={run_dir}"], environment)
    newest = run_dir / "checkpoints" / "step-00000006.pt"
    content = newest.read_bytes()
    newest.unlink()
    newest.write_bytes(content[: len(content) // 2])
    output = train([*base, "trainer.duration=9 steps", f"run_dir={run_dir}"], environment)
    assert "truncated" in output
    train([*base, "trainer.duration=9 steps", f"run_dir={straight}"], environment)
    assert_same_run(straight, run_dir)


def test_an_existing_run_is_neither_overwritten_nor_rewound(tmp_path: Path, environment: dict[str, str]) -> None:
    run_dir = tmp_path / "run"
    base = [*TINY, *MODELS["vae"], "evaluation=none", "trainer.duration=6 steps"]
    train([*base, f"run_dir={run_dir}"], environment)
    for extra, words in (
        (["resume=null", f"run_dir={run_dir}"], "holds a run already"),
        ([f"resume={run_dir}/checkpoints/step-00000003.pt"], "choose another run_dir to branch off"),
    ):
        assert words in refusal([*base, *extra], environment)
    branch = tmp_path / "branch"
    train([f"resume={run_dir}/checkpoints/step-00000003.pt", f"run_dir={branch}"], environment)
    left, right = (torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (run_dir, branch))
    assert all(torch.equal(left["method"][name], right["method"][name]) for name in left["method"])
