"""Train a classifier on labelled images, and write it with the evaluation config that uses its features."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimg.api.data import build_dataset, build_loader
from genimg.config import instantiate
from genimg.config.schema.commands import Features
from genimg.data.subsets import subset_of
from genimg.errors import ConfigError, DataError
from genimg.training.classifier import LabelledImages, train_classifier
from genimg.training.device import choose_device, choose_precision
from genimg.utils.files import atomically, sha256_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_YAML = """\
# The features of a small classifier of {classes} classes of {source}.
# Made by genimg-features: accuracy {accuracy:.4f} on {num_test} held-out images.
defaults:
  - classifier_base
  - _self_
extractor:
  _target_: genimg.evaluation.extractors.classifier.Classifier
  classifier: {path}
  sha256: {sha256}
"""


def train_feature_classifier(options: Features, groups: Mapping[str, Any]) -> Path:
    """Train a classifier, measure its accuracy, and write ``NAME.pt`` and ``evaluation/NAME.yaml``, as genimg-features does.

    Args:
        options: Options of genimg-features.
        groups: Resolved groups of the config by name: ``data``.

    Returns:
        Path of the classifier.

    Raises:
        ConfigError: If an option is out of range, or the images do not have the shape of the classifier's input.
        DataError: If the images have no labels, or only one class.
        OSError: If the output cannot be written.
    """
    _check(options)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    precision.apply_globally()
    train, held_out = _images(groups, options, device)
    if len(train.indices) < options.batch_size:
        raise ConfigError(f"batch_size={options.batch_size} is larger than the {len(train.indices)} training images")
    output = Path(options.output)
    (output / "evaluation").mkdir(parents=True, exist_ok=True)  # before training, so a typo does not waste it
    log.info("%d training images of %d classes, %d held out", len(train.indices), len(train.data.source.class_names),
             len(held_out.indices))  # fmt: skip
    start = time.monotonic()
    record = train_classifier(
        train,
        held_out,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=float(options.learning_rate),
        weight_decay=float(options.weight_decay),
        seed=options.seed,
        precision=precision,
    )
    path, sha256 = _write(record, output, options.name)
    log.info("accuracy %.4f on %d held-out images, after %.0f s", record["test_accuracy"], record["num_test"],
             time.monotonic() - start)  # fmt: skip
    if record["test_accuracy"] < 2.0 / len(record["class_names"]):
        log.warning(
            "this is hardly better than chance, so metrics computed with it would be meaningless: use more epochs, more "
            "images, or classes that are easier to tell apart"
        )
    log.info("classifier: %s (%d bytes, sha256 %s)", relative(path), path.stat().st_size, sha256)
    log.info("to use it:  genimg-train --config-dir %s evaluation=%s ...", relative(output), options.name)
    return path


def _check(options: Features) -> None:
    """Check the options.

    Raises:
        ConfigError: If the name is invalid, or a number is out of range.
    """
    if not re.fullmatch(r"[A-Za-z0-9]\w*", options.name):
        raise ConfigError(f"name={options.name} must be letters, digits and _: it becomes part of metric names")
    for key, least in (("epochs", 1), ("batch_size", 2), ("held_out", 2), ("seed", 0)):
        if getattr(options, key) < least:
            raise ConfigError(f"{key}={getattr(options, key)} must be a whole number, {least} or more")
    for key in ("learning_rate", "weight_decay"):
        if not 0 <= getattr(options, key) < math.inf:
            raise ConfigError(f"{key}={getattr(options, key)} must be a number, 0 or more")


def _write(record: Mapping[str, Any], output: Path, name: str) -> tuple[Path, str]:
    """Write ``NAME.pt`` and ``evaluation/NAME.yaml``; return the path and SHA-256 of the first."""
    path = output / f"{name}.pt"
    with atomically(path) as temporary, open(temporary, "wb") as file:
        torch.save(record, file)
    sha256 = sha256_of(path)
    config = output / "evaluation" / f"{name}.yaml"
    # JSON is YAML; the backslash keeps OmegaConf from reading "${" in the path as an interpolation.
    quoted_path = json.dumps(str(path.resolve()).replace("${", "\\${"), ensure_ascii=False)
    text = _YAML.format(
        classes=len(record["class_names"]), source=record["trained_on"], accuracy=record["test_accuracy"],
        num_test=record["num_test"], path=quoted_path, sha256=sha256,
    )  # fmt: skip
    with atomically(config) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path, sha256


def _images(groups: Mapping[str, Any], options: Features, device: torch.device) -> tuple[LabelledImages, LabelledImages]:
    """Return the images to train on, and those that measure accuracy: the test split, or one of every ``held_out`` images.

    Raises:
        DataError: If the images have no labels, or only one class.
        ConfigError: If they are not square, or do not have 1 or 3 channels.
    """
    builder = instantiate.Builder(allowed=(*instantiate.ALLOWED, *options.allow))
    config = groups["data"]
    source = build_dataset(groups, builder)
    if source.labels is None or len(source.class_names) < 2:
        raise DataError(
            f"data={source.name} has no labels: put each class's images into its own subdirectory, two classes or more"
        )
    channels, height, width = source.shape
    if height != width or channels not in (1, 3):
        raise ConfigError(
            f"data={source.name} has images of {channels} channels and {height}x{width} pixels, but the classifier takes "
            "square images with 1 or 3 channels: set data.image_size to one number and data.channels to 1 or 3"
        )
    data = build_loader(groups, source, device)
    data.load()
    everything = np.arange(len(source), dtype=np.int64)
    if config.get("split") == "train":
        test = "val" if config["_target_"].endswith(".imagenet") else "test"
        other = build_dataset({"data": {**config, "split": test, "max_images": None}}, builder)
        test_data = build_loader(groups, other, device)
        test_data.load()
        return LabelledImages(data, everything), LabelledImages(test_data, np.arange(len(other), dtype=np.int64))
    chosen = np.isin(everything, subset_of(source, -(-len(source) // options.held_out)))
    return LabelledImages(data, everything[~chosen]), LabelledImages(data, everything[chosen])
