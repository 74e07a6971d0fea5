#!/usr/bin/env python3
"""Train the small classifier whose features evaluate generated images where Inception is the wrong eye.

    python scripts/train_classifier.py mnist --root datasets
    python scripts/train_classifier.py shapes
    python scripts/train_classifier.py fashion_mnist --root datasets
    python scripts/train_classifier.py cifar10 --root datasets
    python scripts/train_classifier.py folder --root DIR --name mydata --image-size 64 --channels 3

Writes NAME.pt (half-precision weights, class names, accuracy; less than 1 MB) into genimg/evaluation/weights, or to
--output, and prints its sha256 for configs/evaluation/NAME.yaml. Without a test split (folder) every tenth image is held out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from genimg.data import sources
from genimg.data.placement import Data
from genimg.data.shapes import shapes
from genimg.data.sources import Source
from genimg.data.stream import Order
from genimg.evaluation.features import SmallClassifier, prepare, sha256_of, shipped_weights
from genimg.training.device import choose_device, choose_precision


def load(arguments: argparse.Namespace) -> tuple[Source, Source, np.ndarray, np.ndarray]:
    """Training and test source with the indices to use of each."""
    size, channels = arguments.image_size, arguments.channels
    if arguments.data == "shapes":
        options = {"image_size": size or 32, "channels": channels or 3, "num_objects": 1}
        train, test = (_by_color_and_shape(shapes(seed=s, num_images=n, **options)) for s, n in ((1, 40_000), (2, 5_000)))
    elif arguments.data == "folder":
        options = {"image_size": size or 32, "channels": channels or 3, "fit": "crop", "labels": "required"}
        train = test = sources.folder(root=arguments.root, **options)
    else:
        grey = "mnist" in arguments.data
        options = {
            "image_size": size or (28 if grey else 32),
            "channels": channels or (1 if grey else 3),
            "fit": "stretch",
        }
        function = getattr(sources, arguments.data)
        train = function(root=arguments.root, split="train", **options)
        test = function(root=arguments.root, split="test", **options)
    train_indices, test_indices = np.arange(len(train)), np.arange(len(test))
    if train is test:
        held_out = train_indices % 10 == 0
        train_indices, test_indices = train_indices[~held_out], test_indices[held_out]
    return train, test, train_indices, test_indices


def _by_color_and_shape(source: Source) -> Source:
    """Classes such as "red circle": features of the shape alone would not see a wrong colour."""
    names = [" ".join(source.caption(i).split()[2:]) for i in range(len(source))]
    source.class_names = tuple(sorted(set(names)))
    index = {name: i for i, name in enumerate(source.class_names)}
    source.labels = np.array([index[name] for name in names], dtype=np.int64)
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "fashion_mnist", "cifar10", "cifar100", "shapes", "folder"])
    parser.add_argument("--root", default="datasets", help="where the data lies")
    parser.add_argument("--name", help="of the extractor and of metrics made with it; default: the data's")
    parser.add_argument("--image-size", type=int, help="pixels; default: the data's own")
    parser.add_argument("--channels", type=int, choices=[1, 3])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to write")
    arguments = parser.parse_args()
    name = arguments.name or arguments.data
    output = arguments.output or shipped_weights(name)

    train, test, train_indices, test_indices = load(arguments)
    channels, image_size, _ = train.shape
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    placed = [
        Data(s, placement="device", num_workers="auto", horizontal_flip=False, max_corrupt=0, device=device)
        for s in (train, test)
    ]
    for data in placed:
        data.load()
    labels = torch.from_numpy(train.labels).to(device)
    torch.manual_seed(arguments.seed)
    network = SmallClassifier(channels=channels, num_classes=len(train.class_names)).to(
        device, memory_format=torch.channels_last
    )
    steps_per_epoch = len(train_indices) // 128
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=arguments.epochs * steps_per_epoch)
    start = time.monotonic()
    for epoch in range(arguments.epochs):
        order = train_indices[Order(len(train_indices), seed=arguments.seed, horizontal_flip=False).indices(
            epoch * len(train_indices), (epoch + 1) * len(train_indices))]  # fmt: skip
        for step in tqdm(range(steps_per_epoch), desc=f"epoch {epoch + 1}/{arguments.epochs}", leave=False, disable=None):
            chosen = order[step * 128 : (step + 1) * 128]
            images = prepare(placed[0].images(chosen), channels, image_size).contiguous(memory_format=torch.channels_last)
            with precision.autocast():
                logits = network(images)[1]
            loss = F.cross_entropy(logits.float(), labels[torch.from_numpy(chosen).to(device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().half().float()  # measure what is written
    correct = 0
    with torch.no_grad():
        for start_index in range(0, len(test_indices), 500):
            chosen = test_indices[start_index : start_index + 500]
            logits = network(prepare(placed[1].images(chosen), channels, image_size))[1]
            correct += int((logits.argmax(1).cpu().numpy() == test.labels[chosen]).sum())
    accuracy = correct / len(test_indices)
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "state_dict": {
            key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()
        },
        "image_size": image_size,
        "channels": channels,
        "class_names": list(train.class_names),
        "test_accuracy": accuracy,
        "num_train": len(train_indices),
        "num_test": len(test_indices),
        "epochs": arguments.epochs,
        "seed": arguments.seed,
    }
    torch.save(record, output)
    print(f"{output}: {output.stat().st_size} bytes, {time.monotonic() - start:.0f} s")
    print(f"test accuracy {accuracy:.4f} on {len(test_indices)} images")
    print(f"sha256 {sha256_of(output)}")


if __name__ == "__main__":
    main()
