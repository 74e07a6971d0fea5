import math
from functools import partial

import pytest
import tiny
import torch
from torch import nn
from torch.nn.utils import parametrize

from genimg.networks.conditioning import ConditionEncoder, LabelEmbedding, OneHot, Unconditional
from genimg.networks.discriminator import HEADS, Discriminator
from genimg.networks.layers import INITIALISATIONS

LABELS = torch.tensor([2, 0, 1, 2])


class Recording(nn.Module):
    """Features of an image: a linear layer on its mean over the pixels; keeps what it was given and what it gave."""

    def __init__(self, channels: int = 2, condition_channels: int = 0) -> None:
        super().__init__()
        self.num_features = 5
        self.condition_channels = condition_channels
        self.linear = nn.Linear(channels + condition_channels, 5)

    def forward(self, image):
        self.image = image
        self.features = self.linear(image.mean(dim=(2, 3)))
        return self.features


class TextLike(ConditionEncoder):
    """Has a key, but no classes."""

    key = "text"
    dim = 4

    def forward(self, condition):
        return condition


def build(head: str, **changes) -> Discriminator:
    torch.manual_seed(0)
    settings = {
        "features": Recording,
        "condition": Unconditional() if head == "none" else OneHot(num_classes=3),
        "head": head, "bias": True, "initialisation": "default", "spectral_norm": False,
    }  # fmt: skip
    return Discriminator(**(settings | changes))


def condition_for(head: str, count: int = 4) -> torch.Tensor:
    return tiny.no_condition(count) if head == "none" else LABELS[:count]


def images(count: int = 4, height: int = 6, width: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, height, width, generator=torch.Generator().manual_seed(1))


def linear_by_hand(layer: nn.Linear, features: torch.Tensor) -> list[list[float]]:
    rows = [[sum(a * b for a, b in zip(row, each, strict=True)) for row in layer.weight.tolist()] for each in features.tolist()]
    bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    return [[value + b for value, b in zip(row, bias, strict=True)] for row in rows]


# Heads.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["none", "concat", "auxiliary_classifier"])
def test_the_logit_is_linear_in_the_features(head, bias):
    discriminator = build(head, bias=bias)
    assert (discriminator.logit.bias is not None) == bias
    judged = discriminator(images(), condition_for(head))
    assert judged.logits.shape == (4,)
    (expected,) = zip(*linear_by_hand(discriminator.logit, discriminator.features.features), strict=True)
    assert judged.logits.tolist() == pytest.approx(list(expected), rel=1e-5, abs=1e-6)
    assert (judged.class_logits is None) == (head != "auxiliary_classifier")


@pytest.mark.parametrize("head", ["none", "projection", "auxiliary_classifier"])
def test_the_features_are_those_of_the_image_alone(head):
    discriminator = build(head)
    discriminator(images(), condition_for(head))
    assert torch.equal(discriminator.features.image, images())


def test_projection_against_a_loop_over_classes():
    """Miyato & Koyama 2018, equation 3: psi(f) + <v_y, f>."""
    discriminator = build("projection")
    for label in range(3):
        logits = discriminator(images(), torch.full((4,), label)).logits
        features = discriminator.features.features.tolist()
        vector = discriminator.projection.weight[:, label].tolist()
        plain = linear_by_hand(discriminator.logit, discriminator.features.features)
        expected = [
            psi[0] + sum(v * f for v, f in zip(vector, each, strict=True)) for psi, each in zip(plain, features, strict=True)
        ]
        assert logits.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert not torch.allclose(logits, torch.tensor(plain)[:, 0], atol=1e-2)
    each_alone = [discriminator(images()[[row]], LABELS[[row]]).logits.item() for row in range(4)]
    judged = discriminator(images(), LABELS)
    assert judged.logits.tolist() == pytest.approx(each_alone, rel=1e-5, abs=1e-6)
    assert judged.class_logits is None
    assert discriminator.projection.bias is None


