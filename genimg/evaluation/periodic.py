"""What the trainer asks of an evaluation."""

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
    """What was measured.

    Attributes:
        values: full name of the metric -> value; the first chooses the best checkpoint.
        intervals: full name -> (low, high) of a 95 % bootstrap interval, where one was asked for.
        provenance: what the values depend on, in primitives.
        warnings: in sentences, why a value may mean less than it seems.
    """

    values: dict[str, float]
    provenance: dict[str, Any]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class PeriodicEvaluator(ABC):
    """An evaluation at intervals, whose primary metric chooses the best checkpoint.

    Args:
        interval: how often.
        final_num_images: images of one more evaluation when training ends; None skips it.
        stop_if: ``{factor: k, evaluations: m}`` stops a training whose primary metric was worse than k times its best for m
            evaluations in a row; ``{metric: NAME, above: x, evaluations: m}``, or ``below``, one of which NAME was beyond x;
            None never does.
    """

    def __init__(self, *, interval: NumImages, final_num_images: int | None, stop_if: Mapping[str, float | str] | None) -> None:
        if interval < 1:
            raise ValueError(f"interval={interval} must be positive: turn evaluation off to evaluate never")
        self.interval = interval
        self.final_num_images = final_num_images
        self.stop_if = None if stop_if is None else EarlyStopping.of(stop_if)

    @abstractmethod
    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        """Refuse what cannot be evaluated, and warn of what means little, before a training on ``source``.

        Raises:
            ConfigError: For a model, a metric or data that do not fit.
        """

    @property
    @abstractmethod
    def primary(self) -> str | None:
        """The metric that chooses the best checkpoint; None where none does, so that only the last one is kept."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Of the primary metric."""

    def is_better(self, value: float, best: float) -> bool:
        """Whether a value of the primary metric beats another."""
        return value > best if self.higher_is_better else value < best

    def has_diverged(self, values: Mapping[str, float], best: float | None) -> bool:
        """Whether measured values are worse than ``stop_if`` allows, once; ``best`` is that of the primary metric, if any."""
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
    ) -> Evaluation:
        """Evaluate ``method`` as it is now, with ``num_images`` images if that is given.

        Args:
            method: in any mode.
            data: that it is trained on.
            device: of the method.
            should_stop: asked before every batch.
            num_images: instead of the evaluation's own number.

        Raises:
            EvaluationInterruptedError: once ``should_stop`` says so.
            NonFiniteImagesError: if the model makes NaN.
        """


class HeldOutEvaluator(PeriodicEvaluator):
    """An evaluation of images that training does not see, or else, with a warning, of those that it sees.

    Args:
        num_images: at most; chosen at random, stratified by class.
        batch_size: images at once.
        seed: of what is random about the measures.
        interval, final_num_images, stop_if: see PeriodicEvaluator.

    Raises:
        ValueError: for numbers below 1.
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
        """Say, once, that a source has no images that training does not see."""
        if source is not None and source.validation is None and not self._warned:
            self._warned = True
            log.warning(
                "there are no held-out images, so training images are measured: hold out a share of the data for validation, "
                "or measure the test split with genimg-eval, where the data has one"
            )
