#!/usr/bin/env python3
"""Compare genimg's trainer with a tutorial's loop on this machine, with the same networks, images and optimizers.

    python scripts/benchmark.py                                     every recipe in the table below
    python scripts/benchmark.py --recipes dcgan_64 --json dcgan.json
    python scripts/benchmark.py --override data.storage=workers     the effect of one genimg setting
    python scripts/benchmark.py --recipes dcgan_small_28 --beside   the same beside a busy process
    python scripts/benchmark.py --recipes dcgan_32 --long 10000     whether memory and step time stay constant

Each recipe runs in its own process. In this process, blocks of steps of the two loops alternate, so load from other programs
affects both. If steps differ in work (n_critic, lazy penalties), every block has the same number of each kind. genimg's side is
the real Trainer with the real ImageLoader and everything that it does in training, timed from one request for a batch to the
next. The tutorial's loop is in plain_loops.py and plain_translation.py. An untimed pause precedes each block on either side.
During the pause, loader workers fill their queues and go to sleep, so they take no time from the other side.
docs/performance.md explains the columns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from busy import busy_process
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from plain_loops import STEPS, Pictures, PlainLoop
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker
from tqdm import tqdm

from genimg.api.assemble import assemble
from genimg.api.thread_trial import choose_threads
from genimg.config.compose import Config as ImmutableConfig
from genimg.config.messages import explain
from genimg.data.datasets.shapes import shapes
from genimg.errors import ConfigError
from genimg.evaluation.feature_extraction import full_float32
from genimg.training.components import TrainingComponents
from genimg.training.device import choose_device, describe_hardware
from genimg.training.logger import Logger
from genimg.training.thread_choice import Threads, same_threads_afterwards
from genimg.types import Batch
from genimg.utils.environment import git_commit, versions
from genimg.utils.images import write_png
from genimg.utils.paths import config_dir
from genimg.utils.words import nearest

# A recipe is one line: its name, genimg-train's overrides, and the plain step (in plain_loops.STEPS) that it is compared with.
# Images have 32 px by default.
CYCLEGAN = "model=cyclegan data=unpaired model.translator.num_blocks=6"
RECIPES = {
    "dcgan_64": ("model=dcgan data.image_size=64 trainer.batch_size=64", "gan"),
    "dcgan_32": ("model=dcgan data.image_size=32 trainer.batch_size=128", "gan"),
    "vae_64": ("model=vae data.image_size=64 trainer.batch_size=64", "vae"),
    "vae_32": ("model=vae data.image_size=32 trainer.batch_size=128", "vae"),
    "dcgan_small_28": ("model=dcgan_small data.image_size=28 data.channels=1 trainer.batch_size=64", "gan"),
    "vae_small_28": ("model=vae_small data.image_size=28 data.channels=1 trainer.batch_size=64", "vae"),
    "sngan_32": ("model=sngan data.image_size=32 trainer.batch_size=64", "gan"),
    "wgan_gp_32": ("model=wgan_gp penalty=[gradient_penalty] data.image_size=32 trainer.batch_size=64", "gan"),
    "stylegan2_32": ("model=stylegan2_small penalty=[r1] penalty.r1.interval=16 trainer.batch_size=32", "gan"),
    # At CIFAR-10's size, batches of diffusion models are small, because a step with the usual 128 takes seconds on a CPU.
    "flow_small_28": ("model=flow_small data.image_size=28 data.channels=1 trainer.batch_size=64", "diffusion"),
    "flow_small_32": ("model=flow_small data.image_size=32 trainer.batch_size=64", "diffusion"),
    "flow_32": ("model=flow data.image_size=32 trainer.batch_size=16", "diffusion"),
    "ddpm_32": ("model=ddpm data.image_size=32 trainer.batch_size=16", "diffusion"),
    # The batch size is 4 at 64 px, and 1 at 128 px as in the papers. CycleGAN has six residual blocks below 256 px.
    "pix2pix_64": ("model=pix2pix task=edges_sobel data.image_size=64 trainer.batch_size=4", "pix2pix"),
    "pix2pix_128": ("model=pix2pix task=edges_sobel data.image_size=128 trainer.batch_size=1", "pix2pix"),
    "cyclegan_64": (f"{CYCLEGAN} data.image_size=64 trainer.batch_size=4", "cyclegan"),
    "cyclegan_128": (f"{CYCLEGAN} data.image_size=128 trainer.batch_size=1", "cyclegan"),
    "cyclegan_256": ("model=cyclegan data=unpaired data.image_size=256 trainer.batch_size=1", "cyclegan"),
}
MIB = 2**20
default_switches = partial(full_float32, tf32_convolutions=True)  # PyTorch's defaults, which genimg changes
A_LONG_TRAINING = {"trainer": {"duration": "1 hours"}}  # the number of threads is chosen as for this duration
PAUSE = 0.25  # seconds before each block; two loader workers need about 10 ms for two batches each
MEMORY_LIMIT = 1.0  # MiB of growth in 1000 steps
TIME_LIMITS = (0.9, 1.1)  # step time in the last tenth of the steps, divided by that in the second tenth

Config = dict[str, Any]


class Blocks:
    """Cuts a stream of batches into blocks of steps and times them."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.seconds: list[float] = []
        self.waiting: list[float] = []  # part of ``seconds`` spent waiting for batches

    def cut(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Yield the next block of batches of a stream, timed until the batch after it is requested."""
        synchronize(self.device)
        waiting, start = 0.0, time.perf_counter()
        for _ in range(self.steps):
            asked = time.perf_counter()
            batch = next(stream)
            waiting += time.perf_counter() - asked
            yield batch
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - start)
        self.waiting.append(waiting)

    def summary(self, batch_size: int, last: int) -> Config:
        """Return the rate and the times of the last blocks."""
        seconds, waiting = self.seconds[-last:], self.waiting[-last:]
        low, median, high = np.percentile([s / self.steps * 1e3 for s in seconds], [25, 50, 75]).tolist()
        return {
            "images_per_second": last * self.steps * batch_size / sum(seconds),
            "step_ms": {"lower_quartile": low, "median": median, "upper_quartile": high},
            "data_wait_share": sum(waiting) / sum(seconds),
            "batch_size": batch_size,
            "block_seconds": seconds,
            "block_waiting_seconds": waiting,
        }


class NoModules(ModuleTracker):
    """Tracker without modules; the default tracker of FlopCounterMode fails with penalties (PyTorch issue 131753)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def train_genimg(parts: TrainingComponents, blocks: Blocks, between: Callable[[], None]) -> float:
    """Train with the real trainer, which receives its batches in ``blocks``; ``between`` is called before each block.

    Returns:
        The number of floating-point operations per step, counted in a first block that is not timed.
    """
    data = parts.data
    batches, counter = data.batches, FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()

    def in_blocks(*arguments: int, **keywords: int) -> Iterator[Batch]:
        stream = batches(*arguments, **keywords)
        with counter:
            for _ in range(blocks.steps):
                yield next(stream)
        while True:
            between()
            yield from blocks.cut(stream)

    data.batches = in_blocks  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts.trainer(folder=folder, make_logger=lambda step, _: Logger(folder, step=step), describe={}).fit()
    return counter.get_total_flops() / blocks.steps


def memory(device: torch.device, *, peak: bool) -> float:
    """Return the MiB allocated on a GPU, or resident in this process: current or peak (on a GPU, since the last reset)."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)) / MIB
    if not peak and Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def matrix_rates(device: torch.device) -> dict[str, float]:
    """Return the FLOP/s of the fastest of five products of two large square matrices, for each precision."""
    size = 512 if device.type == "cpu" else 8192  # a processor without instructions for bf16 takes minutes for 2048
    kinds = {"fp32": (torch.float32, "highest"), "tf32": (torch.float32, "high"), "bf16": (torch.bfloat16, "high")}
    rates = {}
    for name, (dtype, switch) in kinds.items():
        if name == "tf32" and device.type != "cuda":
            continue
        torch.set_float32_matmul_precision(switch)
        matrix = torch.randn(size, size, device=device, dtype=dtype)
        times = []
        for _ in range(6):  # the first warms up
            synchronize(device)
            start = time.perf_counter()
            matrix @ matrix
            synchronize(device)
            times.append(time.perf_counter() - start)
        rates[name] = 2 * size**3 / min(times[1:])
    return rates


def compare(
    name: str, configs: dict[str, Config], parts: TrainingComponents, block: int, count: int, threads: Mapping[str, int]
) -> Config:
    """Time ``count`` blocks of both sides in turn, after one that counts operations and two that warm up."""
    device = parts.device
    genimg, plain = Blocks(device, block), Blocks(device, block)
    loop: PlainLoop | None = None
    peak = {}

    def plain_block(loop: PlainLoop) -> None:
        time.sleep(PAUSE)
        with default_switches(), same_threads_afterwards():
            torch.set_num_threads(threads["plain"])
            for batch in plain.cut(loop.batches):
                loop.train_on(batch)

    def between() -> None:
        nonlocal loop
        done = len(genimg.seconds)
        if done == 1 and device.type == "cuda":  # all searches and compilations are done
            torch.cuda.reset_peak_memory_stats(device)
        if not 2 <= done < 2 + count:
            return
        if loop is None:  # genimg has run alone so far
            peak["genimg"] = memory(device, peak=True)
            loop = plain_loop(configs["plain"], RECIPES[name][1])
            plain_block(loop)
            plain_block(loop)
        plain_block(loop)
        tqdm.write(f"{name}: block {done - 1} of {count}", file=sys.stderr)
        time.sleep(PAUSE)

    flops = train_genimg(parts, genimg, between)
    peak["both"] = memory(device, peak=True)
    ours = genimg.summary(configs["genimg"]["trainer"]["batch_size"], count)
    theirs = plain.summary(configs["plain"]["trainer"]["batch_size"], count)
    rates = [side["batch_size"] / np.array(side["block_seconds"]) for side in (ours, theirs)]
    totals = ours["images_per_second"] / theirs["images_per_second"]
    return {
        "genimg": ours,
        "plain": theirs,
        "ratio": {"totals": totals, "median_of_blocks": float(np.median(rates[0] / rates[1]))},
        "peak_memory_mib": peak,
        **arithmetic(flops, ours, parts),
    }


def plain_loop(config: Config, kind: str) -> PlainLoop:
    """Return the tutorial's loop over the config's images, with the config's networks, loss and optimizers."""
    with default_switches():
        parts = assemble(ImmutableConfig(config), config["device"]).components
    pictures, batch_size = Pictures(parts.source, parts.method), parts.settings.batch_size
    return PlainLoop(STEPS[kind](), parts.method, parts.optimizers, pictures, batch_size=batch_size, device=parts.device)


def arithmetic(flops: float, genimg: Config, parts: TrainingComponents) -> Config:
    """Return the FLOP/s of genimg's steps, and their share of the device's rate, which is measured here."""
    achieved, rates = flops / genimg["batch_size"] * genimg["images_per_second"], matrix_rates(parts.device)
    share = achieved / rates[parts.precision.name]
    steps = {"flops_per_step": flops, "flops_per_second": achieved, "share_of_matrix_rate": share}
    return steps | {"matrix_flops_per_second": rates}


def watch(name: str, parts: TrainingComponents, block: int, count: int) -> Config:
    """Train only genimg's side for many steps, and return whether memory and step time stay constant."""
    blocks, held = Blocks(parts.device, block), []

    def between() -> None:
        held.append(memory(parts.device, peak=False))
        if (len(held) - 1) % (count // 10) == 0:
            tqdm.write(f"{name}: {len(blocks.seconds) * blocks.steps} steps, {held[-1]:.1f} MiB", file=sys.stderr)

    train_genimg(parts, blocks, between)
    steps = np.arange(1, count + 1) * blocks.steps
    step_ms, after = np.array(blocks.seconds) / blocks.steps * 1e3, np.array(held[1:])
    tenths = np.array_split(np.arange(count), 10)
    points = [(int(steps[t[-1]]), float(after[t[-1]]), float(np.median(step_ms[t]))) for t in tenths]
    rest = np.concatenate(tenths[1:])
    growth, ratio = float(np.polyfit(steps[rest], after[rest], 1)[0] * 1000), points[-1][2] / points[1][2]
    return {
        "points": [dict(zip(("steps", "memory_mib", "median_step_ms"), point, strict=True)) for point in points],
        "memory_growth_mib_per_1000_steps": growth,
        "step_time_ratio": ratio,
        "verdict": {
            "memory": "flat" if growth <= MEMORY_LIMIT else "grows",
            "step_time": "steady" if TIME_LIMITS[0] <= ratio <= TIME_LIMITS[1] else "drifts",
        },
        "block_seconds": blocks.seconds,
    }


def print_comparison(results: Config) -> None:
    columns = "recipe|batch|threads: genimg|plain|images/s: genimg|plain|genimg / plain|median of blocks"
    columns += "|step, ms: genimg|plain|waiting: genimg|plain"
    columns += "|peak MiB: genimg|both|GFLOP a step|GFLOP/s|of matrix rate"
    print(f"|{columns}|\n" + "|---" * (columns.count("|") + 1) + "|")
    for name, r in results.items():
        sides = [r["genimg"], r["plain"]]
        cells = [
            name,
            str(sides[0]["batch_size"]),
            *map(str, r["threads"].values()),
            *(f"{side['images_per_second']:.1f}" for side in sides),
        ]
        cells += [f"**{r['ratio']['totals']:.3f}**", f"{r['ratio']['median_of_blocks']:.3f}"]
        cells += ["{median:.2f} ({lower_quartile:.2f} to {upper_quartile:.2f})".format(**side["step_ms"]) for side in sides]
        cells += [f"{side['data_wait_share']:.1%}" for side in sides]
        cells += [f"{mib:.0f}" for mib in r["peak_memory_mib"].values()]
        cells += [f"{r['flops_per_step'] / 1e9:.2f}", f"{r['flops_per_second'] / 1e9:.1f}"]
        cells += [f"{r['share_of_matrix_rate']:.1%} of {r['matrix_flops_per_second'][r['precision']] / 1e9:.0f}"]
        print(f"|{'|'.join(cells)}|")


def print_watch(results: Config) -> None:
    low, high = TIME_LIMITS
    for name, r in results.items():
        print(f"{name}\n\n|steps|memory, MiB|step, ms (median)|\n|---|---|---|")
        for point in r["points"]:
            print("|{steps}|{memory_mib:.1f}|{median_step_ms:.2f}|".format(**point))
        growth, verdict = f"{r['memory_growth_mib_per_1000_steps']:+.3f} MiB per 1000 steps", r["verdict"]
        print(f"\nmemory {verdict['memory']}: {growth} after the first tenth (flat: {MEMORY_LIMIT:g} or less)")
        print(f"step time {verdict['step_time']}: {r['step_time_ratio']:.3f} of the second tenth's (steady: {low} to {high})\n")


def parsed() -> argparse.Namespace:
    def count(text: str) -> int:
        if int(text) < 1:
            raise ValueError
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated names (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="precision on genimg's side")
    parser.add_argument("--blocks", type=count, default=20, help="number of timed blocks on each side")
    parser.add_argument("--block", type=count, help="steps per block (default: 5 on a CPU, 100 elsewhere)")
    parser.add_argument("--batch-size", type=count, help="replaces the recipe's batch size")
    parser.add_argument("--images", type=count, default=10_000, help="number of images to draw for training")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="setting for genimg's side only")
    parser.add_argument("--long", type=count, metavar="STEPS", help="train only genimg's side for this many steps, 10 or more")
    parser.add_argument("--beside", action="store_true", help="keep a core busy with another process during the measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results and block times to this file")
    arguments = parser.parse_args()
    arguments.recipes = arguments.recipes.split(",")
    for name in arguments.recipes:
        if name not in RECIPES:
            parser.error(f"unknown recipe {name!r}{nearest(name, RECIPES)}: choose from {', '.join(RECIPES)}")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no directory {arguments.json.parent}")
    return arguments


def configs_of(name: str, arguments: argparse.Namespace) -> dict[str, Config]:
    """Return the composed configs of genimg-train for both sides; --override changes only genimg's."""
    overrides = [*RECIPES[name][0].split(), "run_dir=unused", "evaluation=none", f"device={arguments.device}"]
    of_files = "data=unpaired" in overrides
    overrides += [f"data.root={arguments.folder / name}" if of_files else f"data.num_images={arguments.images}"]
    if not arguments.long:
        overrides += ["trainer.checkpoint_interval=1000M images", "trainer.preview_interval=1000M images"]
        overrides += ["trainer.checkpoint_minutes=null", "trainer.preview_seconds=null"]
    if arguments.batch_size:
        overrides += [f"trainer.batch_size={arguments.batch_size}"]
    sides = {
        "genimg": [f"precision={arguments.precision}", *arguments.override],
        "plain": ["precision=fp32", "performance=plain"],
    }
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = {side: compose("train", overrides=[*overrides, *more]) for side, more in sides.items()}
    block, count = blocks_of(composed, arguments)
    # Untimed steps: a block that counts operations, two blocks that warm up a comparison, a step that ends the last block.
    for config in composed.values():
        config.trainer.duration = f"{block * (count + (1 if arguments.long else 3)) + 1} steps"
    return {side: cast(Config, OmegaConf.to_container(config, resolve=True)) for side, config in composed.items()}


def draw_files(config: Config, count: int) -> None:
    """If a config has two domains, draw files for each, half of ``count`` images: with one shape, and with two."""
    if "num_images" in config["data"]:
        return
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    for number, domain in enumerate("AB"):
        source = shapes(seed=number, num_images=count // 2, image_size=size, channels=channels, num_objects=number + 1)
        folder = Path(config["data"]["root"], f"train{domain}")
        folder.mkdir(parents=True)
        for index in range(len(source)):
            write_png(torch.from_numpy(source.read(index)), folder / f"{index}.png")


def blocks_of(configs: Mapping[str, Any], arguments: argparse.Namespace) -> tuple[int, int]:
    """Return the number of steps in a block, and the number of timed blocks.

    Steps differ in work if the generator is updated, or a lazy penalty is computed, only every few steps. A block has one or
    more whole cycles of such steps, as many as fit into ``--block``.
    """
    intervals = [config["model"].get("generator_interval", 1) for config in configs.values()]
    intervals += [penalty.get("interval", 1) for config in configs.values() for penalty in config["penalty"].values()]
    # Invalid intervals are rejected when the parts are built.
    cycle = math.lcm(*(interval for interval in intervals if type(interval) is int and interval > 0))
    most = min(arguments.block, arguments.long // 10) if arguments.long else arguments.block
    block = max(most // cycle, 1) * cycle
    count = arguments.long // block if arguments.long else arguments.blocks
    if arguments.long and count < 10:
        raise ConfigError(f"--long {arguments.long} is too short: ten points need {10 * cycle} steps")
    return block, count


def work(name: str, configs: dict[str, Config], arguments: argparse.Namespace) -> Config:
    """Return the result of one recipe, and the facts that it depends on."""
    draw_files(configs["plain"], arguments.images)
    parts = assemble(ImmutableConfig(configs["genimg"]), configs["genimg"]["device"]).components
    block, count = blocks_of(configs, arguments)
    facts = {"hardware": describe_hardware(parts.device), "precision": parts.precision.name, "block_steps": block}
    threads = {"genimg": torch.get_num_threads(), "plain": torch.get_num_threads()}
    with same_threads_afterwards():
        if chosen := choose_threads(parts, A_LONG_TRAINING, None).threads:
            threads["genimg"] = chosen.number
            parts = replace(parts, threads=Threads(chosen.number, chosen.most))  # the same throughout the measurement
        result = watch(name, parts, block, count) if arguments.long else compare(name, configs, parts, block, count, threads)
    return {**facts, "threads": threads, "configs": configs, **result}


def main() -> None:
    arguments = parsed()
    configs, results, name = {}, {}, ""
    try:
        arguments.block = arguments.block or (5 if choose_device(arguments.device).type == "cpu" else 100)
        with (
            tempfile.TemporaryDirectory() as folder,
            busy_process() if arguments.beside else contextlib.nullcontext(),
            ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
        ):
            arguments.folder = Path(folder)
            for name in arguments.recipes:
                configs[name] = configs_of(name, arguments)
            for name in arguments.recipes:
                results[name] = pool.submit(work, name, configs[name], arguments).result()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = explain(error, "train", [*RECIPES[name][0].split(), *arguments.override] if name else [])
        if message is None:
            raise
        sys.exit(f"benchmark.py: {message}")
    first = next(iter(results.values()))
    facts = {"hardware": first["hardware"], "precision": first["precision"], "versions": versions(), "commit": git_commit()}
    facts |= {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "command": shlex.join(["python", *sys.argv])}
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "recipes": results}, indent=1) + "\n", encoding="utf-8")
    beside = "beside a busy process, " if arguments.beside else ""
    print("{name}, {threads} threads, ".format(**facts["hardware"]) + beside, end="")
    print("precision {precision}, torch {versions[torch]}, {date}, commit {commit}\n`{command}`\n".format(**facts))
    (print_watch if arguments.long else print_comparison)(results)


if __name__ == "__main__":
    main()
