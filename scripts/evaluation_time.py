#!/usr/bin/env python3
"""Measure how much longer an evaluation takes than its extractor's forward pass alone over the same images.

    python scripts/evaluation_time.py --weights weights-inception-2015-12-05-6726825d.pth
    python scripts/evaluation_time.py                       # Inception with random weights takes the same time
    python scripts/evaluation_time.py --classifier mnist    # a small classifier, so the other work matters more

Both are timed alternately in one process, and the ratio of their medians is printed. On a CPU, a call returns when its work is
done, so the time that the evaluation spends in the extractor is printed, too; load from other programs affects both parts
equally. The evaluation computes every metric of configs/evaluation/base.yaml with cached statistics of the real images. In
both cases, the images are in memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.datasets.shapes import shapes
from genimg.data.loader import ImageLoader
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.feature_extraction import full_float32
from genimg.evaluation.image_sets import DatasetImages
from genimg.training.device import choose_device, describe_hardware
from genimg.utils.paths import config_dir


def random_inception(path: Path) -> None:
    """Write He-initialised weights, with which the network takes the same time as with the published ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    load, nn.Module.load_state_dict = nn.Module.load_state_dict, lambda *arguments, **keywords: None
    download, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *arguments, **keywords: {}
    try:
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    finally:
        nn.Module.load_state_dict, module.load_state_dict_from_url = load, download
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def evaluator_of(overrides: list[str]) -> Evaluator:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", overrides=overrides).evaluation, resolve=True)
    assert isinstance(node, dict)
    evaluator = build_evaluator(node, Builder())
    assert isinstance(evaluator, Evaluator)
    return evaluator


def placed(count: int, seed: int, size: int, device: torch.device) -> DatasetImages:
    """Return drawn shapes in memory, so no decoding is timed."""
    source = shapes(seed=seed, num_images=count, image_size=size, channels=3, num_objects=1)
    pixels = torch.stack([torch.from_numpy(source.read(i)) for i in range(count)]).numpy()
    data = ImageLoader(
        ArrayDataset("shapes", pixels), storage="device", num_workers=0, horizontal_flip=False, max_corrupt=0, device=device
    )
    data.load()
    return DatasetImages(data)


def timed(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="Inception's weights file; default: random weights, which take the same time")
    parser.add_argument("--classifier", help="shipped classifier to use instead of Inception, such as mnist")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--real", type=int, default=5000, help="number of real images, whose features are computed untimed")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.classifier:
            chosen = [f"evaluation={arguments.classifier}"]
        else:
            weights = arguments.weights or f"{folder}/random.pth"
            if not arguments.weights:
                random_inception(Path(weights))
            chosen = ["evaluation=inception", f"evaluation.extractor.weights='{weights}'", "evaluation.extractor.sha256=null"]
        settings = {"num_images": arguments.images, "batch_size": arguments.batch_size, "cache_dir": f"'{folder}'"}
        evaluator = evaluator_of([*chosen, *(f"evaluation.{key}={value}" for key, value in settings.items())])
        evaluator.extractor.to(device)
        fake = placed(arguments.images, 1, arguments.size, device)
        real = placed(arguments.real, 2, arguments.size, device)
        report(evaluator, real, fake, arguments.rounds, device)


def report(evaluator: Evaluator, real: DatasetImages, fake: DatasetImages, rounds: int, device: torch.device) -> None:
    extractor, pixels = evaluator.extractor, fake.data.images(torch.arange(len(fake)).numpy())
    batches = pixels.split(evaluator.batch_size)

    def bare() -> None:
        with full_float32():
            for batch in batches:
                extractor(batch)

    def whole() -> None:
        evaluator.compare(real, fake, device)

    print(f"{extractor.name}, {len(fake)} images of {pixels.shape[-1]} pixels, batches of {evaluator.batch_size}")
    print(f"hardware: {describe_hardware(device)}, torch {torch.__version__}")
    print(f"first evaluation, with {len(real)} real images: {timed(whole, device):.1f} s")
    times: dict[str, list[float]] = {"bare": [], "evaluation": [], "inside": []}
    extract, inside = extractor.extract, [0.0]

    def watched(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        start = time.perf_counter()
        try:
            return extract(images)
        finally:
            inside[0] += time.perf_counter() - start

    extractor.extract = watched  # type: ignore[method-assign]
    for i in range(rounds):
        times["bare"].append(timed(bare, device))
        inside[0] = 0.0
        times["evaluation"].append(timed(whole, device))
        times["inside"].append(inside[0])
        print(f"round {i + 1}: bare {times['bare'][-1]:.2f} s, evaluation {times['evaluation'][-1]:.2f} s")
    ratio = statistics.median(times["evaluation"]) / statistics.median(times["bare"])
    print(f"evaluation / bare forward: {ratio:.3f} (medians of {rounds} rounds)")
    if device.type == "cpu":
        own = statistics.median(whole / inner for whole, inner in zip(times["evaluation"], times["inside"], strict=True))
        print(f"evaluation / its own time inside the extractor: {own:.3f} (median)")


if __name__ == "__main__":
    main()
