"""When a training that only grows worse is stopped."""

import pytest
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.metrics import FrechetDistance, InceptionScore
from genimg.training.early_stopping import EarlyStopping
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.utils.durations import NumImages


class NoExtractor(Extractor):
    """Has a name and logits, and is never run."""

    def __init__(self):
        super().__init__(
            name="none", network=nn.Identity(), weights_sha256=None, resize="none", channels="as they are", has_logits=True
        )

    def extract(self, images):
        raise AssertionError("nothing is to be evaluated here")


def make_evaluator(metric, stop_if):
    evaluator = Evaluator(
        extractor=NoExtractor(),
        metrics={"only": metric},
        num_images=10,
        num_real=None,
        batch_size=5,
        seed=0,
        bootstrap=0,
        reconstructions=0,
        cache_dir=None,
    )
    return ScheduledEvaluator(evaluator, EvaluationSchedule(NumImages(10), None, stop_if))


def test_a_watch_is_made_of_its_settings():
    assert EarlyStopping.of({"factor": 3, "evaluations": 2}) == EarlyStopping(3.0, 2)
    assert EarlyStopping.of({"evaluations": 1, "factor": 1.01}) == EarlyStopping(1.01, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"factor": 3.0},
        {"evaluations": 2},
        {"factor": 3.0, "evaluations": 2, "patience": 1},
        {"factor": 3.0, "evaluation": 2},
    ],
    ids=str,
)
def test_other_keys_are_refused(settings):
    with raises(ConfigError, "stop_if", word="either"):
        EarlyStopping.of(settings)


@pytest.mark.parametrize(
    ("factor", "evaluations"),
    [(1.0, 2), (0.5, 2), (-3, 2), ("3", 2), (None, 2), (True, 2), (3.0, 0), (3.0, -1), (3.0, 1.5), (3.0, True), (3.0, None)],
)
def test_values_that_make_no_sense_are_refused(factor, evaluations):
    with raises(ConfigError, word="stop_if"):
        EarlyStopping.of({"factor": factor, "evaluations": evaluations})


@pytest.mark.parametrize(("value", "diverged"), [(5.0, False), (29.9, False), (30.0, False), (30.1, True), (1e9, True)])
def test_a_distance_has_diverged_above_the_factor_times_its_best(value, diverged):
    evaluator = make_evaluator(FrechetDistance(), {"factor": 3, "evaluations": 2})
    assert evaluator.stop_if == EarlyStopping(3.0, 2)
    assert evaluator.has_diverged({evaluator.primary: value}, best=10.0) == diverged


@pytest.mark.parametrize(("value", "diverged"), [(9.0, False), (2.1, False), (2.0, False), (1.9, True), (1.0, True)])
def test_a_score_has_diverged_below_its_best_divided_by_the_factor(value, diverged):
    evaluator = make_evaluator(InceptionScore(splits=2), {"factor": 4, "evaluations": 2})
    assert evaluator.has_diverged({evaluator.primary: value}, best=8.0) == diverged


@pytest.mark.parametrize("metric", [FrechetDistance(), InceptionScore(splits=2)])
def test_nothing_diverges_without_a_watch(metric):
    evaluator = make_evaluator(metric, None)
    assert evaluator.stop_if is None
    assert not evaluator.has_diverged({evaluator.primary: 1e9}, best=1.0)
    assert not evaluator.has_diverged({evaluator.primary: 1e-9}, best=1.0)


def test_the_best_value_itself_has_never_diverged():
    for metric in (FrechetDistance(), InceptionScore(splits=2)):
        evaluator = make_evaluator(metric, {"factor": 1.5, "evaluations": 1})
        assert not evaluator.has_diverged({evaluator.primary: 2.0}, best=2.0)


def test_settings_in_the_wrong_form_are_refused_when_the_evaluator_is_built():
    with raises(ConfigError, "stop_if"):
        make_evaluator(FrechetDistance(), {"factor": 3})


BOUNDS = [
    (
        {"metric": "memorised", "above": 0.5, "evaluations": 2},
        [("memorised10_none", 0.5, False), ("memorised10_none", 0.51, True)],
    ),
    ({"metric": "memorised10_none", "above": 0, "evaluations": 1}, [("memorised10_none", -0.1, False)]),
    ({"metric": "fd", "below": 1.0, "evaluations": 1}, [("fd10_none", 1.0, False), ("fd10_none", 0.9, True)]),
    ({"metric": "is", "below": 2, "evaluations": 1}, [("is10_none", 1.9, True), ("is5k", 2.1, False)]),
]


@pytest.mark.parametrize(("settings", "cases"), BOUNDS)
def test_a_bound_of_a_named_metric_ends_a_training_whatever_the_primary_one_is(settings, cases):
    evaluator = make_evaluator(FrechetDistance(), settings)
    for name, value, bad in cases:
        others = {"precision10_none": 0.7, "is10_none_std": 9.0, "fd10_none": 3.0} | {name: value}
        assert evaluator.has_diverged(others, best=0.001) == bad


@pytest.mark.parametrize("metric", ["coverage", "f", "fd10", "is10_none_s"])
def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(metric):
    evaluator = make_evaluator(FrechetDistance(), {"metric": metric, "above": 1.0, "evaluations": 1})
    with raises(ConfigError, "stop_if.metric", word="none_std"):
        evaluator.has_diverged({"fd10_none": 1.0, "is10_none": 2.0, "is10_none_std": 0.1}, best=1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"metric": "fd", "above": 1.0, "below": 0.0, "evaluations": 1},
        {"metric": "fd", "factor": 3, "evaluations": 1},
        {"metric": "fd", "evaluations": 1},
        {"above": 1.0, "evaluations": 1},
        {"metric": "fd", "above": "high", "evaluations": 1},
        {"metric": "fd", "above": True, "evaluations": 1},
        {"metric": "fd", "above": float("nan"), "evaluations": 1},
        {"metric": 3, "above": 1.0, "evaluations": 1},
        {"metric": "fd", "above": 1.0, "evaluations": 0},
    ],
    ids=str,
)
def test_bounds_that_make_no_sense_are_refused(settings):
    with raises(ConfigError, word="stop_if"):
        EarlyStopping.of(settings)
