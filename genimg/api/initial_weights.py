"""Start a training run from the weights of another run or of a file: ``init_from``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.method import Initialise
from genimg.api.weight_matching import ClassChange, Matches, Row, estimate_singular_vectors, match, table
from genimg.config.instantiate import present_name
from genimg.errors import CheckpointError, ConfigError
from genimg.exporting.networks import names_of_parts
from genimg.exporting.rebuilding import read_safetensors
from genimg.methods.base import Method, frozen_names
from genimg.methods.consistency import ConsistencyModel
from genimg.utils.files import sha256_of
from genimg.utils.json_text import parse_json
from genimg.utils.paths import expanded
from genimg.utils.prefixes import begins_with, next_components

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


@dataclass
class InitialWeights:
    """Weights of a checkpoint or file from which another training run starts.

    Attributes:
        given: Checkpoint, run directory or .safetensors file that the user gave.
        tensors: Weights and buffers by name.
        record: Path, SHA-256 digest, number of images and kind of the weights, for the new run's checkpoints; after
            ``load_into``, also the numbers of tensors that match, and the chosen parts.
        model: The ``model`` group of the checkpoint's config; None if a file does not hold it.
        class_names: Class names by label, empty for a model that reads no labels; None if they are unknown.
        parts: Function that returns the names of an exported file's parts in a method; None if the tensors have the method's
            own names.
        is_file: Whether the weights are those of a file, which need not hold all networks.
    """

    given: str
    tensors: Mapping[str, Tensor]
    record: dict[str, Any]
    model: Mapping[str, Any] | None
    class_names: Sequence[str] | None
    parts: Callable[[Method], Mapping[str, str]] | None = None
    is_file: bool = False
    matches: Matches | None = field(default=None, init=False)

    @classmethod
    def open(cls, given: str, allow: Sequence[str]) -> InitialWeights:
        """Read the weights of a checkpoint, or those of a .safetensors file.

        Of a checkpoint, these are the weights that were evaluated during its training: averaged ones, if that run kept an
        average. Only tensors are used, and no object of the checkpoint's config is built.

        Args:
            given: Checkpoint, run directory or .safetensors file.
            allow: Packages that the user trusts in addition to genimg.

        Raises:
            CheckpointError: If there is no checkpoint, or it is broken.
            ConfigError: If the package safetensors is needed and not installed.
        """
        if str(given).endswith(_SUFFIX):
            return cls._of_file(given)
        found = TrainedCheckpoint.open(given, allow=allow, key="init_from")
        record = {
            "path": str(found.path.resolve()),
            "sha256": sha256_of(found.path),
            "images": found.images,
            "weights": found.weights_label,
        }
        log.info("starting from %s: weights %s, trained on %d images", found.path, found.weights_label, found.images)
        labels = found.tensors.get("class_counts")
        names = () if labels is not None and not len(labels) else found.class_names or None
        return cls(given, found.tensors, record, found.config["model"], names)

    @classmethod
    def _of_file(cls, given: str) -> InitialWeights:
        """Read a file written by genimg-export, or one whose tensors have the names of a model's own."""
        if importlib.util.find_spec("safetensors") is None:
            problem = f"init_from={given} needs the package safetensors"
            raise ConfigError(problem, "run pip install 'genimg[export]'", key="init_from")
        path = expanded("init_from", given)
        try:
            tensors, metadata = read_safetensors(path)
            config = parse_json(metadata["config"]) if "config" in metadata else None
            classes, images = (parse_json(metadata.get(key, text)) for key, text in (("classes", "[]"), ("images", "null")))
            model, direction = (None, None) if config is None else (config["model"], config["choices"].get("direction"))
        except CheckpointError as error:
            raise CheckpointError(f"init_from={given}: {error}", key="init_from") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"init_from={given} has metadata that genimg did not write ({error})"
            raise CheckpointError(problem, "export it again", key="init_from") from error
        if not isinstance(classes, list) or not isinstance(images, int | None) or not isinstance(model, Mapping | None):
            problem = f"init_from={given} has metadata that genimg did not write"
            raise CheckpointError(problem, "export it again", key="init_from")
        weights = metadata.get("weights", "raw")
        record = {"path": str(path.resolve()), "sha256": sha256_of(path), "images": images, "weights": weights}
        trained = "" if images is None else f", trained on {images} images"
        log.info("starting from %s: weights %s%s", path, weights, trained)
        parts = None if config is None else lambda method: names_of_parts(method, direction)
        return cls(given, tensors, record, model, None if config is None else tuple(map(str, classes)), parts, is_file=True)

    def loader(self, config: Mapping[str, Any]) -> Initialise:
        """Return ``load_into`` with the options ``init_match`` and ``init_parts`` of a run's config."""
        return partial(self.load_into, some=config.get("init_match") == "some", parts=config.get("init_parts"))

    def load_into(
        self,
        method: Method,
        class_names: Sequence[str],
        shapes: Callable[[int], Mapping[str, torch.Size]],
        *,
        some: bool = False,
        parts: Sequence[str] | None = None,
    ) -> None:
        """Replace the weights and buffers of a method. Buffers that depend on the data are set afterwards.

        If both models take labels and their classes differ, entries of classes are copied by the classes' names.

        Args:
            method: Method with its initial weights.
            class_names: Class names of its data by label.
            shapes: Function that returns the shapes of the method's tensors for another number of classes.
            some: Whether tensors that do not match may keep their initial values; otherwise they are refused. Tensors that a
                file does not hold always keep theirs.
            parts: Prefixes of the names of the tensors to load, in whole components; all others keep their initial values. None
                loads all.

        Raises:
            ConfigError: If tensors that must match do not; the message lists them. If a prefix matches no tensor of the method.
        """
        own, found = method.state_dict(), dict(self.tensors)
        if self.parts is not None:
            found = _renamed(found, self.parts(method))
        change = None
        if self.class_names is not None and class_names and tuple(self.class_names) != tuple(class_names):
            change = ClassChange.between(
                self.class_names, class_names, method, {name: value.shape for name, value in own.items()},
                shapes(len(class_names) + 1),
            )  # fmt: skip
        if parts is not None:
            _require_parts(parts, own, "this model")
            if self.is_file:
                _require_parts(parts, found, f"init_from={self.given}")
        self.matches = matches = match(method, found, change, parts=parts, are_folded=self.parts is not None)
        refused = [row for row in matches.rows if row.found or not self.is_file]
        if matches.are_empty or (refused and not some):
            total = sum(parts is None or begins_with(name, parts) for name in own.keys() | found.keys())
            self._refuse(matches, refused, total, some=some)
        method.load_state_dict({**own, **matches.tensors})
        estimate_singular_vectors(method, matches.tensors, change)
        log.info("initial weights: %s", matches.describe())
        if change is not None and change.axes:
            log.info("classes of the initial weights: %s", change.describe())
        partly = {name for name, (count, total) in matches.counts.items() if 0 < count < total}
        if rows := [row for row in matches.rows if some or row.network in partly]:
            log.warning("these tensors do not match, so those of this model keep their initial values:\n%s", table(rows))
        kept = [row.name for row in matches.rows if row.own]
        self.record |= {"matching": {name: list(pair) for name, pair in matches.counts.items()}, "kept": kept}
        if parts is not None:
            self.record["parts"] = list(parts)

    def _refuse(self, matches: Matches, rows: Sequence[Row], total: int, *, some: bool) -> None:
        what = "no tensor matches" if matches.are_empty else f"{len(rows)} of {total} tensors differ"
        fix = "choose the same network, data.image_size, data.channels and conditioning as in that run's config.yaml"
        if not (matches.are_empty or some):
            fix += ", or set init_match=some to load only the tensors that match"
            whole = [name for name, (count, all_own) in matches.counts.items() if 0 < count == all_own]
            if whole and not {row.network for row in rows} & {*whole}:
                fix += f", or init_parts=[{','.join(whole)}]"
        problem = f"init_from={self.given} does not fit this model: {what}:\n{table(rows)}\nso they cannot be loaded"
        raise ConfigError(problem, fix, key="init_from")

    def warn_of_another_kind(self, model: Mapping[str, Any]) -> None:
        """Warn if the weights were trained for another purpose than in a new model, although their shapes may be the same.

        Args:
            model: The ``model`` group of the new run's config.
        """
        if self.model is not None and (old := _kind(self.model)) != (new := _kind(model)):
            log.warning(
                "init_from=%s was trained as %s, but this model is %s: its network learned something else, so the weights may "
                "help little",
                self.given, old, new,
            )  # fmt: skip


