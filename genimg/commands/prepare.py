"""genimg-prepare: pack a dataset into a few large files of decoded, resized images."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from genimg.api.data import build_dataset
from genimg.api.pairs import pairs_of
from genimg.api.trained_networks import load_autoencoder
from genimg.config import instantiate
from genimg.config.compose import compose
from genimg.config.options import read_options
from genimg.config.schema.commands import Prepare
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.packed_files import Description, Latents
from genimg.data.packed_latents import LATENTS, LatentSource
from genimg.data.packing import CORRUPT, image_bytes, pack
from genimg.errors import ConfigError, DataError
from genimg.training.device import choose_device
from genimg.utils.files import check_output_directory, directory_atomically, naming_full_disk
from genimg.utils.images import to_float
from genimg.utils.numbers import require_least
from genimg.utils.paths import expanded, relative
from genimg.utils.words import argument

log = logging.getLogger(__name__)

_OF_TRAINING = {"storage": "auto", "horizontal_flip": False, "max_corrupt": 0, "validation": 0}
_OF_PAIRS = ("num_images", "seed", "batch_size", "sampling")
_USUAL_BATCH = 64


@dataclass(frozen=True)
class _Work:
    """Images to pack.

    Attributes:
        source: The images.
        latent_source: Source of their latents or noise; None for neither.
        provenance: Further information about their origin, as primitives.
        num_threads: Number of threads that read them; None for one per core, 0 for the calling thread.
        batch_size: Number of images that are read at once; None for the default.
    """

    source: ImageDataset
    latent_source: LatentSource | None
    provenance: dict[str, Any]
    num_threads: int | None
    batch_size: int | None = None


def prepare(composed: DictConfig) -> None:
    """Pack the images of the ``data`` group, or those that a model generates, for ``data=prepared``."""
    makes_pairs = composed.get("pairs") is not None
    options, groups = read_options(_without_data(composed) if makes_pairs else composed, Prepare, ("data", "evaluation"))
    _check(options)
    output = expanded("output", options.output).resolve()
    check_output_directory(output)
    work = _of_model(options) if makes_pairs else _of_data(options, groups)
    source, latents = work.source, work.latent_source
    if options.shard_size < image_bytes(source):
        raise ConfigError(
            f"shard_size={options.shard_size} bytes is too small, because one image takes {image_bytes(source)}: set it so "
            "that a file holds thousands of images"
        )
    needed = len(source) * (image_bytes(source) + (0 if latents is None else 2 * math.prod(latents.latents.shape)))
    _check_space(output, needed, source)
    start = time.monotonic()
    full = naming_full_disk(f"{_space(output, needed, source)}, and its disk became full")
    with directory_atomically(output) as folder, full:
        description, num_corrupt = pack(
            source,
            folder,
            shard_size=options.shard_size,
            num_threads=work.num_threads,
            max_corrupt=options.max_corrupt,
            provenance=work.provenance,
            latent_source=latents,
            batch_size=work.batch_size,
        )
    _report(output, description, num_corrupt, time.monotonic() - start, options)


def _without_data(composed: DictConfig) -> DictConfig:
    """Return the config without the group ``data``, whose required keys have no value if a model generates the images.

    Raises:
        ConfigError: If the user has chosen data.
    """
    given, default = (OmegaConf.to_container(each.data, resolve=False) for each in (composed, compose([], "prepare").config))
    if given != default:
        raise ConfigError(f"data has no effect with pairs={composed.pairs}: remove one of them", key="data")
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "data"])


def _of_model(options: Prepare) -> _Work:
    """Return the images that the model of ``pairs`` generates, with their noise."""
    for key in ("autoencoder", "max_corrupt"):
        if getattr(options, key) is not None:
            raise ConfigError(
                f"{key}={getattr(options, key)} has no effect with pairs={options.pairs}: remove one of them", key=key
            )
    if options.num_images is None:
        raise ConfigError("num_images is required with pairs=: set num_images=50000 or another number", key="num_images")
    batch_size = _USUAL_BATCH if options.batch_size is None else options.batch_size
    require_least(1, num_images=options.num_images, batch_size=batch_size)
    device = choose_device(options.device)
    source, origin = pairs_of(
        str(options.pairs), options.num_images, options.seed or 0, options.sampling, device, tuple(options.allow)
    )
    return _Work(source, source.noise_source(), origin, 0, batch_size)


def _of_data(options: Prepare, groups: Mapping[str, Any]) -> _Work:
    """Return the images of the group ``data``, with the latents of an autoencoder if the options name one."""
    data = groups["data"]
    _check_data(data)
    for key in _OF_PAIRS:
        if (value := getattr(options, key)) not in (None, {}):
            raise ConfigError(f"{key}={value} has no effect without pairs=RUN: remove it", key=key)
    builder = instantiate.Builder(allowed=(*instantiate.ALLOWED, *options.allow))
    source = build_dataset(groups, builder)
    if source.task is not None:
        raise ConfigError(f"data={source.name} has pairs of images, which genimg-prepare does not pack: train from the files")
    encoder = None if options.autoencoder is None else _encoder(options, source)
    num_threads = data.get("num_workers", "auto")
    return _Work(source, encoder, {"fit": data.get("fit")}, None if num_threads == "auto" else num_threads)


def _encoder(options: Prepare, source: ImageDataset) -> LatentSource:
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

    def encode(images: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.float16]:
        latents = autoencoder.encode(to_float(torch.from_numpy(images).to(device))).half().cpu().numpy()
        if not np.isfinite(latents).all():
            raise DataError(f"autoencoder={options.autoencoder} produces latents outside the range of float16: train it longer")
        return latents

    return LatentSource(encode, Latents(autoencoder.latent_shape, autoencoder.sha256, autoencoder.run))


def _check(options: Prepare) -> None:
    output, shard_size, max_corrupt = options.output, options.shard_size, options.max_corrupt
    if output == "":
        raise ConfigError(f"output={output} must name a directory")
    if shard_size < 1:
        raise ConfigError(f"shard_size={shard_size} must be a whole number of bytes, such as 1073741824")
    if max_corrupt is not None and max_corrupt < 0:
        raise ConfigError(f"max_corrupt={max_corrupt} must be 0 or more images, or null to skip all corrupt ones")


def _check_data(data: Mapping[str, Any]) -> None:
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
            f"{_space(output, needed, source)}, but {disk} has {free} bytes free: make room, or choose another output, or "
            "fewer or smaller images"
        )


def _space(output: Path, needed: int, source: ImageDataset) -> str:
    shape = "x".join(map(str, source.shape))
    return f"output={output} needs {needed} bytes ({len(source)} images of {shape})"


def _report(output: Path, description: Description, num_corrupt: int, seconds: float, options: Prepare) -> None:
    channels, height, width = description.shape
    count, latents = description.num_images, description.latents
    sizes = [shard.num_bytes for shard in description.shards]
    sizes += [] if latents is None else [(output / LATENTS).stat().st_size]
    what = "" if latents is None else " with their noise" if latents.is_noise else " with their latents"
    log.info(
        "%d images of %dx%dx%d%s in %d file%s, %d bytes, in %.1f s (%.0f images/s): %s",
        count, channels, height, width, what, len(sizes), "s" * (len(sizes) > 1), sum(sizes), seconds, count / seconds,
        relative(output),
    )  # fmt: skip
    if num_corrupt:
        listed = relative(output / CORRUPT)
        log.warning("%d corrupt image%s skipped: %s", num_corrupt, "s" * (num_corrupt > 1), listed)
    size = str(height) if height == width else f"'[{height},{width}]'"
    more = "" if channels == 3 else f" data.channels={channels}"
    root = argument("data.root", relative(output))
    model = ""
    if latents is not None:
        model = (
            f"model=reflow {argument('init_from', Path(str(options.pairs)))} "
            if latents.is_noise
            else f"model=latent_flow {argument('model.autoencoder', Path(str(options.autoencoder)))} "
        )
    log.info("to train on it: genimg-train %sdata=prepared %s data.image_size=%s%s", model, root, size, more)
