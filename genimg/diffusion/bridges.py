"""Paths from an image to its source instead of to noise, for pairs of images.

A bridge from an image x to its source y has the states x_t = (1 - m) x + m y + s e, where m grows from 0 to 1 and s is 0 at
both ends. The difference from the source follows an ordinary path: x_t - y = (1 - m) (x - y) + s e, with scale = 1 - m and
sigma = s. So all formulas for paths, predictions and samplers hold for differences from the source; only the network sees x_t.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from genimg.diffusion.paths import Path

_Time = TypeVar("_Time", float, Tensor)
_LEAST_FRACTION = 1e-3  # smallest time of ``of_fraction``; closer to the image, there is nothing to learn


class Bridge(Path):
    """A Brownian bridge for the difference between an image and its source: s^2 = variance m (1 - m).

    Attributes:
        variance: Variance of the Brownian motion from which the bridge is derived.
    """

    end = 1.0
    spacings: ClassVar[tuple[str, ...]] = ("uniform",)
    variance: float

    @abstractmethod
    def share(self, time: Tensor) -> Tensor:
        """Return the share m of the source at times of any shape; the share at ``1 - time`` must be 1 - m."""

    def scale(self, time: Tensor) -> Tensor:
        return self.share(1.0 - time)

    def sigma(self, time: Tensor) -> Tensor:
        return (self.variance * self.share(time) * self.share(1.0 - time)).sqrt()

    def embedded(self, time: Tensor) -> Tensor:
        return 1000.0 * time  # the range of DDPM's noise levels, for which time embeddings are made

    def of_fraction(self, fraction: Tensor) -> Tensor:
        return _LEAST_FRACTION + (1.0 - _LEAST_FRACTION) * fraction

    def of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        raise ValueError("times with a log-normal sigma need a path to noise, not a bridge: choose uniform times")

    def grid(self, num_steps: int, spacing: str) -> list[float]:
        return [float(each) for each in np.arange(num_steps, -1, -1) / num_steps]

    def ascent(self, num_steps: int) -> Tensor:
        raise ValueError("a bridge leads to a source, not to noise")


class BrownianBridge(Bridge):
    """The bridge of Li et al. 2023 (BBDM), equations 4 to 6, where m is the time.

    Args:
        variance: Variance of the Brownian motion, above 0. It is 2 s in the paper, where s is 1 by default.

    Raises:
        ValueError: If the variance is not above 0.
    """

    def __init__(self, *, variance: float) -> None:
        super().__init__()
        if not variance > 0:
            raise ValueError(f"variance={variance} must be above 0")
        self.variance = variance

    def share(self, time: Tensor) -> Tensor:
        return time


class SchrodingerBridge(Bridge):
    """The bridge of Liu et al. 2023 (I2SB), equation 11, with noise that is added fastest in the middle.

    The square root of the rate, beta, is linear from the image to the middle, as in many diffusion models, and symmetric.

    Args:
        beta_min: Rate at both ends, in variance per unit of time; 0.1 in the authors' code.
        beta_max: Rate that would be reached at the end if the square root stayed linear after the middle; 0.3 in the paper.

    Raises:
        ValueError: If a rate is out of range.
    """

    def __init__(self, *, beta_min: float, beta_max: float) -> None:
        super().__init__()
        if not 0 < beta_min < beta_max:
            raise ValueError(f"beta_min={beta_min} must be above 0 and below beta_max={beta_max}")
        self._root, self._growth = math.sqrt(beta_min), math.sqrt(beta_max) - math.sqrt(beta_min)
        self.variance = 2.0 * self._integral(0.5)

    def share(self, time: Tensor) -> Tensor:
        first, second = self._integral(time) / self.variance, 1.0 - self._integral(1.0 - time) / self.variance
        return torch.where(time < 0.5, first, second)

    def _integral(self, time: _Time) -> _Time:
        """Return the integral of (root + growth t)^2 from 0 to a time."""
        root, growth = self._root, self._growth
        return time * (root**2 + root * growth * time + growth**2 * time**2 / 3.0)
