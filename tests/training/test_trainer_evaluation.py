"""What the trainer makes of its evaluations: the best checkpoint, stopping, the final one, and what is recorded."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import EvaluationInterruptedError
from genimg.evaluation.metrics import FrechetDistance, InceptionScore
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method
from genimg.training import checkpoint
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.device import Precision
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.training.logger import Logger
from genimg.training.performance import Performance
from genimg.training.schedules import Constant, OptimizerSchedules
from genimg.training.state import TrainerSettings, TrainingState
from genimg.training.trainer import StopRequestedError, Trainer, WorseningError
from genimg.utils.durations import NumImages

CPU = torch.device("cpu")
BATCH = 4


class OneWeight(Method):
    """A single number, which grows by the learning rate in each step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def parameter_groups(self):
        return {"only": [self.weight]}

    def step(self, batch, progress, update):
        return update("only", lambda _: (-self.weight, {}), batch)

    def draw(self, indices, seed):
        return {"latent": torch.zeros(len(indices), 1)}

    def sample(self, batch):
        return torch.zeros(len(batch["latent"]), 1, 2, 2)

    def check(self, image):
        pass

    def preview(self, batch, drawn):
        return {}


class NoExtractor(Extractor):
    """Has a name, and is never run."""

    def __init__(self):
        super().__init__(
            name="x", network=nn.Identity(), weights_sha256=None, resize="none", channels="as they are", has_logits=True
        )

    def extract(self, images):
        raise AssertionError("the evaluator is scripted")


class ScriptedEvaluator(Evaluator):
    """Gives the values of a script, one after the other; remembers its calls."""

    def __init__(
        self, script, *, metric=None, stop_if=None, final_num_images=None, seconds=0.0, interval=BATCH, intervals=None
    ):
        super().__init__(
            extractor=NoExtractor(),
            metrics={"first": metric or FrechetDistance()},
            num_images=10,
            num_real=None,
            batch_size=5,
            seed=0,
            bootstrap=0,
            reconstructions=0,
            cache_dir="/nowhere",
        )
        self.schedule = EvaluationSchedule(NumImages(interval), final_num_images, stop_if)
        self.script = list(script)
        self.seconds = seconds
        self.intervals = intervals or {}
        self.calls = []

    def evaluate(self, method, data, device, should_stop=lambda: False, num_images=None, *, weights="raw"):
        self.calls.append((round(float(method.weight.detach())), num_images))
        time.sleep(self.seconds)
        value = self.script.pop(0)
        if isinstance(value, Exception):
            raise value
        count = num_images or self.num_images
        name = self.metrics["first"].short_name
        provenance = {"call": len(self.calls), "num_images": count}
        return Evaluation({f"{name}{count}_x": value, "other": -value}, provenance, self.intervals)


@pytest.fixture
def make_trainer(tmp_path):
    def make(evaluator, steps, *, checkpoint_interval=1000, folder="run"):
        method = OneWeight()
        pixels = np.zeros((BATCH, 1, 2, 2), dtype=np.uint8)
        source = ArrayDataset("zeros", pixels)
        settings = TrainerSettings(
            duration=NumImages(steps * BATCH),
            batch_size=BATCH,
            accumulation=1,
            max_grad_norm=None,
            log_interval=NumImages(1000),
            preview_interval=NumImages(1000),
            checkpoint_interval=NumImages(checkpoint_interval * BATCH),
            preview_images=1,
            keep_last=100,
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        return Trainer(
            settings,
            method,
            {"only": torch.optim.SGD(method.parameters(), lr=1.0)},
            OptimizerSchedules(Constant(warmup=NumImages(0))),
            ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU),
            ScheduledEvaluator(evaluator, evaluator.schedule),
            precision=Precision("fp32", CPU),
            performance=Performance(channels_last=True, fused_optimizer=False, compile=False),
            seed=0,
            folder=CheckpointFolder(tmp_path / folder / "checkpoints", keep_last=100),
            make_logger=lambda step, evaluated: Logger(tmp_path / folder, step=step, evaluated=evaluated),
            describe={},
        )

    return make


def saved(trainer, name="last"):
    """Step and training state of a checkpoint."""
    state = checkpoint.load(trainer.folder.path / f"{name}.pt")
    return SimpleNamespace(
        weight=round(float(state["method"]["weight"])), state=TrainingState(**state["training"]), whole=state
    )


