"""Open a checkpoint for uses other than training."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from genimg.config import instantiate, untrusted
from genimg.config.compose import freeze, thaw
from genimg.config.model_size import require_fitting
from genimg.config.structure import require_saved_structure
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.facts import DataFacts
from genimg.data.identity import identity_of, refused_differences, warned_differences
from genimg.errors import CheckpointError, DataError
from genimg.methods.base import Method
from genimg.training import checkpoint, cpu_layers, ema, posthoc_ema
from genimg.utils.paths import expanded, run_directory_of
from genimg.utils.type_hints import fits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A checkpoint opened for uses other than training.

    Attributes:
        path: Path of the file.
        state: Content of the file.
        config: The resolved config of the training run, read-only, with the paths that the user has changed.
        builder: Builder of the config's nodes.
        weights: Weights that ``method`` loads: ``raw``, the name of an average, or the length of a power-function average.
    """

    path: Path
    state: Mapping[str, Any]
    config: Mapping[str, Any]
    builder: instantiate.Builder
    weights: str | float

    @classmethod
    def open(
        cls,
        given: object,
        which: str = "last",
        allow: Sequence[str] = (),
        named: Mapping[str, Any] = MappingProxyType({}),
        *,
        weights: str | float | None = None,
        key: str = "ckpt",
    ) -> TrainedCheckpoint:
        """Open a checkpoint without running any of its code.

        Args:
            given: The file, or a run directory.
            which: Checkpoint of a run directory, ``last`` or ``best``.
            allow: Packages that the user trusts in addition to genimg.
            named: Machine-local settings of the checkpoint's config that the user sets, by dotted key.
            weights: ``raw``, ``ema`` (the first average), the name of another average, or the length of a power-function
                average. None uses the weights that were evaluated during training.
            key: Option that the user gave the checkpoint with, for messages.

        Raises:
            CheckpointError: If there is no checkpoint, or it is broken.
            ConfigError: If ``which`` is neither ``last`` nor ``best``, there are no such weights, or a key has no effect on the
                checkpoint.
        """
        try:
            state, path = checkpoint.load_named(expanded(key, given), which)
            checkpoint.require_whole(state, path)
            require_saved_structure(state["config"], path)
        except CheckpointError as error:
            if error.key:  # which=best
                raise
            raise CheckpointError(f"{key}={given}: {error}", key=key) from error
        config, builder = untrusted.named_again(state["config"], instantiate.builder_of(state, allow), named)
        with instantiate.mounted("ema", ema.require_names):
            ema.require_names(state["averages"])
        return cls(path, state, freeze(config), builder, ema.RAW).with_weights(weights)

    def with_weights(self, weights: str | float | None) -> TrainedCheckpoint:
        """Return the checkpoint with other weights; see ``open``.

        Raises:
            ConfigError: If there are no such weights.
        """
        length = _length_of(weights)
        name = str(self.config["trainer"].get("weights", "auto") if weights is None else weights)
        return replace(self, weights=ema.chosen_weights(self.state["averages"], name) if length is None else length)

    def require_weights(self) -> None:
        """Check that ``method`` can load the weights.

        Raises:
            CheckpointError: If the weights or the snapshots that they are computed from are damaged.
            ConfigError: If the snapshots do not determine an average of this length.
        """
        self._averaged()

    @property
    def facts(self) -> DataFacts:
        """Facts about the data that the model was trained on."""
        return DataFacts.restored(self.state["facts"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label; empty without labels."""
        return tuple(self.state.get("class_names", ()))

    @property
    def images(self) -> int:
        """Number of images that the model was trained on, including repeats."""
        return int(self.state["training"]["images"])

    @property
    def weights_label(self) -> str:
        """Name of the weights as recorded with metrics: ``raw``, ``ema``, the name of another average, or ``power LENGTH``."""
        if isinstance(self.weights, float):
            return f"power {self.weights:g}"
        return ema.label_of(self.state["averages"], self.weights)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The model's weights and buffers by name, with averaged weights in place of raw ones if an average is chosen."""
        return {**self.state["method"], **self._averaged()}

    def _averaged(self) -> Mapping[str, torch.Tensor]:
        """Return the averaged weights that replace raw ones; an empty mapping for ``raw``."""
        if not isinstance(self.weights, float):
            found: Mapping[str, torch.Tensor] = {} if self.weights == ema.RAW else self.state["averages"][self.weights]
            if self.weights != ema.RAW and not found:
                raise CheckpointError(f"the checkpoint's average {self.weights} is empty", key="ckpt")
            return found
        lengths = {
            name: node["length"] for name, node in (self.config.get("ema") or {}).items()
            if isinstance(node, Mapping) and fits(node.get("length"), float) and name in self.state["averages"]
        }  # fmt: skip
        for name, length in lengths.items():
            if length == self.weights:
                return self.state["averages"][name]
        saved = posthoc_ema.find(run_directory_of(self.path.parent), self.images, self.state["method"])
        copied = saved[0].copied if saved else ()
        now = [
            posthoc_ema.Snapshot(length, self.images, self.state["averages"][name], copied) for name, length in lengths.items()
        ]
        earlier = [each for each in saved if each.images < self.images]
        return posthoc_ema.weights_of_length([*earlier, *now], self.images, self.weights)

    def method(self, device: torch.device) -> Method:
        """Build the model with its weights, on the device, in evaluation mode, without training-only components.

        Raises:
            CheckpointError: If the weights do not fit the model in the config, for example because its code has changed.
        """
        config = thaw(self.config)
        untrusted.take_out(config, self.builder, ("conditioning", "model"))
        averaged, weights = self._averaged(), self.tensors
        build = partial(instantiate.build_model, config, self.facts, self.builder)
        require_fitting(build, weights, self.builder)
        method: Method = build()
        try:
            known, unused = method.state_dict().keys(), instantiate.parts_of_training(type(method))
            if averaged and (missing := _inference_weights(method) - averaged.keys()):
                raise CheckpointError(f"the checkpoint's average {self.weights_label} lacks {min(missing)}", key="ckpt")
            method.load_state_dict(
                {name: value for name, value in weights.items() if name in known or name.partition(".")[0] not in unused}
            )
        except RuntimeError as error:  # PyTorch's message lists every tensor
            lines = [line.strip() for line in str(error).splitlines()]
            raise CheckpointError(
                f"the checkpoint's weights do not fit the model that its config describes ({' '.join(lines[1:2])}): use the "
                "version of genimg, and of the packages in allow=, that it was trained with",
                key="ckpt",
            ) from error
        if device.type == "cpu":
            cpu_layers.use_faster_layers(method)
        return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def changed(self, config: Mapping[str, Any], builder: instantiate.Builder) -> TrainedCheckpoint:
        """Return the checkpoint with another config, for example with a new location of its data."""
        return replace(self, config=freeze(config), builder=builder)


def _length_of(weights: object) -> float | None:
    """Return the length of an average that ``weights`` gives as a number or as text, or None if it is a name."""
    if isinstance(weights, str) and re.fullmatch(r"[\d.]+(e-?\d+)?", weights):
        with contextlib.suppress(ValueError):
            return float(weights)
    return float(weights) if isinstance(weights, int | float) and not isinstance(weights, bool) else None


def _inference_weights(method: Method) -> set[str]:
    """Return the names of the weights that generation uses."""
    return {name for name in method.state_dict() if name.partition(".")[0] in method.inference_networks}


def check_own_images(source: ImageDataset, method: Method, state: Mapping[str, Any], *, other_split: bool) -> None:
    """Compare the images that a checkpoint's config names with those that the model was trained on.

    Args:
        source: The images.
        method: The checkpoint's model.
        state: Content of the checkpoint.
        other_split: Whether a split other than the training split is requested; its images are expected to differ.

    Raises:
        DataError: If the model reads labels and the classes differ, so a label would mean another class.
    """
    known = tuple(state.get("class_names", source.class_names))
    if "label" in method.batch_keys and tuple(source.class_names) != known:
        raise DataError(
            f"the model reads labels, and the classes of its data are now {', '.join(source.class_names) or 'none'}, not "
            f"{', '.join(known)}: give the directories their old names, or name the images with data_root=DIR or real=DIR"
        )
    debug = state["config"].get("debug")
    if other_split or "data" not in state or (isinstance(debug, dict) and debug.get("one_batch")):
        return
    now = identity_of(source)
    before = {key: value for key, value in state["data"].items() if key not in ("captions", "masks")}
    if differences := refused_differences(before, now) + warned_differences(before, now):
        log.warning("the data is not what the model was trained on: %s", "; ".join(differences))
