"""Pictures of directions in latents: each shows images that move along one direction; and files of directions."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genimg.errors import DataError
from genimg.inference.directions import METHODS, Directions, moved
from genimg.inference.latent_files import is_finite, load_file, warn_of_other_model
from genimg.inference.project_files import images_of
from genimg.inference.style_mixing import in_layers
from genimg.methods.generator_latents import W_PLUS, GeneratorLatents, LatentCodes, W, Z
from genimg.utils.images import grid, save_png, write_png
from genimg.utils.outputs import Record, own_folder, require_own_file, require_own_folder, stamp_of
from genimg.utils.paths import relative
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)

NAME = "directions.pt"
"""Name of the file of directions in an output folder."""

_FORMAT = 1


@dataclass(frozen=True)
class Traversal:
    """How images are moved along directions.

    Attributes:
        strength: Largest distance in standard deviations, on either side.
        frames: Number of images along each direction.
        layers: Layers of a style-based generator that are moved; None for all.
    """

    strength: float
    frames: int
    layers: list[int] | None


def write_directions(
    latents: GeneratorLatents,
    codes: LatentCodes,
    directions: Directions,
    traversal: Traversal,
    output: Path,
    *,
    batch_size: int,
    model: str,
    record: Record,
) -> None:
    """Write a picture for each direction, with one row for each image, and the directions themselves.

    Beside the folder, a picture shows the first image's row for every direction.

    Args:
        latents: The generator.
        codes: Latents of the images to move, on the CPU, in z, w or w+.
        directions: Directions in z or w.
        traversal: Settings of the movement.
        output: Absolute path of the folder.
        batch_size: Number of images in a batch.
        model: Digest of the checkpoint, for the file.
        record: Metadata stored in the folder.

    Raises:
        ConfigError: If the output would replace other files.
    """
    picture = output.with_name(f"{output.name}.png")
    require_own_folder(output, record["made_by"])
    require_own_file(picture, f"the picture of output={output}")
    codes = codes if codes.space == Z else in_layers(codes, latents.shape(W_PLUS)[0])
    steps = torch.linspace(-traversal.strength, traversal.strength, traversal.frames)
    count = len(directions.vectors)
    first = []
    with own_folder(output, record) as folder, Progress(total=count, desc="traversing", unit="direction") as progress:
        for number in range(count):
            values = moved(codes.values, codes.space, directions, number, steps, traversal.layers)
            rows = torch.arange(len(codes)).repeat_interleave(traversal.frames)
            all_codes = replace(codes[rows], values=values.flatten(0, 1))
            made = torch.cat([
                images_of(latents, all_codes[slice(start, start + batch_size)])
                for start in range(0, len(all_codes), batch_size)
            ]).unflatten(0, (len(codes), traversal.frames))  # fmt: skip
            save_png(grid(made), folder / f"direction{number:02d}.png")
            first.append(made[0])
            progress.update()
        torch.save(
            {
                "format": _FORMAT, "kind": "directions", "method": directions.method, "space": directions.space,
                "vectors": directions.vectors, "deviations": directions.deviations, "importance": directions.importance,
                "settings": directions.settings, "model": model,
            },
            folder / NAME,
        )  # fmt: skip
    write_png(grid(torch.stack(first)), picture, stamp_of(record["made_by"]))
    shares = ", ".join(f"{share:.3g}" for share in directions.importance.tolist())
    kind = "of the variance" if directions.method == METHODS[0] else "of the eigenvalues"
    log.info("%d directions of %s (shares %s: %s): %s", count, directions.method, kind, shares, relative(output))
    log.info("the first image along each direction, one per row: %s", relative(picture))


def load_directions(given: str, latents: GeneratorLatents, model: str) -> Directions:
    """Read a file of directions, and check that it fits the generator.

    Args:
        given: Path of the file, or of the folder that genimg-latents wrote it into.
        latents: The generator.
        model: Digest of its checkpoint; a file with another one is read with a warning.

    Raises:
        DataError: If the file does not exist, is damaged, or does not fit the generator.
    """
    content = load_file("directions", given, NAME, "directions", _FORMAT)
    own = W if latents.is_style_based else Z
    vectors: Any
    deviations: Any
    importance: Any
    vectors, deviations, importance, settings = (
        content.get(key) for key in ("vectors", "deviations", "importance", "settings")
    )
    if (
        content.get("space") != own
        or content.get("method") not in METHODS
        or not isinstance(settings, dict)
        or not is_finite(vectors, latents.shape(own))
        or not all(is_finite(each, ()) and len(each) == len(vectors) for each in (deviations, importance))
    ):
        raise DataError(f"directions={given} does not hold directions in the latents {own} of this model",
                        "give the checkpoint that they were made with")  # fmt: skip
    warn_of_other_model(f"directions={given}", content, model)
    return Directions(content["method"], own, vectors, deviations, importance, settings)
