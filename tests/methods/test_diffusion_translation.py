"""Image-to-image diffusion: the loss, known pixels, the distribution of translations, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from errors import raises
from torch import nn

from genimg.data.tasks.base import Pair
from genimg.data.tasks.degradations import Colorize, Denoise, Inpaint
from genimg.data.tasks.masks import Boxes
from genimg.diffusion.bridges import BrownianBridge, SchrodingerBridge
from genimg.diffusion.noise import NOISE, normal
from genimg.diffusion.paths import StraightLine, VarianceExploding
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.errors import ConfigError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.capabilities import Exports, Generates, MeasuresData, Translates, TranslatesRandomly
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.diffusion_translation import DiffusionTranslation
from genimg.methods.sampling_options import translation_keys
from genimg.networks.conditioning import Unconditional
from genimg.types import Progress
from genimg.utils.rng import mixed_keys

PLAIN = DenoisingLoss(weighting="plain", gamma=None, reduction="mean")
LINE, EDM = StraightLine(shift=1.0), VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)
HEUN, ANCESTRAL = DiffusionOptions(sampler="heun", steps=4), DiffusionOptions(sampler="ancestral", steps=5)
RECIPES = {
    "flow": {"path": LINE, "prediction": "velocity", "times": Uniform(), "sampler": HEUN},
    "edm": {
        "path": EDM, "prediction": "edm", "times": LogNormalSigma(mean=-1.2, std=1.2), "sigma_data": 0.5, "sampler": HEUN,
    },
    "i2sb": {
        "path": SchrodingerBridge(beta_min=0.1, beta_max=0.3), "prediction": "i2sb", "times": Uniform(), "sampler": ANCESTRAL,
    },
    "bbdm": {
        "path": BrownianBridge(variance=2.0), "prediction": "difference", "times": Uniform(), "sampler": ANCESTRAL,
    },
}  # fmt: skip
EVERY = pytest.mark.parametrize("recipe", RECIPES)
SIZE = 8


class Network(nn.Module):
    """A small network, with every input of a real one."""

    def __init__(self, sources: int, targets: int = 3, source_channels: int | None = None) -> None:
        super().__init__()
        self.source_channels = sources if source_channels is None else source_channels
        self.condition = Unconditional()
        self.time = nn.Linear(1, 8)
        self.first = nn.Conv2d(targets + self.source_channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, targets, 3, padding=1)

    def forward(self, noisy, time, condition, keep=None):
        assert condition.shape == (len(noisy), 0)
        assert keep is None
        return self.last(torch.tanh(self.first(noisy) + self.time(0.01 * time[:, None])[:, :, None, None]))


def build(recipe="flow", *, task=None, sources=3, targets=3, **changes) -> DiffusionTranslation:
    torch.manual_seed(0)
    settings = {
        "network": Network(sources, targets), "loss": PLAIN, "sigma_data": None, "image_size": SIZE,
        "source_channels": sources, "target_channels": targets, "task": task or Pair(source_channels=sources),
    }  # fmt: skip
    return DiffusionTranslation(**(settings | RECIPES[recipe] | changes))


def images(count=6, channels=3, seed=1):
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pairs(count=6, channels=3):
    return {"source": images(count, channels), "target": images(count, seed=2), "noise_key": torch.arange(count) * 7919 + 13}


def inpainting(count=6):
    task = Inpaint(mask=Boxes(num_boxes=2, side=[0.2, 0.5]))
    return task, task(images(count), np.arange(count), 0) | {"noise_key": torch.arange(count) * 7919 + 13}


def keys(count, number=0):
    return translation_keys(0, np.arange(count), number)


def test_it_has_the_capabilities_of_a_random_translator():
    method = build()
    for capability in (Translates, TranslatesRandomly, Exports, MeasuresData):
        assert isinstance(method, capability)
    assert not isinstance(method, Generates)
    assert method.batch_keys == ("source", "target", "noise_key")


# Training


@EVERY
def test_the_loss_of_a_pair_does_not_depend_on_its_batch(recipe):
    method, whole = build(recipe), pairs()
    loss, metrics = method._loss(whole)
    each = [method._loss({key: value[i : i + 1] for key, value in whole.items()})[0].item() for i in range(6)]
    assert loss.item() == pytest.approx(sum(each) / 6, rel=1e-5)
    assert metrics["loss/denoising"].item() == loss.item()


@EVERY
def test_the_network_sees_the_source_and_is_right_with_the_true_difference(recipe):
    """Against a direct computation of the state, from what the network saw."""
    method, whole, seen = build(recipe), pairs(), {}
    method.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs[0], time=inputs[1]))
    method._loss(whole)
    state, source = seen["inputs"].split(3, dim=1)
    assert torch.equal(source, whole["source"])
    time = (seen["time"] / 1000.0 if recipe != "edm" else (4 * seen["time"]).exp())[:, None, None, None]
    scale, sigma = method.path.scale(time), method.path.sigma(time)
    end = whole["source"] * (1 - scale) if recipe in ("i2sb", "bbdm") else 0.0
    state = state * (0.25 + time**2).sqrt() if recipe == "edm" else state
    noise = (state - scale * whole["target"] - end) / sigma
    assert noise.mean().item() == pytest.approx(0.0, abs=0.1)
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)


@EVERY
def test_only_missing_pixels_have_a_loss(recipe):
    task, whole = inpainting()
    method = build(recipe, task=task, sources=4)
    known = whole["mask"] == 0
    outputs = {}

    def keep_output(_, inputs, output):
        output.retain_grad()
        outputs["made"] = output

    method.denoiser.network.register_forward_hook(keep_output)
    method._loss(whole)[0].backward()
    gradient = outputs["made"].grad
    assert (gradient.abs().sum(dim=1, keepdim=True) > 0)[~known].all()
    assert gradient[known.expand_as(gradient)].abs().max() == 0


def test_a_masked_error_is_the_mean_over_missing_pixels():
    output, target = images(2, seed=3), images(2, seed=4)
    mask = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    mask[0, :, 2:4, 1:6] = True
    error = (output - target).square()
    found = PLAIN.of_images(output, target, mask)
    assert found.tolist() == pytest.approx([error[0, :, 2:4, 1:6].mean().item(), 0.0], rel=1e-5)
    total = DenoisingLoss(weighting="plain", gamma=None, reduction="sum").of_images(output, target, mask)
    assert total.tolist() == pytest.approx([error[0, :, 2:4, 1:6].sum().item(), 0.0], rel=1e-5)


@EVERY
def test_a_step_trains_the_denoiser_and_check_accepts_its_batches(recipe):
    method, whole = build(recipe), pairs()
    method.check({key: whole[key] for key in ("source", "target")})
    called = []
    method.step([whole], Progress(0, 6), lambda *arguments: called.append(arguments) or {})
    assert called[0][0] == "denoiser"
    assert {id(p) for p in method.parameter_groups()["denoiser"]} == {id(p) for p in method.denoiser.parameters()}


def test_sigma_data_is_that_of_the_targets():
    data = torch.cat([images(50), 0.3 * torch.randn(50, 3, SIZE, SIZE)], dim=1)
    method = build("edm", sigma_data="auto")
    assert method.measures_data
    method.set_data_statistics(data)
    assert method.denoiser.sigma_data.item() == pytest.approx(data[:, 3:].std(correction=0).item(), rel=1e-5)


# Translation


@EVERY
def test_a_translation_is_a_function_of_its_source_and_key(recipe):
    method, source = build(recipe), images(5)
    whole = method.translate_randomly(source, keys(5))
    assert whole.shape == (5, 3, SIZE, SIZE)
    assert whole.abs().max() <= 1.0
    for index in (0, 4):
        some = method.translate_randomly(source[[index]], keys(5)[[index]])
        torch.testing.assert_close(some[0], whole[index], rtol=0, atol=1e-5)
    assert not torch.allclose(method.translate_randomly(source, keys(5, number=1)), whole, atol=1e-2)
    assert torch.equal(method.translate(source), method.translate(source))
    assert method.denoiser.training


@EVERY
@pytest.mark.parametrize("options", [
    {"sampler": "euler"}, {"sampler": "dpmpp_2m"}, {"sampler": "ddim", "eta": 1.0}, {"sampler": "ancestral"}, {"steps": 1},
], ids=["euler", "dpmpp_2m", "ddim", "ancestral", "one step"])  # fmt: skip
def test_known_pixels_are_kept_by_every_sampler(recipe, options):
    task, whole = inpainting(3)
    method = build(recipe, task=task, sources=4)
    chosen = DiffusionOptions(**({"sampler": "euler", "steps": 3} | options))
    method.check_options(chosen)
    made, known = method.translate_randomly(whole["source"], keys(3), chosen), (whole["mask"] == 0).expand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(made[known], whole["target"][known], rtol=0, atol=1e-5)
    assert torch.equal(task.result(made, whole["source"])[known], whole["target"][known])
    assert made[~known].std() > 0


class Posterior(nn.Module):
    """The ideal network for x = y + 0.2 d with a normal d: it predicts the mean of x given x_t and y, as ``data``."""

    source_channels = 3

    def __init__(self, path) -> None:
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs, embedded, condition, keep=None):
        state, source = inputs.split(3, dim=1)
        time = (embedded / 1000.0)[:, None, None, None]
        scale, sigma = self.path.scale(time), self.path.sigma(time)
        if isinstance(self.path, StraightLine):
            state = state / (scale**2 + sigma**2).rsqrt() - scale * source  # of the difference alone
        else:
            state = state - source
        return source + scale * 0.04 / (scale**2 * 0.04 + sigma**2).clamp(min=1e-12) * state


@pytest.mark.parametrize(
    "path", [LINE, RECIPES["i2sb"]["path"], BrownianBridge(variance=0.08)], ids=["line", "i2sb", "brownian"]
)
@pytest.mark.parametrize("sampler", ["euler", "ancestral", "dpmpp_2m"])
def test_the_ideal_network_samples_the_distribution_given_the_source(path, sampler):
    """Mean y and variance 0.04, up to the error of 200 steps."""

    class OfDifferences(Posterior):
        def forward(self, inputs, embedded, condition, keep=None):
            made = super().forward(inputs, embedded, condition, keep)
            return made if isinstance(path, StraightLine) else made - inputs[:, 3:]  # on a bridge, differences from the source

    method = build(network=OfDifferences(path), path=path, prediction="data", sampler=ANCESTRAL)
    source = 0.2 * images(200, seed=7)
    made = method.translate_randomly(source, keys(200), DiffusionOptions(sampler=sampler, steps=200))
    difference = made - source
    assert difference.mean().item() == pytest.approx(0.0, abs=0.005)
    assert difference.var().item() == pytest.approx(0.04, rel=0.08)
    assert (difference.mean(dim=(1, 2, 3)).std().item()) == pytest.approx(0.2 / (3 * SIZE * SIZE) ** 0.5, rel=0.2)


def test_a_bridge_starts_in_its_source():
    """With a network that always predicts no difference, i2sb's translation is the source and nothing else."""
    method = build("i2sb")
    nn.init.zeros_(method.denoiser.network.last.weight)
    nn.init.zeros_(method.denoiser.network.last.bias)
    one = DiffusionOptions(sampler="ancestral", steps=1)
    assert torch.equal(method.translate_randomly(images(3), keys(3), one), images(3))


