"""Rebuild a network from exported weights."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from genimg.config import instantiate
from genimg.config.model_size import require_fitting
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, UserError, is_memory_full
from genimg.exporting.digests import DIGEST, content_digest
from genimg.exporting.formats import require_packages
from genimg.exporting.networks import exportable
from genimg.exporting.parts import Choices, Record
from genimg.utils.json_text import parse_json

log = logging.getLogger(__name__)

_SHOWN = 300  # characters shown of an error; PyTorch lists every tensor


def recipe(
    config: Record, facts: DataFacts, num_images: int, choices: Choices, images_per_second: float | None = None
) -> Record:
    """Return the data that ``rebuilt`` needs in addition to the weights.

    Args:
        config: Config of the training run.
        facts: Facts about the training data.
        num_images: Number of images in the training data.
        choices: Options of the export.
        images_per_second: Images that a second of a duration stands for; None if ``trainer.duration`` is not a time.
    """
    return {
        "model": config["model"],
        "task": config.get("task"),
        "facts": facts.record(),
        "num_images": num_images,
        "batch_size": config["trainer"]["batch_size"],
        "duration": config["trainer"].get("duration"),
        "images_per_second": images_per_second,
        "choices": vars(choices),
    }


def rebuilt(path: str | Path, allow: tuple[str, ...] = (), named: Mapping[str, str] | None = None) -> nn.Module:
    """Rebuild the network in a .safetensors file of genimg-export, with its weights, on the CPU and in evaluation mode.

    It takes the inputs listed in the file's metadata as positional arguments, and returns images [N, C, H, W] in [-1, 1].

    Args:
        path: Path of the file.
        allow: Your own packages that the model's config refers to.
        named: Paths in the model's config that you trust, by parameter; others are not opened.

    Raises:
        CheckpointError: If the file does not exist, is damaged or has other contents.
        ConfigError: If the package safetensors is not installed, or the model's config names objects that are not allowed.
    """
    require_packages("safetensors")
    tensors, metadata = read_safetensors(path)
    if "config" not in metadata:
        raise CheckpointError(f"{path} was not written by genimg-export: it holds no model config")
    if DIGEST not in metadata:
        log.warning("%s was exported without a digest, so damage to it would not be noticed: export it again", path)
    try:
        network = _network(metadata["config"], tensors, allow, named)
        network.load_state_dict(tensors)
    except UserError as error:
        raise type(error)(f"{path} cannot be rebuilt: {error.problem}", error.fix, key=error.key) from error
    except Exception as error:  # an invalid config makes constructors raise almost any type
        if is_memory_full(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{path} cannot be rebuilt, because its config is invalid or does not fit its weights ({reason[:_SHOWN]}): export "
            "it again with this version of genimg"
        ) from error
    return network.eval()


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file and its metadata. The package safetensors must be installed.

    Raises:
        CheckpointError: If it does not exist, is not a complete .safetensors file, or differs from the digest that it records.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist: give a file written by genimg-export format=safetensors")
    tensors, metadata = _contents(path)
    if DIGEST in metadata and metadata[DIGEST] != content_digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its tensors or metadata have changed since the export; export it again")
    return tensors, metadata


def _contents(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = importlib.import_module("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # safetensors raises its own type, and others for dtypes that PyTorch lacks
        if is_memory_full(error):
            raise
        raise CheckpointError(f"{path} is not a complete .safetensors file ({error}): export it again") from error


def _network(recipe: str, tensors: Mapping[str, Tensor], allow: tuple[str, ...], named: Mapping[str, str] | None) -> nn.Module:
    """Build the network that a ``recipe`` in JSON describes; ``tensors`` are its weights, which are not loaded here."""
    config = parse_json(recipe)
    builder = instantiate.Builder(
        (*instantiate.ALLOWED, *allow),
        epoch_size=config["num_images"],
        batch_size=config["batch_size"],
        duration=config.get("duration"),  # files of earlier versions have neither this nor the next
        images_per_second=config.get("images_per_second"),
        named=frozenset((named or {}).items()),
        trains=False,
    )
    facts = DataFacts.restored(config["facts"])
    build = partial(instantiate.build_model, config, facts, builder)
    require_fitting(build, tensors, builder, are_a_part=True)
    return exportable(build().eval(), Choices(**config["choices"]), facts).network
