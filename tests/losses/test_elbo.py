import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import distributions

from genimg.losses.elbo import ELBO, Bound, ImportanceWeighted, Inference, gaussian_kl, gaussian_log_density, importance_bound
from genimg.losses.likelihoods import Bernoulli, DiscretisedLogisticMixture, Gaussian, GaussianPerPixel
from genimg.schedules import ScheduledNumbers

NUM_DIMENSIONS = 72
BERNOULLI = Bernoulli(binarisation="none")
LIKELIHOODS = {
    "bernoulli": BERNOULLI,
    "gaussian": Gaussian(scale=0.5, learnt=False),
    "gaussian_per_pixel": GaussianPerPixel(least_scale=0.5),
    "logistic_mixture": DiscretisedLogisticMixture(num_mixtures=2),
}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def moments() -> tuple[torch.Tensor, torch.Tensor]:
    mean, log_variance = normal(2, 5, 7, seed=2)
    return mean, log_variance


def elbo(likelihood=BERNOULLI, **settings) -> ELBO:
    defaults = {
        "num_samples": 1, "kl_weight": 1.0, "warm_up": 0, "free_bits": 0.0, "capacity": None, "capacity_growth": 0,
    }  # fmt: skip
    return ELBO(likelihood=likelihood, **(defaults | settings))


def inference(*, num_samples: int = 1, dims: tuple[int, ...] = (7,), kl: list[torch.Tensor] | None = None) -> Inference:
    """Of five images, with numbers out of nowhere."""
    if kl is None:
        kl = [normal(5, num_samples, dim, seed=10 + number).abs() for number, dim in enumerate(dims)]
    nats = normal(5, num_samples, seed=20) * 10 + 50
    return Inference(nats, kl, sum(layer.sum(dim=2) for layer in kl) + normal(5, num_samples, seed=30), NUM_DIMENSIONS)


# Gaussians


def test_kl_equals_that_of_torch_distributions_in_every_dimension(moments):
    mean, log_variance = moments
    posterior = distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0))
    assert gaussian_kl(mean, log_variance).shape == (5, 7)
    assert torch.allclose(gaussian_kl(mean, log_variance), expected, rtol=1e-12, atol=0)


def test_kl_vanishes_for_the_prior_itself():
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_the_log_density_equals_that_of_torch_distributions(moments):
    value = normal(5, 7, seed=3) * 3
    expected = distributions.Normal(moments[0], (0.5 * moments[1]).exp()).log_prob(value)
    assert torch.allclose(gaussian_log_density(value, *moments), expected, rtol=1e-12, atol=1e-12)


def test_the_mean_log_ratio_of_samples_is_the_kl():
    mean, log_variance = normal(2, 3, seed=4)
    value = mean + (0.5 * log_variance).exp() * normal(100_000, 3, seed=5)
    ratio = gaussian_log_density(value, mean, log_variance) - gaussian_log_density(value, *torch.zeros(2, 3))
    error = ratio.std(dim=0) / 100_000**0.5
    assert ((ratio.mean(dim=0) - gaussian_kl(mean, log_variance)).abs() < 5 * error).all()


# Importance weights


def test_the_importance_bound_is_the_log_of_the_mean_weight():
    log_weights = normal(6, 9, seed=6)
    expected = np.log(np.exp(log_weights.numpy()).mean(axis=1))
    assert np.allclose(importance_bound(log_weights).numpy(), expected, rtol=1e-12, atol=0)
    # Weights that no float can hold.
    assert np.allclose(importance_bound(log_weights - 5000.0).numpy(), expected - 5000.0, rtol=1e-12, atol=0)


def test_one_importance_weight_is_the_bound_of_one_sample():
    log_weights = normal(6, 1, seed=7)
    assert torch.allclose(importance_bound(log_weights), log_weights[:, 0], rtol=1e-14, atol=0)


