"""Networks without convolutions, as in the first GANs: Goodfellow et al. 2014; Mirza & Osindero 2014 with conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.interfaces import height_width
from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.layers import Conditioned, initialise, normalisation_layer, spectral_normalise

ACTIVATIONS = ("relu", "leaky_relu")


class Generator(nn.Module):
    """Linear layers from a latent to all pixels, each but the last normalised and activated.

    Args:
        latent_dim: Z.
        condition: encoder; its vector joins the latent, or goes into ``conditional_batch`` normalisation.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        widths: outputs of the hidden layers, from the latent to the image.
        activation: ``relu``, or ``leaky_relu`` with a slope of 0.2.
        normalisation, initialisation: see ``layers``.
        spectral_norm: of all layers but the encoder's.

    Raises:
        ValueError: for an unknown activation or normalisation.
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
        """[N, Z] and conditions as they stand in the batch -> [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start = torch.cat([latent, vector], dim=1) if self.joined else latent  # [N, Z + E]
        return self.layers(start, vector).unflatten(1, self.shape)


class Features(nn.Module):
    """Linear layers from all pixels to the features before a discriminator's logit.

    Args:
        image_size: pixels, one number or [height, width].
        channels: of the image.
        condition_channels: further input channels, for ``concat`` conditioning; constant ones, of which one pixel is read.
        widths: outputs of the layers, from the image inwards.
        activation: ``relu``, or ``leaky_relu`` with a slope of 0.2.
        normalisation: of each layer but the first; see ``layers``.
        dropout: share of each layer's outputs set to 0 in training.

    Raises:
        ValueError: for an unknown activation or normalisation, no widths, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        channels: int,
        condition_channels: int,
        widths: Sequence[int],
        activation: str,
        normalisation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        if len(widths) == 0:
            raise ValueError("model.discriminator.features.widths=[] must name one layer or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.discriminator.features.dropout={dropout} must be 0 or more and below 1")
        self.channels = channels
        self.condition_channels = condition_channels
        self.num_features = int(widths[-1])
        layers: list[nn.Module] = []
        inputs = channels * math.prod(height_width(image_size)) + condition_channels
        for level, width in enumerate(widths):
            layers += _hidden(inputs, width, activation, normalisation if level else "none", 0)
            layers.append(nn.Dropout(dropout))
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """[N, C + condition_channels, H, W] -> [N, num_features]."""
        pixels, condition = image[:, : self.channels], image[:, self.channels :, 0, 0]
        return self.layers(torch.cat([pixels.flatten(1), condition], dim=1))


class _Normalisation(nn.Module):
    """One of ``layers``' kinds for features [N, D]."""

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
        raise ValueError("normalisation=instance would make every feature 0, for it has one value: choose batch, layer or none")
    return [
        nn.Linear(inputs, outputs),
        _Normalisation(normalisation, outputs, condition_dim),
        nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.2),
    ]
