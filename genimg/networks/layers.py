"""Pieces shared by two or more network families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genimg.types import height_width
from genimg.utils.numbers import require_least


def halvings(image_size: int | Sequence[int], *, bottom_size: int = 4, least: int = 2) -> tuple[int, tuple[int, int]]:
    """How often an image can be halved until a side would be odd or below ``bottom_size``, and the size that remains.

    64 px gives 4 halvings and 4x4; 28 px gives 2 and 7x7; [48, 32] gives 3 and 6x4.

    Raises:
        ValueError: if fewer than ``least`` halvings are possible; the message names sizes that fit.
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
    """``widths`` with its last number repeated until there are ``count``.

    Raises:
        ValueError: if there are more already, or none.
    """
    given = list(widths)
    if not 1 <= len(given) <= count:
        raise ValueError(
            f"widths={given} must be a list of 1 to {count} numbers at this image size, from the image inwards; "
            "the last one holds for all layers beyond"
        )
    return given + given[-1:] * (count - len(given))


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are linear in a condition: de Vries et al. 2017; BigGAN's form, Brock et al. 2019.

    With one-hot conditions these are a scale and a shift for every class (Miyato & Koyama 2018). The scale starts at 1 and
    the shift at 0.

    Args:
        channels: of the features.
        condition_dim: E.
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
        """[N, C, H, W] and [N, E] -> [N, C, H, W]."""
        scale, shift = self.scale(condition)[:, :, None, None], self.shift(condition)[:, :, None, None]
        return self.norm(features) * (1.0 + scale) + shift


NORMALISATIONS = ("none", "batch", "conditional_batch", "instance", "layer")


def normalisation_layer(kind: str, channels: int, condition_dim: int = 0, *, affine: bool = True) -> nn.Module:
    """A layer that normalises features [N, C, H, W].

    Args:
        kind: ``none``; ``batch`` (Ioffe & Szegedy 2015); ``conditional_batch``; ``instance`` (Ulyanov et al. 2016) and
            ``layer`` (Ba et al. 2016, over C, H and W together).
        channels: C.
        condition_dim: E, of ``conditional_batch``.
        affine: whether ``instance`` has a scale and a shift for every channel, as all others have.

    Raises:
        ValueError: for another kind, or a conditional one without a condition.
    """
    if kind == "conditional_batch" and condition_dim == 0:
        raise ValueError("normalisation=conditional_batch needs a condition, and there is none: choose another normalisation")
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "conditional_batch":
        return ConditionalBatchNorm2d(channels, condition_dim)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=affine)
    if kind == "layer":
        return nn.GroupNorm(1, channels)
    raise ValueError(f"normalisation={kind} is unknown: choose one of {', '.join(NORMALISATIONS)}")


def set_batch_norm_eps(module: nn.Module, eps: float | None) -> None:
    """Set what every batch norm below ``module`` adds to the variance; None leaves PyTorch's 1e-5.

    Raises:
        ValueError: If it is not positive.
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
    """Refuse what a convolution has no ``padding_mode`` for.

    Raises:
        ValueError: naming those that there are.
    """
    if padding not in get_args(Padding):
        raise ValueError(f"padding={padding} is unknown: choose one of {', '.join(get_args(Padding))}")


UPSAMPLINGS = ("transposed", "resize")


def upsampling_convolution(inputs: int, outputs: int, size: int, *, kind: str, bias: bool) -> nn.Module:
    """Doubles height and width of features.

    Args:
        inputs, outputs: channels.
        size: of a transposed convolution's kernel, 3 or 4 pixels.
        kind: ``transposed``; or ``resize``, nearest neighbours and a 3x3 convolution, which leaves no checkerboard (Odena,
            Dumoulin & Olah 2016).
        bias: of the convolution.

    Raises:
        ValueError: for another kind.
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, size, stride=2, padding=1, output_padding=size % 2, bias=bias)
    if kind == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
    raise ValueError(f"upsampling={kind} is unknown: choose one of {', '.join(UPSAMPLINGS)}")


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value: Miyato et al. 2018, algorithm 1.

    PyTorch's own does the same, but under autocast it would iterate in bfloat16, whose error of 0.4 % is that of the bound.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1).float()
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", F.normalize(torch.randn(matrix.shape[0], device=matrix.device), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(matrix.shape[1], device=matrix.device), dim=0))
        self._iterate(matrix, 15)  # so that the first step's estimate is near, as in PyTorch's

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, count: int) -> None:
        if matrix.is_meta:  # which has no values, and is slow
            return
        left, right = self.left, self.right
        for _ in range(count):
            right = F.normalize(matrix.t().mv(left), dim=0, eps=_EPSILON)
            left = F.normalize(matrix.mv(right), dim=0, eps=_EPSILON)
        self._set(left, right)

    @contextlib.contextmanager
    def held_at(self, left: Tensor, right: Tensor) -> Iterator[None]:
        """A block in which the estimate is that of these vectors, as if it were the forward that left them behind."""
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
        if weight.is_meta:  # there is nothing to divide, and autocast knows no such device
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            if self.training:
                self._iterate(matrix, 1)
            # Copies, because the next forward of the same step changes the buffers while this one's graph still needs them.
            sigma = torch.dot(self.left.clone(), matrix.mv(self.right.clone()))
            return weight / sigma.clamp_min(_EPSILON)


