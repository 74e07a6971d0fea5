import itertools
import math

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from torch import distributions, nn

from genimg.errors import ConfigError
from genimg.losses.elbo import ELBO, Bound, ImportanceWeighted
from genimg.losses.likelihoods import Bernoulli, DiscretisedLogisticMixture, Gaussian, GaussianPerPixel, Likelihood
from genimg.methods import vae as module
from genimg.methods.latent import truncate
from genimg.methods.options import LatentOptions
from genimg.methods.vae import VAE
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.conv_autoencoder import Decoder, Encoder
from genimg.networks.stochastic_layers import StochasticLayer
from genimg.types import Progress
from genimg.utils.rng import hash_integers, normal_field

BERNOULLI = Bernoulli(binarisation="none")
GAUSSIAN = Gaussian(scale=0.5, learnt=False)
LABELS = torch.tensor([2, 0, 1, 2])


def elbo(likelihood: Likelihood = BERNOULLI, *, num_samples: int = 1, kl_weight: float = 1.0) -> ELBO:
    return ELBO(
        likelihood=likelihood, num_samples=num_samples, kl_weight=kl_weight, warm_up=0, free_bits=0.0, capacity=None,
        capacity_growth=0,
    )  # fmt: skip


def layer(below: int, latent_dim: int) -> StochasticLayer:
    return StochasticLayer(below=below, latent_dim=latent_dim, widths=[6], activation="tanh")


def build(
    loss: Bound | None = None,
    *,
    likelihood: Likelihood = BERNOULLI,
    condition: type[ConditionEncoder] | None = None,
    latent_dim: int = 5,
    above: tuple[int, ...] = (),
    **networks: nn.Module,
) -> VAE:
    torch.manual_seed(0)
    loss = loss or elbo(likelihood)
    settings = {"image_size": 16, "channels": 1, "latent_dim": latent_dim, "width": 4}
    encoders = [OneHot(num_classes=3) if condition else Unconditional() for _ in range(2)]
    defaults = {
        "encoder": Encoder(**settings, condition=encoders[0], moments=2),
        "decoder": Decoder(**settings, condition=encoders[1], likelihood=loss.likelihood),
    }
    dims = (latent_dim, *above)
    hierarchy = [layer(below, dim) for below, dim in zip(dims, above, strict=False)]
    return VAE(**(defaults | networks), loss=loss, latent_dim=latent_dim, hierarchy=hierarchy)


def conditional(**settings) -> VAE:
    vae = build(condition=OneHot, **settings)
    vae.set_condition_bank({"label": torch.arange(vae.condition_bank_size) % 3})
    return vae


class RecordingUpdate:
    """Computes the loss of each microbatch and keeps it, without an optimizer."""

    def __init__(self) -> None:
        self.calls = []
        self.losses = []

    def __call__(self, group, loss, batch):
        self.calls.append(group)
        results = [loss(microbatch) for microbatch in batch]
        self.losses = [value for value, _ in results]
        return results[0][1]


def real_images(count: int = 4) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    return levels / 127.5 - 1


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def run_step(vae: VAE, *, images: int = 0, batch: dict[str, torch.Tensor] | None = None):
    update = RecordingUpdate()
    metrics = vae.step([batch or {"image": real_images()}], Progress(images=images, batch_size=4), update)
    return metrics, update


def keys(count: int, start: int = 0) -> np.ndarray:
    return hash_integers(17, np.arange(start, start + count))


