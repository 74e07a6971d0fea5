"""Likelihood of held-out images under a model, in nats per image and in bits per dimension."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.data.subsets import selection, subset_of
from genimg.errors import ConfigError, DataError
from genimg.evaluation.base import HeldOutEvaluator
from genimg.evaluation.feature_extraction import full_float32, mean_over_ranks, ranges
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method
from genimg.methods.capabilities import HasLikelihood
from genimg.types import Batch, PixelLikelihood
from genimg.utils.distributed import shard, world_size
from genimg.utils.environment import versions
from genimg.utils.images import to_float
from genimg.utils.rng import Stream, keys_of


class LikelihoodEvaluator(HeldOutEvaluator):
    """Measure the importance-weighted negative log-likelihood (the primary metric) and, if there is one, the ELBO.

    The images are held-out ones, or training images if there are none. The randomness of image i depends only on (seed, i).
    The estimate of a VAE from K samples is in expectation an upper bound of the negative log-likelihood that decreases with K
    (Burda et al. 2016, theorem 1), so K is part of its name.

    Args:
        num_samples: Number K of random samples per image: latents of a VAE, dequantisation noise of a diffusion model.
        num_images, batch_size, seed: See HeldOutEvaluator. The batch size influences the values only by rounding.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, num_images: int, num_samples: int, batch_size: int, seed: int) -> None:
        super().__init__(num_images=num_images, batch_size=batch_size, seed=seed)
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be 1 or more")
        self.num_samples = num_samples
        self._estimator = "iw"

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        if not isinstance(method, HasLikelihood):
            raise ConfigError(
                f"this evaluation needs a model with a likelihood, such as vae, and a {type(method).__name__} has none: choose "
                "another evaluation"
            )
        self._estimator = method.likelihood_estimator
        self.warn_without_validation(source)

    @property
    def primary(self) -> str:
        return f"nll_{self._estimator}{self.num_samples}_nats"

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
        assert isinstance(method, HasLikelihood)
        held_out = data.validation or data
        return self.measure(method, held_out, should_stop, num_images, held_out=data.validation is not None, weights=weights)

    def measure(
        self,
        method: HasLikelihood,
        data: ImageLoader,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        held_out: bool | None,
        weights: str = "raw",
    ) -> Evaluation:
        """Measure the images of ``data``.

        Args:
            method: Model to evaluate.
            data: Images to measure.
            should_stop, num_images, weights: See ModelEvaluator.
            held_out: Whether the images were held out from training; None if unknown.

        Raises:
            EvaluationInterruptedError: If ``should_stop`` returns true.
            DataError: If there are too few images, or a value is not finite.
        """
        self._estimator = method.likelihood_estimator
        count = min(num_images or self.num_images, len(data.source))
        if count < world_size():
            raise DataError(
                f"{count} images are fewer than the {world_size()} processes that measure them: start fewer processes"
            )
        chosen, rows = subset_of(data.source, count), defaultdict(list)
        with full_float32():
            for start, stop in ranges(shard(count), self.batch_size, "likelihood", lambda: None, should_stop):
                indices = chosen[start:stop]
                batch: Batch = {"image": to_float(data.images(indices))} | data.conditions(indices, method.batch_keys)
                keys = keys_of(self.seed, Stream.LIKELIHOOD, indices)
                for name, numbers in method.log_likelihood(batch, self.num_samples, keys).items():
                    rows[name].append(numbers)
        means = {name: mean_over_ranks(parts) for name, parts in rows.items()}
        likelihood, num_dimensions = method.likelihood, math.prod(data.source.shape)

        def bits(nats: float) -> float:
            return likelihood.bits_per_dimension(torch.tensor(nats, dtype=torch.float64), num_dimensions).item()

        nll = -means["log_likelihood"]
        name = likelihood.bits_name
        values = {
            self.primary: nll,
            f"nll_{self._estimator}{self.num_samples}_{name}": bits(nll),
        }
        if "elbo" in means:
            values |= {
                "elbo_nats": means["elbo"],
                name: bits(-means["elbo"]),
                "reconstruction_nats": means["reconstruction"],
                f"reconstruction_{name}": bits(means["reconstruction"]),
                "kl_nats": means["kl"],
                "kl_bits_per_dim": means["kl"] / (num_dimensions * math.log(2.0)),
            }
        broken = next((name for name, value in values.items() if not np.isfinite(value)), None)
        if broken is not None:
            raise DataError(
                f"{broken} of {data.source.name} is {values[broken]}: the model has diverged; evaluate an earlier checkpoint"
            )
        return Evaluation(values, self._provenance(likelihood, data, count, held_out=held_out, weights=weights))

    def _provenance(
        self, likelihood: PixelLikelihood, data: ImageLoader, count: int, *, held_out: bool | None, weights: str
    ) -> dict[str, Any]:
        return {
            "likelihood": {
                "held_out": held_out,
                "source": data.source.name,
                "fingerprint": data.source.fingerprint,
                "image_shape": "x".join(map(str, data.source.shape)),
                "num_images": count,
                **selection(count, len(data.source)),
                "num_samples": self.num_samples,
                "of": likelihood.description,
                "weights": weights,
                "seed": self.seed,
            },
            "precision": "networks float32 without TF32, sums over samples and images float64",
            "versions": versions(),
        }
