#!/usr/bin/env python3
"""How much longer an evaluation takes than its extractor's bare forward over the same images.

    python scripts/evaluation_time.py --weights weights-inception-2015-12-05-6726825d.pth
    python scripts/evaluation_time.py                       # Inception with random weights: the time is the same
    python scripts/evaluation_time.py --classifier mnist    # a small classifier, where everything else weighs more

Both are timed in turns in one process, and the ratio of their medians is printed. The evaluation computes every metric of
configs/evaluation/base.yaml with cached statistics of the real images. The images lie in memory for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from genimg.data.placement import Data
from genimg.data.shapes import shapes
from genimg.data.sources import ArraySource
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.extractors.inception import Inception
from genimg.evaluation.imagesets import DatasetImages
from genimg.evaluation.metrics import FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall
from genimg.evaluation.passes import full_float32
from genimg.interfaces import Images
from genimg.training.device import choose_device, describe_hardware


def random_inception(folder: Path) -> Inception:
    """He-initialised weights: the arithmetic is that of the published ones."""
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
    torch.save(network.state_dict(), folder / "random.pth")
    return Inception(weights=str(folder / "random.pth"), sha256=None)


def placed(count: int, seed: int, size: int, device: torch.device) -> DatasetImages:
    """Drawn shapes in memory, so that no decoding is timed."""
    source = shapes(seed=seed, num_images=count, image_size=size, channels=3, num_objects=1)
    pixels = torch.stack([torch.from_numpy(source.read(i)) for i in range(count)]).numpy()
    data = Data(
        ArraySource("shapes", pixels), placement="device", num_workers=0, horizontal_flip=False, max_corrupt=0, device=device
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
    parser.add_argument("--weights", help="of Inception; random ones take the same time")
    parser.add_argument("--classifier", help="a shipped classifier, or a .pt of genimg-features, instead of Inception")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--real", type=int, default=5000, help="real images, whose pass is not timed")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        extractor: Extractor
        if arguments.classifier:
            extractor = Classifier(classifier=arguments.classifier, sha256=None)
        elif arguments.weights:
            extractor = Inception(weights=arguments.weights, sha256=None)
        else:
            extractor = random_inception(Path(folder))
        extractor.to(device)
        evaluator = Evaluator(
            extractor=extractor,
            metrics={
                "frechet_distance": FrechetDistance(),
                "inception_score": InceptionScore(splits=10),
                "kernel_distance": KernelDistance(subsets=100, subset_size=1000),
                "precision_recall": PrecisionRecall(neighbors=3, density_neighbors=5),
            },
            num_images=arguments.images,
            num_real=None,
            batch_size=arguments.batch_size,
            interval=Images(1),
            seed=0,
            bootstrap=0,
            reconstructions=0,
            final_num_images=None,
            stop_if=None,
            cache_dir=folder,
        )
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
    times: dict[str, list[float]] = {"bare": [], "evaluation": []}
    for i in range(rounds):
        times["bare"].append(timed(bare, device))
        times["evaluation"].append(timed(whole, device))
        print(f"round {i + 1}: bare {times['bare'][-1]:.2f} s, evaluation {times['evaluation'][-1]:.2f} s")
    ratio = statistics.median(times["evaluation"]) / statistics.median(times["bare"])
    print(f"evaluation / bare forward: {ratio:.3f} (medians of {rounds} rounds)")


if __name__ == "__main__":
    main()