def cross_entropy(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """In nats per image, in float64."""
    p, target = torch.sigmoid(logits.double()), (image.double() + 1) / 2
    return -(target * p.log() + (1 - target) * (1 - p).log()).flatten(1).sum(dim=1)


# Steps


def test_a_step_is_one_update_of_the_autoencoder():
    _, update = run_step(build())
    assert update.calls == ["autoencoder"]


def test_the_loss_is_the_bound_at_one_reparametrised_sample():
    vae = build(elbo(kl_weight=2.0)).eval()
    torch.manual_seed(7)
    metrics, update = run_step(vae)
    torch.manual_seed(7)
    noise = torch.randn(4, 5)
    with torch.no_grad():
        mean, log_variance = vae.encoder(real_images(), nothing(4)).unbind(1)
        logits = vae.decoder(mean + log_variance.exp().sqrt() * noise, nothing(4))
    reconstruction = cross_entropy(logits, real_images()).mean().item()
    variance = log_variance.double().exp()
    kl = 0.5 * (mean.double() ** 2 + variance - 1 - variance.log()).sum().item() / 4
    assert update.losses[0].item() == pytest.approx(reconstruction + 2 * kl, rel=1e-5)
    assert metrics["loss/total"].item() == pytest.approx(reconstruction + 2 * kl, rel=1e-5)
    assert metrics["loss/reconstruction_nats"].item() == pytest.approx(reconstruction, rel=1e-5)
    assert metrics["loss/kl_nats"].item() == pytest.approx(kl, rel=1e-4)
    assert metrics["loss/elbo_nats"].item() == pytest.approx(-(reconstruction + kl), rel=1e-5)


def test_several_samples_of_an_image_are_weighed_against_each_other():
    vae = build(ImportanceWeighted(likelihood=BERNOULLI, num_samples=3)).eval()
    torch.manual_seed(7)
    metrics, update = run_step(vae)
    torch.manual_seed(7)
    noise = torch.randn(12, 5)
    with torch.no_grad():
        moments = vae.encoder(real_images(), nothing(4))
        mean, log_variance = moments.repeat_interleave(3, 0).unbind(1)
        latent = mean + (0.5 * log_variance).exp() * noise
        nats = cross_entropy(vae.decoder(latent, nothing(12)), real_images().repeat_interleave(3, 0))
    posterior = distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
    prior = distributions.Normal(0.0, 1.0)
    ratio = (posterior.log_prob(latent.double()) - prior.log_prob(latent.double())).sum(dim=1)
    weights = (-nats - ratio).view(4, 3)
    expected = (torch.logsumexp(weights, dim=1) - math.log(3)).mean().item()
    assert update.losses[0].item() == pytest.approx(-expected, rel=1e-5)
    assert metrics["loss/iw3_elbo_nats"].item() == pytest.approx(expected, rel=1e-5)
    kl = distributions.kl_divergence(posterior, prior).sum().item() / 12
    assert metrics["loss/elbo_nats"].item() == pytest.approx(-(nats.mean().item() + kl), rel=1e-5)


def test_latents_above_latents_cost_their_log_ratio_and_the_highest_their_kl():
    vae = build(above=(3,)).eval()
    torch.manual_seed(7)
    metrics, _ = run_step(vae)
    torch.manual_seed(7)
    noise, noise_above = torch.randn(4, 5), torch.randn(4, 3)
    with torch.no_grad():
        mean, log_variance = vae.encoder(real_images(), nothing(4)).double().unbind(1)
        latent = mean + (0.5 * log_variance).exp() * noise
        mean_above, log_variance_above = (moment.double() for moment in vae.hierarchy[0].infer(latent.float()))
        latent_above = mean_above + (0.5 * log_variance_above).exp() * noise_above
        mean_down, log_variance_down = (moment.double() for moment in vae.hierarchy[0].generate(latent_above.float()))
        nats = cross_entropy(vae.decoder(latent.float(), nothing(4)), real_images())

    def gaussian(mean, log_variance):
        return distributions.Normal(mean, (0.5 * log_variance).exp())

    ratio = gaussian(mean, log_variance).log_prob(latent) - gaussian(mean_down, log_variance_down).log_prob(latent)
    divergence = distributions.kl_divergence(gaussian(mean_above, log_variance_above), distributions.Normal(0.0, 1.0))
    kl = (ratio.sum() + divergence.sum()).item() / 4
    assert metrics["loss/kl_nats"].item() == pytest.approx(kl, rel=1e-4)
    assert metrics["loss/total"].item() == pytest.approx(nats.mean().item() + kl, rel=1e-5)


def test_the_noise_of_the_latent_has_the_encoders_standard_deviation():
    class FixedEncoder(nn.Module):
        condition = Unconditional()

        def forward(self, image, condition):
            moments = torch.tensor([3.0, 2 * math.log(2.0)])  # N(3, 2^2)
            return moments[None, :, None].expand(len(image), 2, 5)

    class KeepLatent(nn.Module):
        condition = Unconditional()

        def forward(self, latent, condition):
            self.latent = latent
            return latent.new_zeros(len(latent), 1, 16, 16)

    vae = build(encoder=FixedEncoder(), decoder=KeepLatent())
    run_step(vae, batch={"image": torch.zeros(4000, 1, 16, 16)})
    latent = vae.decoder.latent
    # Five standard errors of 20,000 numbers.
    assert latent.mean().item() == pytest.approx(3.0, abs=5 * 2 / 20_000**0.5)
    assert latent.std().item() == pytest.approx(2.0, abs=5 * 2 / 40_000**0.5)


@pytest.mark.parametrize("above", [(), (4,), (4, 3)])
@pytest.mark.parametrize(
    "likelihood",
    [
        BERNOULLI,
        Gaussian(scale=0.3, learnt=True),
        GaussianPerPixel(least_scale=0.1),
        DiscretisedLogisticMixture(num_mixtures=2),
    ],
)
def test_the_loss_reaches_every_parameter_and_one_group_has_them_all(above, likelihood):
    vae = build(ImportanceWeighted(likelihood=likelihood, num_samples=2), above=above)
    likelihood.zero_grad()
    _, update = run_step(vae)
    update.losses[0].backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    groups = vae.parameter_groups()
    assert list(groups) == ["autoencoder"]
    assert sorted(map(id, groups["autoencoder"])) == sorted(map(id, vae.parameters()))
    learnt = isinstance(likelihood, Gaussian)
    assert ("loss.likelihood.log_scale" in dict(vae.named_parameters())) == learnt


def test_metrics_are_detached_scalars():
    metrics, _ = run_step(build(ImportanceWeighted(likelihood=BERNOULLI, num_samples=2)))
    names = {
        "total", "reconstruction_nats", "kl_nats", "elbo_nats", "cross_entropy_bits_per_dim",
        "reconstruction_cross_entropy_bits_per_dim",
        "kl_bits_per_dim", "iw2_elbo_nats",
    }  # fmt: skip
    assert set(metrics) == {f"loss/{name}" for name in names} | {"latent/active_units"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert metrics["loss/cross_entropy_bits_per_dim"].item() == pytest.approx(
        -metrics["loss/elbo_nats"].item() / 256 / math.log(2), rel=1e-6
    )


class Pixels(nn.Module):
    """An encoder whose means are the first pixels of the image."""

    condition = Unconditional()

    def forward(self, image, condition):
        mean = image.flatten(1)[:, :5]
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)


def test_active_units_are_those_whose_mean_varies_by_more_than_a_hundredth():
    image = torch.zeros(4, 1, 16, 16)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])  # a variance of 4/3
    image[:, 0, 0, 1], image[:, 0, 0, 3] = 0.05 * signs, 0.1 * signs  # 0.0033 and 0.0133
    image[:, 0, 0, 4] = signs
    vae = build(encoder=Pixels())
    assert run_step(vae, batch={"image": image})[0]["latent/active_units"].item() == 2
    assert "latent/active_units" not in run_step(vae, batch={"image": image[:1]})[0]


