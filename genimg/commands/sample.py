"""genimg-sample: generate images from a checkpoint, for chosen classes or captions, or interpolate between latents."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.lookup import lookup_for
from genimg.commands.model_options import listed_options
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema import Option, options_of
from genimg.config.schema.commands import Sample
from genimg.errors import ConfigError
from genimg.inference.sample_plan import plan
from genimg.inference.sample_request import SampleRequest
from genimg.methods.capabilities import Generates, HasLatentSpace, Reconstructs, Translates
from genimg.training.device import choose_device
from genimg.utils.files import sha256_of
from genimg.utils.mappings import flatten
from genimg.utils.outputs import record_of
from genimg.utils.paths import run_directory_of

log = logging.getLogger(__name__)


def sample(composed: DictConfig) -> None:
    """Write generated images and a grid of them, or an interpolation as a picture and an animation."""
    options, groups = read_options(composed, Sample, untrusted.GROUPS)
    request = SampleRequest(**{field.name: getattr(options, field.name) for field in dataclasses.fields(SampleRequest)})
    named = flatten(groups) if groups else {}
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)
    device = choose_device(options.device)
    method = checkpoint.method(device)
    if not isinstance(method, Generates) and not (request.reconstruct is not None and isinstance(method, Reconstructs)):
        can = "translates images: use genimg-translate" if isinstance(method, Translates) else "does not generate images"
        if isinstance(method, Reconstructs):
            can += ": it reconstructs them, with reconstruct=FILE"
            if isinstance(method, HasLatentSpace):
                can += "; to sample, train a model of its latents with model.autoencoder=RUN"
        raise ConfigError(f"ckpt={options.ckpt}: this model {can}")
    write = plan(
        request, method, device=device, facts=checkpoint.facts, data=checkpoint.config["data"],
        class_names=checkpoint.class_names, lookup=lookup_for(checkpoint, method, device, options.allow),
        run_dir=run_directory_of(checkpoint.path.parent),
        model="" if request.latents is None else sha256_of(checkpoint.path),
        other_options=[option.name for option in options_of(Sample)],
    )  # fmt: skip
    log.info("from %s, trained on %d images", checkpoint.path, checkpoint.images)
    recorded = request.recorded | {"weights": checkpoint.weights_label}
    about = {"checkpoint": str(checkpoint.path.resolve()), "checkpoint_images": checkpoint.images, "options": recorded}
    write(record_of("genimg-sample", **about))


def options_of_model(arguments: Sequence[str]) -> tuple[str, list[Option]]:
    """Return a heading and the sampling options of the model of ``ckpt=``, for --help."""
    return listed_options(arguments, (Generates,), "because it does not generate images")
