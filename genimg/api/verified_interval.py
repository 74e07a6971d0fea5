"""Replay the steps of a training between two checkpoints, and compare the result with the later one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genimg.api import thread_records
from genimg.api.causes import contradictions, facts_changed, find_causes, settings_changed
from genimg.api.data import root_key
from genimg.api.initial_weights import InitialWeights, read_again
from genimg.api.inputs import of_option
from genimg.api.method import Initialise
from genimg.api.opened_checkpoints import OpenedCheckpoint
from genimg.api.replay import ReplayResult, replay
from genimg.api.thread_records import recorded_threads
from genimg.api.verification import Cause, Interval, command_for
from genimg.config import resume
from genimg.config.compose import Composition, compose
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.training.device import choose_device, describe_hardware
from genimg.training.recorded_threads import RecordedThreads
from genimg.training.state_differences import StateComparison, compare_states
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import broadcast_object, raise_on_any_rank, rank, world_size
from genimg.utils.durations import to_images
from genimg.utils.paths import expanded
from genimg.utils.silence import silent
from genimg.utils.words import quoted


@dataclass(frozen=True)
class ReplaySettings:
    """What the user sets for the replays of a verification; see ``genimg.api.verify.verify`` for the attributes."""

    dataset: object
    data_root: str | Path | None
    init_from: str | Path | None
    device: str
    threads: int | None
    allow: tuple[str, ...]
    named: Mapping[str, Any]

    def device_for(self, state: Mapping[str, Any]) -> str:
        """Return the device to replay on.

        Args:
            state: Content of a checkpoint.

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

    def composition(self, first: OpenedCheckpoint) -> Composition:
        """Compose the settings that belong to this machine, on top of the config of a checkpoint."""
        device = self.device_for(first.state)
        words = [f"resume={quoted(str(first.saved.path))}", f"device={device}", "performance.threads=auto"]
        words.append(f"allow=[{','.join(map(quoted, self.allow))}]")
        if self.data_root is not None:
            key = root_key(str(self.data_root), first.state["config"]["data"])
            words.append(f"++data.{key}={quoted(str(expanded('data_root', self.data_root)))}")
        words += [f"++{key}={'null' if value is None else quoted(str(value))}" for key, value in self.named.items()]
        return compose(words)


