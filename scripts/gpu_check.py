#!/usr/bin/env python3
"""Check genimg on a GPU: tests, benchmarks, an evaluation and a resumed training, with a table of the results.

    python scripts/gpu_check.py FOLDER
    python scripts/gpu_check.py FOLDER --device cpu --seconds 120       try the script itself

Each part is a process of its own; a part that fails or takes too long is recorded, and the others follow. Nothing is
downloaded: the images are drawn, and Inception has random weights, with which it takes as long as with the published ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from evaluation_time import random_inception

from genimg.training.device import choose_device, describe_hardware
from genimg.utils.environment import git_commit, versions
from genimg.utils.files import atomically

_ROOT = Path(__file__).resolve().parents[1]
_RECIPES = {"dcgan_32": [], "sngan_32": [], "stylegan2_32": [], "flow_32": [], "cyclegan_256": ["--images", "200"]}
_MODES = {
    "eager": ("false", "false"),
    "graph": ("true", "false"),
    "graph and compiled": ("true", "default"),
}
"""Settings of ``performance.graph`` and ``performance.compile``."""

_SMALL = ["data=shapes", "data.num_images=2000", "data.image_size=32", "evaluation=none", "trainer.preview_images=4"]


@dataclass
class Check:
    """Runs the parts and collects their results.

    Attributes:
        folder: Folder of the results.
        device: Device to check.
        deadline: Time by ``time.monotonic`` at which no more part starts.
        results: Results by part.
    """

    folder: Path
    device: str
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    def run(self, part: str, command: Sequence[str], limit: float) -> bool:
        """Run a command for at most ``limit`` seconds and record its outcome under ``part``; return whether it succeeded."""
        left = self.deadline - time.monotonic()
        entry: dict[str, Any] = {"command": " ".join(command)}
        self.results[part] = entry
        if left < 10:
            entry["outcome"] = "not run: no time left"
            self.write()
            return False
        print(f"{part} ...", flush=True)
        start = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=_ROOT, capture_output=True, text=True, timeout=min(limit, left), check=False,
            )  # fmt: skip
            entry["outcome"] = "passed" if done.returncode == 0 else f"failed with exit code {done.returncode}"
            entry["output"] = (done.stdout + done.stderr)[-4000:]
        except subprocess.TimeoutExpired as error:
            entry["outcome"] = f"stopped after {error.timeout:.0f} s"
        entry["seconds"] = time.monotonic() - start
        print(f"{part}: {entry['outcome']}, {entry['seconds']:.0f} s", flush=True)
        self.write()
        return bool(entry["outcome"] == "passed")

    def genimg(self, part: str, command: str, *arguments: str, limit: float = 120.0) -> bool:
        """Run one of genimg's commands as a part."""
        code = f"import sys; from genimg import cli; sys.exit(cli.{command}())"
        return self.run(part, ["-c", code, *arguments, f"device={self.device}"], limit)

    def write(self) -> None:
        """Write the results so far."""
        record = {"hardware": describe_hardware(choose_device(self.device)), "versions": versions(), "commit": git_commit(),
                  "results": self.results}  # fmt: skip
        with atomically(self.folder / "gpu_check.json") as path:
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        with atomically(self.folder / "gpu_check.md") as path:
            path.write_text(as_markdown(record), encoding="utf-8")


def benchmarks(check: Check, modes: Sequence[str], work: Path) -> None:
    """Compare training with the plain loop. The compiled steps come last, because compilation takes long."""
    steps = ["--blocks", "4", "--block", "48"] if check.device == "cuda" else ["--blocks", "1", "--block", "1"]
    for mode in modes:
        graph, compiled = _MODES[mode]
        for recipe, more in _RECIPES.items():
            output = work / f"{recipe}_{graph}_{compiled}.json"
            part = f"{recipe}, {mode}"
            settings = ["--override", f"performance.graph={graph}", "--override", f"performance.compile={compiled}"]
            command = ["scripts/benchmark.py", "--recipes", recipe, "--device", check.device, "--json", str(output)]
            if check.run(part, [*command, "--images", "2000", *more, *steps, *settings], 100.0):
                check.results[part]["benchmark"] = json.loads(output.read_text())["recipes"][recipe]


