"""StyleGAN2: Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020.

Conditions are used as in Karras et al., "Training generative adversarial networks with limited data", NeurIPS 2020 (ADA).
Images are halved until a side is odd or 4 to 7 pixels long: 28 px gives 7, 14 and 28. The smallest resolution always computes
in float32, as in the papers' code; the others compute in the trainer's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.discriminator import DiscriminatorOutput
from genimg.networks.layers import halvings
from genimg.networks.stylegan2_layers import (
    LEAKY_GAIN,
    ClampedLeakyReLU,
    DiscriminatorBlock,
    EqualisedConv2d,
    EqualisedLinear,
    MinibatchStandardDeviation,
    SynthesisBlock,
    normalise_second_moment,
)
from genimg.utils.distributed import sum_over_ranks, world_size
from genimg.utils.numbers import require_least
from genimg.utils.rng import mixed_keys, normal_numbers

ARCHITECTURES = ("residual", "plain")

_MAPPING_RATE = 0.01  # of learning in the mapping networks, relative to all other layers
_CONDITION_LAYERS = 8  # of the discriminator's mapping network, in the paper's code at every size


class Generator(nn.Module):
    """A mapping network from latents to styles, and a synthesis network from styles to an image, which is not squashed.

    What lies outside [-1, 1] is cut where an evaluation makes bytes of images, and nowhere in training.

    Args:
        latent_dim: Z.
        condition: encoder; its vector is embedded, normalised and joined to the latent.
        normalisation: must be ``modulation``.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        style_dim: W.
        num_mapping_layers: 8 in the paper, 2 for CIFAR-10.
        channel_base: channels of a layer times the longer side of its output.
        channel_max: of any layer.
        style_mixing: share of training samples whose finer layers have another latent's style (Karras et al. 2019, 3.1).
        style_average_decay: of the moving average of styles towards which a truncation pulls.
        conv_clamp: largest magnitude of a layer's output.

    Raises:
        ValueError: for another normalisation, an image size that does not fit, or a number out of range.
    """

    style_average: Tensor

    def __init__(
        self,
        *,
        latent_dim: int,
        condition: ConditionEncoder,
        normalisation: str,
        image_size: int | Sequence[int],
        channels: int,
        style_dim: int,
        num_mapping_layers: int,
        channel_base: int,
        channel_max: int,
        style_mixing: float,
        style_average_decay: float,
        conv_clamp: float,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        if normalisation != "modulation":
            raise ValueError(
                f"normalisation={normalisation} is not for StyleGAN2, whose generator has no normalisation layers: set it to "
                "modulation, and condition by projection"
            )
        if not 0 <= style_mixing <= 1:
            raise ValueError(f"style_mixing={style_mixing} is a probability: it must lie between 0 and 1")
        require_least(1, num_mapping_layers=num_mapping_layers)
        sizes = _sizes(image_size)
        widths = [_width(size, channel_base, channel_max) for size in sizes]
        self.condition = condition
        self.embedding = EqualisedLinear(condition.dim, style_dim) if condition.dim else None
        joined = latent_dim + (style_dim if condition.dim else 0)
        self.styles = _mapping_layers(joined, style_dim, num_mapping_layers)
        self.register_buffer("style_average", torch.zeros(style_dim))
        self.style_average_decay = style_average_decay
        self.style_mixing = style_mixing
        self.num_styles = 2 * len(sizes)
        self.start = nn.Parameter(torch.randn(1, widths[0], *sizes[0]))
        self.blocks = nn.ModuleList(
            SynthesisBlock(
                widths[max(number - 1, 0)],
                width,
                size,
                image_channels=channels,
                style_dim=style_dim,
                upsample=number > 0,
                conv_clamp=conv_clamp,
            )
            for number, (size, width) in enumerate(zip(sizes, widths, strict=True))
        )

    def forward(
        self,
        latent: Tensor,
        condition: Tensor,
        truncation: float = 1.0,
        noise_key: Tensor | None = None,
        noise_strength: float = 1.0,
    ) -> Tensor:
        """[N, Z] and conditions as they stand in the batch -> [N, C, H, W].

        Args:
            latent: from N(0, 1).
            condition: of each image.
            truncation: psi, how far from the average style, from 0 to 1: Karras et al. 2019, appendix B.
            noise_key: int64 [N]; every pixel's noise in every layer is a function of its image's key. None draws noise in
                training; in evaluation it takes one that is fixed, the same for all images.
            noise_strength: factor on the noise; 0 for none.
        """
        return self.synthesis(self.mapping(latent, condition, truncation), noise_key, noise_strength)

    def mapping(self, latent: Tensor, condition: Tensor, truncation: float = 1.0) -> Tensor:
        """[N, Z] and conditions as they stand in the batch -> styles of the L layers [N, L, W].

        In training it follows the average style, and mixes.
        """
        with torch.autocast(latent.device.type, enabled=False):
            vector = self.condition(condition).to(latent.dtype)
            style = self._style(latent, vector)
            if self.training:
                with torch.no_grad():
                    average = sum_over_ranks(style.mean(dim=0)) / world_size()
                    self.style_average.lerp_(average.to(self.style_average.dtype), 1.0 - self.style_average_decay)
            styles = style[:, None].expand(-1, self.num_styles, -1)  # [N, L, W]
            if self.training and self.style_mixing > 0:
                styles = self._mix(styles, self._style(torch.randn_like(latent), vector)[:, None])
            return styles if truncation == 1 else torch.lerp(self.style_average, styles, truncation)

    def synthesis(self, styles: Tensor, noise_key: Tensor | None = None, noise_strength: float = 1.0) -> Tensor:
        """[N, L, W] -> [N, C, H, W]; the noise is that of ``forward``."""
        features, image = self.start.expand(styles.shape[0], -1, -1, -1), None
        for number, block in enumerate(self.blocks):
            # A block's image has the style of the next block's first layer.
            own = styles[:, max(2 * number - 1, 0) : 2 * number + 2]
            noise = self._noise(number, noise_key, noise_strength)
            if number == 0:
                with torch.autocast(styles.device.type, enabled=False):
                    features, image = block(features, image, own, noise)
            else:
                features, image = block(features, image, own, noise)
        assert image is not None
        return image

    def _noise(self, number: int, noise_key: Tensor | None, noise_strength: float) -> list[Tensor] | None:
        """Of each layer of a block [N, 1, H, W]; None where the layers have their own."""
        if noise_key is None and noise_strength == 1:
            return None
        found = []
        for place, layer in enumerate(self.blocks[number].layers):  # type: ignore[arg-type]
            own = (
                layer.noise
                if noise_key is None
                else normal_numbers(mixed_keys(noise_key, number, place), layer.noise.shape[1:])
            )
            found.append(own * noise_strength)
        return found

    def _style(self, latent: Tensor, vector: Tensor) -> Tensor:
        parts = [normalise_second_moment(latent)]
        if self.embedding is not None:
            parts.append(normalise_second_moment(self.embedding(vector)))
        return self.styles(torch.cat(parts, dim=1))  # [N, W]

    def _mix(self, styles: Tensor, others: Tensor) -> Tensor:
        n, layers, device = len(styles), self.num_styles, styles.device
        crossover = torch.randint(1, layers, (n, 1), device=device)
        crossover = crossover.masked_fill(torch.rand(n, 1, device=device) >= self.style_mixing, layers)
        own = torch.arange(layers, device=device) < crossover  # [N, L]
        return torch.where(own[:, :, None], styles, others)


class Discriminator(nn.Module):
    """Convolutions to the smallest resolution, minibatch standard deviation, and a logit.

    With a condition, the logit is the inner product of the last features and the mapped condition, over the root of their
    number: Miyato & Koyama 2018, in the form of ADA's code.

    Args:
        condition: encoder.
        head: ``none`` without a condition, ``projection`` with one.
        image_size: pixels, one number or [height, width].
        channels: of the image.
        architecture: ``residual`` in the paper, ``plain`` for CIFAR-10 ("orig" in the paper's code).
        channel_base, channel_max: see ``Generator``.
        group_size: samples over which the standard deviation is taken, at most.
        conv_clamp: largest magnitude of a layer's output.

    Raises:
        ValueError: for another head or architecture, or an image size that does not fit.
    """

    def __init__(
        self,
        *,
        condition: ConditionEncoder,
        head: str,
        image_size: int | Sequence[int],
        channels: int,
        architecture: str,
        channel_base: int,
        channel_max: int,
        group_size: int,
        conv_clamp: float,
    ) -> None:
        super().__init__()
        if head != ("projection" if condition.dim else "none"):
            raise ValueError(
                f"head={head} with the condition {type(condition).__name__} is not for StyleGAN2: choose projection with a "
                "condition, or none without one"
            )
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture={architecture} is unknown: choose one of {', '.join(ARCHITECTURES)}")
        sizes = _sizes(image_size)[::-1]
        widths = [_width(size, channel_base, channel_max) for size in sizes]
        last = widths[-1]
        self.condition = condition
        self.from_image = nn.Sequential(EqualisedConv2d(channels, widths[0], 1, gain=LEAKY_GAIN), ClampedLeakyReLU(conv_clamp))
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(inputs, outputs, residual=architecture == "residual", conv_clamp=conv_clamp)
            for inputs, outputs in pairwise(widths)
        )
        self.epilogue = nn.Sequential(
            MinibatchStandardDeviation(group_size),
            EqualisedConv2d(last + 1, last, 3, gain=LEAKY_GAIN),
            ClampedLeakyReLU(conv_clamp),
            nn.Flatten(),
            EqualisedLinear(last * sizes[-1][0] * sizes[-1][1], last, gain=LEAKY_GAIN),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.logit = EqualisedLinear(last, last if condition.dim else 1)
        self.embedding = EqualisedLinear(condition.dim, last) if condition.dim else None
        self.mapping = _mapping_layers(last, last, _CONDITION_LAYERS) if condition.dim else None

    def forward(self, image: Tensor, condition: Tensor) -> DiscriminatorOutput:
        """Images [N, C, H, W] and their conditions as they stand in the batch."""
        features = self.from_image(image)
        for block in self.blocks:
            features = block(features)
        with torch.autocast(image.device.type, enabled=False):
            features = self.logit(self.epilogue(features.to(self.logit.weight.dtype)))  # [N, D], or [N, 1]
            if self.embedding is None or self.mapping is None:
                return DiscriminatorOutput(features.squeeze(1))
            vector = self.condition(condition).to(features.dtype)
            direction = self.mapping(normalise_second_moment(self.embedding(vector)))
            return DiscriminatorOutput((features * direction).sum(dim=1) / math.sqrt(features.shape[1]))


def _sizes(image_size: int | Sequence[int]) -> list[tuple[int, int]]:
    """All heights and widths from the smallest to the image's."""
    count, (height, width) = halvings(image_size, least=1)
    return [(height * 2**level, width * 2**level) for level in range(count + 1)]


def _width(size: tuple[int, int], channel_base: int, channel_max: int) -> int:
    width = min(channel_base // max(size), channel_max)
    if width < 1:
        raise ValueError(
            f"channel_base={channel_base} and channel_max={channel_max} leave no channels at {size[0]}x{size[1]} pixels: use a "
            f"channel_base of at least {max(size)}"
        )
    return width


def _mapping_layers(inputs: int, outputs: int, num_layers: int) -> nn.Sequential:
    """Linear layers, each followed by leaky ReLU: Karras et al. 2019 (StyleGAN), figure 1b."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [EqualisedLinear(inputs, outputs, rate=_MAPPING_RATE, gain=LEAKY_GAIN), nn.LeakyReLU(0.2, inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers)
