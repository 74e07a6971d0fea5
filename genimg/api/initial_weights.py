"""Start a training run from the weights of another run's checkpoint: ``init_from``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config.instantiate import present_name
from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.methods.consistency import ConsistencyModel
from genimg.utils.files import sha256_of

log = logging.getLogger(__name__)

_MOST_LINES = 10  # maximum number of tensors listed in the message


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a checkpoint from which another training run starts.

    Attributes:
        given: Checkpoint or run directory that the user gave.
        tensors: Weights and buffers by name.
        record: Path, SHA-256 digest, number of images and kind of the weights, for the new run's checkpoints.
        model: The ``model`` group of the checkpoint's config.
    """

    given: str
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def open(cls, given: str, allow: Sequence[str]) -> InitialWeights:
        """Read the weights that were evaluated during the checkpoint's training: averaged ones, if that run kept an average.

        Only tensors are used, and no object of the checkpoint's config is built.

        Args:
            given: Checkpoint or run directory.
            allow: Packages that the user trusts in addition to genimg.

        Raises:
            CheckpointError: If there is no checkpoint, or it is broken.
        """
        found = TrainedCheckpoint.open(given, allow=allow, key="init_from")
        record = {
            "path": str(found.path.resolve()),
            "sha256": sha256_of(found.path),
            "images": found.images,
            "weights": found.weights_label,
        }
        log.info("starting from %s: weights %s, trained on %d images", found.path, found.weights_label, found.images)
        return cls(given, found.tensors, record, found.config["model"])

    def load_into(self, method: Method) -> None:
        """Replace all weights and buffers of a method. Buffers that depend on the data are set afterwards.

        Raises:
            ConfigError: If a name or shape does not match; the message lists the tensors.
        """
        wanted = {name: list(tensor.shape) for name, tensor in method.state_dict().items()}
        found = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        names = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        if names:
            rows = [f"{name}: {_shape(wanted, name)}, {_shape(found, name)}" for name in names[:_MOST_LINES]]
            more = [f"and {len(names) - _MOST_LINES} more"] if len(names) > _MOST_LINES else []
            raise ConfigError(
                f"init_from={self.given} does not fit this model: {len(names)} of {len(wanted | found)} tensors differ (this "
                "model, the checkpoint):\n  " + "\n  ".join([*rows, *more]),
                "choose the same network, data.image_size, data.channels and conditioning as in that run's config.yaml",
                key="init_from",
            )
        method.load_state_dict(dict(self.tensors))

    def warn_of_another_kind(self, model: Mapping[str, Any]) -> None:
        """Warn if the weights were trained for another purpose than in a new model, although their shapes may be the same.

        Args:
            model: The ``model`` group of the new run's config.
        """
        if (old := _kind(self.model)) != (new := _kind(model)):
            log.warning(
                "init_from=%s was trained as %s, but this model is %s: its network learned something else, so the weights may "
                "help little",
                self.given, old, new,
            )  # fmt: skip


def warn_without_initial_weights(method: Method, model: object) -> None:
    """Warn if a method that fine-tunes another model starts from random weights.

    Args:
        method: The method of a new run without ``init_from``.
        model: Name of its option of the group ``model``.
    """
    if isinstance(method, ConsistencyModel):
        log.warning(
            "model=%s is a fine-tuning of a diffusion model, but this run starts from random weights: set init_from=RUN, where "
            "RUN is a run of model=diffusion or diffusion_small with the same network",
            model,
        )


def _kind(model: Mapping[str, Any]) -> str:
    """Describe what the network of a model learns: for a denoiser, its path and prediction; for others, the method."""
    if "path" not in model:
        return _class_name(model)
    prediction = model.get("prediction", "edm")  # a consistency model has no other one
    return f"a denoiser with path={_class_name(model['path'])} and prediction={prediction}"


def _class_name(node: Mapping[str, Any]) -> str:
    return present_name(str(node["_target_"])).rpartition(".")[2]


def _shape(shapes: Mapping[str, list[int]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "absent"
