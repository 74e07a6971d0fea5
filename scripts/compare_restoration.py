"""Compare finished restoration runs with each other and with classical methods, on the same held-out images.

    python scripts/compare_restoration.py RUN [RUN ...] --evaluation translation_cifar10_classifier --sampling steps=18

All runs must have the same data and task: inpainting (compared with biharmonic surfaces, which need scikit-image) or
super-resolution (compared with bicubic interpolation). The script prints a Markdown table of PSNR, SSIM, feature distances, and
the diversity of random translations. Diffusion models use their default sampling options unless --sampling changes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

import genimg
from genimg.api.data import build_dataset, build_loader, build_task
from genimg.config.compose import compose
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.data.loader import ImageLoader
from genimg.data.tasks.base import Task
from genimg.data.tasks.degradations import Inpaint, SuperResolution
from genimg.errors import ConfigError
from genimg.evaluation.baselines import biharmonic
from genimg.evaluation.result import Evaluation
from genimg.evaluation.translation import PairedEvaluator
from genimg.methods.capabilities import TranslatesRandomly
from genimg.methods.image_to_image import Translation
from genimg.types import Batch, Metrics, Microbatches, Progress
from genimg.utils.images import to_float, to_uint8

_CLASSICAL = {Inpaint: "biharmonic", SuperResolution: "bicubic"}
_SAME = ("held_out", "fingerprint", "image_shape", "num_images", "task", "seed")


class Classical(Translation):
    """A classical method, which needs no training, with the interface of a translator.

    Args:
        task: Inpainting or super-resolution, whose sources are enlarged by bicubic interpolation.
    """

    inference_networks = ()

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.network = nn.Identity()

    def translator(self, direction: str | None) -> nn.Module:
        return self.network

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        missing = self.task.missing(source)
        return source if missing is None else to_float(biharmonic(to_uint8(self.task.shown(source)), missing))

    batch_keys = ("source", "target")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def step(self, batch: Microbatches, progress: Progress, update: Any) -> Metrics:
        raise NotImplementedError

    def check(self, batch: Batch) -> None:
        raise NotImplementedError

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        raise NotImplementedError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one task and one dataset")
    parser.add_argument("--evaluation", default="translation_cifar10_classifier", help="option of the group evaluation")
    parser.add_argument("--num-images", type=int, default=1000, help="number of held-out images")
    parser.add_argument("--sampling", nargs="*", default=[], help="sampling options of diffusion models, such as steps=10")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="which checkpoint of a run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    table = compare(options)
    print(table)
    if options.output is not None:
        options.output.write_text(table + "\n", encoding="utf-8")


def compare(options: argparse.Namespace) -> str:
    """Measure all runs and the classical method, and return the table."""
    rows: dict[str, Evaluation] = {}
    titles = {}
    for run in options.runs:
        model = genimg.load(run, which=options.which, device=options.device)
        random = isinstance(model.method, TranslatesRandomly)
        sampling = [f"sampling.{each}" for each in options.sampling] if random else []
        found = model.evaluate(evaluation=options.evaluation, num_images=options.num_images, overrides=sampling)
        rows[str(run)] = found
        parameters = sum(each.numel() for each in model.method.parameters())
        evaluations = found.provenance.get("sampling", {}).get("num_evaluations", 1)
        titles[str(run)] = (
            f"{run.name}, {parameters:,} parameters, {model.images_seen:,} images, "
            f"{evaluations} network evaluation{'s' * (evaluations > 1)}"
        )
        require_same(rows)
    first = genimg.load(options.runs[0], which=options.which, device=options.device)
    config, builder = first.config, Builder()
    dataset = build_dataset(config, builder)
    task = build_task(config, dataset, builder)
    assert task is not None
    name = next((each for kind, each in _CLASSICAL.items() if isinstance(task, kind)), None)
    if name is not None:
        data = build_loader(config, dataset, torch.device(options.device), task=task)
        rows[name], titles[name] = measured(task, data, options), f"{name}, without training"
    return as_table(rows, titles)


def measured(task: Task, data: ImageLoader, options: argparse.Namespace) -> Evaluation:
    """Measure the classical method of a task."""
    node = compose([f"evaluation={options.evaluation}", f"evaluation.num_images={options.num_images}"]).config["evaluation"]
    evaluator = build_evaluator(OmegaConf.to_container(node, resolve=True), Builder())  # type: ignore[arg-type]
    assert isinstance(evaluator, PairedEvaluator)
    return evaluator.evaluate(Classical(task), data, torch.device(options.device))


def require_same(rows: dict[str, Evaluation]) -> None:
    """Reject runs that were not measured on the same images and task.

    Raises:
        ConfigError: If two differ.
    """
    of_runs = [{key: found.provenance["translation"][key] for key in _SAME} for found in rows.values()]
    for run, each in zip(rows, of_runs, strict=True):
        if each != of_runs[0]:
            key = next(key for key in _SAME if each[key] != of_runs[0][key])
            raise ConfigError(
                f"{run} was measured with {key}={each[key]}, the first run with {of_runs[0][key]}: compare runs of one task"
            )


def as_table(rows: dict[str, Evaluation], titles: dict[str, str]) -> str:
    """Return a Markdown table with a column for every metric that any row has."""
    metrics = list(dict.fromkeys(metric for found in rows.values() for metric in found.values))
    lines = [f"| model | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for row, found in rows.items():
        cells = (f"{found.values[metric]:.4g}" if metric in found.values else "" for metric in metrics)
        lines.append(f"| {titles[row]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
