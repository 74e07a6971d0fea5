"""Sampling with a denoiser: guidance, and the solver that the options choose."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genimg.diffusion import samplers
from genimg.diffusion.denoiser import Denoiser
from genimg.diffusion.noise import NOISE, normal, state_type
from genimg.diffusion.paths import Path, VarianceExploding, VariancePreserving
from genimg.errors import ConfigError
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.modes import eval_mode
from genimg.utils.rng import mixed_keys

log = logging.getLogger(__name__)

_PREVIEW_STEPS = 10


def check_options(options: DiffusionOptions, path: Path, *, unguided: str | None) -> None:
    """Check options against the path and the training of a model.

    Args:
        options: Options of sampling.
        path: The model's path.
        unguided: Why guidance has no effect on the model, after "a model that"; None if it has one.

    Raises:
        ConfigError: If an option has no effect on the model, or is out of its range.
    """
    if options.spacing is not None and options.spacing not in path.spacings:
        raise ConfigError(
            f"spacing={options.spacing} is not one of the model's path: choose {' or '.join(path.spacings)}", key="spacing"
        )
    try:
        path.grid(options.steps, spacing_of(options, path))
    except ValueError as error:
        raise ConfigError(str(error), key="steps") from error
    if options.churn is not None and not isinstance(path, VarianceExploding):
        raise ConfigError("churn has no effect on this model, whose path is not EDM's: choose null", key="churn")
    if options.guidance != 1 and unguided is not None:
        raise ConfigError(f"guidance={options.guidance:g} has no effect on a model that {unguided}: choose 1", key="guidance")
    if options.variance == "large" and isinstance(path, VariancePreserving) and options.steps < path.end:
        log.warning(
            "variance=large is for all %d noise levels: with steps=%d, samples keep much noise; choose variance=small or "
            "another sampler", path.end, options.steps,
        )  # fmt: skip


def spacing_of(options: DiffusionOptions, path: Path) -> str:
    """Return the spacing of the steps: that of the options, or the path's default."""
    return options.spacing or path.spacings[0]


def quick(options: DiffusionOptions) -> DiffusionOptions:
    """Return the options of a fast preview, without randomness."""
    return replace(options, sampler="euler", eta=None, variance=None, churn=None, churn_noise=None, churn_from=None,
                   churn_until=None, steps=min(options.steps, _PREVIEW_STEPS))  # fmt: skip


def generate(denoiser: Denoiser, options: DiffusionOptions, noise: Tensor, key: Tensor, condition: Tensor) -> Tensor:
    """Follow the path from the noise at its end to an image, with the solver of the options.

    Args:
        denoiser: The network, in any mode.
        options: Options that fit the path.
        noise: Standard normal numbers [N, C, H, W].
        key: Random keys of the noise that the solver adds, int64 [N].
        condition: Raw conditions [N, ...].

    Returns:
        float32 [N, C, H, W].
    """
    noise = noise.to(state_type(noise))
    run = samplers.Trajectory(
        denoiser.path,
        denoiser.path.grid(options.steps, spacing_of(options, denoiser.path)),
        partial(_guided, denoiser=denoiser, condition=condition, options=options),
        lambda step: normal(mixed_keys(key, NOISE, step), noise.shape[1:]).to(noise.dtype),
        like=noise,
    )
    with eval_mode(denoiser):
        return _solver(options)(run, run.sigmas[0] * noise).float()


def plain_estimate(denoiser: Denoiser, condition: Tensor) -> samplers.ImageEstimate:
    """Return the function that estimates the image of a state, without guidance.

    Args:
        denoiser: The network.
        condition: Raw conditions [N, ...].
    """

    def denoise(state: Tensor, time: Tensor, level: float) -> Tensor:
        return denoiser.estimate(state.float(), time.float().expand(len(state)), condition).to(state.dtype)

    return denoise


def _guided(
    state: Tensor, time: Tensor, level: float, *, denoiser: Denoiser, condition: Tensor, options: DiffusionOptions
) -> Tensor:
    """Estimate the image with classifier-free guidance (Ho & Salimans 2022), at noise levels within the interval.

    The interval is that of Kynkaanniemi et al. 2024, and a scale of 1 means no guidance.
    """
    noisy, times = state.float(), time.float().expand(len(state))
    if options.guidance == 1 or not options.guidance_from <= level <= options.largest_guided:
        image = denoiser.estimate(noisy, times, condition)
    else:
        keep = torch.arange(2, device=noisy.device).repeat_interleave(len(noisy))
        noisy, times, conditions = (torch.cat([each, each]) for each in (noisy, times, condition))
        without, given = denoiser.estimate(noisy, times, conditions, keep).chunk(2)
        image = without + options.guidance * (given - without)
    if options.clip:
        image = image.clamp(-1.0, 1.0)
    return image.to(state.dtype)


def _solver(options: DiffusionOptions) -> Callable[[samplers.Trajectory, Tensor], Tensor]:
    if options.sampler == "ddim":
        return partial(samplers.ddim, eta=options.eta or 0.0)
    if options.sampler == "ancestral":
        return partial(samplers.ancestral, variance=options.variance or "small")
    if options.sampler == "heun":
        until = math.inf if options.churn_until is None else options.churn_until
        return partial(
            samplers.heun, churn=options.churn or 0.0, churn_from=options.churn_from or 0.0, churn_until=until,
            churn_noise=options.churn_noise or 1.0,
        )  # fmt: skip
    return samplers.euler if options.sampler == "euler" else samplers.dpmpp_2m
