"""The training loop: log, preview, checkpoint, evaluate, step. It is independent of the method."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from genimg.data.loader import ImageLoader
from genimg.evaluation.feature_extraction import EvaluationInterruptedError
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method, frozen_names, trained_groups
from genimg.methods.capabilities import PreparesSaving
from genimg.training import posthoc_ema
from genimg.training.async_writer import Background, unchanged_buffers
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.clocks import Clocks
from genimg.training.device import Precision
from genimg.training.ema import PowerFunction, Profile, WeightAverage, chosen_weights, label_of
from genimg.training.evaluation_schedule import ScheduledEvaluator
from genimg.training.host_copies import snapshot
from genimg.training.logger import Logger
from genimg.training.performance import Performance
from genimg.training.previews import preview
from genimg.training.progress import MeanMetrics, ProgressBar
from genimg.training.recorder import Outcome
from genimg.training.schedules import OptimizerSchedules
from genimg.training.state import TrainerSettings, TrainingState
from genimg.training.step_graphs import StepGraphs, on_stream_of
from genimg.training.step_numbers import StepNumbers
from genimg.training.stop_signal import StopSignal
from genimg.training.thread_choice import ThreadControl, Threads
from genimg.training.trained_state import TrainedState
from genimg.training.update import StepRNG, Updater, split
from genimg.types import Batch, Progress
from genimg.utils.distributed import Vote, broadcast_object, on_every_rank, raise_on_any_rank, rank, world_size
from genimg.utils.run_log import ListMessage

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long

log = logging.getLogger(__name__)

_Run = Callable[[Batch, Progress], Sequence[str]]


class StopRequestedError(Exception):
    """A signal requested a stop (``terminal.stop_signals``); a checkpoint has been written."""


class TimeIsOverError(Exception):
    """The time limit was reached; the weights have been evaluated, and a checkpoint has been written."""


class WorseningError(Exception):
    """A stopping rule of the evaluation ended training; a checkpoint has been written."""


class Trainer:
    """Trains a method on data.

    Args:
        settings: Durations and sizes.
        method: Method, on its device.
        optimizers: Optimizers, one for each of the method's parameter groups.
        schedules: Schedules of the optimizers' settings.
        data: Loader of training images.
        evaluator: Evaluator with its schedule; None for no evaluation.
        precision: Precision of forward and backward.
        performance: Performance settings with which the method was placed.
        seed: Seed of all randomness.
        folder: Directory of checkpoints.
        make_logger: Function that builds a logger from the first step and from whether that step is already evaluated.
        describe: Further contents of a checkpoint (config, versions).
        profiles: Averages of the weights to keep, by name.
        sharding: How the method's networks are divided among processes; None if each process has them whole.
        time_limit: Seconds after which ``fit`` stops, also if the duration is not reached; None for no limit.
        threads: Number of CPU threads with which ``fit`` starts; None to leave it as it is.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        method: Method,
        optimizers: Mapping[str, Optimizer],
        schedules: OptimizerSchedules,
        data: ImageLoader,
        evaluator: ScheduledEvaluator | None,
        *,
        precision: Precision,
        performance: Performance,
        seed: int,
        folder: CheckpointFolder,
        make_logger: Callable[[int, bool], Logger],
        describe: Mapping[str, Any],
        profiles: Mapping[str, Profile] = MappingProxyType({}),
        sharding: Sharding | None = None,
        time_limit: float | None = None,
        threads: Threads | None = None,
    ) -> None:
        self.settings = settings
        self.method = method
        self.sharding = sharding
        self.optimizers = optimizers
        self.schedules = schedules
        self.averages = {name: WeightAverage(method, profile, sharding) for name, profile in profiles.items()}
        self.weights = chosen_weights(profiles, settings.weights)
        self._chosen: Method = self.averages[self.weights].method if self.weights in self.averages else method
        self.numbers = StepNumbers(method, optimizers, schedules, profiles)
        self.data = data
        self.evaluator = evaluator
        self.device = precision.device
        self.performance = performance
        self.seed = seed
        self.folder = folder
        self.make_logger = make_logger
        self.describe = describe
        self.updater = Updater(
            trained_groups(method),
            optimizers,
            precision=precision,
            max_grad_norm=settings.max_grad_norm,
            rng=StepRNG(seed, settings.accumulation, precision.device),
            networks=list(method.children()),
            sharding=sharding,
            has_frozen=bool(frozen_names(method)),
        )
        self.state = TrainingState()
        self._background = Background()
        self.means = MeanMetrics()
        self._trained = TrainedState(
            method, self.averages, optimizers, self.updater.parameters, self.means, self.device, sharding
        )
        self._is_first_rank = rank() == 0
        self.time_limit = math.inf if time_limit is None else time_limit
        self._threads = ThreadControl(threads, settings.batch_size)
        self._time_is_over = False  # set when all ranks know it
        self._vote = Vote(3) if world_size() > 1 else None  # on whether to stop, whether the time is over, whether to save
        self._is_contiguous = performance.memory_format == torch.contiguous_format
        self._time_to_save = False  # set when all ranks know that the first rank's clock is due
        self._clocks = Clocks(checkpoint_minutes=settings.checkpoint_minutes, preview_seconds=settings.preview_seconds)
        self._stopping = False  # set when all ranks know of a rank's signal
        self._evaluating = False
        self.stop_signal = StopSignal(self._when_it_stops)
        self._last_saved = -1
        self._interval_start = (time.monotonic(), 0)
        self._ends_at = math.inf
        self._waited = 0.0  # seconds waited for batches since the interval's start

    @property
    def progress(self) -> Progress:
        return Progress(self.state.images, self.settings.batch_size)

    def sampler(self) -> Method:
        """Return the method to sample from, with the chosen weights. All ranks must call it."""
        return self._chosen if self.sharding is None else self.sharding.sampler(self._chosen)

    def fit(self) -> TrainingState:
        """Train from the current state to the end.

        Raises:
            NonFiniteError: If training diverges; no checkpoint holds the broken weights.
            StopRequestedError: After one of ``terminal.stop_signals``; a checkpoint has been written.
            TimeIsOverError: After the time limit; the weights have been evaluated, and a checkpoint has been written.
            WorseningError: If a stopping rule of the evaluation ends training; a checkpoint has been written.
        """
        if self.state.images < self.settings.duration:
            self.state.final = {}  # left by a shorter run
        with raise_on_any_rank():
            logger = self.make_logger(self.progress.step, self.state.evaluated_at == self.state.images)
        try:
            with raise_on_any_rank():
                self.data.load()
        except BaseException:
            logger.close("failed")
            raise
        bar = ProgressBar(total=self.settings.duration, initial=self.state.images)
        self._last_saved = self.state.images if self.state.images else -1
        self._interval_start = (time.monotonic(), self.state.images)
        self._clocks.saved()
        self._clocks.shown(self.state.seconds)
        self._ends_at = time.monotonic() + self.time_limit
        with (
            self.stop_signal.noted(),
            self._closing(bar, logger),
            self._step_runner() as run,
            contextlib.closing(self._stream()) as stream,
        ):
            self.method.train()
            while True:
                self._maintain(logger, bar)
                if self.state.images >= self.settings.duration:
                    if self._vote is not None:
                        self._vote.wait()
                    self._wait_for_files()
                    return self.state
                progress = self.progress
                with self._threads.of_step(progress.step, self.state.threads, self.state.compared_threads):
                    batch = self._begin_step(stream, progress)
                    self._end_step(run(batch, progress), progress)
                self._agree()
                bar.advance(self.settings.batch_size)

    @contextlib.contextmanager
    def _closing(self, bar: ProgressBar, logger: Logger) -> Iterator[None]:
        outcome: Outcome = "failed"
        try:
            yield
            outcome = "completed"
        except TimeIsOverError:
            outcome = "completed"
            raise
        except (StopRequestedError, KeyboardInterrupt):
            outcome = "stopped"
            raise
        finally:
            bar.close()
            try:
                self._background.close()
            except Exception as error:  # do not mask the original error, which says more
                log.warning("%s", error)
            finally:
                logger.close(outcome)

    def _wait_for_files(self) -> None:
        """Wait until pending files are written; if a write fails, all ranks raise."""
        with raise_on_any_rank():
            self._background.wait()

    def steps(self) -> Iterator[int]:
        """Train endlessly and yield the images seen after each step; log, preview, evaluate and save nothing.

        If steps run as CUDA graphs, the graphs' stream is the current one until the iterator is closed.
        """
        with self._step_runner() as run, contextlib.closing(self._stream()) as stream:
            self.method.train()
            while True:
                progress = self.progress
                batch = self._begin_step(stream, progress)
                self._end_step(run(batch, progress), progress)
                yield self.state.images

    def _stream(self) -> Generator[Batch, None, None]:
        return self.data.batches(
            self.state.images,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            rank=rank(),
            world_size=world_size(),
        )

    @contextlib.contextmanager
    def _step_runner(self) -> Iterator[_Run]:
        """Yield the function that runs the device's part of a step: as it is, or as CUDA graphs.

        The block runs on the graphs' stream.
        """
        if self.performance.graph is not True:
            yield self._work
            return
        self.numbers.hold_on(self.device)
        self.updater.hold_step()
        graphs = StepGraphs(self._work, self.device, abandon=self.updater.abandon)
        with on_stream_of(graphs, self.device):
            yield lambda batch, progress: graphs.run(batch, progress, self.numbers.are_zero)

    def _begin_step(self, stream: Iterator[Batch], progress: Progress) -> Batch:
        """Set everything that depends on the images seen, and fetch the batch."""
        self.numbers.begin(progress)
        if self.performance.compile:
            self.performance.begin_step()
        self.updater.begin(progress.step)
        requested_at = time.monotonic()
        batch = next(stream)
        self._waited += time.monotonic() - requested_at
        if self._is_contiguous:  # batches are channels-last
            batch = {key: value.contiguous() for key, value in batch.items()}
        return batch

    def _work(self, batch: Batch, progress: Progress) -> list[str]:
        """Run the device's part of a step and return the names of its metrics."""
        metrics = self.method.step(split(batch, self.settings.accumulation), progress, self.updater)
        self.updater.end()
        self.means.accumulate(metrics)
        if self.averages and progress.due(self.method.inference_interval):
            for name, average in self.averages.items():
                average.update(self.numbers.shares[name])
        return list(metrics)

    def _end_step(self, names: Sequence[str], progress: Progress) -> None:
        self.means.count(names)
        self.state.images += progress.batch_size

    def _agree(self) -> None:
        """Agree whether to stop, and whether the time is over or a checkpoint is due by the first rank's clock."""
        now = time.monotonic() if self._is_first_rank else -math.inf
        stop, over, save = self.stop_signal.number is not None, now >= self._ends_at, now >= self._clocks.save_at
        if save:
            self._clocks.saved()
        self._stopping, self._time_is_over, self._time_to_save = (
            (stop, over, save) if self._vote is None else self._vote.cast(stop, over, save)
        )

    def _maintain(self, logger: Logger, bar: ProgressBar) -> None:
        """Do everything that happens between steps, in a fixed order, so that a resumed run does the same."""
        settings, images = self.settings, self.state.images
        done = images >= settings.duration
        is_last = done or self._time_is_over
        if self.due(settings.log_interval) or is_last:
            self._log(logger, bar)
        timed = time.monotonic() >= self._clocks.show_at and self.sharding is None  # sampling needs all ranks' weights
        if self.due(settings.preview_interval) or is_last or images == 0 or timed:
            self._show(logger)
        self._save_snapshots()
        if (self.due(settings.checkpoint_interval) or is_last or self._stopping) and images != self._last_saved:
            self._save(best=False)
        elif self._time_to_save and images != self._last_saved:
            self._save(best=False, timed=True)
        if self._stopping and not done:
            self._stop()
        if self.evaluator:
            try:
                if (self.due(self.evaluator.interval) or is_last) and self.state.evaluated_at != images:
                    self._evaluate(self.evaluator, logger)
                if done and self.evaluator.final_num_images is not None and not self.state.final:
                    self._evaluate_at_end(self.evaluator, self.evaluator.final_num_images, logger)
            except EvaluationInterruptedError:
                self._stop()
            # Several ranks finish an evaluation. The outcome of their next vote would be known two steps later.
            if self._vote is not None and self.state.evaluated_at == images and not done and self._is_stop_requested():
                self._stop()
        if self._time_is_over and not done:
            self._wait_for_files()
            raise TimeIsOverError

    def _is_stop_requested(self) -> bool:
        return not on_every_rank(self.stop_signal.number is None)

    def _stop(self) -> None:
        if self.state.images != self._last_saved:
            self._save(best=False)
        self._wait_for_files()
        raise StopRequestedError

    def _show(self, logger: Logger) -> None:
        """Sample and log pictures on the first rank."""
        if not self._is_first_rank and self.sharding is None:
            return
        sampled, images = self.sampler(), self.state.images
        if self._is_first_rank:
            with unchanged_buffers(sampled):
                pictures = snapshot(
                    preview(
                        sampled, self.data, self.settings.preview_images,
                        seed=self.seed, device=self.device, with_data=images == 0,
                    )
                )  # fmt: skip
            self._clocks.shown(self.state.seconds + time.monotonic() - self._interval_start[0])
            self._background.submit(partial(logger.pictures, self.progress.step, images, pictures))

    def _save_snapshots(self) -> None:
        """Write the power-function averages that are due; averages of other lengths are computed from them after training."""
        folder = self.folder.path.parent / posthoc_ema.FOLDER
        for name, average in self.averages.items():
            profile = average.profile
            if not isinstance(profile, PowerFunction) or not profile.num_snapshots:
                continue
            if self.due(max(self.settings.duration // profile.num_snapshots, self.settings.batch_size)):
                self.updater.raise_if_not_finite()
                weights = self._gathered(average.state_dict())
                if self._is_first_rank:
                    path = posthoc_ema.path_of(folder, name, self.progress.step)
                    write = partial(posthoc_ema.save, path, profile.length, self.state.images, average.copied_buffers())
                    self._write(write, weights)

    def due(self, interval: int) -> bool:
        """Return whether the last step crossed a multiple of ``interval`` images."""
        images = self.state.images
        return images > 0 and images // interval > (images - self.settings.batch_size) // interval

    def _log(self, logger: Logger, bar: ProgressBar) -> None:
        self._background.check()
        means = self.means.pop()
        if not means:  # just resumed: the record of this step exists
            return
        self.updater.raise_if_not_finite()
        now = time.monotonic()
        then, images_then = self._interval_start
        self.state.seconds += now - then
        self._interval_start = (now, self.state.images)
        rate = (self.state.images - images_then) / max(now - then, 1e-9)
        rates = {f"lr/{name}": rate for name, rate in self.numbers.rates().items()}
        rates |= {f"schedule/{name}": value for name, value in self.numbers.scheduled(self.state.images).items()}
        times = {"time/images_per_second": rate, "time/data_wait_share": self._waited / max(now - then, 1e-9)}
        self.state.waiting_seconds += self._waited
        self._waited = 0.0
        logger.scalars(self.progress.step, self.state.images, {**means, **rates, **times})
        bar.show({name: value for name, value in means.items() if name.startswith("loss/")} | self._headline())

    def _headline(self) -> dict[str, float]:
        return {k: v for k, v in self.state.last.items() if self.evaluator and k == self.evaluator.primary}

    def _evaluate(self, evaluator: ScheduledEvaluator, logger: Logger) -> None:
        result = self._measure(evaluator, logger, "evaluation", None)
        state = self.state
        state.evaluated_at, state.last, state.provenance = state.images, result.values, result.provenance
        name = evaluator.primary
        if state.num_evaluations is not None:
            state.num_evaluations += 1
        best = name is not None and (not state.best or evaluator.is_better(result.values[name], state.best[name]))
        if best:
            state.best, state.best_images = result.values, state.images
        try:
            worse = evaluator.has_diverged(result.values, None if name is None else state.best[name])
        except ValueError:  # stop_if names an unknown metric; save the work so far
            self._save(best=best)
            raise
        if self.due(evaluator.interval) or state.images >= self.settings.duration:  # not because the time is over
            state.worse_evaluations = state.worse_evaluations + 1 if worse else 0
        log.info("%s", ListMessage(f"{state.images} images: ", _in_short(result.values), " (best)" if best else ""))
        done = state.images >= self.settings.duration
        if not (done and evaluator.final_num_images is not None):  # otherwise the final evaluation is compared
            self._compare_with_curve(evaluator, result.values, result.provenance)
        self._save(best=best)
        is_last = done or self._time_is_over
        if evaluator.stop_if is not None and state.worse_evaluations >= evaluator.stop_if.evaluations and not is_last:
            self._wait_for_files()
            raise WorseningError

    def _evaluate_at_end(self, evaluator: ScheduledEvaluator, num_images: int, logger: Logger) -> None:
        """Evaluate once more after training, with more images."""
        result = self._measure(evaluator, logger, "final", num_images)
        self.state.final = {"metrics": result.values, "provenance": result.provenance}
        log.info("%s", ListMessage("at the end: ", _in_short(result.values)))
        self._compare_with_curve(evaluator, {**self.state.last, **result.values}, result.provenance)
        self._save(best=False)

    def _compare_with_curve(
        self, evaluator: ScheduledEvaluator, values: Mapping[str, float], provenance: Mapping[str, Any]
    ) -> None:
        for line in evaluator.compared_with_curve(self.state.images, values, provenance):
            log.info("%s", line)

    def _measure(self, evaluator: ScheduledEvaluator, logger: Logger, prefix: str, num_images: int | None) -> Evaluation:
        self.updater.raise_if_not_finite()
        start, self._evaluating = time.monotonic(), True
        try:
            sampled = self.sampler()
            with unchanged_buffers(sampled):
                result = evaluator.evaluate(
                    sampled, self.data, self.device, self._should_stop_evaluating, num_images,
                    weights=label_of(self.averages, self.weights),
                )  # fmt: skip
            result = broadcast_object(result)  # different GPUs differ in the last digits, and all ranks must decide alike
        finally:
            self._evaluating = False
            seconds = time.monotonic() - start
            then, images_then = self._interval_start
            self._interval_start = (then + seconds, images_then)  # throughput counts training time only
            self.state.evaluation_seconds += seconds
        values = {f"{prefix}/{name}": number for name, number in result.values.items()}
        for name, (low, high) in result.intervals.items():
            values |= {f"{prefix}/{name}_low": low, f"{prefix}/{name}_high": high}
        values["time/evaluation_seconds"] = seconds
        if result.seconds_per_image is not None:
            values["time/seconds_per_generated_image"] = result.seconds_per_image
        logger.scalars(self.progress.step, self.state.images, values, provenance=result.provenance)
        return result

    def _should_stop_evaluating(self) -> bool:
        """Return whether to interrupt an evaluation. Several ranks always finish it, as their numbers of batches differ."""
        return self.stop_signal.number is not None and world_size() == 1

    def _save(self, *, best: bool, timed: bool = False) -> None:
        self.updater.raise_if_not_finite()
        if isinstance(self.method, PreparesSaving):
            self.method.before_saving()
        state = self.state_dict()
        if rank() == 0:
            write = partial(self.folder.save, step=self.progress.step, best=best, timed=timed)
            self._write(write, state)
        self._last_saved = self.state.images
        self._clocks.saved()

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and primitives needed to resume. All ranks must call it; that of the first is to be saved."""
        state = self._trained.save() | {"training": vars(self.state).copy()}
        return {**self.describe, **self._gathered(state)}

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with whole weights. All ranks must call it; that of the first is to be saved."""
        if self.sharding is None:
            return state
        self._background.wait()  # only one copy in memory
        return self.sharding.gathered(state)

    def _write(self, write: Callable[[Any], object], state: dict[str, Any]) -> None:
        """Write a state in the background, from a copy, which ``_gathered`` has made if weights are divided."""
        if self.sharding is None:
            self._background.submit_with_copy(write, state)
        else:
            self._background.submit(partial(write, state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. The optimizers' settings come from the config, their state from the checkpoint.

        Raises:
            CheckpointError: If it does not fit the model or the optimizers.
        """
        self._trained.restore(state)
        self.state = TrainingState.restored(state["training"])

    def _when_it_stops(self) -> str | None:
        """Return when a signal ends the training, in words; None except on the first rank, which speaks for all."""
        if not self._is_first_rank:
            return None
        what = "evaluation" if self._evaluating else "step"
        return f"{'during' if self._evaluating and world_size() == 1 else 'after'} this {what}"


def _in_short(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {number:.4g}" for name, number in values.items() if not name.endswith("_std")]