class LinearGaussian:
    """p(z) = N(0, I), p(x | z) = N(A z + b, s^2 I), so that p(x) = N(b, A A' + s^2 I); four images of six pixels."""

    def __init__(self, matrix: torch.Tensor | None = None) -> None:
        self.matrix = normal(6, 2, seed=40) if matrix is None else matrix
        self.offset, self.scale = normal(6, seed=41), 0.7
        noise = self.scale**2 * torch.eye(6, dtype=torch.float64)
        self.marginal = distributions.MultivariateNormal(self.offset, self.matrix @ self.matrix.T + noise)
        precision = torch.eye(2, dtype=torch.float64) + self.matrix.T @ self.matrix / self.scale**2
        self.posterior_covariance = precision.inverse()
        self.image = self.offset + normal(4, 6, seed=42)

    def posterior_mean(self) -> torch.Tensor:
        return (self.image - self.offset) @ self.matrix @ self.posterior_covariance / self.scale**2

    def infer(self, num_samples: int, seed: int, *, widening: float = 1.5) -> Inference:
        """With q of independent latents: of the right mean, and a scale that is ``widening`` times the right one."""
        mean = self.posterior_mean()[:, None].expand(-1, num_samples, -1)
        log_variance = (self.posterior_covariance.diagonal() * widening**2).log().expand_as(mean)
        latent = mean + (0.5 * log_variance).exp() * normal(4, num_samples, 2, seed=seed)
        nats = -distributions.Normal(latent @ self.matrix.T + self.offset, self.scale).log_prob(self.image[:, None]).sum(dim=2)
        zero = torch.zeros_like(latent)
        ratio = gaussian_log_density(latent, mean, log_variance) - gaussian_log_density(latent, zero, zero)
        return Inference(nats, [gaussian_kl(mean, log_variance)], ratio.sum(dim=2), 6)


def test_the_importance_bound_approaches_the_exact_likelihood_of_a_linear_gaussian_model():
    model = LinearGaussian()
    log_weights = model.infer(200_000, 1).log_weights
    relative = (log_weights - importance_bound(log_weights)[:, None]).exp()
    error = relative.std(dim=1) / 200_000**0.5  # of the log of the mean: the delta method
    assert error.max() < 0.01
    assert ((importance_bound(log_weights) - model.marginal.log_prob(model.image)).abs() < 5 * error).all()


def test_the_importance_bound_of_the_exact_posterior_is_exact_with_one_sample():
    # With columns that are orthogonal the posterior's latents are independent, as those of q.
    model = LinearGaussian(torch.linalg.qr(normal(6, 2, seed=43))[0])
    found = model.infer(3, 2, widening=1.0).log_weights
    assert torch.allclose(found, model.marginal.log_prob(model.image)[:, None].expand(-1, 3), rtol=1e-10)


def test_the_importance_bound_grows_with_the_samples_and_stays_below_the_likelihood():
    model = LinearGaussian()
    log_weights = model.infer(128_000, 3, widening=2.0).log_weights
    exact = model.marginal.log_prob(model.image)
    means, errors = [], []
    for num_samples in (1, 2, 4, 8):
        bounds = importance_bound(log_weights.view(-1, num_samples)).view(4, -1)
        means.append(bounds.mean(dim=1))
        errors.append(bounds.std(dim=1) / bounds.shape[1] ** 0.5)
        assert (means[-1] < exact + 5 * errors[-1]).all()
    for number in range(3):
        assert (means[number + 1] - means[number] > 5 * (errors[number + 1] + errors[number])).all(), number


# Bounds


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kl_weight", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_elbo_is_the_mean_over_images_and_samples_of_sums_over_pixels_and_latents(likelihood, kl_weight, num_samples):
    found = inference(num_samples=num_samples, dims=(7, 3))
    likelihood = LIKELIHOODS[likelihood]
    loss, parts = elbo(likelihood, num_samples=num_samples, kl_weight=kl_weight)(found)
    reconstruction = found.negative_log_likelihood.sum().item() / (5 * num_samples)
    kl = sum(layer.sum().item() for layer in found.kl) / (5 * num_samples)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(reconstruction + kl_weight * kl, rel=1e-12)
    # What is logged never depends on the weight.
    is_density = isinstance(likelihood, Gaussian | GaussianPerPixel)
    offset = math.log2(127.5) if is_density else 0.0
    bit = NUM_DIMENSIONS * math.log(2)
    expected = {
        "reconstruction_nats": reconstruction, "kl_nats": kl, "elbo_nats": -(reconstruction + kl),
        likelihood.bits_name: (reconstruction + kl) / bit + offset,
        f"reconstruction_{likelihood.bits_name}": reconstruction / bit + offset,
        "kl_bits_per_dim": kl / bit,
    }  # fmt: skip
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-12)


def test_the_parts_of_bits_per_dimension_sum_to_the_whole():
    for likelihood in LIKELIHOODS.values():
        _, parts = elbo(likelihood)(inference())
        whole = parts[f"reconstruction_{likelihood.bits_name}"] + parts["kl_bits_per_dim"]
        assert whole.item() == pytest.approx(parts[likelihood.bits_name].item(), rel=1e-12)


