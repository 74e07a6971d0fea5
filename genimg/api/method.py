"""Build a model for its data, and check that they are compatible."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from genimg.config.compatibility import check_kind, measures_held_out, refuse_unread_conditioning
from genimg.config.compose import Config
from genimg.config.instantiate import Builder, build_model, mounted
from genimg.config.model_size import require_fitting, shapes_of
from genimg.data.captions import caption_length, encode
from genimg.data.corrupt import read_many_valid
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.facts import DataFacts
from genimg.data.loader import NOISE_KEY, available_keys
from genimg.data.packed_files import NOISE
from genimg.data.subsets import random_order
from genimg.data.tasks.base import Task
from genimg.errors import ConfigError, first_line, innermost_module, is_memory_full
from genimg.methods.base import Method
from genimg.methods.capabilities import (
    Denoises,
    Generates,
    HasLikelihood,
    MeasuresData,
    Reconstructs,
    TakesConditions,
    Translates,
)
from genimg.methods.sampling_options import with_one_step
from genimg.types import Batch
from genimg.utils.images import to_float

Initialise = Callable[[Method, Sequence[str], Callable[[int], Mapping[str, torch.Size]]], None]
"""See ``build_method``."""

_NUM_MEASURED, _NUM_VALUES = 2048, 2**24  # largest number of images, and of their values, for a method that measures the data
_HOW_TO_HAVE = {
    "caption": "; captions of a folder are in its metadata.jsonl, or in a .txt beside every image (docs/data.md)",
    "label": "; the classes of a folder are its subdirectories",
}
_NOISE_IS_MISSING = (
    "the model needs the noise from which each image was generated, but data {} has none: pack pairs of a trained flow with "
    "genimg-prepare pairs=RUN num_images=50000 output=PAIRS, and set data=prepared data.root=PAIRS"
)


def build_method(
    config: Config,
    dataset: ImageDataset,
    task: Task | None,
    facts: DataFacts,
    builder: Builder,
    method_class: type[Method],
    weights: Mapping[str, Tensor] | None = None,
    trained: Mapping[str, Tensor] = MappingProxyType({}),
    initialise: Initialise | None = None,
    from_the_start: bool = False,
) -> Method:
    """Build the model, and check it against the data.

    Args:
        config: The composed config.
        dataset: The images to train on.
        task: Task that derives sources and targets from the images, if any.
        facts: Facts about the data and the task.
        builder: Builder of the config's nodes.
        method_class: The model's class, as returned by ``check_pairing``.
        weights: Weights of the checkpoint that the run continues; they are checked before the model is allocated.
        trained: Weights of the model's frozen networks, by name.
        initialise: Function that replaces the initial weights, if any, given the method, the class names and a function that
            returns the shapes of its tensors for another number of classes. Buffers that depend on the data are set afterwards.
        from_the_start: Whether the run begins although ``weights`` are given, which are then only checked.

    Raises:
        CheckpointError: If the weights do not fit the model.
        ConfigError: If the data lacks what the model needs, or shapes do not match.
    """
    check_kind(method_class, dataset, task)
    _require_labels(config, dataset, facts, builder)
    build = partial(build_model, config, facts, builder, task)
    if weights is not None:
        require_fitting(build, weights, builder)
    method: Method = build()
    refuse_unread_conditioning(config, method)
    reconstructs = isinstance(method, Reconstructs) and bool((config.get("evaluation") or {}).get("reconstructions"))
    denoises = isinstance(method, Denoises) and bool((config.get("evaluation") or {}).get("denoised"))
    measured = reconstructs or denoises or measures_held_out(config, builder)
    is_autoencoder_alone = isinstance(method, Reconstructs) and not isinstance(method, Generates)
    held_out = measured or is_autoencoder_alone or isinstance(method, Translates | HasLikelihood)
    takes_some = not isinstance(config["data"].get("validation"), str)  # another split takes no images from training
    if dataset.validation is not None and takes_some and not held_out:
        raise ConfigError(
            f"data.validation={config['data']['validation']} has no effect on this model, a {type(method).__name__}, which is "
            "measured against all images: set data.validation=0, or choose a metric of held-out images such as memorisation"
        )
    available = {*(task.keys if task else available_keys(dataset)), NOISE_KEY}
    missing = [key for key in method.batch_keys if key not in available]
    if NOISE in missing:
        raise ConfigError(_NOISE_IS_MISSING.format(dataset.name), key="data")
    if missing:
        known = ", ".join(sorted(available - {NOISE_KEY}))
        raise ConfigError(
            f"the model needs {', '.join(missing)}, but data {dataset.name} has only {known}: choose "
            "conditioning=none, or other data" + _HOW_TO_HAVE.get(missing[0], ""),
            key="conditioning",
        )
    if isinstance(method, TakesConditions) and method.num_classes not in (0, facts.num_classes):
        raise ConfigError(
            f"the model is built for {method.num_classes} classes, but data {dataset.name} has {facts.num_classes}: remove "
            "num_classes from the model and the conditioning",
            key="conditioning.encoder.num_classes",
        )
    _check_shapes(method, dataset, task)
    if initialise is not None:

        def shapes(num_classes: int) -> Mapping[str, torch.Size]:
            return shapes_of(partial(build_model, config, replace(facts, num_classes=num_classes), builder, task), builder)

        names = dataset.class_names if isinstance(method, TakesConditions) and method.num_classes else ()
        initialise(method, names, shapes)
    if trained:  # last, because the weights above may include other ones of the frozen networks
        method.load_state_dict({**method.state_dict(), **trained})
    if isinstance(method, TakesConditions):
        method.set_condition_bank(_conditions(dataset, method, method.condition_bank_size))
    if isinstance(method, MeasuresData) and method.measures_data and (weights is None or from_the_start):
        chosen = random_order(len(dataset), seed=0)[: max(64, min(_NUM_MEASURED, _NUM_VALUES // math.prod(dataset.shape)))]
        images, _, _ = read_many_valid(dataset, chosen, allowed=len(chosen))  # the loader reports corrupt ones
        method.set_data_statistics(to_float(torch.from_numpy(images)))
    return method


def _require_labels(config: Config, dataset: ImageDataset, facts: DataFacts, builder: Builder) -> None:
    """Refuse a conditioning whose number of classes follows the data, if the data has none.

    Raises:
        ConfigError: If there is such a conditioning.
    """
    encoder = (config.get("conditioning") or {}).get("encoder")
    if facts.num_classes or not isinstance(encoder, Mapping) or "_target_" not in encoder or "num_classes" in encoder:
        return
    if "num_classes" not in inspect.signature(builder.locate(encoder["_target_"], "conditioning.encoder")).parameters:
        return
    data = config["data"]
    given = next((f", data.{key}={data[key]}," for key in ("root", "path", "hub", "a") if data.get(key)), "")
    ignored = next((f"data.{key}=none" for key in ("labels", "label_column") if data.get(key) == "none"), None)
    fix = f"remove {ignored}" if ignored else "choose data with labels, such as a folder with a subdirectory for each class"
    raise ConfigError(
        f"conditioning on labels needs data with labels, but data {dataset.name}{given} has none",
        f"{fix}, or choose conditioning=none",
        key="conditioning",
    )


def _conditions(dataset: ImageDataset, method: Method, num_captions: int) -> Batch:
    """Return all labels, or the captions of random images, as a batch, if the method reads them."""
    batch: Batch = {}
    if "label" in method.batch_keys and dataset.labels is not None:
        batch["label"] = torch.from_numpy(dataset.labels)
    if "caption" in method.batch_keys:
        # The captions of a small dataset are repeated; their counts differ by at most one.
        texts = dataset.captions(np.resize(random_order(len(dataset), seed=0), num_captions))
        batch["caption"] = encode(texts, caption_length(texts))
    return batch


_SHAPES = re.compile(
    r"mat1 and mat2|[Ss]izes? of tensors?|size mismatch|must match|[Kk]ernel size|[Oo]utput size|Padding size|channels|"
    r"invalid for input of size|invalid for size|Expected more than 1|Expected \d|expected (input|\d)|normalized_shape|shape '"
)
"""PyTorch's messages about mismatched shapes, and instance norm's about a single pixel."""


def _check_shapes(method: Method, dataset: ImageDataset, task: Task | None) -> None:
    channels, height, width = dataset.shape
    divisor = method.size_divisor if isinstance(method, Translates) else 1
    if height % divisor or width % divisor:
        raise ConfigError(
            f"the model takes images whose sides are multiples of {divisor} pixels, not {height}x{width}: change "
            "data.image_size"
        )
    made: tuple[int, ...] = dataset.shape
    image = to_float(torch.zeros(2, *dataset.shape, dtype=torch.uint8))
    try:
        with torch.no_grad(), mounted("model", method):
            method.eval()
            method.check({"image": image} if task is None else task(image, np.arange(2, dtype=np.int64), 0))
            if isinstance(method, Generates):
                options = with_one_step(method.sampling_options)
                made = tuple(method.sample(method.draw(range(2), 0), options).shape[1:])
    except (RuntimeError, ValueError) as error:
        if is_memory_full(error):
            raise
        is_of_torch = type(error) is RuntimeError and innermost_module(error).startswith("torch.")
        if not (is_of_torch or _SHAPES.search(str(error))) or type(error) not in (RuntimeError, ValueError):
            raise
        fix = (
            "give larger images with data.image_size, or a discriminator with fewer strided convolutions "
            "(model.discriminator.num_strided)" if task else
            "remove channels and image_size below model, so that they follow the data"
        )  # fmt: skip
        raise ConfigError(
            f"the model's networks do not fit the data's images of {channels} channels and {height}x{width} pixels "
            f"({first_line(error)}): {fix}"
        ) from error
    finally:
        method.train()
    if made != dataset.shape:
        raise ConfigError(
            f"the model makes images of {made[0]} channels and {made[1]}x{made[2]} pixels, but data {dataset.name} has "
            f"{channels} channels and {height}x{width} pixels: remove channels and image_size below model, so that "
            "they follow the data"
        )
