"""Noise and JPEG artifacts; the noise of each image is a function of its key alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from genimg.utils.exact import double, float64_device
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import normal_field, uniform_field

_REACH = 8  # standard deviations covered by the table of photon counts


def add_gaussian(images: Tensor, deviations: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    """Add normal noise to images [N, C, H, W]; the standard deviations [N] are in the images' units."""
    return images + deviations[:, None, None, None] * normal_field(keys, images.shape[1:], images.device)


def salt_and_pepper(images: Tensor, share: float, keys: NDArray[np.uint64]) -> Tensor:
    """Make a share of the pixels of images [N, C, H, W] in [-1, 1] black or white, with equal probability."""
    chance = uniform_field(keys, (1, *images.shape[2:]), images.device)
    return images.masked_fill(chance < share, 1.0).masked_fill(chance < share / 2, -1.0)


class Photons:
    """Poisson noise: photon counts instead of brightness.

    Counts are sampled exactly, by inverting the cumulative distribution of each of the 256 levels.

    Args:
        peak: Expected number of photons of a pixel at full brightness.
    """

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}  # by the device that computes with float64

    def _make_tables(self) -> tuple[Tensor, Tensor]:
        """Return the minimum count of every level [256], and level + P(count <= minimum + k) for k = 0, 1, ...

        The second, float64 [256 * K], is one ascending sequence, in which level + u is looked up.
        """
        expected = torch.arange(256, dtype=torch.float64)[:, None] * (self.peak / 255)
        reach = _REACH * expected.sqrt() + 20  # small expectations have long tails
        fewest = (expected - reach).clamp(min=0).floor()
        counts = fewest + torch.arange(int(2 * reach.max()) + 2, dtype=torch.float64)  # [256, K]
        probabilities = torch.exp(torch.special.xlogy(counts, expected) - expected - torch.lgamma(counts + 1))
        cumulative = probabilities.cumsum(dim=1)
        cumulative /= cumulative[:, -1:].clone()
        levels = torch.arange(256, dtype=torch.float64)[:, None]
        return fewest[:, 0], (levels + cumulative).flatten()

    def __call__(self, images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Return noisy images [N, C, H, W] from images in [-1, 1] of 256 levels, in their units; values may exceed 1."""
        device = float64_device(images.device)
        if device not in self._tables:
            fewest, cumulative = self._make_tables()
            self._tables[device] = fewest.to(device), cumulative.to(device)
        fewest, cumulative = self._tables[device]
        levels = to_uint8(images).to(device).long()
        chance = uniform_field(keys, images.shape[1:], device)
        found = torch.searchsorted(cumulative, (levels + double(chance)).contiguous(), right=True)
        counts = fewest[levels] + (found - levels * (len(cumulative) // 256))
        return (counts * (2.0 / self.peak) - 1.0).float().to(images.device)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decompress grey or RGB images [N, C, H, W] in [-1, 1] with JPEG of a quality from 1 to 100.

    This runs on the host, one image at a time, in libjpeg with chroma at half the resolution.
    """
    pictures = to_uint8(images).cpu().contiguous()
    decoded = [decode_jpeg(encode_jpeg(picture, quality)) for picture in pictures]  # faster than Pillow for small images
    return to_float(torch.stack(decoded).to(images.device))
