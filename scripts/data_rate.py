#!/usr/bin/env python3
"""Measure how fast a large folder is listed and read by torchvision's ImageFolder, data=folder and data=prepared.

    python scripts/data_rate.py --work DIR                            200,000 small JPEGs in 100 classes, made once in DIR
    python scripts/data_rate.py --work DIR --files 20000 --workers 4 --json result.json

Listing is timed without genimg's cached list of files (cold) and with it (cached). The operating system's own cache of the
directories is kept in between, unless root sets --drop-caches. Reading is timed in alternation, in several rounds. It returns
batches of 64 random images as floats, which are not used, with the same number of workers and the same size. ImageFolder
resizes with Resize, CenterCrop and ToTensor, as most scripts do.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from genimg.data.datasets.builtin import ImageDataset, folder
from genimg.data.datasets.file_index import list_images
from genimg.data.datasets.prepared import prepared
from genimg.data.loader import ImageLoader
from genimg.data.packing import pack
from genimg.training.device import describe_hardware
from genimg.utils.environment import versions

BATCH_SIZE = 64
CLASSES = 100
DISTINCT = 500  # number of different pictures; more would only take longer to make
WIDTH, HEIGHT = 96, 72
WARM_UP = 20  # batches, while workers start
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def make_files(root: Path, count: int) -> None:
    """Write ``count`` JPEGs of smooth colours, evenly over the classes, unless they exist."""
    complete = root.with_suffix(".complete")
    if complete.exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    random, contents = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
        contents.append(buffer.getvalue())
    for number in range(CLASSES):
        (root / f"class_{number:03d}").mkdir(parents=True)
    for i in tqdm(range(count), desc="writing files", unit="file", disable=None):
        (root / f"class_{i % CLASSES:03d}" / f"{i:08d}.jpg").write_bytes(contents[i * 7 % DISTINCT])
    complete.touch()


def time_listing(root: Path, cache: Path, rounds: int, *, drop_caches: bool) -> dict[str, list[float]]:
    """Return the seconds per round without the cached list, with it, and with ImageFolder."""
    seconds: dict[str, list[float]] = {"cold": [], "cached": [], "ImageFolder": []}

    def timed(name: str, function: Callable[[], object]) -> None:
        if drop_caches and name != "cached":
            os.sync()
            DROP_CACHES.write_text("3")
        start = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - start)

    for _ in range(rounds):
        shutil.rmtree(cache / "index", ignore_errors=True)
        timed("cold", lambda: list_images(root, refresh=False))
        if not (cache / "index").is_dir():
            raise SystemExit("the list was not cached: set --files=10000 or more")
        timed("cached", lambda: list_images(root, refresh=False))
        timed("ImageFolder", lambda: ImageFolder(root))
    return seconds


def packed(files: ImageDataset, path: Path) -> float | None:
    """Pack the files and return the seconds that this takes; None if it was done before."""
    if (path / "dataset.json").exists():
        return None
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    start = time.perf_counter()
    pack(files, path, shard_size=2**30, num_threads=None, max_corrupt=None, provenance={})
    return time.perf_counter() - start


def from_torchvision(root: Path, size: int, workers: int) -> Iterator[Any]:
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    loader = DataLoader(
        ImageFolder(root, transforms.Compose(steps)), BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True
    )
    while True:
        yield from loader


def from_genimg(source: ImageDataset, workers: int) -> Iterator[Any]:
    data = ImageLoader(
        source, storage="workers", num_workers=workers, horizontal_flip=False, max_corrupt=0, device=torch.device("cpu")
    )
    return data.batches(0, batch_size=BATCH_SIZE, seed=0)


def time_reading(streams: dict[str, Callable[[], Iterator[Any]]], batches: int, rounds: int) -> dict[str, list[float]]:
    """Return the images per second of each stream in every round; each measurement starts new workers."""
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, make in streams.items():
            stream = make()
            for _ in itertools.islice(stream, WARM_UP):
                pass
            start = time.perf_counter()
            for _ in itertools.islice(stream, batches):
                pass
            rates[name].append(batches * BATCH_SIZE / (time.perf_counter() - start))
            stream.close()  # type: ignore[attr-defined]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for the files, which are kept")
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=200, help="number of batches timed in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drop-caches", action="store_true", help="empty the system's file cache before a cold listing (root)")
    parser.add_argument("--json", type=Path, help="also write all measured values to this file")
    arguments = parser.parse_args()
    if arguments.drop_caches and not os.access(DROP_CACHES, os.W_OK):
        parser.error(f"--drop-caches needs to write to {DROP_CACHES}, which only root may do")

    # As in training on a GPU, the CPU computes nothing here. OpenMP's threads wait busily after every operation, so they would
    # take the cores from the workers.
    torch.set_num_threads(1)
    root, cache = arguments.work / f"files-{arguments.files}", arguments.work / "cache"
    os.environ["GENIMG_CACHE"] = str(cache)
    make_files(root, arguments.files)
    time.sleep(2.5)  # a list is cached only if its directories have not changed for two seconds
    listing = time_listing(root, cache, arguments.rounds, drop_caches=arguments.drop_caches)
    files = folder(root=str(root), image_size=arguments.size, channels=3, fit="crop", labels="required")
    path = arguments.work / f"packed-{arguments.files}-{arguments.size}"
    packing_seconds = packed(files, path)
    shards = prepared(root=str(path), image_size=arguments.size, channels=3)
    streams = {
        "torchvision ImageFolder": lambda: from_torchvision(root, arguments.size, arguments.workers),
        "data=folder": lambda: from_genimg(files, arguments.workers),
        "data=prepared": lambda: from_genimg(shards, arguments.workers),
    }
    rates = time_reading(streams, arguments.batches, arguments.rounds)
    result = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "hardware": describe_hardware(torch.device("cpu")),
        "versions": versions(),
        "listing_seconds": listing,
        "packing_seconds": packing_seconds,
        "images_per_second": rates,
    }
    report(result)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def report(result: dict[str, Any]) -> None:
    settings = result["settings"]
    print(f"{result['hardware']}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} cores")
    print(
        f"{settings['files']} JPEGs of {WIDTH}x{HEIGHT} pixels in {CLASSES} directories; medians of {settings['rounds']} rounds"
    )
    dropped = "dropped" if settings["drop_caches"] else "NOT dropped (only root can, with --drop-caches)"
    print(f"\nlisting (the system's own file cache was {dropped})")
    for name, seconds in result["listing_seconds"].items():
        print(f"  {name:<26}{statistics.median(seconds):>10.3f} s    {min(seconds):.3f} to {max(seconds):.3f}")
    if result["packing_seconds"] is not None:
        print(f"\npacking: {result['packing_seconds']:.1f} s, {settings['files'] / result['packing_seconds']:.0f} images/s")
    print(f"\nreading at {settings['size']} px, batches of {BATCH_SIZE}, {settings['workers']} workers")
    rates = result["images_per_second"]
    first = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(value / base for value, base in zip(values, first, strict=True))
        median = statistics.median(values)
        print(f"  {name:<26}{median:>10.0f} images/s  x{ratio:6.2f}    {min(values):.0f} to {max(values):.0f}")


if __name__ == "__main__":
    main()
