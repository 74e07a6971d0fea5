"""Open a checkpoint for anything but training."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from genimg.config import instantiate, untrusted
from genimg.config.instantiate import Config
from genimg.data.datasets.builtin import Source
from genimg.data.facts import DataFacts
from genimg.data.identity import identity_of, refused_differences, warned_differences
from genimg.errors import CheckpointError, DataError
from genimg.methods.base import Method
from genimg.training import checkpoint
from genimg.utils.paths import expanded

log = logging.getLogger(__name__)


def open_checkpoint(given: object, which: str) -> tuple[Path, Config]:
    """Return a checkpoint's path and content.

    Args:
        given: The file, or a run directory.
        which: ``last`` or ``best``, of a run directory.

    Raises:
        CheckpointError: If there is none, or it is broken.
        ConfigError: If ``which`` is neither.
    """
    try:
        path = checkpoint.find(expanded("ckpt", given), which)
        state = checkpoint.load(path)
        checkpoint.require_whole(state, path)
    except CheckpointError as error:
        if error.key:  # which=best
            raise
        raise CheckpointError(f"ckpt={given}: {error}") from error
    return path, state


def open_for_use(options: Config) -> tuple[Path, Config, instantiate.Builder]:
    """A checkpoint for anything but training: its path, its content, and the builder of its config.

    Args:
        options: of the command; keys of the checkpoint's config are removed from them, and take their place in it.

    Raises:
        CheckpointError: If there is no such checkpoint.
        ConfigError: If a key has no effect on it.
    """
    path, state = open_checkpoint(options["ckpt"], options["which"])
    builder = instantiate.builder_of(state, options["allow"])
    state["config"], builder = untrusted.named_again(state["config"], builder, untrusted.keys_of_command(options))
    return path, state, builder


def load_method(config: Config, builder: instantiate.Builder, state: Config, device: torch.device) -> Method:
    """Return the checkpoint's method with its weights, on the device, in evaluation mode, without what only training needs.

    Raises:
        CheckpointError: If the weights do not fit the model that the config names, as after a change of its code.
    """
    untrusted.take_out(config, builder, ("conditioning", "model"))
    method = instantiate.build_model(config, DataFacts.restored(state["facts"]), builder)
    try:
        known, unused = method.state_dict().keys(), instantiate.parts_of_training(type(method))
        kept = {name: value for name, value in state["method"].items() if name in known or name.partition(".")[0] not in unused}
        method.load_state_dict(kept)
    except RuntimeError as error:  # PyTorch's, which lists every tensor
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(
            f"the checkpoint's weights do not fit the model that its config names ({' '.join(lines[1:2])}): use the version "
            "of genimg, and of the packages in allow=, that it was trained with",
            key="ckpt",
        ) from error
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def check_own_images(source: Source, method: Method, state: Config, *, other_split: bool) -> None:
    """Compare the images that a checkpoint's config names now with those that it was trained on.

    Args:
        source: The images.
        method: The checkpoint's model.
        state: The checkpoint.
        other_split: Whether another split than that of the training is asked for, whose images differ as they should.

    Raises:
        DataError: If the model reads labels and the classes are others, so that a label would mean another class.
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
