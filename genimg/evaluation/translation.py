"""Evaluators of translated images: against known targets, or by cycle consistency and distribution if unpaired."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import subset_of
from genimg.errors import ConfigError
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.image_metrics import LPIPS, check_lpips, l1
from genimg.evaluation.image_sets import ComputedImages, FiniteCheck
from genimg.evaluation.names import full_name
from genimg.evaluation.translation_base import Observer, TranslationEvaluator
from genimg.evaluation.translation_metrics import similarities
from genimg.methods.base import Method
from genimg.methods.capabilities import Translates, TranslatesRandomly
from genimg.methods.sampling_options import described, sampling_options, translation_keys
from genimg.types import Batch
from genimg.utils.distributed import world_size
from genimg.utils.images import to_float, to_uint8
from genimg.utils.mounting import mounting
from genimg.utils.numbers import require_least

log = logging.getLogger(__name__)

_KEPT_BYTES = 2**28  # maximum size of the random translations that are kept for feature distances


class PairedEvaluator(TranslationEvaluator):
    """Measure translations against their targets: PSNR, SSIM, L1, MS-SSIM if images are large enough, and LPIPS if given.

    Inpainting is also measured in the holes alone, and super-resolution on the luma without borders; see ``similarities``. If
    translations are random, these metrics are computed for one translation of each image. In addition, ``diversity_l1`` is the
    mean absolute difference, in [0, 1], between two translations of an image; ``diversity_l1_hole`` covers only missing pixels.

    Args:
        lpips: LPIPS distance with local weights; None omits it. See TranslationEvaluator for the other arguments.
        sampling: Sampling options of a model whose translations are random, by name, which replace its defaults.
        num_samples: Number of translations of an image for the diversity; 1 omits it.
        diversity_images: Maximum number of images for the diversity.
    """

    choices = ("psnr", "ssim", "ms_ssim", "l1", "lpips", "kd", "fd")
    key = "source"
    what = "translations whose targets are known"

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        seed: int,
        extractor: Extractor | None,
        best_by: str | None,
        lpips: LPIPS | None,
        sampling: Mapping[str, Any] = MappingProxyType({}),
        num_samples: int = 1,
        diversity_images: int = 100,
    ) -> None:
        super().__init__(num_images=num_images, batch_size=batch_size, seed=seed, extractor=extractor, best_by=best_by)
        if best_by == "lpips" and lpips is None:
            raise ValueError("best_by=lpips needs the weights of lpips: give them, or choose another best_by")
        require_least(1, num_samples=num_samples, diversity_images=diversity_images)
        self.lpips = lpips
        self.sampling = dict(sampling)
        self.num_samples, self.diversity_images = num_samples, diversity_images
        self._made: dict[int, Tensor] = {}  # random translations as uint8 images, by index; making them again would be slow

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        super().check(method, source)
        if isinstance(method, TranslatesRandomly):
            with mounting("sampling", vars(method.sampling_options)):
                method.check_options(sampling_options(method, self.sampling))
        elif self.sampling:
            raise ConfigError(
                f"sampling={self.sampling} has no effect, because translations of a {type(method).__name__} are not random: "
                "remove it",
                key="sampling",
            )
        if self.lpips is not None and source is not None:
            check_lpips(self.lpips, (1, *source.shape[1:]))

    def translated(self, method: Translates, source: Tensor, indices: NDArray[np.int64], number: int = 0) -> Tensor:
        if not isinstance(method, TranslatesRandomly):
            return method.translate(source)
        keys = translation_keys(self.seed, indices, number).to(source.device)
        return method.translate_randomly(source, keys, sampling_options(method, self.sampling))

    def _weights(self) -> dict[str, Any]:
        return {} if self.lpips is None else {"lpips": self.lpips.describe()}

    def _provenance(self, method: Translates, data: ImageLoader, count: int, weights: str) -> dict[str, Any]:
        found = super()._provenance(method, data, count, weights)
        if not isinstance(method, TranslatesRandomly):
            return found
        diversity = {"num_samples": self.num_samples, "diversity_images": self.diversity_images}
        return found | {"sampling": described(sampling_options(method, self.sampling)) | diversity}

    def _pixels(
        self, method: Translates, data: ImageLoader, count: int, should_stop: Callable[[], bool], observe: Observer
    ) -> dict[str, float]:
        chosen = subset_of(data.source, count)
        self._made = {}
        found = self._means(method, data, chosen, partial(self._similarities, method), should_stop, observe)
        if isinstance(method, TranslatesRandomly) and self.num_samples > 1:
            some = subset_of(data.source, min(count, max(self.diversity_images, world_size())))
            found |= self._means(method, data, some, partial(self._diversity, method), should_stop, lambda batch, values: None)
        return found

    def _similarities(
        self, method: Translates, batch: Batch, finite: FiniteCheck, indices: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        source = batch["source"]
        output = self.translated(method, source, indices)
        finite.add(output, indices)
        image, reference = (to_uint8(method.task.result(each, source)) for each in (output, batch["target"]))
        if isinstance(method, TranslatesRandomly) and len(self._made) * image[0].numel() < _KEPT_BYTES:
            self._made |= dict(zip(indices.tolist(), image.cpu(), strict=True))
        found = similarities(reference, image, method.task, source)
        if self.lpips is not None:
            found["lpips"] = self.lpips.to(image.device)(reference, image)
        return found

    def _diversity(
        self, method: Translates, batch: Batch, finite: FiniteCheck, indices: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        """Return the mean distances [N] between two translations of an image, over all pairs of ``num_samples``."""
        source, task = batch["source"], method.task
        outputs = (self.translated(method, source, indices, number) for number in range(self.num_samples))
        pairs = list(combinations([to_uint8(task.result(each, source)) for each in outputs], 2))
        found = {"diversity_l1": [l1(*pair) for pair in pairs]}
        if (missing := task.missing(source)) is not None:
            found["diversity_l1_hole"] = [l1(*pair, missing) for pair in pairs]
        if self.lpips is not None:
            found["diversity_lpips"] = [self.lpips.to(source.device)(*pair) for pair in pairs]
        return {name: torch.stack(values).mean(dim=0) for name, values in found.items()}

    def _sets(self, method: Translates, data: ImageLoader, count: int) -> dict[str, tuple[ComputedImages, ComputedImages]]:
        task, chosen = method.task, subset_of(data.source, count)
        made, self._made = self._made, {}

        def targets(batch: Batch, indices: NDArray[np.int64]) -> Tensor:
            return task.result(batch["target"], batch["source"])

        def translations(batch: Batch, indices: NDArray[np.int64]) -> Tensor:
            source = batch["source"]
            if all(index in made for index in indices.tolist()):
                return to_float(torch.stack([made[index] for index in indices.tolist()])).to(source.device)
            return task.result(self.translated(method, source, indices), source)

        return {
            "": (
                ComputedImages(data, chosen, self.noise_seed, targets),
                ComputedImages(data, chosen, self.noise_seed, translations),
            )
        }


class UnpairedEvaluator(TranslationEvaluator):
    """Measure unpaired translations by feature distances, cycle consistency and identity.

    The best checkpoint is chosen by ``kd`` or ``fd``: the distance to the images of the target domain, averaged over
    directions. Cycle and identity errors are mean absolute differences in [0, 1]. They never choose the checkpoint, because a
    translator that changes nothing has 0 for both.
    """

    choices = ("kd", "fd")
    key = "a"
    what = "translations between two domains"
    _warned = False
    _cycles = True
    """Whether the last checked method translates in both directions."""

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        super().check(method, source)
        assert isinstance(method, Translates)
        self._cycles = len(method.directions) > 1
        if self.best_by is None and source is not None and not self._warned:
            self._warned = True
            log.warning(
                "only the last checkpoint is kept, not the best: without features, no metric rejects a translator that changes "
                "nothing; choose the evaluation unpaired_translation_inception or unpaired_translation_cifar10_classifier"
            )

    def _pixels(
        self, method: Translates, data: ImageLoader, count: int, should_stop: Callable[[], bool], observe: Observer
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, other in ("ab", "ba"):  # the images of each domain, once each
            measure = partial(self._round_trips, method, key, other)
            found |= self._means(method, data, _of_domain(data, key, count), measure, should_stop, observe)
        if self._cycles:
            found["cycle_l1"] = (found["cycle_l1_a"] + found["cycle_l1_b"]) / 2
        return found

    def _round_trips(
        self, method: Translates, key: str, other: str, batch: Batch, finite: FiniteCheck, indices: NDArray[np.int64]
    ) -> dict[str, Tensor]:
        image, away, home = batch[key], f"{key}2{other}", f"{other}2{key}"
        found: dict[str, Tensor] = {}
        if away in method.directions:
            translated = method.translate(image, away)
            finite.add(translated, indices)
            if self._cycles:
                found[f"cycle_l1_{key}"] = l1(to_uint8(image), to_uint8(method.translate(translated, home)))
        if home in method.directions and image.shape == batch[other].shape:
            found[f"identity_l1_{key}"] = l1(to_uint8(image), to_uint8(method.translate(image, home)))
        return found

    def _sets(self, method: Translates, data: ImageLoader, count: int) -> dict[str, tuple[ComputedImages, ComputedImages]]:
        sets = {}
        for direction in method.directions:
            source, target = direction.split("2")

            def translations(
                batch: Batch, indices: NDArray[np.int64], direction: str = direction, source: str = source
            ) -> Tensor:
                return method.translate(batch[source], direction)

            def targets(batch: Batch, indices: NDArray[np.int64], target: str = target) -> Tensor:
                return batch[target]

            sets[f"_{direction}"] = (
                ComputedImages(data, _of_domain(data, target, count), self.noise_seed, targets),
                ComputedImages(data, _of_domain(data, source, count), self.noise_seed, translations),
            )
        return sets

    def _distances(
        self,
        extractor: Extractor,
        sets: dict[str, tuple[ComputedImages, ComputedImages]],
        batch_size: int,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        found = super()._distances(extractor, sets, batch_size, device, should_stop)
        for name in (full_name(extractor, each, None) for each in self.choices):
            if all(name + ending in found for ending in sets):
                found[name] = sum(found[name + ending] for ending in sets) / len(sets)
        return found


def _of_domain(data: ImageLoader, key: str, count: int) -> NDArray[np.int64]:
    """Choose the indices of at most ``count`` different images of domain a or b at random."""
    source = data.source
    return subset_of(getattr(source, key) if isinstance(source, UnpairedDataset) else source, count)