_EPSILON = 1e-12


def start_at_zero(weight: Tensor) -> None:
    """Set a weight to 0, where ``spectral_normalise`` and ``initialise`` leave it, also on the device ``meta``."""
    nn.init.zeros_(weight)
    _note_start(weight, at_zero=True)


def _note_start(weight: Tensor, *, at_zero: bool) -> None:
    if weight.is_meta:  # which has no values to look at, when the size of a checkpoint's model is checked
        weight.starts_at_zero = at_zero  # type: ignore[attr-defined]


def _starts_at_zero(weight: Tensor) -> bool:
    if weight.is_meta:
        return weight.numel() == 0 or getattr(weight, "starts_at_zero", False)
    return not weight.any()


def spectral_normalise(module: nn.Module) -> None:
    """Put spectral norm, with one power iteration a forward in training, on every convolution, linear layer and embedding.

    To be called after the weights are initialised; a transposed convolution's matrix has its output channels as rows, too.
    Layers that start at 0, as those of a conditional batch norm, stay without: there is nothing to divide by.
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


INITIALISATIONS = ("default", "normal", "orthogonal", "xavier")


def pooled(features: Tensor, pooling: str) -> Tensor:
    """Features flattened [N, CHW] (``flatten``), or their ``sum`` or ``mean`` over height and width [N, C] in float32."""
    if pooling == "flatten":
        return features.flatten(1)
    pool = torch.sum if pooling == "sum" else torch.mean
    return pool(features, dim=(2, 3), dtype=torch.promote_types(features.dtype, torch.float32))


def initialise(module: nn.Module, kind: str) -> None:
    """Initialise convolutions, linear layers, embeddings and, for ``normal``, batch norm.

    Args:
        kind: ``normal``, N(0, 0.02) with batch-norm scales N(1, 0.02) (Radford et al. 2016, section 4, and its code);
            ``orthogonal`` (Saxe et al. 2014; Brock et al. 2019); ``xavier``, uniform (Glorot & Bengio 2010), times a
            layer's own ``init_gain`` where it has one; ``default``, what PyTorch gives. Biases become 0, except by
            default. What starts at 0 on purpose, as a conditional batch norm, stays unless orthogonal.

    Raises:
        ValueError: for another kind.
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
    """Adds to every position a mixture of all others: Zhang et al. 2019, equations 1 to 3, and its code.

    The code, unlike the paper, takes the maximum of 2x2 keys and of 2x2 values. The factor gamma starts at 0.

    Args:
        channels: C, a multiple of 8; queries and keys have C/8 channels, values C/2.

    Raises:
        ValueError: for another number of channels.
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
        """[N, C, H, W] -> [N, C, H, W]."""
        query = self.query(features).flatten(2)  # [N, C/8, HW]
        key = F.max_pool2d(self.key(features), 2).flatten(2)  # [N, C/8, HW/4]
        value = F.max_pool2d(self.value(features), 2).flatten(2)  # [N, C/2, HW/4]
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=2)  # [N, HW, HW/4]
        mixed = value @ attention.transpose(1, 2).to(value.dtype)  # [N, C/2, HW]
        return features + self.gamma * self.output(mixed.unflatten(2, features.shape[2:]))
