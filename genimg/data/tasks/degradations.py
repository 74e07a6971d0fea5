"""Restoration tasks: the source is a degraded image, the target the original.

Sources are clipped and rounded to 256 levels, like the files that users translate later. Most papers on denoising do
neither, as with ``clip=False``. The results with and without clipping are not comparable.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from genimg.data.tasks.base import Task, channels_last, refuse_mask
from genimg.data.tasks.colorspaces import lab_to_rgb, luma, rgb_to_lab
from genimg.data.tasks.edges import Canny, Sobel
from genimg.data.tasks.filters import gaussian_blur, gaussian_radius, motion_blur
from genimg.data.tasks.masks import Mask
from genimg.data.tasks.noise import Photons, add_gaussian, jpeg, salt_and_pepper
from genimg.data.tasks.ranges import checked_range, drawn
from genimg.errors import ConfigError, UserError
from genimg.types import Batch
from genimg.utils.images import to_float, to_uint8
from genimg.utils.rng import Stream, keys_of

_PEAK = 255**2  # with more photons than this, the noise is below one of 255 levels everywhere


class Denoise(Task):
    """Removal of noise from images.

    Args:
        noise: ``gaussian``, white in every channel; ``poisson``, photon shot noise; ``salt_and_pepper``, black and white
            pixels; ``jpeg``, compression artifacts, computed on the host, one image at a time.
        amount: For ``gaussian``, the standard deviation in levels of 255, or [low, high] to draw one for each image (blind
            denoising); for ``poisson``, the photons of a pixel at full brightness; for ``salt_and_pepper``, the share of
            pixels; for ``jpeg``, the quality, 1 to 100.
        clip: Whether to clip sources to the range of the images and round them to 256 levels, as in a file. This removes some
            of the noise. False is supported only for ``gaussian`` and ``poisson``.
    """

    def __init__(self, *, noise: str, amount: float | Sequence[float], clip: bool = True) -> None:
        limits = {"gaussian": (0, 255), "poisson": (0, _PEAK), "salt_and_pepper": (0, 1), "jpeg": (1, 100)}
        if noise not in limits:
            raise ValueError(f"noise={noise} is unknown: choose one of {', '.join(limits)}")
        self.noise = noise
        self.amount = checked_range("amount", amount, *limits[noise], above=noise != "jpeg")
        if noise != "gaussian" and self.amount[0] != self.amount[1]:
            raise ValueError(f"amount={list(self.amount)} must be one number, because {noise} noise has no range")
        if noise == "jpeg" and self.amount[0] != int(self.amount[0]):
            raise ValueError(f"amount={self.amount[0]} must be a whole number from 1 to 100, JPEG's quality")
        if not clip and noise in ("salt_and_pepper", "jpeg"):
            raise ValueError(f"clip=false has no effect on {noise} noise, whose sources have 256 levels: remove clip")
        self.clip = clip
        self._photons = Photons(self.amount[0]) if noise == "poisson" else None

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        check_picture(shape, "Denoise")
        return shape[0], shape[0]

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        noisy = self._noisy(images, positions, seed)
        return _batch(eight_bits(noisy) if self.clip else noisy, images)

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "Denoise")
        return images

    def describe(self) -> str:
        """Return the kind of noise, its strength and unit, and whether sources are clipped."""
        unit = {
            "gaussian": "standard deviation in levels of 255", "poisson": "photons at full brightness",
            "salt_and_pepper": "share of the pixels", "jpeg": "quality",
        }[self.noise]  # fmt: skip
        return f"noise: {self.noise}, {_span(self.amount)} ({unit}), {_quantisation(self.clip)}"

    def _noisy(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Tensor:
        """Return the noisy images before clipping."""
        keys = keys_of(seed, Stream.DEGRADATION, 0, positions)
        if self.noise == "gaussian":
            levels = drawn(self.amount, seed, Stream.DEGRADATION, 1, positions)
            return add_gaussian(images, _tensor(levels / 127.5, images), keys)
        if self._photons is not None:
            return self._photons(images, keys)
        if self.noise == "salt_and_pepper":
            return salt_and_pepper(images, self.amount[0], keys)
        return jpeg(images, int(self.amount[0]))


class Inpaint(Task):
    """Filling of holes in images; batches also have ``mask``, float32 [N, 1, H, W], 1 for missing pixels.

    A source is the image with grey (0) holes, and the mask as the last channel, 1 for missing pixels and -1 elsewhere.

    Args:
        mask: Generator of the masks.
    """

    keys = ("source", "target", "mask")

    def __init__(self, *, mask: Mask) -> None:
        self.mask = mask

    def fingerprint(self) -> str | None:
        return self.mask.fingerprint()

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        check_picture(shape, "Inpaint")
        try:
            self.mask.check(*shape[1:])
        except UserError as error:
            raise error.mounted("mask", inspect.signature(type(self.mask)).parameters) from error
        return shape[0] + 1, shape[0]

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        height, width = images.shape[2:]
        mask = self.mask(positions, seed, height=height, width=width, device=images.device)
        return {**_batch(_with_holes(images, mask), images), "mask": mask}

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            raise ConfigError("Inpaint needs a mask for every image, white where pixels are missing", "give one", key="mask")
        expected = (images.shape[0], 1, *images.shape[2:])
        if mask.shape != expected:
            raise ConfigError(
                f"masks of {list(mask.shape)} do not fit images of {list(images.shape)}",
                f"give masks of {list(expected)}",
                key="mask",
            )
        return _with_holes(images, mask)

    def missing(self, source: Tensor) -> Tensor:
        return source[:, -1:] > 0

    def shown(self, source: Tensor) -> Tensor:
        return source[:, :-1]

    def result(self, output: Tensor, source: Tensor) -> Tensor:
        """Return the output in the holes and the source's pixels elsewhere."""
        return torch.where(self.missing(source), output.to(source.dtype), source[:, :-1])


