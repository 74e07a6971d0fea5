"""U-Nets of diffusion models: Ho et al. 2020 (DDPM), Song et al. 2021 and Karras et al. 2022 (DDPM++ and NCSN++), and
Dhariwal & Nichol 2021 (ADM)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast
from genimg.networks.conditioning import ConditionEncoder, OneHot
from genimg.networks.diffusion_blocks import (
    ARCHITECTURES,
    Architecture,
    ResamplingLayer,
    ResidualBlock,
    SelfAttention,
    end_near_zero,
    resampling_filter,
)
from genimg.networks.diffusion_layers import GroupNorm, TimeEmbedding, require_settings
from genimg.networks.layers import initialise
from genimg.types import height_width
from genimg.utils.numbers import require_least

RESAMPLINGS = ("convolution", "pooling", "box", "binomial")
_EMBEDDING = 4  # length of the embedding as a multiple of the width, in all three papers


class DiffusionUNet(nn.Module):
    """U-Net that maps a noisy image and its time to an image of the same size, without a bound.

    Each level has residual blocks and, at chosen sizes, self-attention; the smallest level has it in any case. The decoder has
    one more block a level than the encoder, and receives the output of every encoder layer.

    ``architecture`` chooses the residual block and what comes with it in its paper's code:

    - ``ddpm``: the embedding is added to the features. Xavier initialisation.
    - ``ddpmpp``: as ``ddpm``, but sums are divided by sqrt(2), blocks that resample have a convolution in their skip, the
      decoder has attention only in the last block of a level, and the condition is added before the embedding's first layer.
    - ``ncsnpp``: as ``ddpmpp``, but the frequencies of the time embedding are random, and the encoder receives the image again
      at each smaller size. The paper uses ``resampling="binomial"``.
    - ``adm``: the embedding scales and shifts the second norm of a block. PyTorch's initial weights.

    The last layer of each residual branch and of the network starts at 0 (``adm``) or near it (gain 1e-5), and all biases at 0.

    Args:
        channels: Number of image channels C.
        image_size: Size of training images in pixels, one number or [height, width]. Other sizes work, too, if they are
            multiples of the attribute ``size_divisor``; attention then acts at the same levels.
        condition: Encoder of the condition.
        width: Number of channels that ``multipliers`` multiply, even.
        multipliers: Number of channels of each level as a multiple of the width, from the image inwards.
        num_blocks: Number of encoder blocks a level.
        attention_sizes: Sizes of features with attention, in pixels of the longer side after ``patch_size``. May be empty.
        architecture: ``ddpm``, ``ddpmpp``, ``ncsnpp`` or ``adm``.
        resampling: How the size is halved and doubled. Between residual blocks: ``convolution``, with stride 2 or after
            nearest-neighbour upsampling, or ``pooling``, the same without weights. Within a block: ``box`` ([1, 1]) or
            ``binomial`` ([1, 3, 3, 1]), the filter's taps.
        channels_per_head: Number of channels of an attention head; None for one head.
        dropout: Dropout probability in residual blocks.
        patch_size: Side P of the patches whose pixels become the channels of one position; 1 keeps the image as it is.
        num_times: Number of times per image: 1, or 2 as in MeanFlow, which embeds each in twice as many numbers.
        augment_dim: Number of augmentation labels; 0 for none.
        source_channels: Number of channels of the source image that the caller appends to the noisy image.

    Raises:
        ValueError: If a setting is unknown or out of range, or the image size does not fit.
    """

    def __init__(
        self,
        *,
        channels: int,
        image_size: int | Sequence[int],
        condition: ConditionEncoder,
        width: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_sizes: Sequence[int],
        architecture: str,
        resampling: str,
        channels_per_head: int | None,
        dropout: float,
        patch_size: int,
        num_times: int,
        augment_dim: int,
        source_channels: int = 0,
    ) -> None:
        super().__init__()
        require_least(1, channels=channels, width=width, num_blocks=num_blocks, patch_size=patch_size)
        require_settings(
            architecture=architecture, architectures=ARCHITECTURES, dropout=dropout, num_times=num_times,
            augment_dim=augment_dim, source_channels=source_channels,
        )  # fmt: skip
        if width % 2:
            raise ValueError(f"width={width} must be even: half of it are sines, half cosines")
        if resampling not in RESAMPLINGS:
            raise ValueError(f"resampling={resampling} is unknown: choose one of {', '.join(RESAMPLINGS)}")
        widths = widths_of(width, multipliers)
        self.condition = condition
        self.num_times = num_times
        self.augment_dim = augment_dim
        self.patch_size = patch_size
        self.size_divisor = patch_size * 2 ** (len(widths) - 1)
        attends = levels_with_attention(image_size, attention_sizes, patch_size, len(widths))
        kind = ARCHITECTURES[architecture]
        stem = widths[0] if kind.widens_stem else width
        build = _Builder(kind, resampling, channels_per_head, dropout)
        self.blocks, self.num_encoder_blocks, self.modulation_sizes = build.blocks(stem, widths, attends, num_blocks)

        dim = _EMBEDDING * width
        self.embedding = TimeEmbedding(
            width=width * (2 if kind.random_frequencies else num_times),
            outputs=dim,
            condition=condition,
            num_times=num_times,
            augment_dim=augment_dim,
            adds_condition_first=kind.adds_condition_first,
            random_frequencies=kind.random_frequencies,
        )
        self.modulation = nn.Linear(dim, sum(self.modulation_sizes))  # one layer for all blocks, which takes one call
        inputs = (channels + source_channels) * patch_size**2
        self.stem = nn.Conv2d(inputs, stem, 3, padding=1)
        self.image_skips = nn.ModuleDict()  # by the number of the block that halves the size
        if kind.sees_image_at_each_size:
            positions = [level * (num_blocks + 1) - 1 for level in range(1, len(widths))]
            for position, before, after in zip(positions, [inputs, *widths[:-2]], widths[:-1], strict=True):
                reduced = resampling_filter("binomial" if resampling == "binomial" else "box", "down")
                skip = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), reduced)
                self.image_skips[str(position)] = skip
        self.norm = GroupNorm(widths[0], eps=kind.norm_eps)
        self.output = nn.Conv2d(widths[0], channels * patch_size**2, 3, padding=1)
        self._initialise(kind)

    def _initialise(self, kind: Architecture) -> None:
        """Set the initial weights; those of the condition's encoder are its own."""
        end_near_zero(self.output, kind)
        parts = (self.embedding, self.stem, self.image_skips, self.blocks, self.output)
        if kind.attention_gain is not None:
            for part in parts:
                initialise(part, "xavier")
            for rows in self.modulation.weight.detach().split(self.modulation_sizes):  # each block's as a layer of its own
                if len(rows):
                    nn.init.xavier_uniform_(rows)
        for layer in itertools.chain(self.modulation.modules(), *(part.modules() for part in parts)):
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.embedding.condition is not None and not kind.adds_condition_first:  # a table of N(0, 1), or as large a sum
            fan_in = 1 if isinstance(self.condition, OneHot) else self.condition.dim
            nn.init.normal_(self.embedding.condition.weight, 0.0, fan_in**-0.5)

    def forward(
        self, noisy: Tensor, time: Tensor, condition: Tensor, keep: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Return float32 [N, C, H, W].

        Args:
            noisy: Noisy images, followed by the source's channels if there are any: [N, C + source_channels, H, W].
            time: Times, float32 [N], or [N, num_times], in the unit of the embedding: 1 to 1,000 in DDPM.
            condition: Raw conditions, as ``condition`` encodes them.
            keep: 1 for images with their condition, 0 for those with the null condition of classifier-free guidance, a zero
                vector: bool or float [N]. None keeps all.
            augment: Augmentation labels, float32 [N, augment_dim]. None means zeros: an image that was not augmented.
        """
        embedded = self.embedding(time, self.condition(condition), keep, augment)  # [N, 4 * width]
        with without_autocast(embedded):
            modulations = self.modulation(embedded).split(self.modulation_sizes, dim=1)
        image = F.pixel_unshuffle(noisy, self.patch_size)
        features = self.stem(image)
        skips = [features]
        for number, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            if block.joins_skip:
                features = torch.cat([features, skips.pop()], dim=1)
            features = block(features, modulation)
            if str(number) in self.image_skips:
                features = image = (features + self.image_skips[str(number)](image)) * math.sqrt(0.5)
            if number < self.num_encoder_blocks:
                skips.append(features)
        result = F.pixel_shuffle(self.output(F.silu(self.norm(features))), self.patch_size)
        return result.to(torch.promote_types(result.dtype, torch.float32))


def widths_of(width: int, multipliers: Sequence[int]) -> list[int]:
    given = list(multipliers)
    if not given or any(multiplier < 1 for multiplier in given):
        raise ValueError(f"multipliers={given} must be a list of one or more positive numbers, from the image inwards")
    return [width * multiplier for multiplier in given]


def levels_with_attention(
    image_size: int | Sequence[int], attention_sizes: Sequence[int], patch_size: int, num_levels: int
) -> list[bool]:
    """Return for each level whether its longer side is one of ``attention_sizes``.

    Raises:
        ValueError: If the image size is not a multiple of the patch's, doubled for each further level; or no level has one of
            the sizes.
    """
    height, width = height_width(image_size)
    unit = patch_size * 2 ** (num_levels - 1)
    if height % unit or width % unit:
        nearest = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"image_size=[{height},{width}] does not fit this network: height and width must be multiples of {unit}; "
            f"the nearest is [{nearest[0]},{nearest[1]}]"
        )
    sizes = [max(height, width) // patch_size // 2**level for level in range(num_levels)]
    attends = [size in list(attention_sizes) for size in sizes]
    if attention_sizes and not any(attends):
        raise ValueError(
            f"attention_sizes={list(attention_sizes)} are sizes of no level: choose from {sizes}, or [] for attention at the "
            "smallest size alone"
        )
    return attends


@dataclass(frozen=True)
class _Builder:
    kind: Architecture
    resampling: str
    channels_per_head: int | None
    dropout: float

    def blocks(
        self, stem: int, widths: list[int], attends: list[bool], num_blocks: int
    ) -> tuple[nn.ModuleList, int, list[int]]:
        """Build the blocks of encoder, smallest size and decoder, in this order.

        Returns:
            The blocks, the number of those in the encoder, and the number of values that each takes from the embedding.
        """
        blocks: list[ResamplingLayer | ResidualBlock] = []
        inputs, skips = stem, [stem]
        for level, outputs in enumerate(widths):
            if level:
                blocks.append(self._resampling(inputs, "down"))
                skips.append(inputs)
            for _ in range(num_blocks):
                blocks.append(self._residual(inputs, outputs, attends=attends[level]))
                inputs = outputs
                skips.append(inputs)
        num_encoder_blocks = len(blocks)
        blocks.extend([self._residual(inputs, inputs, attends=True), self._residual(inputs, inputs)])
        for level in range(len(widths) - 1, -1, -1):
            for number in range(num_blocks + 1):
                attends_here = attends[level] and (self.kind.attends_always or number == num_blocks)
                block = self._residual(inputs + skips.pop(), widths[level], attends=attends_here)
                block.joins_skip = True
                blocks.append(block)
                inputs = widths[level]
            if level:
                blocks.append(self._resampling(inputs, "up"))
        return nn.ModuleList(blocks), num_encoder_blocks, [block.modulation_size for block in blocks]

    def _resampling(self, channels: int, direction: str) -> ResamplingLayer | ResidualBlock:
        if self.resampling in ("convolution", "pooling"):
            return ResamplingLayer(channels, direction, convolves=self.resampling == "convolution")
        return self._residual(channels, channels, resample=resampling_filter(self.resampling, direction))

    def _residual(
        self, inputs: int, outputs: int, *, attends: bool = False, resample: nn.Module | None = None
    ) -> ResidualBlock:
        heads = 1
        if attends and self.channels_per_head is not None:
            if self.channels_per_head < 1 or outputs % self.channels_per_head:
                raise ValueError(
                    f"channels_per_head={self.channels_per_head} must divide the {outputs} channels of features with attention"
                )
            heads = outputs // self.channels_per_head
        attention = SelfAttention(outputs, heads, self.kind) if attends else None
        return ResidualBlock(inputs, outputs, self.kind, dropout=self.dropout, resample=resample, attention=attention)
