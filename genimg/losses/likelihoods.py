"""Pixel likelihoods p(x | z) of a decoder's output. All values are in nats per image, summed over pixels and channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.utils.rng import content_uniform

_LEVELS = 256
_STEP = 2.0 / (_LEVELS - 1)  # between two 8-bit levels, in the [-1, 1] range
_LEAST_LOG_SCALE = -7.0  # for logistics (Salimans et al. 2017, code) and Gaussians; smaller ones are unstable
_MOST_LOG_SCALE = 40.0  # for logistics, whose inverse scale must not vanish
BINARISATIONS = ("none", "dynamic", "static")


class Likelihood(nn.Module, ABC):
    """A likelihood p(x | z) computed from the decoder's output, for images x in [-1, 1]."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Description shown with a reported number."""

    def num_outputs(self, channels: int) -> int:
        """Return the number of channels of the decoder's output for images of ``channels`` channels."""
        return channels

    def observed(self, image: Tensor) -> Tensor:
        """Return the image as the encoder and the likelihood see it, possibly binarised."""
        return image

    @property
    def bits_name(self) -> str:
        """Metric name of ``bits_per_dimension``; only bits of a probability are called bits per dimension."""
        return "bits_per_dim"

    @abstractmethod
    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        """Return -log p(image | z) in nats per image: [N, O, H, W] and [N, C, H, W] -> [N]."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return E[x | z] in [-1, 1], shown as the reconstruction: [N, O, H, W] -> [N, C, H, W]."""

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        """Convert nats per image to bits per pixel and channel."""
        return nats / (num_dimensions * math.log(2.0))


class Bernoulli(Likelihood):
    """Independent Bernoulli pixels.

    Bits per dimension are comparable only with those of other Bernoulli models of the same targets.

    Args:
        binarisation: ``none`` reads grey values as probabilities (Kingma & Welling 2014, appendix C.1): a cross-entropy and not
            a likelihood, but reported for most VAEs on MNIST. ``dynamic`` draws every pixel again whenever it is seen in
            training, with the grey value as its probability (Burda et al. 2016, section 5.1). ``static`` draws it once for
            every image (Salakhutdinov & Murray 2008, with different draws). Outside training, ``dynamic`` uses the draws of
            ``static``, so evaluations repeat.

    Raises:
        ValueError: If ``binarisation`` is unknown.
    """

    def __init__(self, *, binarisation: str) -> None:
        super().__init__()
        if binarisation not in BINARISATIONS:
            raise ValueError(f"binarisation={binarisation} is unknown: choose one of {', '.join(BINARISATIONS)}")
        self.binarisation = binarisation

    @property
    def description(self) -> str:
        return "Bernoulli of grey values" if self.binarisation == "none" else "Bernoulli of binarised images"

    @property
    def bits_name(self) -> str:
        return "cross_entropy_bits_per_dim" if self.binarisation == "none" else "bits_per_dim"

    def observed(self, image: Tensor) -> Tensor:
        if self.binarisation == "none":
            return image
        drawn_anew = self.training and self.binarisation == "dynamic"
        noise = torch.rand_like(image) if drawn_anew else content_uniform(image)
        # Strictly below, so a black pixel stays black.
        return torch.where(noise < (image + 1.0) / 2.0, 1.0, -1.0).to(image.dtype)

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        target = (image + 1.0) / 2.0
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid() * 2.0 - 1.0


class _Density(Likelihood):
    """A density on [-1, 1] instead of probabilities of the 256 levels.

    For images that were not dequantised, a density is unbounded: it can exceed 1 at the levels, so its bits are negative (Theis
    et al. 2016, section 3.1). They are therefore not called bits per dimension.
    """

    @property
    def bits_name(self) -> str:
        return "density_bits_per_dim"

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        # A density on [-1, 1] is 127.5 times the density on 256 levels, whose spacing is 1 (Theis et al. 2016, section 3.1).
        return (nats / num_dimensions + math.log(127.5)) / math.log(2.0)


class Gaussian(_Density):
    """Independent Gaussian pixels around tanh(output) with one standard deviation (Kingma & Welling 2014, appendix C.2).

    Args:
        scale: Standard deviation in units of the [-1, 1] image range; its initial value if it is learnt.
        learnt: Whether the scale is a parameter of the model (Rybkin et al. 2021, "Simple and effective VAE training with
            calibrated decoders").

    Raises:
        ValueError: If ``scale`` is not above 0.
    """

    def __init__(self, *, scale: float, learnt: bool) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale={scale} is not a standard deviation: it must be above 0")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learnt else math.log(scale)

    @property
    def description(self) -> str:
        log_scale = self._bounded().item() if isinstance(self.log_scale, nn.Parameter) else self.log_scale
        return f"Gaussian of standard deviation {math.exp(log_scale):.4g}"

    def _bounded(self) -> Tensor:
        """Return the log of the learnt scale, clamped from below but with its full gradient, so it can rise again."""
        log_scale = torch.as_tensor(self.log_scale)
        return log_scale + (log_scale.clamp_min(_LEAST_LOG_SCALE) - log_scale).detach()

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        if isinstance(self.log_scale, nn.Parameter):
            log_scale = self._bounded()
            return _gaussian_nats(image, output.tanh(), log_scale, (-log_scale).exp()).flatten(1).sum(dim=1)
        return _gaussian_nats(image, output.tanh(), self.log_scale, math.exp(-self.log_scale)).flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        return output.tanh()


