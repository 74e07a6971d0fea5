"""What several commands do: open a checkpoint, print a table, write JSON."""

from __future__ import annotations

import json
import logging
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genimg.config import instantiate, untrusted
from genimg.config.messages import quoted
from genimg.data.datasets.builtin import Source
from genimg.data.identity import identity_of, refused_differences, warned_differences
from genimg.evaluation.periodic import Evaluation
from genimg.methods.image_to_image import Translation
from genimg.training import checkpoint
from genimg.training.device import describe_hardware
from genimg.types import Method
from genimg.utils.distributed import rank
from genimg.utils.environment import git_commit
from genimg.utils.files import atomically

log = logging.getLogger(__name__)

Config = dict[str, Any]


def require_all_values(composed: DictConfig) -> None:
    """Refuse a config in which a ``???`` is left.

    Raises:
        ValueError: naming the first.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{missing[0]} is required: set {missing[0]}=VALUE")


def open_checkpoint(given: object, which: str) -> tuple[Path, Config]:
    """A checkpoint's path and content; ``which`` is ``last`` or ``best``, of a run directory."""
    path = checkpoint.find(Path(str(given)).expanduser(), which)
    state = checkpoint.load(path)
    checkpoint.require_whole(state, path)
    return path, state


def open_for_use(options: Config) -> tuple[Path, Config, instantiate.Builder]:
    """A checkpoint for anything but training: its path, its content, and the builder of its config.

    Args:
        options: of the command; keys of the checkpoint's config are removed from them, and take their place in it.

    Raises:
        FileNotFoundError, ValueError: if there is no such checkpoint, or a key has no effect on it.
    """
    path, state = open_checkpoint(options["ckpt"], options["which"])
    builder = instantiate.builder_of(state, options["allow"])
    state["config"], builder = untrusted.named_again(state["config"], builder, untrusted.keys_of_command(options))
    return path, state, builder


def load_method(config: Config, builder: instantiate.Builder, state: Config, device: torch.device) -> Method:
    """The checkpoint's method with its weights, on the device, in evaluation mode."""
    untrusted.take_out(config, builder, ("conditioning", "model"))
    method: Method = builder.build(config["model"], "model")
    if isinstance(method, Translation):
        method.task = instantiate.task_of(config, builder)
    method.load_state_dict(state["method"])
    return method.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def check_own_images(source: Source, method: Method, state: Config, *, other_split: bool) -> None:
    """Compare the images that a checkpoint's config names now with those that it was trained on.

    Args:
        source: The images.
        method: The checkpoint's model.
        state: The checkpoint.
        other_split: Whether another split than that of the training is asked for, whose images differ as they should.

    Raises:
        ValueError: If the model reads labels and the classes are others, so that a label would mean another class.
    """
    known = tuple(state.get("class_names", source.class_names))
    if "label" in method.batch_keys and tuple(source.class_names) != known:
        raise ValueError(
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


def table(columns: dict[str, dict[str, float]]) -> str:
    """Values by name, one column a title; a name that a column lacks is left empty there."""
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    width = max(map(len, names)) + 2
    widths = {title: max(28, len(title) + 2) for title in columns}
    header = " " * width + "".join(title.rjust(widths[title]) for title in columns)
    rows = [
        name.ljust(width)
        + "".join((f"{values[name]:.6g}" if name in values else "").rjust(widths[title]) for title, values in columns.items())
        for name in names
    ]
    return "\n".join([header.rstrip(), *(row.rstrip() for row in rows)])


def sentence(provenance: Config) -> str:
    """The provenance of a value, as short as it can be said."""
    if "translation" in provenance:
        made = provenance["translation"]
        which = "held-out" if made["held_out"] else "training"
        return f"{made['num_images']} {which} images of {made['source']}, translated in {made['mode']} mode"
    if "likelihood" in provenance:
        made = provenance["likelihood"]
        which = {True: "held-out ", False: "training ", None: ""}[made["held_out"]]
        return (
            f"{made['num_images']} {which}images of {made['source']}, {made['num_samples']} samples of each, {made['of']}, "
            f"seed {made['seed']}"
        )
    extractor, made, real = provenance["extractor"], provenance["generated"], provenance["real"]
    digest = (extractor["weights_sha256"] or "no file")[:8]
    count = "an unrecorded number of" if real["num_images"] is None else real["num_images"]
    text = f"{extractor['name']} ({digest}), {made['num_images']} generated against {count} real images of {real['source']}"
    if "extractor" in real:
        text += " (whose extractor is not recorded)"
    if "weights" in made:
        return text + f", {made['weights']} weights, seed {made['seed']}"
    return text + f", generated: {made['source']}"


def report(
    what: str, columns: dict[str, dict[str, float]], result: Evaluation, options: Config, device: torch.device, subject: Config
) -> None:
    """Print a result with what it depends on, and write it where ``output`` says.

    Args:
        what: was measured.
        columns: of the printed table.
        result: of the evaluation.
        options: of the command: ``provenance`` and ``output``.
        device: that it was measured on.
        subject: what else the written record holds.
    """
    log.info("%s", what)
    log.info("%s", table(columns))
    log.info("measured with %s", sentence(result.provenance))
    if options["provenance"]:
        log.info("%s", json.dumps(result.provenance, indent=2, ensure_ascii=False))
    if options["output"] is not None and rank() == 0:
        record = {
            **subject,
            "metrics": result.values,
            "intervals": {name: list(bounds) for name, bounds in result.intervals.items()},
            "provenance": result.provenance,
            "warnings": list(result.warnings),
            "hardware": describe_hardware(device),
            "git_commit": git_commit(),
        }
        write_json(Path(options["output"]), record)
        log.info("written to %s", options["output"])


def relative(path: Path) -> Path:
    """As seen from the working directory, where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def argument(key: str, path: Path) -> str:
    """``key=path`` as it can be pasted, with the quotes that Hydra and then the shell need."""
    text = str(path)
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return f"{key}={text}"
    return shlex.quote(f"{key}={quoted(text)}")


def write_json(path: Path, value: Config) -> None:
    """The file appears whole or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_writable(key: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        ValueError: naming the key and the path.
    """
    if path.is_dir():
        raise ValueError(f"{key}={path} is a directory: name a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{key}={path} cannot be written ({folder}: {error.strerror}): choose another {key}") from error


def check_output_directory(output: Path) -> None:
    """Refuse an output that ``directory_atomically`` could not put in its place.

    Raises:
        ValueError: naming it.
    """
    if output.is_dir():
        if any(output.iterdir()):
            raise ValueError(f"output={output} exists and is not empty: remove it, or choose another output")
        if output.is_mount():  # nothing can take its place
            raise ValueError(f"output={output} is where a disk is mounted: name a directory on it")
    elif output.exists():
        raise ValueError(f"output={output} is a file: name a directory that does not exist yet")
    else:
        check_writable("output", output)
