"""Check a request of genimg-sample against a model, and write its images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genimg.data.decode import PixelFormat
from genimg.data.facts import DataFacts
from genimg.errors import ConfigError
from genimg.inference.between import require_latents
from genimg.inference.conditions import Condition, find_conditions, name_of_label, require_other_conditions
from genimg.inference.interpolation import write_loops
from genimg.inference.latent_files import load_codes
from genimg.inference.project_files import write_images_of
from genimg.inference.reconstruct import pixel_format, read_near, reconstruct
from genimg.inference.sample import Sampler
from genimg.inference.sample_files import NpzArchive, PngFolder
from genimg.inference.sample_grid import write_samples
from genimg.inference.sample_request import SampleRequest
from genimg.methods.capabilities import Generates, Reconstructs, TakesConditions
from genimg.methods.gan import GAN
from genimg.methods.generator_latents import GeneratorLatents
from genimg.methods.options import SamplingOptions
from genimg.methods.sampling_options import Lookup, chosen_options, has_steps
from genimg.utils.outputs import Record


def plan(
    request: SampleRequest,
    method: Generates | Reconstructs,
    *,
    device: torch.device,
    facts: DataFacts,
    data: Mapping[str, Any],
    class_names: Sequence[str],
    lookup: Lookup,
    run_dir: Path,
    other_options: Collection[str],
    model: str,
) -> Callable[[Record], None]:
    """Check a request against a model, before any image is made, and return the function that writes the images.

    Args:
        request: Requested images.
        method: Model in evaluation mode, on the device; ``plan`` prepares it for sampling. A model that only reconstructs
            needs a request to reconstruct.
        device: Device of the model.
        facts: Facts about the training images.
        data: The ``data`` group of the checkpoint's config, with optional ``fit`` and ``range``.
        class_names: Class names by label; empty if the checkpoint does not have them.
        lookup: Functions that find the models and classes to which sampling options refer.
        run_dir: Directory of the run, for the default output.
        other_options: Names of options that are not the model's, to suggest for a misspelt one.
        model: Digest of the checkpoint, for files of latents; it is not used without them.

    Returns:
        A function that takes the metadata to store with the images.

    Raises:
        ConfigError: If the model does not support an option.
        DataError: If the image of ``near`` cannot be read.
    """
    pixels = pixel_format(facts, data)
    if isinstance(method, Generates):
        chosen = chosen_options(method, request.sampling, lookup, other_options)
        method.before_sampling()
    conditions = find_conditions(method, class_names, label=request.label, text=request.text)
    if (given := request.reconstruct) is not None:
        output, autoencoder = request.output_path(conditions, run_dir), _autoencoder(method, given)
        return lambda record: reconstruct(autoencoder, given, conditions, pixels, output, batch_size=request.batch_size,
                                          device=device, record=record)  # fmt: skip
    assert isinstance(method, Generates)
    if request.latents is not None:
        return _of_latents(request, method, request.output_path(conditions, run_dir), class_names, model)
    sampler = sampler_for(request, method, chosen, conditions, pixels, device)
    output, loop = request.output_path(conditions, run_dir), request.loop
    if loop is not None:
        loop.check(method, conditions[0].row)
        return lambda record: write_loops(sampler, conditions, output, loop, record["made_by"])

    def write(record: Record) -> None:
        class_name = _class_name(method, class_names) if request.class_folders else None
        sink = NpzArchive(output, record) if output.suffix == ".npz" else PngFolder(output, class_name, record)
        write_samples(sampler, conditions, sink, request.num_images, record["made_by"])

    return write


def sampler_for(
    request: SampleRequest,
    method: Generates,
    chosen: SamplingOptions,
    conditions: Sequence[Condition],
    pixels: PixelFormat,
    device: torch.device,
) -> Sampler:
    """Check a request against a model, and return the sampler of its images.

    Args:
        request: Requested images.
        method: Model, prepared for sampling.
        chosen: The request's sampling options, from ``chosen_options``.
        conditions: The request's conditions, from ``find_conditions``.
        pixels: Format of the model's input images.
        device: Device of the model.

    Raises:
        ConfigError: If the model does not support an option.
        DataError: If the image of ``near`` cannot be read.
    """
    require_other_conditions(chosen, [each.row for each in conditions])
    if request.near is not None:
        if not has_steps(chosen):
            request.refuse_sampling("near")
        elif not chosen.is_deterministic:
            raise ConfigError(
                f"near={request.near} needs a sampler without randomness, so that noise determines the image: set "
                "sampler=heun, euler or dpmpp_2m",
                key="sampler",
            )
    near = None if request.near is None else read_near(method, request.near, conditions, pixels)
    between = request.between
    if between is not None:
        require_latents(method, between.interpolate)
    spread = request.spread_or_default or 0.0
    return Sampler(method, device, request.seed, request.batch_size, chosen, near, spread, between)


def _of_latents(
    request: SampleRequest, method: Generates, output: Path, class_names: Sequence[str], model: str
) -> Callable[[Record], None]:
    """Return the function that writes the images of a file of latents."""
    if not isinstance(method, GAN):
        name = type(method).__name__
        raise ConfigError(f"latents={request.latents} needs a GAN, not a {name}: remove it")
    latents = GeneratorLatents(method)
    codes = load_codes("latents", request.latents, latents, model)
    class_name = _class_name(method, class_names) if request.class_folders else None

    def write(record: Record) -> None:
        sink = NpzArchive(output, record) if output.suffix == ".npz" else PngFolder(output, class_name, record)
        write_images_of(latents, codes, sink, request.batch_size, record["made_by"])

    return write


def _autoencoder(method: Generates | Reconstructs, given: str) -> Reconstructs:
    if not isinstance(method, Reconstructs):
        name = type(method).__name__
        raise ConfigError(f"reconstruct={given} needs an autoencoder, such as a VAE, not a {name}: remove it")
    return method


def _class_name(method: Generates, class_names: Sequence[str]) -> Callable[[int], str]:
    """Return a function that maps a label to the name of its directory.

    Raises:
        ConfigError: If the model has no labels.
    """
    if not (isinstance(method, TakesConditions) and method.num_classes):
        raise ConfigError("class_folders=true needs a model with labels, and this one has none: remove it")
    num_classes = method.num_classes
    return lambda label: name_of_label(label, num_classes, class_names)
