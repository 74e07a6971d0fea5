import pytest
import torch

from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.predictions import EDM, PREDICTIONS, prediction_of, require_fitting_prediction
from genimg.losses.denoising import DenoisingLoss

PATHS = {
    "vp": VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02),
    "edm": VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    "line": StraightLine(shift=1.0),
}
TIMES = {"vp": (1.0, 300.0, 1000.0), "edm": (0.002, 0.5, 80.0), "line": (0.01, 0.5, 0.99)}
SIGMA_DATA = torch.tensor(0.5)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_the_target_gives_the_image_back(kind, name):
    path, prediction = PATHS[name], prediction_of(kind, SIGMA_DATA.double())
    image, noise = 0.5 * torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for time in TIMES[name]:
        t = torch.tensor(time, dtype=torch.float64)
        scale, sigma = path.scale(t), path.sigma(t)
        noisy = scale * image + sigma * noise
        target = prediction.target(image, noise, scale, sigma)
        estimate = prediction.skip(scale, sigma) * noisy + prediction.factor(scale, sigma) * target
        torch.testing.assert_close(estimate, image, rtol=1e-9, atol=1e-9)


def test_edm_preconditioning_is_that_of_the_paper_and_of_diffusers():
    sigma = torch.logspace(-2.7, 1.9, 20)
    ours, one = EDM(SIGMA_DATA), torch.ones(20)
    square = sigma**2 + 0.25
    torch.testing.assert_close(ours.skip(one, sigma), 0.25 / square)  # table 1 of Karras et al. 2022
    torch.testing.assert_close(ours.factor(one, sigma), sigma * 0.5 / square.sqrt())
    torch.testing.assert_close(ours.input_scale(one, sigma), 1 / square.sqrt())
    torch.testing.assert_close(PATHS["edm"].embedded(sigma), sigma.log() / 4)
    scheduler = pytest.importorskip("diffusers").EDMEulerScheduler(sigma_data=0.5)
    noisy, output = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    theirs = torch.stack([scheduler.precondition_outputs(x, f, s) for x, f, s in zip(noisy, output, sigma, strict=True)])
    torch.testing.assert_close(ours.skip(one, sigma) * noisy + ours.factor(one, sigma) * output, theirs, rtol=1e-5, atol=1e-6)
    scaled = torch.stack([scheduler.precondition_inputs(x, s) for x, s in zip(noisy, sigma, strict=True)])
    torch.testing.assert_close(ours.input_scale(one, sigma) * noisy, scaled, rtol=1e-5, atol=1e-6)


def test_edm_target_and_input_have_unit_variance_at_any_noise():
    generator = torch.Generator().manual_seed(0)
    image, noise = 0.5 * torch.randn(100_000, generator=generator), torch.randn(100_000, generator=generator)
    for sigma in (torch.tensor(0.01), torch.tensor(0.5), torch.tensor(50.0)):
        one, edm = torch.tensor(1.0), EDM(SIGMA_DATA)
        assert edm.target(image, noise, one, sigma).std().item() == pytest.approx(1.0, abs=0.02)
        assert (edm.input_scale(one, sigma) * (image + sigma * noise)).std().item() == pytest.approx(1.0, abs=0.02)


def test_edm_loss_is_the_weighted_error_of_the_denoised_image():
    """lambda(sigma) |D - y|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, Karras et al. 2022, table 1."""
    generator = torch.Generator().manual_seed(0)
    image, noise, output = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64, generator=generator)
    sigma = torch.tensor([0.01, 0.3, 2.0, 60.0], dtype=torch.float64)
    one, edm, wide = torch.ones(4, dtype=torch.float64), EDM(SIGMA_DATA.double()), sigma[:, None, None, None]
    loss = DenoisingLoss(weighting="plain", gamma=None, reduction="sum")
    made = loss.weights(one, sigma, edm.factor(one, sigma)) * loss.of_images(
        output, edm.target(image, noise, 1.0 + 0 * wide, wide)
    )
    denoised = edm.skip(1.0 + 0 * wide, wide) * (image + wide * noise) + edm.factor(1.0 + 0 * wide, wide) * output
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * (denoised - image).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(made, expected.float().double(), rtol=1e-5, atol=1e-5)


def test_noise_cannot_be_predicted_where_it_is_all_there_is():
    require_fitting_prediction("velocity", PATHS["line"])
    require_fitting_prediction("noise", PATHS["vp"])
    for kind, path in (("noise", "line"), ("score", "vp")):
        with pytest.raises(ValueError, match=r"^prediction="):
            require_fitting_prediction(kind, PATHS[path])
