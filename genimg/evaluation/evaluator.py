"""The evaluator of generated images: run each image once through every extractor, then compute all metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError
from genimg.evaluation.base import ModelEvaluator
from genimg.evaluation.bootstrap import intervals
from genimg.evaluation.checks import (
    check_counts,
    check_extractor_names,
    check_first_metric,
    check_held_out,
    check_num_features,
    small_counts,
)
from genimg.evaluation.compare import compare
from genimg.evaluation.denoising import DenoisingEvaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import collect, full_float32
from genimg.evaluation.feature_metrics import FeatureMetrics
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.image_metrics import LPIPS, check_lpips
from genimg.evaluation.image_sets import DatasetImages, GeneratedImages, ImageSet
from genimg.evaluation.metrics import Metric
from genimg.evaluation.provenance import provenance
from genimg.evaluation.real_stats import RealStatistics
from genimg.evaluation.reconstruction import ReconstructionEvaluator
from genimg.evaluation.result import Evaluation
from genimg.evaluation.stats_cache import SavedStatistics
from genimg.evaluation.timed_images import TimedImages
from genimg.methods.base import Method
from genimg.methods.capabilities import Denoises, Generates, Reconstructs, Translates
from genimg.methods.sampling_options import sampling_options
from genimg.utils import paths
from genimg.utils.distributed import rank, world_size
from genimg.utils.machine_local import FoundPath
from genimg.utils.mounting import mounting

log = logging.getLogger(__name__)

_NONE: Mapping[str, FeatureMetrics] = MappingProxyType({})


class Evaluator(ModelEvaluator):
    """Measure generated images against real ones, with any number of extractors and metrics.

    Each image is generated once and passes through every extractor. Generated image i depends only on (seed, i), and images
    are rounded to uint8 as when they are saved. The result therefore does not depend on the batch size, the number of ranks,
    earlier evaluations or other extractors.

    Args:
        extractor: Feature extractor.
        metrics: Metrics by name; the first value of the first one chooses the best checkpoint.
        num_images: Number of generated images; part of every metric's name.
        num_real: Number of real images, chosen at random, stratified by class; None uses all.
        batch_size: Batch size of generation and extraction; does not influence the values.
        seed: Seed of the generated images.
        bootstrap: Number of resamples for 95 % intervals; 0 computes none.
        reconstructions: Number of images that an autoencoder reconstructs, for PSNR, SSIM and a Fréchet distance. They are
            held-out images if there are any. 0 disables it.
        cache_dir: Cache directory of real statistics; None uses $GENIMG_CACHE or ~/.cache/genimg.
        lpips: LPIPS with local weights, for reconstructions; None disables it.
        additional: Further extractors with their metrics, by name.
        sampling: Sampling options of the model, by name, which replace its defaults.
        denoised: Number of images, held out if possible, for a diffusion model's loss at each noise level; 0 disables it.
    """

    least_num_images = 2  # for a covariance

    def __init__(
        self,
        *,
        extractor: Extractor,
        metrics: Mapping[str, Metric | None],
        num_images: int,
        num_real: int | None,
        batch_size: int,
        seed: int,
        bootstrap: int,
        reconstructions: int,
        cache_dir: FoundPath | None,
        lpips: LPIPS | None = None,
        additional: Mapping[str, FeatureMetrics] = _NONE,
        sampling: Mapping[str, Any] = MappingProxyType({}),
        denoised: int = 0,
    ) -> None:
        least = {"num_images": 2, "num_real": 2, "batch_size": 1, "bootstrap": 0, "reconstructions": 0}
        given = (num_images, num_real, batch_size, bootstrap, reconstructions)
        for (name, smallest), value in zip(least.items(), given, strict=True):
            if value is not None and value < smallest:
                raise ValueError(f"{name}={value} must be {smallest} or more")
        if reconstructions == 1:
            raise ValueError("reconstructions=1 is too few for a Fréchet distance: set it to 2 or more, or to 0 to disable it")
        self.main = FeatureMetrics(extractor=extractor, metrics=metrics)
        self.additional = dict(additional)
        check_extractor_names(extractor, {name: each.extractor for name, each in self.additional.items()})
        self.check_num_images(num_images)
        self.num_images = num_images
        self.num_real = num_real
        self.batch_size = batch_size
        self.seed = seed
        self.bootstrap = bootstrap
        self.reconstructions = reconstructions
        self.lpips = lpips
        self.sampling = dict(sampling)
        if denoised < 0:
            raise ValueError(f"denoised={denoised} must be 0 or more")
        self.denoised = denoised
        self.cache_dir = paths.cache_dir(cache_dir)
        self._real = RealStatistics(num_images=num_real, batch_size=batch_size, cache_dir=self.cache_dir)
        self._reconstructions = ReconstructionEvaluator(
            self.extractors, num_images=reconstructions, batch_size=batch_size, lpips=lpips
        )
        self._warned: set[str] = set()

    @property
    def extractor(self) -> Extractor:
        """The first extractor, whose first metric chooses the best checkpoint."""
        return self.main.extractor

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of the first extractor, by name."""
        return self.main.metrics

    @property
    def extractors(self) -> list[Extractor]:
        """All extractors."""
        return [each.extractor for each in self._measured.values()]

    @property
    def _measured(self) -> dict[str, FeatureMetrics]:
        """All extractors with their metrics, by the prefix of their keys in the config."""
        return {"": self.main} | {f"additional.{name}.": each for name, each in self.additional.items()}

    @property
    def needs_held_out(self) -> bool:
        """Whether a metric compares with images that are not used for training."""
        return any(each.needs_held_out for each in self._measured.values())

    @property
    def primary(self) -> str:
        return self.main.name(self.main.first.short_name, self.num_images)

    @property
    def higher_is_better(self) -> bool:
        return self.main.first.higher_is_better

    def check(self, method: Method, source: ImageDataset | None = None, *, sampling: bool = True) -> None:
        """Check the model and the data; see ``ModelEvaluator``.

        Args:
            method, source: See ``ModelEvaluator``.
            sampling: Whether to check the sampling options, too.
        """
        if not isinstance(method, Generates):
            does, fitting = (
                ("translates images", "translation") if isinstance(method, Translates) else ("does not generate images", "none")
            )
            raise ConfigError(
                f"this evaluation measures images generated without an input, but the model, a {type(method).__name__}, "
                f"{does}: choose another evaluation, such as {fitting}"
            )
        if sampling:
            with mounting("sampling", vars(method.sampling_options)):
                method.check_options(sampling_options(method, self.sampling))
        if source is not None:
            for prefix, each in self._measured.items():
                check_held_out(each.metrics, source, source.validation, self.num_real, prefix=prefix)
            self.check_reconstructions(method, source.shape)

    def choose_sampling(self, given: Mapping[str, Any]) -> None:
        """Replace values of ``sampling``. A value can be an object that a config cannot hold, such as another model."""
        self.sampling |= given

    def check_num_images(self, count: int) -> None:
        for prefix, each in self._measured.items():
            check_counts(each.metrics, generated=count, prefix=prefix)

    def check_reconstructions(self, method: Method, shape: tuple[int, int, int]) -> None:
        """If reconstructions will be measured, check that this is possible for images of this shape (C, H, W).

        Raises:
            ConfigError: If LPIPS is not defined for the shape.
        """
        if self.lpips is not None and isinstance(method, Reconstructs) and self.reconstructions:
            check_lpips(self.lpips, shape)

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
        """Evaluate against ``data``; see ModelEvaluator."""
        assert isinstance(method, Generates)
        real = DatasetImages(data)
        fake = TimedImages(self.generated(method, device, data.source.class_names, num_images, weights=weights))
        held_out = None if data.validation is None else DatasetImages(data.validation)
        result = self.compare(real, fake, device, should_stop, held_out=held_out)
        result = replace(result, seconds_per_image=fake.seconds_per_image)
        side, images = ("train", real) if held_out is None else ("held_out", held_out)
        return self.with_input_metrics(result, method, images, side, device, should_stop)

    def generated(
        self,
        method: Generates,
        device: torch.device,
        class_names: tuple[str, ...],
        num_images: int | None = None,
        *,
        weights: str = "raw",
        sampling: Mapping[str, Any] | None = None,
    ) -> GeneratedImages:
        """Return the generated images that are evaluated.

        Args:
            method: Model with the weights to evaluate.
            device: Device of the model.
            class_names: Class names of the training data.
            num_images: Number of images; None uses the evaluator's setting.
            weights: Name of these weights, for the provenance.
            sampling: Sampling options by name; None uses the evaluator's setting.
        """
        return GeneratedImages(
            method,
            count=self.num_images if num_images is None else num_images,
            seed=self.seed,
            device=device,
            class_names=class_names,
            weights=weights,
            options=sampling_options(method, self.sampling if sampling is None else sampling),
        )

    def with_input_metrics(
        self,
        result: Evaluation,
        method: Method,
        images: DatasetImages,
        side: str,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Add metrics of a model's output for real images: an autoencoder's reconstructions, or a diffusion model's loss.

        Args:
            result: Result of ``compare``.
            method: Model to evaluate.
            images: Images to reconstruct or denoise: ``reconstructions`` or ``denoised`` of them, or all if there are fewer.
            side: Kind of these images, for the metric names: ``held_out``, ``train``, or ``real`` for others.
            device: Device of the extractors.
            should_stop: Callback checked before every batch.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If there are fewer than two images.
        """
        if isinstance(method, Reconstructs) and self.reconstructions:
            result = self._reconstructions.added_to(result, method, images, side, device, should_stop)
        if isinstance(method, Denoises) and self.denoised and side != "real":  # others may have another size
            denoising = DenoisingEvaluator(num_images=self.denoised, batch_size=self.batch_size, seed=self.seed)
            result = denoising.added_to(result, method, images, side, should_stop)
        return result

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
            real: Images to compare with, or their statistics, which hold the features of a single extractor.
            fake: Images to measure; all of them are used.
            device: Device of the extractors.
            should_stop: Callback checked before every batch.
            save_statistics: File to write the first extractor's statistics of the real images to, for later comparisons.
            held_out: Real images that were not used for training, for metrics that need them.
            published: Statistics that replace those of ``real`` in the first extractor's Fréchet distances only.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If a side has fewer than two images, or the statistics were computed with another extractor.
            ConfigError: If a metric cannot be measured on these images.
        """
        measured = self._measured
        for prefix, each in measured.items():
            check_held_out(each.metrics, real, held_out, self.num_real, prefix=prefix)
            check_counts(each.metrics, generated=len(fake), real=self._real.count(real), least=max(2, world_size()),
                         prefix=prefix)  # fmt: skip
        if self.additional and isinstance(real, SavedStatistics):
            raise ConfigError(
                f"the real statistics are of one extractor, but this evaluation has {len(measured)}: give images, or choose an "
                "evaluation with one extractor"
            )
        with full_float32():
            known = []
            for each in measured.values():
                each.extractor.to(device)
                statistics = self._real.needed(real, held_out, each, len(fake), device, should_stop)
                if save_statistics is not None and each is self.main and rank() == 0:
                    statistics.write(save_statistics)
                known.append(statistics.summary)
            if published is not None:
                known[0] = known[0].with_moments_of(published.summary)
            metrics = [each.computable_with(stats) for each, stats in zip(measured.values(), known, strict=True)]
            made = collect(
                fake, np.arange(len(fake), dtype=np.int64), "evaluating",
                [each.collection(len(fake), for_bootstrap=self.bootstrap > 0) for each in measured.values()],
                batch_size=self.batch_size, should_stop=should_stop,
            )  # fmt: skip
            values: dict[str, float] = {}
            bounds: dict[str, tuple[float, float]] = {}
            for each, chosen, ours, theirs in zip(measured.values(), metrics, known, made, strict=True):
                check_num_features(each.extractor, ours, theirs)
                found = compare(ours, theirs, chosen, each.name, device)
                if each is self.main:
                    check_first_metric(found, self.main.name, self.metrics, ours, len(fake))
                values |= found
                bounds |= intervals(chosen, ours, theirs, each.name, found, self.bootstrap, self.seed)
        warnings = self._warn(made, real)
        moments = {} if published is None else {"moments": published.images}
        described = provenance(
            self.main, self.additional, known, made, real_images={**self._real.describe(real), **moments}, generated=fake,
            held_out=held_out, bootstrap=self.bootstrap,
        )  # fmt: skip
        return Evaluation(values, described, bounds, warnings)

    def statistics(self, images: ImageSet, device: torch.device) -> SavedStatistics:
        """Return the first extractor's statistics of images, for comparison with at most ``num_images`` other images."""
        with full_float32():
            self.extractor.to(device)
            return self._real.of(images, self.main, self.num_images, device)

    def _warn(self, made: list[FeatureStats], real: ImageSet | SavedStatistics) -> tuple[str, ...]:
        """Return all warnings about the counts; log each of them only once per run."""
        counts = {"generated": made[0].num_images, "real": self._real.count(real)}
        found = tuple(dict.fromkeys(text for each in made for text in small_counts(counts, each.num_features)))
        for text in found:
            if text not in self._warned:
                self._warned.add(text)
                log.warning("%s", text)
        return found
