"""Records, pictures and running means."""

import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from genimg.training import progress
from genimg.training.logger import Logger, write_hyperparameters
from genimg.training.progress import MeanMetrics, ProgressBar


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write_records(run_dir, *steps):
    logger = Logger(run_dir, step=0)
    for step in steps:
        logger.scalars(step, step * 8, {"loss/a": step / 3.0})
    logger.close("completed")


def test_scalars_become_one_line_each(tmp_path):
    write_records(tmp_path, 1, 2)
    assert records(tmp_path) == [
        {"step": 1, "images": 8, "loss/a": 1.0 / 3.0},
        {"step": 2, "images": 16, "loss/a": 2.0 / 3.0},
    ]


def test_a_resumed_run_drops_the_records_it_will_repeat_and_keeps_that_of_its_step(tmp_path):
    write_records(tmp_path, 10, 20, 30, 40)
    logger = Logger(tmp_path, step=20)
    assert [record["step"] for record in records(tmp_path)] == [10, 20]
    logger.scalars(30, 240, {"loss/a": 0.0})
    logger.close("completed")
    assert [record["step"] for record in records(tmp_path)] == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.glob("metrics*")) == ["metrics.jsonl"]


@pytest.mark.parametrize("unfinished", ['{"step": 20, "ima', '{"step": 2', "{", '{"images": 5}\n', "\0\0\0\0"])
def test_a_line_that_a_killed_run_did_not_finish_is_dropped(tmp_path, unfinished):
    write_records(tmp_path, 10)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(unfinished)
    logger = Logger(tmp_path, step=20)
    logger.scalars(30, 240, {"loss/a": 0.0})
    logger.close("completed")
    assert [record["step"] for record in records(tmp_path)] == [10, 30]


def test_pictures_are_grids_of_rounded_images(tmp_path):
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    logger = Logger(tmp_path, step=0)
    logger.pictures(3, 1234, {"samples": images})
    logger.close("completed")
    picture = np.asarray(Image.open(tmp_path / "samples" / "samples-000001234.png"))
    assert picture.shape == (10, 10, 3)  # two by two images of 2 px, three borders of 2 px
    corners = [picture[row, column, 0] for row in (2, 6) for column in (2, 6)]
    assert corners == [0, 128, 191, 255]  # round(127.5), round(191.25)


def test_means_are_over_the_values_added_since_the_last_pop():
    means = MeanMetrics()
    for value in (1.0, 2.0, 6.0):
        means.add({"every": torch.tensor(value)})
    means.add({"every": torch.tensor(3.0), "rare": torch.tensor(5.0)})
    assert means.pop() == {"every": 3.0, "rare": 5.0}
    assert means.pop() == {}
    means.add({"every": torch.tensor(7.0)})
    assert means.pop() == {"every": 7.0}


def test_adding_does_not_change_the_callers_tensors():
    means, value = MeanMetrics(), torch.tensor(1.0)
    means.add({"a": value})
    means.add({"a": torch.tensor(4.0)})
    assert value.item() == 1.0


def test_means_go_on_from_their_state_as_if_nothing_had_happened():
    values = [torch.rand((), generator=torch.Generator().manual_seed(i)) for i in range(10)]
    whole, first, second = MeanMetrics(), MeanMetrics(), MeanMetrics()
    for value in values:
        whole.add({"a": value})
    for value in values[:4]:
        first.add({"a": value})
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[4:]:
        second.add({"a": value})
    assert second.pop() == whole.pop()  # bit for bit


def test_a_state_that_was_taken_does_not_follow_later_values():
    means = MeanMetrics()
    means.add({"a": torch.tensor(1.0)})
    state = means.state_dict()
    means.add({"a": torch.tensor(9.0)})
    restored = MeanMetrics()
    restored.load_state_dict(state, torch.device("cpu"))
    assert restored.pop() == {"a": 1.0}


def test_hyperparameters_are_what_tensorboards_page_reads(tmp_path):
    config = {"optimizer": {"lr": 1e-3, "betas": [0.5, 0.9]}, "seed": 1, "on": True, "evaluation": {"stop_if": None}}
    write_hyperparameters(tmp_path, config, ["evaluation/fd5k", "evaluation/is5k"])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = events.summary_metadata
    experiment = HParamsPluginData.FromString(found["_hparams_/experiment"].plugin_data.content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["evaluation/fd5k", "evaluation/is5k"]
    assert {info.name for info in experiment.hparam_infos} == {"optimizer.lr", "optimizer.betas", "seed", "on"}
    session = HParamsPluginData.FromString(found["_hparams_/session_start_info"].plugin_data.content).session_start_info
    assert session.hparams["optimizer.lr"].number_value == 1e-3
    assert session.hparams["optimizer.betas"].string_value == "[0.5, 0.9]"
    assert session.hparams["on"].number_value == 1  # as PyTorch writes truth
    assert "_hparams_/session_end_info" in found


def test_without_a_terminal_a_training_logs_its_progress_every_ten_seconds(monkeypatch, caplog):
    now = 0.0

    class Clock:
        @staticmethod
        def monotonic():
            return now

    monkeypatch.setattr(progress, "time", Clock)
    caplog.set_level("INFO")
    bar = ProgressBar(total=1000, initial=200)
    bar.show({"loss/a": 0.5})
    for seconds in (4.0, 8.0, 12.0, 16.0):
        now = seconds
        bar.advance(100)
    bar.close()
    assert caplog.messages == ["500 of 1000 images, 25 images/s, 00:20 left, a=0.5"]


def test_a_finished_run_shows_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    ProgressBar(total=1000, initial=1000).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_numbers_beside_a_bar_are_cut_between_names(monkeypatch, columns):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "columns_of", lambda stream: columns)
    bar = ProgressBar(total=1000, initial=0)
    bar.show({f"loss/number{i}": 0.25 for i in range(9)})
    bar.close()
    shown = re.findall(r"(\S+=[\d.]*)", terminal.getvalue())
    assert shown
    assert all(re.fullmatch(r"number\d=0\.25", each) for each in shown)
