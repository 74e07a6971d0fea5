#!/usr/bin/env python3
"""Measure whether an extractor ranks image quality: degrade real images by several strengths, and print Markdown tables.

    python scripts/extractor_ranking.py shapes
    python scripts/extractor_ranking.py mnist --root datasets
    python scripts/extractor_ranking.py folder --root cifar10/train --evaluation cifar10_classifier
    python scripts/extractor_ranking.py folder --root cifar10/train --evaluation efficientnet_lite --images 2000 --real 10000
    python scripts/extractor_ranking.py shapes --samples outputs/RUN/10k.npz outputs/RUN/20k.npz

The degraded images are MNIST's test images, measured against its training images; one half of a folder's images, measured
against the other half; or drawn shapes, measured against shapes drawn with another seed. Each of eight degradations has five
strengths. The tables show Spearman's rank correlation of the Fréchet and kernel distances with the strength. It is 1 if every
stronger degradation has a larger distance.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.data.datasets import builtin
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.datasets.shapes import ShapesDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import random_order
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.names import full_name
from genimg.training.device import choose_device, describe_hardware
from genimg.utils.paths import config_dir

Pixels = NDArray[np.uint8]
COLUMNS = ("fd", "kd", "is", "precision", "recall", "density", "coverage", "class_coverage", "class_kl")


def noise(images: Pixels, deviation: float) -> Pixels:
    """Add Gaussian noise; the deviation is in grey levels."""
    rng = np.random.default_rng(0)
    return to_pixels(images + rng.normal(0.0, deviation, images.shape))


def salt_and_pepper(images: Pixels, share: float) -> Pixels:
    """Make a share of the pixels black or white."""
    drawn = np.random.default_rng(0).random((len(images), 1, *images.shape[2:]))
    return np.where(drawn < share / 2, 0, np.where(drawn < share, 255, images)).astype(np.uint8)


def blur(images: Pixels, sigma: float) -> Pixels:
    """Blur with a Gaussian; sigma is in pixels."""
    radius = round(3 * sigma)
    line = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    line, channels = line / line.sum(), images.shape[1]
    values = F.pad(torch.from_numpy(images).float(), (radius,) * 4, mode="reflect")
    for kernel in (line[:, None], line[None, :]):
        values = F.conv2d(values, kernel.expand(channels, 1, *kernel.shape), groups=channels)
    return to_pixels(values.numpy())


def jpeg(images: Pixels, quality: float) -> Pixels:
    """Encode and decode images with Pillow.

    The blocks begin 4 pixels outside the images. Otherwise, the blocks of images from JPEG files would be quantised twice,
    which makes some high qualities worse than lower ones.
    """

    def coded(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "JPEG", quality=int(quality))
        pixels = np.asarray(Image.open(file))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    padded = np.pad(images, ((0, 0), (0, 0), (4, 0), (4, 0)), mode="reflect")
    return np.stack([coded(image) for image in padded])[:, :, 4:, 4:]


def pixelation(images: Pixels, factor: float) -> Pixels:
    """Reduce the resolution by an integer factor with area averaging, and repeat pixels."""
    size = [side // int(factor) for side in images.shape[2:]]
    small = F.interpolate(torch.from_numpy(images).float(), size=size, mode="area")
    return to_pixels(F.interpolate(small, size=images.shape[2:], mode="nearest").numpy())


def warp(images: Pixels, amplitude: float) -> Pixels:
    """Displace pixels by waves of 16 pixels with a random phase for each image; the amplitude is in pixels."""
    count, _, height, width = images.shape
    phase = torch.from_numpy(np.random.default_rng(0).random((2, count, 1, 1)) * 2 * np.pi).float()
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    moved_x = x + amplitude * torch.sin(2 * torch.pi * y / 16 + phase[0])
    moved_y = y + amplitude * torch.sin(2 * torch.pi * x / 16 + phase[1])
    grid = torch.stack([2 * (moved_x + 0.5) / width - 1, 2 * (moved_y + 0.5) / height - 1], dim=3)
    values = F.grid_sample(torch.from_numpy(images).float(), grid, padding_mode="border", align_corners=False)
    return to_pixels(values.numpy())


def ghost(images: Pixels, share: float) -> Pixels:
    """Blend each image with another image, whose weight is the share."""
    return to_pixels((1 - share) * images.astype(np.float64) + share * np.roll(images, 1, axis=0))


def contrast(images: Pixels, factor: float) -> Pixels:
    """Multiply the differences from each image's mean by a factor."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return to_pixels((images - mean) * factor + mean)


