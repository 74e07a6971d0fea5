import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.diffusion.noise import AUGMENT, NOISE, TIME, normal
from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.errors import ConfigError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.labelled_augment import LabelledAugment
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.magnitude_preserving_unet import Uncertainty
from genimg.training.ema import with_networks
from genimg.types import Batch, Metrics, Progress
from genimg.utils.rng import mixed_keys

PLAIN = DenoisingLoss(weighting="plain", gamma=None, reduction="mean")
LINE, EDM = StraightLine(shift=1.0), VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)
DDPM = VariancePreserving(num_times=20, schedule="linear", beta_min=1e-3, beta_max=0.5)
RECIPES = {
    "flow": {"path": LINE, "prediction": "velocity", "times": Uniform()},
    "edm": {"path": EDM, "prediction": "edm", "times": LogNormalSigma(mean=-1.2, std=1.2), "sigma_data": 0.5},
    "ddpm": {"path": DDPM, "prediction": "noise", "times": Uniform()},
    "v": {"path": DDPM, "prediction": "v", "times": Uniform()},
}


class Denoiser(nn.Module):
    """A small network, with every input of a real one."""

    def __init__(self, condition: ConditionEncoder) -> None:
        super().__init__()
        self.condition = condition
        self.vector = nn.Linear(condition.dim + 1, 3)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
        self.seen: list[torch.Tensor | None] = []

    def forward(self, noisy, time, condition, keep=None):
        self.seen.append(keep)
        vector = self.condition(condition)
        if keep is not None:
            vector = vector * keep.to(vector.dtype)[:, None]
        shift = self.vector(torch.cat([vector, 0.01 * time[:, None]], dim=1))
        return self.layers(noisy + shift[:, :, None, None])


def build(recipe="flow", num_classes=0, **changes) -> Diffusion:
    torch.manual_seed(0)
    settings = {
        "network": Denoiser(OneHot(num_classes=num_classes) if num_classes else Unconditional()), "loss": PLAIN,
        "sampler": DiffusionOptions(sampler="heun", steps=4), "sigma_data": None, "condition_dropout": 0.0, "augment": None,
        "uncertainty": None, "image_size": 8, "channels": 3,
    }  # fmt: skip
    return Diffusion(**(settings | RECIPES[recipe] | changes))


