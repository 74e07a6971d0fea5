"""Sweeps by hydra/launcher=submitit_local, which is submitit_slurm's without a cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweeping import PROGRAM


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="the extra genimg[slurm] is not installed")
def test_jobs_run_and_continue_where_they_were(tmp_path: Path) -> None:
    arguments = [
        "-m", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "seed=0,1", "evaluation=none", "data.num_images=64",
        "data.image_size=16", "trainer.batch_size=8", "model=vae_fully_connected", "model.encoder.widths=[8]",
        "model.decoder.widths=[8]", "device=cpu", "precision=fp32",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(tmp_path / "cache")}
    for steps in (2, 3):  # the second continues the first
        command = [sys.executable, "-c", PROGRAM, *arguments, f"trainer.duration={steps} steps"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        for seed in (0, 1):
            folder = tmp_path / "sweep" / f"00{seed}_seed-{seed}"
            summary = json.loads((folder / "summary.json").read_text())
            assert (summary["status"], summary["steps"], summary["seed"]) == ("completed", steps, seed)
    assert "resuming from" in (folder / "train.log").read_text()
