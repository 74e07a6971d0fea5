"""Damage checkpoints and kill commands at random moments, and report damage that is not detected and results that are lost.

    python scripts/integrity.py damage --flips 500 --pages 100     # about a minute
    python scripts/integrity.py kills --seed 1                     # about 10 minutes on 2 cores
    python scripts/integrity.py cost --megabytes 100               # time to read and write a checkpoint, compared with torch

``damage`` trains a small GAN, VAE and restoration model. Then it flips one bit, or overwrites one page with zeros, in one
checkpoint at a time. Each damaged checkpoint must be rejected, or be read as it was written, because a few bytes of an archive
have no meaning. The exit code is 1 if this fails for any checkpoint.

``cost`` also reads packed images, with and without their checksums.

``kills`` starts a training run that saves at every step, an evaluation that saves statistics, and the commands that sample,
prepare, export and sweep. It kills each (SIGKILL, with all of its processes) after a random part of its duration. Every file
with the name of a result must then be complete. When the same command is started again, it must end with the same result as
without the kill (bit for bit, for a training run), and leave no partial files behind. The exit code is 1 if any check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.datasets.prepared import prepared
from genimg.data.packed_files import DESCRIPTION, WITHOUT_CHECKSUMS
from genimg.data.packing import pack
from genimg.errors import UserError
from genimg.training import checkpoint
from genimg.utils.files import is_temporary
from genimg.utils.verified_torch import load_verified

PAGE = 4096  # bytes
SMALL = ("data.num_images=64", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4", "evaluation=none",
         "device=cpu")  # fmt: skip
FAMILIES = {
    "gan": ("model=dcgan_small", "model.generator.width=8", "model.discriminator.features.width=8"),
    "vae": ("model=vae_small",),
    "restoration": ("model=restoration_unet", "task=denoise", "model.translator.width=8"),
}


def start(name: str, *arguments: str, folder: Path, memory: int | None = None) -> int:
    """Start a command in a fork, in its own process group, and return its process ID.

    Args:
        name: Name of the command, without genimg-.
        arguments: Arguments of the command.
        folder: Working directory, in which the output is written to output.txt.
        memory: Maximum number of bytes that it may allocate.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        from hydra.core.global_hydra import GlobalHydra

        from genimg import cli

        GlobalHydra.instance().clear()
        sys.argv = [f"genimg-{name}", *arguments]
        getattr(cli, {"eval": "evaluate"}.get(name, name))()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(name: str, *arguments: str, folder: Path) -> None:
    """Run a command to its end."""
    code = os.waitstatus_to_exitcode(os.waitpid(start(name, *arguments, folder=folder), 0)[1])
    if code:
        raise RuntimeError(f"genimg-{name} {' '.join(arguments)} ended with {code}:\n{(folder / 'output.txt').read_text()}")


