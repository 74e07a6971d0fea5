"""What a network predicts, as an affine function of its output: image = skip * x_t + factor * output.

Every kind is written for a path with any scale and sigma; sigma_data is the standard deviation of the data. On a bridge, image
and x_t stand for their differences from the source (see ``bridges``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from genimg.diffusion.bridges import Bridge
from genimg.diffusion.paths import Path


class Prediction(ABC):
    """The kind of quantity that a network predicts."""

    @abstractmethod
    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        """Return the factor of x_t in the estimate of the image."""

    @abstractmethod
    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        """Return the factor of the network's output in the estimate of the image."""

    @abstractmethod
    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        """Return the output for which the estimate is the image."""

    def input_scale(self, scale: Tensor, sigma: Tensor) -> Tensor:
        """Return the factor of x_t as the network's input, which keeps inputs as large as on a variance-preserving path."""
        return (scale.square() + sigma.square()).rsqrt()


class Noise(Prediction):
    """The noise e: Ho et al. 2020, equation 11."""

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 1.0 / scale

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return -sigma / scale

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return noise


class Data(Prediction):
    """The image x."""

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.0 * scale

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.0 * scale + 1.0

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return image


class V(Prediction):
    """v = scale e - sigma x: Salimans & Ho 2022, section 4."""

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return scale / (scale.square() + sigma.square())

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return -sigma / (scale.square() + sigma.square())

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return scale * noise - sigma * image


class Velocity(Prediction):
    """e - x, the derivative of x_t on a straight line: Lipman et al. 2023; Liu et al. 2023."""

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 1.0 / (scale + sigma)

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return -sigma / (scale + sigma)

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return noise - image

    def input_scale(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 1.0 / (scale + sigma)  # 1 on a straight line, as is usual


class EDM(Prediction):
    """The preconditioned output of Karras et al. 2022, table 1: unit variance of input and target at any noise.

    Args:
        sigma_data: Standard deviation of the data, a number or a 0-d tensor.
    """

    def __init__(self, sigma_data: Tensor) -> None:
        self.sigma_data = sigma_data

    def _variance(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return (self.sigma_data * scale).square() + sigma.square()

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 * scale / self._variance(scale, sigma)

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * self._variance(scale, sigma).rsqrt()

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        # (image - skip x_t) / factor, without the difference of nearly equal numbers at little noise.
        return (sigma / self.sigma_data * image - self.sigma_data * scale * noise) * self._variance(scale, sigma).rsqrt()

    def input_scale(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return self._variance(scale, sigma).rsqrt()


class Difference(Prediction):
    """On a bridge, x_t - x: Li et al. 2023 (BBDM), equation 13."""

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.0 * scale + 1.0

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.0 * scale - 1.0

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return (scale - 1.0) * image + sigma * noise


class I2SB(Prediction):
    """On a bridge, (x_t - x) / a, where a^2 is the Brownian motion's variance up to time t: Liu et al. 2023, equation 12.

    Args:
        variance: Variance of the whole Brownian motion.
    """

    def __init__(self, variance: float) -> None:
        self.variance = variance

    def skip(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.0 * scale + 1.0

    def factor(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return -(self.variance * (1.0 - scale)).sqrt()

    def target(self, image: Tensor, noise: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        # This form uses sigma^2 = a^2 scale, because the formula above is 0 / 0 next to the image.
        return scale.sqrt() * noise - ((1.0 - scale) / self.variance).sqrt() * image


PREDICTIONS = ("noise", "data", "v", "velocity", "edm")
ON_BRIDGES = ("data", "difference", "i2sb")


def prediction_of(kind: str, sigma_data: Tensor, path: Path | None = None) -> Prediction:
    """Return the prediction of a kind in ``PREDICTIONS`` or ``ON_BRIDGES``; i2sb needs the bridge."""
    known: dict[str, Callable[[], Prediction]] = {
        "noise": Noise, "data": Data, "v": V, "velocity": Velocity, "difference": Difference
    }  # fmt: skip
    if kind == "i2sb":
        assert isinstance(path, Bridge)
        return I2SB(path.variance)
    return known[kind]() if kind in known else EDM(sigma_data)


def require_fitting_prediction(kind: str, path: Path) -> None:
    """Check that a kind of prediction exists, and determines the image at every time of the path.

    Raises:
        ValueError: If it does not.
    """
    if isinstance(path, Bridge):
        if kind not in ON_BRIDGES:
            raise ValueError(f"prediction={kind} does not work on a bridge: choose one of {', '.join(ON_BRIDGES)}")
        return
    if kind not in PREDICTIONS:
        only = "works only on a bridge" if kind in ON_BRIDGES else "is unknown"
        raise ValueError(f"prediction={kind} {only}: choose one of {', '.join(PREDICTIONS)}")
    if kind == "noise" and path.ends_in_noise:
        raise ValueError("prediction=noise does not determine the image where a path ends in pure noise: choose velocity")
