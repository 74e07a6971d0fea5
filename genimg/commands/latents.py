"""genimg-latents: project photos into a GAN's latents, mix styles, and find directions of change."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema.commands import Latents
from genimg.errors import ConfigError
from genimg.evaluation.image_metrics import psnr, ssim
from genimg.inference.latents_request import LatentsRequest, plan
from genimg.inference.reconstruct import pixel_format
from genimg.losses.efficientnet_lite import packaged_weights
from genimg.losses.image_distance import EfficientNetLiteDistance, ImageDistance, LPIPSDistance, PixelDistance
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Reconstructs, SamplesNearby
from genimg.methods.gan import GAN
from genimg.training.device import choose_device
from genimg.utils.files import sha256_of
from genimg.utils.images import to_float
from genimg.utils.mappings import flatten
from genimg.utils.outputs import record_of
from genimg.utils.paths import relative, run_directory_of

log = logging.getLogger(__name__)

_COMMAND = "genimg-latents"
_LEAST_SIDE = 64  # pixels of colour images from which features of photos are compared


def latents(composed: DictConfig) -> None:
    """Write projections, a matrix of mixed styles, or traversals of directions."""
    options, groups = read_options(composed, Latents, untrusted.GROUPS)
    request = LatentsRequest(**{field.name: getattr(options, field.name) for field in dataclasses.fields(LatentsRequest)})
    lpips = _lpips(options)
    named = flatten(groups) if groups else {}
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)
    device = choose_device(options.device)
    method = checkpoint.method(device)
    if not isinstance(method, GAN):
        raise _refusal(options, method)
    pixels = pixel_format(checkpoint.facts, checkpoint.config["data"])
    shape = (pixels.channels, pixels.height, pixels.width)
    if lpips is not None:
        lpips.network.check(shape)
    measures = {"ssim": ssim, "psnr": psnr} | ({} if lpips is None else {lpips.name: partial(_of_levels, lpips, device)})
    write = plan(
        request, method, distance=partial(_distance, options, shape, lpips), measures=measures, pixels=pixels,
        class_names=checkpoint.class_names, run_dir=run_directory_of(checkpoint.path.parent),
        model=sha256_of(checkpoint.path), command=_COMMAND,
    )  # fmt: skip
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    recorded = request.recorded() | {"weights": checkpoint.weights_label}
    about = {"checkpoint": str(checkpoint.path.resolve()), "checkpoint_images": checkpoint.images, "options": recorded}
    write(record_of(_COMMAND, **about))


def _refusal(options: Latents, method: Method) -> ConfigError:
    """Return the error for a model that is not a GAN."""
    name = type(method).__name__
    for key, value, models in (("directions", options.directions, "GANs"), ("mix", options.mix, "StyleGAN2")):
        if value is not None:
            problem = f"{key}={value} is for {models}, but ckpt={options.ckpt} is a {name}"
            return ConfigError(problem, "give a GAN, such as one trained with model=stylegan2", key=key)
    return ConfigError(f"ckpt={options.ckpt}: {_instead(method, name)}", key="ckpt")


def _instead(method: Method, name: str) -> str:
    """Return why photos are not projected into a model's latents, and what to use instead."""
    if isinstance(method, Reconstructs):
        also = " and near=" if isinstance(method, SamplesNearby) else ""
        return f"a {name} encodes images itself: use genimg-sample with reconstruct={also}"
    if isinstance(method, SamplesNearby):
        return f"a {name} finds the noise of an image by running backwards: use genimg-sample with near=FILE spread=0"
    does = "has no single vector of latents" if isinstance(method, Generates) else "translates images"
    return f"a {name} {does}: give a GAN, such as one trained with model=stylegan2 or model=dcgan"


def _lpips(options: Latents) -> LPIPSDistance | None:
    """Return LPIPS with the given weights, or None if there are none.

    Raises:
        ConfigError: If only one of the two files is given, or a setting has no effect.
        DataError: If a file does not exist or holds other weights.
    """
    given = {key: getattr(options, key) for key in ("backbone_weights", "linear_weights")}
    missing = [key for key, value in given.items() if value is None]
    if options.distance == "lpips" and missing:
        raise ConfigError(f"distance=lpips needs local weights, but {missing[0]} is null: give both files "
                          "(docs/latents.md), or choose another distance", key=missing[0])  # fmt: skip
    if len(missing) == 1:
        raise ConfigError(f"{missing[0]} is required with the other file of LPIPS: set {missing[0]}=FILE", key=missing[0])
    if missing:
        return None
    if options.project is None:
        raise ConfigError(f"backbone_weights={options.backbone_weights} has no effect without project=: remove it")
    return LPIPSDistance(backbone=options.lpips_backbone, **given)


def _distance(options: Latents, shape: tuple[int, int, int], lpips: LPIPSDistance | None) -> ImageDistance:
    """Return the requested distance; by default, that of the best available features for images of this shape.

    Raises:
        DataError: If the weights of EfficientNet-Lite0 are requested but not installed.
        ConfigError: If features are requested for images that are neither grey nor RGB.
    """
    name = options.distance
    if name is None:
        small = shape[0] != 3 or min(shape[1:]) < _LEAST_SIDE
        name = "lpips" if lpips is not None else "pixels" if small or packaged_weights() is None else "efficientnet_lite"
        log.info("distance: %s", name)
    if name == "pixels":
        return PixelDistance()
    if shape[0] not in (1, 3):
        raise ConfigError(f"distance={name} compares grey or RGB images, not images of {shape[0]} channels: use pixels")
    if name == "efficientnet_lite":
        return EfficientNetLiteDistance(pixel_weight=1.0)
    assert lpips is not None
    return lpips


@torch.no_grad()
def _of_levels(distance: ImageDistance, device: torch.device, targets: Tensor, made: Tensor) -> Tensor:
    """Return the distance [N] of uint8 images [N, C, H, W], on the CPU."""
    found: Tensor = distance.to(device)(*(to_float(levels).to(device) for levels in (made, targets)))
    return found.cpu()
