"""Reconstructions of held-out images by an autoencoder, including one that cannot sample."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError
from genimg.evaluation.base import HeldOutEvaluator
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.image_metrics import LPIPS, check_lpips
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.names import full_name
from genimg.evaluation.reconstruction import ReconstructionEvaluator
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method
from genimg.methods.capabilities import Reconstructs
from genimg.utils.environment import versions


class AutoencoderEvaluator(HeldOutEvaluator):
    """Measure reconstructions of held-out images: the Fréchet distance to the originals, PSNR, SSIM and, if given, LPIPS.

    The distance, called rFID with Inception's features, is the primary metric. A model of the latents cannot be expected to
    reach a lower distance.

    Args:
        extractor: Feature extractor.
        num_images, batch_size, seed: See HeldOutEvaluator. The batch size does not influence the values.
        lpips: LPIPS distance with local weights; None omits it.

    Raises:
        ValueError: If a number is out of range.
    """

    least_num_images = 2  # for a covariance

    def __init__(self, *, extractor: Extractor, num_images: int, batch_size: int, seed: int, lpips: LPIPS | None) -> None:
        super().__init__(num_images=num_images, batch_size=batch_size, seed=seed)
        if num_images < self.least_num_images:
            raise ValueError(f"num_images={num_images} must be {self.least_num_images} or more, for a Fréchet distance")
        self.extractor = extractor
        self.lpips = lpips
        self._by_count: dict[int, ReconstructionEvaluator] = {}
        self._known: tuple[str, int] = ("held_out", num_images)  # kind and number of the images

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        if not isinstance(method, Reconstructs):
            raise ConfigError(
                f"this evaluation needs an autoencoder, such as kl_autoencoder, but a {type(method).__name__} is not one: "
                "choose another evaluation"
            )
        self.warn_without_validation(source)
        if source is not None:
            side, images = ("train", source) if source.validation is None else ("held_out", source.validation)
            self._known = (side, min(self.num_images, len(images)))
            if self.lpips is not None:
                check_lpips(self.lpips, source.shape)

    @property
    def primary(self) -> str:
        side, count = self._known
        return f"reconstruction_{side}_{full_name(self.extractor, 'fd', count)}"

    @property
    def higher_is_better(self) -> bool:
        return False

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
        """See ModelEvaluator."""
        self.check(method, data.source)
        assert isinstance(method, Reconstructs)
        held_out = data.validation or data
        return self.measure(method, held_out, should_stop, num_images, held_out=data.validation is not None, weights=weights)

    def measure(
        self,
        method: Reconstructs,
        data: ImageLoader,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        held_out: bool | None,
        weights: str = "raw",
    ) -> Evaluation:
        """Measure the images of ``data``.

        Args:
            method: Autoencoder to evaluate.
            data: Images to reconstruct.
            should_stop, num_images, weights: See ModelEvaluator.
            held_out: Whether the images were held out from training; None if unknown.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If there are fewer than two images.
        """
        count, side = num_images or self.num_images, {True: "held_out", False: "train", None: "real"}[held_out]
        if count not in self._by_count:
            self._by_count[count] = ReconstructionEvaluator(
                [self.extractor], num_images=count, batch_size=self.batch_size, lpips=self.lpips
            )
        before = Evaluation({}, {
            "extractor": self.extractor.describe(), "weights": weights, "versions": versions(),
            "precision": "networks and features float32 without TF32, statistics float64",
        })  # fmt: skip
        found = self._by_count[count].added_to(before, method, DatasetImages(data), side, data.device, should_stop)
        values = dict(sorted(found.values.items(), key=lambda each: "_fd" not in each[0]))  # the primary metric first
        return Evaluation(values, found.provenance)
