"""Measure a checkpoint: its samples against real images, its translations, or the likelihood of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from genimg.api.checkpoints import TrainedCheckpoint, check_own_images
from genimg.api.copies import named_held_out, own_held_out, show_neighbors
from genimg.api.data import GIVEN, build_dataset, build_loader, other_split, root_key
from genimg.api.evaluate_features import compare, evaluation_of, evaluator_for, uses_inception, with_inception_weights
from genimg.api.evaluate_held_out import evaluate_held_out
from genimg.api.evaluate_path_length import evaluate_path_length
from genimg.api.evaluate_request import Request, check_picture
from genimg.api.evaluate_translation import evaluate_translator
from genimg.api.inputs import Side, title
from genimg.api.lookup import lookup_for
from genimg.api.per_class import check_per_class, log_classes, with_classes
from genimg.api.results import report, with_intervals
from genimg.api.surface import measure_surface
from genimg.config import untrusted
from genimg.config.compose import thaw
from genimg.config.evaluation import build_expected
from genimg.config.instantiate import ALLOWED, Builder, mounted
from genimg.errors import ConfigError, UserError
from genimg.evaluation.autoencoder import AutoencoderEvaluator
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.path_length import PathLengthEvaluator
from genimg.evaluation.result import Evaluation
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Reconstructs, Translates, offers
from genimg.methods.sampling_options import looked_up, sampling_options
from genimg.training.expected import near
from genimg.utils.distributed import first_of_each_host
from genimg.utils.mappings import flatten, merged
from genimg.utils.terminal import as_many_as_fit
from genimg.utils.type_hints import as_written

log = logging.getLogger(__name__)

_OF_MODEL = ("conditioning", "loss", "model")  # groups whose paths a command may override
_TENSORS = ("method", "optimizers")  # entries of a checkpoint's state that a loaded model makes redundant


@dataclass(frozen=True)
class LoadedCheckpoint(TrainedCheckpoint):
    """A checkpoint whose model is already built; its state holds no weights.

    Attributes:
        loaded: The model.
        device: Device of the model.
    """

    loaded: Method
    device: torch.device

    @classmethod
    def of(cls, checkpoint: TrainedCheckpoint, method: Method, device: torch.device) -> LoadedCheckpoint:
        """Return a checkpoint together with the model built from it."""
        values = {field.name: getattr(checkpoint, field.name) for field in fields(TrainedCheckpoint)}
        state = {key: value for key, value in checkpoint.state.items() if key not in _TENSORS}
        state["averages"] = {name: {} for name in checkpoint.state["averages"]}
        return cls(**{**values, "state": state}, loaded=method, device=device)

    def method(self, device: torch.device) -> Method:
        assert device == self.device
        return self.loaded


def evaluate_checkpoint(request: Request, device: torch.device, loaded: LoadedCheckpoint | None) -> Evaluation | None:
    """Measure a checkpoint, and print the result.

    Args:
        request: The options.
        device: Device of the model.
        loaded: The checkpoint with its model, if the caller has loaded it; opened here otherwise.

    Returns:
        The result; None after measuring a surface.

    Raises:
        UserError: If the checkpoint cannot be opened or measured in this way.
    """
    options = request.options
    checkpoint = _opened(request, device, loaded)
    builder = replace(checkpoint.builder, allowed=(*ALLOWED, *options.allow), epoch_size=1, batch_size=1)
    builder = untrusted.naming(builder, _named(request, builder))
    if "_target_" in (request.evaluation or {}):
        builder = builder.choosing("evaluation")
    config = checkpoint.config
    if request.real is None and config["data"]["_target_"] == GIVEN:
        raise ConfigError(
            "real is required, because this model was trained on images given in Python: give images to compare with",
            key="real",
        )
    translates = offers(builder.locate(config["model"]["_target_"], "model"), Translates)
    evaluation = _evaluation(request, config["evaluation"], builder)
    if "_target_" not in evaluation:
        fitting = "translation (unpaired_translation for unpaired data)" if translates else "inception or another option"
        raise ConfigError(
            f"ckpt={options.ckpt} was trained with evaluation=none, so there is nothing to evaluate it with: choose "
            f"evaluation={fitting}"
        )
    data = _data(request, config["data"])
    checkpoint = checkpoint.changed({**config, "data": data, "evaluation": evaluation}, builder)
    request = replace(request, typed={key: typed for key, typed in request.typed.items() if key not in _OF_MODEL})
    kind = builder.locate(evaluation["_target_"], "evaluation")
    is_held_out = issubclass(kind, LikelihoodEvaluator | AutoencoderEvaluator)
    if options.surface and (translates or is_held_out):
        raise ConfigError(f"{request.typed['surface']} needs generated images, but this evaluation has none: remove it",
                          key="surface")  # fmt: skip
    if issubclass(kind, PathLengthEvaluator):
        return evaluate_path_length(request, checkpoint, device)
    if options.per_class and translates:
        raise ConfigError("per_class=true needs generated images, but this model translates: remove it", key="per_class")
    if translates:
        return evaluate_translator(request, checkpoint, device)
    if is_held_out:
        return evaluate_held_out(request, checkpoint, device)
    return _evaluate_samples(request, checkpoint, device)


def _opened(request: Request, device: torch.device, loaded: LoadedCheckpoint | None) -> TrainedCheckpoint:
    """Return the loaded checkpoint, or open it again if the options differ from those it was loaded with."""
    options = request.options
    groups = {name: request.groups[name] for name in _OF_MODEL if name in request.groups}
    if (
        loaded is not None
        and not groups
        and options.weights is None
        and device == loaded.device
        and str(options.ckpt) == str(loaded.path)
    ):
        return loaded
    named = flatten(groups) if groups else {}
    return TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)


def _named(request: Request, builder: Builder) -> dict[str, Any]:
    """Return the machine-local evaluation settings given on the command line, by dotted key."""
    given, weights = request.evaluation, request.options.inception_weights
    if given is not None and "_target_" in given:
        named = {place.key: place.value for place in untrusted.places(given, builder)}
    else:
        named = flatten(given) if given else {}
    return named if weights is None else {**named, "weights": weights}


def _evaluation(request: Request, own: Mapping[str, Any], builder: Builder) -> Mapping[str, Any]:
    """Return the evaluation composed by the command line, or the checkpoint's own with the given keys changed.

    Args:
        request: The options.
        own: Evaluation of the checkpoint.
        builder: Builder that accepts the paths given on the command line; the checkpoint's own paths are removed.
    """
    given, weights = request.evaluation or {}, request.options.inception_weights
    if "_target_" in given:
        return given
    changed = thaw(merged(own, given))
    if weights is not None and uses_inception(changed):
        changed = with_inception_weights(changed, weights)
    untrusted.take_out({"evaluation": changed}, builder, ("evaluation",))
    return changed


def _data(request: Request, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the checkpoint's data config with the given location and split.

    Raises:
        ConfigError: If the data is not read from a directory, or has no such split.
    """
    options = request.options
    if options.data_root is not None and request.real is None:
        data = {**data, root_key(options.data_root, data): options.data_root}
    if options.split is None:
        return data
    if request.real is not None:
        raise ConfigError(
            f"split={options.split} selects the checkpoint's own data, but real={title(request.real)} names other images: "
            "remove one of them"
        )
    return other_split(data, options.split, key="split", instead="use real=DIR")


