"""The path length of generators that are linear, in closed form."""

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.evaluation.path_length import PathLengthEvaluator, between, face_of, trimmed_mean
from genimg.losses.image_distance import ImageDistance
from genimg.methods.latent import Uniform
from genimg.utils.rng import Stream, uniform

SHAPE = (1, 16, 16)


class SquaredDistance(ImageDistance):
    """The mean square of differences."""

    name = "squares"

    def forward(self, images, targets):
        return (images - targets).square().flatten(1).mean(dim=1)

    def describe(self):
        return {"distance": self.name}


class LinearGenerator(nn.Module):
    """An image is a matrix times the latent."""

    latent_dim = 5

    def __init__(self):
        super().__init__()
        self.condition = tiny.Unconditional()
        self.matrix = nn.Parameter(torch.randn(16 * 16, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, latent, condition):
        return (latent @ self.matrix.t()).view(-1, *SHAPE)


class LinearStyles(LinearGenerator):
    """With two layers, each of which has the latent times 3 as its style."""

    def map_latents(self, latent, condition, truncation=1.0):
        return (3.0 * latent)[:, None].expand(-1, 2, -1)

    def synthesize(self, styles, noise_key=None, noise_strength=1.0):
        return (styles.mean(dim=1) @ self.matrix.t()).view(-1, *SHAPE)

    def forward(self, latent, condition):
        return self.synthesize(self.map_latents(latent, condition))


def evaluator(**changes):
    settings = {
        "distance": SquaredDistance(), "num_images": 40, "batch_size": 16, "seed": 3, "space": None, "sampling": "end",
        "epsilon": 1e-2, "crop": False,
    }  # fmt: skip
    return PathLengthEvaluator(**(settings | changes))


def ways(gan, count=40):
    latents = gan.latent.at_indices(range(2 * count), 3).double().numpy()
    return latents[::2], latents[1::2]


def expected(matrix, velocities):
    """The mean of |A v|^2 over pixels, without the lengths outside of the percentiles."""
    lengths = ((velocities @ matrix.detach().double().numpy().T) ** 2).mean(axis=1)
    low, high = np.percentile(lengths, 1, method="lower"), np.percentile(lengths, 99, method="higher")
    return lengths[(lengths >= low) & (lengths <= high)].mean()


def measured(gan, **changes):
    (value,) = evaluator(**changes).evaluate(gan, None, torch.device("cpu")).values.values()
    return value


@pytest.mark.parametrize("sampling", ["end", "full"])
def test_straight_ways_in_w_through_a_linear_generator(sampling):
    gan = tiny.gan(generator=LinearStyles())
    start, end = ways(gan)
    assert measured(gan, sampling=sampling) == pytest.approx(expected(gan.generator.matrix, 3.0 * (end - start)), rel=1e-3)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_great_circles_in_z_through_a_linear_generator(epsilon):
    gan = tiny.gan(generator=LinearGenerator())
    start, end = ways(gan)
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (start, end))
    angle = np.arccos((one * other).sum(axis=1, keepdims=True))
    for sampling in ("end", "full"):
        t = 0.0 if sampling == "end" else uniform(3, Stream.PATH_POSITION, np.arange(40))[:, None]
        at, after = ((np.sin((1 - s) * angle) * start + np.sin(s * angle) * end) / np.sin(angle) for s in (t, t + epsilon))
        value = measured(gan, sampling=sampling, epsilon=epsilon)
        assert value == pytest.approx(expected(gan.generator.matrix, (after - at) / epsilon), rel=1e-2)


def test_ways_between_uniform_latents_are_straight():
    gan = tiny.gan(generator=LinearGenerator(), latent=Uniform(dim=5))
    start, end = ways(gan)
    assert measured(gan) == pytest.approx(expected(gan.generator.matrix, end - start), rel=1e-3)


def test_a_way_begins_and_ends_at_its_latents():
    a, b = torch.randn(2, 7, 5)
    for way in ("linear", "spherical"):
        torch.testing.assert_close(between(a, b, torch.zeros(7), way), a)
        torch.testing.assert_close(between(a, b, torch.ones(7), way), b)
    norms = between(a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), torch.rand(7), "spherical").norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(7))


def test_lengths_outside_the_percentiles_are_discarded():
    lengths = np.arange(200.0)
    lengths[7], lengths[50] = 1e9, -1e9
    ordered = np.sort(lengths)
    assert trimmed_mean(lengths) == ordered[1:199].mean()
    assert trimmed_mean(np.array([4.0])) == 4.0


def test_the_crop_is_where_a_face_is():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    assert face_of(image)[0, 0].tolist() == [list(range(8 * row + 2, 8 * row + 6)) for row in range(3, 7)]


def test_names_tell_what_was_measured_and_batches_do_not_matter():
    gan = tiny.style_gan(num_classes=3).train()
    results = [evaluator(batch_size=size, crop=size == 7).evaluate(gan, None, torch.device("cpu")) for size in (7, 40)]
    assert [list(each.values) for each in results] == [["path_length40_w_end_crop_squares"], ["path_length40_w_end_squares"]]
    assert gan.training
    one, other = (measured(gan, batch_size=size) for size in (7, 40))
    assert one == pytest.approx(other, rel=1e-2)  # rounding counts, because the differences of images are small
    described = results[0].provenance["path_length"]
    assert {key: described[key] for key in ("space", "epsilon", "way", "distance", "crop")} == {
        "space": "w", "epsilon": 1e-2, "way": "linear", "distance": "squares", "crop": True,
    }  # fmt: skip


def test_only_lpips_of_vgg_is_called_ppl():
    distance = SquaredDistance()
    distance.name = "lpips_vgg"
    gan = tiny.gan(generator=LinearGenerator())
    assert list(evaluator(distance=distance, num_images=2000).evaluate(gan, None, torch.device("cpu")).values) == [
        "ppl2k_z_end"
    ]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_images", 0), ("batch_size", 0), ("space", "w+"), ("sampling", "middle"), ("epsilon", 0.0), ("epsilon", 1.0)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with raises(ValueError, setting):
        evaluator(**{setting: value})


def test_models_without_such_latents_are_refused():
    with raises(ConfigError, "space", word="styles"):
        evaluator(space="w").check(tiny.gan())
    with raises(ConfigError, word="GAN"):
        evaluator().check(nn.Identity())
    assert evaluator().primary is None