def records(trainer):
    """The evaluations of metrics.jsonl."""
    lines = (trainer.folder.path.parent / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "provenance" in record]


def test_a_training_that_only_grows_worse_is_stopped_with_its_checkpoint_written(make_trainer):
    evaluator = ScriptedEvaluator([10.0, 5.0, 16.0, 17.0, 1.0], stop_if={"factor": 3, "evaluations": 2})
    trainer = make_trainer(evaluator, 5)
    with pytest.raises(WorseningError):
        trainer.fit()
    assert [step for step, _ in evaluator.calls] == [1, 2, 3, 4]
    last, best = saved(trainer), saved(trainer, "best")
    assert (last.weight, last.state.images, last.state.evaluated_at) == (4, 16, 16)
    assert last.state.worse_evaluations == 2
    assert last.state.last["fd10_x"] == 17.0
    assert (best.weight, best.state.best_images) == (2, 8)
    assert last.state.best["fd10_x"] == 5.0
    assert trainer.state == last.state


def test_a_training_whose_named_metric_is_beyond_its_bound_is_stopped_though_the_first_one_improves(make_trainer):
    evaluator = ScriptedEvaluator([9.0, 8.0, 7.0, 6.0], stop_if={"metric": "other", "above": -7.5, "evaluations": 2})
    trainer = make_trainer(evaluator, 5)  # the other one is the first one's negative
    with pytest.raises(WorseningError):
        trainer.fit()
    assert [step for step, _ in evaluator.calls] == [1, 2, 3, 4]
    assert trainer.state.worse_evaluations == 2
    assert trainer.state.best_images == trainer.state.images


@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_it_takes_as_many_bad_evaluations_in_a_row_as_the_settings_say(make_trainer, evaluations):
    evaluator = ScriptedEvaluator([1.0] + [9.0] * 5, stop_if={"factor": 2, "evaluations": evaluations})
    with pytest.raises(WorseningError):
        make_trainer(evaluator, 6).fit()
    assert len(evaluator.calls) == 1 + evaluations


def test_a_good_evaluation_in_between_begins_the_count_anew(make_trainer):
    script = [5.0, 16.0, 14.9, 16.0, 15.0, 16.0]  # 15 is three times the best, and not worse than that
    evaluator = ScriptedEvaluator(script, stop_if={"factor": 3, "evaluations": 2})
    trainer = make_trainer(evaluator, 6)
    state = trainer.fit()
    assert len(evaluator.calls) == 6
    assert state.worse_evaluations == 1
    counts = [torch.load(path, weights_only=True)["training"]["worse_evaluations"]
              for path in sorted(trainer.folder.path.glob("step-*.pt"))]  # fmt: skip
    assert counts == [0, 1, 0, 1, 0, 1]


def test_a_score_that_is_better_when_higher_stops_a_training_when_it_falls(make_trainer):
    evaluator = ScriptedEvaluator([6.0, 2.9, 2.0], metric=InceptionScore(splits=2), stop_if={"factor": 2, "evaluations": 2})
    trainer = make_trainer(evaluator, 6)
    with pytest.raises(WorseningError):
        trainer.fit()
    assert saved(trainer).state.worse_evaluations == 2
    assert saved(trainer, "best").weight == 1


def test_without_stop_if_a_training_goes_on_however_bad_it_is(make_trainer):
    evaluator = ScriptedEvaluator([1.0, 1e6, 1e9, 1e12])
    state = make_trainer(evaluator, 4).fit()
    assert state.images == 16
    assert state.worse_evaluations == 0


def test_bad_evaluations_are_counted_on_after_resuming(make_trainer):
    stop_if = {"factor": 3, "evaluations": 3}
    first = make_trainer(ScriptedEvaluator([5.0, 16.0, 17.0], stop_if=stop_if), 3)
    assert first.fit().worse_evaluations == 2
    evaluator = ScriptedEvaluator([18.0, 1.0], stop_if=stop_if)
    second = make_trainer(evaluator, 5)
    second.load_state_dict(saved(first).whole)
    with pytest.raises(WorseningError):
        second.fit()
    assert [step for step, _ in evaluator.calls] == [4]
    assert saved(second).state.worse_evaluations == 3


