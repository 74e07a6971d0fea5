"""What ``images=`` and ``real=`` of genimg-eval may name: a folder, packed or zipped too, an .npz, statistics, a dataset."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from genimg.api.data import build_dataset
from genimg.config import instantiate
from genimg.config.compose import compose, options_of_group
from genimg.config.instantiate import Config
from genimg.data.archives import SPLITS
from genimg.data.datasets.builtin import Source, folder
from genimg.data.datasets.npz import npz
from genimg.data.datasets.prepared import DESCRIPTION, Description, PreparedSource, is_prepared
from genimg.data.image_files import is_zip
from genimg.data.loader import Data
from genimg.errors import ConfigError, UserError
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.stats_cache import SavedStatistics, holds_images, holds_statistics
from genimg.utils.words import quoted

log = logging.getLogger(__name__)

_NEED_SETTINGS = (
    "base",
    "folder",
    "given",
    "module",
    "npz",
    "paired",
    "prepared",
    "unpaired",
)


@dataclass(frozen=True)
class Side:
    """What ``images=`` or ``real=`` names: images, or statistics of images.

    Attributes:
        source, images: of images; None for statistics.
        statistics, path: Statistics and their file; None for images, unless statistics that came with these serve beside them.
        evaluation: the config that a dataset brings along, if it does.
    """

    source: Source | None = None
    images: DatasetImages | None = None
    statistics: SavedStatistics | None = None
    path: Path | None = None
    evaluation: Config | None = None


def resolve(key: str, options: Config, builder: instantiate.Builder, device: torch.device) -> Side:
    """What ``key`` (images or real) names: a folder, what genimg-prepare packed, an .npz, saved statistics, or ``DATASET`` or
    ``DATASET:SPLIT``. Of an .npz, ``FILE.npz:NAME`` takes the array of this name, and ``FILE.npz:SPLIT`` that of the split.

    Where the options have ``channels``, folders and datasets come with these and in their ``image_size``.
    """
    if isinstance(options[key], Source):
        return _side(options[key], device)
    text = str(options[key])
    path = Path(text).expanduser()
    if path.suffix == ".pt":
        return Side(statistics=SavedStatistics.read(path), path=path)
    if path.suffix == ".npz":
        if not (path.is_file() and holds_statistics(path)):
            return _side(_archive(key, text, None, options), device)
        if not holds_images(path):
            return Side(statistics=SavedStatistics.read(path), path=path)
        side = _side(_archive(key, text, None, options), device)
        if key == "real" and options["accept_unrecorded"]:
            return replace(side, statistics=SavedStatistics.read(path), path=path)
        if key == "real":
            log.info("%s holds mu and sigma beside its images: accept_unrecorded=true takes these for the Fréchet distance, as "
                     "ADM does, instead of those of the images", path)  # fmt: skip
        return side
    if ".npz:" in text:
        file, _, array = text.rpartition(":")
        return _side(_archive(key, file, array, options), device)
    if is_prepared(path):
        return _side(PreparedSource(path, Description.read(path / DESCRIPTION)), device)
    if path.is_dir() or is_zip(path):
        channels = options.get("channels", None if options["image_size"] is None else 3)
        try:
            source = folder(
                root=text,
                image_size=options["image_size"],
                channels=channels,
                fit="crop",
                labels="auto",
                name=path.name or text,
                range=options["range"],
            )
        except UserError as error:
            raise _of_option(key, "root", error) from error
        return _side(source, device)
    name, _, split = text.partition(":")
    known = options_of_group("data")
    datasets = [option for option in known if option not in _NEED_SETTINGS]
    if name not in datasets:
        raise ConfigError(
            f"{key}={text} is neither a directory, nor a .zip, .npz or .pt file, nor a dataset: datasets are "
            f"{', '.join(datasets)}, each with an optional split, such as mnist:test"
        )
    return _dataset(key, name, split, options, builder, device)


def _archive(key: str, file: str, array: str | None, options: Config) -> Source:
    """Return the images of an .npz.

    Args:
        key: Option that names it.
        file: Path of the .npz.
        array: Name of one of its arrays, or a split; None decides by names and shapes.
        options: With ``image_size`` and ``range``.
    """
    is_split = array in SPLITS
    read = functools.partial(
        npz,
        path=file,
        image_size=options["image_size"],
        channels=None,
        fit="crop",
        split=array if is_split else None,
        images=None if is_split else array,
        range=options["range"],
    )
    try:
        return read(labels="auto")
    except UserError as error:
        if error.key == "labels":  # few evaluations read labels, and there is no option to choose them by
            log.warning("%s; its labels are ignored here", error.problem)
            return read(labels="none")
        if error.key in ("images", "split"):  # the end of this option's value
            problem = error.problem.removeprefix(f"{error.key}={array or 'null'}")
            given = f"{file}:{array}" if array else file
            raise type(error)(f"{key}={given}{problem}", f"name an array, as in {key}={file}:NAME") from error
        raise _of_option(key, "path", error) from error


def _of_option(key: str, parameter: str, error: UserError) -> UserError:
    """Return an error about a dataset's parameter as one about the option ``key`` that gives its value; others unchanged."""
    if error.key != parameter:
        return error
    return type(error)(error.problem.replace(f"{parameter}=", f"{key}=", 1), error.fix)


def _dataset(key: str, name: str, split: str, options: Config, builder: instantiate.Builder, device: torch.device) -> Side:
    overrides = [f"data={name}"]
    if split:
        overrides.append(f"data.split={quoted(split)}")
    if "channels" in options:
        overrides += [f"data.image_size={options['image_size']}", f"data.channels={options['channels']}"]
    if options["data_root"] is not None:
        overrides.append(f"data.root={quoted(str(options['data_root']))}")
    parts = compose_evaluation(*overrides)
    if parts["data"].get("root") == "???":
        raise ConfigError(f"{name} needs data_root=DIR: where its images lie")
    try:
        source = build_dataset(parts, builder)
    except UserError as error:
        if error.key == "data.split":  # the end of this option's value
            raise type(error)(error.problem.replace("data.split=", f"{key}={name}:", 1), error.fix) from error
        raise _of_option("data_root", "data.root", error) from error
    return _side(source, device, parts["evaluation"])


def compose_evaluation(*overrides: str) -> Config:
    """The ``data`` and ``evaluation`` that genimg-train would compose."""
    config = compose(overrides).config
    return {key: OmegaConf.to_container(config[key], resolve=True) for key in ("data", "evaluation")}


def _side(source: Source, device: torch.device, evaluation: Config | None = None) -> Side:
    data = Data(source, placement="auto", num_workers="auto", horizontal_flip=False, max_corrupt=0, device=device)
    return Side(source=source, images=DatasetImages(data), evaluation=evaluation)
