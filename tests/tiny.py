"""Networks and methods small enough for a test."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from genimg.api.assemble import build_schedules, optimizer_specs
from genimg.api.data import build_loader, build_task
from genimg.api.method import build_method
from genimg.config.compatibility import check_pairing
from genimg.config.instantiate import Builder
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.facts import DataFacts
from genimg.data.loader import ImageLoader
from genimg.data.packed_files import Latents
from genimg.data.packed_latents import LatentSource
from genimg.data.packing import pack
from genimg.losses.adversarial import AdversarialLoss, cross_entropy_discriminator_loss, nonsaturating_generator_loss
from genimg.methods.base import Method
from genimg.methods.gan import GAN
from genimg.methods.latent import Normal
from genimg.networks import stylegan2
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.networks.dcgan import Features, Generator
from genimg.networks.discriminator import Discriminator
from genimg.training.schedules import OptimizerSchedules
from genimg.types import Batch
from genimg.utils.paths import config_dir

NONSATURATING = AdversarialLoss(discriminator=cross_entropy_discriminator_loss, generator=nonsaturating_generator_loss)


def no_condition(count: int) -> torch.Tensor:
    """What stands in for the condition of an unconditional network."""
    return torch.empty(count, 0)


def generator(**changes: Any) -> Generator:
    settings = {
        "latent_dim": 5, "condition": Unconditional(), "image_size": 16, "channels": 1, "width": 4, "bottom_size": 4,
        "normalisation": "batch", "initialisation": "normal", "spectral_norm": False,
    }  # fmt: skip
    return Generator(**(settings | changes))


def features(**changes: Any) -> Features:
    settings = {
        "image_size": 16, "channels": 1, "condition_channels": 0, "width": 4, "bottom_size": 4, "kernel_size": 4,
        "normalisation": "batch", "activation_first": False,
    }  # fmt: skip
    return Features(**(settings | changes))


def discriminator(*, head: str = "none", num_classes: int = 0, spectral_norm: bool = False, **changes: Any) -> Discriminator:
    """With a head other than ``none``, conditioned on that many classes."""
    return Discriminator(
        features=partial(features, **changes),
        condition=OneHot(num_classes=num_classes) if num_classes else Unconditional(),
        head=head,
        bias=False,
        initialisation="normal",
        spectral_norm=spectral_norm,
    )


def gan(**changes: Any) -> GAN:
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"generator": generator(), "discriminator": discriminator()}
    settings = {
        "loss": NONSATURATING, "latent": Normal(dim=5), "penalties": {}, "discriminator_augment": None, "auxiliary": None,
        "generator_interval": 1, "generator_batches": 1,
    }  # fmt: skip
    return GAN(**(networks | settings | changes))


def conditional_gan(head: str, num_classes: int = 3, **changes: Any) -> GAN:
    """On labels; the generator by conditional batch norm for ``projection``, else by the latent."""
    torch.manual_seed(0)
    normalisation = "conditional_batch" if head == "projection" else "batch"
    networks = {
        "generator": generator(condition=OneHot(num_classes=num_classes), normalisation=normalisation),
        "discriminator": discriminator(head=head, num_classes=num_classes),
    }
    return gan(**(networks | changes))


def style_gan(num_classes: int = 0) -> GAN:
    """A GAN with StyleGAN2's generator for grey images of 16 px, whose layers add noise."""
    torch.manual_seed(0)
    condition = OneHot(num_classes=num_classes) if num_classes else Unconditional()
    styles = stylegan2.Generator(
        latent_dim=6, condition=condition, normalisation="modulation", image_size=16, channels=1, style_dim=5,
        num_mapping_layers=2, channel_base=64, channel_max=8, style_mixing=0.0, style_average_decay=0.9, conv_clamp=256.0,
    )  # fmt: skip
    for name, parameter in styles.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.3)
    head = "projection" if num_classes else "none"
    return gan(generator=styles, discriminator=discriminator(head=head, num_classes=num_classes), latent=Normal(dim=6)).eval()


def nearby(method: Any, image: torch.Tensor, drawn: Batch, spread: float) -> Batch:
    """Drawn inputs scattered around an image."""
    return method.perturb(method.locate(image, drawn), drawn, spread)