def test_encoder_and_likelihood_see_the_same_binarised_image():
    likelihood = Bernoulli(binarisation="dynamic")
    vae = build(likelihood=likelihood).train()
    seen = []
    vae.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    likelihood.negative_log_likelihood = lambda output, image: (seen.append(image), output.flatten(1).sum(dim=1))[1]
    run_step(vae)
    run_step(vae)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].unique().tolist() == [-1.0, 1.0]
    assert not torch.equal(seen[0], seen[2])


# Conditions


def test_networks_are_given_the_labels_of_the_batch():
    vae = conditional().eval()
    batch = {"image": real_images(), "label": LABELS}
    assert vae.batch_keys == ("image", "label")
    torch.manual_seed(7)
    metrics, _ = run_step(vae, batch=batch)
    torch.manual_seed(7)
    with torch.no_grad():
        mean, log_variance = vae.encoder(real_images(), LABELS).unbind(1)
        logits = vae.decoder(mean + log_variance.exp().sqrt() * torch.randn(4, 5), LABELS)
    expected = cross_entropy(logits, real_images()).mean().item()
    assert metrics["loss/reconstruction_nats"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(vae.reconstruct(batch), 2 * logits_of_means(vae, batch).sigmoid() - 1)
    other = {"image": real_images(), "label": (LABELS + 1) % 3}
    assert not torch.allclose(vae.reconstruct(other), vae.reconstruct(batch), atol=1e-3)


@torch.no_grad()
def logits_of_means(vae: VAE, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    vae.eval()
    return vae.decoder(vae.encoder(batch["image"], batch["label"])[:, 0], batch["label"])


def test_several_samples_of_an_image_have_its_label():
    vae = conditional(loss=ImportanceWeighted(likelihood=BERNOULLI, num_samples=3))
    seen = []
    vae.decoder.condition.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].tolist()))
    run_step(vae, batch={"image": real_images(), "label": LABELS})
    assert seen == [[2, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_labels_are_drawn_as_often_as_the_data_has_them():
    vae = conditional()
    vae.set_condition_bank({"label": (torch.arange(vae.condition_bank_size) % 4 == 0).long()})
    drawn = vae.draw(range(2000), 3)
    assert set(drawn) == {"latent", "label"}
    # Five standard errors of a share of 2,000.
    assert drawn["label"].float().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2000) ** 0.5)
    assert torch.equal(vae.draw([7, 3], 3)["label"], drawn["label"][[7, 3]])
    whole = vae.sample({key: value[:4] for key, value in drawn.items()})
    other = vae.sample({"latent": drawn["latent"][:4], "label": 1 - drawn["label"][:4]})
    assert not torch.allclose(whole, other, atol=1e-3)


def test_previews_of_a_conditional_model_show_a_class_in_every_row():
    vae = conditional()
    batch = {"image": real_images(), "label": LABELS}
    drawn = vae.draw(range(6), 0)
    preview = vae.preview(batch, drawn)
    assert preview["samples"].shape == (3, 2, 1, 16, 16)
    expected = vae.sample({"latent": drawn["latent"], "label": torch.tensor([0, 0, 1, 1, 2, 2])})
    assert torch.allclose(preview["samples"].flatten(0, 1), expected, rtol=0, atol=1e-6)
    assert torch.equal(preview["reconstructions"][1::2], vae.reconstruct(batch))
    assert torch.allclose(preview["interpolations"][:, 0], vae.reconstruct(batch)[0::2], rtol=0, atol=1e-6)


