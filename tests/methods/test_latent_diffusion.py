import pytest
import torch
from errors import raises
from test_diffusion import EDM, LINE, PLAIN, Denoiser
from torch import nn

from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.errors import ConfigError
from genimg.methods.capabilities import Denoises, Exports, Generates, HasLikelihood, MeasuresData, SamplesNearby, offers
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.latent_diffusion import LatentDiffusion
from genimg.methods.latent_space import CodeSpace, FrozenAutoencoder, KLSpace
from genimg.methods.options import OtherModel
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.vector_quantizer import VectorQuantizer
from genimg.training.ema import Exponential, WeightAverage


class Shuffle(nn.Module):
    """Exact latents of 3 channels at half the size, scaled, and as many log-variances."""

    def forward(self, image):
        patches = nn.functional.pixel_unshuffle(image, 2)[:, ::4] * torch.tensor([2.0, 3.0, 4.0])[:, None, None] + 1.0
        return torch.cat([patches, torch.zeros_like(patches)], dim=1)


class Unshuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0])[:, None, None])
        self.dropout = nn.Dropout(0.5)

    def forward(self, latent):
        return self.dropout(nn.functional.interpolate((latent - 1.0) / self.scale, scale_factor=2))


def frozen() -> FrozenAutoencoder:
    space = KLSpace(encoder=Shuffle(), decoder=Unshuffle())
    return FrozenAutoencoder(space=space, run="run", images=1, sha256="0", shape=[3, 16, 16])


def build(num_classes: int = 0, **changes) -> LatentDiffusion:
    torch.manual_seed(0)

    def network(channels, image_size):
        assert (channels, image_size) == (3, [8, 8])
        return Denoiser(OneHot(num_classes=num_classes) if num_classes else Unconditional())

    settings = {
        "autoencoder": frozen(), "network": network, "path": LINE, "prediction": "velocity", "times": Uniform(), "loss": PLAIN,
        "sampler": DiffusionOptions(sampler="heun", steps=4), "sigma_data": None, "condition_dropout": 0.1, "image_size": 16,
        "channels": 3,
    }  # fmt: skip
    method = LatentDiffusion(**(settings | changes))
    method.set_data_statistics(images(32))
    return method


def images(count: int = 4) -> torch.Tensor:
    small = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return nn.functional.interpolate(small, scale_factor=2)


def test_latents_have_mean_0_and_deviation_1_in_each_channel():
    method = build()
    latents = method._encoded({"image": images(32)})
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(method._decoded(latents), images(32), atol=1e-5, rtol=0.0)
    assert {"latent_mean", "latent_std", "autoencoder.space.decoder.scale"} <= method.state_dict().keys()


def test_the_autoencoder_is_never_trained_or_averaged():
    method = build()
    method.train()
    assert not any(module.training for module in method.autoencoder.modules())
    assert not any(parameter.requires_grad for parameter in method.autoencoder.parameters())
    trained = {id(parameter) for parameter in method.parameter_groups()["denoiser"]}
    assert not trained & {id(parameter) for parameter in method.autoencoder.parameters()}
    average = WeightAverage(method, Exponential(half_life=10, ramp_up=None))
    assert not any(name.startswith("autoencoder") for name in average.state_dict())
    drawn = average.method.draw(range(2), 0)
    assert torch.equal(average.method.sample(drawn), method.sample(drawn))


def test_images_are_sampled_with_guidance_and_around_an_image():
    method = build(num_classes=3)
    drawn = method.draw(range(3), 7)
    assert drawn["latent"].shape == (3, 3 * 8 * 8)
    sampled = method.sample(drawn, DiffusionOptions(sampler="euler", steps=3, guidance=2.0))
    assert sampled.shape == (3, 3, 16, 16)
    assert sampled.abs().max() <= 1.0
    one = method.sample(
        {key: value[1:2] for key, value in drawn.items()}, DiffusionOptions(sampler="euler", steps=3, guidance=2.0)
    )
    torch.testing.assert_close(sampled[1:2], one)
    near = method.perturb(method.locate(images(1), drawn), drawn, 0.0)
    found = method.sample(near, DiffusionOptions(sampler="heun", steps=100))
    torch.testing.assert_close(found[:1], images(1), atol=0.02, rtol=0.0)
    shown = method.preview({"image": images(2), "label": torch.zeros(2, dtype=torch.int64)}, drawn)
    assert shown["denoised"].shape[2:] == (3, 16, 16)


def test_its_capabilities_are_those_of_diffusion_without_the_likelihood():
    method = build()
    assert all(isinstance(method, each) for each in (Generates, Denoises, Exports, MeasuresData, SamplesNearby))
    assert not isinstance(method, HasLikelihood)
    assert not offers(LatentDiffusion, HasLikelihood)


def test_sigma_data_is_that_of_the_standardised_latents():
    method = build(sigma_data="auto", prediction="edm", path=EDM, times=LogNormalSigma(mean=-1.2, std=1.2))
    assert method.denoiser.sigma_data.item() == pytest.approx(1.0, abs=1e-5)


def test_a_guide_with_other_latents_is_refused():
    def guided(method: LatentDiffusion) -> DiffusionOptions:
        return DiffusionOptions(guidance=2.0, steps=2, autoguidance=OtherModel(method, "weaker", {}))

    method = build()
    method.check_options(guided(build()))
    other = build()
    other.latent_std.mul_(2.0)
    foreign = build()
    foreign.autoencoder.sha256 = "1"
    for guide in (other, foreign):
        with raises(ConfigError, word="latents"):
            method.check_options(guided(guide))


def test_errors_name_the_parameter():
    with raises(ConfigError, "autoencoder", word="3x16x16"):
        build(image_size=32)
    with raises(ConfigError, "sampler.clip"):
        build(sampler=DiffusionOptions(sampler="euler", steps=4, clip=True))


def test_vectors_of_a_vq_vae_are_decoded_as_their_codes():
    quantizer = VectorQuantizer(num_codes=4, dim=2, decay=None, restart_below=None)
    space = CodeSpace(encoder=nn.Conv2d(3, 2, 2, stride=2), decoder=nn.ConvTranspose2d(2, 3, 2, stride=2), quantizer=quantizer)
    autoencoder = FrozenAutoencoder(space=space, run="run", images=1, sha256="0", shape=[3, 8, 8])
    assert autoencoder.latent_shape == (2, 4, 4)
    latent = autoencoder.encode(torch.randn(1, 3, 8, 8))
    codes = quantizer.lookup(quantizer.nearest(latent))
    assert torch.equal(autoencoder.decode(latent), space.decoder(codes))
    assert torch.equal(autoencoder.decode(latent), autoencoder.decode(codes))
