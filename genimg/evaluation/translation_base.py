"""Base class of the evaluators of translated images."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import selection
from genimg.errors import ConfigError, DataError
from genimg.evaluation.base import HeldOutEvaluator
from genimg.evaluation.checks import check_counts, small_counts
from genimg.evaluation.compare import compare
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_extraction import Collection, collect, full_float32, ranges
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.image_sets import ComputedImages, FiniteCheck, ImageSet
from genimg.evaluation.metrics import FrechetDistance, KernelDistance, Metric
from genimg.evaluation.names import full_name
from genimg.evaluation.result import Evaluation
from genimg.evaluation.translation_metrics import means_over_images
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Translates
from genimg.types import Batch
from genimg.utils.distributed import all_gather_rows, shard, world_size
from genimg.utils.environment import versions
from genimg.utils.rng import Stream, seed_of, steady

log = logging.getLogger(__name__)

_DISTANCES: dict[str, Metric] = {
    "kd": KernelDistance(subsets=100, subset_size=1000),  # as in configs/evaluation/base.yaml
    "fd": FrechetDistance(),
}

Observer = Callable[[Batch, dict[str, Tensor]], None]
"""Callback that receives every measured batch and the values [N] of its images."""


class TranslationEvaluator(HeldOutEvaluator):
    """Base class of evaluators of translations of held-out images, or of training images if there are none.

    Args:
        num_images: Maximum number of images, chosen at random and stratified by class.
        batch_size: Batch size; does not influence the values if ``sampled_mode`` is eval.
        seed: Seed of the task's random numbers.
        extractor: Feature extractor for Fréchet and kernel distances of translated from held-out images; None disables them.
        best_by: Short name of the metric that chooses the best checkpoint, one of ``choices`` (``kd`` and ``fd`` need an
            extractor, ``lpips`` its weights); None keeps only the last checkpoint.

    Raises:
        ValueError: If ``best_by`` is not one of ``choices``, or is not measured.
    """

    choices: tuple[str, ...]
    """Metrics that may choose the best checkpoint; excluded are metrics that are best if a translator changes nothing."""

    key: str
    """Batch key that a model must use to be measured."""
    what: str
    """Description of the measured translations, for messages."""

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        extractor: Extractor | None,
        best_by: str | None,
    ) -> None:
        super().__init__(num_images=num_images, batch_size=batch_size, seed=seed)
        if best_by is not None and best_by not in self.choices:
            wins = "cycle_l1" in str(best_by) or "identity_l1" in str(best_by)
            why = ", because a translator that changes nothing has the best value" if wins else ""
            raise ValueError(
                f"best_by={best_by} cannot choose the best checkpoint{why}: choose one of {', '.join(self.choices)}, or null"
            )
        if best_by in ("kd", "fd") and extractor is None:
            raise ValueError(
                f"best_by={best_by} needs an extractor: choose an evaluation that has one, such as "
                "unpaired_translation_inception or translation_inception, or another best_by"
            )
        self.extractor, self.best_by = extractor, best_by
        self._targets: dict[tuple[str, int, str], FeatureStats] = {}  # a run's held-out images do not change
        self._counts_warned: set[str] = set()

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        translates = isinstance(method, Translates)
        if not translates or self.key not in method.batch_keys:
            fitting = "translation" if "source" in method.batch_keys else "unpaired_translation"
            fitting = fitting if translates else "inception" if isinstance(method, Generates) else "none"
            raise ConfigError(
                f"this evaluation measures {self.what}, which the model, a {type(method).__name__}, does not make: choose "
                f"another evaluation, such as {fitting}"
            )
        self.warn_without_validation(source)

    def evaluate(
        self,
        method: Method,
        data: ImageLoader,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        weights: str = "raw",
        observe: Observer = lambda batch, found: None,
    ) -> Evaluation:
        """See ModelEvaluator; ``observe`` is called with this rank's batches."""
        self.check(method)
        assert isinstance(method, Translates)
        held_out = data.validation or data
        self.warn_without_validation(data.source)
        count = min(num_images or self.num_images, len(held_out.source))
        with full_float32():
            values = self._pixels(method, held_out, count, should_stop, observe)
            if self.extractor is not None:
                batch_size = self.batch_size_of(method)
                sets = self._sets(method, held_out, count)
                values |= self._distances(self.extractor, sets, batch_size, device, should_stop)
        if (first := self.primary) is not None:
            if first not in values:
                raise ConfigError(f"best_by={self.best_by} is not measured here: choose one of {', '.join(values)}")
            values = {first: values[first]} | values
        return Evaluation(values, self._provenance(method, data, count, weights))

    @property
    def primary(self) -> str | None:
        if self.best_by in ("kd", "fd"):
            assert self.extractor is not None
            return full_name(self.extractor, self.best_by, None)
        return self.best_by

    @property
    def higher_is_better(self) -> bool:
        return self.best_by in ("psnr", "ssim", "ms_ssim")

    def batch_size_of(self, method: Translates) -> int:
        """Return the batch size, 1 in training mode so dropout and batch statistics of an image do not depend on others."""
        return 1 if method.sampled_mode == "train" else self.batch_size

    @property
    def noise_seed(self) -> int:
        """Seed of the task's random numbers, independent of those in training."""
        return seed_of(self.seed, Stream.TRANSLATION)

    def translated(self, method: Translates, source: Tensor, indices: NDArray[np.int64], number: int = 0) -> Tensor:
        """Return translations [N, T, H, W] of sources in the default direction, as the evaluation measures them.

        Args:
            method: The model.
            source: Sources [N, S, H, W].
            indices: Indices of the sources' images, which determine random translations.
            number: Which of the random translations of each image to return.
        """
        return method.translate(source)

    @abstractmethod
    def _pixels(
        self, method: Translates, data: ImageLoader, count: int, should_stop: Callable[[], bool], observe: Observer
    ) -> dict[str, float]:
        """Return the mean pixel metrics of ``count`` images, chosen at random."""

    def _means(
        self,
        method: Translates,
        data: ImageLoader,
        chosen: NDArray[np.int64],
        measure: Callable[[Batch, FiniteCheck, NDArray[np.int64]], dict[str, Tensor]],
        should_stop: Callable[[], bool],
        observe: Observer,
    ) -> dict[str, float]:
        """Return the means over all images of the values [N] that ``measure`` returns for each batch."""
        if len(chosen) < world_size():
            raise DataError(
                f"{len(chosen)} held-out images are fewer than the {world_size()} processes that measure them: start fewer "
                "processes, or hold out more images"
            )
        rows: dict[str, list[Tensor]] = defaultdict(list)
        finite = FiniteCheck("the model's translations")
        positions, batch_size = shard(len(chosen)), self.batch_size_of(method)
        for start, stop in ranges(positions, batch_size, "translating", finite.check, should_stop):
            with steady(self.noise_seed, start):
                batch = data.examples(chosen[start:stop], self.noise_seed)
                found = measure(batch, finite, chosen[start:stop])
            observe(batch, found)
            for name, numbers in found.items():
                rows[name].append(numbers)
        return means_over_images({name: all_gather_rows(torch.cat(parts).cpu()) for name, parts in rows.items()})

    @abstractmethod
    def _sets(self, method: Translates, data: ImageLoader, count: int) -> dict[str, tuple[ComputedImages, ComputedImages]]:
        """Return the real and translated images to compare, by the suffix of the metric names."""

    def _distances(
        self,
        extractor: Extractor,
        sets: dict[str, tuple[ComputedImages, ComputedImages]],
        batch_size: int,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Return Fréchet and kernel distances by metric name, without the number of images."""
        extractor.to(device)
        found: dict[str, float] = {}
        for ending, (real, fake) in sets.items():
            check_counts(_DISTANCES, generated=len(fake), real=len(real), least=max(2, world_size()))
            known = (real.of, len(real), ending)
            if known not in self._targets:  # without the disk cache, because targets also depend on the task's settings
                self._targets[known] = _statistics(extractor, real, "features of held-out images", batch_size, should_stop)
            targets = self._targets[known]
            made = _statistics(extractor, fake, "evaluating", batch_size, should_stop)

            def name(short_name: str, count: int, ending: str = ending) -> str:
                return full_name(extractor, short_name, None) + ending

            found |= compare(targets, made, _DISTANCES.values(), name, device)
            self._warn_of_counts({"generated": len(fake), "real": len(real)}, made.num_features)
        return found

    def _warn_of_counts(self, counts: Mapping[str, int], num_features: int) -> None:
        """Warn once of each count that is too small for a reliable distance."""
        for text in small_counts(counts, num_features):
            if text not in self._counts_warned:
                self._counts_warned.add(text)
                log.warning("%s", text)

    def _weights(self) -> dict[str, Any]:
        """Describe the networks used besides the extractor, for the provenance."""
        return {}

    def _provenance(self, method: Translates, data: ImageLoader, count: int, weights: str) -> dict[str, Any]:
        held_out = data.validation or data
        return {
            "translation": {
                "held_out": data.validation is not None,
                "source": held_out.source.name,
                "fingerprint": held_out.source.fingerprint,
                "image_shape": "x".join(map(str, held_out.source.shape)),
                "num_images": count,
                **selection(count, len(held_out.source)),
                "task": method.task.describe(),
                "weights": weights,
                "mode": method.sampled_mode,
                "seed": self.seed,
                **self._weights(),
            },
            "extractor": None if self.extractor is None else self.extractor.describe(),
            "precision": "translation and features float32 without TF32, images rounded to uint8",
            "versions": versions(),
        }


def _statistics(
    extractor: Extractor, images: ImageSet, title: str, batch_size: int, should_stop: Callable[[], bool]
) -> FeatureStats:
    """Return the statistics of all images of a set, with the features of each of them."""
    everything = np.arange(len(images), dtype=np.int64)
    collections = [Collection(extractor, kept=everything)]
    return collect(images, everything, title, collections, batch_size=batch_size, should_stop=should_stop)[0]
