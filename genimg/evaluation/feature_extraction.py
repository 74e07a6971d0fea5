"""Passes over images: run this rank's share through the extractor in batches, with a progress bar."""

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
    """The evaluation was stopped on request, without a result."""


@dataclass(frozen=True)
class Passes:
    """Settings of passes over images.

    Attributes:
        extractor: Feature extractor, on its device.
        batch_size: Batch size of generation and extraction.
        should_stop: Callback checked before every batch.
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
        """Run this rank's share of the images through the extractor and return the statistics over all ranks.

        Args:
            images: Set of images.
            indices: Indices of the used images.
            title: Title of the progress bar.
            kept: Increasing positions in ``indices`` whose features are kept; None keeps none.
            splits: Number of splits of each requested Inception Score.
            keep_logits: Whether logits are kept like features.
            spatial: Whether moments of spatial features are computed.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            NonFiniteImagesError: If a model generates NaN or infinite values.
        """
        mine = shard(len(indices))
        collector = Collector(
            len(indices), first=mine.start, splits=splits, kept=kept, keep_logits=keep_logits, spatial=spatial
        )
        # Labels are used only if they denote the same classes as the logits.
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
        """Return the mean similarities of the reconstructions to their originals, and the statistics of their features.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            NonFiniteImagesError: If the model generates NaN or infinite values.
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
    """Yield start and stop of every batch, with a progress bar.

    ``check`` waits for the device. It is called after the first batch, to detect soon that a model generates only NaN, and
    after the last batch.

    Raises:
        EvaluationInterruptedError: If ``should_stop`` returns true.
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
    """Disable TF32 in this context, because a metric must not depend on the precision of the training.

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
