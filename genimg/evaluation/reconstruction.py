"""Measure an autoencoder's reconstructions against their originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.distances import frechet_distance
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import Collection, collect, full_float32, mean_over_ranks, ranges
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import FeatureSums, GaussianStatistics
from genimg.evaluation.image_metrics import LPIPS, psnr, ssim
from genimg.evaluation.image_sets import DatasetImages, Reconstructions
from genimg.evaluation.names import full_name, short_count
from genimg.evaluation.result import Evaluation
from genimg.methods.capabilities import Reconstructs
from genimg.utils.distributed import shard, world_size

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Function from originals and reconstructions, both uint8 [N, C, H, W], to values [N]."""


class ReconstructionEvaluator:
    """Measures the PSNR, the SSIM and the Fréchet distances of reconstructions.

    Args:
        extractors: Feature extractors. Each gives one Fréchet distance.
        num_images: Maximum number of images.
        batch_size: Batch size.
        lpips: LPIPS distance; None omits it.
    """

    def __init__(self, extractors: Sequence[Extractor], *, num_images: int, batch_size: int, lpips: LPIPS | None) -> None:
        self._extractors = extractors
        self._num_images = num_images
        self._batch_size = batch_size
        self._lpips = lpips
        self._originals: dict[tuple[str, int], list[FeatureStats]] = {}

    def added_to(
        self,
        result: Evaluation,
        method: Reconstructs,
        images: DatasetImages,
        side: str,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> Evaluation:
        """Return a result with the metrics of reconstructions added; see ``Evaluator.with_input_metrics``."""
        count = min(self._num_images, len(images))
        if count < max(2, world_size()):
            raise DataError(f"{count} {side} images are too few to measure reconstructions: two or more are needed")
        chosen = images.subset(count)
        with full_float32():
            for extractor in self._extractors:
                extractor.to(device)
            if (key := (images.fingerprint, count)) not in self._originals:
                collections = [Collection(extractor, kept=None) for extractor in self._extractors]
                self._originals[key] = collect(
                    images, chosen, "features of originals", collections, batch_size=self._batch_size, should_stop=should_stop
                )
            similarities: dict[str, Similarity] = {"psnr": psnr, "ssim": ssim}
            if self._lpips is not None:
                similarities["lpips"] = self._lpips.to(device)
            means, made = self._pass(Reconstructions(method, images), chosen, similarities, should_stop)
        begin = f"reconstruction_{side}_"
        more = {f"{begin}{name}{short_count(count)}": value for name, value in means.items()}
        for extractor, originals, moments in zip(self._extractors, self._originals[key], made, strict=True):
            distance = frechet_distance(originals.moments, moments, originals.root)
            more[begin + full_name(extractor, "fd", count)] = distance
        described = {"reconstructions": {"side": side, **images.describe(), "num_images": count}}
        if self._lpips is not None:
            described["reconstructions"]["lpips"] = self._lpips.describe()
        return replace(result, values=result.values | more, provenance=result.provenance | described)

    def _pass(
        self,
        images: Reconstructions,
        indices: NDArray[np.int64],
        similarities: Mapping[str, Similarity],
        should_stop: Callable[[], bool],
    ) -> tuple[dict[str, float], list[GaussianStatistics]]:
        """Return the mean similarities of the reconstructions to their originals, and their moments by extractor.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            NonFiniteImagesError: If the model generates NaN or infinite values.
        """
        made = [FeatureSums() for _ in self._extractors]
        rows: dict[str, list[Tensor]] = {name: [] for name in similarities}
        for start, stop in ranges(shard(len(indices)), self._batch_size, "reconstructing", images.check, should_stop):
            original, reconstruction = images.pairs(indices[start:stop])
            for name, similarity in similarities.items():
                rows[name].append(similarity(original, reconstruction))
            for extractor, sums in zip(self._extractors, made, strict=True):
                sums.add(extractor(reconstruction)[0])
        return {name: mean_over_ranks(parts) for name, parts in rows.items()}, [sums.result() for sums in made]
