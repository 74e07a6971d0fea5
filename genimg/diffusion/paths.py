"""Paths from data to noise: x_t = scale(t) x + sigma(t) e for an image x, noise e ~ N(0, I) and a time t, 0 for the image.

Along each path there are coordinates in which x_t moves on a straight line if x and e stay the same. Solvers take their steps
in these coordinates, so a step is exact if the network's estimate of x does not change.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from genimg.utils.exact import double

_NUM_COMPARED = 32  # times at which two paths are compared


class Path(nn.Module, ABC):
    """A path from data to noise.

    Attributes:
        end: Time of the most noise, at which sampling starts.
        spacings: Kinds of ``grid``, the default first.
        ends_in_noise: Whether nothing of the image is left at the end.
        time_is_sigma: Whether the scale is 1 and the time is sigma.
        num_levels: Number of noise levels; None if the time is continuous.
    """

    end: float
    spacings: ClassVar[tuple[str, ...]]
    ends_in_noise: ClassVar[bool] = False
    time_is_sigma: ClassVar[bool] = False
    num_levels: int | None = None

    @abstractmethod
    def scale(self, time: Tensor) -> Tensor:
        """Return the factor of the image at times of any shape."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """Return the standard deviation of the noise at times of any shape."""

    @abstractmethod
    def embedded(self, time: Tensor) -> Tensor:
        """Return the number by which a network is told the time."""

    @abstractmethod
    def of_fraction(self, fraction: Tensor) -> Tensor:
        """Map numbers in [0, 1) to times; uniform numbers give uniform times.

        Raises:
            ValueError: If uniform times make no sense on the path.
        """

    @abstractmethod
    def of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        """Map ln(sigma / scale) to times.

        Raises:
            ValueError: If the path has only some times.
        """

    @abstractmethod
    def grid(self, num_steps: int, spacing: str) -> list[float]:
        """Return the times of a solver: ``num_steps + 1``, decreasing from ``end`` to 0.

        Args:
            num_steps: Number of steps, 1 or more.
            spacing: One of ``spacings``.

        Raises:
            ValueError: If there are fewer times than steps.
        """

    @abstractmethod
    def ascent(self, num_steps: int) -> Tensor:
        """Return the times of the way back, from an image to noise: float64 [``num_steps + 1``], or fewer, increasing.

        Their ln(sigma / scale) are equally spaced as far as possible. Next to the first, an image has hardly any noise.
        """

    def has_times_of(self, other: Path) -> bool:
        """Return whether each time has the same scale and sigma on this path as on another one."""
        if type(self) is not type(other) or self.num_levels != other.num_levels:
            return False
        times = other.ascent(_NUM_COMPARED)
        return all(torch.allclose(f(times), g(times)) for f, g in ((self.scale, other.scale), (self.sigma, other.sigma)))

    def coordinate(self, time: Tensor) -> Tensor:
        """Return the coordinate of ``time`` in which ``x_t / stretch`` is a straight line: sigma / scale."""
        return self.sigma(time) / self.scale(time)

    def stretch(self, time: Tensor) -> Tensor:
        """Return the factor by which x_t is divided in these coordinates."""
        return self.scale(time)

    def slope(self, image: Tensor, noise: Tensor) -> Tensor:
        """Return the derivative of ``x_t / stretch`` by the coordinate."""
        return noise


class VariancePreserving(Path):
    """The discrete path of Ho et al. 2020 (DDPM), equation 4: scale^2 + sigma^2 = 1.

    Times are the integers 0 to ``num_times``, 0 for the image.

    Args:
        num_times: Number T of noise levels.
        schedule: ``linear``, betas from ``beta_min`` to ``beta_max``; or ``cosine`` (Nichol & Dhariwal 2021, equation 17).
        beta_min, beta_max: Limits of the linear betas, in (0, 1); None for ``cosine``.

    Raises:
        ValueError: If a setting is out of range or has no effect.
    """

    spacings = ("uniform", "quadratic")

    def __init__(self, *, num_times: int, schedule: str, beta_min: float | None, beta_max: float | None) -> None:
        super().__init__()
        if num_times < 10:
            raise ValueError(f"num_times={num_times} must be 10 or more")
        if schedule == "linear":
            if beta_min is None or beta_max is None or not 0 < beta_min <= beta_max < 1:
                raise ValueError(f"beta_min={beta_min} must be above 0 and at most beta_max={beta_max}, which must be below 1")
            betas = np.linspace(beta_min, beta_max, num_times)
        elif schedule == "cosine":
            if beta_min is not None or beta_max is not None:
                raise ValueError("beta_min and beta_max have no effect with schedule=cosine: set both to null")
            bars = np.cos((np.arange(num_times + 1) / num_times + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1.0 - bars[1:] / bars[:-1], 0.999)
        else:
            raise ValueError(f"schedule={schedule} is unknown: choose linear or cosine")
        self.num_levels, self.end = num_times, float(num_times)
        products = np.concatenate([[1.0], np.cumprod(1.0 - betas)])  # alpha bar in the paper, from t = 0
        self.scales: Tensor
        self.sigmas: Tensor
        self.register_buffer("scales", torch.from_numpy(np.sqrt(products)).float(), persistent=False)
        self.register_buffer("sigmas", torch.from_numpy(np.sqrt(1.0 - products)).float(), persistent=False)

    def scale(self, time: Tensor) -> Tensor:
        return self.scales[time.long()].to(time.dtype)

    def sigma(self, time: Tensor) -> Tensor:
        return self.sigmas[time.long()].to(time.dtype)

    def embedded(self, time: Tensor) -> Tensor:
        return time - 1.0  # the authors' code counts noise levels from 0

    def of_fraction(self, fraction: Tensor) -> Tensor:
        return (fraction * self.end).floor() + 1.0

    def of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        raise ValueError("times with a log-normal sigma need a path with all times: choose uniform times")

    def grid(self, num_steps: int, spacing: str) -> list[float]:
        remaining = np.arange(num_steps, -1, -1) / num_steps
        if spacing == "quadratic":  # Song et al. 2021 (DDIM), appendix D.2
            remaining = remaining**2
        times = np.ceil(remaining * self.end - 1e-9)
        if len(np.unique(times)) <= num_steps:
            raise ValueError(f"steps={num_steps} with {spacing} spacing are more than the {self.end:.0f} noise levels allow")
        return [float(each) for each in times]

    def ascent(self, num_steps: int) -> Tensor:
        logs = (double(self.sigmas[1:]) / double(self.scales[1:])).log().cpu().contiguous()
        wanted = torch.linspace(float(logs[0]), float(logs[-1]), num_steps + 1, dtype=torch.float64)
        return (torch.searchsorted(logs, wanted).clamp(max=len(logs) - 1) + 1).unique().to(torch.float64)


class VarianceExploding(Path):
    """The path of Karras et al. 2022 (EDM): scale 1, and the time is sigma.

    Args:
        sigma_min, sigma_max: Limits of sigma in sampling, above 0; 0.002 and 80 in the paper.
        rho: Exponent of the grid, equation 5; 7 in the paper.

    Raises:
        ValueError: If a setting is out of range.
    """

    spacings = ("power",)
    time_is_sigma = True

    def __init__(self, *, sigma_min: float, sigma_max: float, rho: float) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min} must be above 0 and below sigma_max={sigma_max}")
        if not rho > 0:
            raise ValueError(f"rho={rho} must be above 0")
        self.sigma_min, self.end, self.rho = sigma_min, sigma_max, rho

    def scale(self, time: Tensor) -> Tensor:
        return torch.ones_like(time)

    def sigma(self, time: Tensor) -> Tensor:
        return time

    def embedded(self, time: Tensor) -> Tensor:
        return 0.25 * time.log()  # table 1

    def of_fraction(self, fraction: Tensor) -> Tensor:
        raise ValueError("uniform times need a path with a limited time: choose a log-normal sigma")

    def of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        return log_sigma.exp()

    def grid(self, num_steps: int, spacing: str) -> list[float]:
        return [*power_grid(num_steps, self.sigma_min, self.end, self.rho), 0.0]

    def ascent(self, num_steps: int) -> Tensor:
        limits = math.log(self.sigma_min), math.log(self.end)
        return torch.linspace(*limits, num_steps + 1, dtype=torch.float64).exp()


class StraightLine(Path):
    """The straight line from the image at 0 to the noise at 1, of flow matching (Lipman et al. 2023; Liu et al. 2023).

    Args:
        shift: Shift of the uniform grid towards noise, s t / (1 + (s - 1) t) (Esser et al. 2024, equation 23); 1 for none.

    Raises:
        ValueError: If the shift is not positive.
    """

    end = 1.0
    spacings = ("uniform", "power")
    ends_in_noise = True

    def __init__(self, *, shift: float) -> None:
        super().__init__()
        if not shift > 0:
            raise ValueError(f"shift={shift} must be above 0; 1 for none")
        self.shift = shift

    def scale(self, time: Tensor) -> Tensor:
        return 1.0 - time

    def sigma(self, time: Tensor) -> Tensor:
        return time

    def embedded(self, time: Tensor) -> Tensor:
        return 1000.0 * time  # the range of DDPM's noise levels, for which time embeddings are made

    def of_fraction(self, fraction: Tensor) -> Tensor:
        return fraction

    def of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        return torch.sigmoid(log_sigma)  # because sigma / scale = t / (1 - t)

    def grid(self, num_steps: int, spacing: str) -> list[float]:
        if spacing == "power":  # EDM's sigmas, for sigma / scale; then the noise alone at 1
            if self.shift != 1:
                raise ValueError(f"shift={self.shift} of the path has no effect with power spacing: choose uniform spacing")
            inner = power_grid(num_steps, 0.002, 80.0, 7.0)
            return [1.0, *(sigma / (1.0 + sigma) for sigma in inner[1:]), 0.0]
        times = np.arange(num_steps, -1, -1) / num_steps
        return [float(each) for each in self.shift * times / (1.0 + (self.shift - 1.0) * times)]

    def ascent(self, num_steps: int) -> Tensor:
        limits = math.log(0.001), math.log(500.0)  # at the end itself, sigma / scale is infinite
        return torch.sigmoid(torch.linspace(*limits, num_steps + 1, dtype=torch.float64))

    def coordinate(self, time: Tensor) -> Tensor:
        return time

    def stretch(self, time: Tensor) -> Tensor:
        return torch.ones_like(time)

    def slope(self, image: Tensor, noise: Tensor) -> Tensor:
        return noise - image


def power_grid(count: int, low: float, high: float, rho: float) -> list[float]:
    """Return ``count`` numbers from ``high`` to ``low`` with equally spaced rho-th roots: Karras et al. 2022, equation 5."""
    steps = np.arange(count) / max(count - 1, 1)
    roots = high ** (1 / rho) + steps * (low ** (1 / rho) - high ** (1 / rho))
    return [float(each) for each in roots**rho]
