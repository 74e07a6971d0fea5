"""How near an image is to a reference: pixel by pixel, window by window, and in the features of a trained network."""

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

_MOST_DECIBELS = 100.0  # of equal images, whose ratio would be infinite
_WINDOW = 11  # pixels
_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of each scale, the finest first: Wang et al. 2003, section 3.2


def l1(reference: Tensor, image: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean absolute difference [N] of uint8 images [N, C, H, W], in [0, 1]: 1 is black against white.

    Args:
        reference, image: uint8 images of equal shape.
        where: the pixels that count, bool [N, 1, H, W]; None for all. The result is NaN for images without such pixels.
    """
    x, y = _levels(reference, image)
    return _mean((x - y).abs(), where) / 255.0


def psnr(reference: Tensor, image: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio [N] in decibels of uint8 images [N, C, H, W]: 10 log10(255^2 / mean squared error).

    Equal images count as 100 dB.

    Args:
        reference, image: uint8 images of equal shape.
        where: the pixels that count, bool [N, 1, H, W]; None for all. The result is NaN for images without such pixels.
    """
    x, y = _levels(reference, image)
    return _decibels(_mean((x - y).square(), where))


def psnr_luma(reference: Tensor, image: Tensor, border: int) -> Tensor:
    """PSNR [N] in decibels of the luma of uint8 images [N, C, H, W], as tables of super-resolution have it.

    Luma is ITU-R BT.601's from 16 to 235, as MATLAB's rgb2ycbcr gives, but not rounded; the peak is 255. Grey images are taken
    as they are.

    Args:
        reference, image: uint8 images of equal shape.
        border: pixels along each side that are left out.
    """
    x, y = (_luma(side, border) for side in _levels(reference, image))
    return _decibels(_mean((x - y).square(), None))


def ssim_luma(reference: Tensor, image: Tensor, border: int) -> Tensor:
    """``ssim`` [N] of the luma; see ``psnr_luma``."""
    luminance, structure = _local_similarity(*(_luma(side, border) for side in _levels(reference, image)))
    return (luminance * structure).flatten(1).mean(dim=1)


def ssim(reference: Tensor, image: Tensor) -> Tensor:
    """Structural similarity [N] of uint8 images [N, C, H, W]: Wang et al. 2004, equation 13, mean over windows and channels.

    With the paper's settings: Gaussian windows of 11x11 pixels and a deviation of 1.5, K1 = 0.01, K2 = 0.03; only windows
    that lie in the image count. Images smaller than a window take the largest odd window that fits.
    """
    luminance, structure = _local_similarity(*_levels(reference, image))
    return (luminance * structure).flatten(1).mean(dim=1)


def ms_ssim(reference: Tensor, image: Tensor) -> Tensor:
    """Multi-scale structural similarity [N] of uint8 images [N, C, H, W]: Wang et al. 2003, equation 7, mean over channels.

    Each scale is the mean of 2x2 pixels of the one before; at a border of odd length, of those that there are. The contrast
    and structure of a channel are their mean over windows; below 0, where the exponents have no meaning, they count as 0.

    Raises:
        ValueError: for sides below 161 pixels, where the coarsest of the five scales is smaller than a window.
    """
    height, width = reference.shape[2:]
    if ms_ssim_scales(height, width) < len(_EXPONENTS):
        least = (_WINDOW - 1) * 2 ** (len(_EXPONENTS) - 1) + 1
        raise ValueError(
            f"the multi-scale structural similarity needs images of {least}x{least} pixels or more, not {height}x{width}: "
            "remove it"
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
    """How many of the five scales of ``ms_ssim`` are as large as a window: 5 from 161 pixels on."""
    side, scales = min(height, width), 0
    while side >= _WINDOW and scales < len(_EXPONENTS):
        side, scales = (side + 1) // 2, scales + 1
    return scales


def _levels(reference: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    # Images of other shapes would be broadcast against each other, and those in [-1, 1] give plausible numbers.
    assert reference.shape == image.shape
    assert reference.dtype == image.dtype == torch.uint8
    return reference.float(), image.float()


def _mean(errors: Tensor, where: Tensor | None) -> Tensor:
    """Over the channels and pixels that count of [N, C, H, W]: [N]; NaN where none does."""
    if where is None:
        return errors.flatten(1).mean(dim=1)
    counted = where.expand_as(errors)
    return (errors * counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1)


def _decibels(squared_error: Tensor) -> Tensor:
    return (10.0 * (255.0**2 / squared_error).log10()).clamp(max=_MOST_DECIBELS)


def _luma(levels: Tensor, border: int) -> Tensor:
    """[N, 1, H - 2 border, W - 2 border] of levels [N, 1 or 3, H, W]."""
    if levels.shape[1] == 3:
        red, green, blue = levels.unbind(dim=1)
        levels = (16.0 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255.0)[:, None]
    return levels[:, :, border : levels.shape[2] - border, border : levels.shape[3] - border]


def _local_similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of each window that lies in the images [N, C, H, W]: luminance, and contrast times structure; [N, C, H', W'] each.

    Wang et al. 2004, equation 6, and the product of equations 9 and 10.
    """
    side = min(_WINDOW, *x.shape[2:])
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=torch.float32, device=x.device) - side // 2
    weights = (-offsets.square() / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()
    window = (weights[:, None] * weights[None, :]).expand(x.shape[1], 1, side, side)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window, groups=values.shape[1])

    # Variances are differences of squares, and more exact in float32 for values around 0.
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


# The features that are compared come after these layers of torchvision's `features`: the ReLUs of AlexNet, and of VGG-16 the
# last one before each pooling. With the least side, in pixels, the last of them still has a pixel.
_BACKBONES = {
    "alex": (alexnet, (1, 4, 7, 9, 11), 31),
    "vgg": (vgg16, (3, 8, 15, 22, 29), 16),
}


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1: Zhang et al. 2018, equation 1. 0 is equal, lower is nearer.

    Nothing is downloaded: both files are given.

    Args:
        backbone: ``alex``, which its authors recommend for comparing, or ``vgg``.
        backbone_weights: path of torchvision's state_dict of AlexNet (alexnet-owt-7be5be79.pth) or VGG-16
            (vgg16-397923af.pth), whose ImageNet weights the linear ones were fitted to.
        linear_weights: path of the authors' state_dict for that backbone, lpips/weights/v0.1/alex.pth or vgg.pth of
            github.com/richzhang/PerceptualSimilarity: lin0.model.1.weight [1, C, 1, 1] to lin4.model.1.weight.

    Raises:
        ValueError: If the backbone is unknown.
        DataError: If one of the files does not exist, or holds other weights.
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
                raise DataError(f"{key}={path} is not a file: put {what} there, or name another place")
        with torch.device("meta"):  # the classifier, which is most of the network, takes neither time nor memory
            features = build().features
        state = _state(backbone_weights, {f"features.{key}": value.shape for key, value in features.state_dict().items()})
        features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
        bounds = (0, *(last + 1 for last in last_layers))
        stages = [features[start:stop] for start, stop in pairwise(bounds)]
        widths = [stage[-2].out_channels for stage in stages]  # of the convolution before the last ReLU
        linear = {f"lin{i}.model.1.weight": torch.Size((1, width, 1, 1)) for i, width in enumerate(widths)}
        self.stages = nn.ModuleList(stages)
        self.linear = nn.ParameterList(_state(linear_weights, linear).values())
        # ImageNet's means and deviations, for values in [-1, 1]; rounded as where the linear weights were fitted.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)
        digests = {key: sha256_of(Path(path).expanduser()) for key, (path, _) in paths.items()}
        self._description = {"backbone": backbone, **{f"{key}_sha256": digest for key, digest in digests.items()}}

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images of this shape (C, H, W) before they are made.

        Raises:
            ConfigError: If they are too small for the network, or have other than 1 or 3 channels.
        """
        if shape[0] not in (1, 3) or min(shape[1:]) < self.least_side:
            raise ConfigError(
                f"backbone={self._description['backbone']} needs 1 or 3 channels and sides of {self.least_side} pixels or "
                f"more, not images [C, H, W] of {list(shape)}: choose another, or remove LPIPS"
            )

    def describe(self) -> dict[str, str]:
        """What its values depend on, for records."""
        return self._description

    @torch.no_grad()
    def forward(self, reference: Tensor, image: Tensor) -> Tensor:
        """The distance [N], float32, of uint8 images [N, 1 or 3, H, W]; grey is replicated.

        Raises:
            ConfigError: If the images are too small for the network, or have other channels.
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
    """Refuse images of this shape (C, H, W) for an evaluator's parameter ``lpips``.

    Raises:
        ConfigError: If LPIPS is not defined for them.
    """
    try:
        lpips.check(shape)
    except UserError as error:
        raise error.mounted("lpips", ["backbone"]) from error


def _unit(features: Tensor) -> Tensor:
    """Divided by the norm over channels; the authors' own code adds this much to it."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _state(given: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Those entries of a file, in that order, as float32.

    Raises:
        DataError: If the file cannot be read; names the first entry that is missing or has another shape.
    """
    path = Path(given).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
        raise DataError(f"the file {path} does not hold weights of LPIPS ({in_one_line(error)})") from error
    for key, shape in shapes.items():
        if key not in found or found[key].shape != shape:
            what = f"{key} {list(found[key].shape)}" if key in found else f"no {key}"
            raise DataError(
                f"the file {path} holds {what}, but LPIPS needs {key} {list(shape)}: give the file of this backbone"
            )
    return {key: found[key].float() for key in shapes}
