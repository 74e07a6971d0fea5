"""Networks without convolutions, as in the first GANs and VAEs: Goodfellow et al. 2014; Kingma & Welling 2014.

The conditional versions are those of Mirza & Osindero 2014 and Sohn et al. 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import Conditioned, ConditionEncoder
from genimg.networks.layers import initialise, normalisation_layer, spectral_normalise
from genimg.types import PixelLikelihood, height_width
from genimg.utils.numbers import require_least

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh}


class Generator(nn.Module):
    """Linear layers from a latent to all pixels, each but the last followed by normalisation and activation.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. Its vector joins the latent, or feeds ``conditional_batch`` normalisation.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        widths: Numbers of outputs of the hidden layers, from the latent to the image.
        activation: ``relu``, ``leaky_relu`` with a slope of 0.2, or ``tanh``.
        normalisation, initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers except the condition encoder's.

    Raises:
        ValueError: If the activation or normalisation is unknown.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        image_size: int | Sequence[int],
        channels: int,
        widths: Sequence[int],
        activation: str,
        normalisation: str,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.shape = (channels, *height_width(image_size))
        self.condition = condition
        self.joined = normalisation != "conditional_batch"
        layers: list[nn.Module] = []
        inputs = latent_dim + self.joined * condition.dim
        for width in widths:
            layers += _hidden(inputs, width, activation, normalisation, condition.dim)
            inputs = width
        self.layers = Conditioned([*layers, nn.Linear(inputs, math.prod(self.shape)), nn.Tanh()])
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self.layers)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start = torch.cat([latent, vector], dim=1) if self.joined else latent  # [N, Z + E]
        return self.layers(start, vector).unflatten(1, self.shape)


class Features(nn.Module):
    """Linear layers from all pixels to the features before a discriminator's logit.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition_channels: Number of further input channels, for ``concat`` conditioning, constant over the image.
        widths: Numbers of outputs of the layers, from the image inwards.
        activation: Same as the generator's.
        normalisation: Normalisation of each layer but the first; see ``layers``.
        dropout: Fraction of each layer's outputs that is set to 0 in training.

    Raises:
        ValueError: If the activation or normalisation is unknown, there are no widths, or the dropout is outside [0, 1).
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition_channels: int = 0,
        widths: Sequence[int],
        activation: str,
        normalisation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(widths) == 0:
            raise ValueError("widths=[] must list one layer or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be 0 or more and below 1")
        self.channels = channels
        self.num_features = int(widths[-1])
        layers: list[nn.Module] = []
        inputs = channels * math.prod(height_width(image_size)) + condition_channels
        for level, width in enumerate(widths):
            layers += _hidden(inputs, width, activation, normalisation if level else "none", 0)
            layers.append(nn.Dropout(dropout))
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [N, C + condition_channels, H, W] to features [N, num_features]."""
        pixels, condition = image[:, : self.channels], image[:, self.channels :, 0, 0]
        return self.layers(torch.cat([pixels.flatten(1), condition], dim=1))


class Encoder(nn.Module):
    """Linear layers from all pixels to the moments of every latent dimension: Kingma & Welling 2014, appendix C.2.

    Args:
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        condition: Encoder of the condition, whose vector is concatenated to the pixels.
        latent_dim: Number of latent dimensions Z.
        moments: Number of moments per latent dimension: 2 for a mean and a log-variance, 1 without noise.
        widths: Numbers of outputs of the hidden layers, from the image to the latent.
        activation: Same as the generator's.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        moments: int,
        widths: Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        self.condition = condition
        self.shape = (moments, latent_dim)
        require_least(1, moments=moments, latent_dim=latent_dim)
        inputs = channels * math.prod(height_width(image_size)) + condition.dim
        self.layers = stack(inputs, widths, moments * latent_dim, activation)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """Map images [N, C, H, W] in [-1, 1] and raw conditions to moments [N, moments, Z]."""
        # Pixels range from 0 to 1, as in the paper, so a black background is not a large constant that the first layer has to
        # cancel. On MNIST this gains two nats after ten epochs.
        pixels = (image.flatten(1) + 1.0) / 2.0
        start = torch.cat([pixels, self.condition(condition).to(image.dtype)], dim=1)
        return self.layers(start).unflatten(1, self.shape)


class Decoder(nn.Module):
    """Linear layers from a latent to the parameters of p(x | z), which the likelihood interprets.

    Args:
        image_size, channels, latent_dim, activation: Same as the encoder's.
        condition: Encoder of the condition, whose vector is concatenated to the latent.
        widths: Numbers of outputs of the hidden layers, from the latent to the image.
        likelihood: Pixel likelihood, which determines the number of outputs per pixel.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition: ConditionEncoder,
        latent_dim: int,
        widths: Sequence[int],
        activation: str,
        likelihood: PixelLikelihood,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.condition = condition
        require_least(1, latent_dim=latent_dim)
        self.shape = (likelihood.num_outputs(channels), *height_width(image_size))
        self.layers = stack(latent_dim + condition.dim, widths, math.prod(self.shape), activation)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to likelihood parameters [N, O, H, W], unbounded."""
        start = torch.cat([latent, self.condition(condition).to(latent.dtype)], dim=1)
        return self.layers(start).unflatten(1, self.shape)


def stack(inputs: int, widths: Sequence[int], outputs: int, activation: str) -> nn.Sequential:
    """Build linear layers from [N, inputs] to [N, outputs], each but the last followed by an activation.

    Raises:
        ValueError: If the activation is unknown.
    """
    if any(width < 1 for width in (inputs, *widths, outputs)):
        raise ValueError(f"widths={list(widths)}, {inputs} inputs and {outputs} outputs must all be 1 or more")
    layers: list[nn.Module] = []
    for width in widths:
        layers += _hidden(inputs, width, activation, "none", 0)
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class _Normalisation(nn.Module):
    """A normalisation of ``layers`` applied to features [N, D]."""

    def __init__(self, kind: str, features: int, condition_dim: int) -> None:
        super().__init__()
        self.takes_condition = kind == "conditional_batch"
        self.norm = normalisation_layer(kind, features, condition_dim)

    def forward(self, features: Tensor, *condition: Tensor) -> Tensor:
        return self.norm(features[:, :, None, None], *condition).flatten(1)


def _hidden(inputs: int, outputs: int, activation: str, normalisation: str, condition_dim: int) -> list[nn.Module]:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation} is unknown: choose one of {', '.join(ACTIVATIONS)}")
    if normalisation == "instance":
        raise ValueError(
            "normalisation=instance would set every feature to 0, because it is a single value: choose batch, layer or none"
        )
    return [
        nn.Linear(inputs, outputs),
        _Normalisation(normalisation, outputs, condition_dim),
        ACTIVATIONS[activation](),
    ]
