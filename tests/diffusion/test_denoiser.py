import pytest
import torch
from torch import nn

from genimg.diffusion.denoiser import Denoiser
from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.networks.conditioning import Unconditional

PATHS = {
    "noise": (VariancePreserving(num_times=10, schedule="linear", beta_min=1e-3, beta_max=0.5), [1.0, 7.0]),
    "v": (VariancePreserving(num_times=10, schedule="linear", beta_min=1e-3, beta_max=0.5), [1.0, 7.0]),
    "velocity": (StraightLine(shift=1.0), [0.1, 1.0]),
    "edm": (VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0), [0.01, 80.0]),
}


class Told(nn.Module):
    """Returns what it is told to, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.condition = Unconditional()
        self.answer = None

    def forward(self, noisy, time, condition, keep=None):
        self.seen = noisy, time
        return self.answer


@pytest.mark.parametrize("prediction", PATHS)
def test_the_estimate_of_a_right_output_is_the_image(prediction):
    path, times = PATHS[prediction]
    network = Told()
    denoiser = Denoiser(network, path, prediction, 0.5 if prediction == "edm" else None)
    image, noise = 0.5 * torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    time = torch.tensor(times)
    network.answer = denoiser.target(image, noise, time)
    estimate = denoiser.estimate(denoiser.mixed(image, noise, time), time, torch.empty(2, 0))
    torch.testing.assert_close(estimate, image, rtol=1e-3, atol=2e-4)
    assert torch.equal(network.seen[1], path.embedded(time))


def test_a_mixture_has_the_path_s_scale_and_sigma_for_each_image():
    path, _ = PATHS["velocity"]
    image, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    mixed = Denoiser(Told(), path, "velocity", None).mixed(image, noise, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([1.0, 2.0]))


def test_the_factor_is_the_derivative_of_the_estimate():
    path, times = PATHS["edm"]
    network = Told()
    denoiser = Denoiser(network, path, "edm", 0.5)
    network.answer = torch.zeros(2, 1, 1, 1, requires_grad=True)
    estimate = denoiser.estimate(torch.randn(2, 1, 1, 1), torch.tensor(times), torch.empty(2, 0))
    (found,) = torch.autograd.grad(estimate.sum(), network.answer)
    torch.testing.assert_close(found.flatten(), denoiser.factor(torch.tensor(times)))
