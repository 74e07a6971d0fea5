"""StyleGAN2: Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020.

Conditions are used as in Karras et al., "Training generative adversarial networks with limited data", NeurIPS 2020 (ADA).
Image sizes are halved until a side is odd or 4 to 7 pixels long: 28 px gives 7, 14 and 28. The smallest resolution is always
computed in float32, as in the papers' code, the others in the trainer's precision.
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

_MAPPING_RATE = 0.01  # learning-rate multiplier of the mapping networks
_CONDITION_LAYERS = 8  # layers of the discriminator's mapping network, at every size in the paper's code


class Generator(nn.Module):
    """A mapping network from latents to styles, and a synthesis network from styles to images.

    The output is unbounded. Values outside [-1, 1] are clipped when an evaluation converts images to bytes, never in training.

    Args:
        latent_dim: Number of latent dimensions Z.
        condition: Encoder of the condition. Its vector is embedded, normalised and concatenated to the latent.
        normalisation: Must be ``modulation``.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        style_dim: Number of style dimensions W.
        num_mapping_layers: Number of mapping layers; 8 in the paper, 2 for CIFAR-10.
        channel_base: Number of channels of a layer times the longer side of its output.
        channel_max: Maximum number of channels of any layer.
        style_mixing: Fraction of training samples whose finer layers use another latent's style (Karras et al. 2019, 3.1).
        style_average_decay: Decay of the moving average of styles, which truncation interpolates towards.
        conv_clamp: Maximum magnitude of a layer's output.

    Raises:
        ValueError: If the normalisation is not ``modulation``, the image size does not fit, or a number is out of range.
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
                f"normalisation={normalisation} is not supported by StyleGAN2, whose generator has no normalisation layers: "
                "set it to modulation, and condition by projection"
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

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] from N(0, 1) and raw conditions to images [N, C, H, W]."""
        return self.synthesize(self.map_latents(latent, condition))

    def map_latents(self, latent: Tensor, condition: Tensor, truncation: float = 1.0) -> Tensor:
        """Map latents [N, Z] and raw conditions to styles of the L layers [N, L, W].

        In training it updates the average style and applies style mixing.

        Args:
            latent: Latents from N(0, 1).
            condition: Raw condition of each image.
            truncation: Truncation psi from 0, the average style, to 1, no truncation: Karras et al. 2019, appendix B.
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

    @property
    def noise_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the noise of every layer, in the order of the layers."""
        return [tuple(layer.noise.shape[2:]) for block in self.blocks for layer in block.layers]  # type: ignore

    def synthesize(
        self,
        styles: Tensor,
        noise_key: Tensor | None = None,
        noise_strength: float = 1.0,
        noise_maps: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Map styles [N, L, W] to images [N, C, H, W].

        Args:
            styles: Result of ``map_latents``.
            noise_key: Key of each image's noise, int64 [N], which determines the noise of every pixel in every layer. None
                draws random noise in training and uses fixed noise, the same for all images, in evaluation.
            noise_strength: Factor of the noise; 0 for none.
            noise_maps: Noise [N, 1, H, W] of every layer, of ``noise_sizes``, in place of any other; None for no such noise.
        """
        given = None if noise_maps is None else iter(noise_maps)
        features, image = self.start.expand(styles.shape[0], -1, -1, -1), None
        for number, block in enumerate(self.blocks):
            # The image layer of a block uses the same style as the first layer of the next block.
            own = styles[:, max(2 * number - 1, 0) : 2 * number + 2]
            if given is None:
                noise = self._noise(number, noise_key, noise_strength)
            else:
                noise = [next(given) for _ in block.layers]  # type: ignore[union-attr]
            if number == 0:
                with torch.autocast(styles.device.type, enabled=False):
                    features, image = block(features, image, own, noise)
            else:
                features, image = block(features, image, own, noise)
        assert image is not None
        return image

    def _noise(self, number: int, noise_key: Tensor | None, noise_strength: float) -> list[Tensor] | None:
        """Return the noise [N, 1, H, W] of each layer in a block; None if the layers use their own."""
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

    With a condition, the logit is the inner product of the D last features and the mapped condition, divided by sqrt(D): Miyato
    & Koyama 2018, in the form of ADA's code.

    Args:
        condition: Encoder of the condition.
        head: ``none`` without a condition, ``projection`` with one.
        image_size: Image size in pixels, one number or [height, width].
        channels: Number of image channels.
        architecture: ``residual`` as in the paper, or ``plain`` for CIFAR-10 ("orig" in the paper's code).
        channel_base, channel_max: See ``Generator``.
        group_size: Maximum number of samples over which the standard deviation is computed.
        conv_clamp: Maximum magnitude of a layer's output.

    Raises:
        ValueError: If the head does not fit the condition, the architecture is unknown, or the image size does not fit.
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
                f"head={head} with the condition {type(condition).__name__} is not supported by StyleGAN2: choose projection "
                "with a condition, or none without one"
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
        """Score images [N, C, H, W] with their raw conditions."""
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
    """Return all heights and widths from the smallest to the image's."""
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
    """Build linear layers, each followed by leaky ReLU: Karras et al. 2019 (StyleGAN), figure 1b."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [EqualisedLinear(inputs, outputs, rate=_MAPPING_RATE, gain=LEAKY_GAIN), nn.LeakyReLU(0.2, inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers)
