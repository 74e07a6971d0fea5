"""Convolutions that know which pixels are missing, and the U-Net of them."""

import os
import subprocess
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from fork_server import run_command
from torch import Tensor, nn

from genimg.networks.gated_unet import CONVOLUTIONS, GatedConv2d, PartialConv2d, Translator

SETTINGS = {
    "source_channels": 4, "target_channels": 3, "image_size": 16, "convolution": "gated", "width": 4, "num_downs": None,
    "normalisation": "none", "initialisation": "xavier",
}  # fmt: skip


def translator(**changes: Any) -> Translator:
    torch.manual_seed(0)
    return Translator(**(SETTINGS | changes))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def holes(*shape: int) -> Tensor:
    """1 where pixels are known, which most are not."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.03).float()


def partial(inputs: int, outputs: int, size: int, *, stride: int = 1, bias: bool = True) -> PartialConv2d:
    torch.manual_seed(0)
    return PartialConv2d(inputs, outputs, size, stride=stride, bias=bias)


def by_hand(layer: PartialConv2d, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 and 2 of Liu et al. 2018, a window at a time."""
    size, stride = layer.kernel_size[0], layer.stride[0]
    border = [size // 2] * 4
    features, known = F.pad(features, border), F.pad(known.expand_as(features), border)  # 0, which is missing
    height, width = ((side - size) // stride + 1 for side in features.shape[2:])
    result = torch.zeros(len(features), layer.out_channels, height, width)
    updated = torch.zeros(len(features), 1, height, width)
    for n in range(len(features)):
        for i in range(height):
            for j in range(width):
                window = (n, slice(None), slice(i * stride, i * stride + size), slice(j * stride, j * stride + size))
                x, m = features[window], known[window]
                if m.sum() > 0:
                    updated[n, 0, i, j] = 1.0
                    for k in range(layer.out_channels):
                        product = (layer.weight[k] * (x * m)).sum() * (m.numel() / m.sum())
                        result[n, k, i, j] = product if layer.bias is None else product + layer.bias[k]
    return result, updated


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_partial_convolution_is_that_of_the_paper(channels: int, size: int, stride: int, bias: bool) -> None:
    layer = partial(3, 2, size, stride=stride, bias=bias)
    features, known = random(2, 3, 7, 8), holes(2, channels, 7, 8)
    result, updated = layer(features, known)
    expected, expected_known = by_hand(layer, features, known)
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(updated, expected_known)
    assert 0 < updated.mean() < 1


def test_a_partial_convolution_of_what_is_known_is_plain_away_from_the_border() -> None:
    layer, features = partial(3, 2, 3), random(1, 3, 8, 8)
    result, known = layer(features, torch.ones(1, 1, 8, 8))
    plain = F.conv2d(features, layer.weight, layer.bias, padding=1)
    assert torch.allclose(result[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1], atol=1e-6)
    shift = layer.bias[:, None, None]
    assert torch.allclose(result[..., 0, 1:-1], ((plain - shift) * 9 / 6 + shift)[..., 0, 1:-1], atol=1e-5)
    assert known.min() == 1


def test_a_window_of_holes_gives_0_and_stays_one_and_holes_have_no_influence() -> None:
    layer, known = partial(3, 2, 3), torch.ones(1, 1, 9, 9)
    known[..., 2:7, 2:7] = 0
    features = random(1, 3, 9, 9)
    result, updated = layer(features, known)
    expected = torch.ones(9, 9)
    expected[3:6, 3:6] = 0  # a hole is filled from its border, a pixel at a time
    assert torch.equal(updated[0, 0], expected)
    assert torch.equal(result == 0, (updated == 0).expand_as(result))
    changed = torch.where(known > 0, features, 1e3)
    assert torch.equal(layer(changed, known)[0], result)
    assert layer(features, torch.zeros(1, 1, 9, 9))[0].abs().max() == 0


def test_partial_convolution_in_bfloat16_is_near_that_of_float32() -> None:
    layer, features, known = partial(8, 4, 3), random(2, 8, 12, 12), holes(2, 1, 12, 12)
    expected, expected_known = layer(features, known)
    with torch.autocast("cpu", torch.bfloat16):
        result, updated = layer(features.bfloat16(), known.bfloat16())
    assert result.dtype == torch.bfloat16
    assert torch.equal(updated.float(), expected_known)
    assert torch.allclose(result.float(), expected, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize("gate", [torch.inf, 0.0, -torch.inf])
def test_an_open_gate_is_a_plain_convolution_and_a_closed_one_is_0(gate: float) -> None:
    torch.manual_seed(0)
    layer = GatedConv2d(3, 4, 5, stride=2, activation=nn.ELU())
    with torch.no_grad():
        layer.convolution.weight[4:] = 0.0
        layer.convolution.bias[4:] = gate
    features = random(2, 3, 8, 8)
    plain = F.elu(F.conv2d(features, layer.convolution.weight[:4], layer.convolution.bias[:4], stride=2, padding=2))
    assert torch.allclose(layer(features), plain * {torch.inf: 1.0, 0.0: 0.5, -torch.inf: 0.0}[gate], atol=1e-6)


def source(*shape: int) -> Tensor:
    """Images with holes, and the mask as a last channel."""
    known = torch.ones(shape[0], 1, *shape[2:])
    known[..., 3:9, 2:11] = 0
    return torch.cat([random(*shape).clamp(-1, 1) * known, 1 - 2 * known], dim=1)


@pytest.mark.parametrize("normalisation", ["none", "batch", "instance"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_any_size_is_filled_and_every_weight_learns(convolution: str, normalisation: str) -> None:
    network = translator(convolution=convolution, normalisation=normalisation)
    assert network.size_divisor == 8
    result = network(source(2, 3, 16, 24).to(memory_format=torch.channels_last))
    assert result.shape == (2, 3, 16, 24)
    assert result.abs().max() <= 1
    (result * random(2, 3, 16, 24)).sum().backward()
    # A bias in front of an instance norm without scale cannot learn: the norm takes it away.
    idle = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert all(name.endswith("bias") for name in idle)
    assert not idle or normalisation == "instance"


@pytest.mark.parametrize(
    ("image_size", "num_downs", "multiple"), [(512, None, 256), (64, None, 32), ([48, 32], None, 16), (28, None, 4), (64, 1, 2)]
)
def test_depth_follows_the_size(image_size: Any, num_downs: int | None, multiple: int) -> None:
    assert translator(image_size=image_size, num_downs=num_downs, width=1).size_divisor == multiple


def test_a_partial_network_never_sees_what_is_in_the_holes() -> None:
    network, image = translator(convolution="partial", normalisation="batch").eval(), source(1, 3, 16, 16)
    changed = torch.where(image[:, -1:] > 0, 5.0, image[:, :-1])
    assert torch.equal(network(torch.cat([changed, image[:, -1:]], dim=1)), network(image))
    assert not torch.equal(translator()(torch.cat([changed, image[:, -1:]], dim=1)), translator()(image))


def test_plain_and_partial_network_are_the_chains_of_their_layers() -> None:
    image = source(1, 3, 16, 16)
    for convolution in ("plain", "partial"):
        network = translator(convolution=convolution, num_downs=1)
        down, up = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        if isinstance(down, PartialConv2d) and isinstance(up, PartialConv2d):
            features, known = image[:, :-1], (image[:, -1:] < 0).float()
            small, small_known = by_hand(down, features, known)
            double, double_known = small.relu().repeat_interleave(2, 2).repeat_interleave(2, 3), small_known
            double_known = double_known.repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(double)
            both = torch.cat([double_known, known.expand_as(features)], 1)
            expected, _ = by_hand(up, torch.cat([double, features], 1), both)
        else:
            small = F.conv2d(image, down.weight, down.bias, stride=2, padding=3).relu()
            double = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
            expected = F.conv2d(torch.cat([double, image], 1), up.weight, up.bias, padding=1)
        assert torch.allclose(network(image), expected.tanh(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"convolution": "dilated"}, "convolution=dilated"),
        ({"width": 0}, "width=0"),
        ({"num_downs": 0}, "num_downs=0"),
        ({"num_downs": 4}, "multiples"),
        ({"image_size": 15}, "multiples"),
        ({"source_channels": 3}, "source_channels=3"),
        ({"normalisation": "group"}, "normalisation=group"),
        ({"initialisation": "zeros"}, "initialisation=zeros"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with raises(ValueError, word=words):
        translator(**changes)


def test_it_trains_from_the_command_line(tmp_path: Any) -> None:
    fixed = ["model=restoration_gated", "data.image_size=16", "data.num_images=16", "model.translator.width=2", "device=cpu"]
    fixed += ["trainer.batch_size=4", "trainer.duration=2 steps", "evaluation=none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(tmp_path / "cache")}

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        return run_command("train", *fixed, *overrides, cwd=tmp_path, env=environment)

    for convolution, task in (("gated", "inpaint"), ("partial", "inpaint_boxes")):
        done = train(f"model.translator.convolution={convolution}", f"task={task}", f"run_dir={convolution}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / convolution / "checkpoints" / "last.pt").is_file()
    refused = train("task=denoise", "run_dir=refused")
    assert refused.returncode != 0
    assert "translator.source_channels=3 must be 4" in refused.stderr
    assert "Traceback" not in refused.stderr