@dataclass(frozen=True)
class ReplayedInterval:
    """Two checkpoints of a run, and the replays of the steps between them. All ranks must call each method.

    Attributes:
        first, last: The checkpoints.
        settings: Settings of the replays.
    """

    first: OpenedCheckpoint
    last: OpenedCheckpoint
    settings: ReplaySettings

    def verify(self) -> Interval:
        """Return how the replay ended, and the causes of differences from the later checkpoint.

        Raises:
            UserError: If the replay is impossible.
        """
        with raise_on_any_rank():
            self._check()
        first, last, recorded = self.first, self.last, recorded_threads(self.last)
        is_as_recorded = self.settings.threads is None
        used = recorded if self.settings.threads is None else RecordedThreads([(0, self.settings.threads)], [], None)
        notes = thread_records.notes(first, last) if is_as_recorded else []
        if self._begun and first.is_start:
            begun = self._begun
            notes.append(
                f"the initial weights have the sha256 {begun.get('sha256')}; the run read them from {begun.get('path')}"
            )
        try:
            result = self._replay(first.saved, used)
        except NonFiniteError as error:
            text = f"the replay diverged: the loss or gradient of {error.group} was not finite at step {error.step:,}"
            return Interval(first.about, last.about, None, (Cause("unknown", text),), tuple(notes), (), 0.0)
        comparison = self._compared(result)
        if (pending := last.state["means"]["counts"]) and pending != result.state["means"]["counts"]:
            notes.append("the log values since the last log are not compared, because the run logged at other steps")
        causes: tuple[Cause, ...] = ()
        if comparison.differing:
            causes = find_causes(
                comparison, first.state, last.state, result.facts,
                name=last.saved.path.name,
                of_threads=lambda: self._of_threads(recorded),
                is_explained=lambda: self._is_equal(self._with_later_settings(), used),
            )  # fmt: skip
        else:
            causes = contradictions(
                first.state, last.state, last.saved.path.name,
                is_explained=lambda: self._is_equal(self._with_later_settings(), used),
            )  # fmt: skip
            changed = [] if causes else [f"a setting: {line}" for line in settings_changed(first.state, last.state)]
            changed += [each.text for each in facts_changed(first.state, last.state, result.facts)]
            notes += [f"different, but without effect: {each}" for each in changed]
        interval = Interval(first.about, last.about, comparison, causes, tuple(notes), result.numbers, result.seconds)
        found: Interval = broadcast_object(interval)  # facts may differ between hosts, and all ranks must continue alike
        return found

    def hardware(self) -> Mapping[str, Any]:
        """Return the device and processor of the replay."""
        return describe_hardware(choose_device(self.settings.device_for(self.first.state)))

    @property
    def _begun(self) -> Mapping[str, Any]:
        """The record of the weights from which the run started; empty if these were random."""
        return self.first.state.get("initial_weights") or {}

    def _check(self) -> None:
        """Check that the checkpoints can be the ends of a replay.

        Raises:
            CheckpointError: If they cannot.
        """
        first, last = self.first, self.last
        if first.about.images >= last.about.images:
            raise CheckpointError(
                f"first={first.saved.path} has seen {first.about.images:,} images, not fewer than last={last.saved.path} with "
                f"{last.about.images:,}",
                "give an earlier checkpoint",
                key="first",
            )
        sizes = [each.state["config"]["trainer"]["batch_size"] for each in (first, last)]
        if sizes[0] != sizes[1] or first.about.images % sizes[0] or last.about.images % sizes[0]:
            raise CheckpointError(
                f"{last.saved.path} does not belong to the run of {first.saved.path}: their trainer.batch_size is {sizes[1]} "
                f"and {sizes[0]}",
                "give checkpoints of one run",
                key="last",
            )
        if (count := last.state.get("processes", 1)) != world_size():
            raise CheckpointError(
                f"{last.saved.path} was written by a training with processes={count}, and this replay has {world_size()}, so "
                "numbers would be added in another order",
                f"start {command_for(count)}",
                key="run",
            )
        self.settings.device_for(first.state)

    def _with_later_settings(self) -> resume.Saved:
        """Return the earlier checkpoint with the settings of the later one."""
        changed = {key: self.last.state[key] for key in ("config", "raw_config", "decisions")}
        return replace(self.first.saved, state={**self.first.state, **changed})

    def _of_threads(self, recorded: RecordedThreads) -> Cause | None:
        """Return the number of threads as the cause of a difference, if it is or may be one."""
        first, last, given = self.first, self.last, self.settings.threads
        if last.state["hardware"].get("device") != "cpu":
            return None
        numbers = sorted({recorded.at(step) or 0 for step in range(first.step, last.step)} - {0})
        if given is not None and numbers != [given]:
            was = f"{' and '.join(map(str, numbers)) or 'an unknown number'}"
            text = f"the number of CPU threads: {was} (recorded), {given} (replay)"
            return Cause(
                "threads",
                "; ".join([text, *thread_records.changes(first, last)]),
                self._is_equal(first.saved, recorded),
            )
        return Cause("threads", thread_records.INCOMPLETE) if thread_records.is_incomplete(first, last) else None

    def _is_equal(self, saved: resume.Saved, threads: RecordedThreads) -> bool | None:
        """Return whether another replay leads to the later checkpoint; None if it is impossible."""
        try:
            with silent():
                result = self._replay(saved, threads)
        except (UserError, NonFiniteError):
            return None
        return not self._compared(result).differing

    def _compared(self, result: ReplayResult) -> StateComparison:
        """Compare the end of a replay with the later checkpoint on the first rank, whose state a training saves."""
        comparison = compare_states(result.state, self.last.state, result.parameters) if rank() == 0 else None
        found: StateComparison = broadcast_object(comparison)
        return found

    def _replay(self, saved: resume.Saved, threads: RecordedThreads) -> ReplayResult:
        ends = [end for each in (self.first, self.last) if (end := _duration(each.state)) is not None]
        try:
            return replay(
                saved,
                self.settings.composition(self.first),
                self.last.about.images,
                threads=threads,
                ends=ends,
                from_the_start=self.first.is_start,
                initialise=self._initialise(saved),
                dataset=self.settings.dataset,
            )
        except UserError as error:
            raise _as_typed(error) from error

    def _initialise(self, saved: resume.Saved) -> Initialise | None:
        """Return the function that replaces the random initial weights, if the run has started from others."""
        weights = self._initial_weights
        return None if weights is None else weights.loader(saved.state["config"])

    @cached_property
    def _initial_weights(self) -> InitialWeights | None:
        """The weights from which a replay from the start begins; None for random ones, and on other ranks than the first."""
        given = self.settings.init_from
        with raise_on_any_rank():
            if not self.first.is_start or (not self._begun and given is None):
                return None
            return read_again(self._begun, given, self.settings.allow) if rank() == 0 else None


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
