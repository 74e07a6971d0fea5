"""Call the commands with invalid arguments, and report calls that end in a traceback, hang or succeed.

    python scripts/fuzz.py --calls 1000 --seed 1          # about 20 minutes on 2 cores
    python scripts/fuzz.py --seed 1 --only 137            # repeat one call and show everything that it prints

Each call is a small, valid command line in which one to three arguments are replaced by nonsense: numbers out of range,
truth values, null, lists, mappings, odd texts, other options of a group, misspelt and removed keys. Every sixth call keeps
the command line and instead changes the config, or another part, of the checkpoint that it uses.

A call may succeed, or be rejected with exit code 2 and without a traceback. Anything else is a failure, and so is a call that
takes more than 60 seconds. The calls that succeeded are listed at the end, so that a reader can check whether their values make
sense. The exit code is 1 if a call failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from integrity import start
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from genimg.config.compose import compose
from genimg.training import checkpoint
from genimg.utils.paths import config_dir

SECONDS = 60  # time after which a call counts as hanging
MEMORY = 8 * 2**30  # bytes that a call may allocate, so a network of absurd size runs out of memory
SMALL = ("data.num_images=64", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
         "trainer.duration=2 steps", "device=cpu")  # fmt: skip
WITHOUT_IMAGES = SMALL[1:]
NARROW = ("model.generator.width=8", "model.discriminator.features.width=8")
EVALUATED = ("evaluation=shapes", "evaluation.num_images=24")
TRAININGS = (
    ("model=dcgan_small", *NARROW, *SMALL, "evaluation=none"),
    ("model=dcgan_small", *NARROW, *SMALL, *EVALUATED),
    ("model=dcgan_small", *NARROW, *SMALL, "evaluation=none", "conditioning=projection", "penalty=[r1,lecam]",
     "discriminator_augment=ada",
     "schedule=cosine"),
    ("model=dcgan_small", *NARROW, *WITHOUT_IMAGES, "evaluation=none", "data=folder", "data.root=pictures", "loss=hinge",
     "augment=crop_flip", "optimizer=adamw"),
    ("model=stylegan2_small", *SMALL, "evaluation=none", "model.generator.channel_max=8", "model.generator.style_dim=16"),
    ("model=vae_small", *SMALL, *EVALUATED),
    ("model=vq_vae_small", *SMALL, "evaluation=none"),
    ("model=restoration_unet", "model.translator.width=8", *SMALL, "evaluation=none", "task=denoise"),
    ("model=pix2pix", "task=edges", *SMALL, "evaluation=none", "model.translator.width=8", "model.discriminator.num_strided=1",
     "model.discriminator.width=8"),
)  # fmt: skip
OTHERS = {
    "sample": (("ckpt=gan", "num_images=4", "output=made"), ("ckpt=vae", "near=pictures/0.png", "num_images=2", "output=made")),
    "eval": (
        ("ckpt=gan", "evaluation=shapes", "num_images=16"),
        ("images=pictures", "real=pictures", "evaluation=shapes", "image_size=16"),
        ("images=pictures", "real=statistics.pt", "evaluation=shapes", "image_size=16"),
        ("ckpt=restoration", "evaluation=translation", "num_images=8"),
    ),
    "translate": (("ckpt=restoration", "input=pictures", "output=made"),),
    "export": (("ckpt=gan", "format=safetensors", "output=made.safetensors"), ("ckpt=vae", "format=pt2", "output=made.pt2")),
    "prepare": (("data=folder", "data.root=pictures", "data.image_size=16", "output=made"),),
    "features": (("data=folder", "data.root=classes", "data.image_size=16", "name=mine", "epochs=1"),),
    "augment": (("input=pictures", "output=made", "copies=1"),),
    "report": (("gan",), ("runs=[gan,vae]", "output=report.html")),
}  # fmt: skip
OF_CHECKPOINTS = (
    ("sample", "gan", ("num_images=2", "output=made")),
    ("eval", "gan", ("evaluation=shapes", "num_images=16")),
    ("export", "vae", ("format=safetensors", "output=made.safetensors")),
    ("translate", "restoration", ("input=pictures", "output=made")),
    ("train", "vae", ()),
)
PRIMARY = {"augment": "augment_files"}
LASTS = re.compile(
    r"duration|num_|copies|samples|steps|epochs|repeats|bootstrap|frames|neighbors|rows|trials|interval|size|depth|limit"
)
"""Keys whose large values are valid and take long."""

NONSENSE = (
    ("0", "-1", "-3", "1", "7", "100000", "2147483648", "9223372036854775808", "-9223372036854775809", "1e400"),
    ("0.5", "-0.5", "1e-320", "1e308", "nan", "inf", "-inf", ".5", "5.", "1_000"),
    (
        "null", "true", "false", "no", "off", "yes", "on", "''", '""', "auto", "none", "x", "图像", "'👾'", "' '", "'a b'",
        "-", "--", "~", "/", "..", "/dev/null", "/nowhere", "pictures", "'2 epochs'", "'-2 epochs'", "'nan epochs'",
        "'1e99 steps'", "'a\\'b'", "a\\b", "'%s'", "'{}'", "'\x1b[31m'", "'\u202e'", "???", "'???'", "${seed}", "${nope}",
        "${oc.env:NOPE}", "x" * 300, "torch.nn.ReLU", "os.system", "'a=b'", "cuda:99", "2026-11-29",
    ),
    (
        "[]", "[1]", "[null]", "[[1,2],[3]]", "[a,b]", "[-1,0.5,true]", "{}", "{a:1}", "{a:{b:[1,{c:null}]}}",
        "{_target_:os.system}", "{_target_:torch.nn.ReLU}", "{_target_:genimg.schedules.Cosine}", "[{_target_:x}]",
        "{_args_:[1]}", "{1:2}", "[" * 30 + "]" * 30,
    ),
)  # fmt: skip
"""Values as they are written on a command line."""

OF_FILES = (
    None, True, -3, 0, 7, 100_000, 2**40, 2**63 - 1, -0.5, float("nan"), float("inf"), "", "x", "../..", "a" * 5000, "${seed}",
    [], [1], {}, {"a": 1}, [[1, "x"]], {"_target_": "os.system"}, {"_target_": "torch.nn.ReLU"}, torch.zeros(2),
)  # fmt: skip
"""Values as they are stored in a checkpoint."""

ARGUMENTS = (
    "--", "-x", "=", "key", "=1", "a=b=c", "--width=3", "🙂=1", "resume=gan", "resume=nowhere", "resume=gan/config.yaml",
    "ckpt=gan/checkpoints", "ckpt=pictures", "ckpt=pictures/0.png", "debug=two_steps", "dry_run=true",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Outcome of a call.

    Attributes:
        code: Exit code; negative for a signal; None if the call took too long.
        text: Printed text.
        seconds: Duration of the call in seconds.
    """

    code: int | None
    text: str
    seconds: float

    @property
    def failure(self) -> str:
        """Description of the failure; empty if there is none."""
        if self.code is None:
            return f"takes more than {SECONDS} s"
        if "Traceback (most recent call last)" in self.text or "this is a bug" in self.text:
            return "ends in a traceback"
        return "" if self.code in (0, 2) else f"ends with exit code {self.code}"


