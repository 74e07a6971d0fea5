"""Base classes of evaluators, which measure a model in its current state."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method

log = logging.getLogger(__name__)


class ModelEvaluator(ABC):
    """Base class of evaluators. ``training.evaluation_schedule`` decides when to evaluate and when to stop."""

    least_num_images: ClassVar[int] = 1
    """Minimum number of images per evaluation, regardless of the metrics."""

    num_images: int
    """Maximum number of images per evaluation."""

    @abstractmethod
    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        """Check before training on ``source`` that the model can be evaluated, and warn about unreliable values.

        Raises:
            ConfigError: If this evaluator does not support the model or the data, or cannot compute a metric.
        """

    def check_num_images(self, count: int) -> None:  # noqa: B027 - most evaluators accept any number
        """Check that ``evaluate`` can be called with this number of images.

        Raises:
            ConfigError: If a metric needs more images.
        """

    @property
    @abstractmethod
    def primary(self) -> str | None:
        """Name of the metric that chooses the best checkpoint; None if only the last checkpoint is kept."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Whether higher values of the primary metric are better."""

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


class HeldOutEvaluator(ModelEvaluator):
    """Base class of evaluators of held-out images. If there are none, they warn and measure training images.

    Args:
        num_images: Maximum number of images, chosen at random and stratified by class.
        batch_size: Batch size.
        seed: Seed of the random numbers.

    Raises:
        ValueError: If ``num_images`` or ``batch_size`` is below 1.
    """

    def __init__(self, *, num_images: int, batch_size: int, seed: int) -> None:
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self._warned = False

    def warn_without_validation(self, source: ImageDataset | None) -> None:
        """Warn once if the dataset has no held-out images."""
        if source is not None and source.validation is None and not self._warned:
            self._warned = True
            log.warning(
                "there are no held-out images, so training images are measured: hold out a share of the data for validation, "
                "or measure the test split with genimg-eval, if the data has one"
            )
