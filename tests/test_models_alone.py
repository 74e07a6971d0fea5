"""Each model composed alone on its usual data is the published method; what a command line takes away is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genimg.config.messages import is_choice
from genimg.utils.paths import config_dir

CONFIGS = Path(config_dir())
DATA = {"cut": "unpaired", "fastcut": "unpaired", "cyclegan": "unpaired", "pix2pix": "paired"}

ADAM_GAN = ("Adam", 2e-4, [0.5, 0.999])
ADAM_WITHOUT_MOMENTUM = ("Adam", 2e-4, [0.0, 0.9])
ADAM = ("Adam", 1e-3, None)
R1 = {"gamma": "auto", "interval": 16}
R3GAN_GAMMA = {"_target_": "genimg.schedules.Cosine", "start": 0.05, "end": 0.005, "duration": "20M images"}
PATH_LENGTH = {"weight": 2.0, "decay": 0.01, "batch_shrink": 2, "interval": 4}

# model: (loss, optimizer, penalties, batch size, published duration, discriminator updates for each of the generator's)
FACTS: dict[str, tuple[str, tuple[str, float, list[float] | None], dict[str, Any], int, str | None, int | None]] = {
    # Radford et al. 2016 in PyTorch's example
    "dcgan": ("nonsaturating", ADAM_GAN, {}, 64, None, 1),
    # this project's
    "dcgan_small": ("hinge", ("Adam", 1e-3, [0.0, 0.9]), {}, 64, None, 1),
    "fully_connected": ("nonsaturating", ADAM_GAN, {}, 64, None, 1),
    # Miyato et al. 2018; Gulrajani et al. 2017; PyTorch-StudioGAN for the next two
    "sngan": ("hinge", ADAM_WITHOUT_MOMENTUM, {}, 64, "500k steps", 5),
    "sngan_cnn": ("hinge", ADAM_WITHOUT_MOMENTUM, {}, 128, "100k steps", 1),
    "wgan_gp": (
        "wasserstein", ADAM_WITHOUT_MOMENTUM, {"gradient_penalty": {"weight": 10.0, "center": 1.0, "interval": 1}},
        64, "500k steps", 5,
    ),
    "sagan": ("hinge", ADAM_GAN, {}, 64, "500k steps", 5),
    "biggan": ("hinge", ADAM_GAN, {}, 64, "500k steps", 5),
    # Karras et al. 2020, the code of ADA with --cfg=auto on one GPU
    "stylegan2": (
        "nonsaturating", ("Adam", 2.5e-3, [0.0, 0.99]), {"r1": R1, "path_length": PATH_LENGTH}, 32, "25M images", 1
    ),
    "stylegan2_small": (
        "nonsaturating", ("Adam", 2.5e-3, [0.0, 0.99]), {"r1": R1, "path_length": PATH_LENGTH}, 32, "25M images", 1
    ),
    # Huang et al. 2024; 64 images on each of 8 GPUs there
    "r3gan": (
        "relativistic", ADAM_WITHOUT_MOMENTUM,
        {"r1": {"gamma": R3GAN_GAMMA, "interval": 1}, "r2": {"gamma": R3GAN_GAMMA, "interval": 1}}, 64, "250M images", 1,
    ),
    # Isola et al. 2017; Zhu et al. 2017; Park et al. 2020
    "pix2pix": ("nonsaturating", ADAM_GAN, {}, 1, "200 epochs", None),
    "cyclegan": ("least_squares", ADAM_GAN, {}, 1, "200 epochs", None),
    "cut": ("least_squares", ADAM_GAN, {}, 1, "400 epochs", None),
    "fastcut": ("least_squares", ADAM_GAN, {}, 1, "200 epochs", None),
    # this project's
    "restoration": ("charbonnier", ADAM, {}, 16, None, None),
    "restoration_unet": ("charbonnier", ADAM, {}, 16, None, None),
    "restoration_crf": ("charbonnier", ADAM, {}, 16, None, None),
    "restoration_gated": ("charbonnier", ADAM, {}, 16, None, None),
    "vae": ("elbo", ADAM, {}, 64, None, None),
    "vae_small": ("elbo", ADAM, {}, 64, None, None),
    "vae_resnet": ("elbo", ADAM, {}, 64, None, None),
    # Larsen et al. 2016
    "vae_gan": ("elbo", ADAM_GAN, {}, 64, None, None),
    # PyTorch's example; Burda et al. 2016
    "vae_fully_connected": ("elbo", ADAM, {}, 128, "10 epochs", None),
    "vae_hierarchical": ("elbo", ADAM, {}, 20, "3280 epochs", None),
    # Ghosh et al. 2020
    "rae": ("rae", ADAM, {}, 100, "100 epochs", None),
    "rae_small": ("rae", ADAM, {}, 64, None, None),
    "wae": ("wae_mmd", ADAM, {}, 100, "100 epochs", None),
    "wae_small": ("wae_mmd", ADAM, {}, 64, None, None),
    # van den Oord et al. 2017
    "vq_vae": ("l2", ADAM, {}, 128, "250k steps", None),
    "vq_transformer": ("l2", ADAM, {}, 128, "250k steps", None),
    "vq_vae_small": ("l2", ADAM, {}, 64, None, None),
    # Rombach et al. 2022; this project's
    "kl_autoencoder": ("l1", ADAM_GAN, {}, 64, None, None),
    "kl_autoencoder_small": ("l1", ADAM, {}, 64, None, None),
    "latent_flow": ("denoising", ("Adam", 2e-4, None), {}, 64, None, None),
    "latent_flow_small": ("denoising", ADAM, {}, 64, None, None),
    # Ho et al. 2020; Tong et al. 2024; Karras et al. 2022; this project's
    "ddpm": ("denoising", ("Adam", 2e-4, None), {}, 128, "800k steps", None),
    "flow": ("denoising", ("Adam", 2e-4, None), {}, 128, "400k steps", None),
    "diffusion": ("denoising", ADAM, {}, 512, "200M images", None),
    "edm2": ("denoising", ("Adam", 1.2e-2, [0.9, 0.99]), {}, 2048, "1074M images", None),
    "flow_small": ("denoising", ADAM, {}, 64, None, None),
    "flow_dit_small": ("denoising", ADAM, {}, 64, None, None),
    "reflow": ("denoising", ("Adam", 2e-4, None), {}, 128, "400k steps", None),
    "reflow_small": ("denoising", ADAM, {}, 64, None, None),
    "diffusion_small": ("denoising", ADAM, {}, 64, None, None),
    "diffusion_translation": ("denoising", ADAM, {}, 512, "200M images", None),
    "diffusion_translation_small": ("denoising", ADAM, {}, 64, None, None),
    "bridge": ("denoising", ("Adam", 2e-4, None), {}, 128, "400k steps", None),
    "bridge_small": ("denoising", ADAM, {}, 64, None, None),
    # Geng et al. 2025; this project's
    "meanflow": ("adaptive", ("Adam", 6e-4, None), {}, 1024, "800k steps", None),
    "meanflow_small": ("adaptive", ADAM, {}, 64, None, None),
    # Geng et al. 2024; this project's
    "ect": ("consistency", ("RAdam", 1e-4, None), {}, 128, "400k steps", None),
    "ect_small": ("consistency", ("RAdam", 1e-4, None), {}, 64, None, None),
}  # fmt: skip


def composed(*overrides: str) -> dict[str, Any]:
    without_local = ["local=null"] if (CONFIGS / "local").is_dir() else []
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["run_dir=unused", *without_local, *overrides])
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return resolved


def test_every_model_has_its_facts() -> None:
    assert set(FACTS) == {path.stem for path in (CONFIGS / "model").glob("*.yaml") if is_choice(path.stem)}


@pytest.mark.parametrize("model", FACTS)
def test_a_model_alone_is_the_published_method(model: str) -> None:
    loss, (optimizer, rate, betas), penalties, batch_size, duration, interval = FACTS[model]
    config = composed(f"model={model}", f"data={DATA.get(model, 'cifar10')}")
    expected = composed(f"loss={loss}")["loss"]
    assert {**config["loss"], "likelihood": None} == {**expected, "likelihood": None}
    assert config["optimizer"]["_target_"] == f"torch.optim.{optimizer}"
    assert (config["optimizer"]["lr"], config["optimizer"].get("betas")) == (rate, betas)
    assert config["penalty"].keys() == penalties.keys()
    for name, settings in penalties.items():
        assert config["penalty"][name].items() >= settings.items()
        assert name not in ("r1", "r2") or config["penalty"][name]["batch_size"] == batch_size
    assert (config["trainer"]["batch_size"], config["trainer"]["usual_duration"]) == (batch_size, duration)
    assert config["model"].get("generator_interval") == interval
    own_fakes = {"dcgan": False, "dcgan_small": False, "fully_connected": False}.get(model, True)
    assert config["model"].get("fresh_latents") == (
        own_fakes if str(config["model"]["_target_"]).endswith("GAN") and interval else None
    )
    assert str(config["discriminator_augment"].get("_target_", "")).endswith("FixedAugment" if model == "r3gan" else "")


def test_stylegan2_alone_is_ada_codes_auto_configuration_on_one_gpu() -> None:
    """train.py of NVlabs/stylegan2-ada-pytorch: cfg_specs['auto'] at 64 px with --gpus=1."""
    config = composed("model=stylegan2", "data=cifar10", "data.image_size=64")
    model = config["model"]
    generator, discriminator = model["generator"], model["discriminator"]
    assert (generator["num_mapping_layers"], generator["style_mixing"], generator["channel_base"]) == (2, 0.9, 16384)
    assert (generator["channel_max"], generator["conv_clamp"], generator["style_average_decay"]) == (512, 256.0, 0.995)
    assert (discriminator["architecture"], discriminator["group_size"]) == ("residual", 4)
    assert discriminator["channel_base"] == 16384
    average = config["ema"]["exponential"]
    assert (average["half_life"], average["ramp_up"]) == ("10k images", 0.05)


@pytest.mark.parametrize("typed", ["trainer.batch_size=24", "trainer={batch_size: 24}"])
def test_a_batch_size_on_the_command_line_wins(typed: str) -> None:
    for model in ("pix2pix", "stylegan2"):
        config = composed(f"model={model}", typed)
        assert config["trainer"]["batch_size"] == 24
        assert config["trainer"]["log_interval"] == "50 steps"


def test_penalties_on_the_command_line_win() -> None:
    assert composed("model=stylegan2", "penalty=[]")["penalty"] == {}
    assert composed("model=r3gan", "penalty=[lecam]")["penalty"].keys() == {"lecam"}