def read_again(record: Mapping[str, Any], given: str | Path | None, allow: Sequence[str]) -> InitialWeights:
    """Read the weights from which an earlier run started, to repeat its start.

    The recorded path is not opened unless the user gives it, because a checkpoint must not choose files.

    Args:
        record: Record of the weights in the run's checkpoints; empty if the run started from random weights.
        given: Checkpoint, run directory or .safetensors file that the user gave; None if there is none.
        allow: Packages that the user trusts in addition to genimg.

    Raises:
        CheckpointError: If no file is given, or it is missing, broken or not the recorded one.
        ConfigError: If the run started from random weights.
    """
    path, digest = record.get("path"), record.get("sha256")
    if given is None:
        problem = f"the run started from the weights in {path} (SHA-256 {digest}), which its checkpoints do not hold"
        fix = f"set init_from={path} to start from that file, or give a kept checkpoint with first=STEP"
        raise CheckpointError(problem, fix, key="init_from")
    if not record:
        raise ConfigError(f"init_from={given} has no effect: the run started from random weights", "remove it", key="init_from")
    found = InitialWeights.open(str(given), allow)
    if found.record["sha256"] != digest:
        problem = f"init_from={given} is not the file that the run started from: its SHA-256 is {found.record['sha256']}"
        raise CheckpointError(problem, f"give {path} as it was then, with the SHA-256 {digest}", key="init_from")
    return found


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


