"""The schedule of a training's evaluations: which settings are refused, and what is passed on to the evaluator."""

from __future__ import annotations

from typing import Any

import pytest

from genimg.config.evaluation import build_evaluator, build_scheduled_evaluator
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.translation import UnpairedEvaluator
from genimg.training.early_stopping import EarlyStopping
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.utils.durations import NumImages

NODE = {
    "_target_": "genimg.evaluation.evaluator.Evaluator", "num_images": 10, "num_real": None, "batch_size": 5, "seed": 0,
    "bootstrap": 0, "reconstructions": 0, "cache_dir": None, "interval": "3 steps", "final_num_images": 20, "stop_if": None,
    "extractor": {
        "_target_": "genimg.evaluation.extractors.classifier.Classifier", "classifier": "shapes_v2", "sha256": None,
    },
    "metrics": {"fd": {"_target_": "genimg.evaluation.metrics.FrechetDistance"}},
}  # fmt: skip
BUILDER = Builder(epoch_size=1000, batch_size=8)


def built(**changes: Any) -> ScheduledEvaluator:
    evaluator = build_scheduled_evaluator({**NODE, **changes}, BUILDER)
    assert evaluator is not None
    return evaluator


def test_the_schedule_is_split_off_the_evaluation() -> None:
    evaluator = built(stop_if={"factor": 3, "evaluations": 2})
    assert (evaluator.interval, evaluator.final_num_images, evaluator.stop_if) == (24, 20, EarlyStopping(3.0, 2))
    assert evaluator.primary == "fd10_shapes_v2"
    assert not evaluator.higher_is_better
    alone = build_evaluator(NODE, BUILDER)
    assert alone is not None
    assert not hasattr(alone, "interval")


def test_no_evaluation_has_no_schedule() -> None:
    assert build_scheduled_evaluator({}, BUILDER) is None
    assert build_evaluator({"interval": "1 epochs"}, BUILDER) is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"interval": "0 steps"}, "evaluation.interval"),
        ({"interval": "soon"}, "evaluation.interval"),
        ({"final_num_images": 1}, "evaluation.final_num_images"),
        ({"stop_if": {"factor": 1, "evaluations": 2}}, "evaluation.stop_if.factor"),
        ({"stop_if": {"factor": 3}}, "evaluation.stop_if"),
        (
            {
                "final_num_images": 5,
                "metrics": {
                    "is": {"_target_": "genimg.evaluation.metrics.InceptionScore", "splits": 6},
                },
            },
            "evaluation.metrics.is",
        ),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(**changes)
    assert caught.value.key == key


def test_a_factor_needs_a_metric_that_chooses_the_best() -> None:
    translator = UnpairedEvaluator(num_images=4, batch_size=2, seed=0, extractor=None, best_by=None)
    schedule = EvaluationSchedule(NumImages(1), None, {"factor": 2.0, "evaluations": 1})
    with pytest.raises(ValueError, match=r"^stop_if .* set best_by"):
        ScheduledEvaluator(translator, schedule)
    bound = EvaluationSchedule(NumImages(1), None, {"metric": "cycle_l1", "above": 0.5, "evaluations": 1})
    assert ScheduledEvaluator(translator, bound).has_diverged({"cycle_l1": 0.6}, None)


def test_one_image_is_enough_for_a_likelihood() -> None:
    likelihood = LikelihoodEvaluator(num_images=4, num_samples=2, batch_size=2, seed=0)
    assert ScheduledEvaluator(likelihood, EvaluationSchedule(NumImages(1), 1, None)).final_num_images == 1
    with pytest.raises(ValueError, match=r"^final_num_images=0 must be 1 or more"):
        ScheduledEvaluator(likelihood, EvaluationSchedule(NumImages(1), 0, None))


def test_better_is_lower_for_distances_and_higher_for_scores() -> None:
    distance = built()
    score = built(metrics={"is": {"_target_": "genimg.evaluation.metrics.InceptionScore", "splits": 2}})
    assert distance.is_better(1.0, 2.0)
    assert not distance.is_better(2.0, 1.0)
    assert not distance.is_better(1.0, 1.0)
    assert score.is_better(2.0, 1.0)
    assert not score.is_better(1.0, 2.0)
    assert not score.is_better(1.0, 1.0)
