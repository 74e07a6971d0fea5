"""Projections of image files into the latents of a GAN's generator, and images of latents from a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genimg.data.decode import PixelFormat
from genimg.inference.checks import require_finite
from genimg.inference.image_files import (
    InputImage,
    cell,
    checked_output,
    find_pictures,
    grid_of,
    read_resized,
    side_by_side,
    with_sizes,
)
from genimg.inference.latent_files import CODES_NAME, save_codes
from genimg.inference.projection import Projector
from genimg.inference.sample_files import Sink
from genimg.methods.generator_latents import GeneratorLatents, LatentCodes
from genimg.utils.files import naming_full_disk
from genimg.utils.images import grid, save_png, to_float, to_uint8, write_png
from genimg.utils.outputs import Record, own_folder, require_own_file, stamp_of
from genimg.utils.paths import relative
from genimg.utils.progress import Progress
from genimg.utils.rng import Stream, keys_of

log = logging.getLogger(__name__)

TABLE = "projections.json"
"""Name of the file with the distances of the projections."""

_MAX_SHOWN = 32  # images in the grid of projections
_MAX_SAMPLED = 256  # images in the grid of samples


def check_project(given: str, folder: Path, command: str) -> tuple[list[InputImage], Path]:
    """Find the images to project, and return them with the checked output folder.

    Args:
        given: Path of the image or directory in ``project=``.
        folder: Directory to write.
        command: Name of the command that writes.

    Raises:
        ConfigError, DataError: If the files or the output are invalid.
    """
    pictures = with_sizes(find_pictures(given, "project"))
    return pictures, checked_output(folder, {"project": given}, pictures, grid=True, overwrite=True, command=command)


def project_files(
    projector: Projector,
    pictures: Sequence[InputImage],
    pixels: PixelFormat,
    output: Path,
    *,
    measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    batch_size: int,
    model: str,
    record: Record,
) -> None:
    """Write the projection of every image under the image's name, the latents, their distances, and a grid of some pairs.

    Args:
        projector: Projector with its settings.
        pictures: Images from ``check_project``.
        pixels: Format that images are converted to.
        output: Output folder from ``check_project``.
        measures: Similarities [N] of images and their projections, uint8 [N, C, H, W], by name, for the table.
        batch_size: Number of images that are projected at a time.
        model: Digest of the checkpoint, for the file of latents.
        record: Metadata stored in the folder.

    Raises:
        DataError: If a file cannot be decoded.
    """
    device = projector.latents.device
    shown: list[tuple[Tensor, Tensor]] = []
    parts: list[LatentCodes] = []
    rows: list[dict[str, Any]] = []
    batches = -(-len(pictures) // batch_size)
    with (
        naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"),
        own_folder(output, record) as folder,
        Progress(total=batches * projector.steps, desc=f"projecting {len(pictures)} images", unit="step") as progress,
    ):
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            targets = torch.stack([read_resized(picture.file, pixels) for picture in some])
            codes, distances = projector.project(
                to_float(targets).to(device), _keys_of_content(targets, projector.seed).to(device), progress.update
            )
            with torch.no_grad():
                made = to_uint8(require_finite(projector.latents.images(codes))).cpu()
            parts.append(codes.to_cpu())
            measured = {"distance": distances.cpu()} | {name: of(targets, made) for name, of in measures.items()}
            rows += [
                {"name": picture.name, **{key: values[i].item() for key, values in measured.items()}}
                for i, picture in enumerate(some)
            ]
            for picture, target, image in zip(some, targets, made, strict=True):
                save_png(image, folder / picture.name)
                if len(shown) < _MAX_SHOWN:
                    shown.append((cell(target), cell(image)))
        save_codes(folder / CODES_NAME, LatentCodes.joined(parts), [picture.name for picture in pictures], model)
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "name"}
        settings = {"space": projector.space, "steps": projector.steps, "restarts": projector.restarts,
                    **projector.distance.describe()}  # fmt: skip
        table = json.dumps({"settings": settings, "mean": means, "images": rows}, indent=1, ensure_ascii=False)
        (folder / TABLE).write_text(table + "\n", encoding="utf-8")
    for row in rows[:_MAX_SHOWN]:
        log.info("%s: %s", row["name"], _shown(row, projector.distance.name))
    log.info("mean of %d: %s", len(rows), _shown(means, projector.distance.name))
    log.info("projections and latents: %s", relative(output))
    write_png(side_by_side(shown), grid_of(output), stamp_of(record["made_by"]))
    log.info("grid of images, each with its projection on the right: %s", relative(grid_of(output)))


def write_images_of(latents: GeneratorLatents, codes: LatentCodes, sink: Sink, batch_size: int, command: str) -> None:
    """Write the images of latents to a sink, and a grid of some of them.

    Args:
        latents: The generator.
        codes: Latents on the CPU.
        sink: Output of the images.
        batch_size: Number of images in a batch.
        command: Name of the command, stored in the grid.

    Raises:
        ConfigError: If the grid would replace a file that genimg did not write.
    """
    require_own_file(sink.picture, f"the grid of output={sink.path}")
    shown: list[Tensor] = []
    with sink, Progress(total=len(codes), desc="sampling", unit="image") as progress:
        for start in range(0, len(codes), batch_size):
            some = codes[slice(start, start + batch_size)]
            images = images_of(latents, some)
            sink.add("", range(start, start + len(some)), {"latent": some.values, **some.condition}, to_uint8(images))
            if start < _MAX_SAMPLED:
                shown.append(images)
            progress.update(len(some))
    log.info("%d images: %s", len(codes), relative(sink.path))
    write_png(grid(torch.cat(shown)[:_MAX_SAMPLED]), sink.picture, stamp_of(command))
    log.info("grid: %s", relative(sink.picture))


@torch.no_grad()
def images_of(latents: GeneratorLatents, codes: LatentCodes) -> Tensor:
    """Return the images [N, C, H, W] of latents, on the CPU.

    Raises:
        CheckpointError: If the model returns NaN or infinite values.
    """
    return require_finite(latents.images(codes.to(latents.device)).float().cpu())


def _keys_of_content(images: Tensor, seed: int) -> Tensor:
    """Return random keys, int64 [N], that depend only on the seed and on each image, uint8 [N, C, H, W]."""
    digests = [hashlib.sha256(image.numpy().tobytes()).digest()[:8] for image in images.contiguous()]
    numbers = np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=np.int64)
    return torch.from_numpy(keys_of(seed, Stream.PROJECTION, numbers).view(np.int64))


def _shown(row: dict[str, Any], distance: str) -> str:
    others = (f"{key} {value:.4g}" for key, value in row.items() if key not in ("name", "distance", distance))
    return ", ".join((f"{distance} {row['distance']:.4g}", *others))
