"""Style mixing: a matrix of images, each with the styles of one image in some layers and those of another in the others.

Karras et al., "A style-based generator architecture for generative adversarial networks", 2019, section 3.1 and figure 3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genimg.errors import ConfigError
from genimg.inference.project_files import images_of
from genimg.methods.generator_latents import W_PLUS, GeneratorLatents, LatentCodes, W
from genimg.utils.images import grid, save_png, to_uint8, write_png
from genimg.utils.outputs import Record, own_folder, require_own_file, require_own_folder, stamp_of
from genimg.utils.paths import relative
from genimg.utils.progress import Progress

log = logging.getLogger(__name__)


def check_layers(key: str, layers: Sequence[int], latents: GeneratorLatents) -> None:
    """Check numbers of a generator's layers.

    Raises:
        ConfigError: If the generator has no styles, or the list is empty, has duplicates, or numbers that no layer has.
    """
    shown = f"{key}=[{','.join(map(str, layers))}]"
    if not latents.is_style_based:
        raise ConfigError(f"{shown} needs a generator with styles, such as StyleGAN2's: remove it", key=key)
    last = latents.shape(W_PLUS)[0] - 1
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer <= last for layer in layers):
        raise ConfigError(f"{shown} must be different numbers of layers, from 0 (coarsest) to {last} (finest)", key=key)


def mixed(rows: LatentCodes, columns: LatentCodes, layers: Sequence[int], num_layers: int) -> LatentCodes:
    """Return the latents in w+ of a matrix of R x C images, row by row.

    Args:
        rows: Latents of R images in w or w+, whose styles, conditions and noise apply except in ``layers``.
        columns: Latents of C images in w or w+, whose styles apply in ``layers``.
        layers: Numbers of layers, 0 for the coarsest.
        num_layers: Number of the generator's layers.
    """
    row_styles, column_styles = (_layered(codes, num_layers) for codes in (rows, columns))
    count = len(columns)
    styles = row_styles[:, None].repeat(1, count, 1, 1)  # [R, C, L, W]
    styles[:, :, list(layers)] = column_styles[None, :, list(layers)]
    condition = {key: value.repeat_interleave(count, dim=0) for key, value in rows.condition.items()}
    maps = tuple(each.repeat_interleave(count, dim=0) for each in rows.noise_maps)
    return LatentCodes(W_PLUS, styles.flatten(0, 1), condition, maps)


def write_mixing(
    latents: GeneratorLatents,
    rows: LatentCodes,
    columns: LatentCodes,
    layers: Sequence[int],
    output: Path,
    *,
    batch_size: int,
    record: Record,
) -> None:
    """Write every mixture as ``rowR_columnC.png`` in a folder, and beside it the matrix with the mixed images at its borders.

    Args:
        latents: The generator.
        rows, columns, layers: See ``mixed``; the latents are on the CPU.
        output: Absolute path of the folder.
        batch_size: Number of images in a batch.
        record: Metadata stored in the folder.

    Raises:
        ConfigError: If the output would replace other files.
    """
    picture = output.with_name(f"{output.name}.png")
    require_own_folder(output, record["made_by"])
    require_own_file(picture, f"the picture of output={output}")
    codes = mixed(rows, columns, layers, latents.shape(W_PLUS)[0])
    with own_folder(output, record) as folder, Progress(total=len(codes), desc="mixing", unit="image") as progress:
        made: list[Tensor] = []
        for start in range(0, len(codes), batch_size):
            made.append(images_of(latents, codes[slice(start, start + batch_size)]))
            progress.update(len(made[-1]))
        images = torch.cat(made).unflatten(0, (len(rows), len(columns)))  # [R, C, ...]
        for i, row in enumerate(images):
            for j, image in enumerate(row):
                save_png(to_uint8(image), folder / f"row{i:02d}_column{j:02d}.png")
    down, across = images_of(latents, rows), images_of(latents, columns)
    top = torch.cat([torch.ones_like(across[:1]), across])[None]
    write_png(grid(torch.cat([top, torch.cat([down[:, None], images], dim=1)])), picture, stamp_of(record["made_by"]))
    log.info("%d x %d images with the columns' styles in layers %s: %s", *images.shape[:2],
             ", ".join(map(str, layers)), relative(output))  # fmt: skip
    log.info("matrix, with the images of the rows on the left and those of the columns at the top: %s", relative(picture))


def _layered(codes: LatentCodes, num_layers: int) -> Tensor:
    """Return the styles [N, L, W] of latents in w or w+."""
    return codes.values if codes.space == W_PLUS else codes.values[:, None].expand(-1, num_layers, -1)


def in_layers(codes: LatentCodes, num_layers: int) -> LatentCodes:
    """Return latents in w or w+ as latents in w+."""
    return codes if codes.space != W else replace(codes, space=W_PLUS, values=_layered(codes, num_layers).contiguous())