def run_and_kill(seconds: float, name: str, *arguments: str, folder: Path) -> bool:
    """Run a command for ``seconds``, then kill it and all its processes; return whether it was still running."""
    pid = start(name, *arguments, folder=folder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for each in children_of(pid):
        os.kill(each, signal.SIGKILL)
    return True


def children_of(pid: int) -> Iterator[int]:
    """Yield the processes that a sweep has started in their own sessions, which do not end immediately when it is killed."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"genimg.train" in words and parent in (1, pid):
            yield int(folder.name)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(type(one) is type(other) and one == other)


def damage(flips: int, pages: int, seed: int) -> int:
    """Return the number of damaged checkpoints that were read with other contents than were written."""
    generator = random.Random(seed)
    silent = 0
    with tempfile.TemporaryDirectory() as home:
        for number, (family, words) in enumerate(FAMILIES.items()):
            run("train", *words, *SMALL, "trainer.duration=2 steps", f"run_dir={family}", folder=Path(home))
            path = Path(home, family, "checkpoints", "last.pt")
            whole, state, damaged = path.read_bytes(), checkpoint.load(path), path.with_name("damaged.pt")
            kinds = ["bit"] * len(range(number, flips, len(FAMILIES))) + ["page"] * len(range(number, pages, len(FAMILIES)))
            refused = unchanged = 0
            for kind in tqdm(kinds, desc=family, unit="file"):
                content = bytearray(whole)
                if kind == "bit":
                    place = generator.randrange(len(whole) * 8)
                    content[place // 8] ^= 1 << place % 8
                else:
                    place = generator.randrange(len(whole) // PAGE + 1) * PAGE
                    content[place : place + PAGE] = bytes(len(content[place : place + PAGE]))
                damaged.write_bytes(content)
                try:
                    found = checkpoint.load(damaged)
                except UserError:
                    refused += 1
                    continue
                if same(found, state):
                    unchanged += 1
                else:
                    silent += 1
                    print(f"{family}: {kind} at {place} of {len(whole)} bytes was not noticed")
            print(f"{family} ({len(whole):,} bytes): {len(kinds)} damaged, {refused} refused, {unchanged} without effect")
    print(f"read as something else than what was written: {silent}")
    return silent


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path.name)]


def check_checkpoints(folder: Path) -> None:
    """Check that every file with the name of a checkpoint is a complete checkpoint."""
    for path in folder.rglob("*.pt"):
        if not any(is_temporary(parent.name) for parent in path.parents):
            load_verified(path)


class Kills:
    """Commands to kill, in a directory with a trained GAN and a folder of pictures."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.generator = home, random.Random(seed)
        self.times: dict[str, float] = {}
        run("train", *FAMILIES["gan"], *SMALL, "trainer.duration=2 steps", "run_dir=gan", folder=home)
        (home / "pictures").mkdir()
        values = np.random.default_rng(0)
        for number in range(150):
            pixels = values.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "pictures" / f"{number}.png")

    def kill(self, name: str, arguments: tuple[str, ...], check: Callable[[], None], reset: Callable[[], None]) -> bool:
        """Kill a command, check its files, run it again, and check again; return whether it was running when it was killed."""
        key = f"{name} {' '.join(arguments)}"
        if key not in self.times:
            for _ in range(2):  # the first run also imports the command's modules
                reset()
                begin = time.monotonic()
                run(name, *arguments, folder=self.home)
                self.times[key] = time.monotonic() - begin
                check()
        reset()
        was_at_work = run_and_kill(self.generator.uniform(0.1, 1.0) * self.times[key], name, *arguments, folder=self.home)
        check()
        if not (name == "prepare" and (self.home / "packed").exists()):  # a complete result is never replaced
            run(name, *arguments, folder=self.home)
            check()
        if left := leftovers(self.home):
            raise RuntimeError(f"{left[0]} was left behind")
        return was_at_work

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.home / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def training(self) -> bool:
        arguments = (*FAMILIES["gan"], *SMALL, "trainer.duration=24 steps", "trainer.checkpoint_interval=1 steps",
                     "trainer.keep_last=2", "trainer.preview_interval=3 steps", "run_dir=killed", "resume=auto")  # fmt: skip
        whole = self.home / "whole.pt"

        def check() -> None:
            check_checkpoints(self.home / "killed")
            last = self.home / "killed" / "checkpoints" / "last.pt"
            if not (self.home / "killed" / "summary.json").exists():
                return
            found = load_verified(last)
            if not whole.exists():
                shutil.copyfile(last, whole)
            expected = load_verified(whole)
            for part in ("method", "optimizers"):
                if not same(found[part], expected[part]):
                    raise RuntimeError(f"{last} is not bit for bit that of a run that was not killed, in {part}")

        return self.kill("train", arguments, check, lambda: self.remove("killed"))

    def sampling(self) -> bool:
        def check() -> None:
            folder = self.home / "made"
            if not folder.exists():
                return
            names = sorted(path.name for path in folder.glob("*.png"))
            if len(names) != 60:
                raise RuntimeError(f"{folder} holds {len(names)} of 60 pictures")
            for name in names:
                Image.open(folder / name).load()

        arguments = ("ckpt=gan", "num_images=60", "output=made", "device=cpu")
        return self.kill("sample", arguments, check, lambda: None if self.generator.random() < 0.5 else self.remove("made"))

    def evaluating(self) -> bool:
        file = self.home / "statistics.pt"

        def check() -> None:
            if file.exists():
                load_verified(file)
            check_checkpoints(self.home / "cache")

        arguments = ("images=pictures", "real=pictures", "save_statistics=statistics.pt", "evaluation=shapes", "image_size=16",
                     "evaluation.cache_dir=cache", "device=cpu")  # fmt: skip
        return self.kill("eval", arguments, check, lambda: self.remove("statistics.pt", "cache"))

    def preparing(self) -> bool:
        from genimg.data.datasets.prepared import prepared

        def check() -> None:
            if (self.home / "packed").exists():
                source = prepared(root=str(self.home / "packed"), image_size=16, channels=3)
                if len(source) != 150 or source.read_many(np.arange(150)).shape != (150, 3, 16, 16):
                    raise RuntimeError("packed is not whole")

        arguments = ("data=folder", "data.root=pictures", "data.image_size=16", "output=packed")
        return self.kill("prepare", arguments, check, lambda: self.remove("packed"))

    def exporting(self) -> bool:
        def check() -> None:
            if (self.home / "generator.pt2").exists():
                torch.export.load(self.home / "generator.pt2").module()(torch.zeros(1, 100))

        arguments = ("ckpt=gan", "format=pt2", "output=generator.pt2", "device=cpu")
        return self.kill("export", arguments, check, lambda: self.remove("generator.pt2"))

    def sweeping(self) -> bool:
        arguments = ("-m", *FAMILIES["gan"], *SMALL, "trainer.duration=6 steps", "trainer.checkpoint_interval=1 steps",
                     "optimizer.lr=1e-4,2e-4", "hydra/launcher=gpu_queue", "hydra.sweep.dir=sweep")  # fmt: skip

        def check() -> None:
            check_checkpoints(self.home / "sweep")

        return self.kill("train", arguments, check, lambda: self.remove("sweep"))