class GaussianPerPixel(_Density):
    """Independent Gaussian pixels. The decoder outputs their means and, before a softplus, standard deviations: O = 2 C.

    Args:
        least_scale: Lower bound of the standard deviations, in units of the [-1, 1] range. Without it, pixels that are always
            black make the density infinite. A third of a level is 0.0026.

    Raises:
        ValueError: If ``least_scale`` is not above 0.
    """

    def __init__(self, *, least_scale: float) -> None:
        super().__init__()
        if not least_scale > 0:
            raise ValueError(f"least_scale={least_scale} is not a standard deviation: it must be above 0")
        self.least_scale = least_scale

    @property
    def description(self) -> str:
        return "Gaussian with a scale for every pixel"

    def num_outputs(self, channels: int) -> int:
        return 2 * channels

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        mean, raw = output.chunk(2, dim=1)
        scale = F.softplus(raw) + self.least_scale
        return _gaussian_nats(image, mean.tanh(), scale.log(), scale.reciprocal()).flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=1)[0].tanh()


def _gaussian_nats(value: Tensor, mean: Tensor, log_scale: Tensor | float, inverse_scale: Tensor | float) -> Tensor:
    return 0.5 * ((value - mean) * inverse_scale).square() + (log_scale + 0.5 * math.log(2.0 * math.pi))


class DiscretisedLogisticMixture(Likelihood):
    """Probabilities of the 256 levels from a mixture of logistics: Salimans et al. 2017, "PixelCNN++", section 2.

    The probability of a level is the logistic's mass between the midpoints to its neighbours. All mass beyond the midpoint next
    to black or white counts for black or white, so a pixel's probabilities sum to one. With three channels, green's mean is
    linear in red, and blue's in red and green (section 2.2). With any other number of channels, channels are independent given
    the mixture's component. Images are first rounded to the nearest level.

    Args:
        num_mixtures: Number M of components per pixel; 10 in the paper.

    Raises:
        ValueError: If ``num_mixtures`` is below 1.
    """

    def __init__(self, *, num_mixtures: int) -> None:
        super().__init__()
        if num_mixtures < 1:
            raise ValueError(f"num_mixtures={num_mixtures} must be 1 or more")
        self.num_mixtures = num_mixtures

    @property
    def description(self) -> str:
        return f"discretised logistics, {self.num_mixtures} a pixel"

    def num_outputs(self, channels: int) -> int:
        """Return M (1 + 2 C), plus 3 M for the colours' coefficients."""
        return self.num_mixtures * (1 + 2 * channels + (3 if channels == 3 else 0))

    def _channels(self, output: Tensor) -> int:
        each = output.shape[1] // self.num_mixtures
        return 3 if each == 10 else (each - 1) // 2

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split the output into logits [N, M, H, W], and means, log scales and coefficients [N, C, M, H, W]."""
        count, channels = self.num_mixtures, self._channels(output)
        logits, rest = output[:, :count], output[:, count:].unflatten(1, (-1, count))
        means, log_scales = rest[:, :channels], rest[:, channels : 2 * channels]
        return logits, means, log_scales.clamp(_LEAST_LOG_SCALE, _MOST_LOG_SCALE), rest[:, 2 * channels :].tanh()

    def log_probabilities(self, output: Tensor, image: Tensor) -> Tensor:
        """Return log p of every pixel, all its channels together: [N, O, H, W] and [N, C, H, W] -> [N, H, W]."""
        logits, means, log_scales, coefficients = self._split(output)
        value = (((image + 1.0) / _STEP).round() * _STEP - 1.0)[:, :, None]  # [N, C, 1, H, W]
        if means.shape[1] == 3:
            red, green = value[:, 0], value[:, 1]
            means = torch.stack(
                [
                    means[:, 0],
                    means[:, 1] + coefficients[:, 0] * red,
                    means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green,
                ],
                dim=1,
            )
        inverse = (-log_scales).exp()
        upper = (value + _STEP / 2 - means) * inverse
        lower = (value - _STEP / 2 - means) * inverse
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)  # log of the mass on either side of a midpoint
        # log of sigmoid(upper) - sigmoid(lower), without cancellation: sigmoid(u) sigmoid(-l) (1 - exp(l - u)).
        between = below + above + torch.log(-torch.expm1(-_STEP * inverse))
        black, white = value < -1.0 + _STEP / 2, value > 1.0 - _STEP / 2
        log_mass = torch.where(black, below, torch.where(white, above, between))
        return torch.logsumexp(F.log_softmax(logits, dim=1) + log_mass.sum(dim=1), dim=1)

    def negative_log_likelihood(self, output: Tensor, image: Tensor) -> Tensor:
        return -self.log_probabilities(output, image).flatten(1).sum(dim=1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the clamped mean of the logistics before they are cut off at black and white; colours use their means."""
        logits, means, _, coefficients = self._split(output)
        weights = F.softmax(logits, dim=1)
        means = means.clamp(-1.0, 1.0)
        if means.shape[1] == 3:
            red = means[:, 0]
            green = (means[:, 1] + coefficients[:, 0] * red).clamp(-1.0, 1.0)
            blue = means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
            means = torch.stack([red, green, blue], dim=1)
        return (means.clamp(-1.0, 1.0) * weights[:, None]).sum(dim=2).clamp(-1.0, 1.0)