BEST = {
    "a distance": (FrechetDistance(), [5.0, 3.0, 4.0, 3.0], 2),
    "a score": (InceptionScore(splits=2), [3.0, 5.0, 4.0, 5.0], 2),
    "a score that falls": (InceptionScore(splits=2), [5.0, 4.0, 3.0, 2.0], 1),
    "a distance that falls": (FrechetDistance(), [5.0, 4.0, 3.0, 2.0], 4),
}


@pytest.mark.parametrize(("metric", "script", "best"), BEST.values(), ids=BEST)
def test_the_best_checkpoint_is_that_of_the_best_first_value(make_trainer, metric, script, best):
    evaluator = ScriptedEvaluator(script, metric=metric)
    trainer = make_trainer(evaluator, 4)
    state = trainer.fit()
    assert saved(trainer, "best").weight == best
    assert saved(trainer).weight == 4
    assert state.best_images == best * BATCH
    assert state.best[evaluator.primary] == script[best - 1]
    assert state.best["other"] == -script[best - 1]
    assert state.last[evaluator.primary] == script[-1]


def test_the_best_says_over_how_many_evaluations_it_is_taken_also_after_resuming(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, 3.0, 4.0]), 3)
    assert first.fit().best_description == "best of 3 evaluations, at 8 images"
    second = make_trainer(ScriptedEvaluator([9.0, 2.0]), 5)
    second.load_state_dict(saved(first).whole)
    assert second.fit().best_description == "best of 5 evaluations, at 20 images"
    second.state.forget_evaluations()
    assert second.state.num_evaluations == 0


def test_evaluations_that_were_not_counted_are_not_said_to_be(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, 3.0]), 2)
    first.fit()
    older = saved(first).whole
    del older["training"]["num_evaluations"]
    second = make_trainer(ScriptedEvaluator([4.0]), 3)
    second.load_state_dict(older)
    assert second.fit().best_description == "best, at 8 images"


def test_the_final_evaluation_happens_once_with_its_own_number_of_images(make_trainer):
    evaluator = ScriptedEvaluator([5.0, 4.0, 3.5], final_num_images=1000)
    trainer = make_trainer(evaluator, 2)
    state = trainer.fit()
    assert evaluator.calls == [(1, None), (2, None), (2, 1000)]
    assert state.final["metrics"] == {"fd1000_x": 3.5, "other": -3.5}
    assert state.final["provenance"] != state.provenance
    assert state.last["fd10_x"] == 4.0
    assert state.best["fd10_x"] == 4.0
    assert saved(trainer).state.final == state.final
    first, last, final = records(trainer)
    assert [first["evaluation/fd10_x"], last["evaluation/fd10_x"], final["final/fd1000_x"]] == [5.0, 4.0, 3.5]
    assert not [key for key in final if key.startswith("evaluation/")]


def test_the_final_evaluation_is_not_repeated_when_a_finished_run_is_resumed(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, 4.0, 3.5], final_num_images=1000), 2)
    state = first.fit()
    evaluator = ScriptedEvaluator([], final_num_images=1000)
    second = make_trainer(evaluator, 2)
    second.load_state_dict(saved(first).whole)
    assert second.fit().final == state.final
    assert evaluator.calls == []
    assert len(records(second)) == 3


def test_a_longer_training_evaluates_finally_at_its_own_end(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, 4.0], final_num_images=1000), 1)
    first.fit()
    evaluator = ScriptedEvaluator([3.0, 2.0], final_num_images=1000)
    second = make_trainer(evaluator, 2)
    second.load_state_dict(saved(first).whole)
    assert second.fit().final["metrics"]["fd1000_x"] == 2.0
    assert evaluator.calls == [(2, None), (2, 1000)]


def test_a_final_evaluation_that_was_interrupted_is_made_up_for(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, EvaluationInterruptedError()], final_num_images=1000), 1)
    with pytest.raises(StopRequestedError):
        first.fit()
    assert saved(first).state.final == {}
    evaluator = ScriptedEvaluator([3.0], final_num_images=1000)
    second = make_trainer(evaluator, 1)
    second.load_state_dict(saved(first).whole)
    assert second.fit().final["metrics"]["fd1000_x"] == 3.0
    assert evaluator.calls == [(1, 1000)]


