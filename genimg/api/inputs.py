"""The inputs ``images=`` and ``real=`` of genimg-eval: a folder, a packed dataset, an archive, statistics or a dataset."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from genimg.api.data import build_dataset
from genimg.config.compose import compose, options_of_group
from genimg.config.instantiate import Builder
from genimg.data.archives import SPLITS
from genimg.data.datasets.builtin import ImageDataset, folder
from genimg.data.datasets.huggingface import huggingface
from genimg.data.datasets.lmdb import lmdb
from genimg.data.datasets.npz import npz
from genimg.data.datasets.prepared import PreparedDataset, is_prepared
from genimg.data.datasets.webdataset import webdataset
from genimg.data.forms import form_of, is_saved_by_huggingface
from genimg.data.image_files import is_zip
from genimg.data.loader import ImageLoader
from genimg.data.packed_files import DESCRIPTION, Description
from genimg.errors import ConfigError, UserError
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.stats_cache import SavedStatistics, holds_images, holds_statistics
from genimg.utils.words import quoted

log = logging.getLogger(__name__)

_NEED_SETTINGS = (
    "base",
    "folder",
    "given",
    "huggingface",
    "lmdb",
    "module",
    "npz",
    "paired",
    "prepared",
    "unpaired",
    "webdataset",
)

_FORMS: dict[str, tuple[Callable[..., ImageDataset], str | None]] = {
    "huggingface": (huggingface, "label_column"),
    "lmdb": (lmdb, None),
    "webdataset": (webdataset, "labels"),
}
"""Function and parameter of the labels of each form of data that is recognised by its files."""


@dataclass(frozen=True)
class Side:
    """Images or statistics of images, as named by ``images=`` or ``real=``.

    Attributes:
        source, images: The images; None for statistics.
        statistics, path: Statistics and their file; None for images, unless statistics that came with them are also used.
        evaluation: The group ``evaluation`` that the dataset provides, if any.
    """

    source: ImageDataset | None = None
    images: DatasetImages | None = None
    statistics: SavedStatistics | None = None
    path: Path | None = None
    evaluation: Mapping[str, Any] | None = None

    @property
    def compared(self) -> DatasetImages | SavedStatistics:
        """The images that generated images are compared with, or the statistics if there are none."""
        compared = self.statistics if self.images is None else self.images
        assert compared is not None
        return compared

    @property
    def published(self) -> SavedStatistics | None:
        """Statistics that came with the images."""
        return None if self.images is None else self.statistics


def title(given: str | ImageDataset) -> str:
    """Return the name of a dataset, or the given text itself, for messages and records."""
    return given.name if isinstance(given, ImageDataset) else given


@dataclass(frozen=True)
class ImageReader:
    """Reader of the images that an option names.

    Attributes:
        builder: Builder of datasets.
        device: Device of the images.
        image_size: Size in pixels of images from folders and .npz files, and from datasets if ``channels`` is given;
            None keeps the images' size.
        channels: Number of channels of images from folders and datasets; None keeps their number, or uses 3 for resized
            folders.
        range: Pixel values [low, high] of folders and .npz files that become black and white; None uses the type's range.
        data_root: Directory of datasets; None uses their default.
        accept_unrecorded: Whether to accept statistics that do not record their extractor.
    """

    builder: Builder
    device: torch.device
    image_size: int | Sequence[int] | None = None
    channels: int | None = None
    range: Sequence[float] | None = None
    data_root: str | None = None
    accept_unrecorded: bool = False

    def read(self, key: str, given: str | ImageDataset) -> Side:
        """Read the images or statistics that an option names.

        Args:
            key: Name of the option, such as images or real.
            given: A folder, the output of genimg-prepare, tar shards, an LMDB database, ``DIR`` or ``DIR:SPLIT`` of a Hugging
                Face dataset, an .npz, saved statistics, or ``DATASET`` or ``DATASET:SPLIT``.
                ``FILE.npz:NAME`` selects an array of an .npz by its name, ``FILE.npz:SPLIT`` by its split. Images that are
                passed directly are used unchanged.

        Raises:
            UserError: If it does not exist or cannot be read.
        """
        if isinstance(given, ImageDataset):
            return self._side(given)
        path = Path(given).expanduser()
        if path.suffix == ".pt":
            return Side(statistics=SavedStatistics.read(path), path=path)
        if path.suffix == ".npz":
            return self._npz(key, given, path)
        if ".npz:" in given:
            file, _, array = given.rpartition(":")
            return self._side(self._archive(key, file, array))
        if is_prepared(path):
            return self._side(PreparedDataset(path, Description.read(path / DESCRIPTION)))
        form = form_of(path)
        if form is not None:
            return self._side(self._of_form(key, given, form))
        folder_of_splits, _, split = given.rpartition(":")
        if folder_of_splits and is_saved_by_huggingface(Path(folder_of_splits).expanduser()):
            return self._side(self._of_form(key, folder_of_splits, "huggingface", split))
        if path.is_dir() or is_zip(path):
            return self._side(self._folder(key, given))
        name, _, split = given.partition(":")
        datasets = [option for option in options_of_group("data") if option not in _NEED_SETTINGS]
        if name not in datasets:
            raise ConfigError(
                f"{key}={given} is neither a directory, nor a .zip, .tar, .npz or .pt file, nor a dataset: datasets are "
                f"{', '.join(datasets)}, each with an optional split, such as mnist:test"
            )
        return self._dataset(key, name, split)

    def _npz(self, key: str, file: str, path: Path) -> Side:
        """Read the images of an .npz, its statistics, or both."""
        if not (path.is_file() and holds_statistics(path)):
            return self._side(self._archive(key, file, None))
        if not holds_images(path):
            return Side(statistics=SavedStatistics.read(path), path=path)
        side = self._side(self._archive(key, file, None))
        if key == "real" and self.accept_unrecorded:
            return replace(side, statistics=SavedStatistics.read(path), path=path)
        if key == "real":
            log.info("%s holds mu and sigma beside its images: accept_unrecorded=true uses them for the Fréchet distance, as "
                     "ADM does, instead of statistics computed from the images", path)  # fmt: skip
        return side

    def _folder(self, key: str, root: str) -> ImageDataset:
        path = Path(root).expanduser()
        channels = 3 if self.channels is None and self.image_size is not None else self.channels
        try:
            return folder(
                root=root,
                image_size=self.image_size,
                channels=channels,
                fit="crop",
                labels="auto",
                name=path.name or root,
                range=self.range,
            )
        except UserError as error:
            raise of_option(key, "root", error) from error

    def _of_form(self, key: str, root: str, form: str, split: str | None = None) -> ImageDataset:
        """Read a dataset of Hugging Face, an LMDB database or tar shards.

        Args:
            key: Option that names it.
            root: Its path.
            form: See ``form_of``.
            split: Split of a dataset of Hugging Face; None chooses the default one.
        """
        channels = 3 if self.channels is None and self.image_size is not None else self.channels
        settings: dict[str, Any] = {"image_size": self.image_size, "channels": channels, "fit": "crop", "range": self.range}
        settings["name"] = Path(root).expanduser().name or root
        read, labels = _FORMS[form]
        if split is not None:
            settings["split"] = split
        try:
            return read(root=root, **settings)
        except UserError as error:
            if labels is None or error.key != labels:
                raise of_option(key, "root", error) from error
            log.warning("%s; its labels are ignored here", error.problem)  # few evaluations read labels
            return read(root=root, **settings, **{labels: "none"})

    def _archive(self, key: str, file: str, array: str | None) -> ImageDataset:
        """Read the images of an .npz.

        Args:
            key: Option that names the file.
            file: Path of the .npz.
            array: Name of one of its arrays, or a split; None selects by names and shapes.
        """
        is_split = array in SPLITS
        read = functools.partial(
            npz,
            path=file,
            image_size=self.image_size,
            channels=None,
            fit="crop",
            split=array if is_split else None,
            images=None if is_split else array,
            range=self.range,
        )
        try:
            return read(labels="auto")
        except UserError as error:
            if error.key == "labels":  # few evaluations read labels, and no option selects them
                log.warning("%s; its labels are ignored here", error.problem)
                return read(labels="none")
            if error.key in ("images", "split"):  # set by the last part of this option's value
                problem = error.problem.removeprefix(f"{error.key}={array or 'null'}")
                given = f"{file}:{array}" if array else file
                raise type(error)(f"{key}={given}{problem}", f"name an array, as in {key}={file}:NAME") from error
            raise of_option(key, "path", error) from error

    def _dataset(self, key: str, name: str, split: str) -> Side:
        overrides = [f"data={name}"]
        if split:
            overrides.append(f"data.split={quoted(split)}")
        if self.channels is not None:
            size = list(self.image_size) if isinstance(self.image_size, Sequence) else self.image_size
            overrides += [f"data.image_size={size}", f"data.channels={self.channels}"]
        if self.data_root is not None:
            overrides.append(f"data.root={quoted(self.data_root)}")
        groups = compose_evaluation(*overrides)
        if groups["data"].get("root") == "???":
            raise ConfigError(f"{name} needs data_root=DIR, the directory of its images")
        try:
            source = build_dataset(groups, self.builder.choosing("data"))  # from the command line, not from a checkpoint
        except UserError as error:
            if error.key == "data.split":  # set by the last part of this option's value
                raise type(error)(error.problem.replace("data.split=", f"{key}={name}:", 1), error.fix) from error
            raise of_option("data_root", "data.root", error) from error
        return self._side(source, groups["evaluation"])

    def _side(self, source: ImageDataset, evaluation: Mapping[str, Any] | None = None) -> Side:
        data = ImageLoader(
            source, storage="auto", num_workers="auto", horizontal_flip=False, max_corrupt=None, device=self.device
        )
        return Side(source=source, images=DatasetImages(data), evaluation=evaluation)


def of_option(key: str, parameter: str, error: UserError) -> UserError:
    """Rewrite an error about a dataset's parameter to name the option ``key`` that sets it; return other errors unchanged."""
    if error.key != parameter:
        return error
    return type(error)(error.problem.replace(f"{parameter}=", f"{key}=", 1), error.fix)


def compose_evaluation(*overrides: str) -> dict[str, Any]:
    """Compose the groups ``data`` and ``evaluation`` as genimg-train does."""
    config = compose(overrides).config
    return {key: OmegaConf.to_container(config[key], resolve=True) for key in ("data", "evaluation")}