def to_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


DEGRADATIONS: dict[str, tuple[Callable[[Pixels, float], Pixels], tuple[float, ...]]] = {
    "noise, deviation in levels": (noise, (8, 16, 32, 64, 128)),
    "salt and pepper, share": (salt_and_pepper, (0.01, 0.02, 0.05, 0.1, 0.2)),
    "blur, sigma in px": (blur, (0.5, 0.75, 1, 2, 4)),
    "JPEG, quality": (jpeg, (50, 30, 20, 10, 5)),
    "pixelation, factor": (pixelation, (2, 3, 4, 6, 8)),
    "warp, amplitude in px": (warp, (0.5, 1, 2, 3, 4)),
    "ghost, share": (ghost, (0.05, 0.1, 0.2, 0.3, 0.45)),
    "contrast, factor": (contrast, (0.9, 0.8, 0.6, 0.4, 0.2)),
}
"""Eight degradations, each from weak to strong. The training of genimg-features does not use salt and pepper."""


def first_classes(count: int) -> Callable[[Pixels, NDArray[np.int64]], Pixels]:
    def spoil(images: Pixels, labels: NDArray[np.int64]) -> Pixels:
        """Repeat the images of the first classes up to the original count, so the count does not affect the result."""
        chosen = images[labels < count]
        return np.resize(chosen, images.shape)

    return spoil


DROPPED: dict[str, Callable[[Pixels, NDArray[np.int64]], Pixels]] = {
    "as they are": lambda images, labels: images,
    **{f"{count} of the classes": first_classes(count) for count in (9, 7, 5, 2, 1)},
}


def everything(source: ImageDataset, indices: NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64]]:
    assert source.labels is not None
    return source.read_many(indices), source.labels[indices]


def spearman(values: Sequence[float]) -> float:
    """Return the rank correlation of the values with their order, assuming no ties."""
    ranks = np.argsort(np.argsort(values))
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])


