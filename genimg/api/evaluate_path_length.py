"""genimg-eval with evaluation=path_length: measure the paths through a GAN's latents, which needs no images."""

from __future__ import annotations

import torch

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.evaluate_features import with_numbers
from genimg.api.evaluate_request import Request
from genimg.api.results import report
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import mounted
from genimg.errors import ConfigError
from genimg.evaluation.path_length import PathLengthEvaluator
from genimg.evaluation.result import Evaluation

_KEYS = {
    "ckpt", "which", "weights", "evaluation", "device", "num_images", "batch_size", "seed", "output", "provenance", "allow",
    "traceback",
}  # fmt: skip


def evaluate_path_length(request: Request, checkpoint: TrainedCheckpoint, device: torch.device) -> Evaluation:
    """Print, and write if requested, the path length of a checkpoint's model.

    Args:
        request: The options.
        checkpoint: The checkpoint; its config holds the evaluation.
        device: Device of the model.

    Raises:
        ConfigError: If a setting has no effect here, or the model is not a GAN.
    """
    options = request.options
    if useless := sorted(request.typed.keys() - _KEYS):
        raise ConfigError(f"{request.typed[useless[0]]} has no effect with evaluation=path_length: remove it")
    evaluation = with_numbers(checkpoint.config["evaluation"], options, ("num_images", "batch_size", "seed"))
    evaluator = build_evaluator(evaluation, checkpoint.builder)
    assert isinstance(evaluator, PathLengthEvaluator)
    method = checkpoint.method(device)
    with mounted("evaluation", evaluator):
        evaluator.check(method)
    result = evaluator.evaluate(method, None, device, weights=checkpoint.weights_label)
    path, images = checkpoint.path, checkpoint.images
    what = f"{path}, trained on {images} images"
    report(what, {"value": result.values}, result, options, device, {"checkpoint": str(path), "images": images})
    return result
