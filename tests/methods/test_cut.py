"""CUT and FastCUT: the contrast, what learns from it, mirrored translation, and two steps through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from command_table import run
from errors import raises
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from test_resume import assert_same_run
from torch import nn

from genimg.api.data import build_dataset
from genimg.config import instantiate
from genimg.data.tasks.base import Unpaired
from genimg.evaluation.translation import UnpairedEvaluator
from genimg.losses.adversarial import AdversarialLoss, least_squares_discriminator_loss, least_squares_generator_loss
from genimg.methods.cut import CUT
from genimg.methods.cyclegan import CycleGAN
from genimg.networks import resnet_translator, unet
from genimg.networks.patchgan import PatchDiscriminator
from genimg.training.device import Precision
from genimg.training.update import Updater
from genimg.types import Progress
from genimg.utils.paths import config_dir

LEAST_SQUARES = AdversarialLoss(discriminator=least_squares_discriminator_loss, generator=least_squares_generator_loss)


def translator(**changes: Any) -> resnet_translator.Translator:
    settings = {
        "source_channels": 3, "target_channels": 3, "width": 4, "num_downs": 2, "num_blocks": 5, "normalisation": "instance",
        "padding": "reflect", "upsampling": "transposed", "dropout": 0.0, "initialisation": "normal", "spectral_norm": False,
    }  # fmt: skip
    return resnet_translator.Translator(**(settings | changes))


def cut(*, of_translator: dict[str, Any] | None = None, **changes: Any) -> CUT:
    torch.manual_seed(0)
    settings = {
        "translator": translator(**(of_translator or {})),
        "discriminator": PatchDiscriminator(target_channels=3, source_channels=0, width=4, num_strided=1, num_scales=1,
                                            normalisation="instance", initialisation="normal", spectral_norm=False),
        "loss": LEAST_SQUARES, "adversarial_weight": 2.0, "contrast_weight": 0.5, "identity_weight": 0.5,
        "layers": [0, 1, 2, 3, 7], "num_patches": 12, "projection_dim": 6, "temperature": 0.07, "mirror_probability": 0.0,
        "sampled_mode": "eval", "task": Unpaired(source_channels=3),
    }  # fmt: skip
    return CUT(**(settings | changes))


def images(count: int = 2, size: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def domains(count: int = 2) -> dict[str, torch.Tensor]:
    return {"a": images(count), "b": images(count, seed=2)}


# The encoder's layers


@pytest.mark.parametrize("normalisation", ["none", "instance"])
def test_layers_are_the_image_the_strided_convolutions_and_the_blocks_of_the_forward(normalisation):
    torch.manual_seed(0)
    network, image, seen = translator(normalisation=normalisation), images(), [images()]
    strided = [layer for layer in network.layers if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    blocks = [layer for layer in network.layers if isinstance(layer, resnet_translator.ResidualBlock)]
    for layer in (*strided, *blocks):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    network(image)
    expected = seen[: 1 + len(strided) + len(blocks)]
    for layers in ([0, 1, 2, 3, 7], [0], [2, 6], range(8)):
        found = network.encode(image, layers)
        assert all(torch.equal(a, expected[layer]) for a, layer in zip(found, layers, strict=True))
        assert [each.shape[1] for each in found] == [network.encoder_channels[layer] for layer in layers]
    assert network.encoder_channels == [3, 8, 16, 16, 16, 16, 16, 16]


def test_receptive_fields_grow_nearly_as_those_of_the_authors():
    """Theirs, which blur before they halve, are 1, 9, 15, 35 and 99 px."""
    network = translator(width=1, normalisation="none")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.abs() + 0.01)  # so that no ReLU is off
    image = torch.ones(1, 3, 128, 128, requires_grad=True)
    widths = []
    for features in network.encode(image, [0, 1, 2, 3, 7]):
        middle = features[0, :, features.shape[2] // 2, features.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
        widths.append(int(gradient[0, 0].any(dim=0).sum()))
    assert widths == [1, 9, 13, 29, 93]


# The contrast


def by_hand(method: CUT, sources: torch.Tensor, outputs: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """Losses [N], one image and one layer after another, with torch's cross-entropy; keys without gradient."""
    losses = []
    for source, output in zip(sources, outputs, strict=True):
        queries, keys = (method.network.encode(each[None], method.layers) for each in (output, source))
        each = []
        for q, k, perceptron, at in zip(queries, keys, method.projections.perceptrons, places, strict=True):
            first, second = (F.normalize(perceptron(f[0].flatten(1)[:, at].T), dim=1) for f in (q, k))
            each.append(F.cross_entropy(first @ second.detach().T / method.temperature, torch.arange(len(at))))
        losses.append(sum(each) / len(each))
    return torch.stack(losses)