# Sampling


def test_drawn_latents_depend_on_seed_and_index_alone():
    vae = build()
    drawn = vae.draw(range(6), 3)["latent"]
    assert drawn.shape == (6, 5)
    assert torch.equal(vae.draw([4, 1], 3)["latent"], drawn[[4, 1]])
    assert not torch.equal(vae.draw(range(6), 4)["latent"], drawn)


@pytest.mark.parametrize(("likelihood", "expected"), [(BERNOULLI, lambda x: 2 * x.sigmoid() - 1), (GAUSSIAN, torch.tanh)])
def test_samples_are_the_likelihoods_mean_in_evaluation_mode(likelihood, expected):
    vae = build(likelihood=likelihood)
    drawn = vae.draw(range(6), 3)
    samples = vae.sample(drawn)
    assert not samples.requires_grad
    with torch.no_grad():
        output = vae.eval().decoder(drawn["latent"], nothing(6))
    assert torch.allclose(samples, expected(output), rtol=0, atol=1e-6)
    assert samples.abs().max() <= 1


@pytest.mark.parametrize("above", [(), (4,), (4, 3)])
def test_a_sample_does_not_depend_on_the_batch_that_it_is_drawn_in(above):
    vae = build(above=above)
    whole = vae.sample(vae.draw(range(6), 3))
    parts = torch.cat([vae.sample(vae.draw([index], 3)) for index in range(6)])
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)


def test_a_hierarchy_is_sampled_from_the_highest_latents_downwards():
    vae = build(above=(4, 3))
    drawn = vae.draw(range(6), 3)
    assert {key: value.shape for key, value in drawn.items()} == {"latent": (6, 3), "noise": (6, 9)}
    numbers = torch.cat([drawn["latent"], drawn["noise"]], dim=1)
    assert len(numbers.unique()) == 6 * 12
    lowest, middle, highest = drawn["noise"][:, :5], drawn["noise"][:, 5:], drawn["latent"]
    with torch.no_grad():
        vae.eval()
        mean, log_variance = vae.hierarchy[1].generate(highest)
        latent = mean + (0.5 * log_variance).exp() * middle
        mean, log_variance = vae.hierarchy[0].generate(latent)
        latent = mean + (0.5 * log_variance).exp() * lowest
        expected = 2 * vae.decoder(latent, nothing(6)).sigmoid() - 1
    assert torch.allclose(vae.sample(drawn), expected, rtol=0, atol=1e-6)


def test_truncation_clips_the_latents_of_all_layers():
    vae = build(above=(3,))
    drawn = vae.draw(range(50), 3)
    cut = {key: truncate(value, 0.7) for key, value in drawn.items()}
    assert cut.keys() == {"latent", "noise"}
    assert torch.equal(vae.sample(drawn, LatentOptions(truncation=0.7)), vae.sample(cut))
    assert not torch.equal(vae.sample(drawn), vae.sample(cut))