def batch(count=6, num_classes=0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    made = {"image": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, "noise_key": torch.arange(count) * 7919 + 13}
    return made | ({"label": torch.arange(count) % num_classes} if num_classes else {})


def per_image_losses(method: Diffusion, whole: Batch) -> list[float]:
    return [method._loss({key: value[i : i + 1] for key, value in whole.items()})[0].item() for i in range(len(whole["image"]))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_of_an_image_does_not_depend_on_its_batch(recipe):
    method, whole = build(recipe, num_classes=2, condition_dropout=0.5), batch(num_classes=2)
    loss, metrics = method._loss(whole)
    assert loss.item() == pytest.approx(sum(per_image_losses(method, whole)) / 6, rel=1e-5)
    assert metrics["loss/denoising"].item() == loss.item()


def test_the_loss_is_the_error_of_the_prediction_at_the_drawn_time_and_noise():
    """Against a direct computation: noise is all that differs between the state and the image."""
    method, whole = build(), batch()
    seen = {}
    method.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.update(noisy=inputs[0], time=inputs[1]))
    loss, _ = method._loss(whole)
    time = (seen["time"] / 1000.0)[:, None, None, None]
    noise = (seen["noisy"] - (1 - time) * whole["image"]) / time
    assert noise.mean().item() == pytest.approx(0.0, abs=0.1)
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    expected = (
        (method.denoiser.network(seen["noisy"], seen["time"], torch.empty(6, 0)) - (noise - whole["image"])).square().mean()
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_conditions_are_dropped_at_the_given_rate_and_by_key():
    method, whole = build(num_classes=2, condition_dropout=0.3), batch(4000, num_classes=2)
    method._loss(whole)
    keep = method.denoiser.network.seen[-1]
    assert 1 - keep.float().mean().item() == pytest.approx(0.3, abs=0.03)
    method._loss({key: value[100:200] for key, value in whole.items()})
    assert torch.equal(method.denoiser.network.seen[-1], keep[100:200])
    build(num_classes=2)._loss(whole)
    assert build(condition_dropout=0.3).condition_dropout == 0.0  # without a condition there is nothing to drop


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("options", [
    {"sampler": "heun"}, {"sampler": "euler"}, {"sampler": "dpmpp_2m"}, {"sampler": "ddim", "eta": 1.0},
    {"sampler": "ancestral", "variance": "small", "clip": True},
], ids=lambda options: options["sampler"])  # fmt: skip
def test_an_image_is_a_function_of_seed_and_index_alone(recipe, options):
    method = build(recipe, num_classes=2)
    chosen = DiffusionOptions(steps=5, **options)
    method.check_options(chosen)
    whole = method.sample(method.draw(range(5), 3), chosen)
    assert whole.shape == (5, 3, 8, 8)
    assert whole.abs().max() <= 1.0
    for index in (0, 4):
        torch.testing.assert_close(method.sample(method.draw([index], 3), chosen)[0], whole[index], rtol=0, atol=1e-5)
    assert not torch.allclose(method.sample(method.draw(range(5), 4), chosen), whole)
    assert method.denoiser.network.training


def test_guidance_of_1_is_none_and_0_ignores_the_condition():
    method = build(num_classes=2, condition_dropout=0.1)
    drawn = method.draw(range(4), 0)
    plain = method.sample(drawn)
    assert len(method.denoiser.network.seen) == 7  # Heun with 4 steps
    assert all(keep is None for keep in method.denoiser.network.seen)
    guided = {
        scale: method.sample(drawn, replace(method.sampling_options, guidance=scale)) for scale in (1.0, 0.0, 1.0 + 1e-6, 3.0)
    }
    assert torch.equal(guided[1.0], plain)
    torch.testing.assert_close(guided[1.0 + 1e-6], plain, rtol=0, atol=1e-4)
    other = drawn | {"label": 1 - drawn["label"]}
    torch.testing.assert_close(
        method.sample(other, replace(method.sampling_options, guidance=0.0)), guided[0.0], rtol=0, atol=1e-5
    )
    assert not torch.allclose(guided[3.0], plain, atol=1e-3)


def test_guidance_is_extrapolation_from_the_unconditional_estimate():
    method = build(num_classes=2, condition_dropout=0.1, sampler=DiffusionOptions(sampler="euler", steps=1))
    drawn = method.draw(range(4), 0)
    given, without, twice = (
        method.sample(drawn, DiffusionOptions(sampler="euler", steps=1, guidance=g)) for g in (1.0, 0.0, 2.0)
    )
    inside = (given.abs() < 1) & (without.abs() < 1) & ((2 * given - without).abs() < 1)  # samples are limited to [-1, 1]
    torch.testing.assert_close(twice[inside], (2 * given - without)[inside], rtol=0, atol=1e-5)


def test_guidance_is_limited_to_an_interval_of_noise():
    method = build("edm", num_classes=2, condition_dropout=0.1)
    drawn = method.draw(range(2), 0)
    method.denoiser.network.seen.clear()
    method.sample(drawn, DiffusionOptions(sampler="euler", steps=10, guidance=2.0, guidance_from=0.5, guidance_until=5.0))
    levels = EDM.grid(10, "power")[:-1]
    assert [keep is not None for keep in method.denoiser.network.seen] == [0.5 <= level <= 5.0 for level in levels]


def test_sigma_data_is_measured():
    method = build("edm", sigma_data="auto")
    images = 0.3 * torch.randn(500, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.2
    method.set_data_statistics(images)
    assert method.denoiser.sigma_data.item() == pytest.approx(images.std().item(), rel=1e-3)
    assert "denoiser.sigma_data" in method.state_dict()
    fixed = build("edm", sigma_data=0.25)
    fixed.set_data_statistics(images)
    assert fixed.denoiser.sigma_data.item() == 0.25
    fixed.load_state_dict(method.state_dict())  # as init_from does
    assert fixed.denoiser.sigma_data.item() == 0.25


def test_samples_near_an_image_start_from_its_noise():
    method = build("edm", network=PerfectDenoiser(), sampler=DiffusionOptions(sampler="heun", steps=60))
    image = batch(1)["image"] * 0.5
    drawn = method.draw(range(3), 0)
    same = method.sample(tiny.nearby(method, image, drawn, 0.0))
    torch.testing.assert_close(same, image.expand(3, -1, -1, -1), rtol=0, atol=0.02)
    near, far = (method.sample(tiny.nearby(method, image, drawn, spread)) for spread in (0.2, 2.0))
    assert 0 < (near - image).square().mean() < 0.3 * (far - image).square().mean()


class PerfectDenoiser(nn.Module):
    """Knows that the data is N(0, 0.25)."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = Unconditional()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, noisy, time, condition, keep=None):
        return torch.zeros_like(noisy)  # EDM's preconditioning alone is the denoiser of Gaussian data


@pytest.mark.parametrize("sampler", ["heun", "euler", "dpmpp_2m", "ancestral"])
def test_gaussian_data_is_sampled_with_its_deviation(sampler):
    method = build("edm", network=PerfectDenoiser(), image_size=32)
    made = method.sample(
        method.draw(range(16), 0), DiffusionOptions(sampler=sampler, steps=100 if sampler == "ancestral" else 40)
    )
    assert made.std().item() == pytest.approx(0.48, abs=0.035)  # 0.5 with all beyond 1 moved to 1


@pytest.mark.parametrize("recipe", ["flow", "edm", "ddpm"])
def test_the_likelihood_of_an_image_depends_on_its_key_alone(recipe):
    method, keys = build(recipe), np.arange(3, dtype=np.uint64) * 77
    whole = method.log_likelihood({"image": batch(3)["image"]}, 1, keys)["log_likelihood"]
    assert whole.shape == (3,)
    assert whole.dtype == torch.float64
    alone = method.log_likelihood({"image": batch(3)["image"][1:2]}, 1, keys[1:2])["log_likelihood"]
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-3)
    assert method.denoiser.network.training


def test_the_likelihood_needs_no_graph_and_is_a_mean_over_samples():
    method, keys = build(), np.arange(2, dtype=np.uint64)
    several = method.log_likelihood({"image": batch(2)["image"]}, 3, keys)["log_likelihood"]
    assert not several.requires_grad
    spread = method.log_likelihood({"image": batch(2)["image"]}, 1, keys)["log_likelihood"] - several
    assert 0 < spread.abs().max() < 0.2 * several.abs().max()


def test_the_likelihood_of_gaussian_data_is_known():
    """In bits per dimension, with the 256 levels' width in [-1, 1]."""
    method = build("edm", network=PerfectDenoiser(), image_size=16)
    image = (0.5 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    image = ((image + 1) * 127.5).round() / 127.5 - 1
    found = method.log_likelihood({"image": image}, 1, np.arange(4, dtype=np.uint64))["log_likelihood"]
    bits = method.likelihood.bits_per_dimension(-found, 3 * 16 * 16)
    exact = -torch.distributions.Normal(0.0, 0.5).log_prob(image.double()).flatten(1).mean(dim=1) / math.log(2) + math.log2(
        127.5
    )
    torch.testing.assert_close(bits, exact, rtol=0, atol=3e-3)  # dequantisation and 100 steps


@pytest.mark.parametrize(("options", "key"), [
    ({"steps": 21}, "steps"), ({"spacing": "power"}, "spacing"), ({"sampler": "heun", "churn": 10.0}, "churn"),
    ({"guidance": 2.0}, "guidance"),
])  # fmt: skip
def test_options_without_effect_on_a_model_are_refused(options, key):
    with raises(ConfigError, key):
        build("ddpm").check_options(DiffusionOptions(**options))


@pytest.mark.parametrize(("options", "key"), [
    ({"sampler": "rk45"}, "sampler"), ({"steps": 0}, "steps"), ({"guidance": -1.0}, "guidance"), ({"eta": 0.5}, "eta"),
    ({"sampler": "ddim", "eta": 2.0}, "eta"), ({"sampler": "ancestral", "variance": "medium"}, "variance"),
    ({"sampler": "euler", "churn": 1.0}, "churn"), ({"churn": -1.0}, "churn"),
    ({"churn": 1.0, "churn_noise": 0.0}, "churn_noise"),
    ({"guidance": 2.0, "guidance_from": 2.0, "guidance_until": 1.0}, "guidance_from"),
    ({"guidance_from": 2.0}, "guidance_from"), ({"guidance_until": 2.0}, "guidance_until"),
    ({"churn_noise": 1.1}, "churn_noise"), ({"churn_until": 5.0}, "churn_until"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options, key):
    with pytest.raises(ValueError, match=rf"^{key}="):
        DiffusionOptions(**options)


def test_another_sampler_drops_what_only_the_former_has():
    usual = DiffusionOptions(sampler="ancestral", steps=20, variance="large", clip=True)
    assert usual.replaced(sampler="heun") == DiffusionOptions(sampler="heun", steps=20)
    assert usual.replaced(steps=5) == DiffusionOptions(sampler="ancestral", steps=5, variance="large", clip=True)
    assert usual.replaced(sampler="ddim", eta=0.5, clip=True) == DiffusionOptions(sampler="ddim", steps=20, eta=0.5, clip=True)


def test_the_default_sampler_s_errors_name_its_key():
    with raises(ConfigError, "sampler.steps"):
        build("ddpm", sampler=DiffusionOptions(sampler="euler", steps=50))


def test_the_large_variance_warns_below_its_number_of_steps(caplog):
    method = build("ddpm")
    method.check_options(DiffusionOptions(sampler="ancestral", variance="large", steps=20))
    assert not caplog.records
    method.check_options(DiffusionOptions(sampler="ancestral", variance="large", steps=10))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(("changes", "key"), [
    ({"prediction": "noise"}, "prediction"), ({"prediction": "score"}, "prediction"), ({"sigma_data": 0.5}, "sigma_data"),
    ({"prediction": "edm"}, "sigma_data"), ({"prediction": "edm", "sigma_data": "measured"}, "sigma_data"),
    ({"prediction": "edm", "sigma_data": 0.0}, "sigma_data"), ({"condition_dropout": 1.0}, "condition_dropout"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(changes, key):
    with pytest.raises(ValueError, match=rf"^{key}="):
        build("flow", **changes)
    with raises(ConfigError, "times"):
        build("edm", times=Uniform())


@pytest.mark.parametrize(("name", "value"), [("num_times", 2), ("augment_dim", 9)])
def test_a_network_for_another_method_is_refused(name, value):
    network = Denoiser(Unconditional())
    setattr(network, name, value)
    with raises(ConfigError, f"network.{name}"):
        build(network=network)
    with raises(ConfigError, "network.augment_dim"):
        build(augment=LabelledAugment(p=0.5, operations=["scale"]))


def test_the_network_is_trained_on_augmented_images_and_receives_their_labels():
    class Labelled(Denoiser):
        augment_dim = 3

        def forward(self, noisy, time, condition, keep=None, augment=None):
            self.received = (noisy, augment)
            return super().forward(noisy, time, condition, keep)

    augment = LabelledAugment(p=0.5, operations=["x_flip", "translate"])
    method, whole = build(network=Labelled(Unconditional()), augment=augment), batch()
    method._loss(whole)
    images, labels = augment(whole["image"], mixed_keys(whole["noise_key"], AUGMENT))
    noisy, received = method.denoiser.network.received
    assert received.equal(labels)
    time = Uniform().at(mixed_keys(whole["noise_key"], TIME), LINE)[:, None, None, None]
    noise = normal(mixed_keys(whole["noise_key"], NOISE), (3, 8, 8))
    assert torch.allclose(noisy, (1 - time) * images + time * noise, atol=1e-5)
    method.denoising_loss(whole, 0.5, np.arange(6, dtype=np.uint64))
    assert method.denoiser.network.received[1] is None
    method.sample({"latent": torch.zeros(2, 192), "noise_key": torch.arange(2)})
    assert method.denoiser.network.received[1] is None


def test_the_augmentation_moves_with_the_model():
    augment = LabelledAugment(p=0.5, operations=["x_flip"])
    network = Denoiser(Unconditional())
    network.augment_dim = 1
    method = build(network=network, augment=augment)
    assert augment in [*method.modules()]
    assert not [name for name in method.state_dict() if "augment" in name]


def test_the_denoising_loss_of_an_average_is_that_of_its_own_weights():
    method, whole = build(), batch()
    average = copy.deepcopy(method.denoiser)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    sampled, alone = with_networks(method, {"denoiser": average}), build()
    alone.denoiser.load_state_dict(average.state_dict())
    keys = np.arange(6, dtype=np.uint64)
    expected = alone.denoising_loss(whole, 0.5, keys)
    assert sampled.denoising_loss(whole, 0.5, keys).equal(expected)
    assert not method.denoising_loss(whole, 0.5, keys).equal(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_uncertainty_divides_the_error_and_weights_keep_unit_magnitude(reduction):
    torch.manual_seed(0)
    uncertainty = Uncertainty(dim=8)
    loss = DenoisingLoss(weighting="plain", gamma=None, reduction=reduction)
    method, plain = build("edm", uncertainty=uncertainty, loss=loss), build("edm", loss=loss)
    assert {*method.parameter_groups()["denoiser"]} == {*method.denoiser.parameters(), *uncertainty.parameters()}
    whole = batch()
    image, key, nothing = whole["image"], whole["noise_key"], torch.zeros(6, 0)
    logarithm = uncertainty(EDM.embedded(method.objective.times.at(mixed_keys(key, TIME), EDM)))
    errors = plain.objective.losses(image, key, nothing, None)
    expected = errors / logarithm.exp() + logarithm * (image[0].numel() if reduction == "sum" else 1)
    assert torch.allclose(method.objective.losses(image, key, nothing, None), expected, rtol=1e-5)
    fixed = plain.denoising_loss(whole, 0.5, np.arange(6, dtype=np.uint64))
    assert method.denoising_loss(whole, 0.5, np.arange(6, dtype=np.uint64)).equal(fixed)  # comparable between models

    def update(group, loss, batch):
        with torch.no_grad():
            uncertainty.output.weight.mul_(5.0)
        return {}

    method.step([whole], Progress(0, 6), update)
    assert uncertainty.output.weight.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)


def test_the_exported_numbers_have_no_negative_zero():
    settings = build("ddpm").export_spec(None).settings
    assert all(math.copysign(1.0, number) > 0 for name in ("times", "scale", "sigma") for number in settings[name])


def test_a_network_of_another_shape_is_refused():
    method = build(channels=3)
    method.denoiser.network.layers[2] = nn.Conv2d(8, 1, 3, padding=1)
    with raises(ConfigError, "network"):
        method.check({"image": torch.zeros(2, 3, 8, 8)})


def test_previews_show_samples_by_class_and_denoised_images():
    method = build(num_classes=2)
    pictures = method.preview(batch(num_classes=2), method.draw(range(4), 0))
    assert pictures["samples"].shape[0] == 2  # one class a row
    assert pictures["denoised"].shape == (6, 9, 3, 8, 8)
    torch.testing.assert_close(pictures["denoised"][:, 0], batch()["image"])


class Descent:
    """An optimizer for one group, as far as ``step`` needs one."""

    def __init__(self, method: nn.Module) -> None:
        self.optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)

    def __call__(self, group: str, loss, microbatches) -> Metrics:
        self.optimizer.zero_grad()
        value, metrics = loss(microbatches[0])
        value.backward()
        self.optimizer.step()
        return metrics


def test_a_step_trains_the_network():
    method = build()
    before = [parameter.clone() for parameter in method.parameters()]
    assert method.step([batch()], Progress(images=0, batch_size=6), Descent(method)).keys() == {"loss/denoising"}
    changed = [not torch.equal(old, new) for old, new in zip(before, method.parameters(), strict=True)]
    assert all(changed)
