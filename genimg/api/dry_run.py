"""``dry_run=true``: run a few training steps to estimate the cost of a whole run, without creating a run directory."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimg.api.assemble import describe_parts
from genimg.api.estimates import decode_sample, evaluation_seconds, seconds_per_evaluation, seconds_per_step
from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.methods.capabilities import Generates
from genimg.methods.sampling_options import has_steps
from genimg.training.components import TrainingComponents
from genimg.training.ema import PowerFunction
from genimg.training.logger import SilentLogger
from genimg.training.trainer import Trainer
from genimg.utils.distributed import world_size
from genimg.utils.durations import time_in_words

log = logging.getLogger(__name__)

_SAMPLE = 256  # number of images that are decoded to check the data, and used to train
_SECONDS = 5.0  # duration of the measured steps
_FEWEST = 4  # images in the first measured batch of an evaluation
_ENOUGH = 1.0  # seconds after which a batch is large enough to measure
_SLOW = 10.0  # seconds; a first batch that takes longer is not measured again
_LARGE_SHARE = 0.3  # a warning appears if evaluations take a larger share of the run's time


def rehearse(parts: TrainingComponents, config: Mapping[str, Any]) -> None:
    """Check the data, train a few steps on a sample of it, and log the estimated cost of the whole run.

    Args:
        parts: Untrained components.
        config: Their config.

    Raises:
        DataError, ConfigError: If more images are corrupt than ``data.max_corrupt`` allows, or several processes were started.
    """
    if world_size() > 1:
        raise ConfigError("dry_run=true checks a single process: start it without torchrun")
    data = parts.data
    describe_parts(parts, config)
    _count_classes(parts)
    sample, rate = decode_sample(parts)
    with tempfile.TemporaryDirectory() as folder:
        trainer = parts.trainer(folder=Path(folder), make_logger=lambda *_: SilentLogger(), describe={}, data=sample)
        step = seconds_per_step(trainer)
        _report_memory(parts, trainer)
    if data.storage != "workers":
        where = "on the device" if data.storage == "device" else "in host memory"
        log.info("images %s: %.0f MB", where, len(parts.source) * np.prod(parts.source.shape) / 1e6)
    total = parts.settings.duration / parts.settings.batch_size * step
    log.info("step: %.1f ms, %.0f images/s (mean of a few steps)", 1e3 * step, parts.settings.batch_size / step)
    workers = max(1, data.num_workers)
    if data.storage == "workers" and rate * workers < parts.settings.batch_size / step:
        log.warning("%d workers decode %.0f images/s, which is slower than training: pack the images with genimg-prepare, or "
                    "set a larger data.num_workers", workers, rate * workers)  # fmt: skip
        total = parts.settings.duration / (rate * workers)
    elif data.storage != "workers" and not isinstance(parts.source, ArrayDataset):
        log.info("loading the images: about %s", time_in_words(len(parts.source) / (rate * workers)))
    log.info("training for %s: about %s", config["trainer"]["duration"], time_in_words(total))
    _report_evaluation(parts, trainer, sample, total)
    log.info("dry run: no run directory was made")


def _count_classes(parts: TrainingComponents) -> None:
    source = parts.source
    if source.labels is None:
        return
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{source.class_names[i]} {counts[i]}" for i in order[:10])
    log.info("classes: %d, %s%s", len(counts), shown, ", ..." if len(counts) > 10 else "")
    if counts.min() == 0 or counts.max() > 10 * counts.min():
        log.warning("the largest class has %d images and the smallest %d", counts.max(), counts.min())


def _report_memory(parts: TrainingComponents, trainer: Trainer) -> None:
    size = bytes_of(trainer.state_dict())
    log.info(
        "a checkpoint: %.0f MB; the run keeps the last %d, the best one, and a timed one", size / 1e6, parts.settings.keep_last
    )
    for name, average in trainer.averages.items():
        if isinstance(average.profile, PowerFunction) and (count := average.profile.num_snapshots):
            size = bytes_of(average.state_dict())
            log.info("snapshots of the average %s: at most %d of %.0f MB each", name, count, size / 1e6)
    if parts.device.type == "cuda":
        total = torch.cuda.get_device_properties(parts.device).total_memory
        log.info("GPU memory: %.2f GB at most, of %.0f", torch.cuda.max_memory_allocated(parts.device) / 1e9, total / 1e9)
        return
    if sys.platform == "win32":  # Windows has no module ``resource``
        return
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss
    log.info("peak memory so far: %.2f GB (whole process)",
             resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)  # fmt: skip


def bytes_of(state: object) -> int:
    """Return the bytes of all tensors in nested mappings and lists, such as a trainer's ``state_dict``."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    children = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(bytes_of, children))


def _report_evaluation(parts: TrainingComponents, trainer: Trainer, sample: ImageLoader, training_seconds: float) -> None:
    """Log the estimated time of the evaluations during training, and warn if it is a large share of the run."""
    if parts.evaluator is None:
        return
    evaluator = parts.evaluator.evaluator
    number = -(-parts.settings.duration // parts.evaluator.interval)
    if not isinstance(evaluator, Evaluator):
        seconds = seconds_per_evaluation(parts, trainer, sample)
        log.info("%d evaluation%s, about %s each", number, "s" * (number != 1), time_in_words(seconds))
        return
    method = trainer.sampler().eval()  # with the weights that training evaluates
    assert isinstance(method, Generates)
    generating, extracting = evaluation_seconds(evaluator, method, parts.device)
    each = (generating + extracting) * evaluator.num_images
    final = parts.evaluator.final_num_images or 0
    whole = number * each + (generating + extracting) * final
    share = whole / max(whole + training_seconds, 1e-9)
    options = evaluator.generated(method, parts.device, ()).options
    log.info(
        "%d evaluation%s of %d images, about %s each%s: %s in total, %.0f %% of training and evaluation together",
        number, "s" * (number != 1), evaluator.num_images, time_in_words(each),
        f", and one of {final} images at the end" if final else "", time_in_words(whole), 100 * share,
    )  # fmt: skip
    evaluations = (options or method.sampling_options).num_evaluations
    log.info("each of these images: %.2g s to generate%s, %.2g s for its features", generating,
             "" if evaluations is None else f" with {evaluations} network evaluation{'s' * (evaluations != 1)}", extracting,
    )  # fmt: skip
    log.info(
        "features of the real images: %s once, unless their statistics are cached",
        time_in_words(extracting * len(parts.source)),
    )
    if share > _LARGE_SHARE:
        keys = ["evaluation.num_images", *(["evaluation.sampling.steps"] if has_steps(options) else [])]
        log.warning("evaluations take about %.0f %% of the run: set a larger evaluation.interval, or a smaller %s%s",
                    100 * share, " or ".join(keys), ", or evaluation.final_num_images=null" if final else "")  # fmt: skip
