"""The U-Net of EDM2: Karras et al., "Analyzing and improving the training dynamics of diffusion models", CVPR 2024, config G.

Every layer preserves the expected magnitude of its input, and weights have unit magnitude in all training steps, so neither
activations nor weights grow during training. There are no group norms and no biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast
from genimg.networks.conditioning import ConditionEncoder, OneHot
from genimg.networks.diffusion_layers import attention
from genimg.networks.diffusion_unet import levels_with_attention, widths_of
from genimg.networks.resampling import doubled
from genimg.utils.distributed import own_part
from genimg.utils.numbers import require_least

_EPSILON = 1e-4
_SILU_SCALE = 1 / 0.596  # 1 over the magnitude of silu(x) for x ~ N(0, 1): equation 81
_BALANCE = 0.3  # weight of a residual branch in its sum: table 6
_LIMIT = 256.0  # of activations: table 6


def normalised(x: Tensor, dim: int | list[int]) -> Tensor:
    """Scale ``x`` to a mean square of 1 over ``dim``: equation 66.

    Args:
        x: Tensor of any shape.
        dim: Dimensions over which the mean is taken.
    """
    rms = x.float().square().mean(dim=dim, keepdim=True).sqrt()
    return x / (rms + _EPSILON).to(x.dtype)


def mixed(left: Tensor, right: Tensor, share: float) -> Tensor:
    """Return a weighted sum that has unit magnitude if the tensors do and are uncorrelated: equation 88.

    Args:
        left, right: Tensors of the same shape.
        share: Weight of ``right``, in [0, 1].
    """
    return torch.lerp(left, right, share) / math.hypot(1.0 - share, share)


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Concatenate the channels of two tensors [N, C, H, W] so that both contribute the same magnitude: equation 103."""
    left_size, right_size = left.shape[1], right.shape[1]
    whole = math.sqrt((left_size + right_size) / 2.0)
    return torch.cat([left * (whole / math.sqrt(left_size)), right * (whole / math.sqrt(right_size))], dim=1)


def silu(x: Tensor) -> Tensor:
    """Return SiLU, scaled to preserve the magnitude: equation 81."""
    return F.silu(x) * _SILU_SCALE


