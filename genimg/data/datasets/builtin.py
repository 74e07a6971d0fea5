"""One function per dataset, each returning a map-style dataset of uint8 images.

To add a dataset, write a function here or in your own package, and a YAML file in configs/data/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genimg.data.classes import Classes, find_class_folders, stray_images
from genimg.data.datasets.caption_files import Captions
from genimg.data.decode import PixelFormat
from genimg.data.depth import pixel_format, requested_format
from genimg.data.forms import other_content
from genimg.data.image_files import ImageFiles, captions_of, classes_of, is_zip, open_image_files, require_decoders
from genimg.data.locality import Locality
from genimg.data.tasks.base import Task
from genimg.errors import ConfigError, DataError, NeedsDownloadError, first_line
from genimg.utils.downloads import reason_of
from genimg.utils.machine_local import MayDownload
from genimg.utils.mounting import place
from genimg.utils.pillow import open_image
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)


class CorruptImageError(DataError):
    """An image cannot be decoded; the message contains the file's path and the decoder's reason."""


class ImageDataset(ABC):
    """A finite set of images of one shape.

    Attributes:
        name: Name for messages and records.
        shape: Shape of an image, (C, H, W).
        labels: Labels, int64 [N]; None if there are none.
        class_names: Class names by label; empty if there are no labels.
        captioned: Whether images have captions.
        task: Task that splits each image into source and target, if the images are pairs; None otherwise.
        validation: Held-out images of the same kind; None if there are none.
        part_of: Number of images from which ``data.max_images`` has chosen these; None if they are all.
        fingerprint: Hexadecimal digest of everything that determines the images, without their labels; a cache key.
        latent_key: Key of the images' latents in batches, which contains the digest of their autoencoder, or ``noise`` for the
            noise from which the images were generated; None without either.
        locality: Files whose images are read fastest together, which determine the order of an epoch; None if any order is
            equally fast.
    """

    name: str
    shape: tuple[int, int, int]
    latent_key: str | None = None
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    captioned: bool = False
    task: Task | None = None
    validation: ImageDataset | None = None
    part_of: int | None = None
    locality: Locality | None = None
    fingerprint: str

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image ``index`` as uint8 [C, H, W].

        Raises:
            CorruptImageError: If the image cannot be decoded.
        """

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images as uint8 [N, C, H, W]. Datasets that can read many images at once override this.

        Raises:
            CorruptImageError: If an image cannot be decoded.
        """
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            images[row] = self.read(index)
        return images

    def expect(self, indices: NDArray[np.int64]) -> None:  # noqa: B027 - optional
        """Prepare to read images. Training calls this with the images of every batch before it reads them.

        Datasets with a ``locality`` override this to read whole files ahead.
        """

    def title(self, index: int) -> str:
        """Return the title of image ``index``: the path of its file if it has one, else its number."""
        return str(index)

    def file_names(self) -> Sequence[str] | None:
        """Return the relative paths of all images' files, in order; None if images are not in separate files."""
        return None

    def caption(self, index: int) -> str | None:
        """Return the caption of image ``index``; None if it has none, or if ``captioned`` is False."""
        return None

    def captions(self, indices: NDArray[np.int64]) -> list[str | None]:
        """Return the captions of images. Datasets that can read many captions at once override this."""
        return [self.caption(index) for index in indices.tolist()]

    def latents(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the latents or the noise of images, float16 [N, C, h, w], if there is a ``latent_key``."""
        raise NotImplementedError


class ArrayDataset(ImageDataset):
    """Images held in memory."""

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
        class_names: Sequence[str] = (),
        captions: Sequence[str | None] | None = None,
    ) -> None:
        self.name = name
        self.images = images
        self.shape = images.shape[1:]
        self.labels = labels
        self.class_names = tuple(class_names)
        self.captioned = captions is not None
        self._captions = captions
        self.fingerprint = digest(name, images.shape, hashlib.sha256(np.ascontiguousarray(images).data).hexdigest())

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.images[index]

    def read_many(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[indices]

    def caption(self, index: int) -> str | None:
        return None if self._captions is None else self._captions[index]


class FileDataset(ImageDataset):
    """Image files, decoded when read."""

    def __init__(
        self,
        name: str,
        files: ImageFiles,
        pixels: PixelFormat,
        classes: Classes,
        captions: Captions | None,
    ) -> None:
        self.name = name
        self.paths = files.paths
        self._files = files
        self.pixels = pixels
        self.shape = pixels.shape
        self.labels, self.class_names = classes.labels, classes.names
        self.captioned = captions is not None
        self._captions = captions
        self._place = place()
        # From names, sizes and a bounded part of the contents, because a run must not start by reading a million files.
        self.fingerprint = digest("files", files.digest, pixels)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> NDArray[np.uint8]:
        path = self.paths[index]
        try:
            with open_image(self._files.open(path), draft=(self.pixels.width * 2, self.pixels.height * 2)) as image:
                return self.pixels.apply(image)
        except (OSError, ValueError) as error:
            raise CorruptImageError(f"{self._files.root / path}: {error}") from error

    def title(self, index: int) -> str:
        return self.paths[index]

    def file_names(self) -> Sequence[str]:
        return self.paths

    def caption(self, index: int) -> str | None:
        if self._captions is None:
            return None
        try:
            return self._captions.texts[index]
        except DataError as error:  # captions are read at first use
            raise self._place.mounted(error) from error


def mnist(
    *, root: str, split: str, image_size: int | Sequence[int], channels: int, fit: str, may_download: MayDownload = True
) -> ImageDataset:
    """Load MNIST (LeCun et al. 1998): 60,000 training and 10,000 test digits of 28x28, in torchvision's layout."""
    from torchvision.datasets import MNIST

    return _torchvision("mnist", MNIST, root, split, PixelFormat.of(image_size, channels, fit), "MNIST/raw", may_download)


def fashion_mnist(
    *, root: str, split: str, image_size: int | Sequence[int], channels: int, fit: str, may_download: MayDownload = True
) -> ImageDataset:
    """Load Fashion-MNIST (Xiao et al. 2017): MNIST's format with ten kinds of clothing."""
    from torchvision.datasets import FashionMNIST

    return _torchvision(
        "fashion_mnist", FashionMNIST, root, split, PixelFormat.of(image_size, channels, fit), "FashionMNIST/raw", may_download
    )


def cifar10(
    *, root: str, split: str, image_size: int | Sequence[int], channels: int, fit: str, may_download: MayDownload = True
) -> ImageDataset:
    """Load CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test photos of 32x32 in ten classes."""
    from torchvision.datasets import CIFAR10

    return _torchvision(
        "cifar10", CIFAR10, root, split, PixelFormat.of(image_size, channels, fit), "cifar-10-batches-py", may_download
    )


def cifar100(
    *, root: str, split: str, image_size: int | Sequence[int], channels: int, fit: str, may_download: MayDownload = True
) -> ImageDataset:
    """Load CIFAR-100 (Krizhevsky 2009): like CIFAR-10, with a hundred classes."""
    from torchvision.datasets import CIFAR100

    return _torchvision(
        "cifar100", CIFAR100, root, split, PixelFormat.of(image_size, channels, fit), "cifar-100-python", may_download
    )


def imagenet(
    *,
    root: str,
    split: str,
    image_size: int | Sequence[int],
    channels: int,
    fit: str,
    refresh_index: bool = False,
) -> ImageDataset:
    """List ImageNet (Deng et al. 2009) in torchvision's layout: ``root/train/n01440764/*.JPEG`` and ``root/val/...``."""
    if split not in ("train", "val"):
        raise ConfigError(f"split={split} does not exist in imagenet: choose train or val")
    return folder(
        root=str(Path(root) / split),
        image_size=image_size,
        channels=channels,
        fit=fit,
        labels="required",
        refresh_index=refresh_index,
        name="imagenet",
    )


def folder(
    *,
    root: str,
    image_size: int | Sequence[int] | None,
    channels: int | None,
    fit: str,
    labels: str,
    refresh_index: bool = False,
    captions: str | None = None,
    name: str = "folder",
    range: Sequence[float] | None = None,
) -> ImageDataset:
    """List every image below a directory or in a zip file, in any format that Pillow reads.

    Args:
        root: Directory or .zip file. Labels come from its dataset.json (see genimg.data.classes). Without that file, the
            direct subdirectories that contain images are the classes, in alphabetical order, after skipping leading
            directories that all images share.
        image_size, channels, fit: See ``PixelFormat``; None for both the size and the channels keeps the files' own.
        labels: ``auto`` uses classes if every image has one; ``required`` rejects a folder without them; ``none``
            ignores them.
        refresh_index: Whether to ignore the cached list of files: see genimg.data.datasets.file_index.
        captions: Location of the captions: see genimg.data.datasets.caption_files.
        name: Name for messages.
        range: Values of 16- and 32-bit images that become black and white, [low, high]; for None, see ``PixelFormat``.

    Raises:
        ConfigError: If a parameter has an unknown value.
        DataError: If ``root`` is missing or contains no images, the caption file is missing, labels are required and
            there are none, or the files' own sizes differ.
    """
    if labels not in ("auto", "required", "none"):
        raise ConfigError(f"labels={labels} is unknown: choose auto, required or none")
    requested = requested_format(image_size, channels, fit, range)
    directory = Path(root).expanduser()
    if not directory.is_dir() and not is_zip(directory):
        what = "is a file, not a directory" if directory.exists() else "does not exist"
        raise DataError(f"root={root} {what}: give a directory of images, or a .zip of them")
    files = open_image_files(directory, refresh=refresh_index)
    if not files.paths:
        if other := other_content(directory):
            raise DataError(f"root={root} holds no images, but {other}")
        raise DataError(f"root={root} holds no images: expected files such as .png or .jpg in it or in its subdirectories")
    require_decoders(files.paths, root)
    pixels = pixel_format(files, requested, range)
    classes = Classes() if labels == "none" else classes_of(files)
    if labels == "required" and classes.labels is None:
        raise DataError(
            f"root={root} has no labels, but labels=required: put each class's images into its own subdirectory"
            + (f" ({stray} beside the subdirectories)" if (stray := stray_images(files.paths)) else "")
        )
    return FileDataset(name, files, pixels, classes, captions_of(files, captions))


def _remove_empty_folders(directory: Path, files: str) -> None:
    """Remove the folders below ``directory`` that a failed download left empty."""
    for folder in (directory / files, *(directory / files).parents):
        if folder == directory:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails if it holds something


def _as_folder(directory: Path, name: str, split: str) -> str:
    """Return a hint at folders of images below a directory, which another dataset reads; empty if there are none."""
    found = find_class_folders(directory, name, split)
    return "" if found is None else f". {found} holds folders of images: to use them instead, set data=folder data.root={found}"


def _torchvision(
    name: str, dataset: Callable[..., Any], root: str, split: str, pixels: PixelFormat, files: str, may_download: bool
) -> ArrayDataset:
    """Load one of torchvision's small datasets into memory; download it only if it is absent."""
    if split not in ("train", "test"):
        raise ConfigError(f"split={split} does not exist in {name}: choose train or test")
    directory = Path(root).expanduser()
    train = split == "train"
    try:
        try:
            data = dataset(directory, train=train, download=False)
        except RuntimeError as error:
            if "not found" not in str(error):  # torchvision's message for absent files
                raise ValueError(first_line(error)) from error
            if not may_download:
                fix = f"put its files into {directory / files}{_as_folder(directory, name, split)}"
                raise NeedsDownloadError(f"root={root} holds no complete copy of {name}", fix) from error
            log.info("downloading %s to %s", name, directory / files)
            data = dataset(directory, train=train, download=True)
    except NeedsDownloadError:
        raise
    except (ValueError, AssertionError, EOFError, IndexError, pickle.UnpicklingError) as error:
        raise DataError(
            f"root={root} holds damaged files of {name} ({first_line(error)}): delete those in {directory / files} to have "
            "them downloaded again, or replace them"
        ) from error
    except (RuntimeError, OSError) as error:
        _remove_empty_folders(directory, files)
        raise DataError(
            f"root={root} holds no complete copy of {name}, which could not be downloaded ({reason_of(error)}): put its files "
            f"into {directory / files}, or name the directory that holds {files} with root=DIR or GENIMG_DATA=DIR"
            f"{_as_folder(directory, name, split)}"
        ) from error
    raw = np.asarray(data.data)
    if raw.shape[1:3] == (pixels.height, pixels.width) and (3 if raw.ndim == 4 else 1) == pixels.channels:
        images = raw[:, None] if raw.ndim == 3 else raw.transpose(0, 3, 1, 2)
    else:
        progress = Progress(raw, desc=f"resizing {name}", unit="image", leave=False)
        images = np.stack([pixels.apply(Image.fromarray(image)) for image in progress])
    labels = np.asarray(data.targets, dtype=np.int64)
    return ArrayDataset(f"{name}/{split}", np.ascontiguousarray(images), labels, [str(c) for c in data.classes])


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
