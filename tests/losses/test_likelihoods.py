import math

import numpy as np
import pytest
import torch
from errors import raises
from scipy.special import expit, logsumexp
from torch import distributions, nn

from genimg.losses.likelihoods import BINARISATIONS, Bernoulli, DiscretisedLogisticMixture, Gaussian, GaussianPerPixel

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def output() -> torch.Tensor:
    return normal(5, 3, 4, 6, seed=0) * 2


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def grey(count: int = 6, size: int = 8, seed: int = 3) -> torch.Tensor:
    """Images [N, 1, size, size] of levels of 8 bits."""
    levels = torch.randint(1, 255, (count, 1, size, size), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 127.5 - 1.0


def per_image(log_prob: torch.Tensor) -> torch.Tensor:
    return -log_prob.flatten(1).sum(1)


def cross_entropy(binarisation: str = "none") -> Bernoulli:
    return Bernoulli(binarisation=binarisation)


# Bernoulli


def test_bernoulli_equals_torch_distributions_with_grey_values_as_probabilities(output, image):
    expected = per_image(distributions.Bernoulli(logits=output, validate_args=False).log_prob((image + 1) / 2))
    actual = cross_entropy().negative_log_likelihood(output, image)
    assert actual.shape == (5,)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=0)


def test_bernoulli_mean_is_its_probability_in_the_image_range(output):
    expected = 2 * distributions.Bernoulli(logits=output).mean - 1
    assert torch.allclose(cross_entropy().mean(output), expected, rtol=0, atol=1e-12)


def test_bernoulli_stays_finite_for_extreme_float32_outputs():
    nats = cross_entropy().negative_log_likelihood(torch.tensor([[[[1e4, -1e4]]]]), torch.tensor([[[[-1.0, 1.0]]]]))
    assert nats.item() == pytest.approx(2e4, rel=1e-6)


def test_bernoulli_bits_per_dimension_by_hand():
    # Undecided about every binary pixel: one bit each.
    nats = cross_entropy().negative_log_likelihood(torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28))
    assert cross_entropy().bits_per_dimension(nats, 784).item() == pytest.approx(1.0, rel=1e-6)


def test_the_probabilities_of_all_binary_images_sum_to_one():
    output = normal(1, 1, 2, 2, seed=4).expand(16, -1, -1, -1)
    bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    image = bits.double().view(16, 1, 2, 2) * 2 - 1
    assert (-cross_entropy("static").negative_log_likelihood(output, image)).exp().sum().item() == pytest.approx(1.0, rel=1e-12)


def test_without_binarisation_the_image_stays_as_it_is():
    image = grey()
    assert cross_entropy().observed(image) is image


@pytest.mark.parametrize("binarisation", ["dynamic", "static"])
@pytest.mark.parametrize("training", [True, False])
def test_binarised_pixels_are_black_or_white_and_black_and_white_ones_stay(binarisation, training):
    likelihood = cross_entropy(binarisation).train(training)
    observed = likelihood.observed(grey())
    assert observed.unique().tolist() == [-1.0, 1.0]
    assert observed.dtype == torch.float32
    assert observed.shape == grey().shape
    extremes = torch.tensor([-1.0, 1.0]).repeat(2000).view(1, 1, 40, 100)
    assert torch.equal(likelihood.observed(extremes), extremes)
    assert likelihood.observed(grey().bfloat16()).dtype == torch.bfloat16


