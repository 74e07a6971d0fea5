"""Images in a NumPy archive, as other programs write their samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from genimg.data.pixels import PixelFormat
from genimg.data.sources import ArraySource, Source


def npz(*, path: str, image_size: int | Sequence[int] | None, channels: int | None, fit: str) -> Source:
    """The images of an .npz file: its ``images``, else its first array of three or four dimensions.

    Arrays are uint8, or floats between 0 and 1; [N, H, W], [N, H, W, C] or [N, C, H, W]. An array ``labels`` (or ``arr_1``, as
    in ADM's sample files) of N integers, 0 or more, holds classes.

    Args:
        path: the file.
        image_size, channels, fit: see PixelFormat; None leaves the size or the channels as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no images, or values that are not images'.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a file: it should be an .npz of images")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # damaged archives make NumPy and zlib raise nearly anything
        raise ValueError(f"{path} is not an .npz archive of plain arrays: it is damaged, or holds Python objects") from error
    key = "images" if "images" in arrays else next((k for k, a in arrays.items() if a.ndim in (3, 4)), None)
    if key is None or arrays[key].ndim not in (3, 4):
        shapes = ", ".join(f"{k} {a.shape}" for k, a in arrays.items())
        raise ValueError(f"{path} holds no images: expected an array [N, H, W, C], [N, C, H, W] or [N, H, W], found {shapes}")
    if arrays[key].size == 0:
        raise ValueError(f"{path}[{key}] holds no images: its shape is {arrays[key].shape}")
    images = _channels_first(_to_uint8(arrays[key], f"{path}[{key}]"), f"{path}[{key}]")
    images = _brought_to(images, image_size, channels, fit, file.name)
    labels = _labels(arrays, len(images), path)
    names = [] if labels is None else [str(i) for i in range(int(labels.max()) + 1)]
    return ArraySource(file.name, images, labels, names)


def _to_uint8(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} holds {array.dtype}: images must be uint8, or floats between 0 and 1")
    values = array.astype(np.float64)
    broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of the {len(values)} images of {name} hold NaN or infinite values, the first of them image "
            f"{int(broken.argmax())}: remove them, or find out what made them"
        )
    if values.min() < 0.0 or values.max() > 1.0:
        raise ValueError(
            f"{name} holds floats from {values.min():.4g} to {values.max():.4g}: images must be uint8, or floats between 0 "
            "and 1 (for [-1, 1], store (x + 1) / 2)"
        )
    return np.round(values * 255.0).astype(np.uint8)


def _channels_first(images: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3, 4):
        return images.transpose(0, 3, 1, 2)
    if images.shape[1] in (1, 3, 4):
        return images
    raise ValueError(f"{name} has the shape {images.shape}: neither its second nor its last axis is 1, 3 or 4 channels")


def _brought_to(
    images: NDArray[np.uint8], image_size: int | Sequence[int] | None, channels: int | None, fit: str, name: str
) -> NDArray[np.uint8]:
    own_channels, height, width = images.shape[1:]
    size = (height, width) if image_size is None else image_size
    pixels = PixelFormat.of(size, own_channels if channels is None else channels, fit)
    if pixels.shape == images.shape[1:]:
        return np.ascontiguousarray(images)
    progress = tqdm(images, desc=f"resizing {name}", unit="image", leave=False, disable=None)
    return np.stack([pixels.apply(Image.fromarray(i[0] if len(i) == 1 else i.transpose(1, 2, 0))) for i in progress])


def _labels(arrays: dict[str, NDArray[np.generic]], count: int, path: str) -> NDArray[np.int64] | None:
    if "labels" not in arrays and "arr_1" not in arrays:
        return None
    key = "labels" if "labels" in arrays else "arr_1"
    labels = arrays[key]
    fits = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer)
    if fits and labels.min() >= 0 and labels.max() < 1_000_000:  # each class gets a name
        return labels.astype(np.int64)
    if key == "arr_1":  # np.savez's own name, so it may be anything
        return None
    raise ValueError(
        f"{path}[labels] has the shape {labels.shape} and type {labels.dtype}: labels must be {count} integers, 0 or more, one "
        "an image; name the array otherwise if it holds something else"
    )