def test_elbo_does_not_depend_on_how_often_the_batch_is_repeated():
    found = inference()
    thrice = Inference(
        found.negative_log_likelihood.repeat(3, 1), [layer.repeat(3, 1, 1) for layer in found.kl],
        found.log_ratio.repeat(3, 1), NUM_DIMENSIONS,
    )  # fmt: skip
    for bound in (elbo(), elbo(free_bits=0.5), elbo(capacity=3.0), ImportanceWeighted(likelihood=BERNOULLI, num_samples=1)):
        assert bound(thrice)[0].item() == pytest.approx(bound(found)[0].item(), rel=1e-12)


def of_moments(mean: torch.Tensor, log_variance: torch.Tensor) -> Inference:
    kl = gaussian_kl(mean, log_variance)[:, None]
    return Inference(torch.zeros(len(mean), 1, dtype=torch.float64), [kl], kl.sum(dim=2), NUM_DIMENSIONS)


def test_the_kl_weight_scales_the_gradient_of_the_kl_alone(moments):
    mean, log_variance = (moment.clone().requires_grad_() for moment in moments)
    loss, _ = elbo(kl_weight=3.0)(of_moments(mean, log_variance))
    gradients = torch.autograd.grad(loss, (mean, log_variance))
    assert torch.allclose(gradients[0], 3.0 * mean / 5, rtol=1e-12, atol=0)
    assert torch.allclose(gradients[1], 3.0 * 0.5 * (log_variance.exp() - 1) / 5, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("images_seen", "share"), [(0, 0.0), (500, 0.5), (999, 0.999), (1000, 1.0), (10**9, 1.0)])
def test_the_weight_grows_linearly_while_it_warms_up(images_seen, share):
    bound = elbo(kl_weight=4.0, warm_up=1000)
    ScheduledNumbers(bound).advance(images_seen, 10)
    loss, parts = bound(inference())
    expected = parts["reconstruction_nats"] + share * 4.0 * parts["kl_nats"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert parts["elbo_nats"].item() == -(parts["reconstruction_nats"] + parts["kl_nats"]).item()


@pytest.mark.parametrize(("images_seen", "capacity"), [(0, 0.0), (500, 12.5), (1000, 25.0), (10**9, 25.0)])
@pytest.mark.parametrize("size", [0.1, 10.0])
def test_the_kl_is_held_at_a_capacity_that_grows(images_seen, capacity, size):
    found = inference(kl=[torch.full((5, 1, 7), size, dtype=torch.float64)])
    bound = elbo(kl_weight=1000.0, capacity=25.0, capacity_growth=1000)
    ScheduledNumbers(bound).advance(images_seen, 10)
    loss, parts = bound(found)
    assert loss.item() == pytest.approx(parts["reconstruction_nats"].item() + 1000 * abs(7 * size - capacity), rel=1e-12)


def test_a_capacity_holds_the_batches_mean_and_not_every_images():
    kl = torch.tensor([1.0, 9.0], dtype=torch.float64).view(2, 1, 1)
    found = Inference(torch.zeros(2, 1, dtype=torch.float64), [kl], kl[..., 0], NUM_DIMENSIONS)
    assert elbo(capacity=5.0)(found)[0].item() == 0


def test_free_bits_hold_every_dimensions_mean_at_their_floor():
    found = inference(num_samples=2, dims=(7, 3))
    loss, parts = elbo(free_bits=0.8, kl_weight=2.0, num_samples=2)(found)
    held = [max(0.8, layer[:, :, i].mean().item()) for layer in found.kl for i in range(layer.shape[2])]
    assert min(held) == 0.8 < max(held)
    assert loss.item() == pytest.approx(parts["reconstruction_nats"].item() + 2.0 * sum(held), rel=1e-12)
    assert parts["kl_nats"].item() == pytest.approx(sum(layer.sum().item() for layer in found.kl) / 10, rel=1e-12)


def test_below_their_floor_dimensions_have_no_gradient_and_above_it_the_usual_one(moments):
    mean, log_variance = (moment.clone() for moment in moments)
    mean[:, :3], log_variance[:, :3] = 0.01 * mean[:, :3], 0.01 * log_variance[:, :3]
    mean[:, 3:] += 3.0
    gradients = []
    for free_bits in (0.1, 0.0):
        leaves = mean.clone().requires_grad_(), log_variance.clone().requires_grad_()
        loss, _ = elbo(free_bits=free_bits)(of_moments(*leaves))
        gradients.append(torch.autograd.grad(loss, leaves))
    for held, free in zip(*gradients, strict=True):
        assert (held[:, :3] == 0).all()
        assert (free[:, :3] != 0).all()
        assert torch.equal(held[:, 3:], free[:, 3:])


def test_free_bits_of_a_posterior_that_has_collapsed_cost_their_floor_and_no_more():
    found = of_moments(torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64))
    loss, parts = elbo(free_bits=0.25)(found)
    assert loss.item() == 7 * 0.25
    assert parts["kl_nats"].item() == 0