class SuperResolution(Task):
    """Super-resolution of images downscaled by antialiased bicubic interpolation; sources are scaled back to full size.

    The interpolation is Pillow's, without its rounding between rows and columns.

    Args:
        factor: Ratio of the side lengths, at least 2.
    """

    def __init__(self, *, factor: int) -> None:
        if factor != int(factor) or factor < 2:
            raise ValueError(f"factor={factor} must be a whole number, 2 or more")
        self.factor = int(factor)

    @property
    def border(self) -> int:
        """The factor, as in Lim et al. 2017 (EDSR) and most results since."""
        return self.factor

    def describe(self) -> str:
        """Return the factor and the downscaling method."""
        return f"super-resolution: factor {self.factor}, antialiased bicubic (a = -0.5), {_quantisation(True)}"

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        channels, height, width = check_picture(shape, "SuperResolution")
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"factor={self.factor} does not divide the images' {height}x{width} pixels: set it to a divisor of "
                f"{math.gcd(height, width)}, or choose another image size"
            )
        return channels, channels

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        height, width = images.shape[2:]
        small = _resized(images, height // self.factor, width // self.factor)
        return _batch(self.given(eight_bits(small)), images)

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "SuperResolution")
        height, width = images.shape[2:]
        return channels_last(_resized(images, height * self.factor, width * self.factor))


class Colorize(Task):
    """Colorization of grey images.

    Args:
        space: ``gray``: the source is the luma [N, 1, H, W], the target the RGB image. ``lab``: the source is the lightness
            of CIELAB, L / 50 - 1, the target its colours, a / 110 and b / 110 (Zhang et al. 2016, "Colorful image
            colorization").
    """

    def __init__(self, *, space: str) -> None:
        if space not in ("gray", "lab"):
            raise ValueError(f"space={space} is unknown: choose gray or lab")
        self.space = space

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        if shape[0] != 3:
            raise ConfigError(f"Colorize needs RGB images, but these have {shape[0]} channels: use images with 3 channels")
        return 1, 3 if self.space == "gray" else 2

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        if self.space == "gray":
            return _batch(eight_bits(luma(images)), images)
        lab = rgb_to_lab(images)
        return _batch(lab[:, :1] / 50.0 - 1.0, lab[:, 1:] / 110.0)

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "Colorize")
        if images.shape[1] not in (1, 3):
            raise ConfigError(f"Colorize takes grey or RGB images, but these have {images.shape[1]} channels: convert them")
        if self.space == "gray":
            return images if images.shape[1] == 1 else channels_last(eight_bits(luma(images)))
        return channels_last(rgb_to_lab(images.expand(-1, 3, -1, -1))[:, :1] / 50.0 - 1.0)

    def shown(self, source: Tensor) -> Tensor:
        return source if self.space == "gray" else self.result(source.new_zeros(1, 2, 1, 1), source)[:, :1]

    def result(self, output: Tensor, source: Tensor) -> Tensor:
        if self.space == "gray":
            return output
        lightness = (source + 1.0) * 50.0
        return lab_to_rgb(
            torch.cat([lightness, (output.to(source.dtype) * 110.0).expand(source.shape[0], 2, *source.shape[2:])], dim=1)
        )