def real_and_measured(data: str, root: str) -> tuple[Pixels, Pixels, NDArray[np.int64]]:
    """Return real images to measure against, and other images of the same kind with their labels."""
    if data == "shapes":
        real, other = (
            ShapesDataset(seed=seed, num_images=10_000, image_size=32, channels=3, num_objects=1, labels="color_shape")
            for seed in (0, 2)
        )
        return everything(real, np.arange(len(real)))[0], *everything(other, np.arange(len(other)))
    if data == "mnist":
        options = {"root": root, "image_size": 28, "channels": 1, "fit": "stretch"}
        real, other = (builtin.mnist(split=split, **options) for split in ("train", "test"))
        return everything(real, np.arange(len(real)))[0], *everything(other, np.arange(len(other)))
    source = builtin.folder(root=root, image_size=32, channels=3, fit="crop", labels="required")
    order = random_order(len(source), seed=0)
    half = len(source) // 2
    return everything(source, order[:half])[0], *everything(source, order[half:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["shapes", "mnist", "folder"])
    parser.add_argument("--root", default="datasets", help="directory of the data")
    parser.add_argument(
        "--evaluation", help="evaluation with one extractor, or .pt file of genimg-features; default: the data's name"
    )
    parser.add_argument("--images", type=int, default=5000, help="number of measured images")
    parser.add_argument("--real", type=int, help="number of real images to measure against; default: all")
    parser.add_argument("--samples", nargs="+", help=".npz files of genimg-sample to measure, from worst to best")
    arguments = parser.parse_args()
    real, measured, labels = real_and_measured(arguments.data, arguments.root)
    chosen = np.sort(random_order(len(measured), seed=1)[: arguments.images])
    measured, labels = measured[chosen], labels[chosen]
    if arguments.real is not None:
        real = real[np.sort(random_order(len(real), seed=2)[: arguments.real])]
    device = choose_device("auto")
    name = arguments.evaluation or arguments.data
    group = ["classifier", f"evaluation.extractor.classifier='{name}'"] if name.endswith(".pt") else [name]
    with tempfile.TemporaryDirectory() as cache:
        evaluator = evaluator_of([f"evaluation={group[0]}", *group[1:], f"evaluation.cache_dir='{cache}'"], len(measured))
        digest = evaluator.extractor.weights_sha256 or ""
        print(f"{len(measured)} images against {len(real)}, extractor {evaluator.extractor.name} ({digest[:8]}),")
        print(f"{describe_hardware(device)}, torch {torch.__version__}\n")
        if arguments.samples:
            images = {path: np.load(path)["arr_0"].transpose(0, 3, 1, 2)[:, : real.shape[1]] for path in arguments.samples}
            rows = print_rows(evaluator, real, images, device)
            for column in ("fd", "kd"):
                print(f"{column}: Spearman {-spearman([row[column] for row in rows]):.3f}")
            return
        print_rows(evaluator, real, {name: drop(measured, labels) for name, drop in DROPPED.items()}, device)
        print("\n| degradation | strengths | fd | Spearman | kd | Spearman | precision |")
        print("|---|---|---|---:|---|---:|---|")
        for name, (degrade, strengths) in DEGRADATIONS.items():
            values = [measure(evaluator, real, degrade(measured, strength), device) for strength in strengths]
            cells = [" ".join(f"{strength:g}" for strength in strengths)]
            for column in ("fd", "kd"):
                cells.append(" ".join(f"{value[column]:.3g}" for value in values))
                cells.append(f"{spearman([value[column] for value in values]):.2f}")
            cells.append(" ".join(f"{value['precision']:.2g}" for value in values))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def print_rows(evaluator: Evaluator, real: Pixels, images: dict[str, Pixels], device: torch.device) -> list[dict[str, float]]:
    """Print a row of the evaluation's columns for each set of images, and return the values."""
    rows: list[dict[str, float]] = []
    for name, pixels in images.items():
        rows.append(measure(evaluator, real, pixels, device))
        if len(rows) == 1:
            print(f"| measured images | {' | '.join(rows[0])} |")
            print("|---|" + "---:|" * len(rows[0]))
        print(f"| {name} | {' | '.join(f'{value:.4g}' for value in rows[-1].values())} |", flush=True)
    return rows


def evaluator_of(overrides: list[str], num_images: int) -> Evaluator:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("train", overrides=[*overrides, f"evaluation.num_images={num_images}"])
    node = OmegaConf.to_container(composed.evaluation, resolve=True)
    assert isinstance(node, dict)
    evaluator = build_evaluator(node, Builder())
    assert isinstance(evaluator, Evaluator)
    return evaluator


def measure(evaluator: Evaluator, real: Pixels, fake: Pixels, device: torch.device) -> dict[str, float]:
    sides = (
        DatasetImages(
            ImageLoader(
                ArrayDataset("images", np.ascontiguousarray(pixels)), storage="host", num_workers=0, horizontal_flip=False,
                max_corrupt=0, device=device,
            )
        )
        for pixels in (real, fake)
    )  # fmt: skip
    values = evaluator.compare(*sides, device).values
    names = {column: full_name(evaluator.extractor, column, len(fake)) for column in COLUMNS}
    return {column: values[name] for column, name in names.items() if name in values}


if __name__ == "__main__":
    main()
