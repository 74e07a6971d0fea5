"""ReplayResult the steps of a training between its checkpoints, and certify that each follows from the one before it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from genimg.api.causes import facts_changed, find_causes, threads_changed
from genimg.api.data import root_key
from genimg.api.inputs import of_option
from genimg.api.replay import ReplayResult, replay
from genimg.api.time_budget import silent
from genimg.api.verification import Cause, Interval, Verification, VerifiedCheckpoint
from genimg.api.verified_files import KeptCheckpoints, checked, step_in
from genimg.config import resume
from genimg.config.compose import Composition, compose
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.training.device import choose_device, describe_hardware
from genimg.training.recorded_threads import RecordedThreads
from genimg.training.state import TrainingState
from genimg.training.state_differences import compare_states
from genimg.training.update import NonFiniteError
from genimg.utils.durations import to_images
from genimg.utils.environment import versions
from genimg.utils.paths import expanded, relative
from genimg.utils.regular_files import open_regular
from genimg.utils.torchrun import is_of_several
from genimg.utils.words import argument, quoted

log = logging.getLogger(__name__)


def verify(
    run: str | Path,
    *,
    first: int | str | Path | None = None,
    last: int | str | Path | None = None,
    all: bool = False,
    dataset: object = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    allow: Sequence[str] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
) -> Verification:
    """ReplayResult the steps between two checkpoints of a run, and compare the result with the later one bit by bit.

    Nothing is written to the run.

    Args:
        run: Directory of the run.
        first: Step or file of the earlier checkpoint; 0 begins with the initialisation. None takes the last checkpoint
            before ``last`` that the run has kept.
        last: Step or file of the later checkpoint; None takes the last one.
        all: Whether to verify every kept checkpoint from ``first`` to ``last``; ``first=None`` is then the first kept one.
        dataset: Images of a run with ``data=given``.
        data_root: Directory of the dataset, if it has moved.
        device: Device of the same kind as in the training: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        threads: Number of CPU threads; None uses the recorded numbers.
        allow: Packages that the user trusts in addition to genimg.
        named: Machine-local settings of the checkpoint's config that the user sets, by dotted key.

    Raises:
        UserError: If there are no two checkpoints, a checkpoint is damaged, the run is still being written, or it cannot be
            replayed on this machine.
    """
    if is_of_several():
        raise ConfigError("genimg-verify replays runs of a single process: start it without torchrun", key="")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads={threads} must be 1 or more")
    kept = KeptCheckpoints.of(expanded("run", run))
    pair = kept.chosen(first, last, all=all)
    verifier = _Verifier(kept, dataset, data_root, device, threads, tuple(allow), named)
    intervals = verifier.intervals(pair)
    bad = next((each for each in intervals if not each.certified), None)
    if bad is not None and not all and first is None and bad.comparison is not None:
        intervals = verifier.with_the_one_before(intervals)
    return Verification(
        run=kept.run,
        intervals=tuple(intervals),
        versions=versions(),
        hardware=verifier.hardware,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        advice=_advice(kept, intervals, all=all),
    )


def _advice(kept: KeptCheckpoints, intervals: Sequence[Interval], *, all: bool) -> list[str]:
    causes = intervals[0].causes
    if all or len(intervals) > 1 or len(kept.paths) < 3 or _are_known(causes):
        return []
    return [f"to verify every checkpoint that the run has kept: genimg-verify {argument('run', relative(kept.run))} all=true"]


def _are_known(causes: Sequence[Cause]) -> bool:
    """Return whether no further replay would help to find the causes of a difference, if there is one."""
    return not any(cause.kind == "unknown" or cause.is_established is False for cause in causes)


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that has been read and found intact."""

    saved: resume.Saved
    about: VerifiedCheckpoint

    @property
    def state(self) -> Mapping[str, Any]:
        return self.saved.state

    @cached_property
    def training(self) -> TrainingState:
        return TrainingState.restored(self.state["training"])

    def at_the_start(self) -> _Opened:
        """Return the start of the training that this checkpoint belongs to."""
        return _Opened(self.saved, replace(self.about, path=None, step=0, images=0, sha256=None))


