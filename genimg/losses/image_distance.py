"""Distances between pairs of images, one for each pair, that an optimisation of latents can minimise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.losses.efficientnet_lite import SHA256
from genimg.losses.lpips import LPIPSNetwork
from genimg.losses.perceptual import EfficientNetLiteLoss
from genimg.utils.machine_local import LocalPath

_LEAST_SIDE = 8  # pixels of the coarsest scale
_STAGES = (1, 2, 3, 5)  # sides of 1/2, 1/4, 1/8 and 1/16 of the images'
_LARGEST = 256  # pixels; LPIPS is computed on larger images after averaging, as in StyleGAN2's projection


class ImageDistance(nn.Module, ABC):
    """A distance [N] between images [N, 1 or 3, H, W] in [-1, 1] and targets of the same shape; 0 for equal images.

    Attributes:
        name: Name of the distance, for options, metric names and records.
    """

    name: str

    @abstractmethod
    def forward(self, images: Tensor, targets: Tensor) -> Tensor: ...

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what determines the values, for records."""


class PixelDistance(ImageDistance):
    """The squared difference of pixels and of their gradients, at several scales.

    With x_s, the image whose pixels are means of 2^s x 2^s pixels, and D, the differences of neighbouring pixels along both
    axes, the distance is

        d(x, y) = mean over s of (mean |x_s - y_s|^2 + mean |D x_s - D y_s|^2)

    for s from 0 to the last scale whose shorter side is at least 8 pixels. Gradients penalise blurred edges, and coarse scales
    give a slope to strokes that do not overlap yet. It suits small grey images, on which networks for photos are not trained.
    """

    name = "pixels"

    def __init__(self) -> None:  # without it, the parameters in a config could not be checked
        super().__init__()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        scales = []
        difference = images - targets
        while True:
            down, across = difference.diff(dim=2), difference.diff(dim=3)
            scales.append(sum(each.square().flatten(1).mean(dim=1) for each in (difference, down, across)))
            if min(difference.shape[2:]) < 2 * _LEAST_SIDE:
                return torch.stack(scales).mean(dim=0)  # type: ignore[arg-type]
            difference = F.avg_pool2d(difference, 2)

    def describe(self) -> dict[str, Any]:
        return {"distance": self.name}


class EfficientNetLiteDistance(ImageDistance):
    """``EfficientNetLiteLoss`` of stages 1, 2, 3 and 5, plus a multiple of ``PixelDistance``.

    Args:
        pixel_weight: Weight of ``PixelDistance``, 0 or more. Features say little about brightness, so an optimisation needs it.

    Raises:
        ValueError: If the weight is out of range.
        DataError: If the package with the weights is not installed, or its file is damaged.
    """

    def __init__(self, *, pixel_weight: float = 0.0) -> None:
        super().__init__()
        if not pixel_weight >= 0:
            raise ValueError(f"pixel_weight={pixel_weight} must be 0 or more")
        self.name = "efficientnet_lite0_pixels" if pixel_weight else "efficientnet_lite0"
        self.pixel_weight = pixel_weight
        self.features = EfficientNetLiteLoss(stages=_STAGES, weight=1.0)
        self.pixels = PixelDistance()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        distances = self.features.distances(images, targets)
        if self.pixel_weight:
            distances = distances + self.pixel_weight * self.pixels(images, targets)
        return distances

    def describe(self) -> dict[str, Any]:
        return {
            "distance": self.name, "stages": list(_STAGES), "pixel_weight": self.pixel_weight, "weights_sha256": SHA256
        }  # fmt: skip


class LPIPSDistance(ImageDistance):
    """LPIPS; images with a side above 256 pixels are averaged down first, as in StyleGAN2's projection.

    Args:
        backbone, backbone_weights, linear_weights: See ``LPIPSNetwork``.

    Raises:
        ValueError: If the backbone is unknown.
        DataError: If a file does not exist or holds other weights.
    """

    def __init__(self, *, backbone: str, backbone_weights: LocalPath, linear_weights: LocalPath) -> None:
        super().__init__()
        self.network = LPIPSNetwork(backbone=backbone, backbone_weights=backbone_weights, linear_weights=linear_weights)
        self.name = f"lpips_{backbone}"
        self._digests = self.network.digests()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        distances: Tensor = self.network(*(shrunk(each.float()) for each in (images, targets)))
        return distances

    def describe(self) -> dict[str, Any]:
        return {"distance": self.name, **self._digests}


def shrunk(images: Tensor) -> Tensor:
    """Average images [N, C, H, W] with a side above 256 pixels, by a whole factor, to at most 256 pixels."""
    factor = -(-max(images.shape[2:]) // _LARGEST)
    return images if factor == 1 else F.avg_pool2d(images, factor)