def test_projection_of_a_learnt_embedding_is_an_inner_product_in_the_features():
    discriminator = build("projection", condition=LabelEmbedding(num_classes=3, dim=7))
    judged = discriminator(images(), LABELS)
    features, matrix = discriminator.features.features, discriminator.projection.weight
    assert matrix.shape == (5, 7)
    table = discriminator.condition.embedding.weight
    expected = [
        (discriminator.logit.weight[0] @ each + discriminator.logit.bias[0] + each @ (matrix @ table[label])).item()
        for each, label in zip(features, LABELS.tolist(), strict=True)
    ]
    assert judged.logits.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    judged.logits.sum().backward()
    assert discriminator.condition.embedding.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_concat_puts_the_condition_beside_the_image_as_constant_channels(dtype):
    discriminator = build("concat").to(dtype)
    discriminator(images().to(dtype), LABELS)
    seen = discriminator.features.image
    assert seen.shape == (4, 2 + 3, 6, 3)
    assert seen.dtype == dtype
    assert torch.equal(seen[:, :2], images().to(dtype))
    for row, label in enumerate(LABELS.tolist()):
        for k in range(3):
            assert torch.equal(seen[row, 2 + k], torch.full((6, 3), float(k == label), dtype=dtype))


def test_the_auxiliary_classifier_names_classes_without_knowing_them():
    discriminator = build("auxiliary_classifier", bias=False)
    judged = discriminator(images(), LABELS)
    assert judged.class_logits.shape == (4, 3)
    expected = linear_by_hand(discriminator.classifier, discriminator.features.features)
    assert torch.allclose(judged.class_logits, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert discriminator.classifier.bias is not None
    other = discriminator(images(), (LABELS + 1) % 3)
    assert torch.equal(other.logits, judged.logits)
    assert torch.equal(other.class_logits, judged.class_logits)
    (gradient,) = torch.autograd.grad(judged.class_logits[0, 1], discriminator.features.linear.bias)
    assert torch.allclose(gradient, discriminator.classifier.weight[1])  # the features learn classes, too


@pytest.mark.parametrize("spectral_norm", [False, True])
@pytest.mark.parametrize("head", ["none", "projection", "auxiliary_classifier"])
def test_the_head_is_computed_in_float32_under_bfloat16_autocast(head, spectral_norm):
    discriminator = build(head, spectral_norm=spectral_norm).eval()
    with torch.autocast("cpu", torch.bfloat16):
        judged = discriminator(images(), condition_for(head))
    features = discriminator.features.features
    assert features.dtype == torch.bfloat16
    expected = features.float() @ discriminator.logit.weight.T + discriminator.logit.bias
    if head == "projection":
        vector = discriminator.condition(condition_for(head))
        expected = expected + (discriminator.projection(vector) * features.float()).sum(1, keepdim=True)
    assert (judged.logits - expected.squeeze(1)).abs().max() < 1e-6
    if head == "auxiliary_classifier":
        assert judged.class_logits.dtype == torch.float32


@pytest.mark.parametrize("head", HEADS)
def test_there_are_no_weights_but_those_that_the_head_needs(head):
    own = {"none": [], "concat": [], "projection": ["projection.weight"]}
    own["auxiliary_classifier"] = ["classifier.weight", "classifier.bias"]
    expected = ["features.linear.weight", "features.linear.bias", "logit.weight", "logit.bias", *own[head]]
    assert sorted(name for name, _ in build(head).named_parameters()) == sorted(expected)


@pytest.mark.parametrize("head", HEADS)
def test_all_weights_of_a_convolutional_discriminator_get_gradients(head):
    network = tiny.discriminator(head=head, num_classes=0 if head == "none" else 3, image_size=[16, 32], channels=2)
    judged = network(images(4, 16, 32), condition_for(head))
    total = judged.logits.square().sum()
    if judged.class_logits is not None:
        total = total + judged.class_logits.square().sum()
    total.backward()
    assert judged.logits.shape == (4,)
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


# What is refused.


@pytest.mark.parametrize(
    ("head", "changes", "words"),
    [
        ("concatenation", {}, r"^head=concatenation is unknown: choose one of none, concat, projection, aux"),
        ("none", {"condition": OneHot(num_classes=3)}, r"^head=none does not match the condition OneHot"),
        ("concat", {"condition": Unconditional()}, r"^head=concat does not match the condition Unconditional"),
        ("projection", {"condition": Unconditional()}, r"^head=projection does not match the condition Unconditional"),
        (
            "auxiliary_classifier",
            {"condition": Unconditional()},
            "does not match the condition Unconditional",
        ),
        ("auxiliary_classifier", {"condition": TextLike()}, r"auxiliary_classifier needs labels.*choose head=projection"),
        ("none", {"initialisation": "kaiming"}, r"initialisation=kaiming is unknown: choose one of default, normal"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(head, changes, words):
    with pytest.raises(ValueError, match=words):
        build(head, **changes)


def test_projection_and_concat_take_conditions_without_classes():
    text = torch.randn(4, 4)
    assert build("projection", condition=TextLike())(images(), text).logits.shape == (4,)
    concat = build("concat", condition=TextLike())
    concat(images(), text)
    assert torch.equal(concat.features.image[:, 2:, 5, 1], text)


# Spectral norm and initialisation.


def conditional(head: str, **changes) -> Discriminator:
    """Of convolutional features and, where it fits, a learnt embedding; all kinds of layers together."""
    torch.manual_seed(0)
    settings = {
        "features": partial(tiny.features, width=8),
        "condition": Unconditional() if head == "none" else LabelEmbedding(num_classes=30, dim=8),
        "head": head, "bias": True, "initialisation": "normal", "spectral_norm": False,
    }  # fmt: skip
    return Discriminator(**(settings | changes))


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}


NAMES = {
    "none": {"features.layers.0", "features.layers.2", "logit"},
    "concat": {"features.layers.0", "features.layers.2", "logit", "condition.embedding"},
    "projection": {"features.layers.0", "features.layers.2", "logit", "condition.embedding", "projection"},
    "auxiliary_classifier": {"features.layers.0", "features.layers.2", "logit", "condition.embedding", "classifier"},
}


@pytest.mark.parametrize("head", HEADS)
def test_spectral_norm_reaches_features_head_and_encoder(head):
    network = conditional(head, spectral_norm=True, initialisation="xavier")
    layers = layers_of(network)
    assert set(layers) == NAMES[head]
    with torch.no_grad():
        for _ in range(500):
            network(torch.randn(2, 1, 16, 16), condition_for(head, 2))
            if head == "auxiliary_classifier":  # whose classes the forward does not read
                network.condition(LABELS)
    network.eval()
    for name, layer in layers.items():
        assert parametrize.is_parametrized(layer, "weight"), name
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=1e-3), name


@pytest.mark.parametrize("head", HEADS)
def test_without_spectral_norm_no_layer_has_it(head):
    assert not any(parametrize.is_parametrized(layer) for layer in conditional(head).modules())


def fans(weight: torch.Tensor) -> tuple[int, int]:
    """Of a matrix, and of a convolution's kernel: inputs and outputs of every position."""
    positions = math.prod(weight.shape[2:])
    return weight.shape[1] * positions, weight.shape[0] * positions


def check_normal(weight: torch.Tensor) -> None:
    error = 0.02 / math.sqrt(weight.numel())
    assert weight.mean().item() == pytest.approx(0, abs=4 * error)
    assert weight.std().item() == pytest.approx(0.02, abs=4 * error / math.sqrt(2))


def check_orthogonal(weight: torch.Tensor) -> None:
    matrix = weight.flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    assert torch.allclose(matrix @ matrix.t(), torch.eye(len(matrix)), rtol=0, atol=1e-5)


def check_xavier(weight: torch.Tensor) -> None:
    bound = math.sqrt(6 / sum(fans(weight)))
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=4 / math.sqrt(weight.numel()))


def check_default(weight: torch.Tensor) -> None:
    """PyTorch's uniform numbers within 1/sqrt(fan in)."""
    bound = 1 / math.sqrt(fans(weight)[0])
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.05)


