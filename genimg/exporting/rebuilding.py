"""Exported weights as a network again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import nn

from genimg.config import instantiate
from genimg.config.model_size import require_fitting
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError
from genimg.exporting.formats import require_packages
from genimg.exporting.parts import Choices, Record, exportable


def recipe(config: Record, facts: DataFacts, num_images: int, choices: Choices) -> Record:
    """What ``rebuilt`` needs beside the weights.

    Args:
        config: of the training.
        facts: about its data.
        num_images: of its data.
        choices: of the export.
    """
    return {
        "model": config["model"],
        "task": config.get("task"),
        "facts": facts.record(),
        "num_images": num_images,
        "batch_size": config["trainer"]["batch_size"],
        "choices": vars(choices),
    }


def rebuilt(path: str | Path, allow: tuple[str, ...] = (), named: Mapping[str, str] | None = None) -> nn.Module:
    """The network of a .safetensors file that genimg-export wrote, with its weights, on the CPU and in evaluation mode.

    It takes the inputs that the file's metadata names, one after another, and answers images [N, C, H, W] in [-1, 1].

    Args:
        path: of the file.
        allow: packages of your own that the model's config names.
        named: paths in the model's config that you trust, by parameter; others are not opened.

    Raises:
        CheckpointError: If there is no such file, or it holds something else.
        ConfigError: If the package safetensors is not installed.
    """
    require_packages("safetensors")
    safetensors = importlib.import_module("safetensors")
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist: name a file that genimg-export format=safetensors has written")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no whole .safetensors file ({error}): export it again") from error
    if "config" not in metadata:
        raise CheckpointError(f"{path} was not written by genimg-export, which would have left the model's config in it")
    config = json.loads(metadata["config"])
    builder = instantiate.Builder(
        (*instantiate.ALLOWED, *allow),
        epoch_size=config["num_images"],
        batch_size=config["batch_size"],
        named=frozenset((named or {}).items()),
        trains=False,
    )
    facts = DataFacts.restored(config["facts"])
    build = partial(instantiate.build_model, config, facts, builder)
    require_fitting(build, tensors, builder, are_a_part=True)
    network = exportable(build().eval(), Choices(**config["choices"]), facts).network
    network.load_state_dict(tensors)
    return network.eval()
