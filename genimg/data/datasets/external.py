"""Datasets from a user's own program: arrays, PyTorch datasets and Hugging Face datasets."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from genimg.data.datasets.builtin import ArrayDataset, CorruptImageError, ImageDataset, digest
from genimg.data.decode import PixelFormat
from genimg.errors import DataError
from genimg.types import height_width
from genimg.utils.machine_local import Importable
from genimg.utils.pillow import upright
from genimg.utils.progress import Progress

_CHANNELS = (1, 3, 4)
_DIGESTED = 64  # items in the fingerprint; a run must not start by reading a whole large dataset
_IMAGE_KEYS, _LABEL_KEYS, _CAPTION_KEYS = ("image", "img"), ("label", "labels", "fine_label"), ("text", "caption")


class MapDataset(Protocol):
    """The common interface of PyTorch's map-style datasets and Hugging Face datasets."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_dataset(
    data: object,
    *,
    name: str = "",
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
) -> ImageDataset:
    """Return a user's own images as a dataset for training or evaluation.

    Args:
        data: One of: a uint8 array or tensor [N, H, W], [N, H, W, C] or [N, C, H, W]; a pair of such an array and labels
            [N]; a PyTorch ``Dataset``, any other sequence or a Hugging Face ``datasets.Dataset``, whose items are an
            image, a tuple (image, label), or a mapping with ``image`` and, if available, ``label`` and ``text``. An image is
            a PIL image, a uint8 array or tensor as above, or a float tensor [C, H, W] in [0, 1], as returned by
            torchvision's ``ToTensor``. A genimg dataset is returned unchanged.
        name: Name for messages and records; by default the name of the type.
        image_size: Target size in pixels, one number or (height, width); None uses that of the first image.
        channels: 1 for grey, 3 for RGB, 4 for RGBA; None uses the number of the first image.
        fit: ``crop``, ``stretch`` or ``pad``, for images of another aspect ratio.

    Raises:
        DataError: If ``data`` is none of these types, or contains no images.
        ConfigError: If image_size, channels or fit is invalid.
    """
    if isinstance(data, ImageDataset):
        return data
    PixelFormat.of(1 if image_size is None else image_size, 3 if channels is None else channels, fit)  # rejects invalid values
    title = name or type(data).__name__
    if isinstance(data, str | os.PathLike):
        raise DataError(f"data={data} is text, not images", "give an array or a dataset")
    if isinstance(data, Mapping):
        raise DataError(f"data={title} is a mapping of {', '.join(map(str, data)) or 'nothing'}", "give one of its datasets")
    array, labels = _arrays(data)
    if array is not None:
        images = _channels_first(array)
        labels = None if labels is None else _checked(labels, len(images), title)
        if image_size is not None or channels is not None:
            to = PixelFormat.of(image_size or images.shape[2:], channels or images.shape[1], fit, None)
            images = np.stack([to.apply(_picture(image, title)) for image in images])
        names = () if labels is None else [str(label) for label in range(int(labels.max()) + 1)]
        return ArrayDataset(title, images, labels, names)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataError(
            f"data={title} is not a dataset", "give a uint8 array, a torch Dataset with a length, or a Hugging Face dataset"
        )
    return ExternalDataset(data, title, image_size=image_size, channels=channels, fit=fit)


def dataset_of(data: object, parameter: str, **settings: Any) -> ImageDataset:
    """Convert an argument of the Python API with ``as_dataset``, naming ``parameter`` in errors.

    Raises:
        DataError: As ``as_dataset``, with ``parameter`` as the key.
    """
    try:
        return as_dataset(data, **settings)
    except DataError as error:
        if error.key != "data":
            raise
        raise DataError(error.problem.replace("data=", f"{parameter}=", 1), error.fix, key=parameter) from error


