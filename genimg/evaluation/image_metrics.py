"""Similarity of an image to a reference, by pixels, by windows, and by the features of a trained network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import UserError
from genimg.losses.lpips import LPIPSNetwork
from genimg.utils.machine_local import LocalPath

_MAX_DECIBELS = 100.0  # for equal images, whose ratio would be infinite
_WINDOW = 11  # pixels
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # by scale, finest first: Wang et al. 2003, section 3.2


def l1(reference: Tensor, image: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference [N] in [0, 1], where 1 is the difference between black and white.

    Args:
        reference, image: uint8 images [N, C, H, W].
        where: Mask of the pixels to compare, bool [N, 1, H, W]; None for all. Images without such pixels give NaN.
    """
    x, y = _levels(reference, image)
    return _mean((x - y).abs(), where) / 255.0


def psnr(reference: Tensor, image: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio [N] in decibels: 10 log10(255^2 / mean squared error), at most 100 dB.

    Args:
        reference, image: uint8 images [N, C, H, W].
        where: Mask of the pixels to compare, bool [N, 1, H, W]; None for all. Images without such pixels give NaN.
    """
    x, y = _levels(reference, image)
    return _decibels(_mean((x - y).square(), where))


def psnr_luma(reference: Tensor, image: Tensor, border: int) -> Tensor:
    """Return the PSNR [N] in decibels of the luma, as reported in papers on super-resolution.

    Luma is that of ITU-R BT.601, from 16 to 235, as in MATLAB's rgb2ycbcr but not rounded. The peak is 255. Grey images are
    used unchanged.

    Args:
        reference, image: uint8 images [N, C, H, W].
        border: Number of pixels to omit along each side.
    """
    x, y = (_luma(side, border) for side in _levels(reference, image))
    return _decibels(_mean((x - y).square(), None))


def ssim_luma(reference: Tensor, image: Tensor, border: int) -> Tensor:
    """Return ``ssim`` [N] of the luma; see ``psnr_luma``."""
    luminance, structure = _local_similarity(*(_luma(side, border) for side in _levels(reference, image)))
    return (luminance * structure).flatten(1).mean(dim=1)


def ssim(reference: Tensor, image: Tensor) -> Tensor:
    """Return the structural similarity [N] of uint8 images [N, C, H, W], the mean over windows and channels.

    See Wang et al. 2004, equation 13. The settings are the paper's: Gaussian windows of 11x11 pixels with a deviation of 1.5,
    K1 = 0.01, K2 = 0.03, and only windows that lie inside the image. Images smaller than a window use the largest odd window
    that fits.
    """
    luminance, structure = _local_similarity(*_levels(reference, image))
    return (luminance * structure).flatten(1).mean(dim=1)


def ms_ssim(reference: Tensor, image: Tensor) -> Tensor:
    """Return the multi-scale structural similarity [N] of uint8 images [N, C, H, W], the mean over channels.

    See Wang et al. 2003, equation 7. Each scale averages 2x2 pixels of the previous one, or fewer at the border of an odd side.
    The terms of a channel are means over windows; negative means, for which the exponents are undefined, are set to 0.

    Raises:
        ValueError: If a side is below 161 pixels, so the coarsest of the five scales is smaller than a window.
    """
    height, width = reference.shape[2:]
    if ms_ssim_scales(height, width) < len(_EXPONENTS):
        least = (_WINDOW - 1) * 2 ** (len(_EXPONENTS) - 1) + 1
        raise ValueError(
            f"the multi-scale structural similarity needs images of {least}x{least} pixels or more, not {height}x{width}: "
            "remove this metric"
        )
    x, y = _levels(reference, image)
    product = torch.ones(x.shape[:2], device=x.device)
    for scale, exponent in enumerate(_EXPONENTS, start=1):
        luminance, structure = _local_similarity(x, y)
        coarsest = scale == len(_EXPONENTS)
        values = luminance * structure if coarsest else structure
        product = product * values.mean(dim=(2, 3)).clamp(min=0.0) ** exponent  # [N, C]
        x, y = (F.avg_pool2d(side, 2, ceil_mode=True) for side in (x, y))
    return product.mean(dim=1)


def ms_ssim_scales(height: int, width: int) -> int:
    """Return how many of the five scales of ``ms_ssim`` are at least as large as a window: 5 from 161 pixels on."""
    side, scales = min(height, width), 0
    while side >= _WINDOW and scales < len(_EXPONENTS):
        side, scales = (side + 1) // 2, scales + 1
    return scales


def _levels(reference: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    # Without these checks, other shapes would be broadcast, and images in [-1, 1] would give plausible numbers.
    assert reference.shape == image.shape
    assert reference.dtype == image.dtype == torch.uint8
    return reference.float(), image.float()


def _mean(errors: Tensor, where: Tensor | None) -> Tensor:
    """Return the mean [N] of [N, C, H, W] over channels and the pixels of the mask; NaN for an empty mask."""
    if where is None:
        return errors.flatten(1).mean(dim=1)
    counted = where.expand_as(errors)
    return (errors * counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1)


def _decibels(squared_error: Tensor) -> Tensor:
    return (10.0 * (255.0**2 / squared_error).log10()).clamp(max=_MAX_DECIBELS)


def _luma(levels: Tensor, border: int) -> Tensor:
    """Return the luma [N, 1, H - 2 border, W - 2 border] of levels [N, 1 or 3, H, W]."""
    if levels.shape[1] == 3:
        red, green, blue = levels.unbind(dim=1)
        levels = (16.0 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255.0)[:, None]
    return levels[:, :, border : levels.shape[2] - border, border : levels.shape[3] - border]


def _local_similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance, and contrast times structure, of each window inside the images: [N, C, H', W'] each.

    See Wang et al. 2004, equation 6, and the product of equations 9 and 10.
    """
    side = min(_WINDOW, *x.shape[2:])
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=torch.float32, device=x.device) - side // 2
    weights = (-offsets.square() / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()
    window = (weights[:, None] * weights[None, :]).expand(x.shape[1], 1, side, side)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=values.shape[1])

    # Variances are computed as differences of squares, which is more exact in float32 for values around 0.
    centre = x.mean(dim=(2, 3), keepdim=True)
    x, y = x - centre, y - centre
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, (2 * covariance + c2) / (variance_x + variance_y + c2)


