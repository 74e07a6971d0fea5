"""Augmentation operations with given parameters, and functions that draw random parameters (``draw_``).

Images are [N, C, H, W]; a parameter [N] has one value per image. Every operation is twice differentiable with respect to the
images, because penalties on a discriminator's gradient are differentiated through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from genimg.errors import ConfigError

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Low-pass filter of the symlet with 6 vanishing moments (Daubechies, "Ten lectures on wavelets", 1992, table 8.5)."""

_CENTER = 5  # tap used as the filter's origin; its mean is at 5.1, so it shifts an image by about 0.05 px
_ON_A_PIXEL = 1e-3  # pixels; this close to a pixel, a filter would only add rounding errors


def in_float32(operation: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return ``operation(images)``, computed in float32 (float64 for float64) without autocast, in the images' type."""
    with torch.autocast(images.device.type, enabled=False):
        return operation(images.to(torch.promote_types(images.dtype, torch.float32))).to(images.dtype)


def pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels at ``rows`` and ``columns`` (int64, broadcast to [N, H, W], inside the image)."""
    n, channels, height, width = images.shape
    index = (rows * width + columns).expand(n, height, width).reshape(n, 1, -1)
    return images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)


def reflect(index: Tensor, size: int) -> Tensor:
    """Map an index into 0..size-1 by reflection at the first and the last pixel, which are not repeated."""
    last = size - 1
    return last - (index % max(2 * last, 1) - last).abs()


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image by whole pixels (int64 [N]), filling with zeros."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1) - down.view(-1, 1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1) - right.view(-1, 1, 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return pick(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside.unsqueeze(1)


def erase(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Set to 0 the pixels whose centres lie in a rectangle.

    Args:
        top, left, bottom, right: Edges of the rectangles [N], in pixels from the image's upper left corner. The centre of a
            pixel is half a pixel from its edges. A pixel whose centre is on the rectangle's edge is kept.
    """
    rows = torch.arange(images.shape[2], device=images.device).view(1, -1, 1) + 0.5
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, -1) + 0.5
    top, left, bottom, right = (side.view(-1, 1, 1) for side in (top, left, bottom, right))
    inside = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    return images * ~inside.unsqueeze(1)


