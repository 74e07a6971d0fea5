"""WAE and RAE: steps against the losses by hand, what is sampled, and that a resumed training is the same."""

import copy

import pytest
import tiny
import torch
from errors import raises
from torch import nn
from torch.nn.utils import parametrize

from genimg.errors import ConfigError
from genimg.losses.likelihoods import Bernoulli, Gaussian
from genimg.losses.mmd import MMDLoss, unbiased_mmd
from genimg.losses.regularised_autoencoder import RegularisedLoss
from genimg.methods.options import LatentOptions
from genimg.methods.wae_rae import DeterministicAutoencoder
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.conv_autoencoder import Decoder, Encoder
from genimg.training.device import Precision
from genimg.training.update import Updater, split
from genimg.types import Progress

SQUARED = Gaussian(scale=0.5**0.5, learnt=False)
KINDS = ("none", "l2", "gradient_penalty", "spectral_norm", "mmd")
Z = 3


def make_loss(kind: str, likelihood=SQUARED):
    if kind == "mmd":
        return MMDLoss(likelihood=likelihood, mmd_weight=10.0)
    weight = 0.01 if kind in ("l2", "gradient_penalty") else None
    return RegularisedLoss(likelihood=likelihood, latent_weight=0.2, regulariser=kind, regulariser_weight=weight)


def build(kind: str = "l2", *, num_classes: int = 0, likelihood=SQUARED, **changes) -> DeterministicAutoencoder:
    torch.manual_seed(0)

    def condition():
        return OneHot(num_classes=num_classes) if num_classes else Unconditional()

    sizes = {"image_size": 16, "channels": 1, "latent_dim": Z, "width": 4}
    networks: dict[str, nn.Module] = {
        "encoder": Encoder(**sizes, condition=condition(), moments=1),
        "decoder": Decoder(**sizes, condition=condition(), likelihood=likelihood),
    }
    settings = {"loss": make_loss(kind, likelihood), "latent_dim": Z, "num_components": 2, "num_latents": 24}
    return DeterministicAutoencoder(**(networks | settings | changes))


def data(count: int = 8, num_classes: int = 0) -> dict[str, torch.Tensor]:
    image = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"image": image} | ({"label": torch.arange(count) % num_classes} if num_classes else {})


def updater(method: DeterministicAutoencoder, *, precision: str = "fp32", **settings) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: torch.optim.SGD(parameters, **({"lr": 1e-3} | settings)) for name, parameters in groups.items()}
    return Updater(groups, optimizers, precision=Precision(precision, torch.device("cpu")), max_grad_norm=None)


def train(method: DeterministicAutoencoder, steps: int, start: int = 0, **batch) -> None:
    update = updater(method)
    for step in range(start, start + steps):
        torch.manual_seed(step)
        method.step([data(**batch)], Progress(step * 8, 8), update)


# Steps


def test_a_step_of_the_rae_is_its_loss_by_hand():
    method, batch = build("l2"), data()
    plain = copy.deepcopy(method)
    metrics = method.step([batch], Progress(0, 8), updater(method, lr=0.0))
    nothing = torch.empty(8, 0)
    latent = plain.encoder(batch["image"], nothing)[:, 0]
    squared = (plain.decoder(latent, nothing).tanh() - batch["image"]).square().sum() / 8
    weights = sum(p.square().sum() for p in plain.decoder.parameters() if p.ndim > 1)
    expected = squared + 128 * torch.tensor(torch.pi).log() + 0.1 * latent.square().sum() / 8 + 0.01 * weights
    assert metrics["loss/total"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["loss/squared_error"].item() == pytest.approx(squared.item(), rel=1e-5)
    assert metrics["loss/l2"].item() == pytest.approx(weights.item(), rel=1e-5)
    assert torch.allclose(method.density.latents[:8], latent, atol=1e-6)


def test_a_step_of_the_wae_is_its_loss_by_hand():
    method, batch = build("mmd"), data()
    plain = copy.deepcopy(method)
    torch.manual_seed(5)
    metrics = method.step([batch], Progress(0, 8), updater(method, lr=0.0))
    latent = plain.encoder(batch["image"], torch.empty(8, 0))[:, 0]
    torch.manual_seed(5)
    mmd = unbiased_mmd(torch.randn(8, Z), latent)
    assert metrics["loss/mmd"].item() == pytest.approx(mmd.item(), rel=1e-4)
    whole = metrics["loss/reconstruction_nats"] + 10 * mmd
    assert metrics["loss/total"].item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_reaches_every_parameter_and_gives_detached_numbers(kind, precision):
    method = build(kind)
    metrics = method.step([data()], Progress(0, 8), updater(method, precision=precision, lr=0.0))
    assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in metrics.values())
    assert {"loss/total", "loss/reconstruction_nats", "loss/squared_error"} < set(metrics)
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name


