"""Restoration: the loss with its mask, the residual, whole steps, and pictures of an inpainting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from errors import raises
from torch import Tensor, nn

from genimg.data.tasks.base import Pair, Task
from genimg.data.tasks.degradations import Denoise, Inpaint
from genimg.data.tasks.masks import Boxes
from genimg.errors import ConfigError
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.image_to_image import in_blocks, pictures_of
from genimg.methods.restoration import Restoration
from genimg.training.device import Precision
from genimg.training.update import Updater
from genimg.types import Progress

SIZE = 8


def network(sources: int, targets: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(sources, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, targets, 1))


def restoration(
    sources: int = 4, targets: int = 3, *, residual: bool, kind: str = "l2", known_weight: float = 1.0, task: Task | None = None
) -> Restoration:
    loss = ReconstructionLoss(kind=kind, epsilon=1e-3 if kind == "charbonnier" else None, known_weight=known_weight)
    return Restoration(
        translator=network(sources, targets), loss=loss, residual=residual, task=task or Pair(source_channels=sources)
    )


def images(channels: int, count: int = 5, seed: int = 1) -> Tensor:
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def inpainting(seed: int = 0) -> tuple[Inpaint, dict[str, Tensor]]:
    task = Inpaint(mask=Boxes(num_boxes=3, side=[0.2, 0.6]))
    return task, task(images(3, seed=seed), np.arange(5), seed)


# The residual


@pytest.mark.parametrize("sources", [3, 4, 5])
def test_a_residual_adds_the_sources_first_channels(sources):
    source, plain = images(sources), network(sources, 3)
    expected = 2 * plain(source) + source[:, :3]
    assert torch.allclose(restoration(sources, residual=True).translate(source), expected, rtol=0, atol=1e-6)
    assert torch.allclose(restoration(sources, residual=False).translate(source), plain(source), rtol=0, atol=1e-6)


def test_a_residual_network_that_answers_0_is_the_identity():
    method = restoration(residual=True)
    nn.init.zeros_(method.parameter_groups()["translator"][-2])
    nn.init.zeros_(method.parameter_groups()["translator"][-1])
    assert torch.equal(method.translate(images(4)), images(4)[:, :3])


def test_a_residual_of_sources_with_fewer_channels_is_refused():
    method = restoration(1, 3, residual=True)
    with raises(ConfigError, "residual=true"):
        method.check({"source": images(1), "target": images(3)})
    restoration(1, 3, residual=False).check({"source": images(1), "target": images(3)})


def test_the_sum_is_float32_in_bf16_and_exact_where_the_network_adds_little():
    method = restoration(residual=True)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.translate(images(4))
    assert found.dtype == torch.float32
    assert torch.allclose(found, method.translate(images(4)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_the_sides_that_sources_need_are_the_networks(residual):
    translator = network(3, 3)
    loss = ReconstructionLoss(kind="l1", epsilon=None, known_weight=1.0)
    assert Restoration(translator=translator, loss=loss, residual=residual, task=Pair(source_channels=4)).size_divisor == 1
    translator.size_divisor = 4
    assert Restoration(translator=translator, loss=loss, residual=residual, task=Pair(source_channels=4)).size_divisor == 4


# Training


@pytest.mark.parametrize("known_weight", [0.0, 1 / 6, 1.0])
@pytest.mark.parametrize("residual", [False, True])
def test_the_loss_weighs_the_pixels_of_the_mask(known_weight, residual):
    method, (_, data) = restoration(residual=residual, known_weight=known_weight), inpainting()
    loss, metrics = method._loss(data)
    output = network(4, 3)(data["source"]) * (2 if residual else 1) + (data["source"][:, :3] if residual else 0.0)
    d = (output - data["target"]).double()
    weight = torch.where(data["mask"] > 0, 1.0, known_weight).double().expand_as(d)
    assert loss.item() == pytest.approx(((weight * d**2).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean().item(), rel=1e-5)
    assert metrics["loss/reconstruction"].item() == loss.item()
    assert not metrics["loss/reconstruction"].requires_grad


def test_without_a_mask_all_pixels_count_the_same():
    method, (_, data) = restoration(residual=False), inpainting()
    del data["mask"]
    expected = (network(4, 3)(data["source"]) - data["target"]).double().square().mean()
    assert method._loss(data)[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_steps_are_those_of_a_plain_loop_with_adam(residual):
    method, plain = restoration(residual=residual, known_weight=0.25), network(4, 3)
    start = copy.deepcopy(list(plain.parameters()))
    groups = method.parameter_groups()
    assert list(groups) == ["translator"]
    optimizers = {"translator": torch.optim.Adam(groups["translator"], lr=0.01)}
    update = Updater(groups, optimizers, precision=Precision("fp32", torch.device("cpu")), max_grad_norm=None)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for step in range(4):
        _, data = inpainting(step)
        metrics = method.step([data], Progress(5 * step, 5), update)
        assert set(metrics) == {"loss/reconstruction", "grad_norm/translator"}
        source, target, mask = (data[key] for key in ("source", "target", "mask"))
        output = 2 * plain(source) + source[:, :3] if residual else plain(source)
        weight = (mask + 0.25 * (1 - mask)).expand_as(target)
        loss = ((weight * (output - target) ** 2).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()
        assert metrics["loss/reconstruction"].item() == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for found, expected, first in zip(groups["translator"], plain.parameters(), start, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(found, first, rtol=0, atol=1e-3)


# Pictures


@pytest.mark.parametrize("residual", [False, True])
def test_an_inpaintings_known_pixels_come_back_bit_for_bit(residual):
    method = restoration(residual=residual)
    method.task, data = inpainting()
    pictures = pictures_of(method, data)
    assert pictures.shape == (5, 3, 3, SIZE, SIZE)
    missing = data["mask"].expand(-1, 3, -1, -1) > 0
    assert missing.any()
    assert not missing.all()
    shown, made, target = pictures.unbind(1)
    translated = method.translate(data["source"])
    assert torch.equal(made[~missing], data["target"][~missing])
    assert torch.equal(made[missing], translated[missing])
    assert not torch.equal(translated[~missing], data["target"][~missing])
    assert torch.equal(target, data["target"])
    assert torch.equal(shown, data["target"].masked_fill(missing, 0.0))
    preview = method.preview(data, {})
    assert list(preview) == ["restored"]
    assert torch.equal(preview["restored"], in_blocks(pictures))


def test_other_tasks_show_what_the_network_answers():
    method = restoration(3, residual=True, task=Denoise(noise="gaussian", amount=30.0))
    data = method.task(images(3), np.arange(5), 0)
    pictures = pictures_of(method, data)
    assert not torch.equal(data["source"], data["target"])
    assert torch.equal(pictures, torch.stack([data["source"], method.translate(data["source"]), data["target"]], dim=1))


def test_check_shows_images_that_do_not_fit():
    with raises(RuntimeError, word="channels"):
        restoration(residual=False).check({"source": images(5), "target": images(3)})
    with raises(ConfigError, "translator", word="returns"):
        restoration(residual=False).check({"source": images(4), "target": images(2)})
