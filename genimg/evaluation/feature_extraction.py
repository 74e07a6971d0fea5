"""Passes over images: batches through the extractor, with a progress bar, on this rank's share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import Collector, FeatureStats
from genimg.evaluation.gaussian import FeatureSums, GaussianStatistics
from genimg.evaluation.image_sets import ImageSet, Reconstructions
from genimg.utils.distributed import all_gather_rows, rank, shard


class EvaluationInterruptedError(Exception):
    """The caller asked to stop; nothing was computed."""


@dataclass(frozen=True)
class Passes:
    """How images go through the extractor.

    Attributes:
        extractor: on its device.
        batch_size: of generation and extraction.
        should_stop: asked before every batch.
    """

    extractor: Extractor
    batch_size: int
    should_stop: Callable[[], bool]

    def summarise(
        self,
        images: ImageSet,
        indices: NDArray[np.int64],
        title: str,
        *,
        kept: NDArray[np.int64] | None,
        splits: frozenset[int] = frozenset(),
        keep_logits: bool = False,
        spatial: bool = False,
    ) -> FeatureStats:
        """One pass over this rank's share of the images, and the summary of all ranks' shares.

        Args:
            images: the set.
            indices: which of them.
            title: of the progress bar.
            kept: increasing positions in ``indices`` whose features are kept; None keeps none.
            splits: of each Inception Score that is asked for.
            keep_logits: whether logits are kept like the features.
            spatial: whether moments of the extractor's spatial features are taken.

        Raises:
            EvaluationInterruptedError: once ``should_stop`` says so.
            NonFiniteImagesError: if a model makes NaN.
        """
        mine = shard(len(indices))
        collector = Collector(
            len(indices), first=mine.start, splits=splits, kept=kept, keep_logits=keep_logits, spatial=spatial
        )
        # Labels count only if they mean what the logits mean.
        same = bool(self.extractor.class_names) and self.extractor.class_names == images.class_names
        for start, stop in ranges(mine, self.batch_size, title, images.check, self.should_stop):
            batch, labels = images.images(indices[start:stop])
            features, logits = self.extractor(batch)
            collector.add(features, logits, labels if same else None, self.extractor.spatial if spatial else None)
        return collector.result()

    def reconstruct(
        self,
        images: Reconstructions,
        indices: NDArray[np.int64],
        similarities: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    ) -> tuple[dict[str, float], GaussianStatistics]:
        """Return the mean of each similarity of those reconstructions to their originals, and their statistics.

        Raises:
            EvaluationInterruptedError: once ``should_stop`` says so.
            NonFiniteImagesError: if the model makes NaN.
        """
        made = FeatureSums()
        rows: dict[str, list[Tensor]] = {name: [] for name in similarities}
        positions = shard(len(indices))
        for start, stop in ranges(positions, self.batch_size, "reconstructing", images.check, self.should_stop):
            original, reconstruction = images.pairs(indices[start:stop])
            for name, similarity in similarities.items():
                rows[name].append(similarity(original, reconstruction))
            made.add(self.extractor(reconstruction)[0])
        return {name: _mean(parts) for name, parts in rows.items()}, made.result()


def ranges(
    positions: range, batch_size: int, title: str, check: Callable[[], None], should_stop: Callable[[], bool]
) -> Iterator[tuple[int, int]]:
    """Start and stop of every batch, with a progress bar. ``check`` waits for the device: after the first batch, so that a
    model that makes nothing but NaN is noticed soon, and after the last one.

    Raises:
        EvaluationInterruptedError: once ``should_stop`` says so.
    """
    hidden = None if rank() == 0 else True
    with tqdm(total=len(positions), desc=title, unit="img", leave=False, disable=hidden) as bar:
        for start in range(positions.start, positions.stop, batch_size):
            if should_stop():
                raise EvaluationInterruptedError
            stop = min(start + batch_size, positions.stop)
            yield start, stop
            if start == positions.start:
                check()
            bar.update(stop - start)
        check()


def _mean(parts: list[Tensor]) -> float:
    return all_gather_rows(torch.cat(parts).cpu()).double().mean().item()


@contextlib.contextmanager
def full_float32(*, tf32_convolutions: bool = False) -> Iterator[None]:
    """Without TF32, whatever the training uses: a metric shall not depend on the training's precision.

    Args:
        tf32_convolutions: all the same in convolutions, which is what PyTorch does by itself.
    """
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = tf32_convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
