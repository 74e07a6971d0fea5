"""The fit against closed forms and a known mixture, the latents kept against a list, samples against the mixture."""

import itertools

import pytest
import torch
from errors import raises
from scipy import stats

from genimg.errors import ConfigError
from genimg.methods import latent_density
from genimg.methods.latent_density import LatentDensity, Mixture, fit_mixture


def density(latent_dim: int = 2, num_components: int = 3, num_latents: int = 600) -> LatentDensity:
    return LatentDensity(latent_dim=latent_dim, num_components=num_components, num_latents=num_latents)


WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[0.0, 0.0], [6.0, 1.0], [-3.0, 5.0]], dtype=torch.float64)
FACTORS = torch.tensor([[[1.0, 0.0], [0.8, 0.5]], [[0.4, 0.0], [0.0, 1.2]], [[1.0, 0.0], [-0.5, 1.0]]], dtype=torch.float64)
KNOWN = Mixture(WEIGHTS, MEANS, FACTORS)


def of_known_mixture(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(WEIGHTS, count, replacement=True, generator=random)
    normal = torch.randn(count, 2, generator=random, dtype=torch.float64)
    return MEANS[chosen] + torch.einsum("nij,nj->ni", FACTORS[chosen], normal)


def by_torch(mixture: Mixture) -> torch.distributions.Distribution:
    parts = torch.distributions.MultivariateNormal(mixture.means, scale_tril=mixture.factors)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), parts)


# The fit


def test_log_densities_are_those_of_torch():
    latents = of_known_mixture(50)
    assert torch.allclose(KNOWN.log_densities(latents).logsumexp(dim=1), by_torch(KNOWN).log_prob(latents), atol=1e-12)


def test_one_component_is_the_mean_and_the_covariance():
    latents = of_known_mixture(500)
    mixture, found = fit_mixture(latents, 1)
    covariance = mixture.factors[0] @ mixture.factors[0].T
    assert torch.allclose(mixture.means[0], latents.mean(dim=0), atol=1e-12)
    assert torch.allclose(covariance, latents.T.cov(correction=0), rtol=1e-5, atol=1e-5)  # of the floor
    assert mixture.weights.tolist() == [1.0]
    assert found == [pytest.approx(by_torch(mixture).log_prob(latents).mean().item(), abs=1e-9)]


def test_a_known_mixture_is_found():
    """Weights, means and covariances to five standard errors of 20,000 samples; likelihood at least that of the truth."""
    latents = of_known_mixture(20_000)
    mixture, found = fit_mixture(latents, 3)
    order = [(mixture.means - mean).norm(dim=1).argmin().item() for mean in MEANS]
    assert sorted(order) == [0, 1, 2]
    assert torch.allclose(mixture.weights[order], WEIGHTS, rtol=0, atol=5 * 0.5 / 20_000**0.5)
    assert torch.allclose(mixture.means[order], MEANS, rtol=0, atol=5 * 1.5 / 4000**0.5)
    covariances = mixture.factors[order] @ mixture.factors[order].mT
    assert torch.allclose(covariances, FACTORS @ FACTORS.mT, rtol=0, atol=5 * 2.0 / 4000**0.5)
    assert found[-1] >= by_torch(KNOWN).log_prob(latents).mean().item() - 1e-3


@pytest.mark.parametrize("num_components", [4, 7])
def test_the_likelihood_never_falls_on_the_way(num_components):
    latents = of_known_mixture(800, seed=1)
    mixture, found = fit_mixture(latents, num_components)
    assert len(found) > 2
    assert all(after >= before - 1e-6 for before, after in itertools.pairwise(found))
    assert found[-1] == pytest.approx(by_torch(mixture).log_prob(latents).mean().item(), abs=1e-9)


def test_fits_repeat_bit_for_bit_and_use_no_random_numbers():
    latents = of_known_mixture(300)
    before = torch.get_rng_state()
    one, other = fit_mixture(latents, 4)[0], fit_mixture(latents, 4)[0]
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "latents",
    [
        torch.zeros(20, 3),
        torch.ones(1, 3),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),  # fewer than components
        torch.randn(40, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3),  # on a line
        torch.tensor([[0.0, 0, 0], [1e4, 0, 0]]).repeat(10, 1),
    ],
)
def test_degenerate_latents_give_a_mixture_all_the_same(latents):
    mixture, _ = fit_mixture(latents.double(), 5)
    assert all(value.isfinite().all() for value in mixture)
    assert mixture.weights.sum().item() == pytest.approx(1.0)
    assert (mixture.factors.diagonal(dim1=1, dim2=2) > 0).all()


# The latents kept


def numbered(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 2)


def test_the_most_recent_latents_are_kept():
    kept, everything = density(num_components=1, num_latents=5), []
    for start, count in ((0, 3), (3, 3), (6, 1), (7, 5), (12, 13), (25, 2)):  # also more at once than are kept
        numbers = range(start, start + count)
        everything += numbers
        kept.add(numbered(*numbers))
        recent = sorted(kept.latents[: min(len(everything), 5), 0].tolist())
        assert recent == everything[-5:]
        assert kept.seen.item() == len(everything)


def test_steps_and_microbatches_make_no_difference():
    one, other = density(num_latents=7), density(num_latents=7)
    one.add(numbered(*range(10)))
    for pair in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)):
        other.add(numbered(*pair))
    assert torch.equal(one.latents, other.latents)


def test_every_ranks_latents_are_kept(monkeypatch):
    monkeypatch.setattr(latent_density, "all_gather_equal_rows", lambda rows: torch.cat([rows, rows + 100]))
    kept = density(num_latents=6)
    kept.add(numbered(1, 2))
    assert kept.latents[:4, 0].tolist() == [1, 2, 101, 102]
    assert kept.seen.item() == 4