@dataclass(frozen=True)
class Call:
    """A call with invalid arguments or an invalid checkpoint.

    Attributes:
        command: Name of the command, without genimg-.
        words: Arguments.
        nonsense: Arguments or parts of the checkpoint that are nonsense.
        changes: Run whose checkpoint is changed, and the new values by key; None if no checkpoint is changed. ``DELETED``
            removes a key.
    """

    command: str
    words: tuple[str, ...]
    nonsense: tuple[str, ...]
    changes: tuple[str, tuple[tuple[tuple[str | int, ...], Any], ...]] | None = None

    def __str__(self) -> str:
        where = f" (of {self.changes[0]}'s checkpoint)" if self.changes else ""
        return f"genimg-{self.command}  {'  '.join(self.nonsense)}{where}"


DELETED = object()


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of all values in nested mappings and lists, including those of inner nodes."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def keys_of(command: str, words: tuple[str, ...]) -> list[str]:
    """Return the dotted keys of a command line's config, without those of Hydra."""
    config = OmegaConf.to_container(compose([each for each in words if "=" in each], PRIMARY.get(command, command)).config)
    return [".".join(map(str, path)) for path in leaves(config) if all(isinstance(part, str) for part in path)]


def groups() -> dict[str, list[str]]:
    """Return the options of each config group."""
    folder = Path(config_dir())
    return {each.name: sorted(path.stem for path in each.glob("*.yaml")) for each in sorted(folder.iterdir()) if each.is_dir()}