def test_contrast_is_the_mean_over_layers_at_the_same_random_places_of_source_and_output():
    method, batch = cut().double(), {key: value.double() for key, value in domains().items()}
    batch["translated"] = images(4, seed=3).double()
    torch.manual_seed(5)
    found = method._contrast(batch)
    torch.manual_seed(5)
    places = [torch.randperm(size**2)[:12] for size in (16, 8, 4, 4, 4)]
    expected = by_hand(method, torch.cat([batch["a"], batch["b"]]), batch["translated"], places)
    assert torch.allclose(found, expected, rtol=1e-9, atol=0)
    found.sum().backward()
    gradients = [parameter.grad.clone() for parameter in method.projections.parameters()]
    method.zero_grad()
    expected.sum().backward()
    for gradient, parameter in zip(gradients, method.projections.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-7, atol=1e-12)
        assert gradient.any()


def test_places_are_new_each_time_and_all_where_there_are_few(monkeypatch):
    method, seen = cut(num_patches=20), []
    project = method.projections.forward
    monkeypatch.setattr(
        method.projections, "forward", lambda features, places: seen.append(places) or project(features, places)
    )
    batch = domains() | {"translated": images(4)}
    for _ in range(2):
        method._contrast(batch)
    assert [len(at) for at in seen[0]] == [20, 20, 16, 16, 16]
    assert all(len(at.unique()) == len(at) for at in seen[0])
    for source, output in ((0, 1), (2, 3)):
        assert all(torch.equal(one, other) for one, other in zip(seen[source], seen[output], strict=True))
    assert not torch.equal(seen[0][0], seen[2][0])


def test_sources_get_no_gradient_and_outputs_do():
    method = cut(identity_weight=0.0)
    source, output = images().requires_grad_(), images(seed=2).requires_grad_()
    method._contrast({"a": source, "translated": output}).sum().backward()
    assert source.grad is None
    assert output.grad.abs().max() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_gives_gradients_to_every_weight_of_its_group(precision):
    method = cut(of_translator={"normalisation": "batch"})
    groups = method.parameter_groups()
    before = {name: [p.detach().clone() for p in group] for name, group in groups.items()}
    optimizers = {name: torch.optim.SGD(group, lr=1.0) for name, group in groups.items()}
    updater = Updater(groups, optimizers, precision=Precision(precision, torch.device("cpu")), max_grad_norm=None)
    metrics = method.step([domains(), domains()], Progress(0, 4), updater)
    updater.raise_if_not_finite()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    for weights, old in zip(groups["translator"], before["translator"], strict=True):
        assert not torch.equal(weights, old)
    names = dict(method.discriminator.named_parameters())
    for (name, weights), old in zip(names.items(), before["discriminator"], strict=True):
        # The bias in front of an instance norm has no effect.
        assert not torch.equal(weights, old) or (name.endswith("bias") and weights.abs().max() < 1e-6)


def test_losses_are_weighted_sums_for_the_fakes_of_the_step():
    method, batch = cut(adversarial_weight=2.0, contrast_weight=3.0, identity_weight=5.0), domains()
    batch |= method._translate(batch)
    assert torch.allclose(batch["translated"], method.network(torch.cat([batch["a"], batch["b"]])))
    fake, real = method.discriminator(batch["translated"][:2])[0], method.discriminator(batch["b"])[0]
    torch.manual_seed(0)
    each = method._contrast(batch)
    torch.manual_seed(0)
    loss, metrics = method._translator_loss(batch)
    # Without the factor 1/2, as the authors have it.
    expected = (fake - 1).square().mean() + 3 * each[:2].mean() + 5 * each[2:].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["loss/contrast"].item() == pytest.approx(each[:2].mean().item(), rel=1e-6)
    assert metrics["loss/identity"].item() == pytest.approx(each[2:].mean().item(), rel=1e-6)
    loss, _ = method._discriminator_loss(batch)
    assert loss.item() == pytest.approx(((real - 1).square().mean() + fake.square().mean()).item() / 2, rel=1e-6)


def test_without_the_identity_domain_b_is_not_translated():
    method, batch = cut(identity_weight=0.0), domains()
    batch |= method._translate(batch)
    assert torch.allclose(batch["translated"], method.network(batch["a"]))
    assert "loss/identity" not in method._translator_loss(batch)[1]


# Mirrored translation


def test_a_random_half_is_translated_mirrored():
    torch.manual_seed(0)
    method, batch = cut(mirror_probability=0.5, identity_weight=0.0), {"a": images(200, size=8)}
    made = method._translate(batch)
    mirrored = made["mirrored"].flatten()
    assert 75 < mirrored.sum() < 125  # 3.5 standard deviations
    expected = torch.stack([a.flip(2) if flip else a for a, flip in zip(batch["a"], mirrored, strict=True)])
    assert torch.allclose(made["translated"], method.network(expected), atol=1e-6)


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_mirroring_makes_no_difference_to_a_network_that_is_equivariant_to_it(probability):
    settings = {"of_translator": {"num_downs": 0}, "layers": [0, 1, 3], "identity_weight": 0.0}  # strides begin on one side
    plain, other = cut(**settings), cut(mirror_probability=probability, **settings)
    losses = []
    for method in (plain, other):
        with torch.no_grad():
            for layer in method.network.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.copy_(layer.weight + layer.weight.flip(3))
        batch = domains(4)
        batch |= method._translate(batch)
        torch.manual_seed(7)
        losses.append(method._contrast(batch))
    assert batch["mirrored"].any()
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    batch["mirrored"] = ~batch["mirrored"]
    torch.manual_seed(7)
    assert not torch.allclose(losses[0], other._contrast(batch), rtol=1e-2)


