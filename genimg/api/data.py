"""From a config to images: the dataset, what is made of its images, and where they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genimg.config.instantiate import Builder, mounted
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.loader import ImageLoader, UnpairedImageLoader
from genimg.data.split import without_validation
from genimg.data.tasks.base import Task
from genimg.data.transforms import SampleAugment
from genimg.errors import ConfigError, UserError

GIVEN = "genimg.data.datasets.external.as_dataset"
_OF_LOADER = ("storage", "num_workers", "horizontal_flip", "max_corrupt")


def build_dataset(config: Mapping[str, Any], builder: Builder, given: ImageDataset | None = None) -> ImageDataset:
    """Build the images to train on, with those that are held out of them as ``validation``.

    Args:
        config: Resolved.
        builder: Of its nodes.
        given: Images to take instead of the config's.

    Raises:
        ConfigError, DataError: If there are no such images, or ``data.validation`` names none of them.
    """
    data, validation = config["data"], config["data"].get("validation", 0)
    if given is None and data["_target_"] == GIVEN:
        raise ConfigError(
            "data=given takes images from Python: call genimg.train(overrides, dataset=...), or choose other data", key="data"
        )
    another = isinstance(validation, str)
    other = other_split(data, validation, key="data.validation", instead="give a share such as 0.1") if another else {}
    dataset: ImageDataset = builder.build(_without_loader(data), "data") if given is None else given
    if not another:
        with mounted("data", without_validation):
            return without_validation(dataset, validation)
    try:
        dataset.validation = builder.build(_without_loader(other), "data")
    except UserError as error:
        raise ConfigError(f"data.validation={validation}: {error}") from error
    if dataset.validation.fingerprint == dataset.fingerprint:
        raise ConfigError(f"data.validation={validation} are the images that are trained on: change data.images or data.split")
    return dataset


def other_split(data: Mapping[str, Any], split: str, *, key: str, instead: str) -> dict[str, Any]:
    """Return the config of another split of the same data, without holding anything out.

    Args:
        data: Config of the training data.
        split: Name of the other split.
        key: Key that named it, for messages.
        instead: Another way to name images, for messages.

    Raises:
        ConfigError: If the dataset has no splits, or this is the one to train on.
    """
    if "split" not in data:
        raise ConfigError(f"{key}={split}: the data has no splits: {instead}")
    if split == (data["split"] or "train"):  # an archive that names no split is read for its training arrays
        raise ConfigError(f"{key}={split} is the split that is trained on: name another one, or {instead}")
    arrays: dict[str, Any] = {}
    if "images" in data:  # names of an archive's arrays are those of one split
        arrays = {"images": None, "labels": "none" if data["labels"] == "none" else "auto"}
    return {**data, **arrays, "split": split, "validation": 0}


def build_task(config: Mapping[str, Any], dataset: ImageDataset, builder: Builder) -> Task | None:
    """Build what makes inputs and targets of images: the ``task`` group, or the dataset's own where it has pairs.

    Raises:
        ConfigError: If both do, or the images do not fit the task.
    """
    if not config.get("task"):
        return dataset.task
    if dataset.task is not None:
        raise ConfigError(f"data {dataset.name} has sources and targets of its own, and task makes others: set task=none")
    task: Task = builder.build(config["task"], "task")
    with mounted("task", task):
        task.channels(dataset.shape)
    return task


def build_loader(
    config: Mapping[str, Any],
    dataset: ImageDataset,
    device: torch.device,
    *,
    keys: Sequence[str] = ("image",),
    augment: SampleAugment | None = None,
    task: Task | None = None,
) -> ImageLoader:
    """Build the place where a dataset's images are stored, which makes batches of them.

    Args:
        config: Resolved.
        dataset: The images.
        device: Where batches go.
        keys: Of the batches; those of the task if there is one.
        augment: Augmentation of training images.
        task: Makes inputs and targets of the images.

    Raises:
        ConfigError: If the images do not fit the settings.
    """
    settings = {key: config["data"][key] for key in _OF_LOADER}
    with mounted("data_augment", SampleAugment), mounted("data", ImageLoader):
        if isinstance(dataset, UnpairedDataset):
            return UnpairedImageLoader(dataset, device=device, augment=augment, **settings)
        return ImageLoader(dataset, device=device, keys=("image",) if task else keys, augment=augment, task=task, **settings)


def _without_loader(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in (*_OF_LOADER, "validation")}
