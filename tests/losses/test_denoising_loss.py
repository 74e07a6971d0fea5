import pytest
import torch

from genimg.diffusion.paths import VariancePreserving
from genimg.diffusion.predictions import prediction_of
from genimg.losses.denoising import DenoisingLoss

DDPM = VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02)
SIGMA_DATA = torch.tensor(0.5)


@pytest.mark.parametrize("gamma", [5.0, 1.0])
def test_min_snr_weights_are_the_three_forms_of_the_field(gamma):
    times = torch.arange(1.0, 1001.0)
    scale, sigma = DDPM.scale(times).double(), DDPM.sigma(times).double()
    snr = (scale / sigma) ** 2
    loss = DenoisingLoss(weighting="min_snr", gamma=gamma, reduction="mean")
    limited = snr.clamp(max=gamma)
    for kind, expected in (("noise", limited / snr), ("data", limited), ("v", limited / (snr + 1))):
        found = loss.weights(scale, sigma, prediction_of(kind, SIGMA_DATA).factor(scale, sigma))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_soft_min_snr_is_smooth_and_has_the_same_limits():
    loss = DenoisingLoss(weighting="soft_min_snr", gamma=5.0, reduction="mean")
    snr = torch.tensor([1e-6, 5.0, 1e6], dtype=torch.float64)
    scale, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    found = loss.weights(scale, sigma, prediction_of("data", SIGMA_DATA).factor(scale, sigma))
    torch.testing.assert_close(found, torch.tensor([1e-6, 2.5, 5.0], dtype=torch.float64), rtol=1e-4, atol=1e-9)


def test_weights_are_finite_where_a_line_ends_in_noise():
    for weighting in ("min_snr", "soft_min_snr"):
        loss = DenoisingLoss(weighting=weighting, gamma=5.0, reduction="mean")
        zero, one = torch.zeros(1), torch.ones(1)
        assert loss.weights(zero, one, prediction_of("velocity", SIGMA_DATA).factor(zero, one)).item() == 0.0


@pytest.mark.parametrize(("name", "settings"), [
    ("weighting", {"weighting": "other", "gamma": None, "reduction": "mean"}),
    ("gamma", {"weighting": "plain", "gamma": 5.0, "reduction": "mean"}),
    ("gamma", {"weighting": "min_snr", "gamma": None, "reduction": "mean"}),
    ("gamma", {"weighting": "min_snr", "gamma": 0.0, "reduction": "mean"}),
    ("reduction", {"weighting": "plain", "gamma": None, "reduction": "max"}),
])  # fmt: skip
def test_loss_settings_out_of_range_are_named(name, settings):
    with pytest.raises(ValueError, match=f"^{name}="):
        DenoisingLoss(**settings)


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 1.5), ("sum", 18.0)])
def test_errors_are_reduced_over_pixels_and_channels(reduction, expected):
    loss = DenoisingLoss(weighting="plain", gamma=None, reduction=reduction)
    output, target = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 1.5**0.5)
    torch.testing.assert_close(loss.of_images(output, target), torch.full((2,), expected))
