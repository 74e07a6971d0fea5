#!/usr/bin/env python3
"""Measure how much faster several processes train than one, alternately, with the same number of images per process and step.

    python scripts/scaling.py                          1 and 2 processes on the CPU, DCGAN at 64 px
    python scripts/scaling.py --processes 8 --device cuda --model dcgan --size 256

Each round starts both as torchrun does. Each process has one thread by default. The rates are the images per second that the
runs themselves report (training only, without startup, pictures and checkpoints).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from genimg.training.device import choose_device, describe_hardware


def rate(processes: int, arguments: argparse.Namespace, folder: Path) -> float:
    """Return the images per second of a run with this number of processes."""
    settings = [
        f"model={arguments.model}", f"data.image_size={arguments.size}", "data.num_images=2000", f"device={arguments.device}",
        f"trainer.batch_size={arguments.batch_size * processes}", f"trainer.duration={arguments.steps} steps",
        f"trainer.log_interval={arguments.steps // 10} steps", "evaluation=none", f"run_dir={folder}", *arguments.override,
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "genimg.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    run = subprocess.run([sys.executable, *launcher, *settings], env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stdout + run.stderr)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [record["time/images_per_second"] for record in records if "time/images_per_second" in record]
    return statistics.median(rates[1:])  # the first includes one-time work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="images per process and step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads per process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--override", action="append", default=[], help="key=value for genimg-train; may be repeated")
    arguments = parser.parse_args()
    if arguments.steps < 20:
        parser.error(f"--steps {arguments.steps} is too short: 20 or more")
    print(f"{describe_hardware(choose_device(arguments.device))}, torch {torch.__version__}")
    print(f"{arguments.model}, {arguments.size} px, {arguments.batch_size} images a process, {arguments.threads} threads each")
    ratios = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one, several = (rate(count, arguments, Path(folder) / str(count)) for count in (1, arguments.processes))
        ratios.append(several / one)
        print(f"round {number + 1}: 1 process {one:.1f} images/s, {arguments.processes} processes {several:.1f} images/s, "
              f"ratio {ratios[-1]:.3f}", flush=True)  # fmt: skip
    print(f"ratio {statistics.median(ratios):.3f} (median of {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
