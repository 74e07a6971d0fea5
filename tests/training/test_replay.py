"""Accumulation: the graph of one microbatch at a time, and the numbers of graphs that are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from genimg.api.data import build_dataset
from genimg.config.instantiate import Builder
from genimg.methods.base import Method
from genimg.methods.gan import GAN
from genimg.networks.conditioning import Unconditional
from genimg.networks.stylegan2 import Discriminator, Generator
from genimg.training.device import Precision
from genimg.training.update import StepRNG, Updater, split
from genimg.types import Progress
from genimg.utils.paths import config_dir

FP32 = Precision("fp32", torch.device("cpu"))
BATCH = 16
TRANSLATORS = {
    "pix2pix": [*tiny.TRANSLATORS["pix2pix"], "data=shapes"],
    "cyclegan": [*tiny.TRANSLATORS["cyclegan"], "data.channels_a=3", "data.channels_b=3"],
    "cut": [*tiny.TRANSLATORS["cut"], "data.channels_a=3", "data.channels_b=3"],
}


def configured(model: str, folder: Path) -> Method:
    tiny.unpaired_folders(folder / "unpaired")
    settings = [f"data.root={folder}/unpaired" if each == "data.root=unpaired" else each for each in TRANSLATORS[model]]
    overrides = [f"model={model}", *settings, "data.image_size=16", f"trainer.batch_size={BATCH}", "run_dir=unused"]
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=overrides), resolve=True)
    builder = Builder(epoch_size=64, batch_size=BATCH)
    torch.manual_seed(0)
    return tiny.method_of(config, build_dataset(config, builder), builder)


def stylegan() -> GAN:
    torch.manual_seed(0)
    shared = {"image_size": 16, "channels": 1, "channel_base": 64, "channel_max": 8, "conv_clamp": 256.0}
    generator = Generator(
        latent_dim=5, condition=Unconditional(), normalisation="modulation", style_dim=5, num_mapping_layers=2,
        style_mixing=0.5, style_average_decay=0.9, **shared,
    )  # fmt: skip
    discriminator = Discriminator(condition=Unconditional(), head="none", architecture="plain", group_size=4, **shared)
    return tiny.gan(generator=generator, discriminator=discriminator)


GANS: dict[str, Callable[[], GAN]] = {
    "batch norm": tiny.gan,
    "spectral norm": lambda: tiny.gan(generator=tiny.generator(spectral_norm=True)),
    "styles": stylegan,
    "rarely": lambda: tiny.gan(generator_interval=2),
    "several batches": lambda: tiny.gan(generator_batches=2),
}


class Kept(Updater):
    """What accumulates with the graphs of all microbatches in memory."""

    def forward(self, group, function, batch):
        self._train_only(group)
        results = []
        for number, microbatch in enumerate(batch):
            with self._of_microbatch(number), self._autocast():
                results.append(microbatch | function(microbatch))
        return results


def updater(method: Method, num_microbatches: int, kind: type[Updater] = Updater) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: torch.optim.Adam(parameters, lr=1e-3) for name, parameters in groups.items()}
    rng = StepRNG(7, num_microbatches, FP32.device)
    return kind(groups, optimizers, precision=FP32, max_grad_norm=None, rng=rng, networks=list(method.children()))


def images(step: int, channels: int = 1) -> Tensor:
    return torch.rand(BATCH, channels, 16, 16, generator=torch.Generator().manual_seed(step)) * 2 - 1


def data(method: Method, step: int) -> dict[str, Tensor]:
    return {key: images(10 * step + number, 1 if key == "image" else 3) for number, key in enumerate(method.batch_keys)}


def train(method: Method, update: Updater, num_microbatches: int, steps: int = 3) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for step in range(steps):
        update.begin(step)
        metrics = method.step(split(data(method, step), num_microbatches), Progress(BATCH * step, BATCH), update)
    return metrics


@pytest.mark.parametrize("name", GANS)
def test_without_kept_graphs_everything_is_the_same_bit_for_bit(name):
    """Weights, averages, batch norm's statistics, spectral norm's vectors, the average style, and what is logged."""
    methods = [GANS[name]() for _ in range(2)]
    metrics = [train(method, updater(method, 4, kind), 4) for method, kind in zip(methods, (Kept, Updater), strict=True)]
    one, other = (method.state_dict() for method in methods)
    initial = GANS[name]().state_dict()
    for key, value in one.items():
        assert torch.equal(other[key], value), key
    assert sum(not torch.equal(one[key], initial[key]) for key in one) > 10
    assert metrics[0].keys() == metrics[1].keys()
    assert all(torch.equal(metrics[0][key], metrics[1][key]) for key in metrics[0])


def test_batch_norms_statistics_follow_every_microbatch_once():
    gan = tiny.gan()
    train(gan, updater(gan, 4), 4, steps=2)
    (norm, *_) = (layer for layer in gan.generator.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.num_batches_tracked.item() == 8


class GivenLatents(GAN):
    """Latents of the batch's own, so that all numbers of microbatches have the same."""

    def _generate(self, batch, *, batches):
        latent = batch["image"].flatten(1)[:, :5]
        condition = self._condition(batch)
        return {"fake": self.generator(latent, condition), "fake_condition": condition, "latent": latent}


@pytest.mark.parametrize("num_microbatches", [2, 4, 8])
def test_gradients_are_those_of_the_whole_batch_where_no_layer_mixes_images(num_microbatches):
    found = []
    for count in (1, num_microbatches):
        gan = tiny.gan(generator=tiny.generator(normalisation="none"), discriminator=tiny.discriminator(normalisation="layer"))
        gan.__class__ = GivenLatents
        torch.manual_seed(1)
        for parameter in gan.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)
        update = updater(gan, count)
        for optimizer in update.optimizers.values():
            optimizer.param_groups[0]["lr"] = 0.0
        train(gan, update, count, steps=1)
        found.append({name: parameter.grad.clone() for name, parameter in gan.named_parameters() if parameter.grad is not None})
    whole, parts = found
    assert whole.keys() == parts.keys()
    assert any(name.startswith("generator.") for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max() + 1))


class Peak:
    """The largest number of bytes that autograd's graphs have kept at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: Tensor) -> Any:
        return _Held(self, tensor)


class _Held:
    def __init__(self, counter: Peak, tensor: Tensor) -> None:
        self.counter, self.tensor, self.bytes = counter, tensor, tensor.numel() * tensor.element_size()
        counter.now += self.bytes
        counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.bytes


def peak_of_a_step(method: Method, num_microbatches: int, kind: type[Updater] = Updater) -> int:
    update, counter = updater(method, num_microbatches, kind), Peak()
    with counter.hooks:
        train(method, update, num_microbatches, steps=1)
    assert counter.now == 0
    return counter.peak


@pytest.mark.parametrize("model", ["gan", "styles", *TRANSLATORS])
def test_what_graphs_keep_falls_with_the_number_of_microbatches(model, tmp_path):
    make = {"gan": tiny.gan, "styles": stylegan}.get(model, lambda: configured(model, tmp_path))
    method = make()
    peaks = {count: peak_of_a_step(method, count) for count in (1, 2, 4, 8)}
    # Weights are saved as well, and do not become fewer.
    assert peaks[2] < 0.75 * peaks[1], peaks
    assert peaks[4] < 0.5 * peaks[1], peaks
    assert peaks[8] < 0.35 * peaks[1], peaks
