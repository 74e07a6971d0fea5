"""Pix2Pix against the paper's equations written out, and whole steps against plain loops of torch.optim.Adam."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import Tensor, nn

from genimg.data.tasks.base import Pair
from genimg.data.tasks.degradations import Inpaint
from genimg.data.tasks.masks import Center
from genimg.errors import ConfigError
from genimg.losses.adversarial import (
    AdversarialLoss,
    cross_entropy_discriminator_loss,
    nonsaturating_generator_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.image_to_image import in_blocks, pictures_of
from genimg.methods.pix2pix import Pix2Pix
from genimg.networks.patchgan import PatchDiscriminator
from genimg.networks.unet import Translator
from genimg.training.device import Precision
from genimg.training.update import Updater
from genimg.types import Progress

NONSATURATING = AdversarialLoss(discriminator=cross_entropy_discriminator_loss, generator=nonsaturating_generator_loss)
RELATIVISTIC = AdversarialLoss(
    discriminator=relativistic_discriminator_loss, generator=relativistic_generator_loss, relativistic=True
)
SOURCE_CHANNELS, TARGET_CHANNELS = 2, 3


def translator(*, source_channels: int = SOURCE_CHANNELS, dropout: float = 0.0, normalisation: str = "batch") -> Translator:
    return Translator(
        source_channels=source_channels, target_channels=TARGET_CHANNELS, image_size=16, width=4, num_downs=2,
        normalisation=normalisation, upsampling="transposed", dropout=dropout, num_dropout=1, initialisation="xavier",
        spectral_norm=False,
    )  # fmt: skip


def discriminator(*, source_channels: int = SOURCE_CHANNELS, normalisation: str = "batch") -> PatchDiscriminator:
    return PatchDiscriminator(
        target_channels=TARGET_CHANNELS, source_channels=source_channels, width=4, num_strided=1, num_scales=2,
        normalisation=normalisation, initialisation="xavier", spectral_norm=False,
    )  # fmt: skip


def l1(known_weight: float = 1.0) -> ReconstructionLoss:
    return ReconstructionLoss(kind="l1", epsilon=None, known_weight=known_weight)


def pix2pix(**changes: Any) -> Pix2Pix:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"translator": translator(), "discriminator": discriminator()}
    settings = {"loss": NONSATURATING, "reconstruction": l1(), "reconstruction_weight": 10.0, "sampled_mode": "eval",
                "task": Pair(source_channels=SOURCE_CHANNELS)}  # fmt: skip
    return Pix2Pix(**(networks | settings | changes))


def batch(seed: int = 1, count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"source": SOURCE_CHANNELS, "target": TARGET_CHANNELS}
    return {key: (torch.rand(count, channels, 16, 16, generator=random) * 2 - 1).to(dtype) for key, channels in shapes.items()}


def holes(count: int = 3) -> Tensor:
    mask = torch.zeros(count, 1, 16, 16)
    for number in range(count):
        mask[number, 0, 2 : 6 + number, 4:9] = 1.0
    return mask


def updater(method: Pix2Pix, optimizer: type = torch.optim.SGD, **settings: Any) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: optimizer(parameters, **settings) for name, parameters in groups.items()}
    return Updater(groups, optimizers, precision=Precision("fp32", torch.device("cpu")), max_grad_norm=None)


def judged(network: PatchDiscriminator, source: Tensor, image: Tensor) -> list[Tensor]:
    """D(x, y) of both scales, the source beside the image."""
    whole = torch.cat([source, image], dim=1)
    small = F.avg_pool2d(whole, 3, stride=2, padding=1, count_include_pad=False)
    return [network.scales[0](whole), network.scales[1](small)]


def mean(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


def discriminator_loss(network: PatchDiscriminator, source: Tensor, target: Tensor, fake: Tensor) -> Tensor:
    """-E[log D(x, y)] - E[log(1 - D(x, G(x)))], equation 1, the mean of the scales."""
    real, made = judged(network, source, target), judged(network, source, fake.detach())
    return mean([-F.logsigmoid(r).mean() - F.logsigmoid(-f).mean() for r, f in zip(real, made, strict=True)])


def translator_loss(network: PatchDiscriminator, source: Tensor, target: Tensor, fake: Tensor, weight: float) -> Tensor:
    """-E[log D(x, G(x))] + lambda E|y - G(x)|, equations 3 and 4."""
    return mean([-F.logsigmoid(f).mean() for f in judged(network, source, fake)]) + weight * (target - fake).abs().mean()


# One step


@pytest.mark.parametrize("normalisation", ["batch", "instance"])
def test_losses_of_a_step_are_the_papers(normalisation):
    method = pix2pix(
        translator=translator(normalisation=normalisation), discriminator=discriminator(normalisation=normalisation)
    )
    network, judge, data = copy.deepcopy(method.network), copy.deepcopy(method.discriminator), batch()
    fake = network(data["source"])
    metrics = method.step([data], Progress(0, 3), updater(method, lr=0.1))
    expected = discriminator_loss(judge, **data, fake=fake)
    assert metrics["loss/discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["logits/real"].item() == pytest.approx(
        judged(judge, data["source"], data["target"])[0].mean().item(), abs=1e-5
    )
    assert metrics["logits/fake"].item() == pytest.approx(judged(judge, data["source"], fake)[0].mean().item(), abs=1e-5)
    # The translator meets the discriminator that has just been updated.
    after = method.discriminator
    assert metrics["loss/translator"].item() == pytest.approx(
        translator_loss(after, **data, fake=fake, weight=10).item(), rel=1e-5
    )
    assert metrics["loss/adversarial"].item() == pytest.approx(
        translator_loss(after, **data, fake=fake, weight=0).item(), rel=1e-5
    )
    assert metrics["loss/reconstruction"].item() == pytest.approx((fake - data["target"]).abs().mean().item(), rel=1e-5)
    before = translator_loss(judge, **data, fake=fake, weight=0).item()
    assert abs(metrics["loss/adversarial"].item() / before - 1) > 1e-3
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_a_relativistic_translator_is_compared_with_the_target():
    method, data = pix2pix(loss=RELATIVISTIC, reconstruction_weight=0.0), batch()
    fake = method.network(data["source"])
    loss, _ = method._translator_loss(data | {"fake": fake})
    real, made = (judged(method.discriminator, data["source"], image) for image in (data["target"], fake))
    expected = mean([-F.logsigmoid(f - r).mean() for r, f in zip(real, made, strict=True)])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_of_a_step_are_those_of_each_groups_own_loss():
    method, data = pix2pix(), batch()
    network, judge = copy.deepcopy(method.network), copy.deepcopy(method.discriminator)
    method.step([data], Progress(0, 3), updater(method, lr=0.0))
    fake = network(data["source"])
    first = torch.autograd.grad(discriminator_loss(judge, **data, fake=fake), list(judge.parameters()))
    second = torch.autograd.grad(translator_loss(judge, **data, fake=fake, weight=10), list(network.parameters()))
    for group, gradients in (("discriminator", first), ("translator", second)):
        for parameter, gradient in zip(method.parameter_groups()[group], gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
            assert gradient.abs().max() > 1e-4


def test_the_discriminators_loss_does_not_reach_the_translator():
    method, data = pix2pix(), batch()
    loss, _ = method._discriminator_loss(data | {"fake": method.network(data["source"])})
    loss.backward()
    assert all(parameter.grad is None for parameter in method.network.parameters())
    assert all(parameter.grad.any() for parameter in method.discriminator.parameters())


def test_groups_are_the_two_networks_and_hold_every_parameter_once():
    method = pix2pix()
    groups = method.parameter_groups()
    assert list(groups) == ["discriminator", "translator"]
    found = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(found) == sorted(id(parameter) for parameter in method.parameters())


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_every_microbatch_is_translated_once_a_step_and_again_where_there_are_several(num_microbatches):
    method, seen = pix2pix(), []
    method.network.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    data = [batch(seed) for seed in range(num_microbatches)]
    method.step(data, Progress(0, 3 * num_microbatches), updater(method, lr=0.1))
    expected = data if num_microbatches == 1 else [*data, *data]  # of the second, no graph is kept from the first
    assert len(seen) == len(expected)
    assert all(source is each["source"] for source, each in zip(seen, expected, strict=True))


def test_steps_are_those_of_a_plain_loop_with_adam(monkeypatch):
    """In float64, where weights without effect, whose gradients are rounding alone, stay where they are."""
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)  # so that no rounding grows from step to step
    settings = {"lr": 0.01, "betas": (0.5, 0.999)}
    method = pix2pix().double()
    network, judge = copy.deepcopy(method.network), copy.deepcopy(method.discriminator)
    start = copy.deepcopy(method.state_dict())
    update = updater(method, torch.optim.Adam, **settings)
    of_network = torch.optim.Adam(network.parameters(), **settings)
    of_judge = torch.optim.Adam(judge.parameters(), **settings)
    for step in range(3):
        data = batch(step, dtype=torch.float64)
        method.step([data], Progress(3 * step, 3), update)
        fake = network(data["source"])
        of_judge.zero_grad()
        discriminator_loss(judge, **data, fake=fake).backward()
        of_judge.step()
        of_network.zero_grad()
        translator_loss(judge, **data, fake=fake, weight=10.0).backward()
        of_network.step()
    expected = {
        **{f"network.{name}": value for name, value in network.state_dict().items()},
        **{f"discriminator.{name}": value for name, value in judge.state_dict().items()},
    }
    found = method.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-8), name
        assert not torch.allclose(start[name], value.to(start[name].dtype), rtol=0, atol=1e-3), name


def test_a_step_cut_into_microbatches_has_the_gradients_of_the_whole():
    def gradients(num_microbatches: int) -> dict[str, Tensor]:
        method = pix2pix(translator=translator(normalisation="instance"), discriminator=discriminator(normalisation="instance"))
        data = batch(count=4)
        parts = [{key: value.chunk(num_microbatches)[i] for key, value in data.items()} for i in range(num_microbatches)]
        method.step(parts, Progress(0, 4), updater(method, lr=0.0))
        return {name: parameter.grad for name, parameter in method.named_parameters()}

    torch.manual_seed(0)
    whole = gradients(1)
    torch.manual_seed(0)
    for name, gradient in gradients(2).items():
        assert torch.allclose(gradient, whole[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("known_weight", [0.0, 1 / 6, 1.0])
def test_a_mask_reaches_the_reconstruction_loss(known_weight):
    method, data = pix2pix(reconstruction=l1(known_weight)), batch() | {"mask": holes()}
    weight = torch.where(data["mask"] > 0, 1.0, known_weight).expand(-1, 3, -1, -1)
    fake = copy.deepcopy(method.network)(data["source"])
    metrics = method.step([data], Progress(0, 3), updater(method, lr=0.1))
    expected = ((weight * (fake - data["target"]).abs()).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()
    assert metrics["loss/reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)
    total = metrics["loss/adversarial"] + 10.0 * expected
    assert metrics["loss/translator"].item() == pytest.approx(total.item(), rel=1e-5)


# Translating


def test_in_train_mode_dropout_is_on_and_buffers_stay():
    method = pix2pix(translator=translator(dropout=0.5), sampled_mode="train").eval()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    first, second = (method.translate(batch()["source"]) for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    assert any("running_mean" in name for name in before)
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not method.network.training
    torch.manual_seed(3)
    expected = torch.cat([method.network.train()(image) for image in batch()["source"].split(1)])
    torch.manual_seed(3)
    assert torch.equal(method.translate(batch()["source"]), expected)


def test_in_train_mode_an_image_has_statistics_of_its_own():
    method, source = pix2pix(sampled_mode="train"), batch()["source"]
    found = method.translate(source)
    for number in range(len(source)):
        assert torch.equal(method.translate(source[number:][:1]), found[number:][:1])
    assert not torch.allclose(method.network.train()(source), found, rtol=0, atol=1e-2)


def test_in_eval_mode_the_averages_normalise_and_nothing_is_random():
    method = pix2pix(translator=translator(dropout=0.5))
    method.network(batch()["source"])  # so that the averages are not as they began
    source = batch(2)["source"]
    found = method.translate(source)
    assert torch.equal(method.translate(source), found)
    assert method.network.training
    assert torch.equal(method.network.eval()(source), found)
    assert torch.allclose(method.translate(source[:1]), found[:1], rtol=0, atol=1e-5)
    assert not torch.allclose(method.network.train()(source), found, rtol=0, atol=1e-2)


@pytest.mark.parametrize("source_channels", [1, 3])
def test_pictures_are_sources_translations_and_targets(source_channels):
    method = pix2pix(translator=translator(source_channels=source_channels), task=Pair(source_channels=source_channels))
    data = batch(count=9) | {"source": batch(5, count=9)["target"][:, :source_channels]}
    pictures = pictures_of(method, data)
    assert pictures.shape == (9, 3, 3, 16, 16)
    assert torch.equal(pictures[:, 0], data["source"].expand(-1, 3, -1, -1))
    assert torch.equal(pictures[:, 1], method.translate(data["source"]))
    assert torch.equal(pictures[:, 2], data["target"])
    preview = method.preview(data, {})
    assert list(preview) == ["translations"]
    assert torch.equal(preview["translations"], in_blocks(pictures))


def test_pictures_of_inpainting_have_the_known_pixels_as_they_were():
    networks = {"translator": translator(source_channels=4), "discriminator": discriminator(source_channels=4)}
    method = pix2pix(**networks, task=Inpaint(mask=Center(size=0.5)))
    image = batch()["target"]
    data = method.task(image, np.arange(3), 0)
    method.check(data)
    pictures = method.preview(data, {})["translations"]
    assert pictures.shape == (3, 3, 3, 16, 16)
    missing = data["mask"].expand_as(image) > 0
    assert missing.any()
    assert torch.equal(pictures[:, 1][~missing], image[~missing])
    assert torch.equal(pictures[:, 1][missing], method.translate(data["source"])[missing])
    assert torch.equal(pictures[:, 2], image)


@pytest.mark.parametrize(
    ("mode", "normalisation", "said"), [("eval", "batch", True), ("train", "batch", False), ("eval", "instance", False)]
)
def test_check_tells_of_the_authors_mode_where_it_would_make_a_difference(mode, normalisation, said, caplog):
    caplog.set_level(logging.INFO)
    pix2pix(translator=translator(normalisation=normalisation), sampled_mode=mode).check(batch())
    assert ("sampled_mode=train" in caplog.text) == said


@pytest.mark.parametrize("misfit", ["source", "target"])
def test_check_shows_images_that_do_not_fit(misfit):
    with raises((RuntimeError, ConfigError), word={"source": "channels", "target": "translator"}[misfit]):
        pix2pix().check(batch() | {misfit: torch.zeros(3, 5, 16, 16)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"reconstruction_weight": -1.0}, "reconstruction_weight=-1.0"), ({"sampled_mode": "mean"}, "sampled_mode=mean")],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        pix2pix(**changes)
