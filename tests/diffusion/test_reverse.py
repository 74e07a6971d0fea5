import math

import pytest
import torch

from genimg.diffusion import samplers
from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.reverse import log_density, to_noise

PATHS = {
    "vp": VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02),
    "edm": VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    "line": StraightLine(shift=1.0),
}
STD, MEAN = 0.5, 0.1


def denoiser(path):
    """The exact denoiser of data N(MEAN, STD^2)."""

    def denoise(state, time, level):
        scale, sigma = path.scale(time), path.sigma(time)
        return MEAN + STD**2 * scale / (STD**2 * scale**2 + sigma**2) * (state - scale * MEAN)

    return denoise


def images(count=4):
    return MEAN + STD * torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PATHS)
def test_the_density_of_a_gaussian_is_exact(name):
    """To 1e-3 bits per dimension, with the mean's influence on the end of a path with a finite end."""
    path, image = PATHS[name], images()
    probe = torch.sign(torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    found = log_density(path, 200, denoiser(path), image, probe) / image[0].numel()
    exact = torch.distributions.Normal(MEAN, STD).log_prob(image).flatten(1).mean(dim=1)
    assert found.dtype == torch.float64
    assert (found - exact).abs().max().item() / math.log(2) < 1e-3


@pytest.mark.parametrize("name", PATHS)
def test_the_way_there_and_back_is_the_identity(name):
    path, image = PATHS[name], images()
    noise = to_noise(path, 200, denoiser(path), image)
    torch.testing.assert_close(noise, (image - MEAN) / STD, rtol=0.01, atol=0.02)
    run = samplers.Trajectory(path, path.grid(200, path.spacings[0]), denoiser(path), lambda step: noise, noise)
    back = samplers.heun(run, run.sigmas[0] * noise)
    torch.testing.assert_close(back, image, rtol=0, atol=0.01)
