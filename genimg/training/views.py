"""Random views of images, with the strength of each kind of change.

A classifier trained on clean images alone treats any generated image as foreign: its features do not distinguish a nearly
perfect image from a blob. If one linear layer must predict the difference between two views, features grow with the strength of
every change. The objective follows autoencoding transformations (Zhang et al. 2019, "AET vs. AED"), with degradations in
addition to their geometric transformations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

DEGRADATIONS = ("noise", "blur", "jpeg", "pixelation", "warp", "ghost", "patch")
CHANGES = ("shift_x", "shift_y", "scale", "brightness", "contrast", "saturation", *DEGRADATIONS)
"""Kinds of change, in the order of a view's strengths."""

_SHIFT = 3.0 / 32.0  # largest shift, as a fraction of the side
_SCALE, _CONTRAST, _SATURATION = 0.15, 0.4, 0.7  # largest changes of the factors' logarithms
_BRIGHTNESS = 0.25  # largest change, of values in [-1, 1]
_NOISE = 0.5  # largest standard deviation, of values in [-1, 1]
_LEAST_BLUR, _BLUR = 0.3, 2.0  # standard deviation in pixels: the minimum, and the increase at a strength of 1
_JPEG = 12.0  # largest factor of the standard quantisation tables, about quality 4
_MOST_PIXELATION = 8  # largest factor
_WARP = 4.0 / 32.0  # standard deviation of the largest displacement, in units of half a side
_GHOST = 0.5  # largest share of the other image
_PATCH = 0.6  # largest side of the patch, as a fraction of the image's
_SHARES = {"shift": 0.5, "scale": 0.3, "color": 0.3}  # fraction of views with this change
_MOST_DEGRADATIONS = 2  # per view
_BLUR_RADIUS = 6  # pixels

# Feature distance for a strength of 1. Real images differ mainly by shifts. If shifts count more than weak degradations,
# slightly degraded generated images lie among real ones, so their precision and coverage are above 0.
_UNITS = torch.tensor([2.0, 2.0, 0.7, 0.5, 0.5, 0.5, *[0.35] * len(DEGRADATIONS)])

Filter = Callable[[Tensor, Tensor], Tensor]

# Annex K of ITU-T T.81, the tables of luminance and chrominance.
_LUMINANCE = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
_CHROMINANCE = torch.full((8, 8), 99)
_CHROMINANCE[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_FROM_YCBCR = torch.linalg.inv(_TO_YCBCR)


def random_views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return changed images and the strength of each change.

    Args:
        images: Images, float32 [N, C, H, W] in [-1, 1], with 1 or 3 channels, on any device.
        generator: Generator on the CPU, whose state alone determines the random numbers.

    Returns:
        Views [N, C, H, W], rounded to 256 levels, and strengths [N, len(CHANGES)].
    """
    count, channels, height, width = images.shape
    device = images.device
    strengths = _draw_strengths(count, channels, generator)
    drawn = dict(zip(CHANGES, strengths.unbind(1), strict=True))
    by_name = dict(zip(CHANGES, _sent(strengths, device).unbind(1), strict=True))
    views = _move(images, by_name, _sent(torch.randn(count, 2, 4, 4, generator=generator), device))
    others = images[_sent(torch.randperm(count, generator=generator), device)]
    views = ghost(views, by_name["ghost"], others)
    centers = torch.rand(2, count, generator=generator) * torch.tensor([[height], [width]])
    views = patch(views, by_name["patch"], others, _sent(centers, device))
    views = _recolor(views, by_name)
    filters: tuple[tuple[str, Filter], ...] = (("pixelation", pixelate), ("blur", blur))
    for name, apply in filters:
        views = _where(drawn[name], apply, views)
    deviation = (_NOISE * by_name["noise"])[:, None, None, None]
    views = views + deviation * _sent(torch.randn(views.shape, generator=generator), device)
    views = _where(drawn["jpeg"], jpeg, views)
    return ((views.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 127.5 - 1.0, _sent(strengths * _UNITS, device)


def _draw_strengths(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """Draw strengths: geometry and colour in [-1, 1], at most two degradations per view in [0, 1], and 0 for no change."""

    def signed() -> Tensor:
        return 2.0 * torch.rand(count, generator=generator) - 1.0

    def applied(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).float()

    shifted, colored = applied(_SHARES["shift"]), applied(_SHARES["color"])
    changes = [
        signed() * shifted,
        signed() * shifted,
        signed() * applied(_SHARES["scale"]),
        signed() * colored,
        signed() * colored,
    ]
    changes.append(signed() * colored * (channels == 3))
    numbers = torch.randint(0, _MOST_DEGRADATIONS + 1, (count,), generator=generator)
    ranks = torch.rand(count, len(DEGRADATIONS), generator=generator).argsort(dim=1).argsort(dim=1)
    degradations = torch.rand(count, len(DEGRADATIONS), generator=generator) * (ranks < numbers[:, None])
    return torch.cat([torch.stack(changes, dim=1), degradations], dim=1)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to the device without waiting for the device's earlier work."""
    return tensor.to(device, non_blocking=True)


def _where(strength: Tensor, apply: Filter, images: Tensor) -> Tensor:
    """Apply a filter only to images for which its strength, on the CPU, is not 0, which saves time."""
    chosen = strength.nonzero().flatten()
    if len(chosen) == 0:
        return images
    indices = _sent(chosen, images.device)
    return images.index_copy(0, indices, apply(images[indices], strength[chosen]))


def _move(images: Tensor, by: dict[str, Tensor], displacements: Tensor) -> Tensor:
    """Shift, scale and warp in one interpolation."""
    count, _, height, width = images.shape
    matrix = torch.zeros(count, 2, 3, device=images.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.exp(-_SCALE * by["scale"])
    matrix[:, 0, 2], matrix[:, 1, 2] = -2.0 * _SHIFT * by["shift_x"], -2.0 * _SHIFT * by["shift_y"]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    flow = F.interpolate(displacements, size=(height, width), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    grid = grid + flow * (_WARP * by["warp"])[:, None, None, None]
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    still = (by["shift_x"] == 0) & (by["shift_y"] == 0) & (by["scale"] == 0) & (by["warp"] == 0)
    return torch.where(still[:, None, None, None], images, moved)  # interpolation would change these by rounding


def _recolor(images: Tensor, by: dict[str, Tensor]) -> Tensor:
    contrast, brightness, saturation = (by[name][:, None, None, None] for name in ("contrast", "brightness", "saturation"))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * torch.exp(_CONTRAST * contrast) + mean + _BRIGHTNESS * brightness
    if images.shape[1] == 1:
        return images
    grey = (images * _sent(_TO_YCBCR[0], images.device)[:, None, None]).sum(dim=1, keepdim=True)
    return grey + (images - grey) * torch.exp(_SATURATION * saturation)


def ghost(images: Tensor, strength: Tensor, others: Tensor) -> Tensor:
    """Blend each image with another one, whose share is half the strength."""
    share = (_GHOST * strength)[:, None, None, None]
    return (1.0 - share) * images + share * others


def patch(images: Tensor, strength: Tensor, others: Tensor, centers: Tensor) -> Tensor:
    """Replace a square around ``centers`` [2, N] (pixels) by that of another image; its area grows with the strength."""
    height, width = images.shape[2:]
    half = 0.5 * _PATCH * min(height, width) * strength.sqrt()[:, None]
    rows = (torch.arange(height, device=images.device) + 0.5 - centers[0][:, None]).abs() < half
    columns = (torch.arange(width, device=images.device) + 0.5 - centers[1][:, None]).abs() < half
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], others, images)


def blur(images: Tensor, strength: Tensor) -> Tensor:
    """Blur with Gaussians of 0.3 to 2.3 pixels; the strengths are on the CPU."""
    count, channels, height, _ = images.shape
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device).float()
    deviations = (_LEAST_BLUR + _BLUR * _sent(strength, images.device))[:, None]
    kernels = torch.softmax(-(offsets.square()) / (2.0 * deviations.square()), dim=1).repeat_interleave(channels, dim=0)
    values = F.pad(images, (_BLUR_RADIUS,) * 4, mode="replicate").reshape(1, count * channels, height + 2 * _BLUR_RADIUS, -1)
    for kernel in (kernels[:, None, :, None], kernels[:, None, None, :]):
        values = F.conv2d(values, kernel, groups=count * channels)
    return values.reshape(images.shape)