_RESIDUAL = [
    "model.generator.widths=[8]", "model.discriminator.features.widths=[8]", "model.discriminator.features.bottom_size=4",
    "model.discriminator.features.num_flat_blocks=1",
]  # fmt: skip
_STYLES = ["model.latent.dim=16", "model.generator.channel_base=128", "model.generator.channel_max=8"]
SIZES = {
    "dcgan": ["model.generator.width=4"],
    "dcgan_small": ["model.generator.width=4"],
    "fully_connected": ["model.generator.widths=[16]", "model.discriminator.features.widths=[16]"],
    "sngan": _RESIDUAL,
    "sngan_cnn": ["model.generator.width=8", "model.discriminator.features.width=8"],
    "wgan_gp": _RESIDUAL,
    "sagan": [*_RESIDUAL, "model.generator.attention_at=8"],
    "biggan": [*_RESIDUAL, "model.generator.attention_at=8"],
    "stylegan2": _STYLES,
    "stylegan2_small": _STYLES,
    "r3gan": ["model.generator.widths=[32]"],
}
"""What makes each shipped GAN fit images of 16 px, and small."""

_PERCEPTRONS = ["model.latent_dim=4", "model.encoder.widths=[8]", "model.decoder.widths=[8]"]
_CODES = [
    "model.encoder.width=8", "model.encoder.residual_width=4", "model.prior.width=8", "model.prior.num_blocks=2",
]  # fmt: skip
SHORT_RUN = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
       "model=dcgan_small", *SIZES["dcgan_small"], "evaluation=none", "device=cpu")  # fmt: skip
"""Arguments of a training of a second."""

AUTOENCODERS = {
    "vae": ["model.encoder.width=4", "model.latent_dim=4"],
    "vae_small": ["model.encoder.width=4"],
    "vae_resnet": ["model.encoder.widths=[4]", "model.encoder.num_blocks=1", "model.latent_dim=4"],
    "vae_fully_connected": _PERCEPTRONS,
    "vae_hierarchical": [*_PERCEPTRONS, "model.hierarchy.0.latent_dim=3", "model.hierarchy.0.widths=[5]"],
    "vae_gan": ["model.encoder.width=4", "model.latent_dim=4", "model.discriminator.features.width=4"],
    "wae": ["model.encoder.width=4", "model.latent_dim=4"],
    "wae_small": ["model.encoder.width=4"],
    "rae": ["model.encoder.width=4", "model.latent_dim=4", "model.num_components=2"],
    "rae_small": ["model.encoder.width=4", "model.latent_dim=4", "model.num_components=1"],
    "vq_vae": _CODES,
    "vq_vae_small": _CODES,
    "vq_transformer": [*_CODES, "model.prior.num_heads=2"],
}
"""The same for autoencoders; ``test_vae_table`` walks through them."""

DIFFUSION = [
    "model.network.width=8", "model.network.multipliers=[1,2]", "model.network.num_blocks=1",
    "model.network.attention_sizes=[]", "model.network.channels_per_head=null",
]  # fmt: skip
"""The same for every diffusion and flow-matching model; ``test_diffusion_table`` walks through them."""

DENOISERS = dict.fromkeys(
    ("diffusion", "diffusion_small", "flow", "flow_small", "ddpm", "edm2", "meanflow", "meanflow_small", "ect", "ect_small"),
    DIFFUSION,
) | {"flow_dit_small": ["model.network.width=16", "model.network.depth=1", "model.network.num_heads=2"]}

REFLOW = dict.fromkeys(("reflow", "reflow_small"), DIFFUSION)
"""The same for models of pairs, which ``packed_pairs`` makes; ``test_reflow_table`` walks through them."""

_DENOISED = [*DIFFUSION, "task=denoise"]
RANDOM_TRANSLATORS = dict.fromkeys(
    ("diffusion_translation", "diffusion_translation_small", "bridge", "bridge_small"), _DENOISED
)
"""The same for diffusion models of translations; ``test_diffusion_translation_table`` walks through them."""

