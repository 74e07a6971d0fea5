"""Choose the checkpoints of a run that are verified."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from genimg.errors import CheckpointError
from genimg.training import checkpoint
from genimg.utils.files import InUseError, is_locked
from genimg.utils.paths import expanded
from genimg.utils.regular_files import refuse_links

_MORE = "a run keeps more of them with a larger trainer.keep_last or a smaller trainer.checkpoint_interval"


def is_start(first: int | str | Path | None) -> bool:
    """Return whether ``first`` stands for the start of the training, that is, its initialisation."""
    return str(first) == "0"


@dataclass(frozen=True)
class KeptCheckpoints:
    """The checkpoints that a run has kept.

    Attributes:
        run: Directory of the run.
        paths: Files by step, in order.
    """

    run: Path
    paths: Mapping[int, Path]

    @classmethod
    def of(cls, run: Path) -> KeptCheckpoints:
        """Return the checkpoints of a run directory.

        Raises:
            CheckpointError: If it is no run directory, or holds no checkpoint.
            InUseError: If a training writes into it.
        """
        if not run.is_dir():
            what = "is a file" if run.exists() else "does not exist"
            raise CheckpointError(f"run={run} {what}: give a run directory", key="run")
        if is_locked(run / ".hydra" / "lock"):
            raise InUseError(f"run={run} is still being written by genimg-train", "wait until it ends, or stop it", key="run")
        folder = run / "checkpoints"
        paths: dict[int, Path] = {}
        for path in checkpoint.numbered(folder):  # of each step, a regular one comes last
            paths[checkpoint.step_of(path)] = path
        if not paths:
            raise CheckpointError(f"run={run} holds no checkpoints/step-N.pt: give a run directory of genimg-train", key="run")
        return cls(run, paths)

    @property
    def oldest(self) -> Path:
        """The first kept checkpoint."""
        return self.paths[min(self.paths)]

    def before(self, step: int) -> Sequence[Path]:
        """Return the kept checkpoints before a step, in order."""
        return [path for each, path in self.paths.items() if each < step]

    def chosen(
        self,
        first: int | str | Path | None,
        last: int | str | Path | None,
        *,
        all: bool,
        step_in: Callable[[Path], int],
    ) -> Sequence[Path | None]:
        """Return the files to verify in order, the last two perhaps of one step; None stands for the initialisation.

        Args:
            first, last, all: See ``genimg.api.verify.verify``.
            step_in: Function that returns the step of a checkpoint that is not one of ``paths``.

        Raises:
            CheckpointError: If there are no such checkpoints, or fewer than two.
        """
        end, *others = self._end(step_in) if last is None else [self._named("last", last)]
        start: Path | None = None
        if first is None:
            before = self.before(self._step_of(end, step_in))
            if not before:
                raise CheckpointError(
                    f"run={self.run} holds no checkpoint before {end.name}, from which it could be replayed",
                    f"give first=0 to replay it from the initialisation; {_MORE}",
                    key="first",
                )
            start = before[0 if all else -1]
        elif not is_start(first):
            start = self._named("first", first)
        if not all:
            return [start, end, *others]
        low = 0 if start is None else self._step_of(start, step_in)
        high = self._step_of(end, step_in)
        between = [path for step, path in self.paths.items() if low < step < high]
        return [start, *between, end, *others]

    def _end(self, step_in: Callable[[Path], int]) -> list[Path]:
        """Return the last kept checkpoint and last.pt, if that is a file with another content; it alone, if it is newer.

        The trainer writes one file with both names, but a copied run has two.
        """
        newest, used = max(self.paths), self.run / "checkpoints" / "last.pt"
        refuse_links(used, below=self.run)
        if not used.is_file() or filecmp.cmp(used, self.paths[newest], shallow=False):  # true at once for one file
            return [self.paths[newest]]
        step = step_in(used)
        if step < newest:
            problem = f"{used} is of step {step:,}, but {self.paths[newest].name} is newer"
            raise CheckpointError(problem, f"remove last.pt, or give last={newest} to ignore it", key="last")
        return [used] if step > newest else [self.paths[newest], used]

    def _step_of(self, path: Path, step_in: Callable[[Path], int]) -> int:
        """Return the step of a checkpoint, from its name if it is one of ``paths``."""
        same = (step for step, each in self.paths.items() if each == path or each.samefile(path))
        found = next(same, None)
        return step_in(path) if found is None else found

    def _named(self, key: str, given: int | str | Path) -> Path:
        """Return the file of a step, or the one that a path or a name in the folder of checkpoints refers to.

        Raises:
            CheckpointError: If there is none.
        """
        text = str(given)
        if text.isdecimal():
            if int(text) not in self.paths:
                kept = ", ".join(map(str, self.paths))
                raise CheckpointError(
                    f"{key}={text}: the run has kept no checkpoint of this step", f"choose one of {kept}", key=key
                )
            return self.paths[int(text)]
        candidates = [expanded(key, given), self.run / "checkpoints" / text]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise CheckpointError(f"{key}={given} does not exist", "give a step or a checkpoint file", key=key)
        return found
