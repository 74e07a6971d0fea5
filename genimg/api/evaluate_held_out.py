"""genimg-eval with evaluation=likelihood or reconstruction: measure held-out images with a checkpoint's model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from genimg.api.checkpoints import TrainedCheckpoint, check_own_images
from genimg.api.data import build_dataset, build_loader
from genimg.api.evaluate_features import with_numbers
from genimg.api.evaluate_request import Request
from genimg.api.inputs import ImageReader, title
from genimg.api.results import report
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import mounted
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.facts import DataFacts
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError, DataError
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.result import Evaluation
from genimg.types import height_width
from genimg.utils.distributed import first_of_each_host

_KEYS = {
    "ckpt", "which", "weights", "evaluation", "device", "num_images", "batch_size", "data_root", "split", "real", "range",
    "output", "provenance", "allow", "traceback",
}  # fmt: skip
_OF_LIKELIHOOD = ("num_samples", "seed")


def evaluate_held_out(request: Request, checkpoint: TrainedCheckpoint, device: torch.device) -> Evaluation:
    """Print, and write if requested, the likelihood of held-out images or the quality of their reconstructions.

    With ``split=`` or ``real=``, the images of another split or the given images are measured instead.

    Args:
        request: The options.
        checkpoint: The checkpoint; its config holds the location of its data, the evaluation and the split.
        device: Device of the model.

    Raises:
        ConfigError: If a setting has no effect here.
        DataError: If images do not fit the model.
    """
    options, config, builder = request.options, checkpoint.config, checkpoint.builder
    kind = builder.locate(config["evaluation"]["_target_"], "evaluation")
    own, name = (_OF_LIKELIHOOD, "likelihood") if issubclass(kind, LikelihoodEvaluator) else ((), "reconstruction")
    if useless := sorted(request.typed.keys() - _KEYS.union(own)):
        raise ConfigError(f"{request.typed[useless[0]]} has no effect with evaluation={name}: remove it")
    evaluation = with_numbers(config["evaluation"], options, ("num_images", "batch_size", *own))
    evaluator: Any = build_evaluator(evaluation, builder)
    method: Any = checkpoint.method(device)
    with mounted("evaluation", evaluator):
        evaluator.check(method)
    with first_of_each_host():
        if request.real is not None:
            data = _images(request.real, request.reader(builder, device), checkpoint.facts)
        else:
            source = build_dataset(config, builder)
            check_own_images(source, method, checkpoint.state, other_split=options.split is not None)
            data = build_loader(config, source, device)
    if request.real is not None:
        _check_fit(data.source, method.batch_keys, checkpoint, title(request.real))
        result = evaluator.measure(method, data, held_out=None, weights=checkpoint.weights_label)
    elif options.split is not None:
        result = evaluator.measure(method, data, held_out=True, weights=checkpoint.weights_label)
    else:
        result = evaluator.evaluate(method, data, device, weights=checkpoint.weights_label)
    path, images = checkpoint.path, checkpoint.images
    what = f"{path}, trained on {images} images"
    report(what, {"value": result.values}, result, options, device, {"checkpoint": str(path), "images": images})
    return result


def _images(real: str | ImageDataset, reader: ImageReader, facts: DataFacts) -> ImageLoader:
    """Return the images of ``real=``, converted to the size and channels of the training images.

    Raises:
        ConfigError: If it names statistics.
    """
    side = replace(reader, image_size=facts.image_size, channels=facts.channels).read("real", real)
    if side.images is None:
        raise ConfigError(f"real={title(real)} holds statistics, but a likelihood or reconstructions need images: give images")
    return side.images.data


def _check_fit(source: ImageDataset, keys: tuple[str, ...], checkpoint: TrainedCheckpoint, real: str) -> None:
    """Check that images have the shape of the training images and the classes that the model reads.

    Raises:
        DataError: If they differ.
    """
    expected = (checkpoint.facts.channels, *height_width(checkpoint.facts.image_size))
    if source.shape != expected:
        raise DataError(
            f"real={real} has images of {'x'.join(map(str, source.shape))}, but the model was trained on "
            f"{'x'.join(map(str, expected))} (channels, height, width): give images of that shape"
        )
    known = checkpoint.class_names
    if "label" in keys and (source.labels is None or tuple(source.class_names) != known):
        found = ", ".join(source.class_names) if source.labels is not None else "none"
        raise DataError(
            f"real={real}: the model reads labels, but the classes of these images are {found}, not "
            f"{', '.join(known)}: give images in directories of these names"
        )
