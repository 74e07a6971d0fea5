"""genimg-eval with evaluation=likelihood: how likely images are under a checkpoint's model."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from genimg.api.checkpoints import TrainedCheckpoint, check_own_images
from genimg.api.data import build_dataset, build_loader
from genimg.api.inputs import resolve
from genimg.api.results import report
from genimg.config import instantiate
from genimg.config.instantiate import Config
from genimg.data.datasets.builtin import Source
from genimg.errors import ConfigError, DataError
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.periodic import Evaluation
from genimg.types import height_width
from genimg.utils.distributed import first_of_each_host

log = logging.getLogger(__name__)

_KEYS = {
    "ckpt", "which", "evaluation", "device", "num_images", "num_samples", "batch_size", "seed", "data_root", "split", "real",
    "range", "output", "provenance", "allow", "traceback",
}  # fmt: skip


def evaluate_likelihood(
    options: Config,
    typed: Mapping[str, str],
    checkpoint: TrainedCheckpoint,
    device: torch.device,
    chosen: Config,
) -> Evaluation:
    """Print, and write where asked, the likelihood of held-out images, of another split, or of the images of ``real=``.

    Args:
        options: of the command.
        typed: Those that the command line sets, with their overrides.
        checkpoint: Whose data may have been moved to ``data_root`` and ``split``.
        device: of the model.
        chosen: the evaluation.

    Raises:
        ConfigError: For settings that mean nothing here.
        DataError: For images that do not fit the model.
    """
    if useless := sorted(typed.keys() - _KEYS):
        raise ConfigError(f"{typed[useless[0]]} has no effect with evaluation=likelihood: remove it")
    config, builder = checkpoint.config, checkpoint.builder
    chosen = {**chosen} | {
        key: options[key] for key in ("num_images", "num_samples", "batch_size", "seed") if options[key] is not None
    }
    evaluator = builder.build_group({"evaluation": chosen}, "evaluation")
    assert isinstance(evaluator, LikelihoodEvaluator)
    method = checkpoint.method(device)
    with instantiate.mounted("evaluation", evaluator):
        evaluator.check(method)
    with first_of_each_host():
        if options["real"] is not None:
            shape = {key: config["data"][key] for key in ("image_size", "channels")}
            side = resolve("real", options | shape, builder, device)
            if side.images is None:
                raise ConfigError(f"real={options['real']} holds statistics, but a likelihood is of images: give those")
            data = side.images.data
        else:
            source = build_dataset(config, builder)
            check_own_images(source, method, checkpoint.state, other_split=options["split"] is not None)
            data = build_loader(config, source, device)
    if options["real"] is not None:
        _check_fit(data.source, method.batch_keys, checkpoint, options)
        result = evaluator.measure(method, data, held_out=None)
    elif options["split"] is not None:
        result = evaluator.measure(method, data, held_out=True)
    else:
        result = evaluator.evaluate(method, data, device)
    path, images = checkpoint.path, checkpoint.images
    what = f"{path}, trained on {images} images"
    report(what, {"value": result.values}, result, options, device, {"checkpoint": str(path), "images": images})
    return result


def _check_fit(source: Source, keys: tuple[str, ...], checkpoint: TrainedCheckpoint, options: Config) -> None:
    """Refuse images of another shape than the training's, or other classes than those that the model reads.

    Raises:
        DataError: Naming both.
    """
    data = checkpoint.config["data"]
    wanted = (data["channels"], *height_width(data["image_size"]))
    if source.shape != wanted:
        raise DataError(
            f"real={options['real']} has images of {'x'.join(map(str, source.shape))}, but the model was trained on "
            f"{'x'.join(map(str, wanted))} (channels, height, width): give images of that shape"
        )
    known = checkpoint.class_names
    if "label" in keys and (source.labels is None or tuple(source.class_names) != known):
        found = ", ".join(source.class_names) if source.labels is not None else "none"
        raise DataError(
            f"real={options['real']}: the model reads labels, and the classes of these images are {found}, not "
            f"{', '.join(known)}: give images in directories of these names"
        )
