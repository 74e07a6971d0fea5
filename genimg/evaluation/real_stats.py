"""Statistics of real images, from memory, else from the disk cache, else from a pass over the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genimg.data.subsets import selection
from genimg.evaluation.feature_extraction import Collection, collect
from genimg.evaluation.feature_metrics import FeatureMetrics
from genimg.evaluation.feature_stats import FeatureStats, kept_positions
from genimg.evaluation.image_sets import ImageSet
from genimg.evaluation.stats_cache import SavedStatistics, cache_path, read_cache, write_cache
from genimg.utils.distributed import on_every_rank, rank

# Number of real images whose features are kept for kernel distances and neighbours, unless more images are generated. This is
# enough for both, and needs 80 MB with Inception.
_KEPT_REAL = 10_000


class RealStatistics:
    """Computes and caches the statistics of real images, for each extractor.

    Args:
        num_images: Number of real images, chosen at random, stratified by class; None uses all.
        batch_size: Batch size of the feature extraction; does not influence the values.
        cache_dir: Cache directory.
    """

    def __init__(self, *, num_images: int | None, batch_size: int, cache_dir: Path) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._cache_dir = cache_dir
        self._found: dict[tuple[Path, int], FeatureStats] = {}

    def of(
        self,
        images: ImageSet,
        measured: FeatureMetrics,
        num_fake: int,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SavedStatistics:
        """Return the statistics of a set of images.

        Args:
            images: Set of real images with a fingerprint.
            measured: Extractor, on the device, and metrics that decide what the statistics hold.
            num_fake: Number of generated images to compare with.
            device: Device of the extractor.
            should_stop: Callback checked before every batch.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
        """
        extractor, needs_spatial, count = measured.extractor, measured.needs_spatial, self._count(images)
        assert images.fingerprint is not None
        wanted = kept_positions(count, max(_KEPT_REAL, num_fake)) if measured.needs_features else None
        selected = selection(count, len(images)).get("selection")
        path = cache_path(self._cache_dir, images.fingerprint, count, extractor, device, selected=selected)
        key = path, 0 if wanted is None else len(wanted)
        if key not in self._found:
            cached = read_cache(path)
            usable = cached is not None and (cached.spatial is not None or not needs_spatial)
            found = cached.with_features_of(wanted) if cached is not None and usable else None
            if not on_every_rank(found is not None):  # each rank may have its own cache
                (found,) = collect(
                    images, images.subset(count), f"features of {images.name}",
                    [Collection(extractor, kept=wanted, spatial=needs_spatial)],
                    batch_size=self._batch_size, should_stop=should_stop,
                )  # fmt: skip
                if rank() == 0:
                    write_cache(path, SavedStatistics(found, extractor.describe(), self.describe(images)))
            assert found is not None
            self._found[key] = found
        return SavedStatistics(self._found[key], extractor.describe(), self.describe(images))

    def needed(
        self,
        real: ImageSet | SavedStatistics,
        held_out: ImageSet | None,
        measured: FeatureMetrics,
        num_fake: int,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> SavedStatistics:
        """Return everything that the metrics need to know about the real images.

        Args:
            real: Real images, or their statistics.
            held_out: Real images that were not used for training, if there are any.
            measured, num_fake, device, should_stop: See ``of``.
        """
        # Compute the statistics with all features first, so the features needed below are a subset of the cached ones.
        whole: list[FeatureStats | None] = [None, None]
        if measured.needs_held_out:
            sides = [side for side in (real, held_out) if isinstance(side, ImageSet)]
            whole = [self.of(side, measured, len(side), device, should_stop).summary for side in sides]
        found = real if isinstance(real, SavedStatistics) else self.of(real, measured, num_fake, device, should_stop)
        found.summary.training, found.summary.held_out = whole
        return found

    def count(self, images: ImageSet | SavedStatistics) -> int | None:
        """Return the number of images that are used; None if statistics do not record it."""
        return images.images["num_images"] if isinstance(images, SavedStatistics) else self._count(images)

    def describe(self, images: ImageSet | SavedStatistics) -> dict[str, Any]:
        """Return what determines the used images, as primitives."""
        if isinstance(images, SavedStatistics):
            return images.images
        count = self._count(images)
        return {**images.describe(), "num_images": count, **selection(count, len(images))}

    def _count(self, images: ImageSet) -> int:
        return len(images) if self._num_images is None else min(self._num_images, len(images))