@dataclass
class _Verifier:
    """Verifies parts of one run; see ``verify`` for the attributes."""

    kept: KeptCheckpoints
    dataset: object
    data_root: str | Path | None
    device: str
    threads: int | None
    allow: tuple[str, ...]
    named: Mapping[str, Any]
    hardware: Mapping[str, Any] = field(default_factory=dict)

    def intervals(self, paths: Sequence[Path | None]) -> list[Interval]:
        """Verify that each checkpoint follows from the one before it. After a corrupt one, the one before is used again.

        Args:
            paths: Files of checkpoints in order; None as the first stands for the initialisation.
        """
        found: list[Interval] = []
        first = self._open(self.kept.oldest).at_the_start() if paths[0] is None else self._open(paths[0])
        for path in paths[1:]:
            assert path is not None
            last = self._open(path)
            interval = self._interval(first, last)
            if found and found[-1].is_corrupt:
                note = f"replayed from {first.about}, because the checkpoint of step {found[-1].last.step:,} is corrupt"
                interval = replace(interval, notes=(*interval.notes, note))
            found.append(interval)
            if not interval.is_corrupt:
                first = last
        return found

    def with_the_one_before(self, intervals: list[Interval]) -> list[Interval]:
        """Return the intervals after that of the kept checkpoint before them, which shows whether the first one is intact."""
        interval = intervals[0]
        earlier = self.kept.before(interval.first.step)
        if earlier is None or any(cause.kind != "unknown" for cause in interval.causes):
            return intervals
        log.info("%s: verifying also the checkpoint that the replay started from", interval.headline())
        assert interval.first.path is not None  # the initialisation has no earlier checkpoint
        before = self.intervals([earlier, interval.first.path])[0]
        if not before.certified:
            text = f"the replay started from step {interval.first.step:,}, which is not certified itself"
            intervals = [replace(interval, causes=(Cause("unknown", text),)), *intervals[1:]]
        return [before, *intervals]

    def _open(self, path: Path) -> _Opened:
        """Read a checkpoint.

        Raises:
            CheckpointError: If it is damaged, or was written by several processes.
        """
        below = self.kept.run if path.is_relative_to(self.kept.run) else None
        state = checked(path, below=below)
        if (count := state.get("processes", 1)) != 1:
            raise CheckpointError(
                f"{path} was written by {count} processes, and genimg-verify replays runs of a single process",
                "train it again from the earlier checkpoint in another run_dir with as many processes, and compare the weights",
                key="run",
            )
        with open_regular(path, below=below) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        images = state["training"]["images"]
        config = json.dumps(state["config"], sort_keys=True, separators=(",", ":"))
        about = VerifiedCheckpoint(path, step_in(state), images, digest, hashlib.sha256(config.encode()).hexdigest())
        return _Opened(resume.Saved(state, path), about)

    def _interval(self, first: _Opened, last: _Opened) -> Interval:
        """ReplayResult the training from one checkpoint to another, and compare the result."""
        self._check(first, last)
        recorded = self._recorded(last)
        used = recorded if self.threads is None else RecordedThreads([(0, self.threads)], [], None)
        notes = [*threads_changed(last.training, first.about.step, last.about.step), *self._about_threads(first, last)]
        notes = notes if self.threads is None else []
        try:
            result = self._replay(first.saved, first, last, used)
        except NonFiniteError as error:
            text = f"the replay diverged: the loss or gradient of {error.group} was not finite at step {error.step:,}"
            return Interval(first.about, last.about, None, (Cause("unknown", text),), tuple(notes), (), 0.0)
        comparison = compare_states(result.state, last.state, result.parameters)
        if (pending := last.state["means"]["counts"]) and pending != result.state["means"]["counts"]:
            notes.append("the log values since the last log are not compared, because the run logged at other steps")
        causes: tuple[Cause, ...] = ()
        if comparison.differing:
            causes = find_causes(
                comparison, first.state, last.state, result.facts,
                name=last.about.path.name if last.about.path else "",
                of_threads=lambda: self._of_threads(first, last, recorded, result),
                is_explained=lambda: self._is_equal(self._with_settings_of(first, last), first, last, used),
            )  # fmt: skip
        else:
            notes += [f"different, but without effect: {each.text}"
                      for each in facts_changed(first.state, last.state, result.facts)]  # fmt: skip
        return Interval(first.about, last.about, comparison, causes, tuple(notes), result.numbers, result.seconds)

    def _check(self, first: _Opened, last: _Opened) -> None:
        """Check that two checkpoints can be the ends of a replay.

        Raises:
            CheckpointError: If they cannot.
        """
        if first.about.images >= last.about.images:
            raise CheckpointError(
                f"first={first.about.path} has seen {first.about.images:,} images, not fewer than last={last.about.path} with "
                f"{last.about.images:,}",
                "give an earlier checkpoint",
                key="first",
            )
        sizes = [each.state["config"]["trainer"]["batch_size"] for each in (first, last)]
        if sizes[0] != sizes[1] or first.about.images % sizes[0] or last.about.images % sizes[0]:
            raise CheckpointError(
                f"{last.about.path} does not belong to the run of {first.about.path}: their trainer.batch_size is {sizes[1]} "
                f"and {sizes[0]}",
                "give checkpoints of one run",
                key="last",
            )
        begun = first.state.get("initial_weights") or {}
        if first.about.path is None and begun:
            raise CheckpointError(
                f"first=0: the run started from the weights of another one ({begun.get('path')}), which its checkpoints do not "
                "hold",
                f"give a kept checkpoint, such as first={min(self.kept.paths)}",
                key="first",
            )
        self.hardware = describe_hardware(choose_device(self._device(first.state)))

    def _device(self, state: Mapping[str, Any]) -> str:
        """Return the device to replay on.

        Raises:
            ConfigError: If it is not of the same kind as that of the training, or not available.
        """
        recorded, name = str(state["hardware"].get("device")), state["hardware"].get("name")
        device = recorded if self.device == "auto" else self.device
        if device.partition(":")[0] != recorded:
            raise ConfigError(
                f"device={device}: the run was trained on {recorded} ({name}), and another kind of device rounds differently",
                f"use device={recorded} on a machine that has it",
                key="device",
            )
        try:
            choose_device(device)
        except ConfigError as error:
            problem = f"the run was trained on {recorded} ({name}), which is needed for its replay: {error.problem}"
            raise CheckpointError(problem, "verify it on a machine of the same kind", key="device") from error
        return device

    def _recorded(self, last: _Opened) -> RecordedThreads:
        """Return the numbers of threads that a checkpoint records; without a record of steps, that of its launch."""
        otherwise = last.state["hardware"].get("threads")
        return RecordedThreads(
            last.training.threads,
            last.training.compared_threads or [],
            otherwise if type(otherwise) is int and not last.training.threads else None,
        )

    def _about_threads(self, first: _Opened, last: _Opened) -> list[str]:
        """Return what else is to be known about the threads of the steps between two checkpoints."""
        compared = last.training.compared_threads
        if compared is None:
            is_auto = first.state["config"].get("performance", {}).get("threads", "auto") == "auto"
            text = "the checkpoint is of an older version, which did not record steps that compared numbers of CPU threads"
            return [text] if is_auto and last.state["hardware"].get("device") == "cpu" else []
        count = sum(
            max(0, min(begin + number, last.about.step) - max(begin, first.about.step)) for begin, number, _ in compared
        )
        return [f"{count:,} steps compared other numbers of CPU threads, as recorded"] if count else []

    def _of_threads(self, first: _Opened, last: _Opened, recorded: RecordedThreads, result: ReplayResult) -> Cause | None:
        """Return the number of threads as the cause of a difference, if it is or may be one."""
        if last.state["hardware"].get("device") != "cpu":
            return None
        numbers = sorted({recorded.at(step) or 0 for step in range(first.about.step, last.about.step)} - {0})
        if self.threads is not None and numbers != [self.threads]:
            is_explained = self._is_equal(first.saved, first, last, recorded)
            was = f"{' and '.join(map(str, numbers)) or 'an unknown number'}"
            changes = threads_changed(last.training, first.about.step, last.about.step)
            return Cause(
                "threads",
                f"the number of CPU threads: {was} (recorded), {self.threads} (replay)"
                + "".join(f"; {each}" for each in changes),
                is_explained,
            )
        notes = self._about_threads(first, last) if last.training.compared_threads is None else []
        return Cause("threads", notes[0]) if notes else None

    def _with_settings_of(self, first: _Opened, last: _Opened) -> resume.Saved:
        """Return the earlier checkpoint with the settings of the later one."""
        changed = {key: last.state[key] for key in ("config", "raw_config", "decisions")}
        return replace(first.saved, state={**first.state, **changed})

    def _is_equal(self, saved: resume.Saved, first: _Opened, last: _Opened, threads: RecordedThreads) -> bool | None:
        """Return whether another replay leads to the later checkpoint; None if it is impossible."""
        try:
            with silent():
                result = self._replay(saved, first, last, threads)
        except (UserError, NonFiniteError):
            return None
        return not compare_states(result.state, last.state, result.parameters).differing

    def _replay(self, saved: resume.Saved, first: _Opened, last: _Opened, threads: RecordedThreads) -> ReplayResult:
        ends = [end for each in (first, last) if (end := _duration(each.state)) is not None]
        try:
            return replay(
                saved,
                self._composition(first),
                last.about.images,
                threads=threads,
                ends=ends,
                from_the_start=first.about.path is None,
                dataset=self.dataset,
            )
        except UserError as error:
            raise _as_typed(error) from error

    def _composition(self, first: _Opened) -> Composition:
        """Compose the settings that belong to this machine."""
        words = [f"resume={quoted(str(first.saved.path))}", f"device={self._device(first.state)}", "performance.threads=auto"]
        words.append(f"allow=[{','.join(map(quoted, self.allow))}]")
        if self.data_root is not None:
            key = root_key(str(self.data_root), first.state["config"]["data"])
            words.append(f"++data.{key}={quoted(str(expanded('data_root', self.data_root)))}")
        words += [f"++{key}={'null' if value is None else quoted(str(value))}" for key, value in self.named.items()]
        return compose(words)


def _as_typed(error: UserError) -> UserError:
    """Return an error about the data's location or about data=given with what the user of genimg-verify can set."""
    if error.key == "data" and "genimg.train(" in str(error):
        return type(error)("the run was trained on images from Python", "call genimg.verify(run, dataset=...)", key="dataset")
    for parameter in ("data.root", "data.path"):
        error = of_option("data_root", parameter, error)
    return error


def _duration(state: Mapping[str, Any]) -> int | None:
    """Return the number of images at which the training of a checkpoint ends; None if it cannot be computed."""
    trainer = state["config"]["trainer"]
    try:
        return to_images(
            trainer.get("duration"),
            epoch_size=state["num_images"],
            batch_size=trainer["batch_size"],
            key="trainer.duration",
            images_per_second=state["decisions"].get("images_per_second"),
        )
    except ConfigError:
        return None
