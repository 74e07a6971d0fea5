"""A stop saves, whatever standard output and standard error have become, and whichever signal asked for it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sampling import only_with_all

TRAIN = [sys.executable, "-c", "from genimg.cli import train; train()"]
TINY = [
    "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.log_interval=1 steps",
    "trainer.preview_images=4", "model=dcgan_small", "model.generator.width=4", "model.latent.dim=4",
    "evaluation=none", "device=cpu",
    "trainer.duration=100M images", "trainer.checkpoint_interval=50M images", "trainer.preview_interval=50M images",
]  # fmt: skip


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def has_begun(run_dir: Path) -> bool:
    records = run_dir / "metrics.jsonl"
    return records.is_file() and records.stat().st_size > 0


def listens_to_interrupts() -> None:
    """A shell has its background jobs ignore SIGINT, and what they start inherits it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def behind_a_pipe(run_dir: Path, reader: str) -> subprocess.Popen[bytes]:
    """``genimg-train ... 2>&1 | READER`` in a process group of its own, as an interactive shell starts it."""
    command = f"{shlex.join([*TRAIN, *TINY, f'run_dir={run_dir}'])} 2>&1 | {reader}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", "-c", command], env=environment, process_group=0, preexec_fn=listens_to_interrupts, stdout=subprocess.DEVNULL
    )


def expect_a_saved_stop(run_dir: Path) -> int:
    """The status and the checkpoint of a run that was stopped; the images it has seen."""
    summary = json.loads((run_dir / "summary.json").read_text())
    state = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    assert summary["status"] == "stopped"
    assert summary["images"] == state["training"]["images"] > 0
    return summary["images"]


@pytest.mark.parametrize("reader", ["tee {log}", only_with_all("head -n 1")])
def test_ctrl_c_behind_a_pipe_saves_and_the_run_goes_on(tmp_path: Path, reader: str) -> None:
    run_dir = tmp_path / "run"
    process = behind_a_pipe(run_dir, reader.format(log=tmp_path / "log"))
    wait_for(lambda: has_begun(run_dir))
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the reader as well
    process.wait(timeout=60)
    images = expect_a_saved_stop(run_dir)
    if reader.startswith("tee"):
        more = [f"resume={run_dir}", f"trainer.duration={images + 32} images"]
        done = subprocess.run([*TRAIN, *more], capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads((run_dir / "summary.json").read_text())["images"] == images + 32


@pytest.mark.parametrize(("name", "output"), [only_with_all(("SIGTERM", "/dev/full")), ("SIGUSR1", "closed")])
def test_a_signal_saves_when_nothing_can_be_written(tmp_path: Path, name: str, output: str) -> None:
    run_dir = tmp_path / "run"
    redirection = ">&- 2>&- <&-" if output == "closed" else f"> {output} 2>&1"
    command = f"exec {shlex.join([*TRAIN, *TINY, f'run_dir={run_dir}'])} {redirection}"
    process = subprocess.Popen(["bash", "-c", command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: has_begun(run_dir))
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=60) == 128 + getattr(signal, name)
    expect_a_saved_stop(run_dir)


def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    """The kernel hangs up the session: SIGHUP to its group, and every later write fails."""
    run_dir = tmp_path / "run"
    process, terminal = pty.fork()
    if process == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored below nohup
        os.execv(sys.executable, [*TRAIN, *TINY, f"run_dir={run_dir}"])
    os.set_blocking(terminal, False)

    def has_begun_while_read() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        return has_begun(run_dir)

    wait_for(has_begun_while_read)
    os.close(terminal)
    ended: list[int] = []

    def has_ended() -> bool:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        wait_for(has_ended)
    finally:
        if not ended:
            os.kill(process, signal.SIGKILL)
    assert ended == [128 + signal.SIGHUP]
    expect_a_saved_stop(run_dir)
