import math

import pytest
import torch
from torch import distributions

from genimg.losses.elbo import ELBO, Bernoulli, Gaussian, gaussian_kl


@pytest.fixture
def output() -> torch.Tensor:
    return torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def moments() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return draws[0], draws[1]


def per_image(log_prob: torch.Tensor) -> torch.Tensor:
    return -log_prob.flatten(1).sum(1)


def test_kl_equals_that_of_torch_distributions(moments):
    mean, log_variance = moments
    posterior = distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum(1)
    assert gaussian_kl(mean, log_variance).shape == (5,)
    assert torch.allclose(gaussian_kl(mean, log_variance), expected, rtol=1e-12, atol=0)


def test_kl_vanishes_for_the_prior_itself():
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]


def test_bernoulli_equals_torch_distributions_with_grey_values_as_probabilities(output, image):
    expected = per_image(distributions.Bernoulli(logits=output, validate_args=False).log_prob((image + 1) / 2))
    actual = Bernoulli().negative_log_likelihood(output, image)
    assert actual.shape == (5,)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=0)


def test_bernoulli_mean_is_its_probability_in_the_image_range(output):
    expected = 2 * distributions.Bernoulli(logits=output).mean - 1
    assert torch.allclose(Bernoulli().mean(output), expected, rtol=0, atol=1e-12)


def test_bernoulli_stays_finite_for_extreme_float32_outputs():
    nats = Bernoulli().negative_log_likelihood(torch.tensor([[[[1e4, -1e4]]]]), torch.tensor([[[[-1.0, 1.0]]]]))
    assert nats.item() == pytest.approx(2e4, rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_gaussian_equals_torch_distributions(output, image, scale):
    expected = per_image(distributions.Normal(output.tanh(), scale).log_prob(image))
    actual = Gaussian(scale=scale).negative_log_likelihood(output, image)
    assert actual.shape == (5,)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_gaussian_mean_is_in_the_image_range(output):
    assert torch.equal(Gaussian(scale=1.0).mean(output), torch.tanh(output))


def test_bernoulli_bits_per_dimension_by_hand():
    # Undecided about every binary pixel: one bit each.
    nats = Bernoulli().negative_log_likelihood(torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28))
    assert Bernoulli().bits_per_dimension(nats, 784).item() == pytest.approx(1.0, rel=1e-6)


def test_gaussian_bits_per_dimension_by_hand():
    # A density of 1/2 on [-1, 1] is uniform over 255 level spacings: log2(255) bits. Its nats are log 2 a dimension.
    nats = torch.tensor(12 * math.log(2.0), dtype=torch.float64)
    assert Gaussian(scale=1.0).bits_per_dimension(nats, 12).item() == pytest.approx(math.log2(255), rel=1e-12)


def test_gaussian_bits_per_dimension_agree_with_the_probabilities_of_the_256_levels():
    # The density times the spacing of the levels against the normal's mass between the midpoints of the levels.
    scale, mean = 0.3, 0.2
    levels = torch.arange(256, dtype=torch.float64)
    normal = distributions.Normal((mean + 1) * 127.5, scale * 127.5)
    exact = -torch.log2(normal.cdf(levels + 0.5) - normal.cdf(levels - 0.5))
    image = (levels / 127.5 - 1).reshape(256, 1, 1, 1)
    likelihood = Gaussian(scale=scale)
    nats = likelihood.negative_log_likelihood(torch.full_like(image, math.atanh(mean)), image)
    assert torch.allclose(likelihood.bits_per_dimension(nats, 1), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(scale=0.5)], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 4.0])
def test_elbo_is_the_mean_over_images_of_sums_over_pixels_and_latents(output, image, moments, likelihood, kl_weight):
    loss, parts = ELBO(likelihood=likelihood, kl_weight=kl_weight)(output, image, *moments)
    if isinstance(likelihood, Bernoulli):
        distribution, target = distributions.Bernoulli(logits=output, validate_args=False), (image + 1) / 2
    else:
        distribution, target = distributions.Normal(output.tanh(), 0.5), image
    posterior = distributions.Normal(moments[0], (0.5 * moments[1]).exp())
    reconstruction = -distribution.log_prob(target).sum().item() / 5
    kl = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum().item() / 5
    assert loss.shape == ()
    assert loss.item() == pytest.approx(reconstruction + kl_weight * kl, rel=1e-12)
    assert parts["reconstruction_nats"].item() == pytest.approx(reconstruction, rel=1e-12)
    assert parts["kl_nats"].item() == pytest.approx(kl, rel=1e-12)
    # These two never depend on the weight.
    assert parts["elbo_nats"].item() == pytest.approx(-(reconstruction + kl), rel=1e-12)
    offset = math.log2(127.5) if isinstance(likelihood, Gaussian) else 0.0
    assert parts["bits_per_dim"].item() == pytest.approx((reconstruction + kl) / (72 * math.log(2)) + offset, rel=1e-12)


def test_elbo_does_not_depend_on_how_often_the_batch_is_repeated(output, image, moments):
    elbo = ELBO(likelihood=Bernoulli(), kl_weight=1.0)
    once, _ = elbo(output, image, *moments)
    thrice, _ = elbo(*(tensor.repeat(3, *[1] * (tensor.ndim - 1)) for tensor in (output, image, *moments)))
    assert thrice.item() == pytest.approx(once.item(), rel=1e-12)


def test_the_kl_weight_scales_the_gradient_of_the_kl_alone(output, image, moments):
    mean, log_variance = (moment.clone().requires_grad_() for moment in moments)
    loss, _ = ELBO(likelihood=Bernoulli(), kl_weight=3.0)(output, image, mean, log_variance)
    gradients = torch.autograd.grad(loss, (mean, log_variance))
    assert torch.allclose(gradients[0], 3.0 * mean / 5, rtol=1e-12, atol=0)
    assert torch.allclose(gradients[1], 3.0 * 0.5 * (log_variance.exp() - 1) / 5, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_no_standard_deviation_is_refused(scale):
    with pytest.raises(ValueError, match=rf"loss\.likelihood\.scale={scale} is not a standard deviation: it must be above 0"):
        Gaussian(scale=scale)


@pytest.mark.parametrize("kl_weight", [-1.0, -1e-9, math.nan])
def test_a_kl_weight_below_zero_or_not_a_number_is_refused(kl_weight):
    with pytest.raises(ValueError, match=rf"loss\.kl_weight={kl_weight} must be 0 or more"):
        ELBO(likelihood=Bernoulli(), kl_weight=kl_weight)