def pixelate(images: Tensor, strength: Tensor) -> Tensor:
    """Reduce the resolution by a factor of 2 to 8 with area averaging, and repeat pixels; the strengths are on the CPU."""
    result = images.clone()
    factors = (2.0 * (_MOST_PIXELATION / 2) ** strength).round()
    for factor in range(2, _MOST_PIXELATION + 1):
        chosen = (factors == factor).nonzero().flatten()
        if len(chosen):
            indices = _sent(chosen, images.device)
            size = [max(side // factor, 1) for side in images.shape[2:]]
            small = F.interpolate(images[indices], size=size, mode="area")
            result[indices] = F.interpolate(small, size=images.shape[2:], mode="nearest")
    return result


def jpeg(images: Tensor, strength: Tensor) -> Tensor:
    """Quantise the cosine transform of 8x8 blocks as in JPEG, with up to 12 times its tables; colours have half resolution.

    The strengths are on the CPU.
    """
    channels, height, width = images.shape[1:]
    strength = _sent(strength, images.device)
    levels = (images + 1.0) * 127.5
    if channels == 1:
        return (_quantised(levels - 128.0, _LUMINANCE, strength) + 128.0) / 127.5 - 1.0
    to_ycbcr, from_ycbcr = _sent(_TO_YCBCR, images.device), _sent(_FROM_YCBCR, images.device)
    luminance, colors = torch.einsum("ij,njhw->nihw", to_ycbcr, levels).split([1, 2], dim=1)
    luminance = _quantised(luminance - 128.0, _LUMINANCE, strength) + 128.0  # the standard's level shift
    half = _quantised(F.avg_pool2d(colors, 2, ceil_mode=True), _CHROMINANCE, strength)
    colors = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    return torch.einsum("ij,njhw->nihw", from_ycbcr, torch.cat([luminance, colors], dim=1)) / 127.5 - 1.0


def _quantised(values: Tensor, table: Tensor, strength: Tensor) -> Tensor:
    """Quantise levels [N, C, H, W] around 0 in 8x8 blocks, with steps of the table times 12 times the strength."""
    height, width = values.shape[2:]
    values = F.pad(values, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = values.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # [N, C, H/8, W/8, 8, 8]
    transform = _sent(_cosine_transform(), values.device)
    steps = (_sent(table.to(values.dtype), values.device) * (_JPEG * strength)[:, None, None, None, None, None]).clamp_min(1e-3)
    coefficients = (transform @ blocks @ transform.T / steps).round() * steps
    return (transform.T @ coefficients @ transform).transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def _cosine_transform() -> Tensor:
    """Return the orthonormal cosine transform (type II) of 8 numbers."""
    frequencies, places = torch.arange(8).float()[:, None], torch.arange(8).float()[None, :]
    matrix = torch.cos(math.pi * (2.0 * places + 1.0) * frequencies / 16.0) / 2.0
    matrix[0] /= math.sqrt(2.0)
    return matrix