def _evaluate_samples(request: Request, checkpoint: TrainedCheckpoint, device: torch.device) -> Evaluation | None:
    """Measure samples of the model against real images, and an autoencoder's reconstructions of these."""
    options, builder = request.options, checkpoint.builder
    if useless := sorted(request.typed.keys() & {"model_mode", "classical", "table"}):
        raise ConfigError(f"{request.typed[useless[0]]} is for models that translate images: remove it")
    if options.num_samples is not None:
        raise ConfigError(f"num_samples={options.num_samples} is for evaluation=likelihood: choose that, or remove it")
    check_picture(options)
    reader = request.reader(builder, device)
    with first_of_each_host():  # both may download
        real = _training_images(checkpoint, device) if request.real is None else reader.read("real", request.real)
        evaluation = evaluation_of(options, checkpoint.config["evaluation"], real)
        own = _held_out(request, checkpoint, real, device) if options.held_out is None else None
        held_out = own if options.held_out is None else named_held_out(options.held_out, reader)
        evaluator = evaluator_for(options, evaluation, builder, real, held_out)
    method = checkpoint.method(device)
    if request.real is None:
        assert real.source is not None
        check_own_images(real.source, method, checkpoint.state, other_split=options.split is not None)
    else:
        _warn_of_other_classes(checkpoint, real, title(request.real))
    if real.source is not None:
        with mounted("evaluation", evaluator):
            evaluator.check_reconstructions(method, real.source.shape)
    if isinstance(method, Generates):
        try:
            evaluator.choose_sampling(
                looked_up(method, options.sampling, lookup_for(checkpoint, method, device, options.allow))
            )
            if options.sampling and not options.surface:  # here, because the evaluator names its key in the config
                method.check_options(sampling_options(method, evaluator.sampling))
        except UserError as error:
            raise error.mounted("sampling", vars(method.sampling_options)) from error
    with mounted("evaluation", evaluator):
        # A surface checks those of each point.
        evaluator.check(method, sampling=not (options.surface or (options.sampling and isinstance(method, Generates))))
    assert isinstance(method, Generates)
    if options.surface:
        measure_surface(request, checkpoint, method, evaluator, real, held_out, device)
        return None
    made = evaluator.generated(method, device, checkpoint.class_names, weights=checkpoint.weights_label)
    check_per_class(options, real, made)
    result = compare(options, evaluator, real, made, device, held_out)
    result = with_classes(options, result, evaluator, real, made, device)
    if real.images is not None:
        if options.held_out is not None and isinstance(method, Reconstructs):
            # The images of held_out= are used only for neighbours, so they may have any size.
            own = _held_out(request, checkpoint, real, device)
        side, images = _to_reconstruct(request, real.images, own)
        result = evaluator.with_input_metrics(result, method, images, side, device)
    what = f"{checkpoint.path}, trained on {checkpoint.images} images"
    subject = {"checkpoint": str(checkpoint.path), "images": checkpoint.images}
    report(what, with_intervals(result), result, options, device, subject)
    log_classes(options, result)
    if request.real is None and options.split is None:  # published values compare with the training images
        for point in near(build_expected(checkpoint.config.get("expected"), builder), checkpoint.images):
            log.info("%s", point.judge(checkpoint.images, result.values, result.provenance))
    show_neighbors(options, evaluator, real, made, result, held_out)
    return result