LATENT_AUTOENCODERS = {name: ["model.encoder.width=4"] for name in ("kl_autoencoder", "kl_autoencoder_small")}
"""The same for autoencoders that other models are trained on; ``test_latent_table`` walks through them."""
_LAYERS = "latent_channels: 2, width: 4, multipliers: [1, 1, 1], num_blocks: 1, patch_size: 1, attention: false"
FROZEN = (
    "model.autoencoder={_target_: genimg.methods.latent_space.FrozenAutoencoder, run: x, images: 1, sha256: x, "
    "shape: [3, 16, 16], space: {_target_: genimg.methods.latent_space.KLSpace, "
    f"encoder: {{_target_: genimg.networks.latent_autoencoder.Encoder, {_LAYERS}}}, "
    f"decoder: {{_target_: genimg.networks.latent_autoencoder.Decoder, {_LAYERS}}}}}}}"
)
"""An autoencoder with random weights, as a part of a model of its latents."""
LATENT_DENOISERS = {name: [*DIFFUSION, FROZEN] for name in ("latent_flow", "latent_flow_small")}

_TRANSLATOR = ["model.translator.width=4", "task=denoise"]
_PATCHES = ["width=4", "num_strided=1"]
_ONE_WAY = [
    "evaluation=unpaired_translation",
    "data=unpaired", "data.root=unpaired", "model.translator.width=4", *(f"model.discriminator.{each}" for each in _PATCHES),
]  # fmt: skip
TRANSLATORS = {
    "pix2pix": ["evaluation=translation", *_TRANSLATOR, *(f"model.discriminator.{each}" for each in _PATCHES)],
    "cyclegan": [
        "evaluation=unpaired_translation", "data=unpaired", "data.root=unpaired", "model.translator.width=4",
        "model.translator.num_blocks=1", "model.pool_size=3",
        *(f"model.discriminator.{each}" for each in _PATCHES),
    ],
    "cut": _ONE_WAY,
    "fastcut": _ONE_WAY,
    "restoration": [*_TRANSLATOR, "model.translator.num_blocks=1"],
    "restoration_unet": _TRANSLATOR,
    "restoration_crf": ["model.translator.translator.width=4", "model.translator.translator.num_blocks=1", "task=denoise"],
    "restoration_gated": ["model.translator.width=4", "task=inpaint"],
}  # fmt: skip
"""The same for models that translate, with what they translate; ``unpaired_folders`` makes those of unpaired data."""


def unpaired_folders(root: Path, count: int = 6, size: int = 16) -> None:
    """Noise images ``trainA`` and ``trainB`` below ``root``."""
    numbers = np.random.default_rng(0)
    for name in ("trainA", "trainB"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(root / name / f"{i}.png")


def packed_pairs(folder: Path, count: int = 16, size: int = 16) -> None:
    """Noise images with the noise that they come from, as genimg-prepare packs them."""
    shape, numbers = (3, size, size), np.random.default_rng(0)
    noise = numbers.standard_normal((count, *shape)).astype(np.float16)
    encoder = LatentSource(lambda images, indices: noise[indices], Latents(shape, "0", "run", is_noise=True))
    images = ArrayDataset("noise", (noise * 40.0 + 128.0).clip(0, 255).astype(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    pack(images, folder, shard_size=10**6, num_threads=1, max_corrupt=None, provenance={}, latent_source=encoder)


def model_of(experiment: str) -> str | None:
    """The model that it, or the experiment that it changes, chooses."""
    defaults = OmegaConf.load(Path(config_dir()) / "experiment" / f"{experiment}.yaml").defaults
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            return model_of(entry)
        if not isinstance(entry, str) and "override /model" in entry:
            return str(entry["override /model"])
    return None


def method_of(config: Any, dataset: ImageDataset, builder: Builder) -> Method:
    """The model of a resolved config, checked against a dataset."""
    task = build_task(config, dataset, builder)
    return build_method(config, dataset, task, DataFacts.of(dataset, task), builder, check_pairing(config, builder))


def loader_of(config: Any, dataset: ImageDataset, builder: Builder, keys: Sequence[str] = ("image",)) -> ImageLoader:
    """A dataset's images where a resolved config stores them, on the CPU, with its augmentation and its task."""
    augment, task = builder.build_group(config, "augment"), build_task(config, dataset, builder)
    return build_loader(config, dataset, torch.device("cpu"), keys=keys, augment=augment, task=task)


def optimizers_of(config: Any, method: Method, builder: Builder) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a resolved config."""
    groups = method.parameter_groups()
    specs = optimizer_specs(config, method, builder)
    return {name: spec.build(groups[name], builder.batch_size) for name, spec in specs.items()}


def schedules_of(config: Any, method: Method, builder: Builder) -> OptimizerSchedules:
    """The schedules of a resolved config's optimizers."""
    return build_schedules(config, optimizer_specs(config, method, builder), builder)