def test_a_bridge_may_hide_the_source_from_the_network_and_end_in_a_grey_one():
    method = build("i2sb", network=Network(3, source_channels=0))
    assert method.translate_randomly(images(2), keys(2)).shape == (2, 3, SIZE, SIZE)
    grey = build("bbdm", task=Colorize(space="gray"), sources=1)
    assert grey.translate_randomly(images(2, 1), keys(2)).shape == (2, 3, SIZE, SIZE)


@EVERY
def test_pictures_show_source_two_samples_and_target(recipe):
    method, whole = build(recipe), pairs(4)
    rows = method.preview(whole, {})["translations"]
    assert rows.shape == (4, 4, 3, SIZE, SIZE)
    torch.testing.assert_close(rows[:, 0], whole["source"])
    torch.testing.assert_close(rows[:, 3], whole["target"])
    assert not torch.allclose(rows[:, 1], rows[:, 2], atol=1e-2)


@EVERY
def test_the_exported_loop_makes_the_translation(recipe):
    """Euler's steps with the exported network and the times, scales and sigmas of the record."""
    method, source = build(recipe, sampler=DiffusionOptions(sampler="euler", steps=3)), images(2)
    spec = method.export_spec(None)
    assert [port.name for port in spec.inputs] == ["noisy", "time", "source"]
    record = spec.settings
    made, seen = method.translate_randomly(source, keys(2)), {}
    method.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.update(first=seen.get("first", inputs[0][:, :3])))
    method.translate_randomly(source, keys(2))
    bridges = recipe in ("i2sb", "bbdm")
    state = seen["first"] * (record["sigma"][0] ** 2 + 0.25) ** 0.5 if recipe == "edm" else seen["first"]
    assert not bridges or torch.equal(state, source)
    for i, time in enumerate(record["times"][:-1]):
        image = spec.reference({"noisy": state, "time": torch.full((2,), time), "source": source})
        ends = [(1 - record["scale"][k]) * source if bridges else 0.0 for k in (i, i + 1)]
        noise = (state - record["scale"][i] * image - ends[0]) / max(record["sigma"][i], 1e-12)
        if bridges and i == 0:
            noise = normal(mixed_keys(keys(2), NOISE), (3, SIZE, SIZE))
        state = record["scale"][i + 1] * image + ends[1] + record["sigma"][i + 1] * noise
    torch.testing.assert_close(state.clamp(-1, 1), made, rtol=0, atol=1e-3)


