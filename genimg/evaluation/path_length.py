"""Perceptual path length: how much images change along a short way through a GAN's latents.

Karras et al., "A style-based generator architecture for generative adversarial networks", 2019, section 4.1, with the
changes of Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020: no crop, and positions at the ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.data.datasets.builtin import ImageDataset
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError
from genimg.evaluation.base import ModelEvaluator
from genimg.evaluation.feature_extraction import full_float32, ranges
from genimg.evaluation.image_sets import FiniteCheck
from genimg.evaluation.names import short_count
from genimg.evaluation.result import Evaluation
from genimg.losses.image_distance import ImageDistance
from genimg.methods.base import Method
from genimg.methods.gan import GAN
from genimg.methods.generator_latents import GeneratorLatents, LatentCodes, W, Z
from genimg.methods.latent import Normal
from genimg.utils.distributed import all_gather_rows, shard
from genimg.utils.environment import versions
from genimg.utils.exact import double
from genimg.utils.rng import Stream, uniform

_SAMPLINGS = ("end", "full")
_PERCENTILES = (1.0, 99.0)  # lengths outside are discarded, as in the authors' code
_PUBLISHED = "lpips_vgg"


class PathLengthEvaluator(ModelEvaluator):
    """Measure the perceptual path length of a GAN: the mean of d(G(a), G(b)) / epsilon^2, for latents a and b of a short step.

    Each way leads from one random latent to another: along a straight line in w, along a great circle in z if z is normal, and
    else along a straight line. a lies at the share t of the way and b at t + epsilon, where t is 0 or uniform in [0, 1). Both
    images have the condition of the first latent and the fixed noise. Images are not rounded. Lengths below the 1st and above
    the 99th percentile are discarded. d must grow with the square of small differences, as all ``ImageDistance`` classes do.

    Args:
        distance: Distance d.
        num_images: Number of ways N.
        batch_size: Number of ways in a batch; does not influence the values.
        seed: Seed of the latents.
        space: ``w`` or ``z``; None for w if the generator has styles, else z.
        sampling: ``end`` for t = 0, ``full`` for a random t.
        epsilon: Length of a step as a share of the way; 1e-4 in the papers.
        crop: Whether to compare only the part of an image in which the authors expect a face, which is half as wide and high.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        distance: ImageDistance,
        num_images: int,
        batch_size: int,
        seed: int,
        space: str | None,
        sampling: str,
        epsilon: float,
        crop: bool,
    ) -> None:
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if space not in (None, W, Z):
            raise ValueError(f"space={space} is unknown: choose w or z, or null for the generator's")
        if sampling not in _SAMPLINGS:
            raise ValueError(f"sampling={sampling} is unknown: choose one of {', '.join(_SAMPLINGS)}")
        if not 0 < epsilon <= 0.1:
            raise ValueError(f"epsilon={epsilon} must be above 0 and at most 0.1")
        self.distance = distance
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.space, self.sampling, self.epsilon, self.crop = space, sampling, epsilon, crop

    def check(self, method: Method, source: ImageDataset | None = None) -> None:
        if not isinstance(method, GAN):
            raise ConfigError(
                f"this evaluation measures paths through the latents of a GAN, not of a {type(method).__name__}: choose another"
            )
        if self.space == W and not GeneratorLatents(method).is_style_based:
            raise ConfigError("space=w needs a generator with styles, such as StyleGAN2's: choose z")

    @property
    def primary(self) -> None:
        """None: a generator that always makes the same image has paths of length 0."""
        return

    @property
    def higher_is_better(self) -> bool:
        return False

    def evaluate(
        self,
        method: Method,
        data: ImageLoader | None,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
        num_images: int | None = None,
        *,
        weights: str = "raw",
    ) -> Evaluation:
        """Measure the model; see ``ModelEvaluator``. The data is not used."""
        self.check(method)
        assert isinstance(method, GAN)
        method.before_sampling()
        count = self.num_images if num_images is None else num_images
        latents = GeneratorLatents(method)
        space = self.space or (W if latents.is_style_based else Z)
        was_training = method.training
        method.eval()
        try:
            lengths = self._lengths(latents, space, count, device, should_stop)
        finally:
            method.train(was_training)
        name = f"{space}_{self.sampling}" + ("_crop" if self.crop else "")
        if self.distance.name == _PUBLISHED:
            name = f"ppl{short_count(count)}_{name}"
        else:
            name = f"path_length{short_count(count)}_{name}_{self.distance.name}"
        described = {
            "path_length": {
                "space": space, "sampling": self.sampling, "epsilon": self.epsilon, "crop": self.crop, "num_paths": count,
                "kept_percentiles": list(_PERCENTILES), "noise": "const", "way": _way(latents, space), "seed": self.seed,
                **self.distance.describe(),
            },
            "weights": weights, "versions": versions(),
            "precision": "networks and features float32 without TF32",
        }  # fmt: skip
        return Evaluation({name: trimmed_mean(lengths)}, described)

    @torch.no_grad()
    def _lengths(
        self, latents: GeneratorLatents, space: str, count: int, device: torch.device, should_stop: Callable[[], bool]
    ) -> NDArray[np.float64]:
        """Return the length of every step [N]."""
        self.distance.to(device)
        finite = FiniteCheck("the model")
        parts = []
        with full_float32():
            for start, stop in ranges(shard(count), self.batch_size, "path lengths", finite.check, should_stop):
                indices = np.arange(start, stop, dtype=np.int64)
                first, last = (latents.draw((2 * indices + side).tolist(), self.seed) for side in (0, 1))
                last = {**first, "latent": last["latent"]}
                start_codes, end_codes = (latents.codes(each, space) for each in (first, last))
                t = uniform(self.seed, Stream.PATH_POSITION, indices) if self.sampling == "full" else np.zeros(len(indices))
                images = []
                for share in (t, t + self.epsilon):
                    values = between(start_codes.values, end_codes.values, torch.from_numpy(share), _way(latents, space))
                    made = latents.images(LatentCodes(space, values, start_codes.condition)).float()
                    finite.add(made, indices)
                    images.append(face_of(made) if self.crop else made)
                parts.append(self.distance(*images).cpu() / self.epsilon**2)
        return double(all_gather_rows(torch.cat(parts))).numpy()