def test_reconstructions_decode_the_posterior_mean_and_repeat():
    vae = build()
    reconstruction = vae.reconstruct({"image": real_images()})
    assert torch.equal(vae.reconstruct({"image": real_images()}), reconstruction)
    with torch.no_grad():
        vae.eval()
        expected = 2 * vae.decoder(vae.encoder(real_images(), nothing(4))[:, 0], nothing(4)).sigmoid() - 1
    assert torch.allclose(reconstruction, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("binarisation", ["dynamic", "static"])
def test_reconstructions_of_binarised_images_repeat_also_in_training_mode(binarisation):
    vae = build(likelihood=Bernoulli(binarisation=binarisation)).train()
    first = vae.reconstruct({"image": real_images()})
    assert torch.equal(vae.reconstruct({"image": real_images()}), first)
    assert torch.allclose(vae.reconstruct({"image": real_images()[2:3]}), first[2:3], rtol=0, atol=1e-6)


def test_samples_nearby_lie_around_the_mean_of_the_posterior():
    vae = build()
    drawn = vae.draw(range(3), 0)
    image = real_images()[:1]
    near = tiny.nearby(vae, image, drawn, 0.0)
    expected = vae.reconstruct({"image": image}).expand(3, -1, -1, -1)
    assert torch.allclose(vae.sample(near), expected, rtol=0, atol=1e-6)
    wide = tiny.nearby(vae, image, drawn, 0.5)["latent"]
    assert torch.allclose(wide - near["latent"], 0.5 * drawn["latent"], rtol=0, atol=1e-6)


def test_without_spread_samples_nearby_are_the_reconstruction_also_in_a_hierarchy():
    vae = build(above=(4, 3))
    near = tiny.nearby(vae, real_images()[:1], vae.draw(range(3), 0), 0.0)
    expected = vae.reconstruct({"image": real_images()[:1]}).expand(3, -1, -1, -1)
    assert torch.allclose(vae.sample(near), expected, rtol=0, atol=1e-5)


def test_samples_nearby_of_a_conditional_model_have_the_label_that_was_drawn():
    vae = conditional()
    drawn = vae.draw(range(3), 0) | {"label": torch.full((3,), 2)}
    near = tiny.nearby(vae, real_images()[:1], drawn, 0.0)
    expected = vae.reconstruct({"image": real_images()[:1], "label": torch.tensor([2])})
    assert torch.equal(near["label"], drawn["label"])
    assert torch.allclose(vae.sample(near), expected.expand(3, -1, -1, -1), rtol=0, atol=1e-6)


def test_samples_nearby_of_a_hierarchy_lie_around_the_highest_latents_of_the_image():
    vae = build(above=(4, 3))
    drawn = vae.draw(range(3), 0)
    near = tiny.nearby(vae, real_images()[:1], drawn, 0.0)
    with torch.no_grad():
        latent = vae.eval().encoder(real_images()[:1], nothing(1))[:, 0]
        for each in vae.hierarchy:
            latent, _ = each.infer(latent)
    assert torch.allclose(near["latent"], latent.expand(3, -1), rtol=0, atol=1e-6)
    assert torch.allclose(
        tiny.nearby(vae, real_images()[:1], drawn, 2.0)["latent"], latent + 2 * drawn["latent"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("above", [(), (3,)])
def test_looking_keeps_the_mode_and_the_batch_norm_statistics(training, above):
    vae = conditional(above=above).train(training)
    batch = {"image": real_images(), "label": LABELS}
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    drawn = vae.draw(range(4), 0)
    vae.sample(drawn)
    vae.reconstruct(batch)
    tiny.nearby(vae, batch["image"][:1], drawn, 1.0)
    vae.preview(batch, drawn)
    vae.log_likelihood(batch, 2, keys(4))
    vae.check({"image": real_images()})
    assert all(module.training == training for module in vae.modules())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_the_mode_is_restored_after_an_error():
    vae = build().train()
    with pytest.raises(RuntimeError):
        vae.sample({"latent": torch.zeros(2, 99)})
    assert vae.training
    assert vae.decoder.training


# Measuring


class Linear(Likelihood):
    """N(output, 0.7^2), so that all that there is to know is in closed form."""

    scale = 0.7
    description = "linear"
    bits_name = "bits_per_dim"

    def negative_log_likelihood(self, output, image):
        return -distributions.Normal(output, self.scale).log_prob(image).flatten(1).sum(dim=1)

    def mean(self, output):
        return output

    def bits_per_dimension(self, nats, num_dimensions):
        return nats / num_dimensions


class LinearEncoder(nn.Module):
    """The posterior of ``LinearDecoder`` for standard normal latents, ``widening`` times as wide, without correlations."""

    def __init__(self, decoder: "LinearDecoder", widening: float) -> None:
        super().__init__()
        self.condition = Unconditional()
        self.offset = decoder.offset
        precision = torch.eye(2, dtype=torch.float64) + decoder.matrix.T @ decoder.matrix / Linear.scale**2
        covariance = precision.inverse()
        self.to_mean = covariance @ decoder.matrix.T / Linear.scale**2
        self.log_variance = (covariance.diagonal() * widening**2).log()

    def forward(self, image, condition):
        mean = (image.flatten(1).double() - self.offset) @ self.to_mean.T
        return torch.stack([mean, self.log_variance.expand_as(mean)], dim=1)


class LinearDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.condition = Unconditional()
        random = torch.Generator().manual_seed(5)
        self.matrix = torch.randn(6, 2, generator=random, dtype=torch.float64)
        self.offset = torch.randn(6, generator=random, dtype=torch.float64)

    def forward(self, latent, condition):
        return (latent.double() @ self.matrix.T + self.offset).view(-1, 1, 2, 3)

    def marginal(self) -> distributions.MultivariateNormal:
        covariance = self.matrix @ self.matrix.T + Linear.scale**2 * torch.eye(6, dtype=torch.float64)
        return distributions.MultivariateNormal(self.offset, covariance)


def linear_gaussian(widening: float = 1.5) -> tuple[VAE, LinearDecoder, torch.Tensor]:
    decoder = LinearDecoder()
    vae = build(likelihood=Linear(), latent_dim=2, encoder=LinearEncoder(decoder, widening), decoder=decoder)
    image = torch.randn(600, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + decoder.offset
    return vae, decoder, image.view(-1, 1, 2, 3)


def test_the_likelihood_of_a_linear_gaussian_model_is_found():
    vae, decoder, image = linear_gaussian()
    exact = decoder.marginal().log_prob(image.flatten(1))[:8]
    found = vae.log_likelihood({"image": image[:8]}, 20_000, keys(8))
    assert found["log_likelihood"].shape == (8,)
    assert found["log_likelihood"].dtype == torch.float64
    assert torch.allclose(found["log_likelihood"], exact, rtol=0, atol=0.05)
    # The ELBO is below by the divergence of q from the posterior.
    covariance = (torch.eye(2, dtype=torch.float64) + decoder.matrix.T @ decoder.matrix / 0.49).inverse()
    posterior = distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    q = distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), vae.encoder.log_variance.exp().diag())
    gap = distributions.kl_divergence(q, posterior).item()
    assert gap > 0.2
    assert torch.allclose(exact - found["elbo"], torch.full((8,), gap, dtype=torch.float64), rtol=0, atol=0.1)
    assert torch.allclose(found["elbo"], -(found["reconstruction"] + found["kl"]), rtol=1e-12)


def test_the_estimated_likelihood_grows_with_the_samples():
    vae, decoder, image = linear_gaussian(widening=2.0)
    exact = decoder.marginal().log_prob(image.flatten(1))
    found = [vae.log_likelihood({"image": image}, count, keys(600))["log_likelihood"] for count in (1, 4, 16)]
    for fewer, more in itertools.pairwise(found):
        assert (more - fewer).mean() > 5 * (more - fewer).std() / 600**0.5
    for one in found:
        assert (one - exact).mean() < 5 * (one - exact).std() / 600**0.5


@pytest.mark.parametrize("above", [(), (4, 3)])
def test_likelihoods_equal_a_direct_computation(above):
    vae = build(above=above).eval()
    found = vae.log_likelihood({"image": real_images()}, 6, keys(4))
    dims = [5, *above]
    for i in range(4):
        noise = normal_field(hash_integers(int(keys(4)[i].astype(np.int64)), np.arange(6)), (sum(dims),), torch.device("cpu"))
        with torch.no_grad():
            mean, log_variance = vae.encoder(real_images()[i : i + 1], nothing(1)).expand(6, -1, -1).unbind(1)
            log_weight, latents, kl = torch.zeros(6, dtype=torch.float64), [], []
            for level, piece in enumerate(noise.split(dims, dim=1)):
                if level:
                    mean, log_variance = vae.hierarchy[level - 1].infer(latents[-1])
                posterior = distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
                latents.append(mean + (0.5 * log_variance).exp() * piece)
                log_weight -= posterior.log_prob(latents[-1].double()).sum(dim=1)
            closed = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum(dim=1)
            below = log_weight + posterior.log_prob(latents[-1].double()).sum(dim=1)  # minus log q of all but the highest
            for level, latent in enumerate(latents):
                if level == len(latents) - 1:
                    prior = distributions.Normal(0.0, 1.0)
                else:
                    mean, log_variance = vae.hierarchy[level].generate(latents[level + 1])
                    prior = distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
                    below += prior.log_prob(latent.double()).sum(dim=1)
                log_weight += prior.log_prob(latent.double()).sum(dim=1)
            kl = closed - below
            nats = cross_entropy(vae.decoder(latents[0], nothing(6)), real_images()[i : i + 1].expand(6, -1, -1, -1))
            log_weight -= nats
        expected = math.log(np.exp(log_weight.numpy() - log_weight.max().item()).mean()) + log_weight.max().item()
        assert found["log_likelihood"][i].item() == pytest.approx(expected, rel=1e-6)
        assert found["reconstruction"][i].item() == pytest.approx(nats.mean().item(), rel=1e-6)
        assert found["kl"][i].item() == pytest.approx(kl.mean().item(), rel=1e-4)
        assert found["elbo"][i].item() == pytest.approx(-(nats + kl).mean().item(), rel=1e-6)


@pytest.mark.parametrize("above", [(), (3,)])
@pytest.mark.parametrize("chunk", [1, 8, 12])
def test_likelihoods_depend_neither_on_the_batch_nor_on_how_samples_are_divided(above, chunk, monkeypatch):
    vae = build(above=above)
    batch = {"image": real_images()}
    whole = vae.log_likelihood(batch, 7, keys(4))
    monkeypatch.setattr(module, "_MAX_DECODED", chunk)
    pieces = [vae.log_likelihood({"image": real_images()[i : i + 1]}, 7, keys(1, i)) for i in range(4)]
    for name, value in vae.log_likelihood(batch, 7, keys(4)).items():
        assert torch.allclose(value, whole[name], rtol=1e-5, atol=1e-4), name
        assert torch.allclose(torch.cat([piece[name] for piece in pieces]), whole[name], rtol=1e-5, atol=1e-4), name


def test_no_more_latents_are_decoded_at_once_than_fit(monkeypatch):
    monkeypatch.setattr(module, "_MAX_DECODED", 12)
    vae, counts = build(), []
    vae.decoder.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    vae.log_likelihood({"image": real_images()}, 7, keys(4))
    assert counts == [12, 12, 4]


def test_likelihoods_repeat_also_where_training_binarises_anew_and_use_no_random_numbers():
    vae = build(likelihood=Bernoulli(binarisation="dynamic")).train()
    state = torch.get_rng_state()
    first = vae.log_likelihood({"image": real_images()}, 3, keys(4))
    second = vae.log_likelihood({"image": real_images()}, 3, keys(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = vae.log_likelihood({"image": real_images()}, 3, keys(4, 4))
    assert not torch.equal(first["log_likelihood"], other["log_likelihood"])


def test_with_one_sample_the_estimate_is_of_that_sample():
    vae = build()
    found = vae.log_likelihood({"image": real_images()}, 1, keys(4))
    assert (found["log_likelihood"] != found["elbo"]).all()  # whose KL is in closed form
    vae = build(above=(3,))
    assert set(vae.log_likelihood({"image": real_images()}, 1, keys(4))) == {"log_likelihood", "elbo", "reconstruction", "kl"}


def test_bits_per_dimension_and_the_name_are_the_likelihoods():
    nats = torch.tensor(100.0)
    for likelihood in (BERNOULLI, GAUSSIAN):
        vae = build(likelihood=likelihood)
        assert vae.likelihood.bits_per_dimension(nats, 7) == likelihood.bits_per_dimension(nats, 7)
        assert vae.likelihood.description == likelihood.description


# Looking


def test_preview_shows_samples_and_inputs_beside_their_reconstructions():
    vae = build()
    drawn = vae.draw(range(3), 0)
    preview = vae.preview({"image": real_images()}, drawn)
    assert set(preview) == {"samples", "reconstructions", "traversals", "interpolations", "active_units"}
    assert torch.equal(preview["samples"], vae.sample(drawn))
    assert torch.equal(preview["reconstructions"][0::2], real_images())
    assert torch.equal(preview["reconstructions"][1::2], vae.reconstruct({"image": real_images()}))
    assert preview["traversals"].shape == (5, 9, 1, 16, 16)
    assert preview["interpolations"].shape == (2, 9, 1, 16, 16)
    assert preview["active_units"].shape == (1, 1, 96, 40)


class Show(nn.Module):
    """A decoder whose image's first pixels are the latents."""

    condition = Unconditional()

    def forward(self, latent, condition):
        return torch.cat([latent, latent.new_zeros(len(latent), 256 - latent.shape[1])], dim=1).view(-1, 1, 16, 16)


def transparent(latent_dim: int = 5) -> VAE:
    """Pictures of which the first pixels are the latents, and latents that are the first pixels."""
    encoder = Pixels()
    if latent_dim != 5:
        encoder.forward = lambda image, condition: Pixels.forward(encoder, image, condition)[:, :, :latent_dim]
    return build(likelihood=Linear(), latent_dim=latent_dim, encoder=encoder, decoder=Show())


def test_a_row_of_a_traversal_changes_one_latent_the_most_active_first():
    image = real_images()
    image[:, 0, 0, :5] *= torch.tensor([0.3, 1.0, 0.01, 0.6, 0.1])
    latents = transparent().preview({"image": image}, {"latent": torch.zeros(1, 5)})["traversals"].flatten(2)[..., :5]
    mean = image[:, 0, 0, :5]
    order = mean.var(dim=0).argsort(descending=True).tolist()
    assert sorted(order) == list(range(5))
    for row, latent in zip(latents, order, strict=True):
        assert torch.allclose(row[:, latent], torch.linspace(-3, 3, 9), rtol=0, atol=1e-6)
        others = [other for other in range(5) if other != latent]
        assert torch.equal(row[:, others], mean[:1, others].expand(9, -1))


def test_no_more_than_ten_latents_are_traversed():
    vae = build(latent_dim=12)
    assert vae.preview({"image": real_images()}, vae.draw(range(2), 0))["traversals"].shape == (10, 9, 1, 16, 16)


def test_interpolations_go_straight_from_an_image_to_the_next():
    image = real_images()
    latents = transparent().preview({"image": image}, {"latent": torch.zeros(1, 5)})["interpolations"].flatten(2)[..., :5]
    mean = image[:, 0, 0, :5]
    for row, (start, end) in zip(latents, ((0, 1), (2, 3)), strict=True):
        for share, latent in zip(np.linspace(0, 1, 9), row, strict=True):
            assert torch.allclose(latent, mean[start] * (1 - share) + mean[end] * share, rtol=0, atol=1e-6)


def test_a_preview_of_a_single_image_shows_what_it_can():
    preview = build().preview({"image": real_images(1)}, {"latent": torch.zeros(1, 5)})
    assert "active_units" not in preview
    assert preview["traversals"].shape == (5, 9, 1, 16, 16)
    assert preview["interpolations"].shape == (1, 9, 1, 16, 16)


def test_two_latents_are_mapped_by_equal_shares_of_the_prior_and_scattered():
    vae = transparent(latent_dim=2)
    assert vae.optional_batch_keys == ("label",)
    preview = vae.preview({"image": real_images()}, {"latent": torch.zeros(1, 2)})
    assert preview["latent_map"].shape == (15, 15, 1, 16, 16)
    places = preview["latent_map"].flatten(3)[:, :, 0, :2]
    quantiles = distributions.Normal(0.0, 1.0).icdf((torch.arange(15) + 0.5) / 15)
    assert torch.allclose(places[:, :, 0], quantiles.expand(15, 15), rtol=0, atol=1e-5)  # to the right
    assert torch.allclose(places[:, :, 1], -quantiles[:, None].expand(15, 15), rtol=0, atol=1e-5)  # upwards
    assert preview["latent_scatter"].shape[:2] == (1, 3)
    assert (preview["latent_scatter"] == 1).all()  # nothing was trained on
    run_step(vae, batch={"image": real_images(), "label": LABELS})
    coloured = (vae.preview({"image": real_images()}, {"latent": torch.zeros(1, 2)})["latent_scatter"] != 1).any(dim=1)
    assert coloured.sum().item() <= 4 * 4
    assert coloured.sum().item() > 0
    run_step(vae)  # without labels
    assert not [name for name in vae.state_dict() if "scatter" in name]


@pytest.mark.parametrize(("latent_dim", "above"), [(3, ()), (2, (2,))])
def test_other_latents_are_neither_mapped_nor_scattered(latent_dim, above):
    vae = build(latent_dim=latent_dim, above=above)
    assert vae.optional_batch_keys == ()
    assert not {"latent_map", "latent_scatter"} & set(vae.preview({"image": real_images()}, vae.draw(range(2), 0)))


@pytest.mark.parametrize(
    "likelihood", [GAUSSIAN, GaussianPerPixel(least_scale=0.1), DiscretisedLogisticMixture(num_mixtures=2), BERNOULLI]
)
def test_all_pictures_are_in_the_image_range(likelihood):
    vae = build(likelihood=likelihood, latent_dim=2)
    for name, picture in vae.preview({"image": real_images()}, vae.draw(range(4), 0)).items():
        assert picture.abs().max() <= 1 + 1e-6, name
        assert picture.shape[-3] in (1, 3), name


# Checks


def test_check_passes_for_images_that_fit_and_keeps_the_state():
    for vae in (build(), conditional(), build(above=(3,))):
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        vae.check({"image": real_images()})
        assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_check_shows_a_shape_that_does_not_fit():
    with raises(RuntimeError, word="channels"):
        build().check({"image": torch.zeros(4, 3, 16, 16)})
    settings = {"condition": Unconditional(), "likelihood": BERNOULLI}
    decoder = Decoder(image_size=32, channels=1, latent_dim=5, width=4, **settings)
    with raises(ConfigError, "decoder", word="returns"):
        build(decoder=decoder).check({"image": real_images()})


def test_layers_of_latents_must_fit_upon_each_other():
    networks = {"encoder": build().encoder, "decoder": build().decoder, "loss": elbo()}
    with raises(ValueError, "hierarchy[1].below=5"):
        VAE(**networks, latent_dim=5, hierarchy=[layer(5, 4), layer(5, 3)])
    with raises(ValueError, "hierarchy", word="StochasticLayer"):
        VAE(**networks, latent_dim=5, hierarchy=[nn.Linear(5, 5)])


def test_networks_must_read_the_same_condition():
    with raises(ValueError, "encoder", word="decoder"):
        build(decoder=conditional().decoder)
    with raises(ValueError, "encoder", word="decoder"):
        build(encoder=nn.Identity(), decoder=conditional().decoder)


class Extreme(nn.Module):
    """Gives one mean and one log-variance for every latent."""

    def __init__(self, log_variance: float) -> None:
        super().__init__()
        self.condition = Unconditional()
        self.moments = nn.Parameter(torch.tensor([0.5, log_variance])[:, None].repeat(1, 5))

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.moments.expand(len(image), 2, 5)


@pytest.mark.parametrize("log_variance", [-1e20, -100.0, 100.0, 1e20])
def test_extreme_log_variances_cost_finitely_and_find_their_way_back(log_variance):
    vae = build(encoder=Extreme(log_variance))
    used = vae._moments({"image": real_images()})[1]
    assert used.unique().tolist() == [-30.0 if log_variance < 0 else 20.0]
    loss, _ = vae._loss({"image": real_images()})
    loss.backward()
    gradient = vae.encoder.moments.grad
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[1].sign() == math.copysign(1, log_variance)).all()  # a descent leads back
