import pytest
import tiny

from genimg.methods.base import Method
from genimg.methods.capabilities import (
    CAPABILITIES,
    Denoises,
    Exports,
    Generates,
    HasLikelihood,
    MeasuresData,
    PreparesSaving,
    Reconstructs,
    RegularisesLazily,
    SamplesNearby,
    StartsFromNoise,
    TakesConditions,
    TrainsSharded,
    Translates,
    TranslatesLabels,
    offers,
    require_whole_capabilities,
)
from genimg.methods.consistency import ConsistencyModel
from genimg.methods.cut import CUT
from genimg.methods.cyclegan import CycleGAN
from genimg.methods.diffusion import Diffusion
from genimg.methods.gan import GAN
from genimg.methods.latent_diffusion import LatentDiffusion
from genimg.methods.mean_flow import MeanFlow
from genimg.methods.options import CodeOptions, StyleOptions
from genimg.methods.pix2pix import Pix2Pix
from genimg.methods.reflow import Reflow
from genimg.methods.restoration import Restoration
from genimg.methods.vae import VAE
from genimg.methods.vae_gan import VAEGAN
from genimg.methods.vq_vae import VQVAE
from genimg.methods.wae_rae import DeterministicAutoencoder

_OF_DIFFUSION = {
    Generates, StartsFromNoise, Exports, TakesConditions, SamplesNearby, HasLikelihood, Denoises, MeasuresData,
    TranslatesLabels, TrainsSharded,
}  # fmt: skip
EXPECTED = {
    GAN: {Generates, Exports, TakesConditions, RegularisesLazily},
    Diffusion: _OF_DIFFUSION, Reflow: _OF_DIFFUSION, LatentDiffusion: _OF_DIFFUSION - {StartsFromNoise, HasLikelihood},
    MeanFlow: {Generates, TakesConditions}, ConsistencyModel: {Generates, TakesConditions, MeasuresData, TrainsSharded},
    VAE: {Generates, Exports, TakesConditions, Reconstructs, SamplesNearby, HasLikelihood},
    VAEGAN: {Generates, Exports, TakesConditions, Reconstructs, SamplesNearby, HasLikelihood},
    VQVAE: {Generates, Exports, TakesConditions, Reconstructs},
    DeterministicAutoencoder: {Generates, Exports, TakesConditions, Reconstructs, SamplesNearby, PreparesSaving},
    CycleGAN: {Translates}, CUT: {Translates}, Pix2Pix: {Translates}, Restoration: {Translates, TrainsSharded},
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_class_offers_what_its_family_can_do_and_nothing_else(kind):
    assert {capability for capability in CAPABILITIES if offers(kind, capability)} == EXPECTED[kind]
    require_whole_capabilities(kind)


def test_an_instance_has_the_capabilities_of_its_class():
    gan = tiny.gan()
    assert {capability for capability in CAPABILITIES if isinstance(gan, capability)} == EXPECTED[GAN]


def test_a_method_itself_needs_nine_members():
    members = [name for name in (*vars(Method), *Method.__annotations__) if not name.startswith("_")]
    assert len(set(members)) <= 9


class Whole:
    sampling_options = CodeOptions()

    def before_sampling(self): ...
    def draw(self, indices, seed): ...
    def check_options(self, options): ...
    def sample(self, batch, options=None): ...


@pytest.mark.parametrize("name", ["before_sampling", "draw", "check_options", "sampling_options"])
def test_a_member_that_a_capability_lacks_is_named(name):
    require_whole_capabilities(Whole)
    partial = type("Partial", (), {key: value for key, value in vars(Whole).items() if key != name and key[:2] != "__"})
    with pytest.raises(TypeError, match=name):
        require_whole_capabilities(partial)
    require_whole_capabilities(type("Trains", (), {}))  # a method that only trains


@pytest.mark.parametrize("noise", ["loud", ""])
def test_options_check_their_values(noise):
    with pytest.raises(ValueError, match=r"^noise="):
        StyleOptions(noise=noise)