def test_microbatches_leave_their_latents_in_order_whatever_their_number():
    whole, halved = build().eval(), build().eval()  # batch norm sees microbatches apart
    for method, count in ((whole, 1), (halved, 4)):
        method.step(split(data(), count), Progress(0, 8), updater(method, lr=0.0))
    assert torch.allclose(whole.density.latents, halved.density.latents, atol=1e-6)
    assert whole.density.seen.item() == halved.density.seen.item() == 8


def test_accumulated_gradients_are_those_of_the_whole_batch():
    gradients = []
    for count in (1, 4):
        method = build("l2").eval()
        method.step(split(data(), count), Progress(0, 8), updater(method, lr=0.0))
        gradients.append([parameter.grad for parameter in method.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["l2", "mmd", "spectral_norm"])
def test_a_resumed_training_is_the_same_bit_for_bit(kind):
    straight, stopped = build(kind), build(kind)
    train(straight, 6)
    train(stopped, 3)
    stopped.before_sampling()  # as a preview does
    resumed = build(kind)
    resumed.load_state_dict(stopped.state_dict())
    train(resumed, 3, start=3)
    for method in (straight, resumed):
        method.before_sampling()
    state = resumed.state_dict()
    for name, value in straight.state_dict().items():
        assert torch.equal(state[name], value), name


def test_the_density_changes_nothing_about_the_training():
    methods = [build(num_components=count) for count in (0, 1, 3)]
    for method in methods:
        train(method, 3)
    for parameters in zip(*(method.parameters() for method in methods), strict=True):
        assert torch.equal(parameters[0], parameters[1])
        assert torch.equal(parameters[0], parameters[2])


# Sampling


def trained(**changes) -> DeterministicAutoencoder:
    method = build(**changes)
    train(method, 4, num_classes=changes.get("num_classes", 0))
    method.before_sampling()
    return method


@pytest.mark.parametrize(
    ("likelihood", "expected"), [(SQUARED, torch.tanh), (Bernoulli(binarisation="none"), lambda x: 2 * x.sigmoid() - 1)]
)
def test_samples_decode_latents_of_the_density_in_evaluation_mode(likelihood, expected):
    method = trained(likelihood=likelihood)
    drawn = method.draw(range(6), 3)
    assert torch.equal(drawn["latent"], method.density.at_indices(range(6), 3))
    samples = method.sample(drawn)
    assert method.training
    assert not samples.requires_grad
    with torch.no_grad():
        output = method.eval().decoder(drawn["latent"], torch.empty(6, 0))
    assert torch.allclose(samples, expected(output), rtol=0, atol=1e-6)


def test_samples_are_where_the_images_latents_are():
    """For that the density is there: of 24 latents of 8 images, and not of N(0, I)."""
    method = trained()
    method.density.latents.add_(10.0)
    method.density.seen.add_(1)
    method.before_sampling()
    drawn = method.draw(range(500), 0)["latent"]
    recent = method.density.latents
    assert torch.allclose(drawn.mean(dim=0), recent.mean(dim=0), atol=5 * recent.std().item() / 500**0.5)
    assert torch.allclose(drawn.T.cov(), recent.T.cov(correction=0), rtol=0.3, atol=0.3 * recent.var().item())


def test_before_training_and_with_no_components_latents_are_of_the_prior():
    prior = build(num_components=0)
    train(prior, 2)
    for method in (build(), prior):
        method.before_sampling()
        assert torch.equal(method.draw(range(6), 3)["latent"], build(num_components=0).draw(range(6), 3)["latent"])


def test_reconstructions_decode_the_latent_and_repeat():
    method, batch = trained(), data()
    found = method.reconstruct(batch)
    assert torch.equal(method.reconstruct(batch), found)
    with torch.no_grad():
        method.eval()
        latent = method.encoder(batch["image"], torch.empty(8, 0))[:, 0]
        assert torch.allclose(found, method.decoder(latent, torch.empty(8, 0)).tanh(), atol=1e-6)


def test_nearby_samples_lie_around_an_images_latent():
    method, image = trained(), data(1)["image"]
    drawn = method.draw(range(400), 0)
    still = tiny.nearby(method, image, drawn, 0.0)
    assert torch.allclose(method.sample(still), method.reconstruct({"image": image}).expand(400, -1, -1, -1), atol=1e-5)
    moved = tiny.nearby(method, image, drawn, 0.5)["latent"] - still["latent"]
    assert torch.allclose(moved, 0.5 * (drawn["latent"] - method.density.mean()), atol=1e-5)
    assert moved.std().item() == pytest.approx(0.5 * method.density.latents.std(dim=0).square().mean().sqrt().item(), rel=0.2)


def test_truncated_samples_vary_less():
    method = trained(num_components=1)
    drawn = method.draw(range(200), 0)
    nearer = method.density.truncated(drawn["latent"], 0.3)
    assert nearer.std().item() < 0.5 * drawn["latent"].std().item()
    assert torch.equal(method.sample(drawn, LatentOptions(truncation=0.3)), method.sample(drawn | {"latent": nearer}))


def test_labels_are_read_drawn_and_shown_by_row():
    method = trained(num_classes=3)
    assert method.batch_keys == ("image", "label")
    method.set_condition_bank({"label": torch.arange(method.condition_bank_size) % 3})
    drawn = method.draw(range(12), 0)
    assert set(drawn) == {"latent", "label"}
    one, other = (method.sample(drawn | {"label": torch.full((12,), label)}) for label in (0, 1))
    assert not torch.allclose(one, other)
    batch = data(12, num_classes=3)
    assert not torch.allclose(method.reconstruct(batch), method.reconstruct(batch | {"label": (batch["label"] + 1) % 3}))
    assert method.preview(batch, drawn)["samples"].shape[0] == 3
    near = tiny.nearby(method, batch["image"][:1], drawn | {"label": torch.zeros(12, dtype=torch.int64)}, 0.0)
    assert torch.allclose(method.sample(near)[:1], method.reconstruct(data(1, num_classes=3)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_previews_are_images_and_change_nothing(kind):
    method, batch = trained(kind=kind), data()
    before = copy.deepcopy(method.state_dict())
    random = torch.get_rng_state()
    pictures = method.preview(batch, method.draw(range(5), 0))
    assert pictures["samples"].shape == (5, 1, 16, 16)
    assert pictures["reconstructions"].shape == (16, 1, 16, 16)
    assert torch.equal(pictures["reconstructions"][::2], batch["image"])
    assert torch.allclose(pictures["reconstructions"][1::2], method.reconstruct(batch), atol=1e-6)
    ways = pictures["interpolations"]
    assert ways.shape == (4, 9, 1, 16, 16)
    assert torch.allclose(ways[:, 0], method.reconstruct(batch)[0::2], atol=1e-6)
    assert torch.allclose(ways[:, -1], method.reconstruct(batch)[1::2], atol=1e-6)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in method.state_dict().items():
        assert torch.equal(before[name], value), name


def test_previews_need_no_second_image():
    method = trained()
    pictures = method.preview(data(1), method.draw(range(2), 0))
    assert pictures["interpolations"].shape == (1, 9, 1, 16, 16)


def test_parameter_groups_cover_every_parameter_once():
    method = build(likelihood=Gaussian(scale=0.5, learnt=True))
    (parameters,) = method.parameter_groups().values()
    assert sorted(map(id, parameters)) == sorted(map(id, method.parameters()))
    assert any(parameter is method.loss.likelihood.log_scale for parameter in parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_leaves_everything_as_it_was(kind):
    method = build(kind)
    before = copy.deepcopy(method.state_dict())
    method.check(data(2))
    for name, value in method.state_dict().items():
        assert torch.equal(before[name], value), name


# Errors


def test_an_encoder_of_two_moments_is_refused():
    encoder = Encoder(image_size=16, channels=1, condition=Unconditional(), latent_dim=Z, width=4, moments=2)
    with raises(ConfigError, "encoder", word="moments"):
        build(encoder=encoder).check(data(2))


def test_an_encoder_of_another_size_is_refused():
    encoder = Encoder(image_size=16, channels=1, condition=Unconditional(), latent_dim=Z + 1, width=4, moments=1)
    with raises(ConfigError, "encoder", word="latent_dim"):
        build(encoder=encoder).check(data(2))


def test_a_decoder_of_another_size_is_refused():
    with pytest.raises(ConfigError) as caught:
        build(latent_dim=Z + 1)
    assert caught.value.key == "latent_dim"


def test_networks_must_read_the_same_conditions():
    encoder = Encoder(image_size=16, channels=1, condition=OneHot(num_classes=3), latent_dim=Z, width=4, moments=1)
    with raises(ValueError, "decoder", word="reads"):
        build(encoder=encoder)


def test_spectral_norm_is_on_the_decoder_but_not_on_its_condition():
    decoder = build("spectral_norm", num_classes=3).decoder
    assert parametrize.is_parametrized(decoder.project, "weight")
    assert all(parametrize.is_parametrized(layer) for layer in decoder.layers if isinstance(layer, nn.ConvTranspose2d))
    norm = torch.linalg.matrix_norm(decoder.eval().project.weight, ord=2).item()
    assert norm == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["none", "l2", "gradient_penalty", "mmd"])
def test_the_other_penalties_leave_the_decoder_alone(kind):
    assert not any(parametrize.is_parametrized(layer) for layer in build(kind).modules())


def test_a_checkpoint_holds_the_density_of_its_latents_whenever_samples_were_made():
    seen, unseen = build(), build()
    for step in range(4):
        for method in (seen, unseen):
            train(method, 1, start=step)
        seen.before_sampling()
        for method in (seen, unseen):
            if step == 3:
                method.before_saving()
    for name, value in seen.state_dict().items():
        assert torch.equal(value, unseen.state_dict()[name]), name
    assert seen.density.fitted == seen.density.seen
