"""Durations in time, such as ``trainer.duration='8 hours'``: convert them to images by a measurement at the start of a run."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genimg.api.estimates import decode_sample, seconds_per_evaluation, seconds_per_step
from genimg.errors import ConfigError
from genimg.training.components import TrainingComponents
from genimg.training.logger import SilentLogger
from genimg.training.trainer import Trainer
from genimg.utils.distributed import broadcast_object
from genimg.utils.durations import time_in_words, to_seconds, to_share
from genimg.utils.silence import silent

log = logging.getLogger(__name__)

PROVISIONAL_RATE = 1000.0
"""Images per second with which components are built for the measurement."""

_MEASURED = 0.05  # share of the time for measuring steps
_SHORT = 0.05  # share of the time below which an evaluation is measured as a whole
_ONCE = 0.1  # share from which it is not measured again, although the first one may also compute statistics of real images
_FEWEST_STEPS = 10  # of a training whose duration is a time
_MARGIN = 0.08  # share of the time for pictures, checkpoints and the error of the short measurement


def images_per_second(parts: TrainingComponents, config: Mapping[str, Any], *, spent: float = 0.0) -> float:
    """Measure how many images a second of ``trainer.duration`` stands for.

    All other durations in time use the same rate. It includes the evaluations. As the run records it, the number of steps is
    fixed, and a resumed run has the same schedules.

    Args:
        parts: Components that no run will use, because this trains them.
        config: Their config.
        spent: Seconds that earlier measurements have taken.

    Raises:
        ConfigError: If the time is too short for the evaluations and a few steps.
    """
    started = time.monotonic() - spent
    budget = to_seconds(config["trainer"]["duration"])
    assert budget is not None
    with silent(logging.INFO):  # warnings of corrupt images come only once
        sample, decoding_rate = decode_sample(parts)
    with silent(), tempfile.TemporaryDirectory() as folder:
        trainer = parts.trainer(folder=Path(folder), make_logger=lambda *_: SilentLogger(), describe={}, data=sample)
        step = seconds_per_step(trainer, min(_MEASURED * float(budget), 5.0))
        evaluation = broadcast_object(seconds_per_evaluation(parts, trainer, sample))
        if parts.evaluator is not None and evaluation < _SHORT * float(budget):
            evaluation = _whole_evaluation(parts, trainer, float(budget))
    batch_size, loader = parts.settings.batch_size, parts.data
    per_image = step / batch_size
    if loader.storage == "workers":
        per_image = max(per_image, 1.0 / (decoding_rate * max(1, loader.num_workers)))
    available = (1.0 - _MARGIN) * float(budget) - (time.monotonic() - started)
    if parts.evaluator is not None:
        at_the_end = 1.0 + (parts.evaluator.final_num_images or 0) / max(parts.evaluator.evaluator.num_images, 1)
        available -= at_the_end * evaluation
        interval, share = to_seconds(config["evaluation"]["interval"]), to_share(config["evaluation"]["interval"])
        if interval is not None:
            share = interval / budget
        if share is None:
            per_image += evaluation / parts.evaluator.interval
        else:
            available -= (math.ceil(1 / share) - 1) * evaluation  # before the one at the end
    images = broadcast_object(available / per_image)  # all ranks must decide alike
    if images < _FEWEST_STEPS * batch_size:
        what = f"an evaluation takes about {time_in_words(evaluation)} and " if evaluation else ""
        missing = (_FEWEST_STEPS * batch_size - images) * per_image / (1.0 - _MARGIN)
        enough = 5 * math.ceil(1.2 * (float(budget) + missing) / 5)  # measurements vary
        raise ConfigError(
            f"trainer.duration={config['trainer']['duration']} is too short: {what}{_FEWEST_STEPS} steps take "
            f"{_FEWEST_STEPS * step:.2g} s",
            f"give at least {enough} seconds" + (", a smaller evaluation.num_images, or evaluation=none" if evaluation else ""),
            key="trainer.duration",
        )
    log.info(
        "measured: %.1f ms a step of %d images%s",
        1e3 * step, batch_size, f", {time_in_words(evaluation)} an evaluation" if evaluation else "",
    )  # fmt: skip
    return float(images / float(budget))


def _whole_evaluation(parts: TrainingComponents, trainer: Trainer, budget: float) -> float:
    """Return the time of an evaluation in seconds, by doing it."""
    assert parts.evaluator is not None
    method = trainer.sampler()
    for _ in range(2):
        before = time.monotonic()
        parts.evaluator.evaluator.evaluate(method, parts.data, parts.device)
        seconds: float = broadcast_object(time.monotonic() - before)
        if seconds >= _ONCE * budget:
            break
    return seconds
