"""Build the group ``evaluation``: an evaluator and, for training, its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from genimg.config.instantiate import Builder, mounted
from genimg.errors import ConfigError
from genimg.evaluation.base import ModelEvaluator
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.training.expected import ExpectedPoint
from genimg.utils.type_hints import as_written

OF_SCHEDULE = tuple(field.name for field in dataclasses.fields(EvaluationSchedule))
"""Keys of the group that belong to the schedule."""


def is_inception(node: Mapping[str, Any]) -> bool:
    """Return whether the extractor of an evaluation is Inception."""
    return str((node.get("extractor") or {}).get("_target_")).endswith(".Inception")


def build_evaluator(node: Mapping[str, Any], builder: Builder) -> ModelEvaluator | None:
    """Build the evaluator of a resolved group ``evaluation``, without its schedule; return None for ``evaluation=none``.

    Raises:
        ConfigError: If a setting is invalid.
    """
    own = {key: value for key, value in node.items() if key not in OF_SCHEDULE}
    evaluator: ModelEvaluator | None = builder.build_group({"evaluation": own}, "evaluation")
    return evaluator


def build_expected(nodes: Sequence[Any] | None, builder: Builder) -> list[ExpectedPoint]:
    """Build the published points listed under the key ``expected``; None, as in older checkpoints, means no points.

    Raises:
        ConfigError: If a point is invalid.
    """
    if not isinstance(nodes, list | tuple | NoneType):  # a checkpoint can hold anything
        raise ConfigError(f"expected={as_written(nodes)} must be a list of points", key="expected")
    for number, node in enumerate(nodes or ()):
        if not isinstance(node, Mapping):
            key = f"expected[{number}]"
            raise ConfigError(
                f"{key}={as_written(node)} must be a mapping with images, metric, value, tolerance and source", key=key
            )
    return [builder.settings(ExpectedPoint, node, f"expected[{number}]") for number, node in enumerate(nodes or ())]


def build_scheduled_evaluator(
    node: Mapping[str, Any], builder: Builder, expected: Sequence[ExpectedPoint] = ()
) -> ScheduledEvaluator | None:
    """Build the evaluator of a resolved group ``evaluation`` with its schedule; return None for ``evaluation=none``.

    Args:
        node: The group.
        builder: Builder of its nodes.
        expected: Published points of the training curve.

    Raises:
        ConfigError: If a setting is invalid.
    """
    if "_target_" not in node:
        return None
    schedule = builder.settings(EvaluationSchedule, {key: node[key] for key in OF_SCHEDULE if key in node}, "evaluation")
    evaluator = build_evaluator(node, builder)
    assert evaluator is not None
    with mounted("evaluation", EvaluationSchedule), mounted("evaluation", evaluator):
        return ScheduledEvaluator(evaluator, schedule, expected)