class Fuzzer:
    """Makes calls, in a directory with trained models and pictures.

    Args:
        home: Empty directory.
        seed: Seed of all calls.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.seed = home, seed
        self.keys: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.groups = groups()

    def prepare(self) -> None:
        """Train the models and draw the pictures that the calls use."""
        pixels = np.random.default_rng(0)
        for name in [*(f"pictures/{i}" for i in range(24)), *(f"classes/{i % 2}/{i}" for i in range(24))]:
            path = self.home / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        for name, words in {"gan": TRAININGS[0], "vae": TRAININGS[5], "restoration": TRAININGS[7]}.items():
            self.must("train", *words, f"run_dir={name}")
            self.states[name] = checkpoint.load(self.home / name / "checkpoints" / "last.pt")
        self.must("eval", "real=pictures", "evaluation=shapes", "image_size=16", "save_statistics=statistics.pt")

    def must(self, command: str, *words: str) -> None:
        outcome = self.run(command, words)
        if outcome.code != 0:
            raise RuntimeError(f"genimg-{command} {' '.join(words)} ended with {outcome.code}:\n{outcome.text}")

    def make(self, number: int) -> Call:
        """Return the call with a number; it depends only on this number and the seed."""
        chance = random.Random(f"{self.seed} {number}")
        if number % 6 == 5:
            return self._with_changed_checkpoint(chance)
        command = "train" if number % 2 == 0 else chance.choice(list(OTHERS))
        base = chance.choice(TRAININGS if command == "train" else OTHERS[command])
        if (command, base) not in self.keys:
            self.keys[command, base] = keys_of(command, base)
        keys = self.keys[command, base]
        nonsense = tuple(self._argument(chance, keys, command) for _ in range(chance.choice((1, 1, 1, 2, 3))))
        run_dir = ("run_dir=made",) if command == "train" else ()
        return Call(command, (*base, *run_dir, *nonsense), nonsense)

    def _argument(self, chance: random.Random, keys: list[str], command: str) -> str:
        kind = chance.random()
        key = chance.choice(keys)
        if kind < 0.70:
            return f"{chance.choice(('', '', '', '', '', '', '+', '++', '++'))}{key}={self._text(chance, key)}"
        if kind < 0.76:
            return f"~{key}"
        if kind < 0.82:
            place = chance.randrange(len(key) + 1)
            odd = key[:place] + chance.choice(("", "x", ".", "_", "ü", "[0]", " ", "-")) + key[place + 1 :]
            return f"{odd}={self._text(chance, odd)}"
        if kind < 0.96 and command == "train":
            group = chance.choice(list(self.groups))
            option = chance.choice([*self.groups[group], "nope", "null", "[none]"])
            return f"{chance.choice(('', '', '', '+', '~'))}{group}={option}"
        return chance.choice(ARGUMENTS)

    def _text(self, chance: random.Random, key: str) -> str:
        value = chance.choice(chance.choice(NONSENSE))
        is_large = re.fullmatch(r"\d{5,}|1e\d+|inf|'1e99 steps'", value)
        return "3" if is_large and LASTS.search(key) else value

    def _with_changed_checkpoint(self, chance: random.Random) -> Call:
        command, run, words = chance.choice(OF_CHECKPOINTS)
        state = self.states[run]
        part = chance.choice(("config", "config", "config", "config", "facts", "decisions", "training", ""))
        paths = list(leaves(state[part])) if part else [(name,) for name in state]
        changes = []
        for _ in range(chance.choice((1, 1, 2))):
            path, value = chance.choice(paths), chance.choice((*OF_FILES, DELETED, DELETED))
            if isinstance(value, int) and value > 100 and LASTS.search(str(path[-1])):
                value = 3
            changes.append((path, value))
        full = tuple(((part, *path) if part else path, value) for path, value in changes)
        shown = tuple(f"{'.'.join(map(str, path))} -> {_in_short(value)}" for path, value in full)
        first = ("resume=changed", "trainer.duration=3 steps") if command == "train" else ("ckpt=changed",)
        return Call(command, (*first, *words), shown, (run, full))

    def write_changed(self, run: str, changes: tuple[tuple[tuple[str | int, ...], Any], ...]) -> None:
        """Write a run directory with a changed checkpoint; the unresolved config is changed in the same way."""
        state = copy.deepcopy(self.states[run])
        for path, value in changes:
            for full in (path, ("raw_config", *path[1:])) if path[0] == "config" else (path,):
                node: Any = state
                try:
                    for part in full[:-1]:
                        node = node[part]
                    if value is DELETED:
                        del node[full[-1]]
                    else:
                        node[full[-1]] = copy.deepcopy(value)
                except (KeyError, IndexError, TypeError):  # an earlier change has removed it, or it is a reference
                    continue
        shutil.copytree(self.home / run, self.home / "changed")
        for file in (self.home / "changed" / "checkpoints").glob("*.pt"):
            file.unlink()
        torch.save(state, self.home / "changed" / "checkpoints" / "last.pt")

    def run(self, command: str, words: tuple[str, ...]) -> Outcome:
        """Run a command in a fork, with limited time and memory."""
        begin = time.monotonic()
        code = _code_within(SECONDS, start(command, *words, folder=self.home, memory=MEMORY))
        text = (self.home / "output.txt").read_text(encoding="utf-8", errors="replace")
        return Outcome(code, text, time.monotonic() - begin)

    def call(self, number: int) -> tuple[Call, Outcome]:
        """Make the call with a number, and remove the files that it has written."""
        call = self.make(number)
        if call.changes:
            self.write_changed(*call.changes)
        there = {path.name for path in self.home.iterdir()} - {"changed"}
        outcome = self.run(call.command, call.words)
        for path in self.home.iterdir():
            if path.name not in there:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return call, outcome


def _code_within(seconds: float, pid: int) -> int | None:
    """Wait for a process, end all processes that it has started, and return its exit code; None if it took longer."""
    end = time.monotonic() + seconds
    code = None
    while code is None and time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # the processes that it has started are in its group
    if code is None:
        os.waitpid(pid, 0)
    return code


def _in_short(value: Any) -> str:
    return "(removed)" if value is DELETED else repr(value)[:60]


def load_everything() -> None:
    """Import the modules that commands import when they start, once for all forks."""
    import genimg.commands
    import genimg.config.resolvers

    for module in pkgutil.iter_modules(genimg.commands.__path__):
        importlib.import_module(f"genimg.commands.{module.name}")
    torch.set_num_threads(1)
    Image.init()


def fuzz(
    numbers: list[int], seed: int, home: Path, *, verbose: bool = False, refused: TextIO | None = None
) -> tuple[list[str], list[str]]:
    """Make calls; return those that failed, with the end of what they printed, and those that succeeded.

    Args:
        numbers: Numbers of the calls.
        seed: Seed of all calls.
        home: Empty directory.
        verbose: Whether to print everything that the calls print.
        refused: File for the error messages of rejected calls.
    """
    load_everything()
    fuzzer = Fuzzer(home, seed)
    fuzzer.prepare()
    failed, accepted = [], []
    for number in tqdm(numbers, unit="call"):
        call, outcome = fuzzer.call(number)
        if verbose:
            tqdm.write(f"{call}\n{outcome.text}\nexit code {outcome.code}, {outcome.seconds:.1f} s")
        if outcome.failure:
            end = "\n    ".join(outcome.text.strip().splitlines()[-12:])
            failed.append(f"#{number} {call}: {outcome.failure}\n    {end}")
            tqdm.write(failed[-1])
        elif outcome.code == 0:
            accepted.append(f"#{number} {call}")
        else:
            lines = [line for line in outcome.text.splitlines() if ": error: " in line]
            if len(lines) != 1:
                failed.append(f"#{number} {call}: refused in {len(lines)} lines\n{outcome.text[-600:]}")
                tqdm.write(failed[-1])
            if refused is not None:
                print(f"#{number} {call}\n    {(lines or [''])[0]}", file=refused, flush=True)
    return failed, accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of the only call to make and show")
    parser.add_argument("--refused", type=Path, help="file for the error messages of rejected calls")
    options = parser.parse_args()
    numbers = [options.only] if options.only is not None else list(range(options.first, options.first + options.calls))
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ |= {"GENIMG_CACHE": str(home / "cache"), "HOME": str(home)}
        refused = stack.enter_context(options.refused.open("w")) if options.refused else None
        failed, accepted = fuzz(numbers, options.seed, home, verbose=options.only is not None, refused=refused)
    print("\naccepted:", *accepted, sep="\n  ")
    refused = len(numbers) - len(accepted) - len(failed)
    print(f"\n{len(numbers)} calls: {len(accepted)} succeeded, {refused} were refused in one line, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
