"""Build the group ``evaluation``: an evaluator and, for training, its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from genimg.config.instantiate import Builder, mounted
from genimg.evaluation.base import ModelEvaluator
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator

_SCHEDULE = tuple(field.name for field in dataclasses.fields(EvaluationSchedule))


def build_evaluator(node: Mapping[str, Any], builder: Builder) -> ModelEvaluator | None:
    """Build the evaluator of a resolved group ``evaluation``, without its schedule; return None for ``evaluation=none``.

    Raises:
        ConfigError: If a setting is invalid.
    """
    own = {key: value for key, value in node.items() if key not in _SCHEDULE}
    evaluator: ModelEvaluator | None = builder.build_group({"evaluation": own}, "evaluation")
    return evaluator


def build_scheduled_evaluator(node: Mapping[str, Any], builder: Builder) -> ScheduledEvaluator | None:
    """Build the evaluator of a resolved group ``evaluation`` with its schedule; return None for ``evaluation=none``.

    Raises:
        ConfigError: If a setting is invalid.
    """
    if "_target_" not in node:
        return None
    schedule = builder.settings(EvaluationSchedule, {key: node[key] for key in _SCHEDULE if key in node}, "evaluation")
    evaluator = build_evaluator(node, builder)
    assert evaluator is not None
    with mounted("evaluation", EvaluationSchedule), mounted("evaluation", evaluator):
        return ScheduledEvaluator(evaluator, schedule)