def _warn_of_other_classes(checkpoint: TrainedCheckpoint, real: Side, name: str) -> None:
    """Warn if a model was trained on chosen classes, and the real images also show others."""
    chosen = checkpoint.config["data"].get("classes")
    if chosen is None or real.source is None:
        return
    if others := [each for each in real.source.class_names if each not in checkpoint.class_names]:
        log.warning(
            "the model was trained on data.classes=%s, but real=%s also has other classes (%s), on which the values depend: "
            "remove real= to compare with the chosen classes of the model's own data",
            as_written(chosen), name, as_many_as_fit(others, 60),
        )  # fmt: skip


def _training_images(checkpoint: TrainedCheckpoint, device: torch.device) -> Side:
    """Return the images of the checkpoint's data."""
    source = build_dataset(checkpoint.config, checkpoint.builder)
    return Side(source=source, images=DatasetImages(build_loader(checkpoint.config, source, device)))


def _held_out(request: Request, checkpoint: TrainedCheckpoint, real: Side, device: torch.device) -> DatasetImages | None:
    """Return the checkpoint's held-out images; None if the real images are other data or another split."""
    if request.real is not None or request.options.split is not None or real.images is None:
        return None
    return own_held_out(checkpoint.config, real.images, checkpoint.builder, device)


def _to_reconstruct(request: Request, real: DatasetImages, held_out: DatasetImages | None) -> tuple[str, DatasetImages]:
    """Return the name of the images to reconstruct, and these images; they are held out if possible."""
    if request.real is not None:
        return "real", real
    if request.options.split is not None:
        return "held_out", real
    return ("train", real) if held_out is None else ("held_out", held_out)
