"""Generate images one condition at a time, write them to a sink, and write a grid of some of them beside it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from genimg.inference.conditions import Condition, repeated
from genimg.inference.sample import Sampler
from genimg.inference.sample_files import Sink
from genimg.methods.capabilities import TakesConditions
from genimg.types import Batch
from genimg.utils.images import class_rows, grid, to_uint8, write_png
from genimg.utils.outputs import require_own_file, stamp_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_MAX_SHOWN = 256  # images in a grid
_MAX_COLUMNS = 16  # columns in a grid with a row for each condition


def write_samples(sampler: Sampler, conditions: Sequence[Condition], sink: Sink, num_images: int, command: str) -> None:
    """Write images of each condition, and a grid of some of them.

    Args:
        sampler: Sampler of the images.
        conditions: One or more conditions. If there are several, the images of each are written to a folder with its name.
        sink: Output of the images.
        num_images: Number of images for each condition.
        command: Name of the command, stored in the grid.

    Raises:
        ConfigError: If the grid would replace a file that genimg did not write.
    """
    require_own_file(sink.picture, f"the grid of output={sink.path}")
    shown = []
    with sink:
        for condition in conditions:
            place = "" if len(conditions) == 1 else f"{condition.name}/"
            kept: list[Tensor] = []

            def draw(indices: range, row: Batch = condition.row) -> Batch:
                return sampler.draw(indices) | repeated(row, len(indices))

            for indices, drawn, images in sampler.make_all(num_images, draw, f"sampling {condition.name}".strip()):
                sink.add(place, indices, drawn, to_uint8(images))
                if indices.start < _MAX_SHOWN:
                    kept.append(images)
            shown.append(torch.cat(kept)[: _MAX_SHOWN if len(conditions) == 1 else _MAX_COLUMNS])
    sampler.log_cost()
    log.info("%d images: %s", num_images * len(conditions), relative(sink.path))
    num_classes = sampler.method.num_classes if isinstance(sampler.method, TakesConditions) else 0
    if num_classes and not conditions[0].row:
        write_png(grid(_classes(sampler, num_classes, len(shown[0]))), sink.picture, stamp_of(command))
        log.info("grid of newly generated images, one class per row: %s", relative(sink.picture))
    else:
        columns = None if len(conditions) == 1 else len(shown[0])
        write_png(grid(torch.cat(shown), columns), sink.picture, stamp_of(command))
        log.info("grid%s: %s", "" if columns is None else ", one condition per row", relative(sink.picture))


def _classes(sampler: Sampler, num_classes: int, count: int) -> Tensor:
    """Generate at most ``count`` images, one class per row: [rows, columns, C, H, W]."""
    rows = class_rows(count, num_classes)
    labels = rows.flatten()

    def draw(indices: range) -> Batch:
        return sampler.draw(indices) | {"label": labels[indices.start : indices.stop]}

    images = torch.cat([images for _, _, images in sampler.make_all(len(labels), draw, "grid")])
    return images.unflatten(0, rows.shape)
