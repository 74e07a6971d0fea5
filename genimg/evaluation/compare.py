"""The evaluator of generated images: run each image through the extractor once, then compute all metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import selection
from genimg.errors import ConfigError, DataError
from genimg.evaluation.bootstrap import intervals
from genimg.evaluation.checks import check_counts, check_held_out, checked_metrics, small_counts
from genimg.evaluation.distances import frechet_distance
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import Passes, full_float32
from genimg.evaluation.feature_stats import FeatureStats, kept_positions
from genimg.evaluation.image_metrics import LPIPS, check_lpips, psnr, ssim
from genimg.evaluation.image_sets import DatasetImages, GeneratedImages, ImageSet, Reconstructions
from genimg.evaluation.metrics import Metric, Name
from genimg.evaluation.periodic import Evaluation, PeriodicEvaluator
from genimg.evaluation.stats_cache import SavedStatistics, cache_path, read_cache, write_cache
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Reconstructs
from genimg.utils import paths
from genimg.utils.distributed import on_every_rank, rank, world_size
from genimg.utils.durations import NumImages
from genimg.utils.environment import versions
from genimg.utils.machine_local import FoundPath

log = logging.getLogger(__name__)

# Number of real images whose features are kept for kernel distances and neighbours, unless more images are generated. This is
# enough for both, and takes 80 MB with Inception.
_KEPT_REAL = 10_000


class Evaluator(PeriodicEvaluator):
    """Measure generated images against real ones, with any number of metrics from one pass over each side.

    Generated image i depends only on (seed, i), and images are rounded to uint8 as when they are saved. The result therefore
    does not depend on the batch size, the number of ranks or earlier evaluations.

    Args:
        extractor: Feature extractor.
        metrics: Metrics by name; the first value of the first one chooses the best checkpoint.
        num_images: Number of generated images; part of every metric's name.
        num_real: Number of real images, chosen at random, stratified by class; None uses all.
        batch_size: Batch size of generation and extraction; does not influence the values.
        interval: Interval between the evaluations during training.
        seed: Seed of the generated images.
        bootstrap: Number of resamples for 95 % intervals; 0 computes none.
        reconstructions: Number of (if possible held-out) images that an autoencoder reconstructs, for PSNR, SSIM and a Fréchet
            distance; 0 disables it.
        lpips: LPIPS distance of reconstructions, with local weights; None disables it.
        final_num_images: Number of generated images of an additional evaluation after training; None skips it.
        stop_if: Condition for early stopping, see PeriodicEvaluator; None disables it.
        cache_dir: Cache directory of real statistics; None is $GENIMG_CACHE or ~/.cache/genimg.
    """

    def __init__(
        self,
        *,
        extractor: Extractor,
        metrics: Mapping[str, Metric | None],
        num_images: int,
        num_real: int | None,
        batch_size: int,
        interval: NumImages,
        seed: int,
        bootstrap: int,
        reconstructions: int,
        final_num_images: int | None,
        stop_if: Mapping[str, float | str] | None,
        cache_dir: FoundPath | None,
        lpips: LPIPS | None = None,
    ) -> None:
        least = {"num_images": 2, "num_real": 2, "batch_size": 1, "bootstrap": 0, "reconstructions": 0, "final_num_images": 2}
        given = (num_images, num_real, batch_size, bootstrap, reconstructions, final_num_images)
        for (name, smallest), value in zip(least.items(), given, strict=True):
            if value is not None and value < smallest:
                raise ValueError(f"{name}={value} must be {smallest} or more")
        if reconstructions == 1:
            raise ValueError("reconstructions=1 is too few for a distance: take 2 or more, or 0 for none")
        super().__init__(interval=interval, final_num_images=final_num_images, stop_if=stop_if)
        self.extractor = extractor
        self.metrics = checked_metrics(metrics, extractor)
        for count in (num_images, final_num_images):
            if count is not None:
                check_counts(self.metrics, generated=count)
        self.num_images = num_images
        self.num_real = num_real
        self.batch_size = batch_size
        self.seed = seed
        self.bootstrap = bootstrap
        self.reconstructions = reconstructions
        self.lpips = lpips
        self.cache_dir = paths.cache_dir(cache_dir)
        self._real: dict[tuple[Path, int], FeatureStats] = {}
        self._originals: dict[tuple[str, int], FeatureStats] = {}  # originals of reconstructions
        self._warned: set[str] = set()

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        if not isinstance(method, Generates):
            raise ConfigError(
                f"this evaluation measures images that are made from nothing, but the model, a {type(method).__name__}, makes "
                "images from images: choose another evaluation, such as translation"
            )
        if source is not None:
            check_held_out(self.metrics, source, source.validation, self.num_real)
            self.check_reconstructions(method, source.shape)

    def check_reconstructions(self, method: Method, shape: tuple[int, int, int]) -> None:
        """Check that the reconstructions of images of this shape (C, H, W) can be measured, if they will be.

        Raises:
            ConfigError: If LPIPS is not defined for the shape.
        """
        if self.lpips is not None and isinstance(method, Reconstructs) and self.reconstructions:
            check_lpips(self.lpips, shape)

    @property
    def primary(self) -> str:
        return self._name(self.num_images)(self._first.short_name)

    @property
    def higher_is_better(self) -> bool:
        return self._first.higher_is_better

    @property
    def _first(self) -> Metric:
        return next(iter(self.metrics.values()))

    def evaluate(
        self,
        method: Method,
        data: ImageLoader,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        weights: str = "raw",
    ) -> Evaluation:
        """Evaluate against ``data``; see PeriodicEvaluator."""
        assert isinstance(method, Generates)
        real = DatasetImages(data)
        fake = self.generated(method, device, data.source.class_names, num_images, weights=weights)
        held_out = None if data.validation is None else DatasetImages(data.validation)
        result = self.compare(real, fake, device, should_stop, held_out=held_out)
        side, images = ("train", real) if held_out is None else ("held_out", held_out)
        return self.with_reconstructions(result, method, images, side, device, should_stop)

    def generated(
        self,
        method: Generates,
        device: torch.device,
        class_names: tuple[str, ...],
        num_images: int | None = None,
        *,
        weights: str = "raw",
    ) -> GeneratedImages:
        """Return the generated images that are evaluated.

        Args:
            method: Model with the weights to evaluate.
            device: Device of the model.
            class_names: Class names of the training data.
            num_images: Number of images; None uses the evaluator's setting.
            weights: Name of these weights, for the provenance.
        """
        count = self.num_images if num_images is None else num_images
        return GeneratedImages(method, count=count, seed=self.seed, device=device, class_names=class_names, weights=weights)

    def with_reconstructions(
        self,
        result: Evaluation,
        method: Method,
        images: DatasetImages,
        side: str,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Add an autoencoder's reconstruction metrics to a result; return the result of any other model unchanged.

        Args:
            result: Result of ``compare``.
            method: Model to evaluate.
            images: Images to reconstruct: ``reconstructions`` of them, or all if there are fewer.
            side: Kind of these images, for the metric names: ``held_out``, ``train``, or ``real`` for others.
            device: Device of the extractor.
            should_stop: Callback checked before every batch.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If there are fewer than two images.
        """
        if not (isinstance(method, Reconstructs) and self.reconstructions):
            return result
        count = min(self.reconstructions, len(images))
        if count < max(2, world_size()):
            raise DataError(f"{count} {side} images are too few to measure reconstructions of: two or more are needed")
        chosen, passes = images.subset(count), Passes(self.extractor, self.batch_size, should_stop)
        with full_float32():
            self.extractor.to(device)
            if (key := (images.fingerprint, count)) not in self._originals:
                self._originals[key] = passes.summarise(images, chosen, "features of originals", kept=None)
            means, made = passes.reconstruct(Reconstructions(method, images), chosen, self._similarities(device))
        originals, begin = self._originals[key], f"reconstruction_{side}_"
        more = {f"{begin}{name}{short_count(count)}": value for name, value in means.items()}
        more[begin + self._name(count)("fd")] = frechet_distance(originals.moments, made, originals.root)
        described = {"reconstructions": {"side": side, **images.describe(), "num_images": count}}
        if self.lpips is not None:
            described["reconstructions"]["lpips"] = self.lpips.describe()
        return replace(result, values=result.values | more, provenance=result.provenance | described)

    def _similarities(self, device: torch.device) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Return the similarities (name -> [N]) of reconstructions to their originals, both uint8 [N, C, H, W]."""
        found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
        return found if self.lpips is None else {**found, "lpips": self.lpips.to(device)}

    def compare(
        self,
        real: ImageSet | SavedStatistics,
        fake: ImageSet,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
        save_statistics: Path | None = None,
        held_out: ImageSet | None = None,
        published: SavedStatistics | None = None,
    ) -> Evaluation:
        """Measure a set of images against another set or against its statistics.

        Args:
            real: Images to compare with, or their statistics.
            fake: Images to measure; all of them are used.
            device: Device of the extractor.
            should_stop: Callback checked before every batch.
            save_statistics: File to write the statistics of the real images to, for later comparisons.
            held_out: Real images that were not used for training, for metrics that need them.
            published: Statistics for the Fréchet distances only, in place of those of ``real``.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If a side has fewer than two images, or the statistics are of another extractor.
            ConfigError: If a metric cannot be measured on these images.
        """
        check_held_out(self.metrics, real, held_out, self.num_real)
        check_counts(self.metrics, generated=len(fake), real=self._count_real(real), least=max(2, world_size()))
        with full_float32():
            self.extractor.to(device)
            # First with all features: the features needed below are then a subset of the cached ones.
            whole: list[FeatureStats | None] = [None, None]
            if self.needs_held_out:
                sides = [side for side in (real, held_out) if isinstance(side, ImageSet)]
                whole = [self._statistics(side, len(side), device, should_stop).summary for side in sides]
            statistics = real if isinstance(real, SavedStatistics) else self._statistics(real, len(fake), device, should_stop)
            if save_statistics is not None and rank() == 0:
                statistics.write(save_statistics)
            known = statistics.summary
            known.training, known.held_out = whole
            if published is not None:
                moments, spatial = published.summary.moments, published.summary.spatial
                known = replace(known, moments=moments, spatial=spatial or known.spatial, _root=None)
            metrics = self._served_by(known)
            everything = np.arange(len(fake), dtype=np.int64)
            made = Passes(self.extractor, self.batch_size, should_stop).summarise(
                fake,
                everything,
                "evaluating",
                kept=everything if self.bootstrap or self._needs_features() else None,
                splits=frozenset(metric.splits for metric in self.metrics.values() if metric.splits is not None),
                keep_logits=self.bootstrap > 0,
                spatial=self._needs_spatial(),
            )
            name = self._name(len(fake))
            if known.num_features != made.num_features:
                raise DataError(
                    f"the real statistics have {known.num_features} features, but the extractor {self.extractor.name} makes "
                    f"{made.num_features}: they were made with another extractor"
                )
            values: dict[str, float] = {}
            for metric in metrics:
                more = metric.compute(known, made, name, device)
                if twice := values.keys() & more.keys():
                    raise ConfigError(f"metrics has two that make {', '.join(sorted(twice))}: remove one of them")
                values |= more
            if name(self._first.short_name) not in values:
                few = 0 if known.features is None else len(known.features)
                fix = f", or set num_images={few}, the number of real images" if 0 < few < len(fake) else ""
                raise ConfigError(
                    f"metrics.{next(iter(self.metrics))} comes first, so {name(self._first.short_name)} chooses the best "
                    f"checkpoint, but it has no value for these images: put another metric first{fix}",
                    key=f"metrics.{next(iter(self.metrics))}",
                )
            bounds = intervals(metrics, known, made, name, values, self.bootstrap, self.seed)
        warnings = self._warn(made, real)
        return Evaluation(values, self._provenance(real, fake, known, made, held_out, published), bounds, warnings)

    def statistics(self, images: ImageSet, device: torch.device) -> SavedStatistics:
        """Return the statistics of a set of images, for comparison with at most ``num_images`` other images."""
        with full_float32():
            self.extractor.to(device)
            return self._statistics(images, self.num_images, device, lambda: False)

    def _statistics(
        self, real: ImageSet, num_fake: int, device: torch.device, should_stop: Callable[[], bool]
    ) -> SavedStatistics:
        """Return statistics from memory, else from the cache, else from a pass over the images."""
        count = self._count_real(real)
        assert count is not None
        assert real.fingerprint is not None
        wanted = kept_positions(count, max(_KEPT_REAL, num_fake)) if self._needs_features() else None
        selected = selection(count, len(real)).get("selection")
        path = cache_path(self.cache_dir, real.fingerprint, count, self.extractor, device, selected=selected)
        key = path, 0 if wanted is None else len(wanted)
        if key not in self._real:
            cached = read_cache(path)
            usable = cached is not None and (cached.spatial is not None or not self._needs_spatial())
            found = cached.with_features_of(wanted) if cached is not None and usable else None
            if not on_every_rank(found is not None):  # each rank may have its own cache
                passes = Passes(self.extractor, self.batch_size, should_stop)
                found = passes.summarise(
                    real, real.subset(count), f"features of {real.name}", kept=wanted, spatial=self._needs_spatial()
                )
                if rank() == 0:
                    write_cache(path, SavedStatistics(found, self.extractor.describe(), self._describe_real(real)))
            assert found is not None
            self._real[key] = found
        return SavedStatistics(self._real[key], self.extractor.describe(), self._describe_real(real))

    def _served_by(self, real: FeatureStats) -> list[Metric]:
        """Return the metrics that the statistics (perhaps only mean and covariance) suffice for; warn about the others."""
        skipped = {}
        for name, metric in self.metrics.items():
            if metric.needs_features and real.features is None:
                skipped[name] = "features of single images"
            elif metric.needs_spatial and real.spatial is None:
                skipped[name] = "spatial features"
        for what in dict.fromkeys(skipped.values()):
            names = " and ".join(name for name, lacking in skipped.items() if lacking == what)
            log.warning("the statistics hold no %s: %s left out", what, names)
        return [metric for name, metric in self.metrics.items() if name not in skipped]

    @property
    def needs_held_out(self) -> bool:
        """Whether a metric compares with images that are not used for training."""
        return any(metric.needs_held_out for metric in self.metrics.values())

    def _needs_spatial(self) -> bool:
        return any(metric.needs_spatial for metric in self.metrics.values())

    def _needs_features(self) -> bool:
        return any(metric.needs_features for metric in self.metrics.values())

    def _name(self, num_generated: int) -> Name:
        def name(metric: str, count: int | None = None) -> str:
            return self.extractor.metric_name(metric, short_count(num_generated if count is None else count))

        return name

    def _count_real(self, real: ImageSet | SavedStatistics) -> int | None:
        if isinstance(real, SavedStatistics):
            return real.images["num_images"]
        return len(real) if self.num_real is None else min(self.num_real, len(real))

    def _describe_real(self, real: ImageSet | SavedStatistics) -> dict[str, Any]:
        if isinstance(real, SavedStatistics):
            return real.images
        count = self._count_real(real)
        assert count is not None
        return {**real.describe(), "num_images": count, **selection(count, len(real))}

    def _provenance(
        self,
        real: ImageSet | SavedStatistics,
        fake: ImageSet,
        known: FeatureStats,
        made: FeatureStats,
        held_out: ImageSet | None,
        published: SavedStatistics | None,
    ) -> dict[str, Any]:
        moments = {} if published is None else {"moments": published.images}
        metrics = {name: {k: v for k, v in vars(m).items() if v is not None} for name, m in self.metrics.items()}
        for name, metric in self.metrics.items():
            if metric.needs_held_out and held_out is not None:
                metrics[name]["held_out"] = {**held_out.describe(), "num_images": len(held_out)}
        return {
            "extractor": {**self.extractor.describe(), "num_features": made.num_features},
            "generated": {**fake.describe(), "num_images": len(fake)},
            "real": {**self._describe_real(real), "num_kept": 0 if known.features is None else len(known.features), **moments},
            "metrics": metrics,
            "bootstrap": self.bootstrap,
            "precision": "features float32 without TF32, statistics float64",
            "device": self.extractor.device.type,
            "versions": versions(),
        }

    def _warn(self, made: FeatureStats, real: ImageSet | SavedStatistics) -> tuple[str, ...]:
        """Return all warnings about the counts; log each of them only once a run."""
        counts = {"generated": made.num_images, "real": self._count_real(real)}
        found = small_counts(counts, made.num_features)
        for text in found:
            if text not in self._warned:
                self._warned.add(text)
                log.warning("%s", text)
        return found


def short_count(count: int) -> str:
    """Return the count as it appears in metric names: 5000 becomes 5k, and 500 stays."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
