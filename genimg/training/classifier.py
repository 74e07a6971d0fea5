"""Train a SmallClassifier, whose features are used to evaluate images similar to its training images.

The features are trained on two tasks: to predict the class, and to predict how much two random views of an image differ in
each kind of change (see ``training.views``). With the first task alone, features would represent nothing but the class, or
treat any slightly degraded image as foreign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.data.loader import ImageLoader
from genimg.data.sampler import InfiniteSampler
from genimg.data.subsets import random_subset
from genimg.evaluation.extractors.base import prepare
from genimg.evaluation.extractors.classifier import FORMAT, SmallClassifier
from genimg.training.device import Precision
from genimg.training.schedules import Cosine
from genimg.training.update import Updater
from genimg.training.views import CHANGES, random_views
from genimg.types import Batch, Metrics
from genimg.utils.durations import NumImages
from genimg.utils.progress import Progress

RELATION_WEIGHT = 10.0  # of the squared error of strength differences, relative to the cross-entropy in nats
_MOST_STANDARDISED = 10_000  # images for the features' mean and scale


@dataclass(frozen=True)
class LabelledImages:
    """A subset of a dataset's images.

    Attributes:
        data: Loader of the dataset, which has labels.
        indices: Indices of the images.
    """

    data: ImageLoader
    indices: NDArray[np.int64]


def train_classifier(
    train: LabelledImages,
    held_out: LabelledImages,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    precision: Precision,
) -> dict[str, Any]:
    """Train with AdamW; the learning rate rises over the first 30 % of the steps and then falls along half a cosine.

    Args:
        train, held_out: Images for training and for measuring the accuracy.
        epochs: Number of epochs.
        batch_size: Images per step.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay of AdamW.
        seed: Seed of weights and order.
        precision: Training precision.

    Returns:
        The record that a Classifier reads: half-precision weights, classes, size, and ``test_accuracy`` of those weights.

    Raises:
        NonFiniteError: If training diverges.
    """
    source, device = train.data.source, precision.device
    assert source.labels is not None
    channels, image_size, _ = source.shape
    labels = torch.from_numpy(source.labels).to(device)
    torch.manual_seed(seed)
    network = SmallClassifier(channels=channels, num_classes=len(source.class_names))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    relation = nn.Linear(network.projection.out_features, len(CHANGES), bias=False).to(device)
    parameters = [*network.parameters(), *relation.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    update = Updater({"classifier": parameters}, {"classifier": optimizer}, precision=precision, max_grad_norm=None)
    count, steps = len(train.indices), len(train.indices) // batch_size
    total = epochs * steps * batch_size
    schedule = Cosine(duration=NumImages(total), final=0.0, warmup=NumImages(round(0.3 * total)))
    generator = torch.Generator().manual_seed(seed)

    def loss(batch: Batch) -> tuple[Tensor, Metrics]:
        """Classify both views, and predict from their features how strongly each change differs between them."""
        projected = network.project(batch["image"])
        entropy = F.cross_entropy(network.classify(projected).float(), batch["label"])
        first, second = projected.float().chunk(2)
        predicted = relation(first - second).float()
        return entropy + RELATION_WEIGHT * F.mse_loss(predicted, batch["difference"]), {}

    order = InfiniteSampler(count, seed=seed, horizontal_flip=False)
    with Progress(total=epochs * steps, desc="training the classifier", unit="step") as bar:
        for epoch in range(epochs):
            shuffled = train.indices[order.indices(epoch * count, (epoch + 1) * count)]
            for step in range(steps):
                chosen = shuffled[step * batch_size : (step + 1) * batch_size]
                images = prepare(train.data.images(chosen), channels, image_size)
                (first, strengths), (second, others) = (random_views(images, generator) for _ in range(2))
                batch = {
                    "image": torch.cat([first, second]).contiguous(memory_format=torch.channels_last),
                    "label": labels[torch.from_numpy(chosen).to(device, non_blocking=True)].repeat(2),
                    "difference": strengths - others,
                }
                factor = schedule.at((epoch * steps + step) * batch_size, batch_size)
                optimizer.param_groups[0]["lr"] = learning_rate * factor
                update("classifier", loss, [batch])
                bar.update()
    update.raise_if_not_finite()
    network.eval().half().float()  # measure with the rounded weights that are written
    _standardise(network, train, channels, image_size)
    return {
        "format": FORMAT,
        "state_dict": {k: v.half() if v.is_floating_point() else v for k, v in network.cpu().state_dict().items()},
        "image_size": image_size,
        "channels": channels,
        "class_names": list(source.class_names),
        "test_accuracy": _accuracy(network.to(device), held_out, channels, image_size),
        "num_train": count,
        "num_test": len(held_out.indices),
        "epochs": epochs,
        "seed": seed,
        "trained_on": source.name,
        "fingerprint": source.fingerprint,
    }


@torch.no_grad()
def _standardise(network: SmallClassifier, images: LabelledImages, channels: int, image_size: int) -> None:
    """Set the features' mean and scale to those of at most 10,000 clean training images."""
    chosen = images.indices[random_subset(min(_MOST_STANDARDISED, len(images.indices)), len(images.indices), seed=0)]
    parts = [network.project(prepare(images.data.images(part), channels, image_size)) for part in np.array_split(chosen, 20)]
    projected = torch.cat([part.float() for part in parts])
    network.mean.copy_(projected.mean(dim=0).half())
    network.scale.copy_((projected - network.mean).square().mean().sqrt().half())


@torch.no_grad()
def _accuracy(network: SmallClassifier, images: LabelledImages, channels: int, image_size: int) -> float:
    labels, correct = images.data.source.labels, 0
    assert labels is not None
    for start in Progress(range(0, len(images.indices), 500), desc="measuring", unit="step", leave=False):
        chosen = images.indices[start : start + 500]
        logits = network(prepare(images.data.images(chosen), channels, image_size))[1]
        correct += int((logits.argmax(1).cpu().numpy() == labels[chosen]).sum())
    return correct / len(images.indices)
