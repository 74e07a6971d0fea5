"""genimg-eval neighbors=: measure how many generated images copy training images, and show the nearest ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genimg.api.data import build_dataset, build_loader, other_split
from genimg.api.inputs import ImageReader, Side
from genimg.config.instantiate import Builder
from genimg.config.schema.commands import Eval
from genimg.errors import ConfigError, UserError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.feature_extraction import full_float32
from genimg.evaluation.image_sets import DatasetImages, ImageSet
from genimg.evaluation.memorisation import Memorisation, fresh_deviation
from genimg.evaluation.nearest import nearest_images
from genimg.evaluation.result import Evaluation
from genimg.utils.distributed import rank
from genimg.utils.images import grid, write_png

log = logging.getLogger(__name__)

_METRIC = "memorisation"
_QUANTILE = 0.05  # as configs/evaluation/base.yaml suggests
_NEIGHBORS = 7  # nearest real images shown beside each generated image


def named_held_out(given: str, reader: ImageReader) -> DatasetImages:
    """Return the images that ``held_out=`` names.

    Args:
        given: The option's value.
        reader: Reader of the images.

    Raises:
        ConfigError: If the option names no images.
    """
    found = reader.read("held_out", given).images
    if found is None:
        raise ConfigError(f"held_out={given} holds statistics, not images: give images")
    return found


def own_held_out(
    config: Mapping[str, Any], real: DatasetImages, builder: Builder, device: torch.device
) -> DatasetImages | None:
    """Return images of a checkpoint's data that training did not see: those of data.validation, or else the test split.

    Args:
        config: Config of the checkpoint.
        real: Images of the checkpoint's data.
        builder: Builder of datasets.
        device: Device of the images.
    """
    if real.data.validation is not None:
        return DatasetImages(real.data.validation)
    if config["data"].get("split") != "train":
        return None
    other = "val" if config["data"]["_target_"].endswith(".imagenet") else "test"
    try:
        data = other_split(config["data"], other, key="split", instead="use held_out=DIR")
        source = build_dataset({**config, "data": data}, builder)
    except (UserError, OSError) as error:
        log.info("no held-out images: the %s split cannot be read (%s)", other, error)
        return None
    return DatasetImages(build_loader(config, source, device))


def with_memorisation(evaluation: Mapping[str, Any], builder: Builder) -> Mapping[str, Any]:
    """Add a memorisation metric to the evaluation, unless it has one or does not measure all training images.

    Args:
        evaluation: Resolved evaluation node.
        builder: Builder of the node.
    """
    metrics = evaluation.get("metrics")
    if not isinstance(metrics, Mapping) or evaluation.get("num_real") is not None:
        return evaluation
    targets = {name: node["_target_"] for name, node in metrics.items() if isinstance(node, Mapping) and "_target_" in node}
    found = (builder.locate(target, f"evaluation.metrics.{name}") for name, target in targets.items())
    if any(getattr(metric, "needs_held_out", False) for metric in found):
        return evaluation
    others = {name: node for name, node in metrics.items() if name != _METRIC}  # the first metric selects the best checkpoint
    own = {"_target_": f"{Memorisation.__module__}.{Memorisation.__qualname__}", "quantile": _QUANTILE}
    return {**evaluation, "metrics": {**others, _METRIC: own}}


def show_neighbors(
    options: Eval, evaluator: Evaluator, real: Side, made: ImageSet, result: Evaluation, held_out: DatasetImages | None
) -> None:
    """Write a picture of generated images with their nearest real images, and log the distances, if requested.

    Args:
        options: Options of the command; ``neighbors`` and ``picture`` are used.
        evaluator: Evaluator whose features define the distance.
        real: The real images.
        made: The generated images.
        result: Result of their evaluation.
        held_out: Images that training did not see, if there are any.
    """
    if options.neighbors == 0 or rank() > 0:
        return
    assert real.images is not None
    with full_float32():
        distances, indices, shown = nearest_images(
            real.images, made, evaluator.extractor,
            count=options.neighbors, neighbors=_NEIGHBORS, batch_size=evaluator.batch_size,
        )  # fmt: skip
    path = Path(options.picture or "neighbors.png")
    write_png(grid(shown, columns=indices.shape[1] + 1), path)
    _describe_copies(result, evaluator, len(made), held_out)
    log.info("nearest real images: %s (each row: a generated image, then its nearest real ones)", path)
    for i, (row, numbers) in enumerate(zip(distances.tolist(), indices.tolist(), strict=True)):
        log.info(
            "  image %d: real image %d at distance %.4g, the next at %.4g", i, numbers[0], row[0], row[min(1, len(row) - 1)]
        )


def _describe_copies(result: Evaluation, evaluator: Evaluator, num_generated: int, held_out: DatasetImages | None) -> None:
    """Log the percentage of generated images that are copies."""
    metric = next((metric for metric in evaluator.metrics.values() if isinstance(metric, Memorisation)), None)
    if metric is None or held_out is None:
        log.info("no held-out images to compare with: to measure the share of copies, give some with held_out=WHAT")
        return
    name = next(name for name in result.values if name.startswith(Memorisation.short_name))
    deviation = fresh_deviation(metric.quantile, num_generated, len(held_out))
    log.info(
        "copies of training images: %.1f %% of the %d generated ones (%s; fresh images: 0 ± %.1f %%)",
        100 * result.values[name], num_generated, name, 100 * deviation,
    )  # fmt: skip
