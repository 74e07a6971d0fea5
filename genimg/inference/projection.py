"""Projection of images into the latents of a GAN's generator: the latents whose images are nearest to given images.

In w and w+ this is the method of StyleGAN2: Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020,
appendix D, with the settings of the authors' code. In w+, the space of Abdal et al., "Image2StyleGAN", 2019, each layer has its
own style, and everything else is the same. In z, several random starts are optimised, with a penalty on the latent's
norm: Bora et al., "Compressed sensing using generative models", 2017, sections 1 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.losses.image_distance import ImageDistance
from genimg.methods.generator_latents import W_PLUS, GeneratorLatents, LatentCodes, W, Z
from genimg.types import Batch
from genimg.utils.rng import mixed_keys, normal_numbers

STEPS = {W: 1000, W_PLUS: 1000, Z: 500}
"""Default number of steps, by space: Karras et al. 2020, and Bora et al. 2017 for the CelebA model."""

RESTARTS = {W: 1, W_PLUS: 1, Z: 4}
"""Default number of starts, by space."""

_RATE = 0.1  # learning rate of Adam in both papers
_RISE, _FALL = 0.05, 0.25  # shares of the steps in which the learning rate rises from 0 and falls to 0
_STYLES = 10_000  # samples from which mean and deviation of w are computed
_DEVIATION = 0.05  # of the perturbations of w at the first step, in deviations of w
_PERTURBED = 0.75  # share of the steps in which w is perturbed
_NOISE_WEIGHT = 1e5  # of the regularisation of noise maps
_COARSEST = 8  # pixels; noise maps are regularised down to this side
_PRIOR_WEIGHT = 1e-3  # of the mean square of the normal numbers behind z
_START, _STEP, _NOISE = 0, 1, 2  # purposes of random numbers


@dataclass(frozen=True)
class Projector:
    """Finds latents whose images are nearest to given images.

    Attributes:
        latents: The generator.
        distance: Distance to minimise.
        space: One of the generator's spaces.
        steps: Number of steps of Adam.
        restarts: Number of starts of each image, of which the nearest result is kept; 1 in w and w+, where every start is the
            mean of w.
        optimises_noise: Whether the noise maps of a style-based generator are optimised, too, as in StyleGAN2's projection;
            otherwise its fixed noise is used.
        seed: Seed from which the generated images for the mean of w are drawn.
        row: Batch of one image with the condition of all images; empty for an unconditional generator.
    """

    latents: GeneratorLatents
    distance: ImageDistance
    space: str
    steps: int
    restarts: int
    optimises_noise: bool
    seed: int
    row: Batch

    @cached_property
    def _mean_style(self) -> tuple[Tensor, float]:
        """The mean [W] of w, and the root of the mean squared distance from it."""
        styles = self.latents.style_samples(_STYLES, self.seed, self.row)
        mean = styles.mean(dim=0)
        return mean, (styles - mean).square().sum(dim=1).mean().sqrt().item()

    def project(self, targets: Tensor, keys: Tensor, advance: Callable[[], object]) -> tuple[LatentCodes, Tensor]:
        """Return the latents of the nearest images, and their distances [N].

        Every image is optimised on its own, so the images of a batch influence each other only by rounding.

        Args:
            targets: Images [N, C, H, W] in [-1, 1], on the generator's device.
            keys: Random keys of the images, int64 [N], on the same device.
            advance: Function that is called after each step.
        """
        repeated = targets.repeat_interleave(self.restarts, dim=0)
        keys = torch.stack([mixed_keys(keys, number) for number in range(self.restarts)], dim=1).flatten()  # grouped by image
        own = [each for each in self.latents.generator.parameters() if each.requires_grad]
        for parameter in own:
            parameter.requires_grad_(False)
        try:
            codes, distances = self._optimised(repeated, keys, advance)
        finally:
            for parameter in own:
                parameter.requires_grad_(True)
        best = distances.view(-1, self.restarts).argmin(dim=1)
        chosen = best + self.restarts * torch.arange(len(targets), device=best.device)
        return codes[chosen], distances[chosen]

    def _optimised(self, targets: Tensor, keys: Tensor, advance: Callable[[], object]) -> tuple[LatentCodes, Tensor]:
        count = len(targets)
        condition = {key: value.to(targets.device).expand(count, *value.shape[1:]) for key, value in self.row.items()}
        shape = self.latents.shape(self.space)
        scale = 0.0
        if self.space == Z:
            variable = normal_numbers(mixed_keys(keys, _START), shape)
        else:
            mean, deviation = self._mean_style
            variable, scale = mean.expand(count, *shape).clone(), _DEVIATION * deviation
        variable.requires_grad_()
        sizes = self.latents.noise_sizes if self.optimises_noise else []
        maps = [
            normal_numbers(mixed_keys(keys, _NOISE, layer), (1, *size)).requires_grad_() for layer, size in enumerate(sizes)
        ]
        optimizer = torch.optim.Adam([variable, *maps], lr=_RATE, betas=(0.9, 0.999))

        def codes(values: Tensor) -> LatentCodes:
            values = self.latents.latent.from_normal(values) if self.space == Z else values
            return LatentCodes(self.space, values, condition, tuple(maps))

        for step in range(self.steps):
            t = step / self.steps
            optimizer.param_groups[0]["lr"] = _RATE * _ramp(t)
            values = variable
            if scale and t < _PERTURBED:
                width = scale * (1.0 - t / _PERTURBED) ** 2
                values = variable + width * normal_numbers(mixed_keys(keys, _STEP, step), shape)
            loss = self.distance(self.latents.images(codes(values)).float(), targets)
            if self.space == Z:
                loss = loss + _PRIOR_WEIGHT * variable.square().mean(dim=1)
            if maps:
                loss = loss + _NOISE_WEIGHT * noise_correlation(maps)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            with torch.no_grad():
                for each in maps:
                    each.copy_(_standardised(each))
            advance()
        with torch.no_grad():
            maps = [each.detach() for each in maps]
            found = codes(variable.detach())
            return found, self.distance(self.latents.images(found).float(), targets)


def noise_correlation(maps: list[Tensor]) -> Tensor:
    """Return the regularisation of noise maps: Karras et al. 2020, appendix D, equation 9.

    It is the sum over maps, scales and axes of the squared mean product of each value and its neighbour, with wrapping borders.
    Each scale averages 2x2 values of the previous one and doubles the result, which keeps the variance of white noise. The last
    scale is the first whose longer side is at most 8.

    Args:
        maps: Noise maps [N, 1, H, W].

    Returns:
        The regularisation of each image [N].
    """
    total = maps[0].new_zeros(len(maps[0]))
    for scale in maps:
        while True:
            for axis in (2, 3):
                total = total + (scale * scale.roll(1, axis)).mean(dim=(1, 2, 3)).square()
            if max(scale.shape[2:]) <= _COARSEST or min(scale.shape[2:]) < 2:
                break
            scale = 2.0 * F.avg_pool2d(scale, 2)
    return total


def _standardised(noise: Tensor) -> Tensor:
    """Return noise maps [N, 1, H, W] with a mean of 0 and a mean square of 1 each; a single value is left as it is."""
    if noise[0].numel() == 1:
        return noise
    noise = noise - noise.mean(dim=(1, 2, 3), keepdim=True)
    return noise * noise.square().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12).rsqrt()


def _ramp(t: float) -> float:
    """Return the factor of the learning rate after a share ``t`` of the steps: it rises linearly, and falls along a cosine."""
    falling = min(1.0, (1.0 - t) / _FALL)
    return (0.5 - 0.5 * math.cos(falling * math.pi)) * min(1.0, t / _RISE)
