"""``dry_run=true``, ``trainer.accumulation=auto`` and ``performance=``, through the command line."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from fork_server import run_command
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from test_resume import MODELS, TINY, losses_of, records

from genimg.api import dry_run, estimates
from genimg.api.assemble import _checked_graphs, assemble
from genimg.api.dry_run import bytes_of, rehearse
from genimg.config.compose import Config
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.training import autotune, checkpoint
from genimg.training.components import TrainingComponents
from genimg.training.decisions import Decisions
from genimg.training.ema import PowerFunction
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.training.logger import SilentLogger
from genimg.training.performance import Performance, _trained_networks
from genimg.utils.durations import NumImages
from genimg.utils.paths import config_dir


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def train(arguments: list[str], environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    process = run_command("train", *arguments, cwd=cwd, env=environment)
    return process.returncode, process.stdout + process.stderr


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("family", MODELS)
def test_a_dry_run_says_what_a_training_takes_and_writes_nothing(
    family: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    root = make_folder(tmp_path / "images", {"cats": 30, "dogs": 2})
    arguments = [*TINY[1:], *MODELS[family], "data=folder", f"data.root={root}", "evaluation=shapes", "dry_run=true",
                 "trainer.duration=5 epochs", "evaluation.interval=2 epochs", "evaluation.num_images=50"]  # fmt: skip
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    status, output = train(arguments, environment, tmp_path)
    assert status == 0, output
    assert "classes: 2, cats 30, dogs 2" in output
    assert "the largest class has 30 images and the smallest 2" in output
    assert "data check: 32 images read" in output
    seconds, rate = re.search(r"step: ([\d.]+) ms, (\d+) images/s", output).groups()  # type: ignore[union-attr]
    assert 16 / (float(seconds) / 1e3) == pytest.approx(float(rate), rel=0.02)
    assert re.search(r"training for 5 epochs: about \d+ s", output)
    total = r"\d+ s in total, \d+ % of training and evaluation together"
    assert re.search(rf"3 evaluations of 50 images, about \d+ s each: {total}", output)
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert after == before


def test_a_dry_run_finds_corrupt_images(tmp_path: Path, environment: dict[str, str]) -> None:
    root = make_folder(tmp_path / "images", {"cats": 30})
    (root / "cats" / "7.png").write_bytes(b"no image")
    arguments = [*TINY[1:], *MODELS["dcgan"], "data=folder", f"data.root={root}", "evaluation=none", "dry_run=true"]
    status, output = train(arguments, environment, tmp_path)
    assert status == 2
    assert "7.png" in output
    assert "Traceback" not in output


def test_the_averages_are_part_of_the_cost(tmp_path: Path, parts: TrainingComponents, caplog: pytest.LogCaptureFixture) -> None:
    power = PowerFunction(length=0.05, num_snapshots=7)
    parts = replace(parts, profiles={"first": power, "second": PowerFunction(length=0.1, num_snapshots=0)})
    with caplog.at_level(logging.INFO):
        rehearse(parts, {"trainer": {"duration": "4 steps"}, "model": {}, "data": {}})
    assert "snapshots of the average first: at most 7 of 0 MB each" in caplog.text
    assert "average second" not in caplog.text
    trainer = parts.trainer(folder=tmp_path, make_logger=lambda *_: SilentLogger(), describe={})
    state = trainer.state_dict()
    size, generator = bytes_of(state), bytes_of(parts.method.generator.state_dict())
    assert size == bytes_of({key: value for key, value in state.items() if key != "averages"}) + 2 * generator
    checkpoint.save(state, tmp_path / "one.pt")
    assert size < (tmp_path / "one.pt").stat().st_size


@pytest.mark.parametrize(
    ("seconds", "final", "share", "advised"),
    [(0.001, None, 9, False), (0.01, None, 50, True), (0.001, 200, 13, False), (0.0042, None, 30, False)],
    ids=["cheap", "as long as training", "with a final evaluation", "below the limit"],
)
def test_the_cost_of_evaluations_is_a_share_of_the_run(
    seconds: float, final: int | None, share: int, advised: bool, parts: TrainingComponents, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Four evaluations of 100 images beside 4 s of training."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=["evaluation=shapes", "evaluation.num_images=100"]))
    evaluator = build_evaluator(config["evaluation"], Builder())  # type: ignore[call-overload,index]
    schedule = EvaluationSchedule(interval=NumImages(16), final_num_images=final or None, stop_if=None)
    parts = replace(
        parts,
        evaluator=ScheduledEvaluator(evaluator, schedule),  # type: ignore[arg-type]
        settings=replace(parts.settings, duration=NumImages(64)),
    )
    monkeypatch.setattr(dry_run, "evaluation_seconds", lambda *_: (0.75 * seconds, 0.25 * seconds))
    trainer = parts.trainer(folder=tmp_path, make_logger=lambda *_: SilentLogger(), describe={})
    with caplog.at_level(logging.INFO):
        dry_run._report_evaluation(parts, trainer, parts.data, 4.0)
    assert "4 evaluations of 100 images" in caplog.text
    assert f", {share} % of training and evaluation together" in caplog.text
    assert ("and one of 200 images at the end" in caplog.text) == bool(final)
    advice = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [f"evaluations take about {share} % of the run" in each for each in advice] == [True] * advised
    assert all("evaluation.num_images" in each and "steps" not in each for each in advice)  # a GAN has no steps


def test_a_batch_is_enlarged_until_it_takes_long_enough(parts: TrainingComponents, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes 0.1 s and 0.02 s for each image; the first one takes 5 s more."""
    counts: list[int] = []

    def seconds(_: object, count: int) -> float:
        counts.append(count)
        return 0.1 + 0.02 * count + 5.0 * (len(counts) == 1)

    monkeypatch.setattr(estimates, "_seconds", seconds)
    assert estimates._seconds_per_image(lambda _: torch.zeros(1), 250) == pytest.approx(1.38 / 64)
    assert counts == [4, 4, 16, 64]


