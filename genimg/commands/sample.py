"""genimg-sample: generate images from a checkpoint, for chosen classes or captions, or interpolate between latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.arguments import value_of
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema import Option, options_of
from genimg.config.schema.commands import Sample
from genimg.errors import ConfigError
from genimg.inference.conditions import Condition, find_conditions, name_of_label
from genimg.inference.interpolation import Loop, write_loops
from genimg.inference.options import listed, sampling_options
from genimg.inference.reconstruct import pixel_format, read_near, reconstruct
from genimg.inference.sample import Sampler
from genimg.inference.sample_files import Archive, Files, folder_name
from genimg.inference.sample_grid import write_samples
from genimg.methods.capabilities import Generates, Reconstructs, TakesConditions
from genimg.training.device import choose_device
from genimg.utils.mappings import flatten
from genimg.utils.numbers import require_least
from genimg.utils.outputs import record_of
from genimg.utils.paths import expanded, run_directory_of
from genimg.utils.regular_files import refuse_links

log = logging.getLogger(__name__)

_COMMAND = "genimg-sample"
_RECORDED = ("num_images", "seed", "label", "text", "sampling", "near", "spread", "reconstruct")  # recorded options
_EXCLUDE = {"reconstruct": ("near", "interpolate"), "near": ("interpolate",)}
_USUAL_SPREAD = 0.5  # around an image, in standard deviations of the prior
_USUAL_FRAMES, _USUAL_SPEED = 8, 12


def sample(composed: DictConfig) -> None:
    """Write generated images and a grid of them, or an interpolation as a picture and an animation."""
    options, groups = read_options(composed, Sample, untrusted.GROUPS)
    loop = _loop(options)
    _check(options)
    if options.near is not None and options.spread is None:
        options = replace(options, spread=_USUAL_SPREAD)
    named = flatten(groups) if groups else {}
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)
    device = choose_device(options.device)
    method = checkpoint.method(device)
    if not isinstance(method, Generates):
        raise ConfigError(f"ckpt={options.ckpt}: this model translates images: use genimg-translate")
    chosen = sampling_options(method, options.sampling, [option.name for option in options_of(Sample)])
    method.before_sampling()
    conditions = find_conditions(method, checkpoint.class_names, label=options.label, text=options.text)
    folder = _output(options, checkpoint, conditions)
    recorded = {key: getattr(options, key) for key in _RECORDED} | {"weights": checkpoint.weights_label}
    about = {"checkpoint": str(checkpoint.path.resolve()), "checkpoint_images": checkpoint.images, "options": recorded}
    record, beginning = record_of(_COMMAND, **about), ("from %s, trained on %d images", checkpoint.path, checkpoint.images)
    data, facts = checkpoint.config["data"], checkpoint.facts
    if options.reconstruct is not None:
        if not isinstance(method, Reconstructs):
            name = type(method).__name__
            raise ConfigError(f"reconstruct={options.reconstruct} needs an autoencoder, such as a VAE, not a {name}: remove it")
        log.info(*beginning)
        pixels = pixel_format(facts, data)
        reconstruct(method, options.reconstruct, conditions, pixels, folder, batch_size=options.batch_size, device=device,
                    record=record)  # fmt: skip
        return
    near = None if options.near is None else read_near(method, options.near, conditions, pixel_format(facts, data))
    if loop is not None:
        loop.check(method, conditions[0].row)
    sampler = Sampler(method, device, options.seed, options.batch_size, chosen, near, options.spread or 0.0)
    sampler.check()
    log.info(*beginning)
    if loop is not None:
        write_loops(sampler, conditions, folder, loop, _COMMAND)
    else:
        class_name = _class_name(method, checkpoint.class_names) if options.class_folders else None
        sink = Archive(folder, record) if folder.suffix == ".npz" else Files(folder, class_name, record)
        write_samples(sampler, conditions, sink, options.num_images, _COMMAND)


def options_of_model(arguments: Sequence[str]) -> tuple[str, list[Option]]:
    """Return a heading and the sampling options of the model of ``ckpt=``, for --help."""
    ckpt, which, allow = (value_of(key, arguments) for key in ("ckpt", "which", "allow"))
    packages = [package.strip() for package in (allow or "").strip("[]").split(",") if package.strip()]
    checkpoint = TrainedCheckpoint.open(ckpt, which or "last", packages)
    method = checkpoint.method(torch.device("cpu"))
    heading = f"Sampling options of this model, a {type(method).__name__}"
    if not isinstance(method, Generates):
        return f"{heading}: none, because it translates images (genimg-translate)", []
    rows = [Option(name, kind, default, text, "") for name, kind, default, text in listed(method.sampling_options)]
    return heading if rows else f"{heading}: none", rows


def _check(options: Sample) -> None:
    """Check the options that do not depend on the model.

    Raises:
        ConfigError: If an option is out of range or contradicts another.
    """
    if options.near is None and options.spread is not None:
        raise ConfigError(f"spread={options.spread} has no effect without near=IMAGE: remove it")
    require_least(1, num_images=options.num_images, batch_size=options.batch_size)
    if options.spread is not None and not options.spread >= 0:
        raise ConfigError(f"spread={options.spread} must be a number of standard deviations, 0 or more")
    for one, others in _EXCLUDE.items():
        useless = next((other for other in others if getattr(options, other) is not None), None)
        if getattr(options, one) is not None and useless is not None:
            raise ConfigError(f"{useless}={getattr(options, useless)} has no effect with {one}=: remove one of them")
        if getattr(options, one) is not None and options.sampling:
            name, value = next(iter(options.sampling.items()))
            raise ConfigError(f"{name}={value} has no effect with {one}=: remove one of them")
    archived = str(options.output).endswith(".npz")
    for one in ("reconstruct", "interpolate"):
        if getattr(options, one) is not None and (archived or options.class_folders):
            what = f"output={options.output}" if archived else "class_folders=true"
            raise ConfigError(f"{what} is for single samples, not for {one}=: remove it")
    if archived and options.class_folders:
        raise ConfigError(f"class_folders=true has no effect on output={options.output}, which holds labels: remove it")


def _loop(options: Sample) -> Loop | None:
    """Return the requested loop through latents, or None for single images.

    Raises:
        ConfigError: If options of a loop are out of range, or given without ``interpolate``.
    """
    if options.interpolate is not None:
        return Loop(
            interpolate=options.interpolate,
            num_images=options.num_images,
            frames=_USUAL_FRAMES if options.frames is None else options.frames,
            frames_per_second=_USUAL_SPEED if options.frames_per_second is None else options.frames_per_second,
        )
    for key in ("frames", "frames_per_second"):
        if (value := getattr(options, key)) is not None:
            raise ConfigError(
                f"{key}={value} has no effect on single images: remove it, or interpolate between them with "
                "interpolate=linear or spherical"
            )
    return None


def _output(options: Sample, checkpoint: TrainedCheckpoint, conditions: Sequence[Condition]) -> Path:
    """Return the absolute path of the output, by default in the run directory."""
    if options.output:
        return expanded("output", options.output).resolve()
    name = folder_name(
        conditions, by_label=options.label is not None, seed=options.seed, sampling=options.sampling,
        weights=None if options.weights is None else checkpoint.weights_label, near=options.near, spread=options.spread,
        interpolate=options.interpolate, reconstruct=options.reconstruct,
    )  # fmt: skip
    folder = run_directory_of(checkpoint.path.parent)
    refuse_links(folder / name, below=folder)
    return (folder / name).resolve()


def _class_name(method: Generates, class_names: Sequence[str]) -> Callable[[int], str]:
    """Return a function that maps a label to the name of its directory.

    Raises:
        ConfigError: If the model has no labels.
    """
    if not (isinstance(method, TakesConditions) and method.num_classes):
        raise ConfigError("class_folders=true needs a model with labels, and this one has none: remove it")
    num_classes = method.num_classes
    return lambda label: name_of_label(label, num_classes, class_names)