COUNTS = {"training": 44, "sampling": 14, "evaluating": 12, "preparing": 14, "exporting": 8, "sweeping": 8}


def kills(seed: int, share: float) -> int:
    """Return the number of kills after which something was lost."""
    lost = 0
    with tempfile.TemporaryDirectory() as home:
        commands = Kills(Path(home), seed)
        for name, count in COUNTS.items():
            at_work = 0
            count = max(1, round(count * share))
            for _ in tqdm(range(count), desc=name, unit="kill"):
                try:
                    at_work += getattr(commands, name)()
                except Exception as error:
                    lost += 1
                    print(f"{name}: {type(error).__name__}: {error}")
            print(f"{name}: {count} kills, {at_work} of them while the command was at work")
    print(f"kills after which something was lost, or taken for whole: {lost}")
    return lost


def cost(megabytes: int, repeats: int) -> int:
    """Print the time to write and to read a checkpoint, alternating with torch's own functions."""
    generator = torch.Generator().manual_seed(0)
    state = {f"layer{i}.weight": torch.randn(megabytes * 2500, generator=generator) for i in range(100)}
    times: dict[str, list[float]] = {"torch.save": [], "checkpoint.save": [], "torch.load": [], "checkpoint.load": []}
    with tempfile.TemporaryDirectory() as home:
        plain, own = Path(home, "plain.pt"), Path(home, "own.pt")

        def torch_save() -> None:
            with open(plain, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        jobs: dict[str, Callable[[], object]] = {
            "torch.save": torch_save,
            "checkpoint.save": lambda: checkpoint.save({"method": state}, own),
            "torch.load": lambda: torch.load(plain, map_location="cpu", weights_only=True),
            "checkpoint.load": lambda: checkpoint.load(own),
        }
        for _ in tqdm(range(repeats), unit="round"):
            for name, job in jobs.items():
                begin = time.perf_counter()
                job()
                times[name].append(time.perf_counter() - begin)
        print(f"{own.stat().st_size / 1e6:.0f} MB, median of {repeats}, and the least:")
    for name, seconds in times.items():
        print(f"  {name:16} {statistics.median(seconds) * 1e3:6.0f} ms {min(seconds) * 1e3:6.0f} ms")
    cost_of_images(repeats)
    return 0


def cost_of_images(repeats: int) -> None:
    """Print the time to read packed images in batches of 64, alternating with and without their checksums."""
    for count, size in ((10_000, 32), (1_000, 256)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        batches = np.array_split(np.random.default_rng(1).permutation(count), -(-count // 64))
        sources, times = {}, {True: [], False: []}
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            pack(ArrayDataset("noise", pixels), folder, shard_size=2**30, num_threads=1, max_corrupt=0, provenance={})
            sources[True] = prepared(root=home, image_size=size, channels=3)
            content = json.loads((folder / DESCRIPTION).read_text())
            del content["digests"], content["sha256"]
            (folder / DESCRIPTION).write_text(json.dumps(content | {"format": WITHOUT_CHECKSUMS}))
            sources[False] = prepared(root=home, image_size=size, channels=3)
            for _ in range(repeats):
                for checks, source in sources.items():
                    begin = time.perf_counter()
                    for indices in batches:
                        source.read_many(indices)
                    times[checks].append(time.perf_counter() - begin)
        (median, least), (plain_median, plain_least) = ((statistics.median(times[c]), min(times[c])) for c in (True, False))
        print(
            f"{count} packed images of {size}x{size}, median of {repeats}, and the least: {median * 1e3:.1f} ms and "
            f"{least * 1e3:.1f} ms, without checksums {plain_median * 1e3:.1f} ms and {plain_least * 1e3:.1f} ms; ratio "
            f"{median / plain_median:.2f} and {least / plain_least:.2f}; {(least - plain_least) / count * 1e6:.1f} us an image"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("damage", "kills", "cost"))
    parser.add_argument("--flips", type=int, default=500, help="total number of bits to flip")
    parser.add_argument("--pages", type=int, default=100, help="total number of pages to overwrite")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the 100 kills to run")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the measured checkpoint")
    parser.add_argument("--repeats", type=int, default=15, help="number of measurements")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.what == "damage":
        failures = damage(options.flips, options.pages, options.seed)
    elif options.what == "kills":
        failures = kills(options.seed, options.share)
    else:
        failures = cost(options.megabytes, options.repeats)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
