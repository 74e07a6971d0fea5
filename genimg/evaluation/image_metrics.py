"""Similarity of an image to a reference, by pixels, by windows, and by the features of a trained network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from genimg.errors import ConfigError, DataError, UserError
from genimg.evaluation.extractors.base import in_one_line, sha256_of
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


# (network, compared layers, minimum side in pixels). The compared layers are indices in torchvision's `features`: all ReLUs of
# AlexNet, and the last ReLU of VGG-16 before each pooling. In images of the minimum size, the last of them still has one pixel.
_BACKBONES = {
    "alex": (alexnet, (1, 4, 7, 9, 11), 31),
    "vgg": (vgg16, (3, 8, 15, 22, 29), 16),
}


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1 (Zhang et al. 2018, equation 1), from 0 for equal images.

    Both files must be given; nothing is downloaded.

    Args:
        backbone: ``alex``, which the authors recommend for comparisons, or ``vgg``.
        backbone_weights: Path of torchvision's ImageNet state_dict of AlexNet (alexnet-owt-7be5be79.pth) or VGG-16
            (vgg16-397923af.pth), for which the linear weights were fitted.
        linear_weights: Path of the authors' state_dict for this backbone, lpips/weights/v0.1/alex.pth or vgg.pth of
            github.com/richzhang/PerceptualSimilarity, with lin0.model.1.weight [1, C, 1, 1] to lin4.model.1.weight.

    Raises:
        ValueError: If the backbone is unknown.
        DataError: If a file does not exist or holds other weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, backbone: str, backbone_weights: LocalPath, linear_weights: LocalPath) -> None:
        super().__init__()
        if backbone not in _BACKBONES:
            raise ValueError(f"backbone={backbone} is unknown: choose one of {', '.join(_BACKBONES)}")
        build, last_layers, self.least_side = _BACKBONES[backbone]
        paths = {
            "backbone_weights": (backbone_weights, f"torchvision's state_dict of {build.__name__}"),
            "linear_weights": (linear_weights, f"lpips/weights/v0.1/{backbone}.pth of richzhang/PerceptualSimilarity"),
        }
        for key, (path, what) in paths.items():
            if not Path(path).expanduser().is_file():
                raise DataError(f"{key}={path} is not a file: put {what} there, or give another path")
        with torch.device("meta"):  # avoids allocating the classifier, most of the network
            features = build().features
        state = _state(backbone_weights, {f"features.{key}": value.shape for key, value in features.state_dict().items()})
        features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
        bounds = (0, *(last + 1 for last in last_layers))
        stages = [features[start:stop] for start, stop in pairwise(bounds)]
        widths = [stage[-2].out_channels for stage in stages]  # channels of the convolution before the last ReLU
        linear = {f"lin{i}.model.1.weight": torch.Size((1, width, 1, 1)) for i, width in enumerate(widths)}
        self.stages = nn.ModuleList(stages)
        self.linear = nn.ParameterList(_state(linear_weights, linear).values())
        # ImageNet's means and deviations for values in [-1, 1], rounded as in the fit of the linear weights.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)
        digests = {key: sha256_of(Path(path).expanduser()) for key, (path, _) in paths.items()}
        self._description = {"backbone": backbone, **{f"{key}_sha256": digest for key, digest in digests.items()}}

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check that LPIPS is defined for images of this shape (C, H, W).

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        if shape[0] not in (1, 3) or min(shape[1:]) < self.least_side:
            raise ConfigError(
                f"backbone={self._description['backbone']} needs 1 or 3 channels and sides of {self.least_side} pixels or "
                f"more, not images [C, H, W] of {list(shape)}: choose another, or remove LPIPS"
            )

    def describe(self) -> dict[str, str]:
        """Return the settings that determine the values, for the provenance."""
        return self._description

    @torch.no_grad()
    def forward(self, reference: Tensor, image: Tensor) -> Tensor:
        """Return the distance, float32 [N], between uint8 images [N, 1 or 3, H, W]; grey is replicated.

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        channels, height, width = reference.shape[1:]
        self.check((channels, height, width))
        x, y = ((side / 127.5 - 1.0 - self.shift) / self.scale for side in _levels(reference, image))  # [N, 3, H, W]
        distance = torch.zeros(len(reference), device=reference.device)
        for stage, weights in zip(self.stages, self.linear, strict=True):
            x, y = stage(x), stage(y)  # [N, C, H', W']
            difference = (_unit(x) - _unit(y)).square()
            distance = distance + F.conv2d(difference, weights).mean(dim=(1, 2, 3))
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


def _unit(features: Tensor) -> Tensor:
    """Divide by the norm over channels, plus the constant of the authors' code."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _state(given: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Load the entries with these names and shapes from a file, in this order, as float32.

    Raises:
        DataError: If the file cannot be read, or an entry is missing or has another shape.
    """
    path = Path(given).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # the unpickler can raise almost anything for other kinds of file
        raise DataError(f"the file {path} does not hold weights of LPIPS ({in_one_line(error)})") from error
    for key, shape in shapes.items():
        if key not in found or found[key].shape != shape:
            what = f"{key} {list(found[key].shape)}" if key in found else f"no {key}"
            raise DataError(
                f"the file {path} holds {what}, but LPIPS needs {key} {list(shape)}: give the file of this backbone"
            )
    return {key: found[key].float() for key in shapes}
