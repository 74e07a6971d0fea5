"""Blocks of the U-Nets of diffusion models, and what differs between their papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks import resampling as filters
from genimg.networks.diffusion_layers import GroupNorm, attention
from genimg.networks.layers import start_at_zero

_BINOMIAL = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What differs between the U-Nets of the papers besides their sizes."""

    scales: bool
    """Whether the embedding scales and shifts a block's second norm; otherwise it is added to the input of that norm."""
    sum_scale: float
    """Factor of every sum of a skip and a residual branch."""
    projects_resampled: bool
    """Whether the skip of a block that resamples has a 1x1 convolution even if the number of channels stays."""
    attends_always: bool
    """Whether all decoder blocks of a level with attention have it, or only the last."""
    adds_condition_first: bool
    """See ``TimeEmbedding``."""
    widens_stem: bool
    """Whether the first convolution has as many channels as the first level; otherwise it has ``width``."""
    norm_eps: float
    """Epsilon of group norms."""
    attention_gain: float | None
    """Gain of the initial weights of queries, keys and values; None if all layers have PyTorch's initial weights."""
    random_frequencies: bool = False
    """See ``TimeEmbedding``."""
    sees_image_at_each_size: bool = False
    """Whether the reduced image, after a convolution, is added to the features wherever the encoder halves the size."""


_DDPMPP = Architecture(
    scales=False,
    sum_scale=math.sqrt(0.5),
    projects_resampled=True,
    attends_always=False,
    adds_condition_first=True,
    widens_stem=False,
    norm_eps=1e-6,
    attention_gain=math.sqrt(0.2),
)

ARCHITECTURES = {
    "ddpm": Architecture(
        scales=False,
        sum_scale=1.0,
        projects_resampled=False,
        attends_always=True,
        adds_condition_first=False,
        widens_stem=True,
        norm_eps=1e-6,
        attention_gain=math.sqrt(2.0),  # the same bound as for three layers from C to C channels
    ),
    "ddpmpp": _DDPMPP,
    "ncsnpp": replace(_DDPMPP, random_frequencies=True, sees_image_at_each_size=True),
    "adm": Architecture(
        scales=True,
        sum_scale=1.0,
        projects_resampled=False,
        attends_always=True,
        adds_condition_first=False,
        widens_stem=True,
        norm_eps=1e-5,
        attention_gain=None,
    ),
}


def end_near_zero(layer: nn.Conv2d, kind: Architecture) -> None:
    """Let the last layer of a residual branch, or of the network, start at 0 or with gain 1e-5 in ``layers.initialise``."""
    if kind.attention_gain is None:
        start_at_zero(layer.weight)
    else:
        layer.init_gain = 1e-5  # type: ignore[assignment]


def resampling_filter(kind: str, direction: str) -> nn.Module:
    """Build a layer without weights that halves (``down``) or doubles (``up``) the size by a ``box`` or ``binomial`` filter."""
    if kind == "binomial":
        return filters.Downsample(_BINOMIAL) if direction == "down" else filters.Upsample(_BINOMIAL)
    return nn.AvgPool2d(2) if direction == "down" else filters.Doubling()


class ResamplingLayer(nn.Module):
    """A layer between blocks that halves (``down``) or doubles (``up``) the size, and does not use the embedding."""

    joins_skip = False
    modulation_size = 0

    def __init__(self, channels: int, direction: str, *, convolves: bool) -> None:
        super().__init__()
        if direction == "down" and convolves:
            self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        else:
            convolution = [nn.Conv2d(channels, channels, 3, padding=1)] if convolves else []
            self.layers = nn.Sequential(resampling_filter("box", direction), *convolution)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        return self.layers(features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the embedding between them, a skip, and self-attention after the sum or none.

    Attributes:
        joins_skip: Whether the caller concatenates an encoder layer's output to the block's input.
        modulation_size: Number of values that the block takes from the embedding.
    """

    joins_skip = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kind: Architecture,
        *,
        dropout: float,
        resample: nn.Module | None,
        attention: nn.Module | None,
    ) -> None:
        super().__init__()
        self.scales = kind.scales
        self.sum_scale = kind.sum_scale
        self.modulation_size = outputs * (2 if kind.scales else 1)
        self.first_norm = GroupNorm(inputs, eps=kind.norm_eps)
        self.resample = resample
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm = GroupNorm(outputs, eps=kind.norm_eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        end_near_zero(self.second, kind)
        projects = inputs != outputs or (resample is not None and kind.projects_resampled)
        self.skip = nn.Conv2d(inputs, outputs, 1) if projects else nn.Identity()
        self.attention = attention if attention is not None else nn.Identity()

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """Map features [N, C, H, W] and this block's part of the embedding [N, M] to features [N, C', H', W']."""
        hidden = F.silu(self.first_norm(features))
        if self.resample is not None:
            hidden, features = self.resample(hidden), self.resample(features)
        hidden = self.first(hidden)
        modulation = modulation.to(hidden.dtype)[:, :, None, None]
        if self.scales:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.second_norm(hidden), 1.0 + scale)
        else:
            hidden = self.second_norm(hidden + modulation)
        hidden = self.second(self.dropout(F.silu(hidden)))
        return self.attention(_scaled_sum(self.skip(features), hidden, self.sum_scale))


class SelfAttention(nn.Module):
    """Self-attention over all positions, with a skip."""

    def __init__(self, channels: int, heads: int, kind: Architecture) -> None:
        super().__init__()
        self.heads = heads
        self.sum_scale = kind.sum_scale
        self.norm = GroupNorm(channels, eps=kind.norm_eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)  # queries, keys and values
        if kind.attention_gain is not None:
            self.qkv.init_gain = kind.attention_gain  # type: ignore[assignment]
        self.output = nn.Conv2d(channels, channels, 1)
        end_near_zero(self.output, kind)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        qkv = self.qkv(self.norm(features)).flatten(2).unflatten(1, (3, self.heads, -1))  # [N, 3, heads, D, HW]
        query, key, value = qkv.transpose(-1, -2).unbind(1)  # [N, heads, HW, D]
        mixed = attention(query, key, value).transpose(-1, -2).flatten(1, 2)  # [N, C, HW], channels last in memory
        if torch.compiler.is_exporting():  # its guard for channels-last convolutions would exclude batches of one image
            mixed = mixed.contiguous()
        return _scaled_sum(features, self.output(mixed.unflatten(2, features.shape[2:])), self.sum_scale)


def _scaled_sum(skip: Tensor, branch: Tensor, scale: float) -> Tensor:
    return skip + branch if scale == 1.0 else (skip + branch) * scale
