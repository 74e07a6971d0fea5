"""The loop: log, preview, checkpoint, evaluate, step. It has never heard of a GAN."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from genimg.data.placement import Data
from genimg.data.stream import Order
from genimg.evaluation.evaluator import Evaluation, Evaluator
from genimg.evaluation.passes import EvaluationInterruptedError
from genimg.images import to_float
from genimg.interfaces import Batch, Images, Method, Progress
from genimg.randomness import seed_of
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.device import Precision
from genimg.training.logger import Logger, MeanMetrics, ProgressBar
from genimg.training.schedules import Schedule
from genimg.training.update import Updater, split

log = logging.getLogger(__name__)

_PREVIEW_STREAM = 1  # keeps the preview's latents apart from the evaluation's


class StopRequestedError(Exception):
    """Ctrl-C or SIGTERM; a checkpoint has been written."""


class WorseningError(Exception):
    """``evaluation.stop_if`` ended the training; a checkpoint has been written."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How long, how much at once, and how often.

    Attributes:
        duration: of the whole training.
        batch_size: images a step.
        accumulation: microbatches that each batch is cut into, to save memory; batch norm sees microbatches.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None leaves it.
        log_interval, preview_interval, checkpoint_interval: how often.
        preview_images: in each picture.
        keep_last: checkpoints to keep beside the best one.
    """

    duration: Images
    batch_size: int
    accumulation: int
    max_grad_norm: float | None
    log_interval: Images
    preview_interval: Images
    checkpoint_interval: Images
    preview_images: int
    keep_last: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"trainer.batch_size={self.batch_size} must be 1 or more")
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(f"trainer.accumulation={self.accumulation} must divide trainer.batch_size={self.batch_size}")
        if self.preview_images < 1:
            raise ValueError(f"trainer.preview_images={self.preview_images} must be 1 or more")
        for name in ("duration", "log_interval", "preview_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be longer than nothing")


@dataclass
class TrainingState:
    """What a checkpoint holds besides the method and the optimizers."""

    images: int = 0
    evaluated_at: int = -1
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_images: int = -1
    worse_evaluations: int = 0
    final: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def forget_evaluations(self) -> None:
        """Start a new best: the evaluation has changed, and its values compare with none before."""
        self.evaluated_at, self.last, self.best, self.best_images = -1, {}, {}, -1
        self.worse_evaluations, self.final = 0, {}


class Trainer:
    """Trains a method on data.

    Args:
        settings: durations and sizes.
        method: on its device.
        optimizers: one for each of the method's parameter groups.
        schedule: of all learning rates.
        data: training images.
        evaluator: None for no evaluation.
        precision: of forward and backward.
        seed: of everything random.
        folder: where checkpoints go.
        make_logger: called with the step that the run starts at, and whether that step is evaluated already.
        describe: what else goes into a checkpoint (config, versions).
    """

    def __init__(
        self,
        settings: TrainerSettings,
        method: Method,
        optimizers: Mapping[str, Optimizer],
        schedule: Schedule,
        data: Data,
        evaluator: Evaluator | None,
        *,
        precision: Precision,
        seed: int,
        folder: CheckpointFolder,
        make_logger: Callable[[int, bool], Logger],
        describe: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self.method = method
        self.optimizers = optimizers
        self.schedule = schedule
        self.data = data
        self.evaluator = evaluator
        self.device = precision.device
        self.seed = seed
        self.folder = folder
        self.make_logger = make_logger
        self.describe = describe
        self.updater = Updater(method.parameter_groups(), optimizers, precision=precision, max_grad_norm=settings.max_grad_norm)
        self.state = TrainingState()
        self.means = MeanMetrics()
        self._base_rates = {name: [g["lr"] for g in optimizer.param_groups] for name, optimizer in optimizers.items()}
        self.stop_signal: int | None = None
        self._last_saved = -1
        self._interval_start = (time.monotonic(), 0)

    @property
    def progress(self) -> Progress:
        return Progress(self.state.images, self.settings.batch_size)

    def fit(self) -> TrainingState:
        """Train from where the state stands to the end.

        Raises:
            NonFiniteError: if the training diverged; no checkpoint holds the broken weights.
            StopRequestedError: after Ctrl-C or SIGTERM, with a checkpoint written.
            WorseningError: if ``evaluation.stop_if`` says so, with a checkpoint written.
        """
        if self.state.images < self.settings.duration:
            self.state.final = {}  # of a shorter training
        self.data.load()
        logger = self.make_logger(self.progress.step, self.state.evaluated_at == self.state.images)
        bar = ProgressBar(total=self.settings.duration, initial=self.state.images)
        self._last_saved = self.state.images if self.state.images else -1
        self._interval_start = (time.monotonic(), self.state.images)
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            stream = self.data.batches(self.state.images, batch_size=self.settings.batch_size, seed=self.seed)
            self.method.train()
            while True:
                self._maintain(logger, bar)
                if self.state.images >= self.settings.duration:
                    return self.state
                self._step(stream)
                bar.advance(self.settings.batch_size)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            bar.close()
            logger.close()

    def _step(self, stream: Iterator[Batch]) -> None:
        progress = self.progress
        factor = self.schedule.factor(progress.images, progress.batch_size)
        for name, optimizer in self.optimizers.items():
            for group, base in zip(optimizer.param_groups, self._base_rates[name], strict=True):
                group["lr"] = base * factor
        self.updater.step = progress.step
        torch.manual_seed(seed_of(self.seed, progress.step))
        batch = split(next(stream), self.settings.accumulation)
        self.means.add(self.method.step(batch, progress, self.updater))
        self.state.images += progress.batch_size

    def _maintain(self, logger: Logger, bar: ProgressBar) -> None:
        """Everything that happens between steps, in a fixed order, so that a resumed run does the same."""
        settings, images = self.settings, self.state.images
        done = images >= settings.duration
        if self._due(settings.log_interval) or done:
            self._log(logger, bar)
        if self._due(settings.preview_interval) or done or images == 0:
            logger.pictures(self.progress.step, images, self._preview(with_data=images == 0))
        if (self._due(settings.checkpoint_interval) or done or self.stop_signal is not None) and images != self._last_saved:
            self._save(best=False)
        if self.stop_signal is not None and not done:
            raise StopRequestedError
        if self.evaluator:
            try:
                if (self._due(self.evaluator.interval) or done) and self.state.evaluated_at != images:
                    self._evaluate(self.evaluator, logger)
                if done and self.evaluator.final_num_images is not None and not self.state.final:
                    self._evaluate_finally(self.evaluator, self.evaluator.final_num_images, logger)
            except EvaluationInterruptedError:
                if images != self._last_saved:
                    self._save(best=False)
                raise StopRequestedError from None

    def _due(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of ``interval`` images."""
        images = self.state.images
        return images > 0 and images // interval > (images - self.settings.batch_size) // interval

    def _log(self, logger: Logger, bar: ProgressBar) -> None:
        means = self.means.pop()
        if not means:  # just resumed: this record is already written
            return
        self.updater.raise_if_not_finite()
        now = time.monotonic()
        then, images_then = self._interval_start
        self.state.seconds += now - then
        self._interval_start = (now, self.state.images)
        rate = (self.state.images - images_then) / max(now - then, 1e-9)
        rates = {f"lr/{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        logger.scalars(self.progress.step, self.state.images, {**means, **rates, "time/images_per_second": rate})
        bar.show({name: value for name, value in means.items() if name.startswith("loss/")} | self._headline())

    def _headline(self) -> dict[str, float]:
        return {k: v for k, v in self.state.last.items() if self.evaluator and k == self.evaluator.primary}

    def _preview(self, *, with_data: bool) -> dict[str, torch.Tensor]:
        count = min(self.settings.preview_images, len(self.data.source))
        order = Order(len(self.data.source), seed=self.seed, horizontal_flip=False)
        image = to_float(self.data.images(order.indices(0, count)))
        drawn = self.method.draw(range(self.settings.preview_images), seed_of(_PREVIEW_STREAM, self.seed))
        pictures = self.method.preview({"image": image}, {key: value.to(self.device) for key, value in drawn.items()})
        return pictures | ({"real": image} if with_data else {})

    def _evaluate(self, evaluator: Evaluator, logger: Logger) -> None:
        result = self._measure(evaluator, logger, "evaluation", None)
        state = self.state
        state.evaluated_at, state.last, state.provenance = state.images, result.values, result.provenance
        value = result.values[evaluator.primary]
        best = not state.best or evaluator.is_better(value, state.best[evaluator.primary])
        if best:
            state.best, state.best_images = result.values, state.images
        worse = evaluator.has_diverged(value, state.best[evaluator.primary])
        state.worse_evaluations = state.worse_evaluations + 1 if worse else 0
        log.info("%d images: %s%s", state.images, _in_short(result.values), " (best)" if best else "")
        self._save(best=best)
        done = state.images >= self.settings.duration
        if evaluator.stop_if is not None and state.worse_evaluations >= evaluator.stop_if.evaluations and not done:
            raise WorseningError

    def _evaluate_finally(self, evaluator: Evaluator, num_images: int, logger: Logger) -> None:
        """Once, with more images, when all is trained."""
        result = self._measure(evaluator, logger, "final", num_images)
        self.state.final = {"metrics": result.values, "provenance": result.provenance}
        log.info("at the end: %s", _in_short(result.values))
        self._save(best=False)

    def _measure(self, evaluator: Evaluator, logger: Logger, prefix: str, num_images: int | None) -> Evaluation:
        self.updater.raise_if_not_finite()
        start = time.monotonic()
        try:
            result = evaluator.evaluate(self.method, self.data, self.device, lambda: self.stop_signal is not None, num_images)
        finally:
            seconds = time.monotonic() - start
            then, images_then = self._interval_start
            self._interval_start = (then + seconds, images_then)  # throughput is that of training alone
            self.state.evaluation_seconds += seconds
        values = {f"{prefix}/{name}": number for name, number in result.values.items()}
        for name, (low, high) in result.intervals.items():
            values |= {f"{prefix}/{name}_low": low, f"{prefix}/{name}_high": high}
        values["time/evaluation_seconds"] = seconds
        logger.scalars(self.progress.step, self.state.images, values, provenance=result.provenance)
        return result

    def _save(self, *, best: bool) -> None:
        self.updater.raise_if_not_finite()
        path = self.folder.save(self.state_dict(), self.progress.step, best=best)
        self._last_saved = self.state.images
        log.debug("saved %s", path)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs: tensors and primitives only."""
        return {
            **self.describe,
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "means": self.means.state_dict(),
            "training": vars(self.state).copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. The optimizers' settings come from the config, their state from the checkpoint."""
        try:
            self.method.load_state_dict(state["method"])
            for name, optimizer in self.optimizers.items():
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state["optimizers"][name]["state"], "param_groups": groups})
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"the checkpoint does not fit this model or its optimizers ({reason}): start a new run_dir"
            ) from error
        self.means.load_state_dict(state["means"], self.device)
        self.state = TrainingState(**state["training"])

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal is not None:  # a second Ctrl-C: now, whatever is under way
            raise KeyboardInterrupt
        self.stop_signal = number
        # Not by logging, whose lock the interrupted code may hold.
        text = f"\n{signal.Signals(number).name}: finishing this step, then saving; once more to stop at once\n"
        os.write(2, text.encode())


def _in_short(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.4g}" for name, number in values.items() if not name.endswith("_std"))
