"""Sampling with a denoiser and the solver that the options choose."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from genimg.diffusion import samplers
from genimg.diffusion.bridges import Bridge
from genimg.diffusion.denoiser import Denoiser, Source
from genimg.diffusion.noise import NOISE, normal, state_type
from genimg.diffusion.paths import Path
from genimg.errors import ConfigError
from genimg.methods.diffusion_guidance import guided_estimate
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.modes import eval_mode
from genimg.utils.mounting import in_config
from genimg.utils.rng import mixed_keys

log = logging.getLogger(__name__)

_PREVIEW_STEPS = 10


def check_options(options: DiffusionOptions, path: Path, *, unguided: str | None, guides: str = "") -> None:
    """Check options against the path and the training of a model.

    Args:
        options: Options of sampling.
        path: The model's path.
        unguided: Why guidance has no effect on the model, as a continuation of "a model that"; None if it has an effect.
        guides: Options with which guidance would have an effect, in words; empty for none.

    Raises:
        ConfigError: If an option has no effect on the model, or is out of its range.
    """
    if options.spacing is not None and options.spacing not in path.spacings:
        raise ConfigError(
            f"spacing={options.spacing} does not fit the model's path: choose {' or '.join(path.spacings)}", key="spacing"
        )
    try:
        path.grid(options.steps, spacing_of(options, path))
    except ValueError as error:
        raise ConfigError(str(error), key="steps") from error
    if options.sampler == "heun" and isinstance(path, Bridge):
        raise ConfigError(
            "sampler=heun does not work on a bridge, whose first step has no slope: choose ancestral, ddim, euler or dpmpp_2m",
            key="sampler",
        )
    if options.churn is not None and not path.time_is_sigma:
        raise ConfigError("churn has no effect on this model, whose path is not EDM's: choose null", key="churn")
    if options.guidance != 1 and unguided is not None:
        also = f", or sample with {guides}" if guides else ""
        raise ConfigError(
            f"guidance={options.guidance:g} has no effect on a model that {unguided}: choose 1{also}", key="guidance"
        )
    if options.variance == "large" and path.num_levels is not None and options.steps < path.num_levels:
        log.warning(
            in_config("variance=large is for all %d noise levels: with steps=%d, samples keep much noise; choose "
                      "variance=small or another sampler"), path.num_levels, options.steps,
        )  # fmt: skip


def spacing_of(options: DiffusionOptions, path: Path) -> str:
    """Return the spacing of the steps: that of the options, or the path's default."""
    return options.spacing or path.spacings[0]


def quick(options: DiffusionOptions) -> DiffusionOptions:
    """Return options for a fast preview, which add no noise."""
    return replace(options, sampler="euler", eta=None, variance=None, churn=None, churn_noise=None, churn_from=None,
                   churn_until=None, steps=min(options.steps, _PREVIEW_STEPS))  # fmt: skip


def generate(
    denoiser: Denoiser,
    options: DiffusionOptions,
    noise: Tensor,
    key: Tensor,
    condition: Tensor,
    *,
    negative: Tensor | None = None,
    weaker: samplers.ImageEstimate | None = None,
    source: Source | None = None,
) -> Tensor:
    """Follow the path from its end to an image, with the solver of the options.

    A bridge ends in the source, without noise. The first step on a bridge therefore estimates the image from the source alone,
    and then adds noise.

    Args:
        denoiser: The network, in any mode.
        options: Options that fit the path.
        noise: Standard normal numbers [N, C, H, W].
        key: Random keys of the noise that the solver adds, int64 [N].
        condition: Raw conditions [N, ...].
        negative: Raw conditions, of the same shape, from which guidance leads away; None for the null condition.
        weaker: Estimate of a weaker model, from which guidance leads away instead; None for none.
        source: The source of a translation; None for a model without one. Guidance then has no effect.

    Returns:
        float32 [N, C, H, W].
    """
    noise, path = noise.to(state_type(noise)), denoiser.path
    denoise = partial(
        guided_estimate, denoiser=denoiser, condition=condition, negative=negative, weaker=weaker, options=options
    )
    if source is not None:
        denoise = partial(_from_source, denoiser=denoiser, condition=condition, source=source, clip=options.clip)
    grid = path.grid(options.steps, spacing_of(options, path))

    def trajectory(times: list[float]) -> samplers.Trajectory:
        return samplers.Trajectory(
            path, times, denoise, lambda step: normal(mixed_keys(key, NOISE, step), noise.shape[1:]).to(noise.dtype), like=noise
        )

    with eval_mode(denoiser):
        if source is None or source.end is None:
            run = trajectory(grid)
            return _solver(options)(run, run.sigmas[0] * noise).float()
        run = trajectory(grid[1:])
        image = denoise(torch.zeros_like(noise), noise.new_tensor(grid[0]), math.inf)
        state = run.scales[0] * image + run.sigmas[0] * noise
        return (_solver(options)(run, state) + source.end).float()


def _from_source(
    state: Tensor, time: Tensor, level: float, *, denoiser: Denoiser, condition: Tensor, source: Source, clip: bool
) -> Tensor:
    """Estimate the image of a state, given its source; known pixels keep their given values."""
    image = denoiser.estimate(state.float(), time.float().expand(len(state)), condition, source=source)
    return source.completed(image, clip=clip).to(state.dtype)


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
