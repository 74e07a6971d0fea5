"""Files of latents, which genimg-latents writes and genimg-latents and genimg-sample read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg.errors import DataError
from genimg.methods.generator_latents import GeneratorLatents, LatentCodes
from genimg.types import Batch
from genimg.utils.paths import expanded
from genimg.utils.regular_files import UnsafeFileError
from genimg.utils.verified_torch import DamagedFileError, load_verified

log = logging.getLogger(__name__)

CODES_NAME = "latents.pt"
"""Name of a file of latents in an output folder."""

_FORMAT = 1


def save_codes(path: Path, codes: LatentCodes, names: Sequence[str], model: str) -> None:
    """Write the latents of N images, without making the file appear atomically.

    Args:
        path: The file, in a directory that is itself temporary.
        codes: The latents.
        names: Names of the images.
        model: Digest of the checkpoint.
    """
    content = {
        "format": _FORMAT, "kind": "latents", "space": codes.space, "values": codes.values.cpu(), "names": list(names),
        "condition": {key: value.cpu().contiguous() for key, value in codes.condition.items()},
        "noise_maps": [each.cpu() for each in codes.noise_maps], "model": model,
    }  # fmt: skip
    torch.save(content, path)


def load_codes(key: str, given: object, latents: GeneratorLatents, model: str) -> LatentCodes:
    """Read a file of latents, and check that it fits the generator.

    Args:
        key: Name of the option.
        given: Path of the file, or of the folder that genimg-latents wrote it into.
        latents: The generator.
        model: Digest of its checkpoint; a file with another one is read with a warning.

    Returns:
        The latents, on the CPU.

    Raises:
        DataError: If the file does not exist, is damaged, or does not fit the generator.
    """
    content = load_file(key, given, CODES_NAME, "latents", _FORMAT)
    what = f"{key}={given}"
    space = content.get("space")
    values: Any = content.get("values")
    if space not in latents.spaces:
        raise DataError(
            f"{what} holds latents of the space {space}, which this model does not have ({', '.join(latents.spaces)})",
            "give the checkpoint that they were made with",
        )
    shape = latents.shape(space)
    if not is_finite(values, shape):
        raise DataError(f"{what} does not hold finite latents [N, {', '.join(map(str, shape))}] of this model",
                        "give the checkpoint that they were made with")  # fmt: skip
    count = len(values)
    maps, sizes = content.get("noise_maps"), latents.noise_sizes
    fits = isinstance(maps, list) and (
        not maps
        or (
            len(maps) == len(sizes)
            and all(is_finite(each, (1, *size)) and len(each) == count for each, size in zip(maps, sizes, strict=True))
        )
    )
    if not fits:
        raise DataError(f"{what} holds noise that does not fit the layers of this model",
                        "give the checkpoint that they were made with")  # fmt: skip
    condition = _condition(what, content.get("condition"), latents, count)
    warn_of_other_model(what, content, model)
    return LatentCodes(space, values, condition, tuple(maps))  # type: ignore[arg-type]


def folder_of(key: str, given: object) -> str:
    """Return the name of the folder that holds a file of latents, given the path of either, for names of outputs."""
    path = expanded(key, given).resolve()
    return path.name if path.is_dir() else path.parent.name


def load_file(key: str, given: object, name: str, kind: str, version: int) -> dict[str, Any]:
    """Read a file that genimg-latents wrote, and return its content.

    Args:
        key: Name of the option.
        given: Path of the file, or of a folder with the file ``name``.
        name: Name of such a file in a folder.
        kind: Kind of content, ``latents`` or ``directions``.
        version: Version of the format.

    Raises:
        DataError: If the file does not exist, is damaged, or holds something else.
    """
    path = expanded(key, given)
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{key}={given} is not a file: give {name}, or the folder, that genimg-latents wrote")
    try:
        content = load_verified(path)
    except (DamagedFileError, UnsafeFileError) as error:
        raise DataError(f"{key}={given}: {error.problem}", error.fix or f"give {name} that genimg-latents wrote") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise DataError(f"{key}={given} does not hold {kind}: give {name}, or the folder, that genimg-latents wrote")
    if content.get("format") != version:
        raise DataError(f"{key}={given} has the format {content.get('format')}, but this version of genimg reads {version}")
    return content


def is_finite(values: Any, shape: tuple[int, ...]) -> bool:
    r"""Return whether a value is a finite float32 tensor [N, \*shape] with N of 1 or more."""
    is_tensor = isinstance(values, Tensor) and values.dtype == torch.float32 and tuple(values.shape[1:]) == shape
    return is_tensor and len(values) > 0 and bool(values.isfinite().all())


def warn_of_other_model(what: str, content: Mapping[str, Any], model: str) -> None:
    """Log a warning if a file was made with another checkpoint than the one with the digest ``model``."""
    if content.get("model") != model:
        log.warning("%s was made with another checkpoint, so its images can differ", what)


def _condition(what: str, given: object, latents: GeneratorLatents, count: int) -> Batch:
    """Return the conditions of a file, after checking that the model reads them."""
    key = latents.condition_key
    value = given.get(key) if isinstance(given, dict) and key is not None else None
    is_whole = isinstance(given, dict) and given.keys() == (set() if key is None else {key})
    if is_whole and key is None:
        return {}
    kinds = {"label": (torch.int64, 1), "caption": (torch.uint8, 2)}
    if is_whole and isinstance(value, Tensor) and (value.dtype, value.ndim) == kinds[str(key)] and len(value) == count:
        is_known = key != "label" or (value.min() >= 0 and value.max() < latents.num_classes)
        if is_known:
            return {str(key): value}
    raise DataError(f"{what} does not hold the {key or 'empty'} conditions that this model reads",
                    "give the checkpoint that they were made with")  # fmt: skip
