"""Sweeps of tiny trainings, launched as a shell would."""

from __future__ import annotations

import atexit
import csv
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fork_server import ForkServer

PROGRAM = "import sys; from genimg import cli; sys.argv[0] = 'genimg-train'; cli.train()"
TINY = [
    "data=shapes", "data.num_images=32", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
    "model=vae_fully_connected", "model.encoder.widths=[8]", "model.decoder.widths=[8]", "device=cpu", "precision=fp32",
    "evaluation=likelihood", "evaluation.num_samples=2", "data.validation=0.25", "trainer.log_interval=1 steps",
    "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep",
]  # fmt: skip


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(folder / "cache")}


def start(folder: Path, *arguments: str, common: Sequence[str] = TINY) -> subprocess.Popen[str]:
    """Start ``genimg-train -m`` and its jobs as processes of their own, which can be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-m", *common, *arguments], cwd=folder, env=_environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@functools.cache
def _server() -> ForkServer:
    server = ForkServer(stand_ins=True)
    atexit.register(server.close)
    return server


def train(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and the output of ``genimg-train``, whose jobs are forks, too."""
    done = _server().run("genimg-train", *arguments, cwd=folder, env=_environment(folder), merged=True)
    return done.returncode, done.stdout


def launch(folder: Path, *arguments: str, common: Sequence[str] = TINY) -> tuple[int, str]:
    """Return the exit code and the output of ``genimg-train -m``, whose jobs are forks, too."""
    return train(folder, "-m", *common, *arguments)


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a sweep's table."""
    with (folder / "sweep" / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
