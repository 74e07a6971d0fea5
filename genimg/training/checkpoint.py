"""Checkpoints: tensors and primitives in one file, written atomically and read without running any code."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg.errors import CheckpointError, ConfigError
from genimg.utils import verified_torch
from genimg.utils.files import atomically, remove_leftovers
from genimg.utils.regular_files import UnsafeFileError
from genimg.utils.type_hints import describe_hint, fits
from genimg.utils.verified_torch import DamagedFileError

log = logging.getLogger(__name__)

FORMAT = "genimg checkpoint"
VERSION = 4

_TIMED = "-timed"
_NUMBERED = re.compile(rf"step-\d{{1,15}}({_TIMED})?\.pt")


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: ``path`` never holds a partial file.

    Raises:
        OSError: If the disk is full or the file cannot be written; ``path`` is then unchanged.
    """
    try:
        with atomically(path, durable=True) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:
        # torch's zip writer hides the operating system's error in a RuntimeError.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed; is the disk full?"
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"cannot save the checkpoint ({reason}); earlier checkpoints are untouched: free some space or choose "
            "another run_dir, then resume",
            str(path),
        ) from error


def load(path: Path, *, below: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and verify its integrity.

    Args:
        path: Path of the file.
        below: Run directory, or directory of checkpoints, in which it was found; None if the user gave the path.

    Raises:
        CheckpointError: If the file does not exist, or is truncated, damaged, not a checkpoint, or of another version.
    """
    with _refused(path):
        state = verified_torch.load_verified(path, below=below)
    return _of_this_version(state, path)


def load_with_digest(path: Path, *, below: Path | None = None) -> tuple[dict[str, Any], str]:
    """Read a checkpoint as ``load`` does, and return the SHA-256 digest of the bytes that were loaded.

    Args:
        path, below: See ``load``.

    Raises:
        CheckpointError: See ``load``.
    """
    with _refused(path):
        state, digest = verified_torch.load_with_digest(path, below=below)
    return _of_this_version(state, path), digest


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Raise errors about a checkpoint's file in the block as a ``CheckpointError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (DamagedFileError, UnsafeFileError) as error:
        raise CheckpointError(error.problem, error.fix or "use another checkpoint of the same run") from error


def _of_this_version(state: Any, path: Path) -> dict[str, Any]:
    """Return the content of a file, after checking that it is a checkpoint of the current version.

    Raises:
        CheckpointError: If it is not.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a genimg checkpoint")
    if (version := state.get("version")) != VERSION:
        newer = isinstance(version, int) and version > VERSION
        what = "" if newer else ", which keeps averaged weights apart from the method"
        raise CheckpointError(
            f"{path} has checkpoint version {version}, but this genimg reads version {VERSION}{what}",
            f"use genimg {state.get('genimg_version', 'of that time')} at the commit recorded in the run's summary.json"
            + ("" if newer else ", or train again"),
        )
    return state


_CONTENTS = {
    "config": dict[str, Any], "raw_config": dict[str, Any], "facts": dict[str, Any], "decisions": dict[str, Any],
    "method": dict[str, Any], "averages": dict[str, dict[str, Any]], "optimizers": dict[str, dict[str, Any]],
    "means": dict[str, dict[str, Any]],
    "training": dict[str, Any], "num_images": int, "hardware": dict[str, Any],
}  # fmt: skip
_OPTIONAL = {
    "class_names": list[str], "data": dict[str, Any], "data_history": list[dict[str, Any]], "initial_weights": dict[str, Any],
}  # fmt: skip
_WITH_TENSORS = ("method", "averages", "optimizers", "means")


def require_whole(state: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint holds all entries that training writes.

    Raises:
        CheckpointError: If an entry is missing or has the wrong type; the message names it.
    """
    for key in _CONTENTS:
        if key not in state:
            raise CheckpointError(f"{path} is not a complete genimg checkpoint: it lacks {key!r}")
    for key, hint in (_CONTENTS | _OPTIONAL).items():
        if key in state and not fits(state[key], hint):
            raise CheckpointError(f"{path} is not a genimg checkpoint: its {key!r} must be {describe_hint(hint)}")
    if type(state["training"].get("images")) is not int or state["num_images"] < 1:
        raise CheckpointError(f"{path} is not a genimg checkpoint: it does not say how many images it was trained on")
    weights = (state["method"], *state["averages"].values())
    if not all(type(value) is Tensor for each in weights for value in each.values()):
        raise CheckpointError(f"{path} is not a genimg checkpoint: its weights are not tensors")
    for key, value in state.items():
        if key not in _WITH_TENSORS and _holds_tensor(value):
            raise CheckpointError(f"{path} is not a genimg checkpoint: its {key!r} holds a tensor")


def _holds_tensor(node: Any) -> bool:
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return isinstance(node, Tensor) or any(map(_holds_tensor, parts))


def load_named(path: Path, which: str = "last") -> tuple[dict[str, Any], Path]:
    """Read the checkpoint that a path refers to (see ``find``), and return it with its own path.

    If last.pt of a run directory is damaged, read the newest intact checkpoint instead, with a warning.

    Raises:
        CheckpointError: If there is no checkpoint, or none can be read.
        ConfigError: If ``which`` is neither ``last`` nor ``best``.
    """
    found = find(path, which)
    if not path.is_dir():
        return load(found), found
    try:
        return load(found, below=path), found
    except CheckpointError as error:
        if which != "last":
            raise
        for earlier in numbered(found.parent)[::-1]:
            with contextlib.suppress(CheckpointError):
                state = load(earlier, below=path)
                log.warning("%s; using %s instead", error, earlier)
                return state, earlier
        raise


def numbered(folder: Path) -> list[Path]:
    """Return the checkpoints in a directory whose file names hold their step, oldest first."""
    found = [path for path in folder.glob("step-*.pt") if _NUMBERED.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), not _is_timed(path)))


def find(path: Path, which: str = "last") -> Path:
    """Return the checkpoint that a path refers to: a file itself, or the ``last`` or ``best`` one of a run directory.

    Raises:
        CheckpointError: If there is no checkpoint.
        ConfigError: If ``which`` is neither ``last`` nor ``best``.
    """
    if which not in ("last", "best"):
        raise ConfigError(f"which={which} is unknown", "choose last or best")
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        if (folder / f"{which}.pt").is_file():
            return folder / f"{which}.pt"
        if which == "best" and (folder / "last.pt").is_file():
            raise CheckpointError(f"which=best: {path} holds no best.pt, because nothing was evaluated: use which=last")
        raise CheckpointError(f"{path} holds no checkpoint: expected checkpoints/{which}.pt in a run directory")
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    return path


class CheckpointFolder:
    """The checkpoints of one run: the last few numbered ones, ``last.pt`` and ``best.pt``.

    ``last.pt`` and ``best.pt`` are hard links to the numbered files, or copies where links are not possible. A checkpoint that
    is due by time is called ``step-N-timed.pt``. The next checkpoint of either kind replaces it, so timed checkpoints take the
    space of one file and never displace those of regular intervals.

    Args:
        path: Directory, created when first needed.
        keep_last: Number of numbered files to keep.
    """

    def __init__(self, path: Path, *, keep_last: int) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} must be 1 or more checkpoints")
        self.path = path
        self.keep_last = keep_last

    def save(self, state: dict[str, Any], step: int, *, best: bool, timed: bool = False) -> Path:
        """Write the checkpoint of ``step``, point last.pt (and best.pt) to it and remove the checkpoints that it replaces.

        Args:
            state: State to write.
            step: Step, which becomes part of the file name.
            best: Whether it is the best checkpoint so far.
            timed: Whether it is due by time instead of by the number of images.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"step-{step:08d}{_TIMED if timed else ''}.pt"
        save(state, path)
        self._link(path, "last.pt")
        if best:
            self._link(path, "best.pt")
        numbered = self._numbered()
        regular = [each for each in numbered if not _is_timed(each)]
        for old in [*regular[: -self.keep_last], *(each for each in numbered if _is_timed(each) and each != path)]:
            old.unlink()
        return path

    def load_last(self) -> tuple[dict[str, Any], Path] | None:
        """Return the newest readable checkpoint, or None in a new run.

        Raises:
            CheckpointError: If there are checkpoints but none can be read.
        """
        remove_leftovers(self.path)  # left by a run that was killed while saving
        last = self.path / "last.pt"
        candidates = [*self._numbered()[::-1], *([last] if last.exists() else [])]
        broken: list[tuple[Path, CheckpointError]] = []
        for path in candidates:
            try:
                state = load(path, below=self.path.parent)
            except CheckpointError as error:
                log.warning("%s; trying the previous one", error)
                broken.append((path, error))
                continue
            for unreadable, _ in broken:  # so no later run takes it for the newest
                unreadable.replace(unreadable.with_name(unreadable.name + ".broken"))
            return state, path
        if broken:
            raise broken[0][1]
        return None

    def _numbered(self) -> list[Path]:
        return numbered(self.path)

    def _link(self, target: Path, name: str) -> None:
        with atomically(self.path / name) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(target, temporary)
            except OSError:
                shutil.copyfile(target, temporary)


def step_of(path: Path) -> int:
    """Return the step of a numbered checkpoint."""
    return int(path.stem.removeprefix("step-").removesuffix(_TIMED))


def _is_timed(path: Path) -> bool:
    return path.stem.endswith(_TIMED)