def module(
    *,
    factory: Annotated[Callable[..., object], Importable()],
    arguments: Mapping[str, Any],
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
) -> ImageDataset:
    """Return the dataset built by a function of the user's own package.

    Args:
        factory: Function that returns the dataset; a config names it as ``package.module:function``.
        arguments: Keyword arguments of the function.
        image_size, channels, fit: See ``as_dataset``.

    Raises:
        ValueError: If the function does not accept the arguments, or does not return a dataset.
    """
    name = f"{factory.__module__}:{factory.__qualname__}"
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"arguments={','.join(arguments) or 'none'} do not fit {name}: {error}") from error
    made = factory(**arguments)
    try:
        return as_dataset(made, name=factory.__qualname__, image_size=image_size, channels=channels, fit=fit)
    except DataError as error:
        problem = str(error).removeprefix("data=")
        raise ValueError(f"factory={name} returns a {type(made).__name__}, which cannot be used: {problem}") from error


class ExternalDataset(ImageDataset):
    """A user's own map-style dataset, whose images are converted when they are read.

    Args:
        items: Dataset, which must be safe to read from several threads or processes at once, as PyTorch requires.
        name: Name for messages.
        image_size, channels, fit: See ``as_dataset``.

    Raises:
        DataError: If the dataset contains no images.
    """

    def __init__(
        self, items: MapDataset, name: str, *, image_size: int | Sequence[int] | None, channels: int | None, fit: str
    ) -> None:
        if len(items) == 0:
            raise DataError(f"data={name} is empty", "give at least one image")
        self.name = name
        self._items = items
        first = _picture(_parts(items[0], name)[0], name)
        size = (first.height, first.width) if image_size is None else height_width(image_size)
        self._exact = image_size is None
        self._to = PixelFormat.of(list(size), channels or _channels_of(first), fit, None)
        self.shape = self._to.shape
        self.labels, names = _labels(items, name)
        self.class_names = tuple(names)
        texts = _column(items, _CAPTION_KEYS)
        self.captioned = texts is not None or _parts(items[0], name)[2] is not None
        self._texts = texts
        some = np.unique(np.linspace(0, len(items) - 1, _DIGESTED, dtype=np.int64))
        self.fingerprint = digest("external", len(items), self.shape, [self._digest(int(i)) for i in some])

    def __len__(self) -> int:
        return len(self._items)

    def read(self, index: int) -> NDArray[np.uint8]:
        try:
            image = _picture(_parts(self._items[index], self.name)[0], self.name)
        except DataError as error:
            raise CorruptImageError(f"image {index}: {error}", key=error.key) from error
        if self._exact and (image.height, image.width) != self.shape[1:]:
            raise DataError(
                f"image {index} of {self.name} has {image.height}x{image.width} pixels, but the first one has "
                f"{self.shape[1]}x{self.shape[2]}: set image_size to bring all images to one size"
            )
        try:
            return self._to.apply(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise CorruptImageError(f"image {index} of {self.name} cannot be decoded: {error}") from error

    def _digest(self, index: int) -> str:
        try:
            return digest(self.read(index).tobytes())
        except CorruptImageError:  # counted when the images are loaded
            return "corrupt"

    def caption(self, index: int) -> str | None:
        return str(self._texts[index]) if self._texts is not None else _parts(self._items[index], self.name)[2]


def _arrays(data: object) -> tuple[NDArray[np.uint8] | None, Any]:
    """Return images and labels, if the data consists of arrays."""
    images: Any = data
    labels: Any = None
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray | torch.Tensor) and data[0].ndim > 2:
        images, labels = data
    if isinstance(images, torch.Tensor):
        images = images.cpu().numpy()
    if not isinstance(images, np.ndarray):
        return None, None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(
            f"data=... is an array of {images.dtype} with shape {list(images.shape)}",
            "give uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]",
        )
    return images, labels.cpu() if isinstance(labels, torch.Tensor) else labels


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert images [N, H, W], [N, H, W, C] or [N, C, H, W] to [N, C, H, W]; if ambiguous, assume channels first."""
    if images.ndim == 3:
        return images[:, None]
    if images.shape[1] in _CHANNELS:
        return images
    if images.shape[3] not in _CHANNELS:
        raise DataError(f"data=... is an array with shape {list(images.shape)}, of which no axis has 1, 3 or 4 channels")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _parts(item: Any, name: str) -> tuple[Any, Any, str | None]:
    """Return the image, label and caption of an item; None for a missing label or caption."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            raise DataError(f"data={name}: its items have {', '.join(map(str, item))}, but no image")
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        text = next((str(item[key]) for key in _CAPTION_KEYS if key in item), None)
        return image, label, text
    if isinstance(item, tuple | list):
        second = item[1] if len(item) > 1 else None
        return item[0], None if isinstance(second, str) else second, second if isinstance(second, str) else None
    return item, None, None


