"""Diffusion transformers: Peebles & Xie, "Scalable diffusion models with transformers", ICCV 2023, and a variant with Llama's
layers (Touvron et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast
from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.diffusion_layers import (
    GroupNorm,
    TimeEmbedding,
    attention,
    require_settings,
    sines_and_cosines,
)
from genimg.networks.layers import initialise, start_at_zero
from genimg.types import height_width
from genimg.utils.numbers import require_least

ARCHITECTURES = ("dit", "llama")
_FREQUENCIES = 256  # sines and cosines of each time
_MLP_RATIO = 4  # hidden units of a block's MLP as a multiple of the width
_LLAMA_MULTIPLE = 256  # of a gated MLP's hidden units
_EMBEDDING_STD = 0.02  # of the initial weights of the embedding
_LONGEST_PERIOD = 10_000  # of rotary positions, divided by 2 pi


class DiT(nn.Module):
    """Transformer over patches that maps a noisy image and its time to an image of the same size, without a bound.

    The embedding of time and condition gives the scale and shift of each norm and the gate of each residual branch (adaLN-Zero,
    section 3.2 of the paper). Gates and the last layer start at 0, so the output does, too.

    - ``dit``: sine and cosine positions, which are added to the patches, and MLPs with GELU.
    - ``llama``: two 5x5 convolutions before the patches, rotary positions (Su et al. 2021) of rows and columns, normalised
      queries and keys, gated MLPs (SwiGLU, Shazeer 2020), no biases in the blocks, and norms with a learnt scale and shift.

    Args:
        channels: Number of image channels C.
        image_size: Size of training images in pixels, one number or [height, width]. Other sizes work, too, if they are
            multiples of the attribute ``size_divisor``, which is the patch size.
        condition: Encoder of the condition.
        width: Number of features of a patch.
        depth: Number of blocks.
        num_heads: Number of attention heads; it divides the width.
        patch_size: Side P of a patch in pixels.
        architecture: ``dit`` or ``llama``.
        dropout: Dropout probability at the end of each residual branch.
        num_times: Number of times per image: 1, or 2 as in MeanFlow.
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
        depth: int,
        num_heads: int,
        patch_size: int,
        architecture: str,
        dropout: float,
        num_times: int,
        augment_dim: int,
        source_channels: int = 0,
    ) -> None:
        super().__init__()
        require_least(1, channels=channels, width=width, depth=depth, num_heads=num_heads, patch_size=patch_size)
        require_settings(
            architecture=architecture, architectures=ARCHITECTURES, dropout=dropout, num_times=num_times,
            augment_dim=augment_dim, source_channels=source_channels,
        )  # fmt: skip
        if width % (4 * num_heads):
            raise ValueError(f"width={width} must be a multiple of 4 * num_heads, here {4 * num_heads}")
        _check_size(image_size, patch_size)
        self.condition = condition
        self.num_times = num_times
        self.augment_dim = augment_dim
        self.size_divisor = self.patch_size = patch_size
        self.width = width
        self.num_heads = num_heads
        self.is_llama = architecture == "llama"

        self.embedding = TimeEmbedding(
            width=_FREQUENCIES,
            outputs=width,
            condition=condition,
            num_times=num_times,
            augment_dim=augment_dim,
            adds_condition_first=False,
        )
        inputs = channels + source_channels
        self.stem = _stem(inputs, width // 2) if self.is_llama else nn.Identity()
        self.patches = nn.Conv2d(width // 2 if self.is_llama else inputs, width, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(_Block(width, num_heads, is_llama=self.is_llama, dropout=dropout) for _ in range(depth))
        self.modulation = nn.Linear(width, (6 * depth + 2) * width)  # one layer for all blocks, which takes one call
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.output = nn.Linear(width, channels * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """Set the initial weights; those of the condition's encoder are its own."""
        for layer in (self.modulation, self.output):
            start_at_zero(layer.weight)
            nn.init.zeros_(layer.bias)
        for part in (self.embedding, self.stem, self.blocks):
            initialise(part, "xavier")
        initialise(self.patches, "xavier")  # its bias
        nn.init.xavier_uniform_(self.patches.weight.detach().flatten(1))  # as a linear layer of a patch's values
        for parameter in self.embedding.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, 0.0, _EMBEDDING_STD)

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
        embedded = self.embedding(time, self.condition(condition), keep, augment)  # [N, W]
        with without_autocast(embedded):
            *modulations, last = self.modulation(embedded)[:, None].split(
                [6 * self.width] * len(self.blocks) + [2 * self.width], 2
            )
        patches = self.patches(self.stem(noisy))  # [N, W, H / P, W / P]
        height, width = patches.shape[2:]
        # At least float32 also under autocast, because each block adds to them.
        dtype = torch.promote_types(patches.dtype, torch.float32)
        tokens = patches.flatten(2).transpose(1, 2).to(dtype).contiguous()  # [N, T, W]
        rotation = None
        if self.is_llama:
            rotation = _rotation(height, width, self.width // self.num_heads, tokens.device)
        else:
            tokens = tokens + _positions(height, width, self.width, tokens.device).to(tokens.dtype)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            tokens = block(tokens, modulation, rotation)
        shift, scale = last.chunk(2, dim=2)
        result = self.output(_modulated(self.norm(tokens), shift, scale)).transpose(1, 2)  # [N, C * P * P, T]
        result = F.pixel_shuffle(result.unflatten(2, (height, width)), self.patch_size)
        return result.to(torch.promote_types(result.dtype, torch.float32))


def _check_size(image_size: int | Sequence[int], patch_size: int) -> None:
    sides = height_width(image_size)
    if any(side % patch_size for side in sides):
        nearest = [max(patch_size, round(side / patch_size) * patch_size) for side in sides]
        raise ValueError(
            f"image_size=[{sides[0]},{sides[1]}] does not fit this network: height and width must be multiples of "
            f"patch_size={patch_size}; the nearest is [{nearest[0]},{nearest[1]}]"
        )


def _stem(inputs: int, outputs: int) -> nn.Module:
    first, second = nn.Conv2d(inputs, outputs, 5, padding=2), nn.Conv2d(outputs, outputs, 5, padding=2)
    return nn.Sequential(first, nn.SiLU(), GroupNorm(outputs), second, nn.SiLU(), GroupNorm(outputs))


def _positions(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return positions [H * W, dim] of patches: half of them of the row, half of the column."""
    rows = sines_and_cosines(torch.arange(height, device=device), dim // 2)[:, None].expand(-1, width, -1)
    columns = sines_and_cosines(torch.arange(width, device=device), dim // 2)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def _rotation(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Return cosines and sines [2, H * W, dim] of the angles by which ``_rotated`` turns queries and keys.

    Half of the pairs turn with the row, half with the column, at frequencies from 1 to above 1/10,000.
    """
    count = dim // 4
    frequencies = torch.exp(-math.log(_LONGEST_PERIOD) / count * torch.arange(count, dtype=torch.float32, device=device))
    rows = (torch.arange(height, device=device)[:, None] * frequencies)[:, None].expand(-1, width, -1)
    columns = (torch.arange(width, device=device)[:, None] * frequencies)[None].expand(height, -1, -1)
    angles = torch.cat([rows, columns, rows, columns], dim=2).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


def _rotated(features: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of features [N, heads, T, D] (i, i + D/2) by the angle of its position, in float32."""
    cosines, sines = rotation.to(torch.promote_types(features.dtype, torch.float32))
    first, second = features.chunk(2, dim=-1)
    return torch.addcmul(features * cosines, torch.cat([-second, first], dim=-1), sines)


def _modulated(features: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift.to(features.dtype), features, 1.0 + scale.to(features.dtype))


class _Block(nn.Module):
    """Attention and an MLP, each after a norm that the embedding scales and shifts, and before a gate of the embedding."""

    def __init__(self, width: int, num_heads: int, *, is_llama: bool, dropout: float) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(width, elementwise_affine=is_llama, eps=1e-6)
        self.attention = _Attention(width, num_heads, is_llama=is_llama)
        self.second_norm = nn.LayerNorm(width, elementwise_affine=is_llama, eps=1e-6)
        self.mlp = _GatedMLP(width) if is_llama else _mlp(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Tensor, modulation: Tensor, rotation: Tensor | None) -> Tensor:
        """Map tokens [N, T, W] to [N, T, W].

        Args:
            tokens: Features of patches.
            modulation: Shift, scale and gate of the attention, then of the MLP: [N, 1, 6 * W].
            rotation: Rotary positions, or None.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=2)
        mixed = self.attention(_modulated(self.first_norm(tokens), shift, scale), rotation)
        tokens = torch.addcmul(tokens, gate, self.dropout(mixed).to(tokens.dtype))
        mapped = self.mlp(_modulated(self.second_norm(tokens), mlp_shift, mlp_scale))
        return torch.addcmul(tokens, mlp_gate, self.dropout(mapped).to(tokens.dtype))


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, *, is_llama: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=not is_llama)  # queries, keys and values
        self.query_norm = nn.LayerNorm(width) if is_llama else nn.Identity()
        self.key_norm = nn.LayerNorm(width) if is_llama else nn.Identity()
        self.output = nn.Linear(width, width, bias=not is_llama)

    def forward(self, tokens: Tensor, rotation: Tensor | None) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=2)
        query, key, value = (self._heads(part) for part in (self.query_norm(query), self.key_norm(key), value))
        if rotation is not None:
            query, key = _rotated(query, rotation), _rotated(key, rotation)
        return self.output(attention(query, key, value).transpose(1, 2).flatten(2))

    def _heads(self, features: Tensor) -> Tensor:
        """Map [N, T, W] to [N, heads, T, D]."""
        return features.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _mlp(width: int) -> nn.Module:
    hidden = _MLP_RATIO * width
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class _GatedMLP(nn.Module):
    """SwiGLU, whose three matrices have about as many weights as the two of ``_mlp``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = math.ceil(2 * _MLP_RATIO * width / 3 / _LLAMA_MULTIPLE) * _LLAMA_MULTIPLE
        self.inputs = nn.Linear(width, 2 * hidden, bias=False)  # gate, then values
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, values = self.inputs(tokens).chunk(2, dim=2)
        return self.output(F.silu(gate) * values)