def test_latents_are_taken_without_a_graph_in_float32():
    kept = density()
    kept.add(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert kept.latents.dtype == torch.float32
    assert not kept.latents.requires_grad


# Fitting when it is due


def filled(num_components: int = 3, count: int = 600, **changes) -> LatentDensity:
    made = density(num_components=num_components, **changes)
    made.add(of_known_mixture(count).float())
    return made


def test_it_is_fitted_once_for_the_same_latents(monkeypatch):
    calls = []
    monkeypatch.setattr(latent_density, "fit_mixture", lambda *given: calls.append(1) or fit_mixture(*given))
    made = filled()
    made.fit()
    made.fit()
    assert len(calls) == 1
    made.add(numbered(1, 2))
    made.fit()
    assert len(calls) == 2


def test_a_fit_is_that_of_the_latents_kept():
    made = filled()
    made.fit()
    mixture, _ = fit_mixture(of_known_mixture(600).float().double(), 3)
    for buffer, expected in zip((made.weights, made.means, made.factors), mixture, strict=True):
        assert torch.equal(buffer, expected.float())
    assert torch.allclose(made.mean(), of_known_mixture(600).float().mean(dim=0), atol=1e-4)


def test_a_ring_that_is_not_full_is_fitted_to_what_there_is():
    made = filled(num_components=1, count=100, num_latents=1000)
    made.fit()
    assert torch.allclose(made.means[0], of_known_mixture(100).float().mean(dim=0), atol=1e-5)


def test_latents_of_a_diverged_training_are_left_out():
    made = filled(num_components=1, count=100)
    made.add(torch.full((5, 2), float("nan")))
    made.fit()
    assert torch.allclose(made.means[0], of_known_mixture(100).float().mean(dim=0), atol=1e-5)
    lost = density()
    lost.add(torch.full((5, 2), float("inf")))
    lost.fit()
    assert torch.equal(lost.means, torch.zeros(3, 2))


def test_a_state_dict_holds_the_latents_and_the_fit():
    made = filled()
    made.fit()
    made.add(numbered(1, 2, 3))
    again = density()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.at_indices(range(20), 0), made.at_indices(range(20), 0))
    for each in (made, again):
        each.add(numbered(4, 5))
        each.fit()
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


# Sampling


@pytest.mark.parametrize("num_components", [0, 1, 3])
def test_before_any_latents_it_is_the_prior(num_components):
    made = density(num_components=num_components)
    made.fit()
    prior = density(num_components=0)
    assert torch.equal(made.at_indices(range(9), 1), prior.at_indices(range(9), 1))
    drawn = prior.at_indices(range(4000), 1)
    assert stats.kstest(drawn[:, 0].numpy(), "norm").pvalue > 0.01


def test_the_prior_keeps_no_latents():
    prior = density(num_components=0)
    prior.add(numbered(1, 2))
    prior.fit()
    assert prior.latents.numel() == 0
    assert torch.equal(prior.mean(), torch.zeros(2))


def test_a_latent_depends_on_seed_and_index_alone():
    made = filled()
    made.fit()
    drawn = made.at_indices(range(40), 3)
    assert torch.equal(made.at_indices([31, 2], 3), drawn[[31, 2]])
    assert torch.equal(torch.cat([made.at_indices([i], 3) for i in range(40)]), drawn)
    assert not torch.equal(made.at_indices(range(40), 4), drawn)
    assert drawn.dtype == torch.float32


def test_latents_follow_the_mixture():
    """Shares of the components, and mean and covariance within each."""
    made = density()
    for buffer, value in zip((made.weights, made.means, made.factors), KNOWN, strict=True):
        buffer.copy_(value)
    drawn = made.at_indices(range(6000), 0).double()
    nearest = KNOWN.log_densities(drawn).argmax(dim=1)
    counts = nearest.bincount(minlength=3)
    assert stats.chisquare(counts.numpy(), (WEIGHTS * 6000).numpy()).pvalue > 0.01
    for number in range(3):
        own = drawn[nearest == number]
        assert torch.allclose(own.mean(dim=0), MEANS[number], atol=0.15)
        assert torch.allclose(own.T.cov(), FACTORS[number] @ FACTORS[number].T, atol=0.2)


def test_the_uniform_number_chooses_the_component():
    made = density()
    for buffer, value in zip((made.weights, made.means, made.factors), KNOWN, strict=True):
        buffer.copy_(value)
    chances = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 1.0], dtype=torch.float64)
    found = made.from_normal(torch.zeros(6, 2), chances)
    assert torch.equal(found, MEANS[[0, 0, 1, 1, 2, 2]].float())


def test_truncation_brings_latents_nearer_to_the_mean_of_their_component():
    made = density()
    for buffer, value in zip((made.weights, made.means, made.factors), KNOWN, strict=True):
        buffer.copy_(value)
    drawn = made.at_indices(range(200), 0)
    nearer = made.truncated(drawn, 0.5).double()
    chosen = KNOWN.log_densities(drawn.double()).argmax(dim=1)
    white = torch.linalg.solve_triangular(FACTORS[chosen], (nearer - MEANS[chosen])[..., None], upper=False)
    assert white.abs().max().item() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(made.truncated(drawn, 20.0), drawn, atol=1e-4)
    with raises(ConfigError, "truncation=0"):
        made.truncated(drawn, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"latent_dim": 0}, "latent_dim=0"), ({"num_components": -1}, "num_components=-1"), ({"num_latents": 5}, "num_latents=5")],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with raises(ValueError, message):
        density(**changes)
