"""Pairs of an image and the noise from which a trained model generates it: ``genimg-prepare pairs=RUN``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.lookup import lookup_for
from genimg.errors import ConfigError, UserError
from genimg.inference.pairs import GeneratedPairs, GeneratesFromNoise
from genimg.methods.capabilities import Generates, StartsFromNoise
from genimg.methods.sampling_options import chosen_options, described
from genimg.types import height_width
from genimg.utils.digests import digest_of

log = logging.getLogger(__name__)


def pairs_of(
    given: str, num_images: int, seed: int, sampling: Mapping[str, Any], device: torch.device, allow: Sequence[str]
) -> tuple[GeneratedPairs, dict[str, Any]]:
    """Return the pairs of a trained model, which are generated when they are read, and their origin for records.

    Args:
        given: Checkpoint or run directory, the value of ``pairs``.
        num_images: Number of images.
        seed: Seed of the images.
        sampling: Sampling options of the model, by name.
        device: Device to generate on.
        allow: Packages that the user trusts in addition to genimg.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
        ConfigError: If the model does not generate images from noise of their shape, or sampling adds randomness.
    """
    checkpoint = TrainedCheckpoint.open(given, allow=allow, key="pairs")
    try:
        method = checkpoint.method(device)
    except UserError as error:
        raise type(error)(error.problem, error.fix, key="pairs") from error
    if not (isinstance(method, Generates) and isinstance(method, StartsFromNoise)):
        raise ConfigError(
            f"pairs={given} holds a {type(method).__name__}, whose images no ODE generates from noise of their shape",
            "give a run of model=flow, flow_small, diffusion, diffusion_small, ddpm or edm2",
            key="pairs",
        )
    try:
        options = chosen_options(method, sampling, lookup_for(checkpoint, method, device, allow))
        if not options.is_deterministic:
            raise ConfigError(
                f"pairs={given} needs a sampler without randomness, so that the noise determines the image: set "
                "sampling.sampler=heun, euler or dpmpp_2m, without eta or churn",
                key="sampler",
            )
    except UserError as error:
        raise error.mounted("sampling", vars(method.sampling_options)) from error
    method.before_sampling()
    facts, tensors = checkpoint.facts, checkpoint.tensors
    pairs = GeneratedPairs(
        cast(GeneratesFromNoise, method), options, (facts.channels, *height_width(facts.image_size)), num_images, seed=seed,
        device=device, class_names=checkpoint.class_names, sha256=digest_of(tensors), run=str(checkpoint.path.absolute()),
    )  # fmt: skip
    log.info("pairs from %s, trained on %d images", checkpoint.path, checkpoint.images)
    origin = {
        "checkpoint": str(checkpoint.path.absolute()), "checkpoint_images": checkpoint.images,
        "weights": checkpoint.weights_label, "seed": seed, "sampling": described(options),
    }  # fmt: skip
    return pairs, origin
