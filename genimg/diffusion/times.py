"""Distributions of the times, and so of the noise levels, that a network is trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from genimg.diffusion.paths import Path
from genimg.utils.rng import normal_numbers, uniform_numbers


class Times(ABC):
    """A distribution of times."""

    @abstractmethod
    def at(self, keys: Tensor, path: Path) -> Tensor:
        """Return times on a path, float32 [N]; time i is a function of ``keys[i]`` (int64 [N]) alone."""

    @abstractmethod
    def quantile(self, quantile: float, path: Path) -> float:
        """Return the time at a quantile of the distribution, in (0, 1)."""

    def check(self, path: Path) -> None:
        """Check that the distribution is one of the path's times.

        Raises:
            ValueError: If it is not.
        """
        self.at(torch.zeros(1, dtype=torch.int64, device=_device_of(path)), path)


class Uniform(Times):
    """Uniform times: Ho et al. 2020, algorithm 1, for noise levels; Lipman et al. 2023 for a straight line."""

    def at(self, keys: Tensor, path: Path) -> Tensor:
        return path.of_fraction(uniform_numbers(keys, ()))

    def quantile(self, quantile: float, path: Path) -> float:
        return path.of_fraction(torch.tensor(quantile, dtype=torch.float64)).item()


class LogNormalSigma(Times):
    """A normal distribution of ln(sigma / scale): Karras et al. 2022, table 1.

    On a straight line it is the logit-normal distribution of Esser et al. 2024, section 3.1.

    Args:
        mean: Mean of ln(sigma / scale); -1.2 in EDM, 0 in the paper of Esser et al.
        std: Standard deviation, above 0; 1.2 in EDM, 1 in the paper of Esser et al.

    Raises:
        ValueError: If the standard deviation is not above 0.
    """

    def __init__(self, *, mean: float, std: float) -> None:
        if not std > 0:
            raise ValueError(f"std={std} must be above 0")
        self.mean, self.std = mean, std

    def at(self, keys: Tensor, path: Path) -> Tensor:
        return path.of_log_sigma(self.mean + self.std * normal_numbers(keys, ()))

    def quantile(self, quantile: float, path: Path) -> float:
        normal = torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64))
        return path.of_log_sigma(self.mean + self.std * normal).item()


def _device_of(path: Path) -> torch.device:
    return next((buffer.device for buffer in path.buffers()), torch.device("cpu"))
