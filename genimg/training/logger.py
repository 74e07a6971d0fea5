"""Logging of numbers and pictures: metrics.jsonl, TensorBoard and samples/*.png."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from genimg.training.recorder import Outcome, Recorder
from genimg.utils.files import atomically
from genimg.utils.images import grid, write_png
from genimg.utils.json_text import parse_json
from genimg.utils.mappings import flatten
from genimg.utils.regular_files import open_regular, read_regular, require_at_most

log = logging.getLogger(__name__)

_RECORDS = "metrics.jsonl"
_MOST_RECORDED = 2**29  # bytes
_MOST_SHOWN = 5  # line numbers in a message


class Logger:
    """Writes a run's records.

    A resumed run first removes the records of steps that it will repeat.

    Args:
        run_dir: Directory of metrics.jsonl, tensorboard/ and samples/.
        step: First step of this launch.
        evaluated: Whether the evaluation of that step is complete. Otherwise it is repeated, and its record removed.
        recorder: Open recorder that receives the same records.
    """

    def __init__(self, run_dir: Path, *, step: int, evaluated: bool = True, recorder: Recorder | None = None) -> None:
        self.run_dir = run_dir
        self._recorder = recorder
        self._records = run_dir / _RECORDS
        self._drop_records_after(step, evaluated)
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, images: int, values: Mapping[str, float], provenance: Mapping[str, Any] | None = None) -> None:
        """Record numbers, and the provenance of those that an evaluation measured."""
        record = {"step": step, "images": images, **values, **({"provenance": provenance} if provenance else {})}
        if provenance:
            self._tensorboard.add_text("evaluation/provenance", json.dumps(provenance), step)
        with open(self._records, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._recorder:
            self._recorder.scalars(step, images, values)

    def pictures(self, step: int, images: int, named: Mapping[str, Tensor]) -> None:
        """Write each set of images as a grid; see ``Method.preview``."""
        folder = self.run_dir / "samples"
        for name, values in named.items():
            picture = grid(values)
            write_png(picture, folder / f"{name}-{images:09d}.png")
            self._tensorboard.add_image(name, picture, step)
            if self._recorder:
                self._recorder.picture(step, images, name, picture)

    def close(self, outcome: Outcome) -> None:
        """Close all records with the outcome of the training; see ``Recorder``."""
        self._tensorboard.close()
        if self._recorder:
            self._recorder.close(outcome)

    def _drop_records_after(self, step: int, evaluated: bool) -> None:
        try:
            content = read_regular(self._records, below=self.run_dir, most=_MOST_RECORDED)
        except FileNotFoundError:
            return
        kept, unreadable = [], []
        lines = content.splitlines()
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                unreadable.append(number)
            elif record["step"] < step or (record["step"] == step and (evaluated or "provenance" not in record)):
                kept.append(line + b"\n")
        if unreadable == [len(lines)] and not content.endswith(b"\n"):
            unreadable = []  # the unfinished line of a killed run
        if unreadable:
            shown = ", ".join(map(str, unreadable[:_MOST_SHOWN])) + (", ..." if len(unreadable) > _MOST_SHOWN else "")
            log.warning(
                "%s: line%s %s cannot be read as a record and %s removed; the others are kept",
                self._records, "s" * (len(unreadable) > 1), shown, "are" if len(unreadable) > 1 else "is",
            )  # fmt: skip
        with atomically(self._records) as temporary:
            temporary.write_bytes(b"".join(kept))


def require_readable_records(run_dir: Path) -> None:
    """Check, before anything is written, that ``Logger`` can read the records of a resumed run.

    Raises:
        UnsafeFileError: If the file is not a regular file or is too large.
    """
    path = run_dir / _RECORDS
    with contextlib.suppress(FileNotFoundError), open_regular(path, below=run_dir) as file:
        require_at_most(path, file, _MOST_RECORDED)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl; None if it is not a record of a step."""
    try:
        record = parse_json(line.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def write_hyperparameters(run_dir: Path, config: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Write the settings and result scalars that TensorBoard's HPARAMS page uses to compare this run with others.

    Args:
        run_dir: Directory of a finished run.
        config: Settings; lists are written as text, and None is omitted.
        metrics: Tags of the result scalars, whose last values are shown.
    """
    values = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flatten(dict(config)).items()
        if value is not None
    }
    with SummaryWriter(str(run_dir / "tensorboard")) as writer:
        for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
            writer.file_writer.add_summary(summary)


class SilentLogger(Logger):
    """A logger that writes nothing, for all ranks but the first."""

    def __init__(self) -> None:
        pass

    def scalars(self, step: int, images: int, values: Mapping[str, float], provenance: Mapping[str, Any] | None = None) -> None:
        pass

    def pictures(self, step: int, images: int, named: Mapping[str, Tensor]) -> None:
        pass

    def close(self, outcome: Outcome) -> None:
        pass
