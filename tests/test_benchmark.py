"""The benchmark runs, its numbers are what they say, and both of its sides train the same thing."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from sampling import sampled
from torch import Tensor, nn

from genimg.api.assemble import assemble
from genimg.api.thread_trial import TrialResult
from genimg.config.compose import Config
from genimg.losses.adversarial import AdversarialLoss, negated_generator_loss, wasserstein_discriminator_loss
from genimg.losses.penalties import R1, GradientPenalty
from genimg.methods.base import Method
from genimg.methods.gan import GAN
from genimg.methods.image_to_image import Translation
from genimg.training.thread_choice import Threads, same_threads_afterwards
from genimg.training.update import Updater
from genimg.types import Batch, Progress
from genimg.utils.images import to_float

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SMALL = ("--images", "64", "--batch-size", "8", "--device", "cpu")
RESIDUAL = "model.generator.widths=[4] model.discriminator.features.widths=[4]"
TINY = {  # more overrides of a recipe, by its model
    "dcgan": "model.generator.width=4",
    "vae": "model.encoder.width=4",
    "sngan": RESIDUAL,
    "wgan_gp": RESIDUAL,
    "stylegan2": "model.generator.channel_base=64 model.generator.channel_max=8",
    "pix2pix": "model.translator.width=4 model.discriminator.width=4",
    "flow": " ".join(tiny.DIFFUSION),
    "ddpm": " ".join(tiny.DIFFUSION),
    "cyclegan": "model.translator.width=4 model.translator.num_blocks=1 model.discriminator.width=4",
}
RECIPES = [
    "dcgan_64",
    "dcgan_32",
    "vae_64",
    "vae_32",
    "dcgan_small_28",
    "vae_small_28",
    "sngan_32",
    "wgan_gp_32",
    "stylegan2_32",
    "flow_small_28",
    "flow_small_32",
    "flow_32",
    "ddpm_32",
    "pix2pix_64",
    "pix2pix_128",
    "cyclegan_64",
    "cyclegan_128",
    "cyclegan_256",
]


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


@pytest.fixture
def tiny_benchmark(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its recipes have small networks on both sides."""
    for name, (overrides, kind) in benchmark.RECIPES.items():
        monkeypatch.setitem(benchmark.RECIPES, name, (f"{overrides} {TINY[model_of(name)]}", kind))
    return benchmark


def arguments_of(**changes: Any) -> argparse.Namespace:
    sizes = {"block": 1, "blocks": 1, "long": None, "images": 16, "batch_size": 8}
    choices = {"device": "cpu", "precision": "fp32", "override": ["performance=plain"], "folder": Path("unused")}
    return argparse.Namespace(**(sizes | choices | changes))


def configs_of(benchmark: Any, recipe: str, **changes: Any) -> dict[str, Any]:
    return benchmark.configs_of(recipe, arguments_of(**changes))


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