def color_matrix(contrast: Tensor, luma_sign: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Combine contrast, luma flip, hue rotation and saturation into one matrix [N, 3, 3]. Karras et al. 2020, appendix B.

    With v = (1, 1, 1)/sqrt(3), contrast and the flip act on the axis v; contrast, the rotation and saturation act on the plane
    orthogonal to it. The product is
    contrast * (sign * v v' + saturation * (cos(hue) * (I - v v') + sin(hue) * [v]x)), with [v]x the cross product by v.

    Args:
        contrast: Contrast factor.
        luma_sign: -1 to flip, else 1.
        hue: Hue angle in radians.
        saturation: Saturation factor.
    """
    contrast, luma_sign, hue, saturation = (each.view(-1, 1, 1) for each in (contrast, luma_sign, hue, saturation))
    identity = torch.eye(3, dtype=hue.dtype, device=hue.device)
    luma = torch.full_like(identity, 1 / 3)
    cross = (identity.roll(1, 0) - identity.roll(1, 1)) / math.sqrt(3)
    return contrast * (luma_sign * luma + saturation * (hue.cos() * (identity - luma) + hue.sin() * cross))


def recolor(images: Tensor, brightness: Tensor, matrix: Tensor) -> Tensor:
    """Return matrix [N, 3, 3] @ (colour + brightness [N]); grey images become the mean of the three resulting channels.

    Raises:
        ConfigError: If the images have neither 3 channels nor 1.
    """
    channels = images.shape[1]
    if channels not in (1, 3):
        raise ConfigError(
            f"groups.color needs images with 3 channels (colour) or 1 (grey), but these have {channels}",
            "remove it",
            key="groups.color",
        )
    brightened = images + brightness.view(-1, 1, 1, 1)
    if channels == 1:
        return brightened * (matrix.sum((1, 2)) / 3).view(-1, 1, 1, 1)
    # No matmul is used: TF32 would round it, and a gradient taken under autocast would compute it in bfloat16.
    return (matrix[..., None, None] * brightened.unsqueeze(1)).sum(2)


def blit_matrix(mirror: Tensor, quarter_turns: Tensor) -> Tensor:
    """Return the matrix [N, 2, 2], on (x, y), of a rotation by quarter turns, then x times ``mirror`` (1 or -1)."""
    angle = quarter_turns * (math.pi / 2)
    cos, sin = angle.cos().round(), angle.sin().round()  # exactly 0, 1 or -1
    return _matrix(mirror * cos, -mirror * sin, sin, cos)


def geometric_matrix(scale: Tensor, before: Tensor, stretch: Tensor, after: Tensor) -> Tensor:
    """Return [N, 2, 2], on (x, y): rotation by ``after``, diag(1 / stretch, stretch), rotation by ``before``, and 1 / scale.

    The matrix maps an output position to the input position of its colour, so an image is enlarged by ``scale``, turned by
    ``before``, stretched along x and turned by ``after`` (angles in radians). Karras et al. 2020, appendix B.
    """
    x, y = 1 / (scale * stretch), stretch / scale
    cos_b, sin_b, cos_a, sin_a = before.cos(), before.sin(), after.cos(), after.sin()
    return _matrix(
        cos_b * x * cos_a - sin_b * y * sin_a,
        -cos_b * x * sin_a - sin_b * y * cos_a,
        sin_b * x * cos_a + cos_b * y * sin_a,
        cos_b * y * cos_a - sin_b * x * sin_a,
    )


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices [N, I, K] and [N, K, J] without a matmul, because TF32 would shift positions by whole pixels."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def resample(images: Tensor, matrix: Tensor, shift: Tensor, taps: Tensor) -> Tensor:
    """Resample images under an affine map, with repeated reflection at their borders. Karras et al. 2020, appendix B.

    The output at position q shows the input at ``matrix @ q + shift``, both in pixels from the image's centre. To avoid
    aliasing, the input is upsampled to twice its resolution with an orthogonal low-pass filter, read by linear interpolation at
    twice the output resolution, and downsampled with the mirrored filter. If all positions of an image lie on pixels (flips,
    quarter turns, whole translations and the identity), the pixels are copied.

    Args:
        matrix: Matrices [N, 2, 2], on (x, y).
        shift: Shifts [N, 2], (x, y) in pixels.
        taps: Filter [12], which must sum to 1.
    """
    height, width = images.shape[2:]
    rows, columns = (torch.arange(side, dtype=images.dtype, device=images.device) for side in (height, width))
    x, y = _positions(matrix, shift, rows, columns, height, width)
    nearest_x, nearest_y = x.round(), y.round()
    distance = torch.maximum((x - nearest_x).abs(), (y - nearest_y).abs()).amax((1, 2))
    picked = pick(images, reflect(nearest_y.long(), height), reflect(nearest_x.long(), width))

    # The output at twice its resolution, extended at either end by the reach of the filter.
    rows, columns = (
        (torch.arange(2 * side + len(taps) - 2, dtype=images.dtype, device=images.device) - _CENTER) / 2
        for side in (height, width)
    )
    x, y = _positions(matrix, shift, rows, columns, height, width)
    # The result of _upsampling is one period of the reflected image, whose ends are -1 and 1.
    phases = [(position / max(2 * side - 2, 1)).remainder(1) for position, side in ((x, width), (y, height))]
    grid = 2 * torch.stack(phases, -1) - 1
    taps = taps.to(images.dtype)
    filters = _upsampling(taps, height), _upsampling(taps, width), _downsampling(taps, height), _downsampling(taps, width)
    resampled: Tensor = _Resample.apply(images, grid, *filters)
    return torch.where((distance < _ON_A_PIXEL).view(-1, 1, 1, 1), picked, resampled)


def draw_blit(images: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Draw flips and turns as matrices [N, 2, 2] from output to input, and the shift after them [N, 2], (x, y) in pixels."""
    n, device = len(images), images.device
    mirror = _sometimes(1.0 - 2.0 * torch.randint(2, (n,), device=device), 1.0, p)
    turns = _sometimes(torch.randint(4, (n,), device=device).float(), 0.0, p)
    moved = _sometimes((torch.rand(n, 2, device=device) - 0.5) / 4, 0.0, p)
    return blit_matrix(mirror, turns), _in_pixels(moved, images).round()


