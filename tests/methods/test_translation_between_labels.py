"""Translation between classes (DDIB) against Gaussian classes, whose ODE has a closed form."""

import math

import pytest
import torch
from test_diffusion import build
from torch import Tensor, nn

from genimg.diffusion.paths import Path, StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.methods.diffusion import Diffusion
from genimg.networks.conditioning import OneHot

MEANS, STDS = torch.tensor([-0.3, 0.4]), torch.tensor([0.2, 0.1])
LINE, EDM = StraightLine(shift=1.0), VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)
DDPM = VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02)
PATHS = {"line": LINE, "edm": EDM, "ddpm": DDPM}


class GaussianClasses(nn.Module):
    """The expected image of a class whose pixels are N(mean, std^2)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.condition = OneHot(num_classes=2)
        self.path = path
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, noisy: Tensor, embedded: Tensor, condition: Tensor, keep: Tensor | None = None) -> Tensor:
        time = {"line": embedded / 1000.0, "edm": (4.0 * embedded).exp(), "ddpm": embedded + 1.0}[
            next(name for name, path in PATHS.items() if path is self.path)
        ]
        mean, std = (table[condition][:, None, None, None] for table in (MEANS, STDS))
        scale, sigma = (f(time)[:, None, None, None] for f in (self.path.scale, self.path.sigma))
        state = noisy * (scale.square() + sigma.square()).sqrt()  # as the denoiser scales the network's input
        return (std.square() * scale * state + sigma.square() * mean) / (std.square() * scale.square() + sigma.square())


def model(name: str) -> Diffusion:
    path = PATHS[name]
    times = LogNormalSigma(mean=0.0, std=1.0) if name == "edm" else Uniform()
    return build("flow", path=path, prediction="data", times=times, network=GaussianClasses(path))


def images() -> Tensor:
    return MEANS[0] + STDS[0] * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def expected(image: Tensor, name: str) -> Tensor:
    """The image in the other class: the state keeps its distance from the mean in units of the state's deviation."""
    last = PATHS[name].ascent(100)[-1]
    level = math.inf if name == "line" else (PATHS[name].sigma(last) / PATHS[name].scale(last)).item()
    if math.isinf(level):
        return MEANS[1] + STDS[1] * (image - MEANS[0]) / STDS[0]
    state = MEANS[0] + (image - MEANS[0]) / STDS[0] * (STDS[0] ** 2 + level**2).sqrt()
    return MEANS[1] + (state - MEANS[1]) * STDS[1] / (STDS[1] ** 2 + level**2).sqrt()


@pytest.mark.parametrize(("name", "error", "cycle"), [("line", 3e-4, 2e-4), ("edm", 6e-4, 2e-3), ("ddpm", 0.012, 0.03)])
def test_images_move_as_in_the_closed_form_and_return(name, error, cycle):
    """The default steps: 100. DDPM's error comes from its least noise, with a sigma of 0.01."""
    method, image = model(name), images()
    there = method.translate_labels(image, 0, 1)
    assert (there - expected(image, name)).abs().mean() < error
    assert (there - image).abs().mean() > 0.5
    back = method.translate_labels(there, 1, 0)
    assert (back - image).abs().mean() < cycle
    alone = method.translate_labels(image[1:2], 0, 1)
    torch.testing.assert_close(alone, there[1:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_more_steps_bring_images_closer_to_themselves(name):
    method, image = model(name), images()
    cycles, errors = [], []
    for steps in (10, 50, 200):
        options = method.label_translation_options.replaced(steps=steps)
        there = method.translate_labels(image, 0, 1, options)
        errors.append((there - expected(image, name)).abs().mean().item())
        cycles.append((method.translate_labels(there, 1, 0, options) - image).abs().mean().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert cycles[0] > 3 * cycles[1] > 9 * cycles[2]
