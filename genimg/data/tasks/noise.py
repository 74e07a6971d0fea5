"""Noise and the losses of JPEG, each image's a function of its key alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import normal_field, uniform_field

_REACH = 8  # standard deviations to which numbers of photons are counted


def add_gaussian(images: Tensor, deviations: Tensor, keys: NDArray[np.uint64]) -> Tensor:
    """Images [N, C, H, W] and normal noise of standard deviations [N], in the images' units."""
    return images + deviations[:, None, None, None] * normal_field(keys, images.shape[1:], images.device)


def salt_and_pepper(images: Tensor, share: float, keys: NDArray[np.uint64]) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] where a share of the pixels is black or white, by halves."""
    chance = uniform_field(keys, (1, *images.shape[2:]), images.device)
    return images.masked_fill(chance < share, 1.0).masked_fill(chance < share / 2, -1.0)


class Photons:
    """Counts of photons instead of brightnesses: Poisson noise.

    Exact, by the inversion of the cumulative probabilities of each of the 256 levels.

    Args:
        peak: photons expected of a pixel at full brightness.
    """

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _make_tables(self) -> tuple[Tensor, Tensor]:
        """Of every level, the fewest photons that it may give [256], and level + P(count <= fewest + k) for k = 0, 1, ...

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
        """What is counted of images [N, C, H, W] in [-1, 1] of 256 levels, in their units; above 1 where many came."""
        if images.device not in self._tables:
            fewest, cumulative = self._make_tables()
            self._tables[images.device] = fewest.to(images.device), cumulative.to(images.device)
        fewest, cumulative = self._tables[images.device]
        levels = to_uint8(images).long()
        chance = uniform_field(keys, images.shape[1:], images.device)
        found = torch.searchsorted(cumulative, (levels + chance.double()).contiguous(), right=True)
        counts = fewest[levels] + (found - levels * (len(cumulative) // 256))
        return (counts * (2.0 / self.peak) - 1.0).float()


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], grey or RGB, as files of this quality (1 to 100) give them back.

    Through the host, one at a time: libjpeg, with colours at half the resolution.
    """
    pictures = to_uint8(images).cpu().contiguous()
    decoded = [decode_jpeg(encode_jpeg(picture, quality)) for picture in pictures]  # faster than Pillow on small ones
    return to_float(torch.stack(decoded).to(images.device))
