import pytest
import torch
from torch import nn

from genimg.interfaces import Progress
from genimg.losses.elbo import ELBO, Bernoulli, Gaussian
from genimg.methods.vae import VAE
from genimg.networks.conv_autoencoder import Decoder, Encoder

LIKELIHOODS = [Bernoulli(), Gaussian(scale=0.5)]


def build(likelihood=LIKELIHOODS[0], *, kl_weight: float = 1.0, **networks: nn.Module) -> VAE:
    torch.manual_seed(0)
    settings = {"image_size": 16, "channels": 1, "latent_dim": 5, "width": 4}
    defaults = {"encoder": Encoder(**settings), "decoder": Decoder(**settings)}
    return VAE(**(defaults | networks), loss=ELBO(likelihood=likelihood, kl_weight=kl_weight), latent_dim=5)


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
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run_step(vae: VAE):
    update = RecordingUpdate()
    metrics = vae.step([{"image": real_images()}], Progress(images=0, batch_size=4), update)
    return metrics, update


def test_a_step_is_one_update_of_the_autoencoder():
    _, update = run_step(build())
    assert update.calls == ["autoencoder"]


def test_the_loss_is_the_bound_at_one_reparametrised_sample():
    vae = build(kl_weight=2.0).eval()
    torch.manual_seed(7)
    metrics, update = run_step(vae)
    torch.manual_seed(7)
    noise = torch.randn(4, 5)
    with torch.no_grad():
        mean, log_variance = vae.encoder(real_images())
        logits = vae.decoder(mean + log_variance.exp().sqrt() * noise)
    p = torch.sigmoid(logits.double())
    target = (real_images().double() + 1) / 2
    reconstruction = -(target * p.log() + (1 - target) * (1 - p).log()).sum().item() / 4
    variance = log_variance.double().exp()
    kl = 0.5 * (mean.double() ** 2 + variance - 1 - variance.log()).sum().item() / 4
    assert update.losses[0].item() == pytest.approx(reconstruction + 2 * kl, rel=1e-5)
    assert metrics["loss/total"].item() == pytest.approx(reconstruction + 2 * kl, rel=1e-5)
    assert metrics["loss/reconstruction_nats"].item() == pytest.approx(reconstruction, rel=1e-5)
    assert metrics["loss/kl_nats"].item() == pytest.approx(kl, rel=1e-4)
    assert metrics["loss/elbo_nats"].item() == pytest.approx(-(reconstruction + kl), rel=1e-5)


def test_the_noise_of_the_latent_has_the_encoders_standard_deviation():
    class FixedEncoder(nn.Module):
        def forward(self, image):
            return torch.full((len(image), 5), 3.0), torch.full((len(image), 5), 2.0).log() * 2  # N(3, 2^2)

    class KeepLatent(nn.Module):
        def forward(self, latent):
            self.latent = latent
            return latent.new_zeros(len(latent), 1, 16, 16)

    vae = build(encoder=FixedEncoder(), decoder=KeepLatent())
    vae.step([{"image": torch.zeros(4000, 1, 16, 16)}], Progress(images=0, batch_size=4000), RecordingUpdate())
    latent = vae.decoder.latent
    # Five standard errors of 20,000 numbers.
    assert latent.mean().item() == pytest.approx(3.0, abs=5 * 2 / 20_000**0.5)
    assert latent.std().item() == pytest.approx(2.0, abs=5 * 2 / 40_000**0.5)


def test_the_loss_reaches_every_parameter():
    vae = build()
    _, update = run_step(vae)
    update.losses[0].backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_metrics_are_detached_scalars():
    metrics, _ = run_step(build())
    names = {"total", "reconstruction_nats", "kl_nats", "elbo_nats", "bits_per_dim"}
    assert set(metrics) == {f"loss/{name}" for name in names}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_parameter_groups_cover_every_parameter_once():
    vae = build()
    groups = vae.parameter_groups()
    assert list(groups) == ["autoencoder"]
    assert sorted(map(id, groups["autoencoder"])) == sorted(map(id, vae.parameters()))


def test_drawn_latents_depend_on_seed_and_index_alone():
    vae = build()
    drawn = vae.draw(range(6), 3)["latent"]
    assert drawn.shape == (6, 5)
    assert torch.equal(vae.draw([4, 1], 3)["latent"], drawn[[4, 1]])
    assert not torch.equal(vae.draw(range(6), 4)["latent"], drawn)


@pytest.mark.parametrize(
    ("likelihood", "expected"), [(LIKELIHOODS[0], lambda x: 2 * x.sigmoid() - 1), (LIKELIHOODS[1], torch.tanh)]
)
def test_samples_are_the_likelihoods_mean_in_evaluation_mode(likelihood, expected):
    vae = build(likelihood)
    drawn = vae.draw(range(6), 3)
    samples = vae.sample(drawn)
    assert not samples.requires_grad
    with torch.no_grad():
        output = vae.eval().decoder(drawn["latent"])
    assert torch.allclose(samples, expected(output), rtol=0, atol=1e-6)
    assert samples.abs().max() <= 1


def test_a_sample_does_not_depend_on_the_batch_that_it_is_drawn_in():
    vae = build()
    whole = vae.sample(vae.draw(range(6), 3))
    parts = torch.cat([vae.sample(vae.draw([index], 3)) for index in range(6)])
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)


def test_reconstructions_decode_the_posterior_mean_and_repeat():
    vae = build()
    reconstruction = vae.reconstruct(real_images())
    assert torch.equal(vae.reconstruct(real_images()), reconstruction)
    with torch.no_grad():
        vae.eval()
        expected = 2 * vae.decoder(vae.encoder(real_images())[0]).sigmoid() - 1
    assert torch.allclose(reconstruction, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_keeps_the_mode_and_the_batch_norm_statistics(training):
    vae = build().train(training)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.sample(vae.draw(range(4), 0))
    vae.reconstruct(real_images())
    assert all(module.training == training for module in vae.modules())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_the_mode_is_restored_after_an_error():
    vae = build().train()
    with pytest.raises(RuntimeError):
        vae.sample({"latent": torch.zeros(2, 99)})
    assert vae.training
    assert vae.decoder.training


def test_preview_shows_samples_and_inputs_beside_their_reconstructions():
    vae = build()
    drawn = vae.draw(range(3), 0)
    preview = vae.preview({"image": real_images()}, drawn)
    assert torch.equal(preview["samples"], vae.sample(drawn))
    assert torch.equal(preview["reconstructions"][0::2], real_images())
    assert torch.equal(preview["reconstructions"][1::2], vae.reconstruct(real_images()))


def test_check_passes_for_images_that_fit_and_keeps_the_state():
    vae = build()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.check({"image": real_images()})
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_check_shows_a_shape_that_does_not_fit():
    with pytest.raises(RuntimeError, match="channels"):
        build().check({"image": torch.zeros(4, 3, 16, 16)})
    decoder = Decoder(image_size=32, channels=1, latent_dim=5, width=4)
    with pytest.raises(ValueError, match="size"):
        build(decoder=decoder).check({"image": real_images()})
