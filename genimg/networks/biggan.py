"""BigGAN's generator: Brock, Donahue & Simonyan, "Large scale GAN training for high fidelity natural image synthesis", 2019.

Its discriminator is ``resnet_gan.Features`` with wide blocks, attention and sum pooling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import ClassColumns, ConditionEncoder
from genimg.networks.layers import complete_widths, halvings, initialise, set_batch_norm_eps, spectral_normalise
from genimg.networks.resnet_gan import generator_blocks


class Generator(nn.Module):
    """Residual blocks, each normalised by the condition and by its part of the latent; appendix B.

    Args:
        latent_dim: Number of latent dimensions Z, split equally among the linear layer, which gets the remainder, and all
            blocks.
        condition: Encoder of the condition; with 0 dimensions the normalisation depends on the latent alone.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        widths: Numbers of channels of the feature maps, from the image inwards; the last one is repeated.
        bottom_size: Minimum shorter side of the linear layer's output, in pixels.
        attention_at: Shorter side of the feature map that gets self-attention, in pixels; None for no attention.
        initialisation: See ``layers``.
        spectral_norm: Whether to apply spectral normalisation to all layers except the condition encoder's. Applying it there
            degraded results with the first author's PyTorch code.
        batch_norm_eps: Epsilon of every batch norm; None keeps PyTorch's 1e-5.

    Raises:
        ValueError: If a setting does not fit the image size.
    """

    class_columns = ClassColumns(first=True)

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        image_size: int | Sequence[int],
        channels: int,
        widths: Sequence[int],
        bottom_size: int,
        attention_at: int | None,
        initialisation: str,
        spectral_norm: bool,
        batch_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        count, self.base = halvings(image_size, bottom_size=bottom_size)
        if latent_dim <= count:
            raise ValueError(f"latent_dim={latent_dim} must be at least {count + 1}, one for each of {count + 1} parts")
        features = complete_widths(widths, count + 1)
        part = latent_dim // (count + 1)
        self.parts = [latent_dim - count * part] + [part] * count
        self.condition = condition
        self.linear = nn.Linear(self.parts[0], features[-1] * math.prod(self.base))
        self.blocks = nn.ModuleList(
            generator_blocks(
                features,
                self.base,
                attention_at=attention_at,
                normalisation="conditional_batch",
                condition_dim=condition.dim + part,
            )
        )
        self.output = nn.Sequential(
            nn.BatchNorm2d(features[0]), nn.ReLU(), nn.Conv2d(features[0], channels, 3, padding=1), nn.Tanh()
        )
        set_batch_norm_eps(self, batch_norm_eps)
        initialise(self, initialisation)
        if spectral_norm:
            for module in (self.linear, self.blocks, self.output):
                spectral_normalise(module)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and raw conditions to images [N, C, H, W] in [-1, 1]."""
        vector = self.condition(condition).to(latent.dtype)
        start, *parts = latent.split(self.parts, dim=1)
        features = self.linear(start).unflatten(1, (-1, *self.base))  # [N, width, h, w]
        for block, part in zip(self.blocks, parts, strict=True):
            features = block(features, torch.cat([vector, part], dim=1))
        return self.output(features)
