"""VAE-GAN: the terms by hand, and which network each one's gradient reaches."""

from __future__ import annotations

import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.losses.adversarial import AdversarialLoss, relativistic_discriminator_loss, relativistic_generator_loss
from genimg.losses.elbo import ELBO
from genimg.losses.likelihoods import Gaussian
from genimg.methods.vae import VAE
from genimg.methods.vae_gan import VAEGAN
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.conv_autoencoder import Decoder, Encoder
from genimg.networks.stochastic_layers import StochasticLayer
from genimg.training.device import Precision
from genimg.training.update import Updater
from genimg.types import Progress

RELATIVISTIC = AdversarialLoss(
    discriminator=relativistic_discriminator_loss, generator=relativistic_generator_loss, relativistic=True
)
GAUSSIAN = Gaussian(scale=0.5, learnt=False)
Z = 3


class Shift(nn.Module):
    """A perceptual distance with a weight, which is nothing but the mean difference."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, output, target):
        return self.weight * (output - target).mean()


def build(*, num_classes=0, num_samples=1, above=(), cls=VAEGAN, **changes):
    torch.manual_seed(0)

    def condition():
        return OneHot(num_classes=num_classes) if num_classes else Unconditional()

    sizes = {"image_size": 16, "channels": 1, "latent_dim": Z, "width": 4}
    loss = ELBO(
        likelihood=GAUSSIAN, num_samples=num_samples, kl_weight=1.0, warm_up=0, free_bits=0.0, capacity=None, capacity_growth=0
    )
    settings = {
        "encoder": Encoder(**sizes, condition=condition(), moments=2),
        "decoder": Decoder(**sizes, condition=condition(), likelihood=GAUSSIAN),
        "loss": loss, "latent_dim": Z, "perceptual": None,
        "hierarchy": [StochasticLayer(below=Z, latent_dim=dim, widths=[4], activation="tanh") for dim in above],
    }  # fmt: skip
    if cls is VAEGAN:
        head = {"head": "concat", "num_classes": num_classes} if num_classes else {}
        settings |= {"discriminator": tiny.discriminator(**head), "adversarial": tiny.NONSATURATING,
                     "adversarial_weight": 3.0, "similarity_weight": 5.0}  # fmt: skip
    return cls(**(settings | changes))


def batch(num_classes=0):
    image = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"image": image} | ({"label": torch.arange(4) % num_classes} if num_classes else {})


def loss_of(method, data, seed=7):
    torch.manual_seed(seed)
    return method._loss(data)


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return [each for each in found if each is not None and each.abs().max() > 0]


def test_the_loss_is_the_bound_and_its_terms_by_hand():
    method, plain = build().eval(), build(cls=VAE).eval()
    data = batch()
    loss, metrics = loss_of(method, data)
    bound, logged = loss_of(plain, data)
    for name, value in logged.items():
        if name != "loss/total":
            assert torch.equal(metrics[name], value)
    torch.manual_seed(7)
    noise, drawn = torch.randn(4, Z), torch.randn(4, Z)
    none = tiny.no_condition(4)
    with torch.no_grad():
        mean, log_variance = method.encoder(data["image"], none).unbind(1)
        made = [method.decoder(z, none).tanh() for z in (mean + (0.5 * log_variance).exp() * noise, drawn)]
        logits = [method.discriminator(each, none).logits for each in made]
        generator_adversarial_loss = sum(nn.functional.softplus(-each).mean() for each in logits) / 2
        features = [method.discriminator.features(each) for each in (data["image"], made[0])]
        difference = (features[0] - features[1]).square().mean()
    assert metrics["loss/adversarial"].item() == pytest.approx(generator_adversarial_loss.item(), rel=1e-5)
    assert metrics["loss/similarity"].item() == pytest.approx(difference.item(), rel=1e-5)
    assert loss.item() == pytest.approx((bound + 3 * generator_adversarial_loss + 5 * difference).item(), rel=1e-6)


def test_the_adversarial_gradient_is_the_decoders_and_the_similaritys_the_encoders_too():
    data = batch()
    for weights, reached in (
        ({"adversarial_weight": 1e3, "similarity_weight": 0.0}, False),
        ({"adversarial_weight": 1e-9, "similarity_weight": 1e4}, True),
    ):
        one, other = build(**weights).eval(), build(similarity_weight=0.0, adversarial_weight=1e-9).eval()
        found = [torch.cat([g.flatten() for g in gradients(loss_of(each, data)[0], each.encoder)]) for each in (one, other)]
        assert torch.allclose(*found, rtol=1e-4, atol=1e-5) != reached
        found = [torch.cat([g.flatten() for g in gradients(loss_of(each, data)[0], each.decoder)]) for each in (one, other)]
        assert not torch.allclose(*found, rtol=1e-4, atol=1e-5)


def test_the_discriminator_learns_from_images_and_both_kinds_of_fakes():
    method, data = build().eval(), batch()
    torch.manual_seed(3)
    loss, metrics = method._discriminator_loss(data)
    assert gradients(loss, method.discriminator)
    assert not gradients(loss, method.encoder)
    assert not gradients(loss, method.decoder)
    torch.manual_seed(3)
    noise, drawn = torch.randn(4, Z), torch.randn(4, Z)
    none = tiny.no_condition(4)
    with torch.no_grad():
        mean, log_variance = method.encoder(data["image"], none).unbind(1)
        fakes = [method.decoder(z, none).tanh() for z in (mean + (0.5 * log_variance).exp() * noise, drawn)]
        real, *made = (method.discriminator(each, none).logits for each in (data["image"], *fakes))
        softplus = nn.functional.softplus
        expected = sum((softplus(-real).mean() + softplus(each).mean()) for each in made) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["logits/sample"].item() == pytest.approx(made[1].mean().item(), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"num_classes": 3}, {"above": (2,)}, {"num_samples": 3}])
def test_a_step_updates_the_discriminator_first_and_every_parameter(settings):
    method = build(**settings)
    groups = method.parameter_groups()
    assert list(groups) == ["discriminator", "autoencoder"]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, method.parameters()))
    optimizers = {name: torch.optim.SGD(parameters, lr=1e-3) for name, parameters in groups.items()}
    updater = Updater(groups, optimizers, precision=Precision("fp32", torch.device("cpu")), max_grad_norm=None)
    before = {name: value.clone() for name, value in method.named_parameters()}
    metrics = method.step([batch(settings.get("num_classes", 0))], Progress(images=0, batch_size=4), updater)
    assert all(torch.isfinite(value) for value in metrics.values())
    same = [name for name, value in method.named_parameters() if torch.equal(value, before[name])]
    assert not [name for name in same if "bias" not in name]
    method.check(batch(settings.get("num_classes", 0)))


def test_a_perceptual_distance_is_added_but_is_no_part_of_the_checkpoint():
    data = batch()
    for cls in (VAE, VAEGAN):
        plain, method = build(cls=cls).eval(), build(cls=cls, perceptual=Shift()).eval()
        assert method.state_dict().keys() == plain.state_dict().keys()
        loss, metrics = loss_of(method, data)
        expected, _ = loss_of(plain, data)
        assert metrics["loss/perceptual"].item() != 0
        assert loss.item() == pytest.approx((expected + metrics["loss/perceptual"]).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial_weight": 0.0}, "adversarial_weight=0.0"),
        ({"similarity_weight": -1.0}, "similarity_weight=-1.0"),
        ({"adversarial": RELATIVISTIC}, "relativistic"),
        ({"discriminator": tiny.discriminator(head="concat", num_classes=3)}, "reads"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, message):
    with raises(ValueError, word=message):
        build(**changes)
