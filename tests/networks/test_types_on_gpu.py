"""Under autocast on a GPU, features stay bfloat16 from layer to layer, and channels-last; statistics are float32."""

from __future__ import annotations

import pytest
import torch
from fake_devices import fake_device
from torch import nn

from genimg.networks.conditioning import Unconditional
from genimg.networks.diffusion_layers import attention
from genimg.networks.layers import SelfAttention, normalisation_layer, upsampling_convolution
from genimg.networks.magnitude_preserving_unet import MagnitudePreservingUNet
from genimg.networks.resampling import Doubling, Downsample, Upsample
from genimg.networks.resnet_gan import GeneratorBlock

SHAPE = (2, 16, 8, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubling(),
        lambda: Doubling("bilinear"),
        lambda: Upsample((1, 3, 3, 1)),
        lambda: Downsample((1, 3, 3, 1)),
        lambda: SelfAttention(16),
        lambda: upsampling_convolution(16, 16, 4, kind="resize", bias=True),
        *(lambda kind=kind: normalisation_layer(kind, 16) for kind in ("batch", "instance", "layer")),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_keeps_the_type_of_its_features(monkeypatch, make, dtype):
    layer = make()
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        result = gpu.place(layer)(gpu.tensor(*SHAPE, dtype=dtype))
    has_convolution = isinstance(layer, nn.Sequential)
    assert result.dtype == (torch.bfloat16 if has_convolution else dtype)


def test_autocast_alone_would_interpolate_in_float32(monkeypatch):
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        result = nn.Upsample(scale_factor=2)(gpu.tensor(*SHAPE, dtype=torch.bfloat16))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_the_residual_sum_of_a_generator_is_bfloat16(monkeypatch, upsampling):
    block = GeneratorBlock(16, 16, normalisation="batch", condition_dim=0, upsampling=upsampling)
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        result = gpu.place(block)(gpu.tensor(*SHAPE, dtype=torch.bfloat16), gpu.tensor(2, 0))
    assert result.dtype == torch.bfloat16
    assert result.shape == (2, 16, 16, 16)


def types_seen_by(monkeypatch, name: str) -> list[torch.dtype]:
    """Return a list that collects the types of the first inputs of a function of ``torch.nn.functional``."""
    seen: list[torch.dtype] = []
    original = getattr(torch.nn.functional, name)

    def noting(*args, **kwargs):
        seen.append(args[0].dtype)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, name, noting)
    return seen


def test_attention_is_computed_in_the_type_of_its_values(monkeypatch):
    seen = types_seen_by(monkeypatch, "scaled_dot_product_attention")
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        query = gpu.tensor(2, 1, 64, 16)
        key, value = (gpu.tensor(2, 1, 64, 16, dtype=torch.bfloat16) for _ in range(2))
        assert attention(query, key, value).dtype == torch.bfloat16
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(("layer", "convolution"), [(Upsample, "conv_transpose2d"), (Downsample, "conv2d")])
def test_filters_are_applied_in_the_type_of_their_features(monkeypatch, layer, convolution):
    seen = types_seen_by(monkeypatch, convolution)
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        gpu.place(layer((1, 3, 3, 1)))(gpu.tensor(*SHAPE, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16]


def test_edm2_adds_features_of_one_type_in_blocks_that_double_the_size(monkeypatch):
    network = MagnitudePreservingUNet(
        channels=3, image_size=8, condition=Unconditional(), width=8, multipliers=[1, 2], num_blocks=1, attention_sizes=[4],
        channels_per_head=None, dropout=0.0,
    )  # fmt: skip
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        result = gpu.place(network)(gpu.tensor(2, 3, 8, 8), gpu.tensor(2), gpu.tensor(2, 0))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 4, 5])
def test_instance_norm_keeps_the_format(monkeypatch, count):
    layer = normalisation_layer("instance", 16)
    with fake_device(monkeypatch, "cuda", "bf16") as gpu:
        features = gpu.tensor(count, 16, 8, 8, dtype=torch.bfloat16, channels_last=True)
        result = gpu.place(layer)(features)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == torch.bfloat16
