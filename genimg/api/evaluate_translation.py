"""genimg-eval for a translation model: measure its outputs, its inputs and the outputs of classical methods, per image."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint, check_own_images
from genimg.api.data import build_dataset, build_loader, build_task
from genimg.api.evaluate_features import with_numbers
from genimg.api.evaluate_request import Request
from genimg.api.results import report
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import mounted
from genimg.config.schema.commands import Eval
from genimg.data.loader import ImageLoader
from genimg.data.subsets import subset_of
from genimg.data.tasks.base import Task
from genimg.data.tasks.degradations import Denoise, Inpaint
from genimg.errors import ConfigError
from genimg.evaluation.baselines import biharmonic, non_local_means
from genimg.evaluation.result import Evaluation
from genimg.evaluation.translation_base import TranslationEvaluator
from genimg.evaluation.translation_metrics import means_over_images, similarities
from genimg.methods.base import Method
from genimg.methods.capabilities import Translates, TranslatesRandomly
from genimg.methods.image_to_image import pictures_of
from genimg.types import Batch
from genimg.utils.csv_cells import neutral
from genimg.utils.distributed import all_gather_rows, rank, world_size
from genimg.utils.files import atomically
from genimg.utils.images import grid, to_uint8, write_png
from genimg.utils.rng import steady

log = logging.getLogger(__name__)

_WORST = 8  # images in the picture
_OF_TRANSLATORS = {
    "ckpt", "which", "evaluation", "device", "num_images", "batch_size", "seed", "data_root", "picture", "output", "provenance",
    "allow", "traceback", "weights", "model_mode", "classical", "table", "split",
}  # fmt: skip

Row = dict[str, Tensor]
"""Values [N] of each metric, for the output of one method."""

Makers = dict[str, Callable[[Batch], Tensor]]
"""Functions that compute uint8 images from a batch, by name."""


def evaluate_translator(request: Request, checkpoint: TrainedCheckpoint, device: torch.device) -> Evaluation:
    """Print, and write if requested, how close translations of held-out images are to their targets.

    Args:
        request: The options.
        checkpoint: The checkpoint; its config holds the location of its data and the evaluation.
        device: Device of the model.

    Raises:
        ConfigError: If a setting has no effect here.
    """
    method = checkpoint.method(device)
    assert isinstance(method, Translates)
    known = _OF_TRANSLATORS | ({"sampling", "num_samples"} if isinstance(method, TranslatesRandomly) else set())
    if useless := sorted(request.typed.keys() - known):
        raise ConfigError(f"{request.typed[useless[0]]} has no effect on a model that translates images: remove it")
    usual = method.sampled_mode
    try:
        if request.options.model_mode is not None:
            method.set_mode(request.options.model_mode)
        return _evaluate(request, checkpoint, method, device)
    finally:
        method.sampled_mode = usual  # the caller may still use the model


def _evaluate(request: Request, checkpoint: TrainedCheckpoint, method: Method, device: torch.device) -> Evaluation:
    assert isinstance(method, Translates)
    options, config, builder = request.options, checkpoint.config, checkpoint.builder
    source = build_dataset(config, builder)
    check_own_images(source, method, checkpoint.state, other_split=options.split is not None)
    data = build_loader(config, source, device, task=build_task(config, source, builder))
    evaluation = with_numbers(config["evaluation"], options, ("num_images", "batch_size", "seed", "num_samples"))
    evaluation |= {"sampling": {**(evaluation.get("sampling") or {}), **options.sampling}} if options.sampling else {}
    evaluator = build_evaluator(evaluation, builder)
    assert evaluator is not None
    with mounted("evaluation", evaluator):
        evaluator.check(method)
    assert isinstance(evaluator, TranslationEvaluator)
    paired = "source" in method.batch_keys
    if not paired and (useless := sorted(request.typed.keys() & {"classical", "table", "picture"})):
        raise ConfigError(f"{request.typed[useless[0]]} has no effect on unpaired data, where no image has a target: remove it")
    if options.classical and world_size() > 1:
        raise ConfigError("classical=true supports only a single process: start it without torchrun")
    collected = _Collector(method.task, _classical(method.task) if options.classical else {})
    observe = collected.add if paired else lambda batch, found: None
    result = evaluator.evaluate(method, data, device, weights=checkpoint.weights_label, observe=observe)
    columns = {"model": result.values}
    if paired:
        rows = collected.rows()
        columns |= {name: means_over_images(row) for name, row in rows.items() if name != "model"}
        if rank() == 0:
            _write_images(options, method, data, evaluator, rows)
    path, images = checkpoint.path, checkpoint.images
    others = {name: values for name, values in columns.items() if name != "model"}
    subject = {"checkpoint": str(path), "images": images, "others": others}
    report(f"{path}, trained on {images} images", columns | _gains(columns), result, options, device, subject)
    return result


def _write_images(
    options: Eval, method: Translates, data: ImageLoader, evaluator: TranslationEvaluator, rows: dict[str, Row]
) -> None:
    """Write the table of all images and the picture of the worst ones, if requested."""
    if options.table is not None:
        _write_table(Path(options.table), data, evaluator, rows)
        log.info("values of every image: %s", options.table)
    if options.picture is not None:
        _write_worst(Path(options.picture), method, data, evaluator, rows)
        log.info("the %d worst images by PSNR, each with source, translation and target: %s", _WORST, options.picture)


class _Collector:
    """Collects the metrics of every image, for the model, the baselines, and the source if it has the target's shape.

    Args:
        task: Task of the batches.
        baselines: Other methods to measure.
    """

    def __init__(self, task: Task, baselines: Makers) -> None:
        self._task, self._baselines = task, baselines
        self._found: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def add(self, batch: Batch, found: Row) -> None:
        """Add a batch and the metrics of the model's output for it."""
        self._keep("model", found)
        reference = to_uint8(self._task.result(batch["target"], batch["source"]))
        for name, make in self._baselines.items():
            self._keep(name, similarities(reference, make(batch), self._task, batch["source"]))
        given = to_uint8(self._task.shown(batch["source"]))
        if given.shape == reference.shape:
            self._keep("source", similarities(reference, given, self._task, batch["source"]))

    def rows(self) -> dict[str, Row]:
        """Return the metrics of the images of all ranks, in order."""
        return {
            name: {metric: all_gather_rows(torch.cat(parts)) for metric, parts in row.items()}
            for name, row in self._found.items()
        }

    def _keep(self, name: str, numbers: Row) -> None:
        for metric, values in numbers.items():
            self._found[name][metric].append(values.cpu())