# Around it


def test_it_translates_one_way_and_shows_sources_beside_translations():
    method = cut()
    preview = method.preview(domains(), {})
    assert list(preview) == ["a2b"] == list(method.directions)
    assert preview["a2b"].shape == (2, 2, 3, 16, 16)
    assert torch.equal(preview["a2b"][:, 1], method.translate(images()))
    assert method.size_divisor == 4


def test_its_evaluation_leaves_cycles_out():
    evaluator = UnpairedEvaluator(num_images=4, batch_size=2, seed=0, extractor=None, best_by=None)
    evaluator.check(cut())
    assert not evaluator._cycles

    class Two(CUT):
        directions = CycleGAN.directions

    two = cut()
    two.__class__ = Two
    evaluator.check(two)
    assert evaluator._cycles


UNET = {
    "source_channels": 3, "target_channels": 3, "image_size": 16, "width": 4, "num_downs": 2, "normalisation": "instance",
    "upsampling": "transposed", "dropout": 0.0, "num_dropout": 0, "initialisation": "normal", "spectral_norm": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contrast_weight": 0.0}, "contrast_weight=0.0"),
        ({"identity_weight": -1.0}, "identity_weight=-1.0"),
        ({"num_patches": 1}, "num_patches=1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"mirror_probability": 1.5}, "mirror_probability=1.5"),
        ({"layers": []}, "layers=[]"),
        ({"layers": [0, 4, 8]}, "layers=[0, 4, 8]"),
        ({"layers": [3, 1]}, "layers=[3, 1]"),
        ({"of_translator": {"source_channels": 1}}, "translator.source_channels=1"),
        ({"translator": unet.Translator(**UNET)}, "translator=genimg.networks.unet.Translator"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        cut(**changes)


# From the configs and the command line


@pytest.fixture
def folders(tmp_path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("trainA", 5), ("trainB", 4), ("testA", 2), ("testB", 3)):
        (tmp_path / "data" / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / part / f"{number}.png")
    return tmp_path / "data"


SMALL = ["data.image_size=16", "model.translator.width=4", "model.discriminator.width=4", "model.discriminator.num_strided=1"]


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("cut", {"contrast_weight": 0.5, "identity_weight": 0.5, "mirror_probability": 0.0}),
        ("fastcut", {"contrast_weight": 10.0, "identity_weight": 0.0, "mirror_probability": 0.5}),
    ],
)
def test_configs_build(model, weights, folders):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose(
            "train",
            overrides=[
                f"model={model}",
                "data=unpaired",
                f"data.root={folders}",
                "evaluation=unpaired_translation",
                *SMALL,
                "run_dir=unused",
            ],
        )
    config = OmegaConf.to_container(composed, resolve=True)
    builder = instantiate.Builder(epoch_size=10, batch_size=1)
    method = tiny.method_of(config, build_dataset(config, builder), builder)
    assert isinstance(method, CUT)
    assert {name: getattr(method, name) for name in weights} == weights
    assert method.adversarial_weight == 2.0
    assert [perceptron[0].in_features for perceptron in method.projections.perceptrons] == [3, 8, 16, 16, 16]
    assert [perceptron[2].out_features for perceptron in method.projections.perceptrons] == [256] * 5
    assert method.parameter_groups().keys() == tiny.optimizers_of(config, method, builder).keys()


@pytest.mark.parametrize("model", ["cut", "fastcut"])
def test_a_training_is_stopped_and_resumed_bit_for_bit_and_measured(model, folders, tmp_path):
    common = [
        f"model={model}", "data=unpaired", f"data.root={folders}", *SMALL, "evaluation=unpaired_translation",
        "trainer.batch_size=2", "device=cpu",
        "precision=fp32", "trainer.preview_images=2", "trainer.log_interval=1 steps", "trainer.checkpoint_interval=1 steps",
        "trainer.preview_interval=1 steps", "evaluation.interval=1 steps",
    ]  # fmt: skip
    commands = [
        ["train", *common, f"run_dir={folder}", f"trainer.duration={steps} steps"]
        for folder, steps in (("whole", 2), ("parts", 1), ("parts", 2))
    ]
    outcomes, output = run(commands, tmp_path)
    assert outcomes == [0, 0, 0], output
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    last = json.loads((tmp_path / "parts" / "summary.json").read_text())["last"]
    assert list(last) == ["identity_l1_b"]
    assert 0 < last["identity_l1_b"] < 1
