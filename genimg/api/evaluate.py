"""Measure images, from a checkpoint or any other origin, against real ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from genimg.api.compare import compare_results
from genimg.api.copies import named_held_out, show_neighbors
from genimg.api.default_evaluation import default_photo_evaluation, evaluation_by_extractor
from genimg.api.evaluate_checkpoint import LoadedCheckpoint, evaluate_checkpoint
from genimg.api.evaluate_features import compare, evaluation_of, evaluator_for
from genimg.api.evaluate_request import Request
from genimg.api.inputs import Side, compose_evaluation, title
from genimg.api.per_class import check_per_class, log_classes, with_classes
from genimg.api.results import report, with_intervals
from genimg.config.compose import Composition, compose
from genimg.config.instantiate import ALLOWED, Builder
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.external import dataset_of
from genimg.errors import ConfigError, DataError
from genimg.evaluation.image_sets import ImageSet, Subset
from genimg.evaluation.result import Evaluation
from genimg.training.device import choose_device
from genimg.utils.distributed import broadcast_object, first_of_each_host, processes_of_torchrun, raise_on_any_rank, rank
from genimg.utils.images import to_uint8
from genimg.utils.mappings import merged
from genimg.utils.words import quoted

log = logging.getLogger(__name__)


def evaluate(
    images: object,
    real: object,
    *,
    evaluation: str | Sequence[str] = "inception",
    num_images: int | None = None,
    batch_size: int | None = None,
    bootstrap: int | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Measure images against real ones, as ``genimg-eval images=... real=...`` does.

    Args:
        images: Float images [N, C, H, W] in [-1, 1], as a model's ``sample`` returns; uint8 images or a dataset (see
            ``as_dataset``); or the name of a folder, an .npz, or a dataset such as ``mnist:test``.
        real: Real images in the same forms, or the path of saved statistics.
        evaluation: Option of the group ``evaluation``, which names the extractor and the metrics, or several options.
            The first metric of the first option is the first value of the result.
        num_images: Number of images to measure, chosen reproducibly; None measures all.
        batch_size: Batch size of the feature extraction; it does not affect the values.
        bootstrap: Number of bootstrap resamples for 95 % intervals.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        overrides: Further arguments of ``genimg-eval``.

    Returns:
        The values by name, with intervals, provenance and warnings.

    Raises:
        UserError: If the images do not exist or cannot be measured in this way.
    """
    given = {"num_images": num_images, "batch_size": batch_size, "bootstrap": bootstrap}
    arguments = [evaluation_argument(evaluation), f"device={device}", *(f"{k}={v}" for k, v in given.items() if v is not None)]
    sides = {"images": images, "real": real}
    arguments += [f"{key}={quoted(str(value))}" for key, value in sides.items() if isinstance(value, str | Path)]
    own = {key: dataset_from_images(value, key) for key, value in sides.items() if not isinstance(value, str | Path)}
    result = measure(compose([*arguments, *overrides], "eval"), own)
    assert result is not None
    return result


def evaluation_argument(evaluation: str | Sequence[str]) -> str:
    """Return the command-line argument that chooses one or several options of the group ``evaluation``."""
    options = evaluation if isinstance(evaluation, str) else f"[{','.join(evaluation)}]"
    return f"evaluation={options}"


