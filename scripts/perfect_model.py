#!/usr/bin/env python3
"""Print the metrics of a perfect model as a Markdown table, measured on real images against other real images of a dataset.

    python scripts/perfect_model.py mnist --root datasets
    python scripts/perfect_model.py folder --root cifar10/train --evaluation cifar10_classifier

Both sides are random and disjoint subsets, so one side serves as the images of a perfect model. There are at most ten pairs of
sides, fewer if there are not enough images. The expected values of density and coverage are shown beside them: 1, and equation
8 of Naeem et al. 2020.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.data.datasets import builtin
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import random_order
from genimg.evaluation.distances import expected_coverage, frechet_distance
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.feature_extraction import Collection, collect, full_float32
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.metrics import PrecisionRecall
from genimg.training.device import choose_device, describe_hardware
from genimg.utils.paths import config_dir

NEIGHBORS, DENSITY_NEIGHBORS = 3, 5  # as in configs/evaluation/base.yaml
MOST_PAIRS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "folder"])
    parser.add_argument("--root", default="datasets", help="directory of the data")
    parser.add_argument("--evaluation", help="evaluation option whose extractor is used; default: the data's name")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 2000, 5000, 10_000], help="numbers of images per side")
    parser.add_argument("--seed", type=int, default=0, help="seed of the assignment of images to sides")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    most, device = max(arguments.counts), choose_device(arguments.device)
    source = images_of(arguments.data, arguments.root)
    if len(source) < 2 * most:
        parser.error(f"two disjoint sets of {most} images need {2 * most}, but {arguments.root} has {len(source)}")
    evaluator = evaluator_of(arguments.evaluation or arguments.data)
    extractor = evaluator.extractor
    order = random_order(len(source), seed=arguments.seed)
    print(f"{source.name}: {len(source)} images, seed {arguments.seed}; extractor {extractor.name}", end=" ")
    print(f"({(extractor.weights_sha256 or '')[:8]}),\n{describe_hardware(device)}, torch {torch.__version__}\n")
    data = ImageLoader(source, storage="auto", num_workers="auto", horizontal_flip=False, max_corrupt=0, device=device)
    with full_float32():
        extractor.to(device)
        chosen = order[: 2 * most]
        collections = [Collection(extractor, kept=np.arange(2 * most))]
        (stats,) = collect(DatasetImages(data), chosen, "features", collections, batch_size=evaluator.batch_size)
        features = stats.features
        assert features is not None
        print("| images of each side | pairs of sides | fd | precision | recall | density | expected | coverage | expected |")
        print("|---:|---:|" + "---:|" * 7)
        for count in arguments.counts:
            pairs = features.split(count)[: 2 * min(MOST_PAIRS, most // count)]
            print(row(list(zip(pairs[::2], pairs[1::2], strict=True)), device), flush=True)


def row(pairs: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> str:
    """Return one line of the table: means and deviations over disjoint pairs of features [N, D]."""
    metric, count = PrecisionRecall(neighbors=NEIGHBORS, density_neighbors=DENSITY_NEIGHBORS), len(pairs[0][0])
    found: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        real, fake = (FeatureStats(GaussianStatistics.of(side), features=side) for side in pair)
        found["fd"].append(frechet_distance(real.moments, fake.moments))
        for name, value in metric.compute(real, fake, device).items():
            found[name].append(value)
    expected = {"density": 1.0, "coverage": expected_coverage(count, count, DENSITY_NEIGHBORS)}
    cells = [f"{count:,}", str(len(pairs))]
    for name, values in found.items():
        deviation = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        cells += [f"{np.mean(values):.4g}{deviation}", *([f"{expected[name]:.4g}"] if name in expected else [])]
    return f"| {' | '.join(cells)} |"


def images_of(name: str, root: str) -> ImageDataset:
    if name == "mnist":
        return builtin.mnist(root=root, split="train", image_size=28, channels=1, fit="stretch")
    return builtin.folder(root=root, image_size=None, channels=None, fit="crop", labels="auto")


def evaluator_of(option: str) -> Evaluator:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("train", overrides=[f"evaluation={option}"])
    node = OmegaConf.to_container(composed.evaluation, resolve=True)
    assert isinstance(node, dict)
    evaluator = build_evaluator(node, Builder())
    assert isinstance(evaluator, Evaluator)
    return evaluator


if __name__ == "__main__":
    main()
