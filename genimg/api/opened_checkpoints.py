"""Read the checkpoints of a verification, each file once, with the digest of the bytes that were read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genimg.api.verification import VerifiedCheckpoint
from genimg.config import resume
from genimg.config.structure import require_saved_structure
from genimg.training import checkpoint
from genimg.training.state import TrainingState
from genimg.utils.distributed import broadcast_object, raise_on_any_rank, rank


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that has been read and found intact, or the start of its training.

    Attributes:
        saved: Its content.
        about: Its description for the certificate.
    """

    saved: resume.Saved
    about: VerifiedCheckpoint

    @property
    def state(self) -> Mapping[str, Any]:
        """Content of the file."""
        return self.saved.state

    @property
    def step(self) -> int:
        """Step at which it was written; 0 for the start of the training."""
        return self.about.step

    @property
    def is_start(self) -> bool:
        """Whether it stands for the start of the training."""
        return self.about.path is None

    @cached_property
    def training(self) -> TrainingState:
        """Progress of the training."""
        return TrainingState.restored(self.state["training"])

    def at_the_start(self) -> OpenedCheckpoint:
        """Return the start of the training that this checkpoint belongs to."""
        return OpenedCheckpoint(self.saved, replace(self.about, path=None, step=0, images=0, sha256=None))


class CheckpointReader:
    """Reads checkpoints of a run, each file once. Only the first rank reads; the others receive the content.

    Args:
        run: Directory of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._opened: dict[Path, OpenedCheckpoint] = {}

    def open(self, path: Path) -> OpenedCheckpoint:
        """Return a checkpoint, from memory if it has been read before. All ranks must call it.

        Raises:
            CheckpointError: If it is damaged, or not a complete checkpoint.
        """
        with raise_on_any_rank():
            if rank() == 0 and path not in self._opened:
                self._opened[path] = self._read(path)
        found: OpenedCheckpoint = broadcast_object(self._opened.get(path))
        return found

    def forget(self, path: Path) -> None:
        """Release the memory of a checkpoint that will not be opened again."""
        self._opened.pop(path, None)

    def _read(self, path: Path) -> OpenedCheckpoint:
        below = self._run if path.is_relative_to(self._run) else None
        state, digest = checkpoint.load_with_digest(path, below=below)
        checkpoint.require_whole(state, path)
        require_saved_structure(state["config"], path)
        images = state["training"]["images"]
        config = json.dumps(state["config"], sort_keys=True, separators=(",", ":"))
        about = VerifiedCheckpoint(
            path=path,
            step=images // state["config"]["trainer"]["batch_size"],
            images=images,
            sha256=digest,
            config_sha256=hashlib.sha256(config.encode()).hexdigest(),
        )
        return OpenedCheckpoint(resume.Saved(state, path), about)