def dataset_from_images(images: object, key: str) -> ImageDataset:
    """Convert the argument ``key`` of a Python API function to a dataset.

    Raises:
        DataError: If the argument is neither a dataset nor float images [N, C, H, W] in [-1, 1].
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        if not images.isfinite().all():
            raise DataError(f"{key}=... holds NaN or infinite values", key=key)
        images = to_uint8(images)
    return dataset_of(images, key, name=key)


def measure(
    composition: Composition,
    own: Mapping[str, ImageDataset] = MappingProxyType({}),
    loaded: LoadedCheckpoint | None = None,
) -> Evaluation | None:
    """Run ``genimg-eval`` with the given options, and log the result.

    Args:
        composition: The composed options.
        own: Datasets that replace those named by the options ``images`` and ``real``, by option name.
        loaded: The checkpoint that the option ``ckpt`` names, with its model, if the caller has already loaded it.

    Returns:
        The result; None after comparing two results, measuring a surface or saving statistics.

    Raises:
        UserError: If an option is invalid, or its images cannot be measured.
    """
    request = Request.of(composition, own)
    options = request.options
    if options.compare is not None:
        compare_results(options.compare, options.which)
        return None
    with processes_of_torchrun(options.device) as device_name:
        if rank() > 0:
            logging.disable(logging.WARNING)  # the first rank logs
        device = choose_device(device_name)
        if options.ckpt is not None:
            return evaluate_checkpoint(request, device, loaded)
        builder = Builder(allowed=(*ALLOWED, *options.allow), epoch_size=1)
        if request.images is not None:
            return _of_images(request, builder, device)
        _save_statistics(request, builder, device)
        return None


def _of_images(request: Request, builder: Builder, device: torch.device) -> Evaluation:
    """Measure existing images, and print the result."""
    options = request.options
    reader = request.reader(builder, device)
    assert request.images is not None
    with first_of_each_host():  # datasets may be downloaded
        real = _real(request, builder, device)
        fake = reader.read("images", request.images)
    name = title(request.images)
    if fake.images is None:
        raise ConfigError(f"images={name} holds statistics, not images: pass statistics as real=")
    assert fake.source is not None
    made: ImageSet = fake.images
    if len(made) < 2:
        raise DataError(f"images={name} holds {len(made)} image: a covariance needs 2 or more")
    if options.num_images is not None:
        made = Subset(made, options.num_images)
    evaluation = {**evaluation_of(options, _evaluation(request, real, builder), real), "num_images": len(made)}
    held_out = None if options.held_out is None else named_held_out(options.held_out, reader)
    evaluator = evaluator_for(options, evaluation, builder, real, held_out)
    if real.source is not None and real.source.shape[1:] != fake.source.shape[1:]:
        log.warning(
            "the images are %s pixels and the real ones %s: the extractor resizes both, but they then differ in sharpness",
            "x".join(map(str, fake.source.shape[1:])), "x".join(map(str, real.source.shape[1:])),
        )  # fmt: skip
    check_per_class(options, real, made)
    result = compare(options, evaluator, real, made, device, held_out)
    result = with_classes(options, result, evaluator, real, made, device)
    assert request.real is not None
    what = f"{name} against {title(request.real)}"
    report(what, with_intervals(result), result, options, device, {"images_from": name})
    log_classes(options, result)
    show_neighbors(options, evaluator, real, made, result, held_out)
    return result


def _save_statistics(request: Request, builder: Builder, device: torch.device) -> None:
    """Compute and write the statistics of the real images."""
    options = request.options
    assert request.real is not None
    assert options.save_statistics is not None
    with first_of_each_host():
        real = _real(request, builder, device)
    evaluator = evaluator_for(options, evaluation_of(options, _evaluation(request, real, builder), real), builder, real)
    if real.images is None or real.source is None:
        raise ConfigError(f"real={title(request.real)} already holds statistics: give images to compute statistics from")
    statistics = evaluator.statistics(real.images, device)
    path = Path(options.save_statistics)
    if rank() == 0:
        statistics.write(path)
    log.info("statistics of %d images of %s by %s: %s", statistics.summary.num_images, real.source.name,
             evaluator.extractor.name, path)  # fmt: skip


def _real(request: Request, builder: Builder, device: torch.device) -> Side:
    assert request.real is not None
    return request.reader(builder, device).read("real", request.real)


def _evaluation(request: Request, real: Side, builder: Builder) -> Mapping[str, Any]:
    """Return the given evaluation; single keys change the dataset's own evaluation, or else the default one."""
    given = request.evaluation or {}
    if "_target_" in given:
        return given
    with raise_on_any_rank():  # the default depends on files that other hosts may not have
        changed = _default_evaluation(request, real, builder) if rank() == 0 else None
    evaluation: Mapping[str, Any] = broadcast_object(changed)
    return evaluation


def _default_evaluation(request: Request, real: Side, builder: Builder) -> Mapping[str, Any]:
    """Return the dataset's own evaluation, that of saved statistics, or else the default one, with the given keys changed."""
    given = request.evaluation or {}
    chooses_inception = "extractor" in given or request.options.inception_weights is not None
    option = "inception"
    if real.statistics is not None and not chooses_inception:
        option = evaluation_by_extractor(real.statistics.extractor)
    usual = real.evaluation or compose_evaluation(f"evaluation={option}")["evaluation"]
    changed: dict[str, Any] = merged(usual, given)
    if real.statistics is None and not chooses_inception:
        return default_photo_evaluation(changed, builder) or changed
    return changed
