"""Decide when to evaluate during training, which evaluation is the best, and when to stop after a bad one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.base import ModelEvaluator
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method
from genimg.training.early_stopping import EarlyStopping
from genimg.training.expected import ExpectedPoint, due
from genimg.utils.durations import NumImages


@dataclass(frozen=True)
class EvaluationSchedule:
    """Settings of the evaluations during training.

    Attributes:
        interval: Interval between evaluations.
        final_num_images: Number of images of an additional evaluation after training; None skips it.
        stop_if: Condition that stops training if it holds in m evaluations in a row. ``{factor: k, evaluations: m}``: the
            primary metric is worse than k times its best value. ``{metric: NAME, above: x, evaluations: m}``, or with
            ``below``: the metric NAME is above, or below, x. None disables early stopping.

    Raises:
        ValueError: If the interval is not positive.
        ConfigError: If ``stop_if`` is not one of these conditions.
    """

    interval: NumImages
    final_num_images: int | None
    stop_if: Mapping[str, float | str] | None

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} must be positive: to disable evaluation, set evaluation=none")
        if self.stop_if is not None:
            EarlyStopping.of(self.stop_if)


class ScheduledEvaluator:
    """An evaluator with the settings of its use during training.

    Args:
        evaluator: Evaluator of the model.
        schedule: Settings of the evaluations.
        expected: Published points of the training curve.

    Attributes:
        interval, final_num_images: See EvaluationSchedule.
        stop_if: Condition for early stopping; None disables it.

    Raises:
        ValueError: If ``final_num_images`` is too small, or ``stop_if`` needs a primary metric and the evaluator has none.
        ConfigError: If a metric needs more images than ``final_num_images``.
    """

    def __init__(self, evaluator: ModelEvaluator, schedule: EvaluationSchedule, expected: Sequence[ExpectedPoint] = ()) -> None:
        self.evaluator = evaluator
        self.expected = tuple(expected)
        self.interval = schedule.interval
        self.final_num_images = schedule.final_num_images
        self.stop_if = None if schedule.stop_if is None else EarlyStopping.of(schedule.stop_if)
        if self.stop_if is not None and self.stop_if.metric is None and evaluator.primary is None:
            raise ValueError("stop_if with a factor needs a metric that chooses the best checkpoint: set best_by")
        if self.final_num_images is not None:
            if self.final_num_images < evaluator.least_num_images:
                raise ValueError(f"final_num_images={self.final_num_images} must be {evaluator.least_num_images} or more")
            evaluator.check_num_images(self.final_num_images)

    @property
    def primary(self) -> str | None:
        """Name of the metric that chooses the best checkpoint; None if only the last checkpoint is kept."""
        return self.evaluator.primary

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values of the primary metric are better."""
        return self.evaluator.higher_is_better

    def check(self, method: Method, source: ImageDataset) -> None:
        """See ModelEvaluator."""
        self.evaluator.check(method, source)

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
        """See ModelEvaluator."""
        return self.evaluator.evaluate(method, data, device, should_stop, num_images, weights=weights)

    def is_better(self, value: float, best: float) -> bool:
        """Return whether ``value`` of the primary metric is better than ``best``."""
        return value > best if self.higher_is_better else value < best

    def compared_with_curve(self, images: int, values: Mapping[str, float], provenance: Mapping[str, Any]) -> list[str]:
        """Return a line for each published point for which this evaluation is the first one at or after it.

        Args:
            images: Images seen.
            values: Values of the evaluation.
            provenance: Provenance of the values.
        """
        return [point.judge(images, values, provenance) for point in due(self.expected, images, self.interval)]

    def has_diverged(self, values: Mapping[str, float], best: float | None) -> bool:
        """Return whether these values meet ``stop_if``; ``best`` is the best value of the primary metric, if any."""
        if self.stop_if is None:
            return False
        if self.stop_if.metric is not None:
            return self.stop_if.is_beyond(values[self.stop_if.name_in(values)])
        assert self.primary is not None
        assert best is not None
        return self.stop_if.is_too_bad(values[self.primary], best, higher_is_better=self.higher_is_better)
