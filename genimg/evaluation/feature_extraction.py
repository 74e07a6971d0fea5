"""Run images through extractors in batches, with a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import Collector, FeatureStats
from genimg.evaluation.image_sets import ImageSet
from genimg.utils.distributed import all_gather_rows, shard
from genimg.utils.exact import double
from genimg.utils.progress import Progress


class EvaluationInterruptedError(Exception):
    """The evaluation was stopped on request, without a result."""


@dataclass(frozen=True)
class Collection:
    """What to collect from the features of one extractor.

    Attributes:
        extractor: Feature extractor, on its device.
        kept: Increasing positions of the images whose features are kept; None keeps none.
        splits: Number of splits of each requested Inception Score.
        keep_logits: Whether logits are kept like features.
        spatial: Whether moments of spatial features are computed.
    """

    extractor: Extractor
    kept: NDArray[np.int64] | None
    splits: frozenset[int] = frozenset()
    keep_logits: bool = False
    spatial: bool = False


def collect(
    images: ImageSet,
    indices: NDArray[np.int64],
    title: str,
    collections: Sequence[Collection],
    *,
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[FeatureStats]:
    """Run this rank's share of the images through the extractors, and return the statistics over all ranks.

    Each image is generated or read once, and passes through every extractor.

    Args:
        images: Set of images.
        indices: Indices of the used images.
        title: Title of the progress bar.
        collections: What to collect, one entry per extractor.
        batch_size: Batch size of generation and extraction.
        should_stop: Callback checked before every batch.

    Returns:
        The statistics, one for each of ``collections``.

    Raises:
        EvaluationInterruptedError: If ``should_stop`` returns true.
        NonFiniteImagesError: If a model generates NaN or infinite values.
    """
    mine = shard(len(indices))
    collectors = [
        Collector(
            len(indices), first=mine.start, splits=each.splits, kept=each.kept, keep_logits=each.keep_logits,
            spatial=each.spatial,
        )
        for each in collections
    ]  # fmt: skip
    classes = [_positions(images.class_names, each.extractor.class_names) for each in collections]
    for start, stop in ranges(mine, batch_size, title, images.check, should_stop):
        batch, labels = images.images(indices[start:stop])
        if labels is not None:  # copied to their device only once
            classes = [None if positions is None else positions.to(labels.device) for positions in classes]
        for each, positions, collector in zip(collections, classes, collectors, strict=True):
            features, logits = each.extractor(batch)
            own = None if labels is None or positions is None else positions[labels]
            collector.add(features, logits, own, each.extractor.spatial if each.spatial else None)
    return [collector.result() for collector in collectors]


def _positions(classes: Sequence[str], of_logits: Sequence[str]) -> Tensor | None:
    """Return the position of each class among those of the logits, int64; None if the logits do not have all of them."""
    if not classes or not set(classes) <= set(of_logits):
        return None
    return torch.tensor([of_logits.index(name) for name in classes])


def ranges(
    positions: range, batch_size: int, title: str, check: Callable[[], None], should_stop: Callable[[], bool]
) -> Iterator[tuple[int, int]]:
    """Yield start and stop of every batch, with a progress bar.

    ``check`` waits for the device. It is called after the first batch, so a model that generates only NaN is detected early,
    and after the last batch.

    Raises:
        EvaluationInterruptedError: If ``should_stop`` returns true.
    """
    with Progress(total=len(positions), desc=title, unit="image", leave=False) as bar:
        for start in range(positions.start, positions.stop, batch_size):
            if should_stop():
                raise EvaluationInterruptedError
            stop = min(start + batch_size, positions.stop)
            yield start, stop
            if start == positions.start:
                check()
            bar.update(stop - start)
        check()


def mean_over_ranks(parts: list[Tensor]) -> float:
    """Return the mean of the values [N] of all batches and ranks."""
    return double(all_gather_rows(torch.cat(parts).cpu())).mean().item()


@contextlib.contextmanager
def full_float32(*, tf32_convolutions: bool = False) -> Iterator[None]:
    """Disable TF32 in this context, because a metric must not depend on the training precision.

    Args:
        tf32_convolutions: Whether convolutions may still use TF32, which is PyTorch's default.
    """
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = tf32_convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
