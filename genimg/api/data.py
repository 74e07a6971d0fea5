"""Build the dataset, the task and the image loader from a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from genimg.config.instantiate import Builder, mounted
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.external import as_dataset, dataset_of
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.loader import NOISE_KEY, ImageLoader, UnpairedImageLoader
from genimg.data.split import at_most, of_classes, without_validation
from genimg.data.tasks.base import Task
from genimg.data.transforms import SampleAugment
from genimg.errors import ConfigError, DataError, UserError
from genimg.inference.labels import find_label

GIVEN = "genimg.data.datasets.external.as_dataset"
_OF_LOADER = ("storage", "num_workers", "horizontal_flip", "max_corrupt")


def build_dataset(config: Mapping[str, Any], builder: Builder, given: ImageDataset | None = None) -> ImageDataset:
    """Build the training dataset, with held-out images as its ``validation``.

    ``data.classes`` selects images first. Then images are held out, before ``data.max_images`` selects a part of the others, so
    the held-out images do not depend on it.

    Args:
        config: Resolved config.
        builder: Builder of its nodes.
        given: Dataset to use instead of the config's.

    Raises:
        ConfigError, DataError: If there are no such images or classes, ``data.validation`` selects none of them, or
            ``data.max_images`` selects all.
    """
    data, validation = config["data"], config["data"].get("validation", 0)
    if given is None and data["_target_"] == GIVEN:
        raise ConfigError(
            "data=given takes images from Python: call genimg.train(overrides, dataset=...), or choose other data", key="data"
        )
    another = isinstance(validation, str)
    other = other_split(data, validation, key="data.validation", instead="give a share such as 0.1") if another else {}
    dataset: ImageDataset = builder.build(_without_loader(data), "data") if given is None else given
    if given is None and not builder.labelled:
        dataset.labels, dataset.class_names = None, ()
    whole, dataset = dataset, _of_chosen_classes(dataset, data.get("classes"))
    if another:
        try:
            held_out = _with_labels_of(whole, builder.build(_without_loader(other), "data"))
            dataset.validation = _of_chosen_classes(held_out, data.get("classes"))
        except UserError as error:
            raise ConfigError(f"data.validation={validation}: {error}") from error
        if dataset.validation.fingerprint == dataset.fingerprint:
            raise ConfigError(f"data.validation={validation} selects the training images: change data.images or data.split")
    else:
        with mounted("data", without_validation):
            dataset = without_validation(dataset, validation)
    with mounted("data", at_most):
        return at_most(dataset, data.get("max_images"))


def own_dataset(dataset: object, config: Mapping[str, Any]) -> ImageDataset:
    """Return images given in Python as the dataset of a training with ``data=given``.

    Args:
        dataset: Images in the forms of ``genimg.as_dataset``.
        config: Config of the training, whose ``data`` gives their size.
    """
    data = config["data"]
    with mounted("data", as_dataset):
        return dataset_of(dataset, "dataset", image_size=data["image_size"], channels=data["channels"], fit=data["fit"])


def root_key(data_root: str, data: Mapping[str, Any]) -> str:
    """Return the key, in the group ``data``, of the directory or file that a checkpoint's data is read from.

    Args:
        data_root: New value of the key, for the message.
        data: The checkpoint's group ``data``.

    Raises:
        ConfigError: If the data is not read from one directory or file.
    """
    if data.get("a") is not None:
        raise ConfigError(
            f"data_root={data_root} has no effect, because this checkpoint's data are two folders, data.a and data.b: remove it"
        )
    key = next((key for key in ("root", "path") if key in data), None)
    if key is None:
        raise ConfigError(
            f"data_root={data_root} has no effect, because this checkpoint's data is not read from a directory: remove it"
        )
    return key


def other_split(data: Mapping[str, Any], split: str, *, key: str, instead: str) -> dict[str, Any]:
    """Return the config of another split of the same data, with all of its images and nothing held out.

    Args:
        data: Config of the training data.
        split: Name of the other split.
        key: Key that named the split, for messages.
        instead: Alternative way to name images, for messages.

    Raises:
        ConfigError: If the dataset has no splits, or this is the training split.
    """
    if "split" not in data:
        raise ConfigError(f"{key}={split}: the data has no splits: {instead}")
    if split == (data["split"] or "train"):  # without a split, an archive's training arrays are read
        raise ConfigError(f"{key}={split} is the training split: name another one, or {instead}")
    arrays: dict[str, Any] = {}
    if "images" in data:  # an archive's array names belong to one split
        arrays = {"images": None, "labels": "none" if data["labels"] == "none" else "auto"}
    return {**data, **arrays, "split": split, "validation": 0, "max_images": None}


def build_task(config: Mapping[str, Any], dataset: ImageDataset, builder: Builder) -> Task | None:
    """Build the task that derives inputs and targets from images: the ``task`` group, or the dataset's own for paired data.

    Raises:
        ConfigError: If both define a task, or the images do not fit it.
    """
    if not config.get("task"):
        return dataset.task
    if dataset.task is not None:
        raise ConfigError(f"data {dataset.name} already has sources and targets, so no task can be added: set task=none")
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
    """Build the loader that stores a dataset's images and makes batches of them.

    Args:
        config: Resolved config.
        dataset: The images.
        device: Device of the batches.
        keys: Keys of the batches; a task replaces all but ``noise_key`` with its own.
        augment: Augmentation of training images.
        task: Task that derives inputs and targets from the images.

    Raises:
        ConfigError: If the images do not fit the settings.
    """
    settings = {key: config["data"][key] for key in _OF_LOADER}
    with mounted("augment", SampleAugment), mounted("data", ImageLoader):
        if isinstance(dataset, UnpairedDataset):
            return UnpairedImageLoader(dataset, device=device, augment=augment, **settings)
        if task is not None:
            keys = ("image", NOISE_KEY) if NOISE_KEY in keys else ("image",)
        return ImageLoader(dataset, device=device, keys=keys, augment=augment, task=task, **settings)


def _with_labels_of(training: ImageDataset, held_out: ImageDataset) -> ImageDataset:
    """Return held-out images whose labels number the classes of the training images.

    Raises:
        DataError: If there are other classes.
    """
    if training.labels is None or held_out.labels is None:
        held_out.labels, held_out.class_names = None, ()
        return held_out
    if held_out.class_names == tuple(map(str, range(len(held_out.class_names)))):
        return held_out  # the names are the labels
    label_of = {name: label for label, name in enumerate(training.class_names)}
    if unknown := [name for name in held_out.class_names if name not in label_of]:
        raise DataError(f"its images have the class {unknown[0]}, but the training images do not", "use another split")
    numbers = np.array([label_of[name] for name in held_out.class_names], dtype=np.int64)
    held_out.labels, held_out.class_names = numbers[held_out.labels], training.class_names
    return held_out


def _of_chosen_classes(dataset: ImageDataset, classes: Sequence[object] | None) -> ImageDataset:
    """Return the images of the classes that ``data.classes`` names, or all for None.

    Raises:
        ConfigError: If the dataset has no labels, or no such class, or a class is named twice.
    """
    if classes is None:
        return dataset
    key = "data.classes"
    if dataset.labels is None:
        fix = "remove it, or choose data with labels, such as a subdirectory for each class"
        raise ConfigError(f"{key} has no effect, because {dataset.name} has no labels", fix, key=key)
    if not classes:
        raise ConfigError(f"{key}=[] selects no images", f"name classes, such as {key}=[index:0]", key=key)
    names = dataset.class_names
    try:
        labels = [find_label(value, len(names), names, key, owner="the data") for value in classes]
    except ConfigError as error:
        raise ConfigError(error.problem, error.fix, key=key) from error
    repeated = next((label for number, label in enumerate(labels) if label in labels[:number]), None)
    if repeated is not None:
        raise ConfigError(f"{key} names the class {names[repeated]} twice", "remove one of them", key=key)
    if not np.isin(dataset.labels, labels).any():
        raise ConfigError(f"{key}={list(classes)} selects no images of {dataset.name}", "name other classes", key=key)
    return of_classes(dataset, labels)


def _without_loader(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in (*_OF_LOADER, "classes", "validation", "max_images")}