def test_the_importance_weighted_loss_is_the_negated_bound():
    found = inference(num_samples=3)
    loss, parts = ImportanceWeighted(likelihood=BERNOULLI, num_samples=3)(found)
    log_weights = (-found.negative_log_likelihood - found.log_ratio).numpy()
    expected = np.log(np.exp(log_weights).mean(axis=1)).mean()
    assert loss.item() == pytest.approx(-expected, rel=1e-12)
    assert parts["iw3_elbo_nats"].item() == pytest.approx(expected, rel=1e-12)
    assert parts["elbo_nats"].item() == pytest.approx(elbo()(found)[1]["elbo_nats"].item(), rel=1e-12)


def test_with_one_sample_the_importance_weighted_loss_is_the_elbo_on_average():
    model, bound = LinearGaussian(), ImportanceWeighted(likelihood=BERNOULLI, num_samples=1)
    differences = []
    for seed in range(400):
        found = model.infer(1, seed)
        loss, parts = bound(found)
        assert loss.item() == pytest.approx((found.negative_log_likelihood + found.log_ratio).mean().item(), rel=1e-12)
        assert parts["iw1_elbo_nats"].item() == -loss.item()
        differences.append(loss.item() - elbo()(found)[0].item())
    assert np.std(differences) > 0.1  # the KL is estimated from the sample
    assert abs(np.mean(differences)) < 5 * np.std(differences) / 400**0.5


BOUNDS = [elbo(), elbo(free_bits=0.5), elbo(capacity=1.0), ImportanceWeighted(likelihood=BERNOULLI, num_samples=2)]


@pytest.mark.parametrize("bound", BOUNDS, ids=["plain", "free_bits", "capacity", "importance_weighted"])
def test_what_is_logged_has_no_gradient(bound):
    found = inference(num_samples=2)
    found.negative_log_likelihood.requires_grad_()
    loss, parts = bound(found)
    assert loss.requires_grad
    assert all(value.shape == () for value in parts.values())
    bits = BERNOULLI.bits_name
    for name in ("elbo_nats", bits, f"reconstruction_{bits}", "kl_bits_per_dim"):
        assert not parts[name].requires_grad, name


# Settings


@pytest.mark.parametrize("kl_weight", [-1.0, -1e-9, math.nan])
def test_a_kl_weight_below_zero_or_not_a_number_is_refused(kl_weight):
    with pytest.raises(ValueError, match=rf"^kl_weight={kl_weight} must be 0 or more"):
        elbo(kl_weight=kl_weight)


@pytest.mark.parametrize("number", [-0.1, math.nan])
def test_free_bits_and_capacities_below_zero_are_refused(number):
    with pytest.raises(ValueError, match=rf"^free_bits={number} must be 0 or more nats for each latent dimension"):
        elbo(free_bits=number)
    with pytest.raises(ValueError, match=rf"^capacity={number} must be 0 or more nats, or null"):
        elbo(capacity=number)


@pytest.mark.parametrize(("other", "value"), [("free_bits", 0.5), ("warm_up", 1000)])
def test_settings_that_exclude_each_other_are_refused(other, value):
    with pytest.raises(ValueError, match=rf"^capacity=25\.0 and {other} both bound the KL: set only one"):
        elbo(capacity=25.0, **{other: value})


@pytest.mark.parametrize(("name", "value"), [("free_bits", 0.5), ("warm_up", 1000), ("capacity", 25.0)])
def test_what_a_weight_of_0_makes_void_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} has no effect with kl_weight=0: set a weight above 0"):
        elbo(kl_weight=0.0, **{name: value})


def test_a_growth_of_no_capacity_is_refused():
    with pytest.raises(ValueError, match=r"^capacity_growth has no effect without a capacity: set one, or"):
        elbo(capacity_growth=1000)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_fewer_than_one_sample_is_refused(num_samples):
    for kind in (elbo, partial(ImportanceWeighted, likelihood=BERNOULLI)):
        with pytest.raises(ValueError, match=rf"^num_samples={num_samples} must be 1 or more"):
            kind(num_samples=num_samples)


def test_a_bound_needs_an_objective():
    with pytest.raises(TypeError, match="abstract"):
        Bound(BERNOULLI, 1)
