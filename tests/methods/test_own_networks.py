"""Networks that know nothing of genimg: plain modules as parts of its methods."""

from functools import partial

import pytest
import tiny
import torch
from errors import raises
from torch import Tensor, nn

from genimg.data.tasks.degradations import Denoise
from genimg.errors import ConfigError
from genimg.losses.elbo import ELBO
from genimg.losses.likelihoods import Gaussian
from genimg.losses.penalties import R1
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.gan import GAN
from genimg.methods.options import LatentOptions
from genimg.methods.pix2pix import Pix2Pix
from genimg.methods.restoration import Restoration
from genimg.methods.vae import VAE
from genimg.networks.conditioning import OneHot, Unconditional, conditional
from genimg.networks.discriminator import Discriminator, DiscriminatorOutput, as_discriminator_output
from genimg.types import Progress


class Layers(nn.Module):
    """Layers and nothing else."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


class Encoder(nn.Module):
    """Answers a pair, as most VAEs' encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(256, 4), nn.Linear(256, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(image.flatten(1)), self.log_variance(image.flatten(1))


def generator(size: int = 16) -> nn.Module:
    return Layers(nn.Linear(5, size**2), nn.Tanh(), nn.Unflatten(1, (1, size, size)))


def judge(*last: nn.Module) -> nn.Module:
    return Layers(nn.Flatten(), nn.Linear(256, 1), *last)


def decoder(channels: int = 1) -> nn.Module:
    return Layers(nn.Linear(4, channels * 256), nn.Unflatten(1, (channels, 16, 16)))


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Descent:
    """Gradient descent, one group at a time."""

    def __init__(self, method: nn.Module) -> None:
        self.groups = method.parameter_groups()

    def forward(self, group, function, batch):
        return [each | function(each) for each in batch]

    def __call__(self, group, loss, batch):
        value, metrics = loss(batch[0])
        gradients = torch.autograd.grad(value, self.groups[group])
        with torch.no_grad():
            for parameter, gradient in zip(self.groups[group], gradients, strict=True):
                parameter -= 0.1 * gradient
        return metrics


def vae(encoder: nn.Module, decoder: nn.Module) -> VAE:
    loss = ELBO(
        likelihood=Gaussian(scale=0.5, learnt=True),
        num_samples=1,
        kl_weight=1.0,
        warm_up=0,
        free_bits=0.0,
        capacity=None,
        capacity_growth=0,
    )
    return VAE(encoder=encoder, decoder=decoder, loss=loss, latent_dim=4, hierarchy=[])


def reconstruction() -> ReconstructionLoss:
    return ReconstructionLoss(kind="l1", epsilon=None, known_weight=1.0)


@pytest.mark.parametrize("last", [[], [nn.Flatten(0)]], ids=["[N, 1]", "[N]"])
def test_plain_networks_train_and_sample_as_a_gan(last: list[nn.Module]) -> None:
    gan = tiny.gan(
        generator=generator(),
        discriminator=judge(*last),
        penalties={"r1": R1(gamma=1.0, image_size=16, batch_size=4, interval=1)},
    )
    assert gan.batch_keys == ("image",)
    gan.check({"image": images()})
    before = [parameter.clone() for parameter in gan.parameters()]
    metrics = gan.step([{"image": images()}], Progress(images=0, batch_size=4), Descent(gan))
    assert set(metrics) == {"loss/discriminator", "loss/generator", "logits/real", "logits/fake", "penalty/r1"}
    assert not any(torch.equal(old, new) for old, new in zip(before, gan.parameters(), strict=True))
    drawn = gan.draw(range(3), 0)
    assert torch.equal(gan.sample(drawn), gan.generator.network(drawn["latent"]))
    nearer = gan.latent.truncated(drawn["latent"], 0.1)
    assert torch.equal(gan.sample(drawn, LatentOptions(truncation=0.1)), gan.generator.network(nearer))