def test_dynamic_pixels_are_drawn_anew_in_training_with_the_grey_value_as_their_mean():
    torch.manual_seed(0)
    likelihood, image = cross_entropy("dynamic").train(), grey(2, 6)
    draws = torch.stack([likelihood.observed(image) for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    # A pixel's standard error, with p its probability of being white, is 2 sqrt(p (1 - p) / 4000); 72 pixels, each within five.
    p = (image + 1) / 2
    assert ((draws.mean(dim=0) - image).abs() <= 5 * 2 * (p * (1 - p) / 4000).sqrt()).all()


def test_static_pixels_have_the_grey_value_as_their_mean_over_images():
    count = 4000
    image = torch.linspace(-0.8, 0.8, 5).repeat(count, 1)[:, None, None]
    image = torch.cat([image, grey(count, 3, seed=5).view(count, 1, 1, 9)], dim=3)  # what follows makes images differ
    mean = cross_entropy("static").observed(image)[..., :5].mean(dim=(0, 1, 2))
    p = (image[0, 0, 0, :5] + 1) / 2
    assert ((mean - image[0, 0, 0, :5]).abs() <= 5 * 2 * (p * (1 - p) / count).sqrt() + 1 / 255).all()


@pytest.mark.parametrize("training", [True, False])
def test_static_draws_repeat_and_depend_on_the_image_alone(training):
    likelihood, image = cross_entropy("static").train(training), grey()
    state = torch.get_rng_state()
    drawn = likelihood.observed(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(likelihood.observed(image), drawn)
    assert torch.equal(likelihood.observed(image.flip(0)).flip(0), drawn)
    for number in range(len(image)):
        assert torch.equal(likelihood.observed(image[number : number + 1]), drawn[number : number + 1])
    channels_last = image.to(memory_format=torch.channels_last)
    assert torch.equal(likelihood.observed(channels_last), drawn)


def test_static_draws_of_images_that_differ_in_a_pixel_are_unlike():
    image = torch.full((2, 1, 20, 20), 1 / 255)  # level 128
    image[1, 0, 3, 4] = 3 / 255
    one, other = cross_entropy("static").observed(image)
    # Of 400 pixels, each alike with a probability of a half: 200, five standard deviations of 10 to either side.
    assert abs((one == other).sum().item() - 200) <= 50


def test_outside_training_dynamic_draws_are_those_of_static():
    dynamic, static = cross_entropy("dynamic").eval(), cross_entropy("static").train()
    assert torch.equal(dynamic.observed(grey()), static.observed(grey()))


def test_an_unknown_binarisation_is_refused():
    with raises(ValueError, "binarisation=fixed"):
        cross_entropy("fixed")
    assert BINARISATIONS == ("none", "dynamic", "static")


# Gaussians


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("learnt", [False, True])
def test_gaussian_equals_torch_distributions(output, image, scale, learnt):
    expected = per_image(distributions.Normal(output.tanh(), scale).log_prob(image))
    likelihood = Gaussian(scale=scale, learnt=learnt).double()
    actual = likelihood.negative_log_likelihood(output, image)
    assert actual.shape == (5,)
    tolerance = 1e-5 if learnt else 1e-12  # the parameter is made in float32
    assert torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert len(list(likelihood.parameters())) == learnt


def test_gaussian_means_are_in_the_image_range(output):
    assert torch.equal(Gaussian(scale=1.0, learnt=False).mean(output), torch.tanh(output))
    per_pixel = torch.cat([output, normal(5, 3, 4, 6, seed=6)], dim=1)
    assert torch.equal(GaussianPerPixel(least_scale=0.1).mean(per_pixel), torch.tanh(output))


def test_a_learnt_scale_ends_at_the_root_mean_squared_error():
    # The maximum of the likelihood: Rybkin et al. 2021, equation 6.
    likelihood = Gaussian(scale=1.0, learnt=True).double()
    output, image = normal(8, 1, 4, 4, seed=7) * 0.3, normal(8, 1, 4, 4, seed=8) * 0.1
    (log_scale,) = likelihood.parameters()
    assert log_scale.shape == ()
    optimizer = torch.optim.SGD([log_scale], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        (likelihood.negative_log_likelihood(output, image).mean() / 16).backward()
        optimizer.step()
    error = (output.tanh() - image).square().mean().sqrt().item()
    assert 0.1 < error < 0.6
    assert log_scale.exp().item() == pytest.approx(error, rel=1e-6)


def test_a_learnt_scale_stays_finite_where_nothing_is_left_to_explain():
    likelihood = Gaussian(scale=1.0, learnt=True)
    nn.init.constant_(likelihood.log_scale, -70.0)
    output = torch.zeros(2, 1, 3, 3, requires_grad=True)
    nats = likelihood.negative_log_likelihood(output, torch.full((2, 1, 3, 3), 0.5))
    nats.sum().backward()
    assert nats.isfinite().all()
    assert output.grad.isfinite().all()
    expected = per_image(distributions.Normal(torch.zeros(2, 9), math.exp(-7.0)).log_prob(torch.tensor(0.5)))
    assert torch.allclose(nats, expected, rtol=1e-5)


def test_gaussian_per_pixel_equals_torch_distributions(output, image):
    raw = normal(5, 3, 4, 6, seed=9) * 3
    likelihood = GaussianPerPixel(least_scale=0.0026)
    assert likelihood.num_outputs(3) == 6
    scale = (1 + raw.exp()).log() + 0.0026
    expected = per_image(distributions.Normal(output.tanh(), scale).log_prob(image))
    actual = likelihood.negative_log_likelihood(torch.cat([output, raw], dim=1), image)
    assert actual.shape == (5,)
    assert torch.allclose(actual, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_gaussian_per_pixel_is_no_narrower_than_its_floor_and_stays_finite(raw):
    likelihood = GaussianPerPixel(least_scale=0.01)
    output = torch.cat([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), raw)], dim=1).requires_grad_()
    nats = likelihood.negative_log_likelihood(output, torch.full((1, 1, 2, 2), 0.3))
    nats.backward()
    assert output.grad.isfinite().all()
    expected = per_image(distributions.Normal(torch.zeros(1, 4), 0.01 if raw < 0 else raw + 0.01).log_prob(torch.tensor(0.3)))
    assert nats.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_bits_of_probabilities_are_called_bits_per_dimension():
    densities = [Gaussian(scale=0.1, learnt=False), Gaussian(scale=0.1, learnt=True), GaussianPerPixel(least_scale=0.003)]
    assert {likelihood.bits_name for likelihood in densities} == {"density_bits_per_dim"}
    assert Bernoulli(binarisation="none").bits_name == "cross_entropy_bits_per_dim"
    assert {Bernoulli(binarisation=kind).bits_name for kind in ("dynamic", "static")} == {"bits_per_dim"}
    assert mixture().bits_name == "bits_per_dim"


def test_density_bits_of_a_constant_image_are_negative_and_bits_of_a_probability_are_not():
    """A decoder that is certain of a level: why a density is not called bits per dimension."""
    image = torch.full((2, 1, 4, 4), 200 / 127.5 - 1.0)
    density = GaussianPerPixel(least_scale=0.003)
    output = torch.cat([image.atanh(), torch.full((2, 1, 4, 4), -20.0)], dim=1)
    assert density.bits_per_dimension(density.negative_log_likelihood(output, image), 16).max() < 0.0
    probability = DiscretisedLogisticMixture(num_mixtures=1)
    certain = torch.cat([torch.zeros(2, 1, 4, 4), image, torch.full((2, 1, 4, 4), -7.0)], dim=1)
    bits = probability.bits_per_dimension(probability.negative_log_likelihood(certain, image), 16)
    assert bits.min() >= 0.0
    assert bits.max() < 0.2


def test_gaussian_bits_per_dimension_by_hand():
    # A density of 1/2 on [-1, 1] is uniform over 255 level spacings: log2(255) bits. Its nats are log 2 a dimension.
    nats = torch.tensor(12 * math.log(2.0), dtype=torch.float64)
    for likelihood in (Gaussian(scale=1.0, learnt=False), GaussianPerPixel(least_scale=1.0)):
        assert likelihood.bits_per_dimension(nats, 12).item() == pytest.approx(math.log2(255), rel=1e-12)


def test_gaussian_bits_per_dimension_agree_with_the_probabilities_of_the_256_levels():
    # The density times the spacing of the levels against the normal's mass between the midpoints of the levels.
    scale, mean = 0.3, 0.2
    levels = torch.arange(256, dtype=torch.float64)
    mass = distributions.Normal((mean + 1) * 127.5, scale * 127.5)
    exact = -torch.log2(mass.cdf(levels + 0.5) - mass.cdf(levels - 0.5))
    image = LEVELS.reshape(256, 1, 1, 1)
    likelihood = Gaussian(scale=scale, learnt=False)
    nats = likelihood.negative_log_likelihood(torch.full_like(image, math.atanh(mean)), image)
    assert torch.allclose(likelihood.bits_per_dimension(nats, 1), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_no_standard_deviation_is_refused(scale):
    with raises(ValueError, f"scale={scale}"):
        Gaussian(scale=scale, learnt=False)
    with raises(ValueError, f"least_scale={scale}"):
        GaussianPerPixel(least_scale=scale)


# Mixtures of logistics


def mixture(num_mixtures: int = 4) -> DiscretisedLogisticMixture:
    return DiscretisedLogisticMixture(num_mixtures=num_mixtures)


def parameters(count: int, channels: int, num_mixtures: int = 4, *, log_scale: float = -2.0, seed: int = 0) -> torch.Tensor:
    """A decoder's output for images of one pixel, in float64: [N, O, 1, 1]."""
    values = normal(count, mixture(num_mixtures).num_outputs(channels), 1, 1, seed=seed)
    values[:, num_mixtures : num_mixtures * (1 + channels)] *= 0.5
    values[:, num_mixtures * (1 + channels) : num_mixtures * (1 + 2 * channels)] += log_scale
    return values


def reference(output: torch.Tensor, level: list[int], num_mixtures: int) -> float:
    """-log p of a pixel by differences of the CDF, from its levels: Salimans et al. 2017, equations 2 and 3."""
    rows = output.double().numpy().reshape(-1, num_mixtures)
    channels = len(level)
    logits, means = rows[0], rows[1 : 1 + channels].copy()
    scales = np.exp(np.maximum(rows[1 + channels : 1 + 2 * channels], -7.0))
    x = np.array(level) / 127.5 - 1.0
    if channels == 3:
        alpha, beta, gamma = np.tanh(rows[7:])
        means[1] += alpha * x[0]
        means[2] += beta * x[0] + gamma * x[1]
    log_mass = np.zeros(num_mixtures)
    for c in range(channels):
        above = np.ones(num_mixtures) if level[c] == 255 else expit((x[c] + 1 / 255 - means[c]) / scales[c])
        below = np.zeros(num_mixtures) if level[c] == 0 else expit((x[c] - 1 / 255 - means[c]) / scales[c])
        log_mass += np.log(above - below)
    return -(logsumexp(logits - logsumexp(logits) + log_mass))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_mixtures_equal_differences_of_the_cumulative_distribution(channels):
    likelihood, output = mixture(), parameters(6, channels, log_scale=-1.5)
    levels = torch.randint(0, 256, (6, channels), generator=torch.Generator().manual_seed(2))
    levels[0], levels[1] = 0, 255
    nats = likelihood.negative_log_likelihood(output, LEVELS[levels][:, :, None, None])
    expected = [reference(output[i], levels[i].tolist(), 4) for i in range(6)]
    assert nats.shape == (6,)
    assert nats.tolist() == pytest.approx(expected, rel=1e-7)  # the reference loses digits to cancellation


def test_the_nats_of_an_image_are_the_sum_over_its_pixels():
    likelihood = mixture()
    pixels = parameters(12, 3)
    levels = LEVELS[torch.randint(0, 256, (12, 3), generator=torch.Generator().manual_seed(3))]
    each = likelihood.negative_log_likelihood(pixels, levels[:, :, None, None])
    output = pixels.view(2, 2, 3, -1).permute(0, 3, 1, 2)
    image = levels.view(2, 2, 3, 3).permute(0, 3, 1, 2)
    assert likelihood.log_probabilities(output, image).shape == (2, 2, 3)
    nats = likelihood.negative_log_likelihood(output, image)
    assert torch.allclose(nats, each.view(2, 6).sum(dim=1), rtol=1e-12)


@pytest.mark.parametrize("log_scale", [-6.9, -4.0, -1.0, 3.0])
def test_the_probabilities_of_a_grey_pixels_levels_sum_to_one(log_scale):
    output = parameters(1, 1, log_scale=log_scale).expand(256, -1, -1, -1)
    probabilities = mixture().log_probabilities(output, LEVELS.view(256, 1, 1, 1)).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    in_float32 = mixture().log_probabilities(output.float(), LEVELS.float().view(256, 1, 1, 1)).exp()
    assert in_float32.sum().item() == pytest.approx(1.0, abs=1e-3 if log_scale < -5 else 1e-5)


@pytest.mark.parametrize(("red", "green"), [(0, 255), (17, 130)])
def test_blue_has_a_distribution_for_every_red_and_green(red, green):
    # Sums over blue of p(r, g, b) against p(r, g), by the reference of two channels whose means are given.
    output = parameters(1, 3)
    levels = torch.cat([torch.tensor([[red, green]]).expand(256, -1), torch.arange(256)[:, None]], dim=1)
    found = mixture().log_probabilities(output.expand(256, -1, -1, -1), LEVELS[levels][:, :, None, None]).exp().sum().item()
    rows = output.view(-1, 4)
    moved = rows[2] + rows[7].tanh() * LEVELS[red]
    marginal = torch.stack([rows[0], rows[1], moved, rows[4], rows[5]])
    assert found == pytest.approx(math.exp(-reference(marginal, [red, green], 4)), rel=1e-7)


def test_the_probabilities_of_all_colours_sum_to_one():
    # Coarsely, for there are 16.7 million: broad logistics are smooth between black and white, so that every fifth level stands
    # for the five around it, and the first and last of these also for the two next to black and white.
    chosen = torch.arange(0, 256, 5)
    weight = torch.full((len(chosen),), 5.0, dtype=torch.float64)
    weight[[0, -1]], weight[[1, -2]] = 1.0, 7.0
    assert weight.sum() == 256
    output = parameters(1, 3, 2, log_scale=-0.5)
    image = LEVELS[torch.cartesian_prod(chosen, chosen, chosen)].T[None, :, :, None]
    log_probabilities = mixture(2).log_probabilities(output.expand(-1, -1, image.shape[2], -1), image)
    weights = weight[:, None, None] * weight[:, None] * weight
    assert (log_probabilities.exp().flatten() * weights.flatten()).sum().item() == pytest.approx(1.0, abs=1e-3)


def test_green_follows_red_and_blue_follows_both():
    likelihood = mixture(1)
    output = torch.zeros(1, 10, 1, 1, dtype=torch.float64)
    output[:, 4:7] = -4.0
    output[:, 7:10] = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)[:, None, None].atanh()
    red, green = 0.4, 0.2
    blue = -0.3 * 0.4 + 0.8 * 0.2

    def nats(*values):
        return likelihood.negative_log_likelihood(output, torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)).item()

    best = nats(red, green, blue)
    for change in (-0.1, 0.1):
        assert nats(red, green + change, blue) > best + 1
        assert nats(red, green, blue + change) > best + 1
    # The mean, of red 0, green 0 + 0.5 * 0 and blue: all zero.
    assert torch.equal(likelihood.mean(output), torch.zeros(1, 3, 1, 1, dtype=torch.float64))
    output[:, 1] = 0.4
    assert torch.allclose(likelihood.mean(output).view(3), torch.tensor([0.4, 0.2, 0.04], dtype=torch.float64), atol=1e-12)


def test_the_mean_of_narrow_logistics_is_that_of_the_distribution():
    output = parameters(5, 1, log_scale=-5.0)
    probabilities = mixture().log_probabilities(
        output.repeat_interleave(256, 0), LEVELS.repeat(5).view(-1, 1, 1, 1)
    ).exp().view(5, 256)  # fmt: skip
    mean = mixture().mean(output)
    assert mean.shape == (5, 1, 1, 1)
    assert torch.allclose(mean.view(5), probabilities @ LEVELS, rtol=0, atol=0.02)


def test_a_mean_stays_in_the_image_range():
    output = parameters(50, 3, seed=4) * 20
    assert mixture().mean(output).abs().max() <= 1 + 1e-12  # a weighted mean, rounded


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("log_scale", [-1e4, -7.0, 0.0, 80.0])
@pytest.mark.parametrize("mean", [0.0, 1e3, -1e3])
def test_extreme_scales_and_means_have_finite_nats_and_gradients(channels, log_scale, mean):
    output = torch.zeros(3, mixture().num_outputs(channels), 1, 1)
    output[:, 4 : 4 * (1 + channels)] = mean
    output[:, 4 * (1 + channels) : 4 * (1 + 2 * channels)] = log_scale
    output.requires_grad_()
    image = torch.tensor([-1.0, 1.0, 1 / 255]).view(3, 1, 1, 1).expand(-1, channels, -1, -1)
    nats = mixture().negative_log_likelihood(output, image)
    nats.sum().backward()
    assert nats.isfinite().all()
    assert output.grad.isfinite().all()


def test_images_count_as_their_nearest_levels():
    likelihood, output = mixture(), parameters(6, 3)
    image = LEVELS[torch.randint(0, 256, (6, 3), generator=torch.Generator().manual_seed(5))][:, :, None, None]
    expected = likelihood.negative_log_likelihood(output, image)
    for shift in (-0.9 / 255, 0.9 / 255):
        assert torch.allclose(likelihood.negative_log_likelihood(output, (image + shift).clamp(-1, 1)), expected, rtol=1e-12)


def test_outputs_and_bits_of_mixtures_by_hand():
    assert [mixture(10).num_outputs(channels) for channels in (1, 2, 3, 4)] == [30, 50, 100, 90]
    assert mixture().bits_per_dimension(torch.tensor(12 * 8 * math.log(2.0)), 12).item() == pytest.approx(8.0, rel=1e-6)
    # A standard logistic around 0, between the midpoints next to level 128.
    output = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    nats = mixture(1).negative_log_likelihood(output, torch.full((1, 1, 1, 1), 1 / 255, dtype=torch.float64))
    assert nats.item() == pytest.approx(-math.log(expit(2 / 255) - 0.5), rel=1e-9)


@pytest.mark.parametrize("num_mixtures", [0, -3])
def test_fewer_than_one_mixture_is_refused(num_mixtures):
    with raises(ValueError, f"num_mixtures={num_mixtures}"):
        mixture(num_mixtures)


def test_channels_of_the_decoders_output_are_those_of_the_image_unless_more_are_needed():
    assert [cross_entropy().num_outputs(channels) for channels in (1, 3)] == [1, 3]
    assert [Gaussian(scale=1.0, learnt=True).num_outputs(channels) for channels in (1, 3)] == [1, 3]


def test_what_stands_beside_a_number_says_what_it_is_of():
    found = {likelihood.description for likelihood in (
        *(cross_entropy(binarisation) for binarisation in BINARISATIONS), Gaussian(scale=0.25, learnt=False),
        Gaussian(scale=0.5, learnt=True), GaussianPerPixel(least_scale=0.1), mixture(4),
    )}  # fmt: skip
    assert found == {
        "Bernoulli of grey values", "Bernoulli of binarised images", "Gaussian of standard deviation 0.25",
        "Gaussian of standard deviation 0.5", "Gaussian with a scale for every pixel", "discretised logistics, 4 a pixel",
    }  # fmt: skip