def _gains(columns: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the difference between the model's metrics and those of every other column."""
    model = columns["model"]
    return {
        f"model - {name}": {metric: model[metric] - value for metric, value in values.items() if metric in model}
        for name, values in columns.items()
        if name != "model"
    }


def _chosen(data: ImageLoader, evaluator: TranslationEvaluator) -> tuple[ImageLoader, NDArray[np.int64]]:
    """Return the data to measure, and the indices of its images."""
    held_out = data.validation or data
    return held_out, subset_of(held_out.source, evaluator.num_images)


def _classical(task: Task) -> Makers:
    """Return the classical methods for this task, which need no training.

    Raises:
        ConfigError: If there are none.
    """
    if isinstance(task, Inpaint):
        return {"biharmonic": lambda batch: biharmonic(to_uint8(task.shown(batch["source"])), batch["mask"])}
    if isinstance(task, Denoise) and task.noise == "gaussian" and task.amount[0] == task.amount[1]:
        sigma = task.amount[0]
        return {"non-local means": lambda batch: non_local_means(to_uint8(batch["source"]), sigma=sigma)}
    raise ConfigError(
        "classical=true supports task=inpaint (biharmonic) and task=denoise with Gaussian noise of one strength (non-local "
        "means); for super_resolution, the source itself is the classical result (bicubic)"
    )


def _write_table(path: Path, data: ImageLoader, evaluator: TranslationEvaluator, rows: dict[str, Row]) -> None:
    """Write a CSV file with a line for each image, worst first."""
    held_out, indices = _chosen(data, evaluator)
    order: Sequence[int] = torch.argsort(rows["model"]["psnr"], stable=True).tolist()
    titles = [f"{metric} {name}" for name, row in rows.items() for metric in row]
    with atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *titles])
        for index in order:
            writer.writerow(
                [
                    neutral(held_out.source.title(int(indices[index]))),
                    *(f"{v[index].item():.6g}" for row in rows.values() for v in row.values()),
                ]
            )


def _write_worst(
    path: Path, method: Translates, data: ImageLoader, evaluator: TranslationEvaluator, rows: dict[str, Row]
) -> None:
    held_out, indices = _chosen(data, evaluator)
    worst = torch.argsort(rows["model"]["psnr"], stable=True)[:_WORST].numpy()
    pictures = []
    for position in worst:
        with steady(evaluator.noise_seed, int(position)):
            batch = held_out.examples(indices[[position]], evaluator.noise_seed)
            pictures.append(pictures_of(method, batch, evaluator.translated(method, batch["source"], indices[[position]])))
    write_png(grid(torch.cat(pictures)), path)
