"""When a training that only grows worse is stopped."""

import pytest
from torch import nn

from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.metrics import FrechetDistance, InceptionScore
from genimg.evaluation.watch import DivergenceWatch
from genimg.interfaces import Images


class NoExtractor(Extractor):
    """Has a name and logits, and is never run."""

    def __init__(self):
        super().__init__(
            name="none", network=nn.Identity(), weights_sha256=None, resize="none", channels="as they are", has_logits=True
        )

    def extract(self, images):
        raise AssertionError("nothing is to be evaluated here")


def make_evaluator(metric, stop_if):
    return Evaluator(
        extractor=NoExtractor(),
        metrics={"only": metric},
        num_images=10,
        num_real=None,
        batch_size=5,
        interval=Images(10),
        seed=0,
        bootstrap=0,
        reconstructions=0,
        final_num_images=None,
        stop_if=stop_if,
        cache_dir=None,
    )


def test_a_watch_is_made_of_its_settings():
    assert DivergenceWatch.of({"factor": 3, "evaluations": 2}) == DivergenceWatch(3.0, 2)
    assert DivergenceWatch.of({"evaluations": 1, "factor": 1.01}) == DivergenceWatch(1.01, 1)


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
    with pytest.raises(ValueError, match=r"evaluation\.stop_if=.* must have the keys factor and evaluations"):
        DivergenceWatch.of(settings)


@pytest.mark.parametrize(
    ("factor", "evaluations"),
    [(1.0, 2), (0.5, 2), (-3, 2), ("3", 2), (None, 2), (True, 2), (3.0, 0), (3.0, -1), (3.0, 1.5), (3.0, True), (3.0, None)],
)
def test_values_that_make_no_sense_are_refused(factor, evaluations):
    with pytest.raises(ValueError, match=r"factor must be above 1, and evaluations a whole number"):
        DivergenceWatch.of({"factor": factor, "evaluations": evaluations})


@pytest.mark.parametrize(("value", "diverged"), [(5.0, False), (29.9, False), (30.0, False), (30.1, True), (1e9, True)])
def test_a_distance_has_diverged_above_the_factor_times_its_best(value, diverged):
    evaluator = make_evaluator(FrechetDistance(), {"factor": 3, "evaluations": 2})
    assert evaluator.stop_if == DivergenceWatch(3.0, 2)
    assert evaluator.has_diverged(value, best=10.0) == diverged


@pytest.mark.parametrize(("value", "diverged"), [(9.0, False), (2.1, False), (2.0, False), (1.9, True), (1.0, True)])
def test_a_score_has_diverged_below_its_best_divided_by_the_factor(value, diverged):
    evaluator = make_evaluator(InceptionScore(splits=2), {"factor": 4, "evaluations": 2})
    assert evaluator.has_diverged(value, best=8.0) == diverged


@pytest.mark.parametrize("metric", [FrechetDistance(), InceptionScore(splits=2)])
def test_nothing_diverges_without_a_watch(metric):
    evaluator = make_evaluator(metric, None)
    assert evaluator.stop_if is None
    assert not evaluator.has_diverged(1e9, best=1.0)
    assert not evaluator.has_diverged(1e-9, best=1.0)


def test_the_best_value_itself_has_never_diverged():
    for metric in (FrechetDistance(), InceptionScore(splits=2)):
        assert not make_evaluator(metric, {"factor": 1.5, "evaluations": 1}).has_diverged(2.0, best=2.0)


def test_settings_in_the_wrong_form_are_refused_when_the_evaluator_is_built():
    with pytest.raises(ValueError, match=r"evaluation\.stop_if"):
        make_evaluator(FrechetDistance(), {"factor": 3})