def draw_geometric(images: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Draw scales and turns as matrices [N, 2, 2] from output to input, and the shift after them [N, 2], (x, y) in pixels."""
    n, device = len(images), images.device
    one_rotation = 1 - (1 - p).clamp(min=0).sqrt()
    scale = _sometimes(torch.exp2(0.2 * torch.randn(n, device=device)), 1.0, p)
    before = _sometimes(_angle(n, device), 0.0, one_rotation)
    stretch = _sometimes(torch.exp2(0.2 * torch.randn(n, device=device)), 1.0, p)
    after = _sometimes(_angle(n, device), 0.0, one_rotation)
    moved = _sometimes(torch.randn(n, 2, device=device) / 8, 0.0, p)
    return geometric_matrix(scale, before, stretch, after), _in_pixels(moved, images)


def draw_color(images: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the brightness to add to all channels first [N], and the matrix [N, 3, 3] to apply next."""
    n, device = len(images), images.device
    brightness = _sometimes(0.2 * torch.randn(n, device=device), 0.0, p)
    contrast = _sometimes(torch.exp2(0.5 * torch.randn(n, device=device)), 1.0, p)
    luma_sign = _sometimes(1.0 - 2.0 * torch.randint(2, (n,), device=device), 1.0, p)
    hue = _sometimes(_angle(n, device), 0.0, p)
    saturation = _sometimes(torch.exp2(torch.randn(n, device=device)), 1.0, p)
    return brightness, color_matrix(contrast, luma_sign, hue, saturation)


def draw_cutout(images: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the top, left, bottom and right [N] of the rectangle to erase, in pixels; it is empty for unchanged images."""
    n, device = len(images), images.device
    height, width = images.shape[2:]
    half = _sometimes(torch.full((n,), 0.25, device=device), 0.0, p)
    y, x = torch.rand(2, n, device=device)
    return (y - half) * height, (x - half) * width, (y + half) * height, (x + half) * width


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2)


def _positions(matrix: Tensor, shift: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the input's x and y at the output's ``rows`` and ``columns``, in pixels, each [N, len(rows), len(columns)]."""
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    q_x, q_y = columns.view(1, 1, -1) - center_x, rows.view(1, -1, 1) - center_y
    (a, b), (c, d) = ((entry.view(-1, 1, 1) for entry in row.unbind(1)) for row in matrix.unbind(1))
    shift_x, shift_y = (entry.view(-1, 1, 1) for entry in shift.unbind(1))
    return a * q_x + b * q_y + shift_x + center_x, c * q_x + d * q_y + shift_y + center_y


def _upsampling(taps: Tensor, size: int) -> Tensor:
    """Return the matrix [4 * size - 3, size] from pixels to one period of their reflection, at 0, 1/2, ..., 2 * size - 2.

    Entry (t, i) is 2 * taps[t - 2i + center], summed over every i that reflects to the same pixel.
    """
    position = torch.arange(4 * size - 3, device=taps.device).unsqueeze(1) + _CENTER
    back = torch.arange(len(taps) // 2, device=taps.device)
    weights = 2 * taps[position % 2 + 2 * back]
    return taps.new_zeros(len(position), size).scatter_add_(1, reflect(position // 2 - back, size), weights)


def _downsampling(taps: Tensor, size: int) -> Tensor:
    """Return the matrix [size, 2 * size + 10] from samples at -5/2, -4/2, ... to pixels: entry (i, t) is taps[t - 2i]."""
    index = torch.arange(2 * size + len(taps) - 2, device=taps.device) - 2 * torch.arange(size, device=taps.device).unsqueeze(1)
    return taps[index.clamp(0, len(taps) - 1)].masked_fill((index < 0) | (index >= len(taps)), 0.0)


class _Resample(Function):
    """Upsample, read at ``grid`` and downsample.

    The operation is linear in the images, so its derivative is its transpose, and the derivative of the transpose is this
    function again. PyTorch's grid_sample has no second derivative. Autocast is disabled inside the function rather than around
    it, because a gradient may also be taken under autocast.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor, up_y: Tensor, up_x: Tensor, down_y: Tensor, down_x: Tensor) -> Tensor:
        ctx.save_for_backward(grid, up_y, up_x, down_y, down_x)
        with torch.autocast(images.device.type, enabled=False):
            fine = up_y @ (images @ up_x.T)  # [N, C, 4H-3, 4W-3]
            read = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
            return down_y @ (read @ down_x.T)  # [N, C, H, W]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _ResampleTransposed.apply(*grads, *ctx.saved_tensors), None, None, None, None, None


class _ResampleTransposed(Function):
    """The transpose of _Resample."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, up_y: Tensor, up_x: Tensor, down_y: Tensor, down_x: Tensor) -> Tensor:
        ctx.save_for_backward(grid, up_y, up_x, down_y, down_x)
        with torch.autocast(grad.device.type, enabled=False):
            read = (down_y.T @ grad) @ down_x
            like = read.new_empty(*read.shape[:2], len(up_y), len(up_x))  # only its shape is used
            # 0, 0, True: bilinear, zeros and align_corners, as in _Resample; the grid's gradient is not requested.
            fine, _ = torch.ops.aten.grid_sampler_2d_backward(read, like, grid, 0, 0, True, [True, False])
            return (up_y.T @ fine) @ up_x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Resample.apply(*grads, *ctx.saved_tensors), None, None, None, None, None


def _sometimes(drawn: Tensor, neutral: float, probability: Tensor) -> Tensor:
    """Return ``drawn`` [N, ...] for images selected with the given probability, and ``neutral`` for the others."""
    spared = torch.rand(len(drawn), device=drawn.device) >= probability
    return drawn.masked_fill(spared.view(-1, *[1] * (drawn.ndim - 1)), neutral)


def _angle(n: int, device: torch.device) -> Tensor:
    return (2 * torch.rand(n, device=device) - 1) * math.pi


def _in_pixels(moved: Tensor, images: Tensor) -> Tensor:
    """Convert (x, y) from units of the image's sides to pixels."""
    return torch.stack([moved[:, 0] * images.shape[3], moved[:, 1] * images.shape[2]], 1)
