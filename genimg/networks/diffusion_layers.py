"""Layers shared by the networks of diffusion models: group norm, attention, and the embedding of times and conditions."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast
from genimg.networks.conditioning import ClassColumns, ConditionEncoder, OneHot
from genimg.utils.numbers import require_least

_LONGEST_PERIOD = 10_000  # of sine and cosine, divided by 2 pi: Vaswani et al. 2017
_MOST_STORED_POSITIONS = 256
"""Up to this many, a CPU stores the attention weights of all pairs of positions for the backward pass: 6 bytes each."""


def sines_and_cosines(positions: Tensor, dim: int) -> Tensor:
    """Return sines, then cosines, of positions [...] at ``dim / 2`` frequencies from 1 to 1/10,000, geometrically spaced.

    Vaswani et al. 2017, section 3.5, with both extreme frequencies included, as in Ho et al. 2020.

    Args:
        positions: Numbers of any shape; float32 is kept.
        dim: Length of the result's last axis, even.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / max(half - 1, 1)
    angles = positions.float()[..., None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def require_settings(
    *, architecture: str, architectures: Collection[str], dropout: float, num_times: int, augment_dim: int, source_channels: int
) -> None:
    """Check the settings that the networks of diffusion models have in common.

    Args:
        architecture: Architecture, one of ``architectures``.
        architectures: Known architectures.
        dropout: Dropout probability, from 0 to below 1.
        num_times: Number of times per image, at least 1.
        augment_dim: Number of augmentation labels, at least 0.
        source_channels: Number of channels of the source image, at least 0.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """
    require_least(1, num_times=num_times)
    require_least(0, source_channels=source_channels, augment_dim=augment_dim)
    if architecture not in architectures:
        raise ValueError(f"architecture={architecture} is unknown: choose one of {', '.join(architectures)}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} must be at least 0 and below 1")


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(QK' / sqrt(D)) V in the dtype of ``value``, also under autocast; the softmax is in at least float32.

    On a GPU, queries and keys are converted to the dtype of ``value`` too, for which it has the fastest kernels.

    Args:
        query, key, value: Tensors [N, heads, positions, D].
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    with without_autocast(value):
        if value.device.type == "cpu" and value.dtype != dtype and key.shape[2] <= _MOST_STORED_POSITIONS:
            # As in the code of Karras et al. 2022. PyTorch's kernel in float32 takes longer (docs/performance.md).
            logits = query.to(dtype) * query.shape[-1] ** -0.5 @ key.to(dtype).transpose(-1, -2)
            return logits.softmax(dim=-1).to(value.dtype) @ value
        if value.device.type == "cuda":
            return F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return F.scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype)).to(value.dtype)


def num_groups(channels: int) -> int:
    """Return the number of groups of a group norm: 32, or fewer if a group had fewer than 4 channels or unequal ones."""
    return next(count for count in range(max(1, min(32, channels // 4)), 0, -1) if channels % count == 0)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) that keeps the dtype of its input under autocast; its statistics are float32 in any case.

    Autocast on a GPU would return float32, so the activation after it would read and write twice the memory.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__(num_groups(channels), channels, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        with without_autocast(features):
            return F.group_norm(features, self.num_groups, weight, bias, self.eps)


class TimeEmbedding(nn.Module):
    """Embedding of one or two times, a condition vector and augmentation labels in one vector, in float32.

    Sines and cosines of the times pass through two linear layers, each followed by SiLU (Ho et al. 2020, appendix B). The
    condition is added before the first layer (Karras et al. 2022, as in DDPM++) or before the last SiLU (Dhariwal & Nichol
    2021). Both need no entry for a missing condition: it is the zero vector. Several times are concatenated (Geng et al. 2025,
    "Mean flows for one-step generative modeling").

    Args:
        width: Number of sines and cosines of each time, even.
        outputs: Length D of the result and of the hidden layer.
        condition: Encoder of the condition vector, whose length E may be 0.
        num_times: Number of times.
        augment_dim: Number of augmentation labels A (Karras et al. 2022, appendix F.2); 0 for none.
        adds_condition_first: Whether the condition is added before the first layer; its layer then has a bias.
        random_frequencies: Whether the frequencies are random, 2 pi N(0, 16^2), and fixed (Song et al. 2021, appendix C.1;
            Tancik et al. 2020), instead of geometrically spaced.
    """

    frequencies: Tensor | None

    def __init__(
        self,
        *,
        width: int,
        outputs: int,
        condition: ConditionEncoder,
        num_times: int,
        augment_dim: int,
        adds_condition_first: bool,
        random_frequencies: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.num_times = num_times
        self.augment_dim = augment_dim
        self.adds_condition_first = adds_condition_first
        # A one-hot vector has a mean square of 1/K; this makes it 1.
        is_scaled = adds_condition_first and isinstance(condition, OneHot)
        self.condition_scale = math.sqrt(condition.dim) if is_scaled else 1.0
        self.class_columns = ClassColumns(power=0.5 if is_scaled else 0.0)
        inputs = num_times * width
        self.register_buffer("frequencies", 32.0 * math.pi * torch.randn(width // 2) if random_frequencies else None)
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(outputs, outputs)
        self.condition: nn.Linear | None = None
        if condition.dim:
            self.condition = nn.Linear(condition.dim, inputs if adds_condition_first else outputs, bias=adds_condition_first)
        self.augment = nn.Linear(augment_dim, inputs, bias=False) if augment_dim else None

    def forward(self, time: Tensor, vector: Tensor, keep: Tensor | None, augment: Tensor | None) -> Tensor:
        """Return the embedding [N, D].

        Args:
            time: Times, float32 [N], or [N, num_times].
            vector: Condition vectors [N, E].
            keep: 1 for samples with a condition, 0 for those without, of any dtype [N]; None keeps all.
            augment: Augmentation labels [N, A]; None means zeros.

        Raises:
            ValueError: If the number of times is another one, or there are labels but ``augment_dim`` is 0.
        """
        times = time[:, None] if time.dim() == 1 else time  # [N, T]
        if times.shape[1] != self.num_times:
            raise ValueError(f"time has shape {list(time.shape)}, but num_times={self.num_times}: give [N, {self.num_times}]")
        if augment is not None and self.augment is None:
            raise ValueError("augment_dim=0 means a network without augmentation labels, but labels were given")
        dtype = self.first.weight.dtype
        with without_autocast(time):
            if self.frequencies is None:
                embedded = sines_and_cosines(times, self.width).flatten(1).to(dtype)  # [N, T * width]
            else:
                angles = times.float()[..., None] * self.frequencies.float()
                embedded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(dtype)
            if augment is not None and self.augment is not None:
                embedded = embedded + self.augment(augment.to(dtype))
            added = self._condition(vector.to(dtype), keep)
            if added is not None and self.adds_condition_first:
                embedded = embedded + added
            embedded = self.second(F.silu(self.first(embedded)))
            if added is not None and not self.adds_condition_first:
                embedded = embedded + added
            return F.silu(embedded)

    def _condition(self, vector: Tensor, keep: Tensor | None) -> Tensor | None:
        if self.condition is None:
            return None
        if keep is not None:
            vector = vector * keep.to(vector.dtype)[:, None]
        return self.condition(vector * self.condition_scale)
