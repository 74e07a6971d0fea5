"""Determine whether higher values of a metric are better, without importing evaluators, which need PyTorch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import genimg

_NAME = "higher_is_better"


_HIGHER = ("psnr", "ssim", "ms_ssim")  # values of ``evaluation.best_by``


def declared_direction(evaluation: Any) -> bool | None:
    """Return ``higher_is_better`` as declared in the source of the config's evaluator or its first metric.

    Returns:
        None for evaluators and metrics outside genimg, whose source is not read.
    """
    if not isinstance(evaluation, dict):
        return None
    if isinstance(chosen := evaluation.get("best_by"), str):  # translation metrics
        return chosen in _HIGHER
    metrics = evaluation.get("metrics")
    of_metrics = list(metrics.values()) if isinstance(metrics, dict) else []
    first = next((each for each in of_metrics if isinstance(each, dict)), {})
    for target in (evaluation.get("_target_"), first.get("_target_")):
        if isinstance(target, str) and target.startswith("genimg.") and (found := _declared(target)) is not None:
            return found
    return None


@cache
def _declared(target: str) -> bool | None:
    """Return the constant that the class assigns to ``higher_is_better``, or that its property returns."""
    module, _, name = target.rpartition(".")
    path = Path(genimg.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        return None
    classes = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    for statement in next((node.body for node in classes if node.name == name), []):
        if isinstance(statement, ast.Assign) and any(isinstance(t, ast.Name) and t.id == _NAME for t in statement.targets):
            return _constant(statement.value)
        if isinstance(statement, ast.FunctionDef) and statement.name == _NAME:
            return next((_constant(each.value) for each in statement.body if isinstance(each, ast.Return)), None)
    return None


def _constant(node: ast.expr | None) -> bool | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, bool) else None
