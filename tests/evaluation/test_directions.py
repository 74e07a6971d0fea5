"""Directions of metrics, read from the source of evaluators. Takes two seconds, for torch's import."""

from __future__ import annotations

import pytest

from genimg.evaluation.directions import declared_direction

EVALUATOR = "genimg.evaluation.evaluator.Evaluator"
FRECHET = {"_target_": EVALUATOR, "metrics": {"first": {"_target_": "genimg.evaluation.metrics.FrechetDistance"}}}


@pytest.mark.parametrize(
    ("evaluation", "direction"),
    [
        (FRECHET, False),
        ({"_target_": EVALUATOR, "metrics": {"first": {"_target_": "genimg.evaluation.metrics.InceptionScore"}}}, True),
        (
            {"_target_": EVALUATOR, "metrics": {"off": None, "b": {"_target_": "genimg.evaluation.metrics.PrecisionRecall"}}},
            True,
        ),
        ({"_target_": "genimg.evaluation.likelihood.LikelihoodEvaluator"}, False),
        ({"_target_": "genimg.evaluation.translation.PairedEvaluator", "best_by": "psnr"}, True),
        ({"_target_": "genimg.evaluation.translation.UnpairedEvaluator", "best_by": "kd"}, False),
        ({"_target_": "somebody.Else"}, None),
        ({"_target_": "genimg.evaluation.nothing.Here"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_direction_that_is_read_from_the_source_is_the_evaluators_own(evaluation: object, direction: bool | None) -> None:
    assert declared_direction(evaluation) is direction


def test_every_metric_that_genimg_has_declares_its_direction_so_that_it_can_be_read() -> None:
    from genimg.evaluation import metrics

    classes = [each for each in vars(metrics).values() if isinstance(each, type) and issubclass(each, metrics.Metric)]
    concrete = [each for each in classes if each is not metrics.Metric]
    assert len(concrete) >= 6
    for each in concrete:
        target = {"_target_": EVALUATOR, "metrics": {"x": {"_target_": f"{each.__module__}.{each.__name__}"}}}
        assert declared_direction(target) is each.higher_is_better, each
