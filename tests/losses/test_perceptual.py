"""The perceptual losses against their layers one by one, with random weights."""

import efficientnet
import pytest
import torch
import torch.nn.functional as F
from errors import raises

import genimg
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.losses.perceptual import EfficientNetLiteLoss, Perceptual
from genimg.losses.reconstruction import ReconstructionLoss

SHAPES = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}  # of VGG-16's first convolutions


def saved(folder, drop=None):
    torch.manual_seed(0)
    state = {}
    for number, (outputs, inputs) in SHAPES.items():
        state[f"features.{number}.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(outputs)
    state.pop(drop, None)
    torch.save(state, folder / "vgg.pth")
    return state


def perceptual(folder, layers=(3, 8), weight=0.5):
    return Perceptual(weights=str(folder / "vgg.pth"), layers=list(layers), weight=weight)


def images(channels=3):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(2, channels, 12, 10, generator=generator) * 2 - 1 for _ in range(2))


def by_hand(state, image):
    """relu1_2 and relu2_2."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = ((image + 1) / 2 - mean) / deviation
    for number in (0, 2, 5, 7):
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))
        if number in (2, 7):
            yield x
        if number == 2:
            x = F.max_pool2d(x, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_mean_difference_of_each_layer(tmp_path, channels):
    state, (output, target) = saved(tmp_path), images(channels)
    expected = 0.5 * sum((a - b).abs().mean() for a, b in zip(by_hand(state, output), by_hand(state, target), strict=True))
    assert perceptual(tmp_path)(output, target).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 0.01


def test_the_gradient_is_the_outputs_alone_and_the_network_stays(tmp_path):
    saved(tmp_path)
    loss, (output, target) = perceptual(tmp_path), images()
    before = [p.clone() for p in loss.parameters()]
    output.requires_grad_()
    target.requires_grad_()
    loss(output, target).backward()
    assert output.grad.abs().sum() > 0
    assert target.grad is None
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(loss.parameters(), before, strict=True))


def test_it_is_added_to_the_distance_of_pixels(tmp_path):
    saved(tmp_path)
    output, target = images()
    settings = {"kind": "l1", "epsilon": None, "known_weight": 1.0}
    both = ReconstructionLoss(**settings, perceptual=perceptual(tmp_path))(output, target)
    plain = ReconstructionLoss(**settings)(output, target)
    assert both.item() == pytest.approx((plain + perceptual(tmp_path)(output, target)).item(), rel=1e-6)
    assert both > plain + 0.01
    loss, metrics = ReconstructionLoss(**settings, perceptual=perceptual(tmp_path)).with_metrics(output, target)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"loss/reconstruction": both.item(), "loss/perceptual": (loss - plain).item()}, rel=1e-5
    )


def test_what_does_not_fit_is_refused(tmp_path):
    with raises(ValueError, "weights", word="torchvision's"):
        perceptual(tmp_path)
    saved(tmp_path, drop="features.5.bias")
    with raises(ValueError, "weights", word="shape"):
        perceptual(tmp_path)
    (tmp_path / "vgg.pth").write_bytes(b"nothing")
    with raises(ValueError, "weights", word="read"):
        perceptual(tmp_path)
    saved(tmp_path)
    for layers in ((), (8, 3), (-1,), (31,)):
        with raises(ValueError, "layers", word="increasing"):
            perceptual(tmp_path, layers)
    with raises(ValueError, "weight=0"):
        perceptual(tmp_path, weight=0)
    with raises(ConfigError, word="channels"):
        perceptual(tmp_path)(*images(2))


@pytest.fixture
def efficientnet_state(tmp_path, monkeypatch):
    """Random weights of EfficientNet-Lite0, in the place of the package's."""
    state = efficientnet.random_state()
    efficientnet.install(tmp_path, monkeypatch, state)
    return state


@pytest.mark.parametrize("channels", [1, 3])
def test_efficientnets_loss_is_the_squared_distance_of_unit_features_of_each_stage(efficientnet_state, channels):
    output, target = images(channels)
    expected = 0.0
    blocks = [
        efficientnet.by_hand(efficientnet_state, (side.expand(-1, 3, -1, -1) + 1) * 127.5)[0] for side in (output, target)
    ]
    for stage in (1, 4):
        a, b = (F.normalize(side[efficientnet.LAST_OF_STAGES[stage - 1]], dim=1) for side in blocks)
        expected += (2 - 2 * (a * b).sum(dim=1)).mean().item()  # of vectors of length 1
    loss = EfficientNetLiteLoss(stages=[1, 4], weight=0.5)
    assert loss(output, target).item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert 0.01 < expected < 8
    assert loss(target, target).item() == 0.0


@pytest.mark.usefixtures("efficientnet_state")
def test_efficientnets_loss_has_a_gradient_of_the_output_alone():
    loss, (output, target) = EfficientNetLiteLoss(stages=[2], weight=1.0), images()
    output.requires_grad_()
    target.requires_grad_()
    loss(output, target).backward()
    assert output.grad.isfinite().all()
    assert output.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.usefixtures("efficientnet_state")
def test_settings_of_efficientnets_loss_are_checked():
    for stages in ((), (2, 1), (0,), (8,), (1, 1)):
        with raises(ValueError, "stages", word="increasing"):
            EfficientNetLiteLoss(stages=stages, weight=1.0)
    with raises(ConfigError, word="channels"):
        EfficientNetLiteLoss(stages=[1], weight=1.0)(*images(2))


@pytest.mark.usefixtures("efficientnet_state")
@pytest.mark.parametrize(("model", "key"), [
    ("vae_small", "model.perceptual"), ("restoration", "loss.perceptual"), ("kl_autoencoder_small", "loss.perceptual"),
])  # fmt: skip
def test_a_config_can_add_efficientnets_loss(model, key):
    node = "{_target_: genimg.losses.perceptual.EfficientNetLiteLoss, stages: [1, 2], weight: 2.0}"
    config = genimg.compose([f"model={model}", f"{key}={node}", *(["task=denoise"] if model == "restoration" else [])])
    group = key.partition(".")[0]
    loss = Builder().build(config[group]["perceptual"], key)
    assert isinstance(loss, EfficientNetLiteLoss)
    assert loss.weight == 2.0
