"""genimg-eval neighbors=: how many generated images are copies of training images, measured against held-out ones."""

from __future__ import annotations

import logging

import torch

from genimg.api.data import build_dataset, build_loader, other_split
from genimg.api.inputs import Side, resolve
from genimg.config import instantiate
from genimg.config.instantiate import Config
from genimg.evaluation.compare import Evaluator
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.memorisation import Memorisation, fresh_deviation
from genimg.evaluation.periodic import Evaluation

log = logging.getLogger(__name__)

_QUANTILE = 0.05  # as configs/evaluation/base.yaml suggests


def held_out_images(
    options: Config, config: Config | None, real: Side, builder: instantiate.Builder, device: torch.device
) -> DatasetImages | None:
    """Images of the real ones' kind that training did not see: ``held_out=``, else data.validation, else the test split.

    Args:
        options: Of the command.
        config: Of the checkpoint whose own data the real images are; None for others.
        real: The real images.
        builder: Of the data.
        device: Of the images.

    Raises:
        ValueError: if ``held_out=`` names no images.
    """
    if options["held_out"] is not None:
        found = resolve("held_out", options, builder, device).images
        if found is None:
            raise ValueError(f"held_out={options['held_out']} holds statistics, not images: give images")
        return found
    if config is None or real.images is None or options["split"] is not None:
        return None
    if real.images.data.validation is not None:
        return DatasetImages(real.images.data.validation)
    if config["data"].get("split") != "train":
        return None
    other = "val" if config["data"]["_target_"].endswith(".imagenet") else "test"
    try:
        data = other_split(config["data"], other, key="split", instead="use held_out=DIR")
        source = build_dataset({**config, "data": data}, builder)
    except (FileNotFoundError, ValueError) as error:
        log.info("no held-out images: the %s split cannot be read (%s)", other, error)
        return None
    return DatasetImages(build_loader(config, source, device))


def measure_copies(options: Config, evaluator: Evaluator, held_out: DatasetImages | None) -> None:
    """Add the metric of memorisation to the evaluation if neighbours are asked for and held-out images are there.

    Raises:
        ValueError: if ``held_out=`` names images with which nothing is compared.
    """
    if options["neighbors"] and held_out is not None and not evaluator.needs_held_out and evaluator.num_real is None:
        evaluator.metrics["memorisation"] = Memorisation(quantile=_QUANTILE)
    if options["held_out"] is not None and not evaluator.needs_held_out:
        raise ValueError(f"held_out={options['held_out']} has no effect without neighbors=: remove it, or set neighbors=10")


def describe_copies(result: Evaluation, evaluator: Evaluator, num_generated: int, held_out: DatasetImages | None) -> None:
    """Say, beside the picture of neighbours, what share of the generated images are copies."""
    metric = next((metric for metric in evaluator.metrics.values() if isinstance(metric, Memorisation)), None)
    if metric is None or held_out is None:
        log.info("no held-out images to compare with: held_out=WHAT names some, and the share of copies is then measured")
        return
    name = next(name for name in result.values if name.startswith(Memorisation.short_name))
    deviation = fresh_deviation(metric.quantile, num_generated, len(held_out))
    log.info(
        "copies of training images: %.1f %% of the %d generated ones (%s; fresh images: 0 ± %.1f %%)",
        100 * result.values[name], num_generated, name, 100 * deviation,
    )  # fmt: skip
