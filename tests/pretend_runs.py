"""Directories as runs and sweeps leave them, written in no time."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

NAME = "fd500_shapes"
PROVENANCE = {
    "extractor": {"name": "shapes", "weights_sha256": "0d84b995" + "0" * 56},
    "generated": {"source": "model", "weights": "ema", "seed": 7, "num_images": 500},
    "real": {"source": "shapes", "num_images": 1000},
}
FRECHET = {
    "_target_": "genimg.evaluation.evaluator.Evaluator",
    "metrics": {"frechet_distance": {"_target_": "genimg.evaluation.metrics.FrechetDistance"}},
}


def write_run(
    folder: Path,
    *,
    values: Sequence[float] = (30.0, 20.0, 25.0),
    name: str = NAME,
    higher_is_better: bool = False,
    overrides: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    intervals: bool = False,
    provenance: Mapping[str, Any] = PROVENANCE,
    summary: Mapping[str, Any] | None = None,
    status: str | None = "completed",
    kinds: Sequence[str] = ("samples",),
) -> Path:
    """A run of 1000 images for each of ``values`` of its metric; without a status it has no summary.

    Args:
        folder: to make.
        values: of the primary metric, an evaluation each.
        name, higher_is_better: of the metric.
        overrides: of the command line.
        config: beside the seed and the evaluation.
        intervals: whether the values have bounds, 1 below and 2 above.
        provenance: of all values.
        summary: what it says beyond the usual.
        status: of the summary.
        kinds: of pictures, one for each evaluation and one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"seed": 0, "evaluation": FRECHET, **(config or {})}), folder / "config.yaml")
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    lines: list[dict[str, Any]] = []
    for number, value in enumerate(values, start=1):
        images = 1000 * number
        times = {"time/images_per_second": 100.0, "time/data_wait_share": 0.25}
        lines.append({"step": 10 * number, "images": images, "loss/total": 1.0 / number, "lr/all": 0.1, **times})
        bounds = {f"evaluation/{name}_low": value - 1, f"evaluation/{name}_high": value + 2} if intervals else {}
        measured = {f"evaluation/{name}": value, "evaluation/kd500_shapes": 0.5, "evaluation/kd500_shapes_std": 0.125}
        lines.append({"step": 10 * number, "images": images, **measured, **bounds, "provenance": dict(provenance)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if status is not None:
        best = (max if higher_is_better else min)(values) if values else None
        told = {
            "status": status,
            "images": 1000 * len(values),
            "steps": 10 * len(values),
            "primary": name,
            "higher_is_better": higher_is_better,
            "last": {name: values[-1]} if values else {},
            "best": {} if best is None else {name: best},
            "best_images": -1 if best is None else 1000 * (list(values).index(best) + 1),
            "num_evaluations": len(values),
            "final": {},
            "provenance": dict(provenance),
            "training_images_per_second": 100.0,
            "data_wait_share": 0.25,
            "evaluation_seconds": 10.0,
            "hardware": {"device": "cpu", "name": "a processor"},
            "processes": 1,
            "versions": {"genimg": "0.1.0", "torch": "2.11"},
            "git_commit": "0123456789abcdef",
        }
        (folder / "summary.json").write_text(json.dumps(told | dict(summary or {})), encoding="utf-8")
    for kind in kinds:
        for number in range(len(values) + 1):
            write_picture(folder, kind, 1000 * number)
    return folder


def write_picture(folder: Path, kind: str, images: int, size: int = 20) -> None:
    """Noise that is another for each picture."""
    numbers = np.random.default_rng([images, crc32(kind.encode()), crc32(folder.name.encode())])
    (folder / "samples").mkdir(exist_ok=True)
    Image.fromarray(numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
        folder / "samples" / f"{kind}-{images:09d}.png"
    )


def write_sweep(folder: Path, jobs: Mapping[str, tuple[list[str], float | None]]) -> Path:
    """A sweep as gpu_queue leaves it: directory of a job -> its overrides, and its best value or None where it failed."""
    folder.mkdir(parents=True)
    rows = [["job", "status", "best", "directory", "note", "overrides"]]
    for number, (name, (overrides, value)) in enumerate(jobs.items()):
        status, note = ("failed", "the loss does not fit") if value is None else ("complete", "")
        rows.append([str(number), status, "" if value is None else str(value), name, note, " ".join(overrides)])
        if value is None:
            (folder / name).mkdir()
            (folder / name / "console.log").write_text("genimg-train: error: another line\n", encoding="utf-8")
        else:
            settings = dict(each.split("=", 1) for each in overrides if "." not in each.split("=", 1)[0])
            write_run(folder / name, values=[value + 5, value, value + 1], overrides=overrides, config=settings)
    with (folder / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder
