"""Compare generated images with real ones by features, for a checkpoint and for any other images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genimg.api.copies import with_memorisation
from genimg.api.inputs import Side
from genimg.config.evaluation import build_evaluator, is_inception
from genimg.config.instantiate import Builder
from genimg.config.schema.commands import Eval
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.image_sets import DatasetImages, ImageSet
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.result import Evaluation

_NUMBERS = ("num_images", "num_real", "batch_size", "seed", "bootstrap")  # options that are also settings of an evaluation


def with_numbers(evaluation: Mapping[str, Any], options: Eval, names: tuple[str, ...]) -> dict[str, Any]:
    """Return an evaluation updated with the given options.

    Args:
        evaluation: Resolved evaluation node.
        options: Options of the command.
        names: Names of the options that are also settings of the evaluation.
    """
    given = {name: getattr(options, name) for name in names}
    return {**evaluation, **{name: value for name, value in given.items() if value is not None}}


def with_inception_weights(evaluation: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Return an evaluation with a different path to the Inception weights."""
    additional = {name: with_inception_weights(node, weights) for name, node in (evaluation.get("additional") or {}).items()}
    changed = {**evaluation, **({"additional": additional} if additional else {})}
    return {**changed, "extractor": {**evaluation["extractor"], "weights": weights}} if is_inception(evaluation) else changed


def uses_inception(evaluation: Mapping[str, Any]) -> bool:
    """Return whether an extractor of an evaluation is Inception."""
    return any(map(is_inception, (evaluation, *(evaluation.get("additional") or {}).values())))


def evaluation_of(options: Eval, chosen: Mapping[str, Any], real: Side) -> dict[str, Any]:
    """Return the evaluation updated with the options of the command.

    Args:
        options: Options of the command.
        chosen: Resolved evaluation node.
        real: The real images.

    Raises:
        ConfigError: If an option has no effect on this evaluation or these images.
    """
    changed = with_numbers(chosen, options, _NUMBERS)
    if options.sampling:
        changed["sampling"] = {**(changed.get("sampling") or {}), **options.sampling}
    if options.inception_weights is not None:
        if not uses_inception(changed):
            raise ConfigError(
                f"inception_weights={options.inception_weights} has no effect, because this evaluation does not use "
                "Inception: remove it"
            )
        changed = with_inception_weights(changed, options.inception_weights)
    if real.images is None and options.num_real is not None:
        raise ConfigError(f"num_real={options.num_real} has no effect on statistics that exist already: remove it")
    if real.images is None and options.neighbors:
        raise ConfigError(
            f"neighbors={options.neighbors} needs the real images themselves, but real={options.real} holds statistics: "
            "give images, or remove it"
        )
    return changed


def evaluator_for(
    options: Eval, evaluation: Mapping[str, Any], builder: Builder, real: Side, held_out: DatasetImages | None = None
) -> Evaluator:
    """Build the evaluator, with a memorisation metric if neighbours are shown and there are held-out images.

    Args:
        options: Options of the command.
        evaluation: Evaluation node returned by ``evaluation_of``.
        builder: Builder of the node.
        real: The real images.
        held_out: Images that training did not see, if there are any.

    Raises:
        ConfigError: If the evaluation does not compare images, or does not use ``held_out=``.
        DataError: If the statistics of the real images come from another extractor.
    """
    if options.neighbors and held_out is not None:
        evaluation = with_memorisation(evaluation, builder)
    evaluator = build_evaluator(evaluation, builder)
    if not isinstance(evaluator, Evaluator):
        measured = (
            "the likelihood of images under a model"
            if isinstance(evaluator, LikelihoodEvaluator)
            else "translations by a model"
        )
        raise ConfigError(f"this evaluation measures {measured}: choose evaluation=inception or another one", key="evaluation")
    if evaluator.additional and options.save_statistics is not None:
        raise ConfigError(
            f"save_statistics={options.save_statistics} writes the statistics of one extractor, but this evaluation has "
            f"{len(evaluator.extractors)}: choose an evaluation with one extractor",
            key="save_statistics",
        )
    if real.statistics is not None:
        assert real.path is not None
        real.statistics.check_extractor(evaluator.extractor, real.path, accept_unrecorded=options.accept_unrecorded)
    if options.held_out is not None and not evaluator.needs_held_out:
        raise ConfigError(f"held_out={options.held_out} has no effect without neighbors=: remove it, or set neighbors=10")
    return evaluator


def compare(
    options: Eval, evaluator: Evaluator, real: Side, made: ImageSet, device: torch.device, held_out: DatasetImages | None
) -> Evaluation:
    """Compare generated images with real ones, and save the statistics of the real ones if requested.

    Args:
        options: Options of the command.
        evaluator: Evaluator that compares them.
        real: The real images.
        made: The generated images.
        device: Device of the extractor.
        held_out: Images that training did not see, if there are any.
    """
    save = Path(options.save_statistics) if options.save_statistics else None
    return evaluator.compare(real.compared, made, device, save_statistics=save, held_out=held_out, published=real.published)
