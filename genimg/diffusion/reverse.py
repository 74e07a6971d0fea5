"""From an image to its noise: the probability-flow ODE backwards, and the image's density along it.

With s = sigma / scale and y = x_t / scale, the ODE of every path is dy / d(ln s) = y - D(y), where D is the estimate of the
image (Karras et al. 2022, equation 1). At small s, y is the image itself. Steps treat the linear term exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genimg.diffusion.paths import Path
from genimg.diffusion.samplers import ImageEstimate
from genimg.utils.exact import double
from genimg.utils.progress import steps


def to_noise(path: Path, num_steps: int, denoise: ImageEstimate, image: Tensor) -> Tensor:
    """Follow the ODE from images to noise, with an exponential form of Heun's method.

    Args:
        path: Path from data to noise.
        num_steps: Number of steps.
        denoise: The network's estimate of the image.
        image: Images [N, C, H, W] in [-1, 1], in float64 where the device has it.

    Returns:
        Noise [N, C, H, W] of about unit variance, from which a sampler without randomness makes the images again.
    """
    state, _, end = _followed(path, num_steps, denoise, image, None)
    return state / end


def log_density(path: Path, num_steps: int, denoise: ImageEstimate, image: Tensor, probe: Tensor) -> Tensor:
    """Return ln p(x) of images under the ODE, float64 [N] on the CPU: Song et al. 2021 (score SDE), section 4.3.

    The divergence is estimated with one probe per image (Skilling 1989; Hutchinson 1990), which is exact if the Jacobian is
    diagonal and the probe consists of signs.

    Args:
        path, num_steps, denoise, image: See ``to_noise``; ``denoise`` must be differentiable.
        probe: Random signs [N, C, H, W].
    """
    state, divergence, end = _followed(path, num_steps, denoise, image, probe)
    wide = double(state.cpu()).flatten(1)
    prior = -0.5 * (wide / end).square().sum(dim=1) - wide.shape[1] * (math.log(end) + 0.5 * math.log(2.0 * math.pi))
    return prior + divergence


class UniformDequantisation:
    """The probability of an image's 256 levels, bounded by the density of images with uniform noise within a level.

    Theis et al. 2016, section 3.1. The mean over several samples of the noise and of the divergence's probe is the same bound,
    with less variance. (The logarithm of a mean of densities would be no bound: it prefers lucky probes.)

    Attributes:
        description: Description shown beside a reported number.
        bits_name: Metric name of bits per dimension.
    """

    bits_name = "bits_per_dim"

    def __init__(self, num_steps: int) -> None:
        self.description = f"the 256 levels, by the probability-flow ODE with {num_steps} steps and uniform dequantisation"

    def num_outputs(self, channels: int) -> int:
        """Return the number of output channels for images with ``channels`` channels."""
        return channels

    def bits_per_dimension(self, nats: Tensor, num_dimensions: int) -> Tensor:
        """Convert negative log-likelihoods of the levels from nats to bits per pixel and channel."""
        return nats / (num_dimensions * math.log(2.0))

    def dequantised(self, image: Tensor, uniform: Tensor) -> Tensor:
        """Spread images in [-1, 1], with 256 levels, over the levels' widths with numbers in [0, 1) of the same shape."""
        return image + (uniform - 0.5) / 127.5

    def log_probability(self, log_density: Tensor, num_dimensions: int) -> Tensor:
        """Return the bound of ln P of the levels, given ln p(x) of dequantised images in [-1, 1]."""
        return log_density - num_dimensions * math.log(127.5)


@torch.no_grad()
def _followed(
    path: Path, num_steps: int, denoise: ImageEstimate, image: Tensor, probe: Tensor | None
) -> tuple[Tensor, Tensor, float]:
    """Return the states y at the end, the integral of the divergence on the CPU (0 without a probe), and s at the end."""
    times = path.ascent(num_steps).to(image.device, image.dtype)
    scales = path.scale(times)
    levels: list[float] = (path.sigma(times) / scales).tolist()

    def estimate(state: Tensor, step: int) -> Tensor:
        return denoise(state * scales[step], times[step], levels[step])

    def estimate_and_trace(state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if probe is None:
            return estimate(state, step), nothing
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            found = estimate(state, step)
            (product,) = torch.autograd.grad(found, state, probe)
        return found.detach(), double((product * probe).flatten(1).cpu()).sum(dim=1)

    nothing = torch.zeros(len(image), dtype=torch.float64)
    state, traces, last = image, nothing, len(times) - 1
    before, trace = estimate_and_trace(state, 0)
    for step in steps(last, "following the ODE"):
        ratio = levels[step + 1] / levels[step]
        after = estimate(before + ratio * (state - before), step + 1)  # exact if the estimate stays the same
        state = ratio * state + (1.0 - ratio) * 0.5 * (before + after)
        if step + 1 < last or probe is not None:
            trace_before = trace
            before, trace = estimate_and_trace(state, step + 1)
            traces = traces + 0.5 * math.log(ratio) * (trace_before + trace)
    return state, image[0].numel() * math.log(levels[-1] / levels[0]) - traces, levels[-1]
