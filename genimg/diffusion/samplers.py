"""Samplers: solvers of the reverse process, from noise to an image, along a path.

The state should be in float64 where the device has it, because rounding errors add up over many steps. Random numbers come from
the caller, by step, so an image depends on neither its batch nor its process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genimg.diffusion.paths import Path
from genimg.utils.progress import steps

ImageEstimate = Callable[[Tensor, Tensor, float], Tensor]
"""(x_t [N, C, H, W], time as a 0-d tensor, noise level sigma / scale) -> estimate of the image, in the state's type."""

SAMPLERS = ("euler", "heun", "ddim", "ancestral", "dpmpp_2m")
VARIANCES = ("small", "large")


class Trajectory:
    """One run of a sampler.

    Args:
        path: Path from data to noise.
        grid: Times from the noise to the image, see ``Path.grid``.
        denoise: The network's estimate of the image.
        noise_of_step: Standard normal numbers [N, C, H, W] of each step.
        like: A tensor of the state's type and device.
    """

    def __init__(
        self, path: Path, grid: Sequence[float], denoise: ImageEstimate, noise_of_step: Callable[[int], Tensor], like: Tensor
    ) -> None:
        self.path = path
        self.denoise = denoise
        self.noise_of_step = noise_of_step
        self.grid = list(grid)
        self.times = torch.tensor(self.grid, dtype=like.dtype).to(like.device)
        self.scales, self.sigmas = path.scale(self.times), path.sigma(self.times)
        self.levels: list[float] = (self.sigmas / self.scales).tolist()

    def __len__(self) -> int:
        return len(self.grid) - 1

    def split(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the estimates of image and noise of which the state consists."""
        image = self.denoise(state, self.times[step], self.levels[step])
        return image, (state - self.scales[step] * image) / self.sigmas[step]


def euler(run: Trajectory, state: Tensor) -> Tensor:
    """Follow the probability-flow ODE with Euler's method, which is DDIM with eta = 0 on every path."""
    for step in steps(len(run), "denoising"):
        image, noise = run.split(state, step)
        state = run.scales[step + 1] * image + run.sigmas[step + 1] * noise
    return state


def ddim(run: Trajectory, state: Tensor, *, eta: float) -> Tensor:
    """Replace a part of the estimated noise by new noise: Song et al. 2021 (DDIM), equations 12 and 16.

    Args:
        eta: 0 for the ODE, 1 for the variance of the posterior.
    """
    for step in steps(len(run), "denoising"):
        image, noise = run.split(state, step)
        fresh = eta * _posterior_std(run, step)
        kept = (run.sigmas[step + 1].square() - fresh.square()).clamp(min=0.0).sqrt()
        state = run.scales[step + 1] * image + kept * noise
        if eta and step + 1 < len(run):
            state = state + fresh * run.noise_of_step(step)
    return state


def ancestral(run: Trajectory, state: Tensor, *, variance: str) -> Tensor:
    """Sample from the reverse Markov chain: Ho et al. 2020, algorithm 2.

    Args:
        variance: ``small``, that of the posterior of a known image; or ``large``, beta (section 3.2). The latter is right
            only if a step is as short as in training.
    """
    for step in steps(len(run), "denoising"):
        image, noise = run.split(state, step)
        small = _posterior_std(run, step)
        state = run.scales[step + 1] * image + (run.sigmas[step + 1].square() - small.square()).clamp(min=0.0).sqrt() * noise
        if step + 1 < len(run):
            fresh = small if variance == "small" else _step_std(run, step)
            state = state + fresh * run.noise_of_step(step)
    return state


def heun(
    run: Trajectory, state: Tensor, *, churn: float = 0.0, churn_from: float = 0.0, churn_until: float = math.inf,
    churn_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Follow the probability-flow ODE with Heun's method: Karras et al. 2022, algorithm 2; the last step is Euler's.

    Args:
        churn: S_churn, noise added in all steps together; 0 for the ODE. Only for a path whose time is sigma.
        churn_from, churn_until: Limits S_tmin and S_tmax of the sigmas with added noise.
        churn_noise: Factor S_noise of the added noise.
    """
    path = run.path
    gain = min(churn / len(run), math.sqrt(2.0) - 1.0)
    for step in steps(len(run), "denoising"):
        time, following = run.times[step], run.times[step + 1]
        if gain and churn_from <= run.grid[step] <= churn_until:
            raised = time * (1.0 + gain)
            state = state + (raised.square() - time.square()).sqrt() * churn_noise * run.noise_of_step(step)
            time = raised
        image = run.denoise(state, time, run.levels[step])
        noise = (state - path.scale(time) * image) / path.sigma(time)
        if step + 1 == len(run):
            return path.scale(following) * image + path.sigma(following) * noise
        slope = path.slope(image, noise)
        distance = path.coordinate(following) - path.coordinate(time)
        straight = state / path.stretch(time)
        guess = (straight + distance * slope) * path.stretch(following)
        image, noise = run.split(guess, step + 1)
        state = (straight + 0.5 * distance * (slope + path.slope(image, noise))) * path.stretch(following)
    return state


def dpmpp_2m(run: Trajectory, state: Tensor) -> Tensor:
    """Extrapolate the image from two steps: DPM-Solver++(2M), Lu et al. 2022, algorithm 2; the last step is of first order."""
    scales, sigmas = run.scales, run.sigmas
    log_ratio = scales.log() - sigmas.log()  # lambda in the paper; infinite at the ends
    before: Tensor | None = None
    for step in steps(len(run), "denoising"):
        image = run.denoise(state, run.times[step], run.levels[step])
        estimate = image
        if before is not None and 0 < step < len(run) - 1:
            ratio = (log_ratio[step] - log_ratio[step - 1]) / (log_ratio[step + 1] - log_ratio[step])
            estimate = image + 0.5 / ratio * (image - before)
        shrink = sigmas[step + 1] / sigmas[step]
        state = shrink * state + (scales[step + 1] - scales[step] * shrink) * estimate
        before = image
    return state


def num_evaluations(sampler: str, num_steps: int) -> int:
    """Return the number of times that a sampler evaluates the denoiser for one image."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps


def _posterior_std(run: Trajectory, step: int) -> Tensor:
    """Return the standard deviation of x_u given x_t and the image, for the step from t to u.

    Song et al. 2021, equation 16 with eta = 1, for any path: sigma_u sqrt(1 - (sigma_u scale_t / (sigma_t scale_u))^2).
    """
    ratio = run.sigmas[step + 1] * run.scales[step] / (run.sigmas[step] * run.scales[step + 1])
    return run.sigmas[step + 1] * (1.0 - ratio.square()).clamp(min=0.0).sqrt()


def _step_std(run: Trajectory, step: int) -> Tensor:
    """Return the standard deviation of x_t given x_u, for the step from t to u: sqrt(beta) of a single noise level."""
    ratio = run.scales[step] / run.scales[step + 1]
    return (run.sigmas[step].square() - (ratio * run.sigmas[step + 1]).square()).clamp(min=0.0).sqrt()