# What is refused


@pytest.mark.parametrize(("recipe", "changes", "key"), [
    ("flow", {"sigma_data": 0.5}, "sigma_data"),
    ("edm", {"sigma_data": None}, "sigma_data"),
    ("edm", {"sigma_data": "measured"}, "sigma_data"),
    ("edm", {"sigma_data": 0.0}, "sigma_data"),
    ("flow", {"prediction": "i2sb"}, "prediction"),
    ("i2sb", {"prediction": "velocity"}, "prediction"),
    ("i2sb", {"times": LogNormalSigma(mean=0.0, std=1.0)}, "times"),
    ("flow", {"network": Network(3, source_channels=0)}, "network.source_channels"),
    ("i2sb", {"sampler": HEUN}, "sampler.sampler"),
    ("flow", {"sampler": replace(HEUN, guidance=2.0)}, "sampler.guidance"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_named(recipe, changes, key):
    with raises((ValueError, ConfigError), key):
        build(recipe, **changes)


def test_a_bridge_between_unlike_channels_is_refused():
    method = build("i2sb", sources=4, task=Pair(source_channels=4))
    with raises(ConfigError, "path"):
        method.check({"source": images(2, 4), "target": images(2)})


def test_a_bridge_without_sources_is_refused_by_diffusion():
    with raises(ConfigError, "path"):
        Diffusion(
            network=Network(0), path=BrownianBridge(variance=2.0), prediction="data", times=Uniform(), loss=PLAIN,
            sampler=ANCESTRAL, sigma_data=None, condition_dropout=0.0, image_size=SIZE, channels=3,
        )  # fmt: skip


def test_there_is_no_training_mode_for_translations():
    method = build(task=Denoise(noise="gaussian", amount=25))
    method.set_mode("eval")
    with raises(ConfigError):
        method.set_mode("train")