class Deblur(Task):
    """Deblurring of images.

    A Gaussian is truncated at four standard deviations, so 1.6 pixels need a kernel of 13x13. Borders are reflected, whereas
    many papers use periodic borders.

    Args:
        blur: ``gaussian``; or ``motion``, along a line of random direction for each image.
        amount: For ``gaussian``, the standard deviation in pixels; for ``motion``, the length of the line in pixels. A range
            [low, high] draws one for each image.
        noise: Standard deviation, in levels of 255, of white noise added to the blurred image; 0 for none.
        clip: Whether to clip sources and round them to 256 levels after noise is added, as in a file.
    """

    def __init__(self, *, blur: str, amount: float | Sequence[float], noise: float = 0.0, clip: bool = True) -> None:
        if blur not in ("gaussian", "motion"):
            raise ValueError(f"blur={blur} is unknown: choose gaussian or motion")
        self.blur = blur
        # A line shorter than a pixel does not blur; a Gaussian below 0.2 pixels changes the next pixel by less than one level.
        self.amount = checked_range("amount", amount, 1.0 if blur == "motion" else 0.2, 1000.0, above=blur == "motion")
        if not 0 <= noise <= 255:
            raise ValueError(f"noise={noise} must be from 0 to 255, a standard deviation in levels")
        self.noise, self.clip = float(noise), clip
        self.reach = math.ceil(self.amount[1] / 2) if blur == "motion" else gaussian_radius(self.amount[1])

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        channels, height, width = check_picture(shape, "Deblur")
        if self.reach >= min(height, width):
            raise ConfigError(
                f"amount={self.amount[1]} blurs across {self.reach} pixels on each side, which is too much for images of "
                f"{height}x{width} pixels: set a smaller amount"
            )
        return channels, channels

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        amounts = _tensor(drawn(self.amount, seed, Stream.DEGRADATION, 2, positions), images)
        if self.blur == "gaussian":
            blurred = gaussian_blur(images, amounts, self.reach)
        else:
            radians = _tensor(drawn((0.0, math.pi), seed, Stream.DEGRADATION, 3, positions), images)
            blurred = motion_blur(images, amounts, radians, math.ceil(self.amount[1]))
        if self.noise > 0:
            deviations = torch.full_like(amounts, self.noise / 127.5)
            blurred = add_gaussian(blurred, deviations, keys_of(seed, Stream.DEGRADATION, 4, positions))
        return _batch(eight_bits(blurred) if self.clip else blurred, images)

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "Deblur")
        return images

    def describe(self) -> str:
        """Return the kernel, its size, the borders and the noise."""
        if self.blur == "gaussian":
            side = 2 * self.reach + 1
            kernel = f"gaussian, standard deviation of {_span(self.amount)} pixels, kernel of {side}x{side}"
        else:
            kernel = f"motion, lines of {_span(self.amount)} pixels in any direction"
        noise = f"white noise of {self.noise:g} levels of 255" if self.noise else "no noise"
        return f"blur: {kernel}, reflected borders, {noise}, {_quantisation(self.clip)}"


class Edges(Task):
    """Generation of images from edge maps [N, 1, H, W].

    Args:
        detector: Edge detector.
    """

    def __init__(self, *, detector: Sobel | Canny) -> None:
        self.detector = detector

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        channels, height, width = check_picture(shape, "Edges")
        if self.detector.radius >= min(height, width):
            raise ConfigError(
                f"detector={type(self.detector).__name__} needs {self.detector.radius} pixels on each side, but the images "
                f"have only {height}x{width}: use larger images, or a smaller sigma of the detector"
            )
        return 1, channels

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        return _batch(eight_bits(self.detector(images)), images)

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "Edges")
        if images.shape[1] != 1:
            raise ConfigError(f"Edges takes edge maps with 1 channel, but these have {images.shape[1]}: convert them to grey")
        return images


def check_picture(shape: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    """Return ``shape`` (C, H, W) if it is the shape of a grey or RGB image.

    Raises:
        ConfigError: If the number of channels is not 1 or 3.
    """
    if shape[0] not in (1, 3):
        raise ConfigError(
            f"{name} needs grey or RGB images, but these have {shape[0]} channels: use images with 1 or 3 channels"
        )
    return shape


def eight_bits(images: Tensor) -> Tensor:
    """Clip float images to [-1, 1] and round them to the 256 levels of a file."""
    return to_float(to_uint8(images))


def _span(amount: tuple[float, float]) -> str:
    low, high = amount
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _quantisation(clip: bool) -> str:
    return "clipped and rounded to 256 levels" if clip else "neither clipped nor rounded"


def _batch(source: Tensor, target: Tensor) -> Batch:
    return {"source": channels_last(source), "target": channels_last(target)}


def _with_holes(images: Tensor, mask: Tensor) -> Tensor:
    missing = mask > 0.5
    return channels_last(torch.cat([images.masked_fill(missing, 0.0), missing.to(images) * 2.0 - 1.0], dim=1))


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """Resize by antialiased bicubic interpolation, clipped to [-1, 1]."""
    return F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(-1.0, 1.0)


def _tensor(numbers: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32)).to(like.device, non_blocking=True)
