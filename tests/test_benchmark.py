"""The benchmark runs, its numbers are what they say, and both of its sides train the same thing."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch

from genimg.commands.assembly import assemble
from genimg.images import to_float
from genimg.interfaces import Progress
from genimg.training.update import Updater

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SMALL = ("--images", "64", "--batch-size", "8", "--device", "cpu")


class InThisProcess(Executor):
    """In place of the pool of processes: the first test has a real one."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **keywords))
        return future


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; the process's switches of arithmetic are as before afterwards."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("benchmark")
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    with module.default_switches():
        yield module


def call(benchmark: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()


def configs_of(benchmark: Any, recipe: str) -> dict[str, Any]:
    sizes = {"block": 1, "blocks": 1, "long": None, "images": 16, "batch_size": 8}
    choices = {"device": "cpu", "precision": "fp32", "override": ["performance=plain"]}
    return benchmark.configs_of(recipe, argparse.Namespace(**sizes, **choices))


def conv_flops(batch: int, cin: int, cout: int, kernel: int, size: int) -> int:
    """Of a convolution with ``size`` output pixels a side, or a transposed one with as many input pixels."""
    return 2 * batch * cin * cout * kernel**2 * size**2


def flops_of_a_gan_step(batch: int, width: int) -> int:
    """28 px grey: everything but what genimg leaves out, the discriminator's weight gradients in the generator's update."""
    first_g = conv_flops(batch, 100, 2 * width, 7, 1)
    generator = first_g + conv_flops(batch, 2 * width, width, 4, 7) + conv_flops(batch, width, 1, 4, 14)
    first_d = conv_flops(batch, 1, width, 4, 14)
    discriminator = first_d + conv_flops(batch, width, 2 * width, 4, 7) + conv_flops(batch, 2 * width, 1, 7, 1)
    # Neither the latent nor, in the discriminator's own update, the images need a gradient.
    return 3 * generator - first_g + 3 * discriminator + 2 * (2 * discriminator - first_d) + discriminator


def test_it_compares_two_recipes(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    recipes = ("--recipes", "dcgan_small_28,vae_small_28", "--blocks", "2", "--block", "2")
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *recipes, *SMALL, "--json", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["hardware"]["device"] == "cpu"
    assert result["hardware"]["threads"] == 1
    assert list(result["recipes"]) == ["dcgan_small_28", "vae_small_28"]
    for name, recipe in result["recipes"].items():
        assert f"|{name}|8|" in done.stdout
        for side in (recipe["genimg"], recipe["plain"]):
            assert len(side["block_seconds"]) == 2
            assert side["images_per_second"] == pytest.approx(2 * 2 * 8 / sum(side["block_seconds"]))
            assert 0 < side["data_wait_share"] < 1
            assert 0 < side["step_ms"]["lower_quartile"] <= side["step_ms"]["median"] <= side["step_ms"]["upper_quartile"]
        quotient = recipe["genimg"]["images_per_second"] / recipe["plain"]["images_per_second"]
        assert recipe["ratio"]["totals"] == pytest.approx(quotient)
        assert recipe["ratio"]["median_of_blocks"] > 0
        assert 0 < recipe["peak_memory_mib"]["genimg"] <= recipe["peak_memory_mib"]["both"]
        rate = recipe["flops_per_step"] * recipe["genimg"]["images_per_second"] / 8
        assert recipe["flops_per_second"] == pytest.approx(rate)
        device_rate = recipe["matrix_flops_per_second"][recipe["precision"]]
        assert recipe["share_of_matrix_rate"] == pytest.approx(rate / device_rate)
    assert result["recipes"]["dcgan_small_28"]["flops_per_step"] == flops_of_a_gan_step(batch=8, width=32)
    assert result["recipes"]["vae_small_28"]["flops_per_step"] > 0


def test_it_watches_memory_and_step_time(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    call(benchmark, monkeypatch, "--recipes", "vae_small_28", "--long", "21", *SMALL, "--json", str(file))
    recipe = json.loads(file.read_text())["recipes"]["vae_small_28"]
    assert [point["steps"] for point in recipe["points"]] == list(range(2, 21, 2))
    assert all(point["memory_mib"] > 0 and point["median_step_ms"] > 0 for point in recipe["points"])
    times = [point["median_step_ms"] for point in recipe["points"]]
    assert recipe["step_time_ratio"] == pytest.approx(times[-1] / times[1])
    assert (recipe["verdict"]["memory"] == "flat") == (recipe["memory_growth_mib_per_1000_steps"] <= 1)
    assert (recipe["verdict"]["step_time"] == "steady") == (0.9 <= recipe["step_time_ratio"] <= 1.1)
    printed = capsys.readouterr().out
    for name, word in recipe["verdict"].items():
        assert f"{name.replace('_', ' ')} {word}: " in printed


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--recipes", "vae_64,dcgan64"], ["unknown recipe 'dcgan64' (did you mean 'dcgan_64'?)", "vae_64", "dcgan_small_28"]),
        (["--recipes", "vae_32", "--override", "model.encoder.widht=8"], ["did you mean 'model.encoder.width'?"]),
        (["--recipes", "vae_32", "--images", "100"], ["trainer.batch_size=128", "100 images"]),
        (["--long", "9"], ["--long 9"]),
        (["--json", "nowhere/result.json"], ["nowhere"]),
    ],
    ids=["recipe", "override", "images", "long", "json"],
)
def test_mistakes_are_refused_in_words(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    messages: list[str],
) -> None:
    with pytest.raises(SystemExit) as refusal:
        call(benchmark, monkeypatch, "--device", "cpu", *arguments)
    assert refusal.value.code not in (0, None)
    said = capsys.readouterr().err + str(refusal.value.code)
    assert all(message in said for message in messages), said


@pytest.mark.parametrize("recipe", ["dcgan_small_28", "vae_small_28"])
def test_both_sides_take_the_same_step(benchmark: Any, recipe: str) -> None:
    configs = configs_of(benchmark, recipe)
    parts = assemble(configs["genimg"], "cpu")
    loop = benchmark.plain_loop(configs["plain"], benchmark.RECIPES[recipe][1])
    before = {name: tensor.clone() for name, tensor in loop.method.state_dict().items()}
    assert before.keys() == parts.method.state_dict().keys()
    for name, tensor in parts.method.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    pixels = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    update = Updater(parts.method.parameter_groups(), parts.optimizers, precision=parts.precision, max_grad_norm=None)
    for step in range(2):
        torch.manual_seed(step)
        metrics = parts.method.step([{"image": to_float(pixels).contiguous()}], Progress(step * 8, 8), update)
        torch.manual_seed(step)
        losses = loop.train_on(to_float(pixels).contiguous())
        assert losses == pytest.approx({name: float(metrics[f"loss/{name}"]) for name in losses}, rel=1e-4)
    trained = {name for name, _ in loop.method.named_parameters() if not name.startswith("generator_ema.")}
    for name, tensor in loop.method.state_dict().items():
        if name in trained:
            assert not torch.equal(tensor, before[name]), name
        if name.startswith("generator_ema."):  # the tutorial keeps no average
            assert torch.equal(tensor, before[name]), name


def test_the_plain_loop_gets_genimgs_images(benchmark: Any) -> None:
    config = configs_of(benchmark, "dcgan_small_28")["plain"]
    source = assemble(config, "cpu").source
    pictures = benchmark.Pictures(source)
    assert len(pictures) == len(source) == 16
    for index in range(16):
        expected = to_float(torch.from_numpy(source.read(index))[None])[0]
        torch.testing.assert_close(pictures[index], expected, rtol=0, atol=1e-6)
