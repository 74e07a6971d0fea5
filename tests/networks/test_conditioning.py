import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import nn

from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional, beside_image

LABELS = torch.tensor([2, 0, 3, 3, 1])
ENCODERS = {
    "unconditional": Unconditional,
    "one_hot": lambda: OneHot(num_classes=4),
    "label_embedding": lambda: LabelEmbedding(num_classes=4, dim=6),
}


def test_no_condition_is_a_vector_without_components():
    encoder = Unconditional()
    condition = encoder.blank(5)
    assert condition.shape == (5, 0)
    assert torch.equal(encoder(condition), condition)
    assert (encoder.key, encoder.dim, encoder.num_classes) == (None, 0, 0)
    assert list(encoder.state_dict()) == []
    latent = torch.randn(5, 3)
    assert torch.equal(torch.cat([latent, encoder(condition)], dim=1), latent)


def test_labels_become_unit_vectors():
    encoder = OneHot(num_classes=4)
    assert encoder(LABELS).dtype == torch.float32
    assert encoder(LABELS).tolist() == [[float(k == label) for k in range(4)] for label in LABELS.tolist()]
    assert (encoder.key, encoder.dim, encoder.num_classes) == ("label", 4, 4)
    assert list(encoder.state_dict()) == []


def test_a_linear_layer_upon_unit_vectors_is_an_embedding():
    linear = nn.Linear(4, 7, bias=False)
    assert torch.equal(linear(OneHot(num_classes=4)(LABELS)), F.embedding(LABELS, linear.weight.t()))


def test_a_label_embedding_has_one_learnt_vector_for_each_class():
    encoder = LabelEmbedding(num_classes=4, dim=6)
    assert (encoder.key, encoder.dim, encoder.num_classes) == ("label", 6, 4)
    (table,) = encoder.parameters()
    assert table.shape == (4, 6)
    labels = torch.tensor([2, 0, 2])
    vectors = encoder(labels)
    assert torch.equal(vectors, torch.stack([table[2], table[0], table[2]]))
    vectors.sum().backward()
    assert table.grad.tolist() == [[1.0] * 6, [0.0] * 6, [2.0] * 6, [0.0] * 6]


@pytest.mark.parametrize("name", ENCODERS)
def test_blank_conditions_stand_in_the_batch_like_real_ones(name):
    encoder = ENCODERS[name]()
    blank = encoder.blank(3)
    assert encoder(blank).shape == (3, encoder.dim)
    assert encoder(blank).dtype == torch.float32
    assert not blank.any()
    real = LABELS if encoder.key else torch.empty(5, 0)
    assert blank.dtype == real.dtype
    assert blank.shape[1:] == real.shape[1:]
    assert torch.equal(encoder.fitted(real), real)


@pytest.mark.parametrize("num_classes", [0, -1])
@pytest.mark.parametrize("make", [OneHot, lambda num_classes: LabelEmbedding(num_classes=num_classes, dim=6)])
def test_data_without_labels_is_refused(make, num_classes):
    with raises(ValueError, f"num_classes={num_classes}"):
        make(num_classes=num_classes)


def test_one_class_is_enough():
    assert OneHot(num_classes=1)(torch.zeros(2, dtype=torch.int64)).tolist() == [[1.0], [1.0]]
    assert LabelEmbedding(num_classes=1, dim=2)(torch.zeros(3, dtype=torch.int64)).shape == (3, 2)


def test_a_label_beyond_the_classes_is_an_error():
    for make in (ENCODERS["one_hot"], ENCODERS["label_embedding"]):
        with pytest.raises((RuntimeError, IndexError)):
            make()(torch.tensor([4]))


def test_an_encoder_needs_a_forward():
    with raises(TypeError, word="abstract"):
        ConditionEncoder()


# Beside an image


def test_a_vector_becomes_constant_channels_after_the_images():
    image, vector = torch.randn(2, 3, 4, 5), torch.randn(2, 2)
    found = beside_image(image, vector)
    assert found.shape == (2, 5, 4, 5)
    assert torch.equal(found[:, :3], image)
    for row in range(4):
        for column in range(5):
            assert torch.equal(found[:, 3:, row, column], vector)


def test_without_a_condition_the_image_stays_as_it_is():
    image = torch.randn(2, 3, 4, 5)
    assert beside_image(image, torch.empty(2, 0)) is image


def test_the_vector_takes_the_images_precision_and_has_its_gradient():
    vector = torch.randn(2, 2, requires_grad=True)
    found = beside_image(torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16), vector)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert torch.equal(vector.grad, torch.full((2, 2), 20.0))