class FourierFeatures(nn.Module):
    """Random Fourier features of unit magnitude: equation 75.

    Args:
        dim: Number of features.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 * math.pi * torch.randn(dim))
        self.register_buffer("phases", 2.0 * math.pi * torch.rand(dim))

    def forward(self, time: Tensor) -> Tensor:
        """Map numbers [N] to features [N, dim]."""
        return (time.float()[:, None] * self.frequencies + self.phases).cos() * math.sqrt(2.0)


class NormalisedLayer(nn.Module):
    """A convolution or linear layer without bias whose weights are normalised per output: equations 47 and 66.

    Args:
        inputs, outputs: Number of channels.
        kernel_size: Side of the convolution's kernel; 0 for a linear layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 0) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel_size] * (2 if kernel_size else 0)))
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Scale the stored weights to unit magnitude, after an optimizer step ("forced weight normalization").

        Frozen weights do not change.
        """
        if not self.weight.requires_grad:
            return
        weight = own_part(self.weight)  # rows, each of which is scaled on its own
        weight.copy_(normalised(weight, list(range(1, weight.dim()))))

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Map [N, inputs, H, W] or [N, inputs] to the outputs, multiplied by ``gain``."""
        weight = normalised(self.weight, list(range(1, self.weight.dim()))) / math.sqrt(self.weight[0].numel())
        if gain is not None:
            weight = weight * gain
        weight = weight.to(x.dtype)
        return F.conv2d(x, weight, padding=self.kernel_size // 2) if self.kernel_size else F.linear(x, weight)


class _Block(nn.Module):
    """Residual block of figure 21, with attention or without.

    Attributes:
        joins_skip: Whether the caller concatenates an encoder layer's output to the block's input.
    """

    joins_skip = False

    def __init__(
        self, inputs: int, outputs: int, embedding: int, *, is_encoder: bool, resample: str | None, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.is_encoder, self.resample, self.heads, self.dropout = is_encoder, resample, heads, dropout
        self.gain = nn.Parameter(torch.zeros(()))
        self.first = NormalisedLayer(outputs if is_encoder else inputs, outputs, 3)
        self.modulation = NormalisedLayer(embedding, outputs)
        self.second = NormalisedLayer(outputs, outputs, 3)
        self.skip = NormalisedLayer(inputs, outputs, 1) if inputs != outputs else None
        self.qkv = NormalisedLayer(outputs, 3 * outputs, 1) if heads else None
        self.projection = NormalisedLayer(outputs, outputs, 1) if heads else None

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Map features [N, C, H, W] and the embedding [N, E] to features [N, C', H', W']."""
        if self.resample == "down":
            features = F.avg_pool2d(features, 2)
        elif self.resample == "up":
            features = doubled(features)
        if self.is_encoder:
            features = normalised(features if self.skip is None else self.skip(features), 1)
        hidden = self.first(silu(features))
        with without_autocast(embedding):
            modulation = self.modulation(embedding, self.gain) + 1.0
        hidden = silu(hidden * modulation[:, :, None, None].to(hidden.dtype))
        hidden = self.second(F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden)
        if not self.is_encoder and self.skip is not None:
            features = self.skip(features)
        features = mixed(features, hidden, _BALANCE)
        if self.qkv is not None and self.projection is not None:
            features = mixed(features, self.projection(self._attended(self.qkv(features))), _BALANCE)
        return features.clamp(-_LIMIT, _LIMIT)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Map queries, keys and values [N, 3C, H, W] to [N, C, H, W], with cosine attention: section B.3."""
        size = qkv.shape[2:]
        query, key, value = normalised(qkv.flatten(2).unflatten(1, (3, self.heads, -1)), 3).transpose(-1, -2).unbind(1)
        attended = attention(query, key, value).transpose(-1, -2).flatten(1, 2)
        if torch.compiler.is_exporting():  # a guard for channels-last convolutions would exclude batches of one image
            attended = attended.contiguous()
        return attended.unflatten(2, size)


class MagnitudePreservingUNet(nn.Module):
    """U-Net that maps a noisy image of about unit variance and its time to an output of the same size.

    The output starts at 0. After each optimizer step, ``Diffusion`` calls ``NormalisedLayer.normalise`` for each layer.

    Args:
        channels: Number of image channels C.
        image_size: Size of training images in pixels, one number or [height, width].
        condition: Encoder of the condition.
        width: Base number of channels, which ``multipliers`` multiply.
        multipliers: Number of channels of each level as a multiple of the width, from the image inwards.
        num_blocks: Number of encoder blocks a level; the decoder has one more.
        attention_sizes: Sizes of features with attention, in pixels of the longer side. The smallest size has it in any case.
        channels_per_head: Number of channels of an attention head; None for one head.
        dropout: Dropout probability in residual blocks.
        source_channels: Number of channels of the source image that the caller appends to the noisy image.

    Raises:
        ValueError: If a setting is out of range, or the image size does not fit.
    """

    num_times = 1
    augment_dim = 0

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
        channels_per_head: int | None,
        dropout: float,
        source_channels: int = 0,
    ) -> None:
        super().__init__()
        require_least(1, channels=channels, width=width, num_blocks=num_blocks)
        require_least(0, source_channels=source_channels)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        widths = widths_of(width, multipliers)
        attends = levels_with_attention(image_size, attention_sizes, 1, len(widths))
        self.condition = condition
        self.size_divisor = 2 ** (len(widths) - 1)
        self.condition_scale = math.sqrt(condition.dim) if isinstance(condition, OneHot) else 1.0
        dim = max(widths)
        self.time_features = FourierFeatures(width)
        self.time = NormalisedLayer(width, dim)
        self.label = NormalisedLayer(condition.dim, dim) if condition.dim else None
        self.stem = NormalisedLayer(channels + source_channels + 1, widths[0], 3)

        def block(inputs: int, outputs: int, is_encoder: bool, resample: str | None = None, attends: bool = False) -> _Block:
            heads = _num_heads(outputs, channels_per_head) if attends else 0
            return _Block(inputs, outputs, dim, is_encoder=is_encoder, resample=resample, heads=heads, dropout=dropout)

        encoder, skips, inputs = [], [widths[0]], widths[0]
        for level, outputs in enumerate(widths):
            if level:
                encoder.append(block(inputs, inputs, True, "down"))
                skips.append(inputs)
            for _ in range(num_blocks):
                encoder.append(block(inputs, outputs, True, None, attends[level]))
                inputs = outputs
                skips.append(inputs)
        decoder = [block(inputs, inputs, False, None, True), block(inputs, inputs, False)]
        for level in range(len(widths) - 1, -1, -1):
            for _ in range(num_blocks + 1):
                joint = block(inputs + skips.pop(), widths[level], False, None, attends[level])
                joint.joins_skip = True
                decoder.append(joint)
                inputs = widths[level]
            if level:
                decoder.append(block(inputs, inputs, False, "up"))
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.output = NormalisedLayer(widths[0], channels, 3)
        self.output_gain = nn.Parameter(torch.zeros(()))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return float32 [N, C, H, W].

        Args:
            noisy: Noisy images, followed by the source's channels if there are any: [N, C + source_channels, H, W].
            time: Times, float32 [N]; EDM's are ln(sigma) / 4.
            condition: Raw conditions, as ``condition`` encodes them.
            keep: 1 for images with their condition, 0 for those without: bool or float [N]. None keeps all.
        """
        with without_autocast(noisy):
            embedding = self.time(self.time_features(time))
            if self.label is not None:
                vector = self.condition(condition) * self.condition_scale
                if keep is not None:
                    vector = vector * keep.to(vector.dtype)[:, None]
                embedding = mixed(embedding, self.label(vector), 0.5)
            embedding = silu(embedding)
        features = self.stem(torch.cat([noisy, torch.ones_like(noisy[:, :1])], dim=1))  # a channel of ones instead of biases
        skips = [features]
        for block in self.encoder:
            features = block(features, embedding)
            skips.append(features)
        for block in self.decoder:
            if block.joins_skip:
                features = joined(features, skips.pop())
            features = block(features, embedding)
        return self.output(features, self.output_gain).float()


class Uncertainty(nn.Module):
    """Network that predicts the logarithm of the error's variance at each time: section 2.2, equation 14.

    Args:
        dim: Number of Fourier features of the time.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        require_least(1, dim=dim)
        self.features = FourierFeatures(dim)
        self.output = NormalisedLayer(dim, 1)

    def forward(self, time: Tensor) -> Tensor:
        """Map times in the form that denoising networks receive, float32 [N], to logarithms [N]."""
        with without_autocast(time):
            return self.output(self.features(time))[:, 0]


def _num_heads(channels: int, channels_per_head: int | None) -> int:
    if channels_per_head is None:
        return 1
    if channels_per_head < 1 or channels % channels_per_head:
        raise ValueError(
            f"channels_per_head={channels_per_head} must divide the {channels} channels of features with attention"
        )
    return channels // channels_per_head
