"""Find the other models and the classes to which sampling options refer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.errors import ConfigError, UserError
from genimg.inference.labels import find_label
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, TakesConditions
from genimg.methods.options import OtherModel
from genimg.methods.sampling_options import Lookup
from genimg.utils.files import sha256_of


def lookup_for(checkpoint: TrainedCheckpoint, method: Method, device: torch.device, allow: Sequence[str]) -> Lookup:
    """Return the functions that find the models and classes to which the sampling options of a model refer.

    Args:
        checkpoint: Checkpoint of the model.
        method: The model.
        device: Device of the model, to which other models are loaded.
        allow: Packages that the user trusts in addition to genimg.
    """
    num_classes = method.num_classes if isinstance(method, TakesConditions) else 0
    reads_labels = "label" in method.batch_keys

    def model(option: str, given: str) -> OtherModel:
        try:
            other = TrainedCheckpoint.open(given, "last", allow)
            built = other.method(device)
        except UserError as error:
            problem = error.problem.removeprefix(f"ckpt={given}: ").removeprefix(f"ckpt={given} ")
            raise type(error)(f"{option}={given}: {problem}", error.fix, key=option) from error
        if (other.path.resolve(), other.weights_label) == (checkpoint.path.resolve(), checkpoint.weights_label):
            raise ConfigError(f"{option}={given} is the model itself, so it has no effect: give a weaker model", key=option)
        if reads_labels and other.class_names != checkpoint.class_names:
            names = ", ".join(other.class_names) or "none"
            raise ConfigError(
                f"{option}={given} has other classes ({names}) than this model: give a model of the same data", key=option
            )
        if isinstance(built, Generates):
            built.before_sampling()
        record = {"path": str(other.path), "sha256": sha256_of(other.path), "weights": other.weights_label}
        return OtherModel(built, given, record)

    return Lookup(model, lambda option, value: find_label(value, num_classes, checkpoint.class_names, option))