def test_an_interrupted_evaluation_leaves_a_checkpoint_and_is_repeated_after_resuming(make_trainer):
    first = make_trainer(ScriptedEvaluator([5.0, EvaluationInterruptedError()]), 3)
    with pytest.raises(StopRequestedError):
        first.fit()
    assert (saved(first).weight, saved(first).state.evaluated_at) == (2, 4)
    evaluator = ScriptedEvaluator([4.0, 3.0])
    second = make_trainer(evaluator, 3)
    second.load_state_dict(saved(first).whole)
    second.fit()
    assert [step for step, _ in evaluator.calls] == [2, 3]
    assert [record["evaluation/fd10_x"] for record in records(second)] == [5.0, 4.0, 3.0]


def test_no_evaluation_is_final_where_none_is_requested(make_trainer):
    evaluator = ScriptedEvaluator([5.0, 4.0])
    assert make_trainer(evaluator, 2).fit().final == {}
    assert len(evaluator.calls) == 2


def test_evaluations_come_at_their_interval_and_at_the_end(make_trainer):
    evaluator = ScriptedEvaluator([5.0] * 4, interval=3 * BATCH)
    make_trainer(evaluator, 10).fit()
    assert [step for step, _ in evaluator.calls] == [3, 6, 9, 10]


def test_the_time_of_evaluations_is_counted_apart_from_that_of_training(make_trainer):
    evaluator = ScriptedEvaluator([5.0, 4.0, 3.0], seconds=0.2, final_num_images=1000)
    trainer = make_trainer(evaluator, 2)
    state = trainer.fit()
    assert state.evaluation_seconds >= 0.6
    assert state.evaluation_seconds == pytest.approx(sum(r["time/evaluation_seconds"] for r in records(trainer)), abs=1e-9)
    assert saved(trainer).state.evaluation_seconds == state.evaluation_seconds
    assert [record["time/evaluation_seconds"] >= 0.2 for record in records(trainer)] == [True] * 3

    whole = saved(trainer).whole
    longer = make_trainer(ScriptedEvaluator([5.0, 4.0], seconds=0.2, final_num_images=1000), 3)
    longer.load_state_dict(whole)
    total = longer.fit().evaluation_seconds
    assert total >= state.evaluation_seconds + 0.4
    assert total == pytest.approx(sum(r["time/evaluation_seconds"] for r in records(longer)), abs=1e-9)


def test_the_training_rate_leaves_evaluations_out(make_trainer):
    trainer = make_trainer(ScriptedEvaluator([5.0, 4.0, 3.0], seconds=0.5), 3)
    start = time.monotonic()
    state = trainer.fit()
    elapsed = time.monotonic() - start
    assert 0.0 < state.seconds <= elapsed - 3 * 0.5


def test_an_evaluations_provenance_is_kept_and_recorded(make_trainer):
    trainer = make_trainer(ScriptedEvaluator([5.0, 4.0]), 2)
    state = trainer.fit()
    assert state.provenance == {"call": 2, "num_images": 10}
    assert saved(trainer).state.provenance == state.provenance
    assert [record["provenance"]["call"] for record in records(trainer)] == [1, 2]


def test_intervals_are_recorded_beside_their_values(make_trainer):
    trainer = make_trainer(ScriptedEvaluator([5.0], intervals={"fd10_x": (4.5, 5.5)}), 1)
    trainer.fit()
    (record,) = records(trainer)
    assert (record["evaluation/fd10_x_low"], record["evaluation/fd10_x"], record["evaluation/fd10_x_high"]) == (4.5, 5.0, 5.5)


def test_forgetting_evaluations_leaves_nothing_to_compare_with(make_trainer):
    trainer = make_trainer(ScriptedEvaluator([5.0, 4.0], final_num_images=1000, stop_if={"factor": 2, "evaluations": 1}), 1)
    state = trainer.fit()
    state.worse_evaluations = 1
    state.forget_evaluations()
    fresh = TrainingState()
    for field in ("evaluated_at", "last", "best", "best_images", "worse_evaluations", "final"):
        assert getattr(state, field) == getattr(fresh, field)
    assert state.images == BATCH


def test_a_state_of_before_these_evaluations_can_still_be_read():
    old = {"images": 64, "evaluated_at": 64, "last": {"fid5k": 3.0}, "best": {"fid5k": 3.0}, "best_images": 64}
    state = TrainingState(**old)
    assert state.worse_evaluations == 0
    assert state.final == {}
    assert state.evaluation_seconds == 0.0
