"""Record eight small training runs bit for bit, or compare them with a record, to find the effects of a refactoring.

    python scripts/reference_runs.py record reference.json      # before
    python scripts/reference_runs.py compare reference.json     # after; exit code 1 if a number differs

Each run has 20 steps, started from the command line, on one thread. The record holds every logged value, a digest of every
tensor of the checkpoint, and the metrics. It is valid only on one machine with one version of PyTorch, and is not kept in the
repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

SMALL = ("trainer.duration=20 steps", "trainer.log_interval=1 steps", "trainer.batch_size=8", "data.num_images=64",
         "trainer.preview_images=4", "device=cpu", "precision=fp32")  # fmt: skip
METRICS = ("evaluation.num_images=50", "evaluation.interval=10 steps")
RUNS = {
    "gan": ("model=dcgan_small", "model.generator.width=8", "penalty=[r1_lazy]", "discriminator_augment=diffaugment"),
    "conditional_gan": ("model=sngan", "conditioning=projection", "model.generator.widths=[16,16,16,16]"),
    "stylegan2": (
        "model=stylegan2_small",
        "discriminator_augment=ada",
        "penalty=[r1_lazy,path_length]",
        "model.generator.channel_base=256",
    ),
    "vae": ("model=vae_small",),
    "vq_vae": ("model=vq_vae_small",),
    "cyclegan": ("model=cyclegan", "data=unpaired", "model.translator.width=8", "model.discriminator.width=8"),
    "pix2pix": ("model=pix2pix", "data=shapes", "task=colorize", "model.translator.width=8"),
    "restoration": ("model=restoration_unet", "data=shapes", "task=denoise", "model.translator.width=8"),
}
NOT_NUMBERS_OF_TRAINING = ("seconds", "rate", "throughput", "memory", "wait", "time")


def two_folders(parent: Path) -> Path:
    """Write two folders of drawn images below ``parent``."""
    import numpy as np
    from PIL import Image

    for number, domain in enumerate(("trainA", "trainB")):
        folder = parent / "unpaired" / domain
        folder.mkdir(parents=True)
        random = np.random.default_rng(number)
        for index in range(16):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return parent / "unpaired"


def record_of(name: str, overrides: tuple[str, ...], parent: Path) -> dict[str, Any]:
    """Train once and return the logged values, the digests of the tensors, and the metrics."""
    run_dir = parent / name
    of_data = list(SMALL)
    if name == "cyclegan":
        of_data.remove("data.num_images=64")
        of_data += [
            f"data.root={two_folders(parent)}",
            "data.image_size=32",
            "evaluation=unpaired_translation_cifar10_classifier",
        ]
    elif name in ("pix2pix", "restoration"):
        of_data += ["data.validation=0.25", "evaluation=translation", "evaluation.interval=10 steps"]
    else:
        of_data += METRICS
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "genimg.train", *overrides, *of_data, f"run_dir={run_dir}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = [
        {key: value for key, value in line.items() if not any(word in key for word in NOT_NUMBERS_OF_TRAINING)}
        for line in lines
    ]
    state = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "logged": logged,
        "tensors": dict(sorted(digests(state, ""))),
        "metrics": {key: summary[key] for key in ("last", "best", "final")},
    }


def digests(node: Any, path: str) -> list[tuple[str, str]]:
    """Return a path and a digest for every tensor below ``node``."""
    if isinstance(node, torch.Tensor):
        content = node.detach().contiguous().cpu()
        digest = hashlib.sha256(content.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        return [(path, f"{str(content.dtype).removeprefix('torch.')} {list(content.shape)} {digest}")]
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [found for key, value in entries for found in digests(value, f"{path}/{key}")]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each kind of number that differs, with the first difference."""
    found = []
    for index, (old, new) in enumerate(zip(before["logged"], now["logged"], strict=False)):
        if old != new:
            keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
            found.append(
                f"logged line {index + 1}: " + ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in sorted(keys)[:3])
            )
            break
    if len(before["logged"]) != len(now["logged"]):
        found.append(f"{len(before['logged'])} logged lines, now {len(now['logged'])}")
    for kind in ("tensors", "metrics"):
        old, new = before[kind], now[kind]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            found.append(
                f"{kind}: {len(changed)} differ, the first {changed[0]}: {old.get(changed[0])} -> {new.get(changed[0])}"
            )
    return found


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs; default: all")
    options = parser.parse_args()
    before = json.loads(options.file.read_text()) if options.action == "compare" else {}
    records, failed = {}, False
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            records[name] = record_of(name, RUNS[name], Path(folder))
        if options.action == "compare":
            found = differences(before["runs"][name], records[name])
            failed |= bool(found)
            print(f"{name}: " + ("\n  ".join(["DIFFERS", *found]) if found else "equal bit for bit"), flush=True)
        else:
            print(f"{name}: {len(records[name]['logged'])} lines, {len(records[name]['tensors'])} tensors", flush=True)
    if options.action == "record":
        options.file.write_text(json.dumps({"torch": str(torch.__version__), "runs": records}, indent=1))
    sys.exit(failed)


if __name__ == "__main__":
    main()
