"""genimg-prepare: pack a dataset into a few large files of decoded, resized images."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from genimg.api.data import build_dataset
from genimg.api.trained_networks import load_autoencoder
from genimg.config import instantiate
from genimg.config.options import read_options
from genimg.config.schema.commands import Prepare
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.packed_files import Description
from genimg.data.packed_latents import LatentEncoder
from genimg.data.packing import CORRUPT, image_bytes, pack
from genimg.errors import ConfigError, DataError
from genimg.training.device import choose_device
from genimg.utils.files import check_output_directory, directory_atomically, naming_full_disk
from genimg.utils.images import to_float
from genimg.utils.paths import expanded, relative
from genimg.utils.words import argument

log = logging.getLogger(__name__)

_OF_TRAINING = {"storage": "auto", "horizontal_flip": False, "max_corrupt": 0, "validation": 0}


def prepare(composed: DictConfig) -> None:
    """Decode, resize and pack the images of the ``data`` group for ``data=prepared``."""
    options, groups = read_options(composed, Prepare, ("data", "evaluation"))
    data = groups["data"]
    _check(options, data)
    output = expanded("output", options.output).resolve()
    check_output_directory(output)
    builder = instantiate.Builder(allowed=(*instantiate.ALLOWED, *options.allow))
    source = build_dataset(groups, builder)
    if source.task is not None:
        raise ConfigError(f"data={source.name} has pairs of images, which genimg-prepare does not pack: train from the files")
    if options.shard_size < image_bytes(source):
        raise ConfigError(
            f"shard_size={options.shard_size} bytes is too small, because one image takes {image_bytes(source)}: set it so "
            "that a file holds thousands of images"
        )
    encoder = None if options.autoencoder is None else _encoder(options, source)
    needed = len(source) * (image_bytes(source) + (0 if encoder is None else 2 * math.prod(encoder.shape)))
    _check_space(output, needed, source)
    start = time.monotonic()
    num_threads = data.get("num_workers", "auto")
    full = naming_full_disk(f"{_space(output, needed, source)}, and its disk became full")
    with directory_atomically(output) as folder, full:
        description, num_corrupt = pack(
            source,
            folder,
            shard_size=options.shard_size,
            num_threads=None if num_threads == "auto" else num_threads,
            max_corrupt=options.max_corrupt,
            provenance={"fit": data.get("fit")},
            encoder=encoder,
        )
    _report(output, description, num_corrupt, time.monotonic() - start)


def _encoder(options: Prepare, source: ImageDataset) -> LatentEncoder:
    """Return the encoder of the autoencoder that the options name.

    Raises:
        ConfigError: If it was trained on images of another shape.
    """
    autoencoder, device = (
        load_autoencoder(str(options.autoencoder), "autoencoder", tuple(options.allow)),
        choose_device(options.device),
    )
    autoencoder.require_shape(source.shape)
    autoencoder.to(device)

    def encode(images: NDArray[np.uint8]) -> NDArray[np.float16]:
        latents = autoencoder.encode(to_float(torch.from_numpy(images).to(device))).half().cpu().numpy()
        if not np.isfinite(latents).all():
            raise DataError(f"autoencoder={options.autoencoder} produces latents outside the range of float16: train it longer")
        return latents

    return LatentEncoder(encode, autoencoder.latent_shape, autoencoder.sha256, autoencoder.run)


def _check(options: Prepare, data: Mapping[str, Any]) -> None:
    output, shard_size, max_corrupt = options.output, options.shard_size, options.max_corrupt
    if output == "":
        raise ConfigError(f"output={output} must name a directory")
    if shard_size < 1:
        raise ConfigError(f"shard_size={shard_size} must be a whole number of bytes, such as 1073741824")
    if max_corrupt is not None and max_corrupt < 0:
        raise ConfigError(f"max_corrupt={max_corrupt} must be 0 or more images, or null to skip all corrupt ones")
    for key, neutral in _OF_TRAINING.items():
        if data.get(key, neutral) != neutral:
            word = "set max_corrupt=N in genimg-prepare instead" if key == "max_corrupt" else "set it in genimg-train"
            raise ConfigError(f"data.{key}={data[key]} applies to training and has no effect on packed images: {word}")
    threads = data.get("num_workers", "auto")
    if threads != "auto" and threads < 1:
        raise ConfigError(f"data.num_workers={threads} must be auto, or 1 or more threads")


def _check_space(output: Path, needed: int, source: ImageDataset) -> None:
    disk = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise ConfigError(
            f"{_space(output, needed, source)}, but {disk} has {free} bytes free: make room, or choose another output or a "
            "smaller data.image_size"
        )


def _space(output: Path, needed: int, source: ImageDataset) -> str:
    shape = "x".join(map(str, source.shape))
    return f"output={output} needs {needed} bytes ({len(source)} images of {shape})"


def _report(output: Path, description: Description, num_corrupt: int, seconds: float) -> None:
    channels, height, width = description.shape
    count, shards = description.num_images, description.shards
    log.info(
        "%d images of %dx%dx%d in %d file%s, %d bytes, in %.1f s (%.0f images/s): %s",
        count, channels, height, width, len(shards), "s" * (len(shards) > 1), sum(shard.num_bytes for shard in shards),
        seconds, count / seconds, relative(output),
    )  # fmt: skip
    if num_corrupt:
        listed = relative(output / CORRUPT)
        log.warning("%d corrupt image%s skipped: %s", num_corrupt, "s" * (num_corrupt > 1), listed)
    size = str(height) if height == width else f"'[{height},{width}]'"
    more = "" if channels == 3 else f" data.channels={channels}"
    root = argument("data.root", relative(output))
    log.info("to train on it: genimg-train data=prepared %s data.image_size=%s%s", root, size, more)