def warn_of_random_frozen_weights(method: Method, initial: InitialWeights | None) -> None:
    """Warn if weights of a method are not trained although they are random.

    Args:
        method: The method of a new run.
        initial: The weights that were loaded into it, if any.
    """
    loaded = () if initial is None or initial.matches is None else initial.matches.tensors
    if names := [name for name, _ in method.named_parameters() if name in frozen_names(method) and name not in loaded]:
        fix = "set init_from=RUN" if initial is None else "let init_from load them, too"
        log.warning("%d frozen tensors, such as %s, stay random: %s, or do not freeze them", len(names), names[0], fix)


def _require_parts(parts: Sequence[str], tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that each of ``init_parts`` begins the name of a tensor of a network.

    Raises:
        ConfigError: If one does not, or there is none.
    """
    names = [name for name in tensors if "." in name]
    if not parts:
        raise ConfigError("init_parts=[] loads nothing", f"choose from {next_components(names, '')}", key="init_parts")
    for part in parts:
        if not any(begins_with(name, [part]) for name in names):
            problem = f"init_parts={part} matches no tensor of {where}"
            raise ConfigError(problem, f"choose from {next_components(names, str(part))}", key="init_parts")


def _kind(model: Mapping[str, Any]) -> str:
    """Describe what the network of a model learns: for a denoiser, its path and prediction; for others, the method."""
    if "path" not in model:
        return _class_name(model)
    prediction = model.get("prediction", "edm")  # a consistency model has no other one
    return f"a denoiser with path={_class_name(model['path'])} and prediction={prediction}"


def _class_name(node: Mapping[str, Any]) -> str:
    return present_name(str(node["_target_"])).rpartition(".")[2]


def _renamed(tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of an exported file by their names in the method, without parts that the method does not have."""
    renamed = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part in parts:
            renamed[".".join(filter(None, (parts[part], rest)))] = value
    return renamed