def evaluation(check: Check, work: Path) -> None:
    """Time the FID of 50,000 generated images, with Inception's network and random weights."""
    run, weights, count = work / "dcgan", work / "inception.pth", 50_000 if check.device == "cuda" else 50
    if not check.genimg("training of a DCGAN", "train", "model=dcgan", *_SMALL, "trainer.duration=100 steps", f"run_dir={run}"):
        return
    random_inception(weights)
    part = f"FID of {count} images, random weights"
    arguments = ["evaluation=inception", f"evaluation.extractor.weights={weights}", "evaluation.extractor.sha256=null"]
    check.genimg(part, "evaluate", f"ckpt={run}", *arguments, f"num_images={count}", "num_real=500", limit=180.0)


def resuming(check: Check, mode: str, work: Path) -> None:
    """Compare a training that was interrupted with one that was not."""
    graph, _ = _MODES[mode]
    common = ["model=dcgan_small", *_SMALL, "precision=fp32", f"performance.graph={graph}", "performance.compile=false"]
    for run, duration in (("whole", 60), ("resumed", 30), ("resumed", 60)):
        part = f"resuming, {mode}: {run}, {duration} steps"
        if not check.genimg(part, "train", *common, f"trainer.duration={duration} steps", f"run_dir={work / f'{mode}_{run}'}"):
            return
    one, other = (
        torch.load(work / f"{mode}_{run}" / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")["method"]
        for run in ("whole", "resumed")
    )
    largest = max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())
    # Atomic additions of a GPU round differently from run to run.
    outcome = "bit-equal" if largest == 0 else "passed" if largest < 1e-3 else "failed"
    check.results[f"resuming, {mode}"] = {"outcome": outcome, "largest_difference": largest}
    check.write()


def as_markdown(record: dict[str, Any]) -> str:
    """Return the results as tables."""
    hardware, found = record["hardware"], record["results"]
    lines = [
        f"{hardware['name']}, torch {record['versions'].get('torch')}, commit {record['commit']}", "",
        "| training | images/s | plain loop, images/s | ratio | share of the matrix rate | peak MiB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for part, entry in found.items():
        if "benchmark" in entry:
            result = entry["benchmark"]
            ours, theirs = (result[side]["images_per_second"] for side in ("genimg", "plain"))
            lines.append(f"| {part} | {ours:.0f} | {theirs:.0f} | {result['ratio']['totals']:.2f} | "
                         f"{result['share_of_matrix_rate']:.1%} | {result['peak_memory_mib']['genimg']:.0f} |")  # fmt: skip
    lines += ["", "| part | outcome | seconds |", "|---|---|---|"]
    lines += [f"| {part} | {entry['outcome']} | {entry.get('seconds', 0):.0f} |" for part, entry in found.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="device to check")
    parser.add_argument("--seconds", type=float, default=700.0, help="time after which the check stops")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --device cpu tries the script itself")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GENIMG_CACHE", str(folder / "cache"))
    check = Check(folder, arguments.device, time.monotonic() + arguments.seconds)
    modes = list(_MODES) if arguments.device == "cuda" else ["eager"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        check.run("tests on the GPU", ["-m", "pytest", "-m", "gpu", "-q", "tests/training/test_on_gpu.py"], 150.0)
        for mode in modes[:2]:
            resuming(check, mode, work)
        benchmarks(check, modes[:2], work)
        evaluation(check, work)
        benchmarks(check, modes[2:], work)
    print((folder / "gpu_check.md").read_text(encoding="utf-8"))
    sys.exit(0 if all(entry["outcome"] in ("passed", "bit-equal") for entry in check.results.values()) else 1)


if __name__ == "__main__":
    main()
