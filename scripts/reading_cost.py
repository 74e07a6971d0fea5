"""Count the code that a reader must open to follow ``genimg-train model=dcgan data=cifar10`` without evaluation.

    python scripts/reading_cost.py                              # this checkout
    PYTHONPATH=OTHER_CHECKOUT python scripts/reading_cost.py    # another checkout, to compare

Two training steps run in this process, on the CPU and on a few random images in CIFAR-10's format. A profiler records every
function of genimg that the main thread calls. Columns of the table:

- step: Functions called in the second step, from the last optimizer update of the first step to that of the second, and the
  functions on the stack between the entry point ``genimg.cli.train`` and the loss.
- run: All functions called from the entry point to the last optimizer update of the second step. In addition to the above,
  these compose the config, check it, construct all objects and make the preview before the first step.

Rows of the table:

- files: Files with at least one called function. Bodies of modules and classes, and functions called while a module is
  imported, do not count.
- lines of these files: All of their lines, as ``wc -l`` counts them.
- functions: Called functions and methods. Functions, lambdas and comprehensions inside another function belong to that one.
- lines of these functions: From the first decorator to the last line, with docstrings, comments and blank lines.
- frames to the loss: Depth of the stack at the first step's first call of the adversarial loss, from ``genimg.cli.train`` to
  the loss function, both included. Once for the frames of genimg, once for all (with Hydra's, PyTorch's and Python's).
- leaf keys and interpolations: Leaves of the config that ``genimg-train model=dcgan data=cifar10 --cfg job`` prints. Each item
  of a list is a leaf; an empty group or list is not. Interpolations are the leaves that contain ``${``.
- lines of the package: Lines of all Python files of genimg, as ``wc -l`` counts them; then without blank lines.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torchvision.datasets import CIFAR10

import genimg

PACKAGE = Path(genimg.__file__).resolve().parent
COMMAND = ("model=dcgan", "data=cifar10")
QUICK = (
    "evaluation=none", "device=cpu", "trainer.duration=2 steps", "trainer.batch_size=4", "trainer.preview_images=4",
    "trainer.preview_seconds=null", "trainer.checkpoint_minutes=null",
    "model.generator.width=4",
)  # fmt: skip
UPDATES_PER_STEP = 2  # the discriminator's and the generator's
NUM_STEPS = 2
UPDATE = inspect.unwrap(torch.optim.Adam.step).__code__


def write_cifar10(root: Path) -> None:
    """Write random images as the files of CIFAR-10 below ``root``, and make torchvision accept them."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for name in names:
        batch = {"data": random.integers(0, 256, (16, 3 * 32 * 32), dtype=np.uint8), "labels": [i % 10 for i in range(16)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({CIFAR10.meta["key"]: [f"class {i}" for i in range(10)]}))
    CIFAR10.train_list = [[name, None] for name, _ in CIFAR10.train_list]  # None: no checksum
    CIFAR10.test_list = [[name, None] for name, _ in CIFAR10.test_list]
    CIFAR10.meta = CIFAR10.meta | {"md5": None}


class Tracer:
    """A profiling function that records the called functions of genimg until the last update of the last step.

    Attributes:
        called: Code objects of the called functions: until the last update of the first step, then for each further step.
        stack: Code objects on the stack at the first step's first call of the adversarial loss, from the entry point inwards.
    """

    def __init__(self, entry_point: Callable[[], None]) -> None:
        self.called: list[set[CodeType]] = [set() for _ in range(NUM_STEPS)]
        self.stack: list[CodeType] = []
        self._entry_point = entry_point.__code__
        self._num_updates = 0
        self._num_imports = 0  # number of genimg modules that are being imported

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a call; see ``sys.setprofile``."""
        code = frame.f_code
        if event not in ("call", "return"):
            return
        if is_of_genimg(code):
            if code.co_name == "<module>":
                self._num_imports += 1 if event == "call" else -1
            elif event == "call" and not self._num_imports:
                self._note(code, frame)
        elif event == "return" and code is UPDATE:
            self._num_updates += 1
            if self._num_updates == NUM_STEPS * UPDATES_PER_STEP:  # later calls are not recorded
                sys.setprofile(None)

    @property
    def is_complete(self) -> bool:
        """Whether all updates and the loss were seen."""
        return self._num_updates == NUM_STEPS * UPDATES_PER_STEP and bool(self.stack)

    def _note(self, code: CodeType, frame: FrameType) -> None:
        self.called[self._num_updates // UPDATES_PER_STEP].add(code)
        is_first = self._num_updates == 0  # keep the last of these calls, because losses are tested when they are built
        if is_first and Path(code.co_filename).stem == "adversarial" and code.co_name.endswith("_loss"):
            outwards = list(codes_from(frame))
            self.stack = outwards[: outwards.index(self._entry_point) + 1][::-1]


def codes_from(frame: FrameType | None) -> Iterator[CodeType]:
    """Yield the code objects of a frame and of its callers, from the inside out."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


@cache
def is_of_genimg(code: CodeType) -> bool:
    """Return whether the code is in a file of genimg."""
    return PACKAGE in Path(code.co_filename).parents


@cache
def functions_of(path: Path) -> list[tuple[int, int]]:
    """Return the first and last line of each function in a file, without functions inside other functions."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((min([node.lineno, *(each.lineno for each in node.decorator_list)]), node.end_lineno or node.lineno))
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def place_of(code: CodeType) -> tuple[Path, int, int] | None:
    """Return file, first and last line of the outermost function around the code; None for the bodies of classes."""
    path, line = Path(code.co_filename), code.co_firstlineno
    ranges = [(first, last) for first, last in functions_of(path) if first <= line <= last]
    if ranges:
        return (path, *ranges[0])
    return (path, line, line) if code.co_name == "<lambda>" else None


def cost_of(codes: set[CodeType]) -> list[int]:
    """Return the numbers of files, their lines, functions, and the functions' lines."""
    places = {place for code in codes if (place := place_of(code))}
    files = {path for path, _, _ in places}
    lines = {(path, line) for path, first, last in places for line in range(first, last + 1)}
    return [len(files), sum(num_lines(path) for path in files), len(places), len(lines)]


def num_lines(path: Path, *, blank: bool = True) -> int:
    """Return the number of lines in a file."""
    return sum(bool(blank or line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def trace() -> Tracer:
    """Train for two steps."""
    from genimg.cli import train

    tracer, output, arguments = Tracer(train), io.StringIO(), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        write_cifar10(Path(folder, "data"))
        sys.argv = ["genimg-train", *COMMAND, *QUICK, f"data.root={folder}/data", f"run_dir={folder}/run"]
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                sys.setprofile(tracer)
                train()
        except SystemExit:
            sys.setprofile(None)
            sys.exit(f"the training failed:\n{output.getvalue()}")
        finally:
            sys.setprofile(None)
            sys.argv = arguments
    assert tracer.is_complete, output.getvalue()
    return tracer


def leaves_of(node: Any) -> list[Any]:
    """Return the values of a config that are neither mappings nor lists."""
    if isinstance(node, dict | list):
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves_of(child)]
    return [node]


def config_leaves() -> list[Any]:
    """Return the leaves of the command's config, before anything is resolved."""
    start = [sys.executable, "-c", "from genimg.cli import train; train()", *COMMAND, "--cfg", "job"]
    printed = subprocess.run(start, capture_output=True, text=True, check=True).stdout
    return leaves_of(OmegaConf.to_container(OmegaConf.create(printed), resolve=False))


def main() -> None:
    """Print the table."""
    leaves = config_leaves()
    tracer = trace()
    leading = {code for code in tracer.stack if is_of_genimg(code)}
    step, run = cost_of(tracer.called[-1] | leading), cost_of(set().union(*tracer.called))
    files = sorted(PACKAGE.rglob("*.py"))
    print(f"{'':32}{'step':>8}{'run':>8}")
    rows = ("files", "lines of these files", "functions", "lines of these functions")
    for name, *numbers in zip(rows, step, run, strict=True):
        print(f"{name:32}{numbers[0]:8,}{numbers[1]:8,}")
    for name, number in {
        "frames to the loss, of genimg": sum(is_of_genimg(code) for code in tracer.stack),
        "frames to the loss, all": len(tracer.stack),
        "leaf keys": len(leaves),
        "interpolations": sum(isinstance(leaf, str) and "${" in leaf for leaf in leaves),
        "lines of the package": sum(num_lines(path) for path in files),
        "lines that are not blank": sum(num_lines(path, blank=False) for path in files),
    }.items():
        print(f"{name:32}{number:8,}")


if __name__ == "__main__":
    main()
