#!/usr/bin/env python3
"""Does an extractor see what it should? Measures real images that were spoilt more and more, and prints a Markdown table.

    python scripts/extractor_ranking.py mnist --root datasets
    python scripts/extractor_ranking.py folder --root cifar10/train --evaluation cifar10_classifier

MNIST's test images are measured against its training images; a folder's odd images against its even ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf

from genimg import build
from genimg.data import sources
from genimg.data.placement import Data
from genimg.data.sources import ArraySource, Source
from genimg.evaluation.evaluator import Evaluator, short_count
from genimg.evaluation.imagesets import DatasetImages
from genimg.paths import config_dir
from genimg.training.device import choose_device, describe_hardware

Pixels = NDArray[np.uint8]
COLUMNS = ("fd", "kd", "is", "precision", "recall", "density", "coverage", "class_coverage", "class_kl")


def noise(deviation: float) -> Callable[[Pixels, NDArray[np.int64]], Pixels]:
    def spoil(images: Pixels, labels: NDArray[np.int64]) -> Pixels:
        rng = np.random.default_rng(0)
        return np.clip(np.round(images + rng.normal(0.0, deviation, images.shape)), 0, 255).astype(np.uint8)

    return spoil


def blur(sigma: float) -> Callable[[Pixels, NDArray[np.int64]], Pixels]:
    def spoil(images: Pixels, labels: NDArray[np.int64]) -> Pixels:
        radius = round(3 * sigma)
        line = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
        line, channels = line / line.sum(), images.shape[1]
        values = F.pad(torch.from_numpy(images).float(), (radius,) * 4, mode="reflect")
        for kernel in (line[:, None], line[None, :]):
            values = F.conv2d(values, kernel.expand(channels, 1, *kernel.shape), groups=channels)
        return values.round().clamp(0, 255).to(torch.uint8).numpy()

    return spoil


def first_classes(count: int) -> Callable[[Pixels, NDArray[np.int64]], Pixels]:
    def spoil(images: Pixels, labels: NDArray[np.int64]) -> Pixels:
        """Repeated to the same count, so that the count is not what is measured."""
        chosen = images[labels < count]
        return np.resize(chosen, images.shape)

    return spoil


SPOILT: dict[str, Callable[[Pixels, NDArray[np.int64]], Pixels]] = {
    "as they are": lambda images, labels: images,
    **{f"noise, deviation {deviation}": noise(deviation) for deviation in (8, 16, 32, 64, 128)},
    **{f"blur, sigma {sigma} px": blur(sigma) for sigma in (0.5, 1.0, 2.0, 4.0)},
    **{f"{count} of the classes": first_classes(count) for count in (9, 7, 5, 2, 1)},
}


def everything(source: Source, start: int, step: int) -> tuple[Pixels, NDArray[np.int64]]:
    indices = np.arange(start, len(source), step)
    assert source.labels is not None
    return np.stack([source.read(int(i)) for i in indices]), source.labels[indices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "folder"])
    parser.add_argument("--root", default="datasets", help="where the data lies")
    parser.add_argument("--evaluation", help="of a shipped classifier, or a .pt of genimg-features; default: the data's name")
    parser.add_argument("--images", type=int, default=5000, help="measured images")
    arguments = parser.parse_args()
    if arguments.data == "mnist":
        options = {"root": arguments.root, "image_size": 28, "channels": 1, "fit": "stretch"}
        real = everything(sources.mnist(split="train", **options), 0, 1)[0]
        fake, labels = everything(sources.mnist(split="test", **options), 0, 1)
    else:
        source = sources.folder(root=arguments.root, image_size=32, channels=3, fit="crop", labels="required")
        real, (fake, labels) = everything(source, 0, 2)[0], everything(source, 1, 2)
    chosen = np.random.default_rng(0).permutation(len(fake))[: arguments.images]
    fake, labels = fake[chosen], labels[chosen]
    device = choose_device("auto")
    chosen = arguments.evaluation or arguments.data
    group = ["classifier", f"evaluation.extractor.classifier='{chosen}'"] if chosen.endswith(".pt") else [chosen]
    with tempfile.TemporaryDirectory() as cache:
        evaluator = evaluator_of([f"evaluation={group[0]}", *group[1:], f"evaluation.cache_dir='{cache}'"], len(fake))
        digest = evaluator.extractor.weights_sha256 or ""
        print(f"{len(fake)} images against {len(real)}, extractor {evaluator.extractor.name} ({digest[:8]}),")
        print(f"{describe_hardware(device)}, torch {torch.__version__}\n")
        print(f"| measured images | {' | '.join(COLUMNS)} |")
        print("|---|" + "---:|" * len(COLUMNS))
        for name, spoil in SPOILT.items():
            values = measure(evaluator, real, spoil(fake, labels), device)
            print(f"| {name} | {' | '.join(f'{values[column]:.4g}' for column in COLUMNS)} |", flush=True)


def evaluator_of(overrides: list[str], num_images: int) -> Evaluator:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("train", overrides=[*overrides, f"evaluation.num_images={num_images}"])
    config = {"evaluation": OmegaConf.to_container(composed.evaluation, resolve=True)}
    evaluator = build.build_evaluator(config, build.Builder(epoch_size=1))
    assert evaluator is not None
    return evaluator


def measure(evaluator: Evaluator, real: Pixels, fake: Pixels, device: torch.device) -> dict[str, float]:
    sides = (
        DatasetImages(
            Data(
                ArraySource("images", np.ascontiguousarray(pixels)), placement="host", num_workers=0, horizontal_flip=False,
                max_corrupt=0, device=device,
            )
        )
        for pixels in (real, fake)
    )  # fmt: skip
    values = evaluator.compare(*sides, device).values
    return {column: values[evaluator.extractor.metric_name(column, short_count(len(fake)))] for column in COLUMNS}


if __name__ == "__main__":
    main()