@pytest.mark.parametrize("value", ["1", "maybe"])
def test_a_dry_run_is_true_or_false(value: str, tmp_path: Path, environment: dict[str, str]) -> None:
    status, output = train([*TINY, "evaluation=none", "run_dir=run", f"dry_run={value}"], environment, tmp_path)
    assert status == 2
    assert f"error: dry_run={value} must be true or false" in output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_a_run_as_it_is(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.duration=4 steps", "run_dir=run"]
    assert train(arguments, environment, tmp_path)[0] == 0
    (tmp_path / "run" / "checkpoints" / "step-00000099.pt.genimg-0123456789abcdef.tmp").mkdir()  # of a process that saves now
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, output = train([*arguments, "dry_run=true"], environment, tmp_path)
    assert status == 0, output
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_automatic_accumulation_is_one_on_a_cpu_and_recorded(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.accumulation=auto", "run_dir=run"]
    status, output = train([*arguments, "trainer.duration=4 steps"], environment, tmp_path)
    assert status == 0, output
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["decisions"]["accumulation"] == 1
    status, output = train([*arguments, "trainer.duration=8 steps"], environment, tmp_path)  # continues
    assert status == 0, output
    assert "resuming from" in output


@pytest.fixture
def parts(tmp_path: Path) -> TrainingComponents:
    overrides = [*TINY, *MODELS["dcgan"], "evaluation=none", "run_dir=unused", "precision=fp32"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = Config(OmegaConf.to_container(compose("train", overrides=overrides)))  # type: ignore[arg-type]
    return assemble(config, "cpu").components


@pytest.mark.parametrize(("fits_from", "found"), [(1, 1), (3, 4), (16, 16)])
def test_accumulation_grows_until_a_step_fits_and_the_parts_stay_as_they_were(
    fits_from: int, found: int, parts: TrainingComponents
) -> None:
    """Every trial is a real one of two steps on the CPU; only its outcome is made up."""
    before = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
    changed, tried = [], []

    def trial(candidate: TrainingComponents) -> bool:
        assert autotune.fits(candidate)
        changed.append(any(not torch.equal(v, before[k]) for k, v in parts.method.state_dict().items()))
        tried.append(candidate.settings.accumulation)
        return candidate.settings.accumulation >= fits_from

    tuned = autotune.search_accumulation(parts, trial)
    assert tried == [n for n in (1, 2, 4, 8, 16) if n <= found]
    assert all(changed)
    assert tuned.settings.accumulation == found
    for name, tensor in tuned.method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in tuned.method.parameters())
    assert not any(optimizer.state for optimizer in tuned.optimizers.values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")])
def test_out_of_memory_means_that_a_step_does_not_fit(
    error: RuntimeError, parts: TrainingComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(parts.method), "step", step)
    assert not autotune.fits(parts)
    with raises(ConfigError, word="single"):
        autotune.search_accumulation(parts, autotune.fits)


def test_other_errors_of_a_trial_are_not_taken_for_a_lack_of_memory(
    parts: TrainingComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(parts.method), "step", step)
    with raises(RuntimeError, word="bug"):
        autotune.fits(parts)


@pytest.mark.parametrize("value", ["64.5", "null", "-4"])
def test_a_wrong_batch_size_is_refused_with_automatic_accumulation_too(
    value: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.accumulation=auto", f"trainer.batch_size={value}"]
    status, output = train(arguments, environment, tmp_path)
    assert status == 2
    assert re.search(r"error: trainer\.batch_size=\S+ must be (1 or more images|a whole number)", output), output


@pytest.mark.parametrize("family", MODELS)
def test_the_plain_path_and_the_fast_path_have_the_same_losses(
    family: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [*TINY, *MODELS[family], "evaluation=none", "trainer.duration=8 steps", "precision=fp32"]
    for name in ("auto", "plain"):
        status, output = train([*arguments, f"performance={name}", f"run_dir={name}"], environment, tmp_path)
        assert status == 0, output
        assert f"performance: {'channels last, fused optimizer' if name == 'auto' else 'plain'}\n" in output
    assert losses_of(tmp_path / "auto") == [pytest.approx(record, rel=1e-3) for record in losses_of(tmp_path / "plain")]


@pytest.mark.parametrize(("first", "then"), [("plain", "auto"), ("auto", "plain")])
def test_a_run_continues_with_another_performance(first: str, then: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """The optimizers' state was saved in another memory format."""
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "precision=fp32"]
    for name, run, steps in ((first, "run", 8), (then, "run", 12), (then, "whole", 12)):
        duration = f"trainer.duration={steps} steps"
        status, output = train([*arguments, f"performance={name}", f"run_dir={run}", duration], environment, tmp_path)
        assert status == 0, output
        assert ("performance is " in output) == ((name, run, steps) == (then, "run", 12))  # a warning: not bit for bit
    assert losses_of(tmp_path / "run") == [pytest.approx(record, rel=1e-2) for record in losses_of(tmp_path / "whole")]


def test_bfloat16_has_the_losses_of_float32_to_its_own_precision(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["vae"], "evaluation=none", "trainer.duration=8 steps"]
    for name in ("fp32", "bf16"):
        status, output = train([*arguments, f"precision={name}", f"run_dir={name}"], environment, tmp_path)
        assert status == 0, output
    one, other = losses_of(tmp_path / "fp32"), losses_of(tmp_path / "bf16")
    for a, b in zip(one, other, strict=True):
        losses = [name for name in a if name.startswith("loss/")]
        assert losses
        assert [a[name] for name in losses] == pytest.approx([b[name] for name in losses], rel=2e-2)
    assert records(tmp_path / "fp32") != records(tmp_path / "bf16")


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_have_the_losses_of_eager_ones(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.duration=4 steps", "precision=fp32"]
    for name in ("false", "default"):
        status, output = train([*arguments, f"performance.compile={name}", f"run_dir=run_{name}"], environment, tmp_path)
        assert status == 0, output
    assert losses_of(tmp_path / "run_default") == [
        pytest.approx(record, rel=1e-3) for record in losses_of(tmp_path / "run_false")
    ]


def compiling(monkeypatch: pytest.MonkeyPatch, *, speed: float = 2.0, off: float = 0.0, error: str = "") -> None:
    """torch.compile without a C++ compiler; trials take real steps, but their times and losses are made up."""
    real_time = autotune._time

    def compile_networks(performance: Performance, method: Method) -> None:
        if error:
            raise RuntimeError(error)
        for network in _trained_networks(method):
            network.compile(backend="eager")

    def time(tried: TrainingComponents) -> tuple[float, list[float]]:
        _, losses = real_time(tried)
        compiled = tried.performance.compile == "default"
        return (1.0 / speed, [loss + off for loss in losses]) if compiled else (1.0, losses)

    monkeypatch.setattr(Performance, "compile_networks", compile_networks)
    monkeypatch.setattr(autotune, "_time", time)


@pytest.mark.parametrize(
    ("made_up", "worth", "found"),
    [
        ({}, 0.0, "default"),
        ({"speed": 1.01}, 0.0, False),
        ({"off": 0.5}, 0.0, False),
        ({"error": "no compiler"}, 0.0, False),
        ({}, 1e9, False),
    ],
    ids=["faster", "no gain", "other losses", "does not work", "short training"],
)
def test_compilation_is_chosen_by_a_trial_that_leaves_no_trace(
    made_up: dict[str, float], worth: float, found: str | bool, parts: TrainingComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling(monkeypatch, **made_up)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in parts.method.state_dict().items()}
    plain = replace(parts.performance, graph=False, compile=False)
    limits = autotune.Limits(graph=worth, compile=worth)
    chosen = autotune.fastest(parts, plain, [replace(plain, compile="default")], limits)
    assert chosen == replace(plain, compile=found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.method.state_dict().items())
    assert not any(optimizer.state for optimizer in parts.optimizers.values())
    networks = parts.method.generator, parts.method.discriminator
    assert list(networks) == _trained_networks(parts.method)
    assert all(network._compiled_call_impl is None for network in networks)
    assert all(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_graphs_are_refused_before_anything_is_written(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "performance.graph=true", "run_dir=run"]
    status, output = train(arguments, environment, tmp_path)
    assert status == 2
    assert "error: performance.graph=true is impossible, because the device is cpu" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chosen", ["auto", True])
def test_graphs_that_an_earlier_run_decided_on_do_not_refuse_another_optimizer(
    chosen: bool | str, parts: TrainingComponents
) -> None:
    optimizers = {"x": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)}
    performance = replace(parts.performance, graph=True, compile=False)
    arguments = Config({"performance": {"graph": chosen}}), performance, optimizers, parts.schedules
    if chosen is True:
        with raises(ConfigError, "performance.graph=true", word="SGD"):
            _checked_graphs(*arguments)
    else:
        assert _checked_graphs(*arguments) == replace(performance, graph=False)


SECONDS = {(False, False): 1.0, (True, False): 0.5, (True, "default"): 0.4, (False, "reduce-overhead"): 0.7}
"""Made-up seconds of a step by ``graph`` and ``compile``."""


@pytest.mark.parametrize(
    ("given", "tries_graph", "worth", "found"),
    [
        (("auto", "auto"), True, 0.0, (True, "default")),
        (("auto", "auto"), True, 1e9, (True, False)),
        (("auto", "auto"), False, 0.0, (False, "reduce-overhead")),
        (("auto", False), True, 0.0, (True, False)),
        ((False, "auto"), False, 0.0, (False, "reduce-overhead")),
        ((False, "auto"), False, 1e9, (False, False)),
    ],
)
def test_the_fastest_way_of_running_steps_is_chosen(
    given: tuple[bool | str, bool | str], tries_graph: bool, worth: float, found: tuple[bool, bool | str],
    parts: TrainingComponents, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def time(tried: TrainingComponents) -> tuple[float, list[float]]:
        return SECONDS[tried.performance.graph, tried.performance.compile], [1.0]  # type: ignore[index]

    compiling(monkeypatch)
    monkeypatch.setattr(autotune, "_time", time)
    performance = replace(parts.performance, graph=given[0], compile=given[1])
    plain = replace(performance, graph=performance.graph is True, compile=False)
    candidates = autotune._candidates(performance, plain, tries_graph=tries_graph, may_compile=True)
    chosen = autotune.fastest(parts, plain, candidates, autotune.Limits(graph=0.0, compile=worth))
    assert (chosen.graph, chosen.compile) == found


def test_what_auto_turned_out_to_mean_is_a_record_beside_the_config(parts: TrainingComponents) -> None:
    assert parts.performance.compile == parts.performance.graph == "auto"
    resolved = autotune.resolve_auto(parts, accumulation=True, may_compile=True)
    assert resolved.decisions == Decisions(precision="fp32", accumulation=1, compile=False, graph=False)
    assert (resolved.performance.compile, resolved.performance.graph) == (False, False)