def between(start: Tensor, end: Tensor, share: Tensor, way: str) -> Tensor:
    """Return latents [N, D] between two latents each, computed in float64.

    Args:
        start, end: Latents [N, D].
        share: Share of the way [N].
        way: ``linear``, or ``spherical`` for the great circle.
    """
    a, b, t = double(start), double(end), double(share.to(start.device))[:, None]
    if way == "linear":
        return torch.lerp(a, b, t.expand_as(a)).to(start)
    one, other = (each / each.norm(dim=1, keepdim=True) for each in (a, b))
    angle = 2.0 * torch.atan2((one - other).norm(dim=1, keepdim=True), (one + other).norm(dim=1, keepdim=True))
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)).to(start)


def trimmed_mean(lengths: NDArray[np.float64]) -> float:
    """Return the mean of the lengths from the 1st to the 99th percentile, each rounded outwards to a length that occurs."""
    low = np.percentile(lengths, _PERCENTILES[0], method="lower")
    high = np.percentile(lengths, _PERCENTILES[1], method="higher")
    return float(lengths[(lengths >= low) & (lengths <= high)].mean())


def face_of(images: Tensor) -> Tensor:
    """Return the part of images [N, C, H, W] from 3/8 to 7/8 of the height and from 1/4 to 3/4 of the width."""
    height, width = images.shape[2:]
    return images[:, :, height * 3 // 8 : height * 7 // 8, width // 4 : width * 3 // 4]


def _way(latents: GeneratorLatents, space: str) -> str:
    return "spherical" if space == Z and isinstance(latents.latent, Normal) else "linear"