def _picture(image: Any, name: str) -> Image.Image:
    """Convert a PIL image, array or tensor to an 8-bit PIL image."""
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        if image.dtype.kind == "f":
            if not (np.isfinite(image).all() and image.min() >= 0.0 and image.max() <= 1.0):
                raise DataError(
                    f"data={name}: its float images hold {image.min():.3g} to {image.max():.3g}: give values in [0, 1], as "
                    "torchvision's ToTensor makes them, or uint8"
                )
            image = np.round(image * 255.0).astype(np.uint8)
        if image.dtype == np.uint8:
            pixels = _channels_first(image[None])[0].transpose(1, 2, 0)  # [H, W, C]
            return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))
    raise DataError(
        f"data={name}: an image is a {type(image).__name__}: give PIL images, uint8 arrays, or float tensors [C, H, W] in "
        "[0, 1]"
    )


def _channels_of(image: Image.Image) -> int:
    if image.mode == "RGBA":
        return 4
    return 1 if len(image.getbands()) == 1 and image.mode != "P" else 3


def _column(items: MapDataset, keys: Sequence[str]) -> Any:
    """Return a column of a Hugging Face dataset without reading its images; None for other datasets."""
    names = getattr(items, "column_names", None)
    key = next((key for key in keys if isinstance(names, list) and key in names), None)
    return None if key is None else items[key]  # type: ignore[index]


def _labels(items: MapDataset, name: str) -> tuple[NDArray[np.int64] | None, Sequence[str]]:
    """Return labels and class names, from the dataset's attributes or columns if it has them, else from its items."""
    found = getattr(items, "targets", None)
    if found is None:
        found = _column(items, _LABEL_KEYS)
    if found is None:
        if _parts(items[0], name)[1] is None:
            return None, ()
        found = [
            _parts(items[index], name)[1]
            for index in Progress(range(len(items)), desc="reading labels", unit="image", leave=False)
        ]
    labels = _checked(found, len(items), name)
    count = int(labels.max()) + 1
    named = getattr(items, "classes", None)
    features = getattr(items, "features", None)
    if named is None and isinstance(features, Mapping):
        named = next((features[key].names for key in _LABEL_KEYS if hasattr(features.get(key), "names")), None)
    names = [str(each) for each in named] if named is not None else [str(label) for label in range(count)]
    return labels, names if len(names) >= count else [str(label) for label in range(count)]


def _checked(given: Any, count: int, name: str) -> NDArray[np.int64]:
    """Return labels as int64 [N].

    Raises:
        DataError: If they are not non-negative integers, one for each of ``count`` images.
    """
    try:
        labels: NDArray[Any] = np.asarray(given)
    except ValueError:  # rows of different lengths
        labels = np.empty(0, dtype=object)
    if labels.dtype.kind not in "iub" or labels.ndim != 1:
        raise DataError(f"data={name}: its labels are not whole numbers, one for each image")
    if len(labels) != count:
        raise DataError(f"data={name} has {count} images and {len(labels)} labels", "give one label for each image")
    if labels.min() < 0:
        raise DataError(f"data={name} has a label of {labels.min()}", "count labels from 0")
    return labels.astype(np.int64)
