"""Conditions of labels and captions, in batches, in draws and in the checkpoint; for any method."""

from __future__ import annotations

import pytest
import torch
from errors import raises
from torch import nn

from genimg.data.captions import encode
from genimg.methods.capabilities import TakesConditions
from genimg.methods.conditional import ConditionalMethod, shared_encoder
from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.text import TextEncoder


class Painter(ConditionalMethod):
    """Paints the latent and, beside it, the label."""

    loss_type = object

    def __init__(self, encoder: ConditionEncoder) -> None:
        super().__init__()
        self._read_conditions(encoder)

    def parameter_groups(self):
        return {}

    def step(self, batch, progress, update):
        return {}

    def sample(self, batch, options=None):
        label = batch.get("label", torch.zeros(len(batch["latent"])))
        return torch.stack([batch["latent"], label.float()], dim=1)[:, None, None]

    def check(self, batch):
        pass

    def preview(self, batch, drawn):
        return {}


def text_encoder(max_length: int = 32) -> TextEncoder:
    return TextEncoder(dim=4, width=4, max_length=max_length, max_words=4, vocabulary=16, num_layers=1)


def test_without_conditions_nothing_is_asked_for_drawn_or_remembered():
    method = Painter(Unconditional())
    assert isinstance(method, TakesConditions)
    assert (method.batch_keys, method.condition_key, method.num_classes) == (("image",), None, 0)
    assert method._draw_conditions(range(5), 0) == {}
    method.set_condition_bank({})
    assert method._condition({"image": torch.zeros(3, 1, 2, 2)}).shape == (3, 0)
    assert method._condition({"latent": torch.zeros(4, 2)}).shape == (4, 0)
    assert method._sample_by_class({"latent": torch.arange(3.0)}).shape == (3, 1, 1, 2)


@pytest.mark.parametrize(
    ("encoder", "key", "num_classes"), [(OneHot(num_classes=3), "label", 3), (text_encoder(), "caption", 0)]
)
def test_what_the_encoder_reads_is_asked_of_the_data(encoder, key, num_classes):
    method = Painter(encoder)
    assert (method.batch_keys, method.condition_key, method.num_classes) == (("image", key), key, num_classes)
    values = torch.arange(3)
    assert method._condition({"image": torch.zeros(3, 1, 2, 2), key: values}) is values


def test_a_draw_is_a_caption_of_what_is_remembered_by_seed_and_index_alone():
    method = Painter(text_encoder())
    rows = torch.arange(method.condition_bank_size)
    method.set_condition_bank({"caption": torch.stack([rows // 256, rows % 256], dim=1).to(torch.uint8)})
    drawn = method._draw_conditions(range(1000), 3)["caption"]
    assert drawn.shape == (1000, 32)
    assert len(drawn.unique(dim=0)) > 850  # of 4096 rows: 1000 draws hit 889 on average
    assert torch.equal(method._draw_conditions([17, 4, 17], 3)["caption"], drawn[[17, 4, 17]])
    assert not torch.equal(method._draw_conditions(range(1000), 4)["caption"], drawn)
    assert method.random_labels(1000, 3) is None


SKEWED = torch.tensor([0] * 7000 + [2] * 2500 + [3] * 499 + [4])  # of five classes, the second of which has no images


def test_drawn_labels_are_as_frequent_as_in_the_data_by_seed_and_index_alone():
    method = Painter(OneHot(num_classes=5))
    method.set_condition_bank({"label": SKEWED})
    drawn = method._draw_conditions(range(20_000), 3)["label"]
    shares = torch.bincount(SKEWED, minlength=5).double() / len(SKEWED)
    found = torch.bincount(drawn, minlength=5).double() / len(drawn)
    assert ((found - shares).abs() <= 4.0 * (shares * (1 - shares) / len(drawn)).sqrt()).all()
    assert torch.equal(method._draw_conditions([17, 4, 17], 3)["label"], drawn[[17, 4, 17]])
    assert not torch.equal(method._draw_conditions(range(20_000), 4)["label"], drawn)


@pytest.mark.parametrize("count", [100, 5000, 10_000, 50_000])
def test_labels_of_an_evaluation_have_exactly_the_datas_shares(count):
    """With 4,096 remembered rows, as once, the rarest class would never be drawn, and the others by chance."""
    method = Painter(OneHot(num_classes=5))
    method.set_condition_bank({"label": SKEWED})
    found = torch.bincount(method.random_labels(count, 0), minlength=5)
    expected = torch.bincount(SKEWED, minlength=5).double() * count / len(SKEWED)
    assert found.sum() == count
    assert (found - expected).abs().max() < 1.0
    if count % len(SKEWED) == 0:
        assert torch.equal(found.double(), expected)
    again = Painter(OneHot(num_classes=5))
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.random_labels(count, 0), method.random_labels(count, 0))
    assert not torch.equal(again.random_labels(count, 1), method.random_labels(count, 0))


def test_before_it_knows_the_data_every_class_is_as_frequent():
    assert torch.bincount(Painter(OneHot(num_classes=4)).random_labels(40, 0)).tolist() == [10] * 4


def test_captions_of_any_length_are_remembered_in_the_encoders_shape():
    method = Painter(text_encoder(max_length=32))
    texts = [f"number {i % 7}" for i in range(method.condition_bank_size)]
    for length in (16, 64):
        method.set_condition_bank({"caption": encode(texts, length)})
        assert method.conditions.shape == (method.condition_bank_size, 32)
        assert torch.equal(method.conditions, encode(texts, 32))


def test_samples_to_look_at_have_a_class_in_every_row():
    method = Painter(OneHot(num_classes=3))
    drawn = {"latent": torch.arange(7.0), "label": torch.zeros(7, dtype=torch.int64)}
    found = method._sample_by_class(drawn)
    assert found.shape == (3, 2, 1, 1, 2)
    assert found[..., 0].flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert found[..., 1].flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_an_attribute_that_is_no_encoder_of_conditions_is_refused():
    network = nn.Linear(1, 1)
    for wrong in (None, nn.Identity()):
        network.condition = wrong
        with raises(ValueError, "encoder.condition", word="ConditionEncoder"):
            shared_encoder(encoder=network)
    network.condition = Unconditional()
    assert shared_encoder(encoder=network) is network.condition


def test_networks_must_read_the_same_condition():
    blind, reader = nn.Linear(1, 1), nn.Linear(1, 1)
    blind.condition, reader.condition = Unconditional(), OneHot(num_classes=3)
    for networks in ({"generator": blind, "discriminator": reader}, {"discriminator": reader, "generator": blind}):
        with raises(ValueError, "generator", word="discriminator"):
            shared_encoder(**networks)
