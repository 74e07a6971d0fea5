"""Images in NumPy archives, the format of other programs' datasets and samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genimg.data.archives import (
    FIRST,
    MOST_CLASSES,
    SECOND,
    SPLITS,
    choose_images,
    choose_labels,
    image_like,
)
from genimg.data.classes import Classes, classes_by_label
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.decode import PixelFormat, checked_levels, scaled
from genimg.data.numpy_archive import Header, NumpyArchive
from genimg.errors import ConfigError, DataError
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)


def npz(
    *,
    path: str,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
    split: str | None = None,
    images: str | None = None,
    labels: str = "auto",
    range: Sequence[float] | None = None,
) -> ImageDataset:
    """Read the images of an .npz file, and their labels if it has any; log which arrays were used.

    Images are [N, H, W], [N, H, W, C] or [N, C, H, W]; uint8, floats in [0, 1], or any numbers in ``range``.
    Labels are N non-negative integers, as [N], [N, 1] or one-hot [N, K].

    Args:
        path: The .npz file.
        image_size: See ``PixelFormat``; None keeps the images' own.
        channels: See ``PixelFormat``; None keeps the images' own.
        fit: See ``PixelFormat``.
        split: ``train``, ``val`` or ``test`` of an archive with arrays such as ``x_train`` and ``x_test``; None uses the
            training images.
        images: Name of the array of images; None chooses by names and shapes: see genimg.data.archives.
        labels: Name of the array of labels; ``auto`` chooses by names, ``none`` ignores labels.
        range: Values that become black and white, [low, high]; values outside are clipped.

    Raises:
        ConfigError: If a parameter has an unknown value, or an array does not exist.
        DataError: If the file does not exist or contains no images, several arrays match, or values are not valid images
            or labels.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split={split} is unknown: choose {', '.join(SPLITS)}, or null")
    levels = checked_levels(range)
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"path={path} is not a file: name an .npz of images")
    with NumpyArchive(file, f"path={path}") as archive:
        if not image_like(archive.headers) and any(header.dtype.hasobject for header in archive.headers.values()):
            raise DataError(f"path={path} is not an .npz archive of plain arrays: it holds Python objects")
        headers = _without_repetition(archive)
        image_key, own_split = choose_images(headers, path, key=images, split=split)
        label_key = choose_labels(headers, path, key=labels, images=image_key, split=own_split)
        array = archive.read(image_key)
        targets = None if label_key is None else archive.read(label_key)
    where = f"{path}[{image_key}]"
    if array.size == 0:
        raise DataError(f"path={where} holds no images: its shape is {array.shape}")
    pixels = _brought_to(_channels_first(_to_uint8(array, where, levels), where), image_size, channels, fit, file.name)
    classes = Classes()
    if targets is not None:
        classes = _classes(targets, len(pixels), label_key or "", path, named=label_key != SECOND)
    _say_what_was_taken(headers, image_key, array, label_key, classes, path)
    several = len(image_like(headers)) > 1
    return ArrayDataset(f"{file.name}[{image_key}]" if several else file.name, pixels, classes.labels, classes.names)


def _without_repetition(archive: NumpyArchive) -> dict[str, Header]:
    """Omit ``arr_0`` if it is an RGB version of ``images``, which genimg-sample writes for images that are not RGB."""
    headers = archive.headers
    if not {FIRST, "images"} <= set(image_like(headers)):
        return headers
    one, three = archive.read("images"), archive.read(FIRST)
    if one.ndim != 4 or three.ndim != 4 or one.shape[:3] != three.shape[:3] or not one.dtype == three.dtype == np.uint8:
        return headers
    colours = one.astype(np.float64)
    if one.shape[3] == 4:  # on white
        opacity = colours[..., 3:] / 255
        colours = opacity * colours[..., :3] + (1 - opacity) * 255
    same = colours.shape[3] in (1, three.shape[3]) and np.abs(three.astype(np.float64) - colours).max(initial=0) < 1
    return {name: header for name, header in headers.items() if name != FIRST} if same else headers