CHECKS = {"normal": check_normal, "orthogonal": check_orthogonal, "xavier": check_xavier, "default": check_default}


@pytest.mark.parametrize("kind", INITIALISATIONS)
@pytest.mark.parametrize("head", HEADS)
def test_the_initialisation_reaches_all_layers(head, kind):
    layers = layers_of(conditional(head, initialisation=kind))
    assert set(layers) == NAMES[head]
    for name, layer in layers.items():
        if kind == "default" and isinstance(layer, nn.Embedding):  # N(0, 1) in PyTorch
            assert layer.weight.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * layer.weight.numel()))
        else:
            CHECKS[kind](layer.weight.detach())
        if getattr(layer, "bias", None) is not None:
            assert (kind == "default") == bool(layer.bias.any()), name


def test_weights_are_initialised_before_they_are_normalised():
    plain, normalised = conditional("projection"), conditional("projection", spectral_norm=True)
    originals = {name: layer.parametrizations.weight.original for name, layer in layers_of(normalised).items()}
    for name, layer in layers_of(plain).items():
        assert torch.equal(originals[name], layer.weight)


@pytest.mark.parametrize(("dim", "head", "channels"), [(8, "concat", 8), (3, "concat", 3), (3, "projection", 0)])
def test_features_are_made_for_the_channels_that_the_head_puts_beside_the_image(dim, head, channels):
    network = build(head, condition=LabelEmbedding(num_classes=3, dim=dim))
    assert network.features.condition_channels == channels
