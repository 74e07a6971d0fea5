"""Random augmentation of training images on the device, a function of (seed, position) alone.

Runs therefore resume exactly, and results do not depend on the storage or the batch size. A batch is augmented at once,
with separate parameters for each sample; tests compare with torchvision, which augments one image at a time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from genimg.errors import ConfigError
from genimg.utils.images import mirror_and_shift, to_float, to_uint8
from genimg.utils.rng import Stream, uniform


class SampleAugment:
    """Flips, shifts, rotates and recolours images, in this order. A setting of 0 skips its operation.

    Args:
        horizontal_flip, vertical_flip: Probabilities.
        crop_padding: Maximum shift in pixels, as by a random crop after reflection padding.
        rotation: Maximum angle in degrees, in both directions; corners are filled by reflection.
        brightness, contrast, saturation: Range x of the factor, drawn from [1 - x, 1 + x] and at least 0.
        hue: Maximum shift in both directions, as a share of the colour circle, at most 0.5.
    """

    def __init__(
        self,
        *,
        horizontal_flip: float,
        vertical_flip: float,
        crop_padding: int,
        rotation: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        self.horizontal_flip = _checked("horizontal_flip", horizontal_flip, 1.0)
        self.vertical_flip = _checked("vertical_flip", vertical_flip, 1.0)
        self.crop_padding = int(_checked("crop_padding", crop_padding, math.inf))
        self.rotation = _checked("rotation", rotation, 180.0)
        self.brightness = _checked("brightness", brightness, math.inf)
        self.contrast = _checked("contrast", contrast, math.inf)
        self.saturation = _checked("saturation", saturation, math.inf)
        self.hue = _checked("hue", hue, 0.5)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Reject settings that do not apply to images of ``shape`` (C, H, W).

        Raises:
            ConfigError: If a setting does not fit the images.
        """
        channels, height, width = shape
        if self.crop_padding >= min(height, width):
            raise ConfigError(
                f"crop_padding={self.crop_padding} must be less than the height and width of the images ({height}x{width}), "
                "which it reflects"
            )
        for name in ("brightness", "contrast", "saturation", "hue"):
            value = getattr(self, name)
            if value and (channels not in (1, 3) or (channels == 1 and name in ("saturation", "hue"))):
                why = "has no effect on grey images" if channels == 1 else "does not support RGBA images and pairs"
                raise ConfigError(f"{name}={value} {why}: set {name}=0")

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Tensor:
        """Return augmented images of the same type.

        Args:
            images: Images [N, C, H, W], uint8 or float in [-1, 1].
            positions: Positions of the samples in the training stream, int64 [N].
            seed: Seed of training.
        """
        if images.dtype == torch.uint8:
            return to_uint8(self(to_float(images), positions, seed))

        drawn = self._draw(positions, seed).to(images.device, non_blocking=True)
        mirrored, upside_down, down, right, degrees, *factors, turns = drawn.unbind()
        if self.horizontal_flip or self.vertical_flip or self.crop_padding:
            images = mirror_and_shift(images, mirrored > 0, upside_down > 0, down.long(), right.long())
        if self.rotation:
            images = rotate(images, degrees)
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return images
        images = (images + 1.0) / 2.0
        if self.brightness:
            images = adjust_brightness(images, factors[0])
        if self.contrast:
            images = adjust_contrast(images, factors[1])
        if self.saturation:
            images = adjust_saturation(images, factors[2])
        if self.hue:
            images = shift_hue(images, turns)
        return images * 2.0 - 1.0

    def _draw(self, positions: NDArray[np.int64], seed: int) -> Tensor:
        """Draw the parameters of each sample, in the order of the settings, with two shifts for the crop: float32 [9, N]."""
        chance = uniform(seed, Stream.SAMPLE_AUGMENT, np.arange(9)[:, None], positions)  # [9, N]
        probabilities = np.array([[self.horizontal_flip], [self.vertical_flip]])
        shifts = np.floor((2 * self.crop_padding + 1) * chance[2:4]) - self.crop_padding
        reaches = np.array([[self.brightness], [self.contrast], [self.saturation]])
        lowest = np.maximum(0.0, 1.0 - reaches)
        factors = lowest + (1.0 + reaches - lowest) * chance[5:8]
        degrees, turns = self.rotation * (2.0 * chance[4:5] - 1.0), self.hue * (2.0 * chance[8:] - 1.0)
        drawn = np.concatenate([chance[:2] < probabilities, shifts, degrees, factors, turns])
        return torch.from_numpy(drawn.astype(np.float32))


def _checked(name: str, value: float, most: float) -> float:
    if not 0 <= value <= most or value == math.inf:
        rule = ", 0 or more" if most == math.inf else f" from 0 to {most:g}"
        raise ValueError(f"{name}={value} must be a number{rule}")
    return value


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images [N, C, H, W] counter-clockwise by ``degrees`` [N], with bilinear sampling and reflected borders."""
    height, width = images.shape[2:]
    # Pixels from the centre. The matrix product of affine_grid would be inexact in TF32.
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device)[None, :] - (width - 1) / 2
    radians = torch.deg2rad(degrees)[:, None, None]
    cosine, sine = radians.cos(), radians.sin()
    grid = torch.stack([(cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)], dim=-1)  # [N, H, W, 2]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images [N, C, H, W] in [0, 1] by ``factors`` [N]."""
    return _blend(images, torch.zeros_like(images), factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance from the mean grey of each image [N, C, H, W] in [0, 1] by ``factors`` [N]."""
    return _blend(images, _grey(images).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance from the grey of each pixel of images [N, 3, H, W] in [0, 1] by ``factors`` [N]."""
    return _blend(images, _grey(images), factors)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hues of images [N, 3, H, W] in [0, 1] by ``turns`` [N] of the circle; HSV value and saturation are kept."""
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)  # [N, H, W]
    red, green, blue = images.unbind(dim=1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    of_green, of_blue = 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor
    hue = torch.where(value == red, (green - blue) / divisor, torch.where(value == green, of_green, of_blue))
    hue = hue + 6.0 * turns[:, None, None]  # in sixths of the circle
    offsets = torch.arange(
        5.0, 0.0, -2.0, device=images.device
    )  # 5, 3, 1; made on the device, because a copy would wait for it
    k = (offsets[:, None, None] + hue[:, None]) % 6.0  # [N, 3, H, W]
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    factors = factors[:, None, None, None]
    return (factors * images + (1.0 - factors) * others).clamp(0.0, 1.0)


def _grey(images: Tensor) -> Tensor:
    """Return the luma (ITU-R BT.601) of images [N, C, H, W]: [N, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]
