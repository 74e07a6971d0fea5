import pytest
import torch
from errors import raises
from torch import nn
from torch.distributions import Normal, kl_divergence

from genimg.losses.adversarial import AdversarialLoss, hinge_discriminator_loss, negated_generator_loss
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.capabilities import Generates, HasLikelihood, Reconstructs
from genimg.methods.kl_autoencoder import Adversary, KLAutoencoder
from genimg.networks.patchgan import PatchDiscriminator
from genimg.training.device import Precision
from genimg.training.update import StepRNG, Updater, split
from genimg.types import Progress

CPU = torch.device("cpu")
HINGE = AdversarialLoss(discriminator=hinge_discriminator_loss, generator=negated_generator_loss)


def discriminator(target_channels: int) -> nn.Module:
    return PatchDiscriminator(
        target_channels=target_channels, source_channels=0, width=4, num_strided=0, num_scales=1, normalisation="none",
        initialisation="normal", spectral_norm=False,
    )  # fmt: skip


def adversary(**changes) -> Adversary:
    settings = {"discriminator": discriminator, "loss": HINGE, "weight": 0.5, "start": 8, "channels": 3}
    return Adversary(**(settings | changes))


def build(**changes) -> KLAutoencoder:
    torch.manual_seed(0)
    settings = {
        "encoder": nn.Sequential(nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 1)),
        "decoder": nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)),
        "loss": ReconstructionLoss(kind="l1", epsilon=None, known_weight=1.0), "kl_weight": 0.1, "adversary": None,
        "image_size": 8, "channels": 3,
    }  # fmt: skip
    return KLAutoencoder(**(settings | changes))


def batch(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1, "noise_key": torch.arange(count) + 5}


def updater(method: KLAutoencoder, microbatches: int = 1) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: torch.optim.Adam(parameters, lr=1e-3) for name, parameters in groups.items()}
    rng = StepRNG(0, microbatches, CPU)
    return Updater(groups, optimizers, precision=Precision("fp32", CPU), max_grad_norm=None, rng=rng)


def test_the_loss_is_the_error_and_the_divergence_per_value_of_the_image():
    method, given = build(), batch()
    made = method._reconstruct(given)
    loss, metrics = method._loss(given | made, adversary=None)
    posterior = Normal(made["mean"].double(), (0.5 * made["log_variance"].double()).exp())
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum() / 4
    error = (made["reconstruction"] - given["image"]).abs().mean()
    assert metrics["loss/kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert loss.item() == pytest.approx((error + 0.1 * kl / 192).item(), rel=1e-5)


def test_the_noise_is_a_function_of_the_key():
    method, given = build(), batch()
    whole, last = method._reconstruct(given), method._reconstruct({key: value[3:] for key, value in given.items()})
    torch.testing.assert_close(whole["reconstruction"][3:], last["reconstruction"])


def test_the_adaptive_weight_makes_both_gradients_of_the_last_layer_equally_long():
    method, given = build(adversary=adversary(weight=1.0)), batch()
    output = method._reconstruct(given)["reconstruction"]
    error, adversarial = method.loss(output, given["image"]), method.adversary.of_autoencoder(output)
    ratio = method._ratio(error, adversarial, output)
    last = method.decoder[-1].weight
    ours, theirs = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, ratio * adversarial))
    assert theirs.item() == pytest.approx((ours * (theirs / ratio) / (theirs / ratio + 1e-4)).item(), rel=1e-4)
    assert method._ratio(error, 0.0 * adversarial, output).item() == pytest.approx(min(ours.item() / 1e-4, 1e4), rel=1e-4)


def test_the_discriminator_is_trained_from_its_start():
    method = build(adversary=adversary())
    update, before = updater(method), [each.clone() for each in method.adversary.parameters()]
    for step, images in enumerate((0, 4)):
        update.begin(step)
        assert not any("discriminator" in name for name in method.step([batch()], Progress(images, 4), update))
    assert all(torch.equal(old, new) for old, new in zip(before, method.adversary.parameters(), strict=True))
    update.begin(2)
    metrics = method.step([batch()], Progress(8, 4), update)
    assert {"loss/discriminator", "loss/adversarial", "loss/adversarial_weight", "grad_norm/discriminator"} <= metrics.keys()
    assert not all(torch.equal(old, new) for old, new in zip(before, method.adversary.parameters(), strict=True))


def test_microbatches_keep_the_gradients():
    results = []
    for count in (1, 2):
        method = build()
        update = updater(method, count)
        update.begin(0)
        method.step(split(batch(), count), Progress(0, 4), update)
        results.append([parameter.grad for parameter in method.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_it_reconstructs_and_does_not_sample():
    method = build()
    assert isinstance(method, Reconstructs)
    assert not isinstance(method, Generates | HasLikelihood)
    latent = method.encode(batch())
    assert latent.shape == (4, 2, 4, 4)
    assert torch.equal(method.reconstruct(batch()), method.decode(latent))
    assert method.preview(batch(), {})["reconstructions"].shape == (8, 3, 8, 8)


def test_errors_name_the_parameter():
    with raises(ValueError, word="kl_weight"):
        build(kl_weight=-1.0)
    with raises(ValueError, word="weight"):
        adversary(weight=0.0)
    with raises(ValueError, word="encoder"):
        build(encoder=nn.Conv2d(3, 3, 4, stride=2, padding=1)).check(batch())
    with raises(ValueError, word="decoder"):
        build(decoder=nn.Conv2d(2, 3, 1)).check(batch())
