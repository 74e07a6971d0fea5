"""Building blocks shared by two or more network families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genimg.networks.norms import InstanceNorm2d, LayerNorm2d
from genimg.networks.resampling import Doubling
from genimg.types import height_width
from genimg.utils.numbers import require_least


def halvings(image_size: int | Sequence[int], *, bottom_size: int = 4, least: int = 2) -> tuple[int, tuple[int, int]]:
    """Return how often an image can be halved before a side is odd or below ``bottom_size``, and the remaining size.

    64 px gives 4 halvings and 4x4; 28 px gives 2 and 7x7; [48, 32] gives 3 and 6x4.

    Raises:
        ValueError: If fewer than ``least`` halvings are possible; the message suggests a suitable size.
    """
    height, width = height_width(image_size)
    count, (h, w) = 0, (height, width)
    require_least(1, bottom_size=bottom_size)
    while h % 2 == 0 and w % 2 == 0 and min(h, w) // 2 >= bottom_size:
        count, h, w = count + 1, h // 2, w // 2
    if count < least:
        unit = 2**least
        floor = bottom_size * unit
        fitting = [max(floor, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"image_size=[{height},{width}] does not fit this network: height and width must be multiples of {unit} and at "
            f"least {floor}; the nearest is [{fitting[0]},{fitting[1]}]"
        )
    return count, (h, w)


def complete_widths(widths: Sequence[int], count: int) -> list[int]:
    """Return ``widths`` with the last number repeated until there are ``count``.

    Raises:
        ValueError: If there are more than ``count``, or none.
    """
    given = list(widths)
    if not 1 <= len(given) <= count:
        raise ValueError(
            f"widths={given} must be a list of 1 to {count} numbers at this image size, from the image inwards; "
            "the last one is used for all further layers"
        )
    return given + given[-1:] * (count - len(given))


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are linear in a condition: de Vries et al. 2017; BigGAN's form, Brock et al. 2019.

    With one-hot conditions this is one scale and shift per class (Miyato & Koyama 2018). The scale starts at 1, the shift at 0.

    Args:
        channels: Number of feature channels.
        condition_dim: Length E of the condition vector.
    """

    takes_condition = True

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Linear(condition_dim, channels, bias=False)
        self.shift = nn.Linear(condition_dim, channels, bias=False)
        start_at_zero(self.scale.weight)
        start_at_zero(self.shift.weight)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map [N, C, H, W] and [N, E] to [N, C, H, W]."""
        scale, shift = self.scale(condition)[:, :, None, None], self.shift(condition)[:, :, None, None]
        return self.norm(features) * (1.0 + scale) + shift


NORMALISATIONS = ("none", "batch", "conditional_batch", "instance", "layer")


def normalisation_layer(kind: str, channels: int, condition_dim: int = 0, *, affine: bool = True) -> nn.Module:
    """Build a layer that normalises features [N, C, H, W].

    Args:
        kind: ``none``; ``batch`` (Ioffe & Szegedy 2015); ``conditional_batch``; ``instance`` (Ulyanov et al. 2016) or
            ``layer`` (Ba et al. 2016, over C, H and W together).
        channels: Number of channels C.
        condition_dim: Length E of the condition vector, for ``conditional_batch``.
        affine: Whether ``instance`` has a scale and a shift for every channel; all other kinds always have them.

    Raises:
        ValueError: If the kind is unknown, or conditional without a condition.
    """
    if kind == "conditional_batch" and condition_dim == 0:
        raise ValueError("normalisation=conditional_batch needs a condition, but there is none: choose another normalisation")
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "conditional_batch":
        return ConditionalBatchNorm2d(channels, condition_dim)
    if kind == "instance":
        return InstanceNorm2d(channels, affine=affine)
    if kind == "layer":
        return LayerNorm2d(1, channels)
    raise ValueError(f"normalisation={kind} is unknown: choose one of {', '.join(NORMALISATIONS)}")


def set_batch_norm_eps(module: nn.Module, eps: float | None) -> None:
    """Set the epsilon of every batch norm in ``module``; None keeps PyTorch's 1e-5.

    Raises:
        ValueError: If ``eps`` is not positive.
    """
    if eps is None:
        return
    if not eps > 0:
        raise ValueError(f"batch_norm_eps={eps} must be positive")
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eps = eps


Padding = Literal["zeros", "reflect", "replicate"]


def check_padding(padding: str) -> None:
    """Check that ``padding`` is a ``padding_mode`` of convolutions.

    Raises:
        ValueError: If it is not one of them.
    """
    if padding not in get_args(Padding):
        raise ValueError(f"padding={padding} is unknown: choose one of {', '.join(get_args(Padding))}")


UPSAMPLINGS = ("transposed", "resize")


def upsampling_convolution(inputs: int, outputs: int, size: int, *, kind: str, bias: bool) -> nn.Module:
    """Build a layer that doubles height and width of features.

    Args:
        inputs, outputs: Numbers of channels.
        size: Kernel size of a transposed convolution, 3 or 4.
        kind: ``transposed``, or ``resize``: nearest-neighbour upsampling and a 3x3 convolution, which avoids checkerboard
            artefacts (Odena, Dumoulin & Olah 2016).
        bias: Whether the convolution has a bias.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, size, stride=2, padding=1, output_padding=size % 2, bias=bias)
    if kind == "resize":
        return nn.Sequential(Doubling(), nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
    raise ValueError(f"upsampling={kind} is unknown: choose one of {', '.join(UPSAMPLINGS)}")


class SpectralNorm(nn.Module):
    """Spectral normalisation, with the power iteration in float32: Miyato et al. 2018, algorithm 1.

    PyTorch's version would iterate in bfloat16 under autocast, with an error of 0.4 % in the bound.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1).float()
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", F.normalize(torch.randn(matrix.shape[0], device=matrix.device), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(matrix.shape[1], device=matrix.device), dim=0))
        self._iterate(matrix, 15)  # a good first estimate, as in PyTorch's version

    def restart(self, weight: Tensor) -> None:
        """Estimate the singular vectors of a weight that has been replaced."""
        self._iterate(self._matrix(weight.detach()).float(), 15)

    @staticmethod
    def _matrix(weight: Tensor) -> Tensor:
        """Return a weight as a matrix whose rows are the outputs."""
        return weight.flatten(1)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, count: int) -> None:
        if matrix.is_meta:  # there are no values to iterate on, and the loop would be slow
            return
        left, right = self.left, self.right
        for _ in range(count):
            right = F.normalize(matrix.t().mv(left), dim=0, eps=_EPSILON)
            left = F.normalize(matrix.mv(right), dim=0, eps=_EPSILON)
        self._set(left, right)

    @contextlib.contextmanager
    def held_at(self, left: Tensor, right: Tensor) -> Iterator[None]:
        """Use the estimate of these singular vectors within the block, and do not update it."""
        now, training = (self.left.clone(), self.right.clone()), self.training
        self._set(left, right)
        self.training = False
        try:
            yield
        finally:
            self._set(*now)
            self.training = training

    @torch.no_grad()
    def _set(self, left: Tensor, right: Tensor) -> None:
        self.left.copy_(left)
        self.right.copy_(right)

    def forward(self, weight: Tensor) -> Tensor:
        if weight.is_meta:  # nothing to divide, and autocast does not support this device
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            if self.training:
                self._iterate(matrix, 1)
            # Copies, because the next forward pass of this step changes the buffers while this graph still needs them.
            sigma = torch.dot(self.left.clone(), matrix.mv(self.right.clone()))
            return weight / sigma.clamp_min(_EPSILON)


_EPSILON = 1e-12


def start_at_zero(weight: Tensor) -> None:
    """Set a weight to 0 and keep it there in ``spectral_normalise`` and ``initialise``, also on the device ``meta``."""
    nn.init.zeros_(weight)
    _note_start(weight, at_zero=True)


def _note_start(weight: Tensor, *, at_zero: bool) -> None:
    if weight.is_meta:  # there are no values to inspect, as when the size of a checkpoint's model is checked
        weight.starts_at_zero = at_zero  # type: ignore[attr-defined]


def _starts_at_zero(weight: Tensor) -> bool:
    if weight.is_meta:
        return weight.numel() == 0 or getattr(weight, "starts_at_zero", False)
    return not weight.any()


def spectral_normalise(module: nn.Module) -> None:
    """Apply spectral normalisation to all convolutions, linear layers and embeddings.

    Each forward pass in training does one power iteration. Call this function after the weights are initialised. As for other
    layers, the rows of a transposed convolution's matrix are its output channels. Layers that start at 0, such as those of a
    conditional batch norm, are skipped, because their norm is 0.
    """
    for layer in list(module.modules()):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            continue
        if not _starts_at_zero(layer.weight) and not parametrize.is_parametrized(layer):
            kind = _TransposedSpectralNorm if isinstance(layer, nn.ConvTranspose2d) else SpectralNorm
            parametrize.register_parametrization(layer, "weight", kind(layer.weight))


class _TransposedSpectralNorm(SpectralNorm):
    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.transpose(0, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight.transpose(0, 1)).transpose(0, 1)

    @staticmethod
    def _matrix(weight: Tensor) -> Tensor:
        return weight.transpose(0, 1).flatten(1)


INITIALISATIONS = ("default", "normal", "orthogonal", "xavier")


def pooled(features: Tensor, pooling: str) -> Tensor:
    """Pool features to [N, CHW] (``flatten``), or to their ``sum`` or ``mean`` over height and width [N, C] in float32."""
    if pooling == "flatten":
        return features.flatten(1)
    pool = torch.sum if pooling == "sum" else torch.mean
    return pool(features, dim=(2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


def initialise(module: nn.Module, kind: str) -> None:
    """Initialise convolutions, linear layers, embeddings and, for ``normal``, batch norm.

    Args:
        kind: ``normal``, N(0, 0.02) with batch-norm scales N(1, 0.02) (Radford et al. 2016, section 4, and its code);
            ``orthogonal`` (Saxe et al. 2014; Brock et al. 2019); ``xavier``, uniform (Glorot & Bengio 2010), times the
            layer's ``init_gain`` if it has one; or ``default``, PyTorch's. All but ``default`` set biases to 0. Weights
            that start at 0 on purpose, as in a conditional batch norm, stay 0 except with ``orthogonal``.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in INITIALISATIONS:
        raise ValueError(f"initialisation={kind} is unknown: choose one of {', '.join(INITIALISATIONS)}")
    if kind == "default":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            if kind == "orthogonal":
                nn.init.orthogonal_(layer.weight)
                _note_start(layer.weight, at_zero=False)
            elif _starts_at_zero(layer.weight):
                continue
            elif kind == "normal":
                nn.init.normal_(layer.weight, 0.0, 0.02)
            else:
                nn.init.xavier_uniform_(layer.weight, getattr(layer, "init_gain", 1.0))
            bias = getattr(layer, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine and kind == "normal":
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)


class SelfAttention(nn.Module):
    """Self-attention with a residual connection: Zhang et al. 2019, equations 1 to 3, and its code.

    As in the code, but not in the paper, keys and values are max-pooled by 2x2. The factor gamma starts at 0.

    Args:
        channels: Number of channels C, a multiple of 8; queries and keys have C/8 channels, values C/2.

    Raises:
        ValueError: If C is not a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"channels={channels} must be a multiple of 8")
        self.query = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.key = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.value = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.output = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        query = self.query(features).flatten(2)  # [N, C/8, HW]
        key = F.max_pool2d(self.key(features), 2).flatten(2)  # [N, C/8, HW/4]
        value = F.max_pool2d(self.value(features), 2).flatten(2)  # [N, C/2, HW/4]
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=2)  # [N, HW, HW/4]
        mixed = value @ attention.transpose(1, 2).to(value.dtype)  # [N, C/2, HW]
        # A float32 factor would make the result float32, so on a GPU the layers after it would read twice the memory.
        gamma = self.gamma.to(features.dtype) if features.device.type == "cuda" else self.gamma
        return features + gamma * self.output(mixed.unflatten(2, features.shape[2:]))