def _say_what_was_taken(
    headers: dict[str, Header], key: str, array: NDArray[np.generic], label_key: str | None, classes: Classes, path: str
) -> None:  # fmt: skip
    low, high = (float(bound) for bound in (array.min(), array.max()))
    text = f"{path}: images from {key}, {headers[key]}, values from {low:.6g} to {high:.6g}"
    if classes.labels is not None and label_key is not None:
        values = f"{int(classes.labels.min())} to {int(classes.labels.max())}"
        if headers[label_key].dtype.kind == "U":
            values = f"{len(classes.names)} names"
        text += f"; labels from {label_key}, {headers[label_key]}, {values}"
    else:
        text += "; no labels"
    unused = [name for name in headers if name not in (key, label_key)]
    log.info("%s%s", text, f"; not read: {', '.join(unused)}" if unused else "")


def _to_uint8(array: NDArray[np.generic], name: str, levels: tuple[float, float] | None) -> NDArray[np.uint8]:
    if array.dtype == np.uint8 and levels is None:
        return array.astype(np.uint8, copy=False)
    numeric = np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_ if levels else False
    if not np.issubdtype(array.dtype, np.floating) and not numeric:
        raise DataError(
            f"path={name} holds {array.dtype}, but images must be uint8, or floats between 0 and 1",
            "give the values that become black and white with range=[low,high]",
        )
    values = array.astype(np.float64)
    broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if broken.any():
        raise DataError(
            f"path={name} holds {int(broken.sum())} of {len(values)} images with NaN or infinite values; the first is "
            f"image {int(broken.argmax())}",
            "repair or remove them",
        )
    low, high = float(values.min()), float(values.max())
    if levels is None and (low < 0.0 or high > 1.0):
        raise DataError(
            f"path={name} holds floats from {low:.4g} to {high:.4g}, but images must be uint8, or floats between 0 and 1",
            f"give the values that become black and white, such as range=[{low:.4g},{high:.4g}]",
        )
    return scaled(values, levels or (0.0, 1.0))


def _channels_first(images: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3, 4):
        return images.transpose(0, 3, 1, 2)
    if images.shape[1] in (1, 3, 4):
        return images
    raise DataError(f"path={name} has the shape {images.shape}: neither its second nor its last axis is 1, 3 or 4 channels")


def _brought_to(
    images: NDArray[np.uint8], image_size: int | Sequence[int] | None, channels: int | None, fit: str, name: str
) -> NDArray[np.uint8]:
    own_channels, height, width = images.shape[1:]
    size = (height, width) if image_size is None else image_size
    pixels = PixelFormat.of(size, own_channels if channels is None else channels, fit)
    if pixels.shape == images.shape[1:]:
        return np.ascontiguousarray(images)
    progress = Progress(images, desc=f"resizing {name}", unit="image", leave=False)
    return np.stack([pixels.apply(Image.fromarray(i[0] if len(i) == 1 else i.transpose(1, 2, 0))) for i in progress])


def _classes(labels: NDArray[np.generic], count: int, key: str, path: str, *, named: bool) -> Classes:
    """Return the classes of N images; none if the labels are invalid and not ``named`` as labels.

    Raises:
        DataError: If they are invalid and ``named`` as labels.
    """
    if labels.ndim == 2 and labels.shape[1] >= 2 and len(labels) == count and labels.dtype.kind in "uifb":
        ones = labels == 1
        if ((labels == 0) | ones).all() and (ones.sum(axis=1) == 1).all():
            log.info("%s[%s] is one-hot: the position of each 1 is the label", path, key)
            return _numbered(ones.argmax(axis=1).astype(np.int64))
    is_one_each = labels.shape in ((count,), (count, 1))
    if is_one_each and labels.dtype.kind == "U":
        rows = [f"image {number}" for number in np.arange(count).tolist()]
        return classes_by_label(labels.reshape(count).tolist(), rows, key="labels", place=f"{path}[{key}]")
    fits = is_one_each and np.issubdtype(labels.dtype, np.integer)
    if fits and labels.min() >= 0 and labels.max() < MOST_CLASSES:
        return _numbered(labels.reshape(count).astype(np.int64))
    if not named:
        return Classes()
    values = f", {labels.min()} to {labels.max()}" if fits else ""
    raise DataError(
        f"labels={key} of {path} has the shape {list(labels.shape)} and type {labels.dtype}{values}, but labels must be "
        f"{count} integers, 0 or more and below {MOST_CLASSES:,}, one per image, or names, or one-hot",
        "ignore them with labels=none, or name others with labels=NAME",
    )


def _numbered(labels: NDArray[np.int64]) -> Classes:
    return Classes(labels, tuple(map(str, np.arange(int(labels.max()) + 1).tolist())))