class LPIPS(nn.Module):
    """LPIPS between uint8 images, for measurements.

    Args:
        backbone, backbone_weights, linear_weights: See ``LPIPSNetwork``.

    Raises:
        ValueError: If the backbone is unknown.
        DataError: If a file does not exist or holds other weights.
    """

    def __init__(self, *, backbone: str, backbone_weights: LocalPath, linear_weights: LocalPath) -> None:
        super().__init__()
        self.network = LPIPSNetwork(backbone=backbone, backbone_weights=backbone_weights, linear_weights=linear_weights)
        self.eval()
        self._description = {"backbone": backbone, **self.network.digests()}

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check that LPIPS is defined for images of this shape (C, H, W).

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        self.network.check(shape)

    def describe(self) -> dict[str, str]:
        """Return the settings that determine the values, for the provenance."""
        return self._description

    @torch.no_grad()
    def forward(self, reference: Tensor, image: Tensor) -> Tensor:
        """Return the distance, float32 [N], between uint8 images [N, 1 or 3, H, W]; grey is replicated.

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        x, y = (levels / 127.5 - 1.0 for levels in _levels(reference, image))
        distance: Tensor = self.network(y, x)
        return distance


def check_lpips(lpips: LPIPS, shape: tuple[int, int, int]) -> None:
    """Check that an evaluator's ``lpips`` is defined for images of this shape (C, H, W).

    Raises:
        ConfigError: If it is not.
    """
    try:
        lpips.check(shape)
    except UserError as error:
        raise error.mounted("lpips", ["backbone"]) from error
