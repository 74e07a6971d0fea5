"""Interface between the trainer and evaluators."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.early_stopping import EarlyStopping
from genimg.methods.base import Method
from genimg.utils.durations import NumImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        values: Values by full metric name; the first one chooses the best checkpoint.
        provenance: Everything that the values depend on, as primitives.
        intervals: 95 % bootstrap intervals (low, high) by full metric name, if requested.
        warnings: Sentences about values that may be unreliable.
    """

    values: dict[str, float]
    provenance: dict[str, Any]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class PeriodicEvaluator(ABC):
    """Base class of evaluations at intervals, whose primary metric chooses the best checkpoint.

    Args:
        interval: Interval between evaluations.
        final_num_images: Number of images of an additional evaluation after training; None skips it.
        stop_if: Condition that must hold in m evaluations in a row to stop the training. ``{factor: k, evaluations: m}``: the
            primary metric is worse than k times its best. ``{metric: NAME, above: x, evaluations: m}``, or ``below``: NAME is
            beyond x. None disables early stopping.
    """

    def __init__(self, *, interval: NumImages, final_num_images: int | None, stop_if: Mapping[str, float | str] | None) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval} must be positive: turn evaluation off to evaluate never")
        self.interval = interval
        self.final_num_images = final_num_images
        self.stop_if = None if stop_if is None else EarlyStopping.of(stop_if)

    @abstractmethod
    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        """Check before a training on ``source`` that it can be evaluated; warn about values of little significance.

        Raises:
            ConfigError: If the model, a metric or the data do not fit.
        """

    @property
    @abstractmethod
    def primary(self) -> str | None:
        """Name of the metric that chooses the best checkpoint; None if only the last checkpoint is kept."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Whether higher values of the primary metric are better."""

    def is_better(self, value: float, best: float) -> bool:
        """Return whether ``value`` of the primary metric is better than ``best``."""
        return value > best if self.higher_is_better else value < best

    def has_diverged(self, values: Mapping[str, float], best: float | None) -> bool:
        """Return whether these values violate ``stop_if``; ``best`` is the best value of the primary metric, if any."""
        if self.stop_if is None:
            return False
        if self.stop_if.metric is not None:
            return self.stop_if.is_beyond(values[self.stop_if.name_in(values)])
        assert self.primary is not None
        assert best is not None
        return self.stop_if.is_too_bad(values[self.primary], best, higher_is_better=self.higher_is_better)

    @abstractmethod
    def evaluate(
        self,
        method: Method,
        data: ImageLoader,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        weights: str = "raw",
    ) -> Evaluation:
        """Evaluate the model in its current state.

        Args:
            method: Model to evaluate, in any mode.
            data: Loader of the training data.
            device: Device of the model.
            should_stop: Callback checked before every batch.
            num_images: Number of images; None uses the evaluator's setting.
            weights: Name of the model's weights, for the provenance.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            NonFiniteImagesError: If the model generates NaN or infinite values.
        """


class HeldOutEvaluator(PeriodicEvaluator):
    """Base class of evaluations on held-out images, or on training images, with a warning, if there are none.

    Args:
        num_images: Maximum number of images, chosen at random, stratified by class.
        batch_size: Batch size.
        seed: Seed of the measurements.
        interval, final_num_images, stop_if: See PeriodicEvaluator.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        interval: NumImages,
        final_num_images: int | None,
        stop_if: Mapping[str, float | str] | None,
    ) -> None:
        super().__init__(interval=interval, final_num_images=final_num_images, stop_if=stop_if)
        for name, value in (("num_images", num_images), ("batch_size", batch_size), ("final_num_images", final_num_images)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._warned = False

    def warn_without_validation(self, source: ImageDataset | None) -> None:
        """Warn once if the dataset has no held-out images."""
        if source is not None and source.validation is None and not self._warned:
            self._warned = True
            log.warning(
                "there are no held-out images, so training images are measured: hold out a share of the data for validation, "
                "or measure the test split with genimg-eval, where the data has one"
            )
