"""Certify that each checkpoint of a run follows from the one before it, by replaying the steps of its training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from genimg.api.opened_checkpoints import CheckpointReader
from genimg.api.verification import Cause, Interval, Verification, command_for
from genimg.api.verified_files import KeptCheckpoints, is_start
from genimg.api.verified_interval import ReplayedInterval, ReplaySettings
from genimg.errors import ConfigError
from genimg.utils.distributed import alone, broadcast_object, raise_on_any_rank, rank, world_size
from genimg.utils.environment import versions
from genimg.utils.paths import expanded, relative
from genimg.utils.torchrun import is_of_several
from genimg.utils.words import argument

log = logging.getLogger(__name__)


def verify(
    run: str | Path,
    *,
    first: int | str | Path | None = None,
    last: int | str | Path | None = None,
    all: bool = False,
    dataset: object = None,
    data_root: str | Path | None = None,
    init_from: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    allow: Sequence[str] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
) -> Verification:
    """Replay the steps between two checkpoints of a run, and compare the result with the later one bit by bit.

    Nothing is written to the run. A run of several processes is verified by as many processes of torchrun, each of which calls
    this function after it has joined the process group.

    Args:
        run: Directory of the run.
        first: Step or file of the earlier checkpoint; 0 begins with the initialisation. None takes the last checkpoint
            before ``last`` that the run has kept.
        last: Step or file of the later checkpoint; None takes the last one, and also last.pt if that is a file with another
            content.
        all: Whether to verify every kept checkpoint from ``first`` to ``last``; ``first=None`` is then the first kept one.
        dataset: Images of a run with ``data=given``.
        data_root: Directory of the dataset, if it has moved.
        init_from: Weights that the run started from: the same checkpoint, run directory or file as in the training. Only for
            ``first=0`` of a run with ``init_from``.
        device: Device of the same kind as in the training: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        threads: Number of CPU threads; None uses the recorded numbers.
        allow: Packages that the user trusts in addition to genimg.
        named: Machine-local settings of the checkpoint's config that the user sets, by dotted key.

    Raises:
        UserError: If there are no two checkpoints, a checkpoint is damaged, the run is still being written, or it cannot be
            replayed on this machine.
    """
    if is_of_several() and world_size() == 1:
        problem = "genimg.verify was called in a process of torchrun that has not joined the others"
        raise ConfigError(problem, "start torchrun -m genimg.verify, or a single process without torchrun", key="")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads={threads} must be 1 or more")
    if init_from is not None and not is_start(first):
        raise ConfigError(f"init_from={init_from} has no effect without first=0", "add first=0, or remove it", key="init_from")
    directory = expanded("run", run)
    reader, chosen = CheckpointReader(directory), None
    with raise_on_any_rank():  # only the first rank reads the run directory: other hosts may not have it
        if rank() == 0:
            with alone():
                kept = KeptCheckpoints.of(directory)
                chosen = kept, kept.chosen(first, last, all=all, step_in=lambda path: reader.open(path).step)
    kept, paths = broadcast_object(chosen)
    settings = ReplaySettings(dataset, data_root, init_from, device, threads, tuple(allow), named)
    verifier = _Verifier(kept, reader, settings)
    intervals = verifier.intervals(paths)
    if not all and first is None and not intervals[0].certified and intervals[0].comparison is not None:
        intervals = verifier.with_the_one_before(intervals)
    return Verification(
        run=kept.run,
        intervals=tuple(intervals),
        versions=versions(),
        hardware=verifier.hardware,
        processes=world_size(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        advice=_advice(kept, intervals, all=all),
    )


def _advice(kept: KeptCheckpoints, intervals: Sequence[Interval], *, all: bool) -> list[str]:
    causes = intervals[0].causes
    if all or len(intervals) > 1 or len(kept.paths) < 3 or _are_known(causes):
        return []
    run = argument("run", relative(kept.run))
    return [f"to verify every checkpoint that the run has kept: {command_for(world_size())} {run} all=true"]


def _are_known(causes: Sequence[Cause]) -> bool:
    """Return whether no further replay would help to find the causes of a difference, if there is one."""
    return not any(cause.kind == "unknown" or cause.is_established is False for cause in causes)


@dataclass
class _Verifier:
    """Verifies parts of one run.

    Attributes:
        kept: Checkpoints of the run.
        reader: Reader of checkpoints.
        settings: Settings of the replays.
        hardware: Device and processor of the replays; empty before the first one.
    """

    kept: KeptCheckpoints
    reader: CheckpointReader
    settings: ReplaySettings
    hardware: Mapping[str, Any] = field(default_factory=dict)

    def intervals(self, paths: Sequence[Path | None]) -> list[Interval]:
        """Verify that each checkpoint follows from the one before it. After a corrupt one, the one before is used again, as it
        is for two files of the same step.

        Args:
            paths: Files of checkpoints in order; None as the first stands for the initialisation.
        """
        found: list[Interval] = []
        start, *others = paths
        first = self.reader.open(self.kept.oldest).at_the_start() if start is None else self.reader.open(start)
        for number, path in enumerate(others):
            assert path is not None
            last = self.reader.open(path)
            replayed = ReplayedInterval(first, last, self.settings)
            interval = replayed.verify()
            self.hardware = self.hardware or replayed.hardware()
            if found and found[-1].is_corrupt and found[-1].last.step < last.step:
                note = f"replayed from {first.about}, because the checkpoint of step {found[-1].last.step:,} is corrupt"
                interval = replace(interval, notes=(*interval.notes, note))
            found.append(interval)
            is_repeated = any(  # by last.pt, if it is a file of its own
                self.reader.open(each).step == last.step
                for each in others[number + 1 : number + 2]
                if each is not None and each not in self.kept.paths.values()
            )
            finished = last if interval.is_corrupt or is_repeated else first
            if finished.saved.path != start:  # ``with_the_one_before`` may need it
                self.reader.forget(finished.saved.path)
            if not (interval.is_corrupt or is_repeated):
                first = last
        return found

    def with_the_one_before(self, intervals: list[Interval]) -> list[Interval]:
        """Return the intervals after that of the kept checkpoint before them, which shows whether the first one is intact."""
        interval = intervals[0]
        earlier = self.kept.before(interval.first.step)
        if not earlier or any(cause.kind != "unknown" for cause in interval.causes):
            return intervals
        log.info("%s: verifying also the checkpoint that the replay started from", interval.headline())
        assert interval.first.path is not None  # the initialisation has no earlier checkpoint
        assert interval.last.path is not None
        self.reader.forget(interval.last.path)
        before = self.intervals([earlier[-1], interval.first.path])[0]
        if not before.certified:
            text = f"the replay started from step {interval.first.step:,}, which is not certified itself"
            causes = (Cause("unknown", text),)
            intervals = [each if each.certified else replace(each, causes=causes) for each in intervals]
        return [before, *intervals]