def test_a_plain_network_is_the_same_with_an_encoder_of_nothing() -> None:
    """In everything that is computed, against a network that is called with a condition."""

    class Reader(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.condition = network, Unconditional()

        def forward(self, values: Tensor, condition: Tensor) -> Tensor:
            return self.network(values)

    found = []
    for wrap in (lambda network: network, Reader):
        torch.manual_seed(0)
        networks = {"generator": wrap(generator()), "discriminator": wrap(judge())}
        gan = GAN(**vars_of(tiny.gan()), **networks)
        torch.manual_seed(1)
        metrics = gan.step([{"image": images()}], Progress(images=0, batch_size=4), Descent(gan))
        found.append([value.item() for value in metrics.values()])
    assert found[0] == found[1]


def vars_of(gan: GAN) -> dict[str, object]:
    """What a GAN was given beside its networks."""
    return {
        "loss": gan.loss, "latent": gan.latent, "penalties": {}, "discriminator_augment": gan.discriminator_augment,
        "auxiliary": None,
        "generator_interval": 1, "generator_batches": 1,
    }  # fmt: skip


def test_conditional_returns_a_network_with_an_encoder_as_it_is() -> None:
    network = tiny.generator()
    assert conditional("generator", network) is network
    with raises(ValueError, "generator", word="function"):
        conditional("generator", images)


@pytest.mark.parametrize(
    ("networks", "key"),
    [
        ({"generator": generator(8)}, "generator"),
        ({"discriminator": Layers(nn.Conv2d(1, 1, 4, stride=4))}, "discriminator"),
        ({"discriminator": Layers(nn.Flatten(), nn.Linear(256, 2))}, "discriminator"),
    ],
)
def test_a_gans_outputs_of_another_shape_are_refused(networks: dict[str, nn.Module], key: str) -> None:
    gan = tiny.gan(**networks)
    with pytest.raises(ConfigError) as caught:
        gan.check({"image": images()})
    assert caught.value.key == key


def test_a_conditioning_that_a_plain_network_cannot_read_is_refused() -> None:
    with raises(ValueError, "generator", word="discriminator"):
        tiny.conditional_gan("projection", generator=generator())
    with raises(ValueError, "discriminator", word="reads"):
        tiny.conditional_gan("projection", discriminator=judge())


def test_discriminator_output_takes_logits_of_any_usual_shape() -> None:
    logits = torch.arange(3.0)
    whole = DiscriminatorOutput(logits, torch.zeros(3, 2))
    assert as_discriminator_output(whole) is whole
    for shape in ((3,), (3, 1), (3, 1, 1, 1)):
        assert torch.equal(as_discriminator_output(logits.reshape(shape)).logits, logits)
    for wrong in (logits.sum(), torch.zeros(3, 2), None):
        with pytest.raises(ConfigError) as caught:
            as_discriminator_output(wrong)  # type: ignore[arg-type]
        assert caught.value.key == "discriminator"


def discriminator_of(features: object, head: str = "none") -> Discriminator:
    condition = Unconditional() if head == "none" else OneHot(num_classes=3)
    return Discriminator(
        features=features, condition=condition, head=head, bias=True, initialisation="default", spectral_norm=False
    )


def test_a_plain_module_with_num_features_is_the_features_of_a_discriminator() -> None:
    class Features(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.num_features = channels * 256

        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1)

    made = partial(Features, channels=1)
    assert discriminator_of(made)(images(), tiny.no_condition(4)).logits.shape == (4,)
    labels = torch.tensor([0, 1, 2, 0])
    assert discriminator_of(made, "projection")(images(), labels).logits.shape == (4,)
    with raises(ValueError, "head=concat"):
        discriminator_of(made, "concat")
    with raises(ValueError, "features", word="num_features"):
        discriminator_of(nn.Flatten)


def test_plain_networks_train_and_sample_as_a_vae() -> None:
    torch.manual_seed(0)
    method = vae(Encoder(), decoder())
    method.check({"image": images()})
    metrics = method.step([{"image": images()}], Progress(images=0, batch_size=4), Descent(method))
    assert metrics["loss/total"].isfinite()
    assert method.sample(method.draw(range(3), 0)).shape == (3, 1, 16, 16)
    assert torch.equal(method.encode({"image": images()}), method.encoder.network(images())[0])
    assert method.reconstruct({"image": images()}).shape == (4, 1, 16, 16)


@pytest.mark.parametrize(
    ("encoder", "wrong", "key"),
    [(Layers(nn.Flatten(), nn.Linear(256, 8)), decoder(), "encoder"), (Encoder(), decoder(3), "decoder")],
)
def test_a_vaes_outputs_of_another_shape_are_refused(encoder: nn.Module, wrong: nn.Module, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vae(encoder, wrong).check({"image": images()})
    assert caught.value.key == key


def translator(channels: int = 1) -> nn.Module:
    return Layers(nn.Conv2d(1, channels, 3, padding=1), nn.Tanh())


TASK = Denoise(noise="gaussian", amount=25, clip=True)


class Patches(nn.Module):
    """Judges an image beside its source, and answers one tensor of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 1, 4, stride=4)

    def forward(self, image: Tensor, source: Tensor) -> Tensor:
        return self.layer(torch.cat([image, source], dim=1))


def test_plain_networks_translate() -> None:
    batch = {"source": images(), "target": images()}
    restoration = Restoration(translator=translator(), loss=reconstruction(), residual=False, task=TASK)
    pix2pix = Pix2Pix(
        translator=translator(), discriminator=Patches(), loss=tiny.NONSATURATING, reconstruction=reconstruction(),
        reconstruction_weight=1.0, sampled_mode="eval", task=TASK,
    )  # fmt: skip
    for method in (restoration, pix2pix):
        method.check(batch)
        metrics = method.step([batch], Progress(images=0, batch_size=4), Descent(method))
        assert all(value.isfinite() for value in metrics.values())
        assert method.translate(images()).shape == (4, 1, 16, 16)


def test_a_translators_output_of_another_shape_is_refused() -> None:
    restoration = Restoration(translator=translator(3), loss=reconstruction(), residual=False, task=TASK)
    with pytest.raises(ConfigError) as caught:
        restoration.check({"source": images(), "target": images()})
    assert caught.value.key == "translator"