@pytest.mark.exhaustive
def test_it_compares_recipes(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    file = tmp_path / "result.json"
    recipes = ["dcgan_small_28", *(["vae_small_28"] if pytestconfig.getoption("--all") else [])]
    settings = ("--recipes", ",".join(recipes), "--blocks", "2", "--block", "2")
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *settings, *SMALL, "--json", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["hardware"]["device"] == "cpu"
    assert result["hardware"]["threads"] == 1
    assert list(result["recipes"]) == recipes
    for name, recipe in result["recipes"].items():
        assert f"|{name}|8|1|1|" in done.stdout
        assert recipe["threads"] == {"genimg": 1, "plain": 1}
        for side in (recipe["genimg"], recipe["plain"]):
            assert len(side["block_seconds"]) == 2
            assert side["images_per_second"] == pytest.approx(2 * 2 * 8 / sum(side["block_seconds"]))
            assert 0 < side["data_wait_share"] < 1
            assert 0 < side["step_ms"]["lower_quartile"] <= side["step_ms"]["median"] <= side["step_ms"]["upper_quartile"]
        quotient = recipe["genimg"]["images_per_second"] / recipe["plain"]["images_per_second"]
        assert recipe["ratio"]["totals"] == pytest.approx(quotient)
        assert recipe["ratio"]["median_of_blocks"] > 0
        assert 0 < recipe["peak_memory_mib"]["genimg"] <= recipe["peak_memory_mib"]["both"]
        assert recipe["flops_per_step"] > 0
        rate = recipe["flops_per_step"] * recipe["genimg"]["images_per_second"] / 8
        assert recipe["flops_per_second"] == pytest.approx(rate)
        device_rate = recipe["matrix_flops_per_second"][recipe["precision"]]
        assert recipe["share_of_matrix_rate"] == pytest.approx(rate / device_rate)
    assert result["recipes"]["dcgan_small_28"]["flops_per_step"] == flops_of_a_gan_step(batch=8, width=32)


def test_beside_a_busy_process_each_side_has_its_number_of_threads(
    tiny_benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: dict[str, set[int]] = {"genimg": set(), "plain": set()}
    running: list[bool] = []
    original, step = tiny_benchmark.Blocks.cut, tiny_benchmark.PlainLoop.train_on

    def busy() -> Any:
        @contextlib.contextmanager
        def noted() -> Iterator[int]:
            with busy_process() as number:
                process.append(number)
                yield number

        return noted()

    def cut(blocks: Any, stream: Iterator[Any]) -> Iterator[Any]:
        running.append(os.path.exists(f"/proc/{process[0]}") or sys.platform != "linux")
        for batch in original(blocks, stream):
            used["genimg"].add(torch.get_num_threads())
            yield batch

    def train_on(loop: Any, batch: Batch) -> dict[str, float]:
        used["plain"].add(torch.get_num_threads())
        losses: dict[str, float] = step(loop, batch)
        return losses

    process: list[int] = []
    busy_process = tiny_benchmark.busy_process
    monkeypatch.setattr(tiny_benchmark, "busy_process", busy)
    monkeypatch.setattr(tiny_benchmark, "choose_threads", lambda *_: TrialResult(Threads(1, 2, is_fixed=False)))
    monkeypatch.setattr(tiny_benchmark.PlainLoop, "train_on", train_on)
    with same_threads_afterwards():
        torch.set_num_threads(2)
        monkeypatch.setattr(tiny_benchmark.Blocks, "cut", cut)
        call(tiny_benchmark, monkeypatch, "--recipes", "dcgan_small_28", "--beside", "--blocks", "1", "--block", "1", *SMALL)
        assert torch.get_num_threads() == 2
    printed = capsys.readouterr().out
    assert "|dcgan_small_28|8|1|2|" in printed
    assert "2 threads, beside a busy process, precision" in printed
    assert used["plain"] == {2}
    assert used["genimg"] == {1, 2}  # plain blocks are cut in the same way
    assert all(running)
    assert not os.path.exists(f"/proc/{process[0]}")


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
        (["--long", "9"], ["--long 9", "10 steps"]),
        (["--recipes", "stylegan2_32", "--long", "159"], ["--long 159", "160 steps"]),
        (["--json", "nowhere/result.json"], ["nowhere"]),
    ],
    ids=["recipe", "override", "images", "long", "long cycle", "json"],
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


def model_of(recipe: str) -> str:
    return recipe.rpartition("_")[0].removesuffix("_small")


@pytest.mark.parametrize("recipe", sampled(RECIPES, lambda recipe: [model_of(recipe)]))
def test_both_sides_of_every_recipe_are_built_and_take_steps(tiny_benchmark: Any, recipe: str, tmp_path: Path) -> None:
    assert list(tiny_benchmark.RECIPES) == RECIPES
    configs = configs_of(tiny_benchmark, recipe, batch_size=None, images=128, folder=tmp_path)
    tiny_benchmark.draw_files(configs["plain"], 128)
    size = int(recipe.rsplit("_", 1)[1])
    parts = assemble(Config(configs["genimg"]), "cpu").components
    assert parts.source.shape[1:] == (size, size)
    assert {config["trainer"]["batch_size"] for config in configs.values()} <= {1, 4, 16, 32, 64, 128}
    loop = tiny_benchmark.plain_loop(configs["plain"], tiny_benchmark.RECIPES[recipe][1])
    batch = batch_of(parts.method, torch.randint(256, (2, *parts.source.shape), dtype=torch.uint8))
    for _ in range(2):
        assert all(map(math.isfinite, loop.train_on(batch).values()))


def batch_of(method: Method, pixels: Tensor) -> Batch:
    """As genimg's data make it."""
    image = to_float(pixels).contiguous()
    return method.task(image, np.arange(len(pixels)), 0) if isinstance(method, Translation) else {"image": image}


# Where both updates share a batch of fakes, genimg and the plain loop draw the same random numbers.
SHARED = {
    "dcgan": ("dcgan_small_28", ""),
    "vae": ("vae_small_28", ""),
    "lazy penalties": (
        "stylegan2_32",
        "model.fresh_latents=false penalty=[r1,path_length] penalty.r1.interval=2 penalty.path_length.interval=3",
    ),
    "clipped": ("dcgan_small_28", "loss=wasserstein penalty=[weight_clipping] discriminator_augment=ada"),
    "pix2pix": ("pix2pix_64", ""),
    "cyclegan": ("cyclegan_64", ""),  # whose pools give images back as they come until they have 50
    "relativistic": ("dcgan_small_28", "loss=relativistic penalty=[latent_consistency] penalty.latent_consistency.interval=2"),
}


@pytest.mark.parametrize(("recipe", "more"), SHARED.values(), ids=list(SHARED))
def test_both_sides_take_the_same_step(
    tiny_benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str, more: str
) -> None:
    overrides, kind = tiny_benchmark.RECIPES[recipe]
    monkeypatch.setitem(tiny_benchmark.RECIPES, recipe, (f"{overrides} {more}", kind))
    configs = configs_of(tiny_benchmark, recipe, folder=tmp_path)
    tiny_benchmark.draw_files(configs["plain"], 16)
    parts = assemble(Config(configs["genimg"]), "cpu").components
    loop = tiny_benchmark.plain_loop(configs["plain"], kind)
    before = {name: tensor.clone() for name, tensor in loop.method.state_dict().items()}
    assert before.keys() == parts.method.state_dict().keys()
    for name, tensor in parts.method.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    pixels = torch.randint(256, (8, *parts.source.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = batch_of(parts.method, pixels)
    update = Updater(parts.method.parameter_groups(), parts.optimizers, precision=parts.precision, max_grad_norm=None)
    for step in range(4):
        torch.manual_seed(step)
        metrics = parts.method.train().step([batch], Progress(step * 8, 8), update)
        torch.manual_seed(step)
        losses = loop.train_on(batch)
        assert losses == pytest.approx({name: float(metrics[f"loss/{name}"]) for name in losses}, rel=1e-4)
    trained = {name for name, _ in loop.method.named_parameters()}
    for name, tensor in loop.method.state_dict().items():
        if name in trained:
            assert not torch.equal(tensor, before[name]), name


def judged(gan: GAN, images: Tensor) -> Tensor:
    return gan.discriminator(images, tiny.no_condition(len(images))).logits


def generated(gan: GAN, count: int) -> Tensor:
    return gan.generator(torch.randn(count, 5), tiny.no_condition(count))


def descend(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    optimizer.step()


def wgan_gp_step(gan: GAN, optimizers: dict[str, torch.optim.Optimizer], batch: Batch, step: int) -> dict[str, float]:
    """Gulrajani et al. 2017, algorithm 1, with the generator first; and R1 every second step."""
    real = batch["image"]
    fake = generated(gan, len(real)).detach()
    loss = judged(gan, fake).mean() - judged(gan, real).mean()
    t = torch.rand(len(real), 1, 1, 1)
    between = (t * real + (1 - t) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(judged(gan, between).sum(), between, create_graph=True)
    loss = loss + 10.0 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    descend(gan.discriminator, optimizers["discriminator"], loss)
    losses = {"discriminator": loss.item()}
    if step % 2 == 0:
        real = real.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(judged(gan, real).sum(), real, create_graph=True)
        penalty = 500.0 * gradient.flatten(1).square().sum(dim=1).mean()
        descend(gan.discriminator, optimizers["discriminator"], 2 * penalty)
    if step % 3 == 0:
        loss = -judged(gan, generated(gan, 2 * len(real))).mean()
        descend(gan.generator, optimizers["generator"], loss)
        losses["generator"] = loss.item()
    return losses


def test_the_plain_step_is_wgan_gps_where_the_networks_take_turns(benchmark: Any) -> None:
    plain = tiny.gan(
        discriminator=tiny.discriminator(normalisation="none"),
        loss=AdversarialLoss(discriminator=wasserstein_discriminator_loss, generator=negated_generator_loss),
        penalties={
            "gradient_penalty": GradientPenalty(weight=10.0, center=1.0, interval=1),
            "r1": R1(gamma=1000.0, image_size=16, batch_size=4, interval=2),
        },
        generator_interval=3,
        generator_batches=2,
    )
    by_hand = copy.deepcopy(plain)
    results = []
    for gan, take in ((plain, benchmark.STEPS["gan"]()), (by_hand, wgan_gp_step)):
        torch.manual_seed(0)
        optimizers = {name: torch.optim.SGD(group, lr=0.01) for name, group in gan.parameter_groups().items()}
        results.append([take(gan, optimizers, {"image": torch.rand(4, 1, 16, 16) * 2 - 1}, step) for step in range(7)])
    assert [list(losses) for losses in results[0]] == [
        ["discriminator", "generator"] if step % 3 == 0 else ["discriminator"] for step in range(7)
    ]
    for found, expected in zip(*results, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for (name, found), expected in zip(plain.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("recipe", "override", "settings", "expected"),
    [
        ("vae_32", [], {"block": 7}, (7, 3)),
        ("dcgan_32", [], {"block": 7}, (7, 3)),
        ("sngan_32", [], {"block": 5}, (5, 3)),
        ("wgan_gp_32", [], {"block": 14}, (10, 3)),
        ("stylegan2_32", [], {"block": 5}, (16, 3)),
        ("stylegan2_32", [], {"block": 100}, (96, 3)),
        ("stylegan2_32", ["penalty.r1.interval=6", "model.generator_interval=4"], {"block": 5}, (48, 3)),  # plain: 16
        ("stylegan2_32", ["model.generator_interval=5"], {"block": 100}, (80, 3)),
        ("dcgan_32", [], {"block": 100, "long": 1000}, (100, 10)),
        ("stylegan2_32", [], {"block": 100, "long": 1000}, (96, 10)),
        ("stylegan2_32", [], {"block": 100, "long": 165}, (16, 10)),
    ],
)
def test_a_block_has_whole_cycles_of_steps(
    benchmark: Any, recipe: str, override: list[str], settings: dict[str, int], expected: tuple[int, int]
) -> None:
    arguments = arguments_of(blocks=3, override=override, **settings)
    configs = benchmark.configs_of(recipe, arguments)
    block, count = benchmark.blocks_of(configs, arguments)
    assert (block, count) == expected
    others = 1 if "long" in settings else 3
    assert {config["trainer"]["duration"] for config in configs.values()} == {f"{block * (count + others) + 1} steps"}


def test_operations_are_averaged_over_a_cycle(tiny_benchmark: Any) -> None:
    operations = []
    for wanted, expected in ((1, 5), (10, 10)):
        arguments = arguments_of(block=wanted)
        configs = tiny_benchmark.configs_of("wgan_gp_32", arguments)
        parts = assemble(Config(configs["genimg"]), "cpu").components
        blocks = tiny_benchmark.Blocks(parts.device, tiny_benchmark.blocks_of(configs, arguments)[0])
        operations.append(tiny_benchmark.train_genimg(parts, blocks, lambda: None))
        assert blocks.steps == expected
        assert len(blocks.seconds) == 3
    assert operations[0] == operations[1] > 0


def test_the_plain_loop_gets_genimgs_images(benchmark: Any) -> None:
    parts = assemble(Config(configs_of(benchmark, "dcgan_small_28")["plain"]), "cpu").components
    pictures = benchmark.Pictures(parts.source, parts.method)
    assert len(pictures) == len(parts.source) == 16
    for index in range(16):
        expected = to_float(torch.from_numpy(parts.source.read(index))[None])[0]
        torch.testing.assert_close(pictures[index]["image"], expected, rtol=0, atol=1e-6)


def test_the_plain_loop_gets_genimgs_pairs_and_domains(tiny_benchmark: Any, tmp_path: Path) -> None:
    for recipe, count in (("pix2pix_64", 16), ("cyclegan_64", 8)):
        config = configs_of(tiny_benchmark, recipe, folder=tmp_path)["plain"]
        tiny_benchmark.draw_files(config, 16)
        parts = assemble(Config(config), "cpu").components
        assert isinstance(parts.method, Translation)
        pictures = tiny_benchmark.Pictures(parts.source, parts.method)
        assert len(pictures) == count
        images = to_float(torch.from_numpy(np.stack([parts.source.read(index) for index in range(count)])))
        expected = parts.method.task(images, np.arange(count), 0)
        found = [pictures[index] for index in range(count)]
        for key in set(parts.method.batch_keys) - {"b"}:
            torch.testing.assert_close(torch.stack([each[key] for each in found]), expected[key], rtol=0, atol=1e-6)
    # Domain b is in an order of its own, which is not that of the files.
    drawn = [(expected["b"] - each["b"]).abs().amax((1, 2, 3)).argmin().item() for each in found]
    assert drawn != list(range(8))
    assert all((expected["b"][place] - each["b"]).abs().max() < 1e-6 for place, each in zip(drawn, found, strict=True))


def test_the_plain_pool_shows_older_images_half_of_the_time_and_none_twice(benchmark: Any) -> None:
    random.seed(0)
    pool = importlib.import_module("plain_translation").Pool(50)
    shown = torch.cat([pool(images) for images in torch.arange(1050)[:, None, None, None].split(5)]).flatten()
    assert torch.equal(shown[:50], torch.arange(50))
    older = shown[50:][shown[50:] != torch.arange(50, 1050)]
    assert len(older) == pytest.approx(500, abs=63)  # 4 standard deviations
    assert len(shown[50:].unique()) == 1000
    assert (shown <= torch.arange(1050)).all()
