"""Which translations between classes are possible, and what the translator makes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from errors import raises

from genimg.data.decode import PixelFormat
from genimg.data.facts import DataFacts
from genimg.errors import ConfigError
from genimg.inference.translate_labels import BetweenLabels, between_labels, image_translator
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.types import Batch
from genimg.utils.images import to_float

NAMES = ("horse", "zebra", "cow")
FACTS, DATA = DataFacts(image_size=(4, 6), channels=3, num_classes=3), {"fit": "crop"}


class Painter:
    """Paints images of a class in its grey; what it was asked stays in ``asked``."""

    batch_keys = ("image", "label")
    shape = (3, 4, 6)
    num_classes = 3
    sampling_options = DiffusionOptions(sampler="ancestral", steps=7)
    label_translation_options = DiffusionOptions(sampler="heun", steps=50)
    is_prepared = False

    def before_sampling(self) -> None:
        self.is_prepared = True

    def draw(self, indices: Sequence[int], seed: int) -> Batch: ...
    def sample(self, batch: Batch, options: Any = None) -> torch.Tensor: ...
    def check_options(self, options: DiffusionOptions) -> None:
        if options.steps > 99:
            raise ConfigError(f"steps={options.steps} is too many")

    def translate_labels(self, image: torch.Tensor, source: int, target: int, options: Any = None) -> torch.Tensor:
        self.asked = (image, source, target, options)
        return image + 0.5 * (target - source)


@pytest.mark.parametrize(("source", "target"), [("horse", "cow"), (0, 2), ("index:0", "cow")])
def test_images_are_resized_and_go_from_class_to_class(source: object, target: object) -> None:
    method = between_labels(Painter(), NAMES, source, target, {"steps": 9})
    assert isinstance(method, BetweenLabels)
    translator = image_translator(
        method, FACTS, DATA, torch.device("cpu"), direction=None, tile=None, overlap=0, batch_size=2, seed=0
    )
    given = torch.full((2, 3, 8, 9), 60, dtype=torch.uint8)
    given[0, :, :1] = 255  # beyond the middle six rows, which have the model's aspect ratio
    sources, (results,) = translator(given, None, range(2))
    image, start, end, options = method.method.asked
    assert (start, end, options.sampler, options.steps) == (0, 2, "heun", 9)
    assert sources.shape == results.shape == (2, 3, 4, 6)
    torch.testing.assert_close(image, to_float(sources))
    assert sources[1].unique().tolist() == [60]
    assert abs(results[1].float().mean() - (60 + 127.5)) <= 0.5
    assert method.method.is_prepared
    assert translator.pixels == PixelFormat(4, 6, 3)


@pytest.mark.parametrize(("names", "given", "key"), [
    ({"label_from": "horse"}, {}, "label_to"), ({"label_to": "cow"}, {}, "label_from"), ({}, {}, "label_from"),
    ({"label_from": "horse", "label_to": 0}, {}, "label_to"), ({"label_from": "horse", "label_to": "dog"}, {}, "label_to=dog"),
    ({"label_from": 5, "label_to": 0}, {}, "label_from=5"), ({"label_from": 0, "label_to": 1}, {"steps": 100}, "steps=100"),
    ({"label_from": 0, "label_to": 1}, {"steps": 0}, "steps=0"),
    ({"label_from": 0, "label_to": 1}, {"sampler": "ancestral"}, "sampler"),
])  # fmt: skip
def test_other_classes_and_options_are_refused(names: dict[str, object], given: dict[str, object], key: str) -> None:
    with raises(ConfigError, key):
        between_labels(Painter(), NAMES, names.get("label_from"), names.get("label_to"), given)


def test_other_models_stay_as_they_are_and_take_no_classes() -> None:
    gan = tiny.gan()
    assert between_labels(gan, (), None, None, {}) is gan
    for names, key in (((0, None), "label_from=0"), ((None, 1), "label_to=1")):
        with raises(ConfigError, key):
            between_labels(gan, (), *names, {})


def test_a_tile_and_a_mode_have_no_effect() -> None:
    method = between_labels(Painter(), NAMES, 0, 1, {})
    with raises(ConfigError, "tile=4"):
        image_translator(method, FACTS, DATA, torch.device("cpu"), direction=None, tile=4, overlap=0, batch_size=2, seed=0)
    with raises(ConfigError, "num_samples=2"):
        image_translator(
            method, FACTS, DATA, torch.device("cpu"), direction=None, tile=None, overlap=0, batch_size=2, seed=0, num_samples=2
        )
    with raises(ConfigError, "model_mode=train"):
        method.set_mode("train")
