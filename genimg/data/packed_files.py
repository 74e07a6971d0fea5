"""The files of a packed dataset, and the checksums that detect damage to them.

A directory of genimg-prepare contains ``shard-00000.npy``, ``shard-00001.npy``, ... (uint8 [N, C, H, W]); ``checksums.npy``
(uint32 [N], the CRC-32 of each image's C·H·W bytes); ``labels.npy`` (int64 [N]) and ``captions.jsonl`` (one JSON string
per line), if there are any; latents or noise, if there are any (genimg.data.packed_latents); and ``dataset.json``. That file is
written last, describes the others, and contains the digests of all but the shards' pixels and the latents. It also has the
SHA-256 of each shard, for ``sha256sum``; genimg does not compare it, because that would mean reading all pixels at the start.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from genimg.data.numpy_archive import MOST_HEADER
from genimg.errors import DataError
from genimg.utils.json_text import parse_json

FORMAT = 2
WITH_LATENTS = 3
"""The format of directories that also hold latents."""
WITH_NOISE = 4
"""The format of directories that hold generated images with their noise."""
WITHOUT_CHECKSUMS = 1
"""The older format, which is still supported."""

DESCRIPTION, LABELS, CAPTIONS, CHECKSUMS = "dataset.json", "labels.npy", "captions.jsonl", "checksums.npy"
LATENT_CHECKSUMS = "latent_checksums.npy"
LATENT, NOISE = "latent_", "noise"
"""Prefix of the key of latents in a batch, which the digest of the autoencoder's weights follows, and key of noise."""

_SEAL = "sha256"  # the key of the description's own digest
_SHARD = re.compile(r"shard-\d{5,}\.npy")


@dataclass(frozen=True)
class Shard:
    """A file of images.

    Attributes:
        file: Name of the file.
        num_images: Number of images in the file.
        num_bytes: Size of the file in bytes.
        sha256: SHA-256 of the file.
    """

    file: str
    num_images: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Latents:
    """The latents of the images: those of an autoencoder, or the noise from which a model generated the images.

    Attributes:
        shape: Shape (C, h, w) of the latents of an image.
        sha256: Digest of the weights of the autoencoder that made them, or of the model that generated the images.
        run: Path of that model's checkpoint, for the record.
        is_noise: Whether they are noise.
    """

    shape: tuple[int, int, int]
    sha256: str
    run: str
    is_noise: bool = False

    @property
    def key(self) -> str:
        """Key of the latents in a batch."""
        return NOISE if self.is_noise else LATENT + self.sha256


@dataclass(frozen=True)
class Description:
    """The content of ``dataset.json``.

    Attributes:
        num_images: Number of images in all shards.
        shape: Shape of an image, (C, H, W).
        class_names: Class names by label; empty without labels.
        labelled, captioned: Whether there is a file of labels, and of captions.
        shards: Files of images, in order.
        source: Origin of the images, as primitives: name, fingerprint, number of images, fit and more.
        genimg_version: Version of genimg that packed the images.
        digests: SHA-256 of the checksums, labels and captions, by file name; empty for ``WITHOUT_CHECKSUMS``.
        latents: The latents; None if there are none.
    """

    num_images: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    labelled: bool
    captioned: bool
    shards: tuple[Shard, ...]
    source: dict[str, Any]
    genimg_version: str
    digests: dict[str, str]
    latents: Latents | None = None

    @property
    def has_checksums(self) -> bool:
        """Whether damage to the images, labels and captions can be detected."""
        return bool(self.digests)

    @property
    def format(self) -> int:
        """Version of the format that this content needs."""
        if self.latents is None:
            return FORMAT
        return WITH_NOISE if self.latents.is_noise else WITH_LATENTS

    def write(self, folder: Path) -> None:
        """Write ``dataset.json`` with its own digest."""
        content = asdict(self)
        if self.latents is None:
            del content["latents"]
        elif not self.latents.is_noise:
            del content["latents"]["is_noise"]  # as in directories of older versions
        content = sealed({"format": self.format, **content})
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")

    @classmethod
    def read(cls, path: Path) -> Description:
        """Read a description from a file.

        Raises:
            DataError: If the file is damaged, or has an unsupported format.
        """
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            version = content.pop("format")
            if version in (FORMAT, WITH_LATENTS, WITH_NOISE):
                seal = content.pop(_SEAL)
                if seal != sealed({"format": version, **content})[_SEAL]:
                    raise ValueError("its content has changed")
                description = cls._checked(content)
                if description.format != version:
                    raise ValueError(f"its content has format {description.format}, not {version}")
                return description
            if version == WITHOUT_CHECKSUMS:
                if "latents" in content:
                    raise ValueError("this format has no latents")
                return cls._checked({"digests": {}, **content}, with_checksums=False)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"the file {path} is damaged, or was not written by genimg-prepare ({reason}): pack the images again"
            ) from error
        raise DataError(
            f"the file {path} has format {version}, but this genimg reads formats up to {WITH_NOISE}: pack the images again, "
            "or use the genimg that packed them"
        )

    @classmethod
    def _checked(cls, content: dict[str, Any], *, with_checksums: bool = True) -> Description:
        channels, height, width = map(int, content["shape"])
        description = cls(
            **content
            | {
                "shape": (channels, height, width),
                "class_names": tuple(map(str, content["class_names"])),
                "shards": tuple(Shard(**shard) for shard in content["shards"]),
                "latents": _latents(content["latents"]) if "latents" in content else None,
            }
        )
        numbers = [
            description.num_images,
            *description.shape,
            *(each for shard in description.shards for each in (shard.num_images, shard.num_bytes)),
        ]
        flags = (description.labelled, description.captioned)
        if any(type(number) is not int or number < 1 for number in numbers) or any(type(flag) is not bool for flag in flags):
            raise TypeError("a number or a flag has the wrong type")
        if sum(shard.num_images for shard in description.shards) != description.num_images or description.num_images < 1:
            raise ValueError("the shards' numbers of images do not add up")
        if not isinstance(description.source["name"], str):
            raise TypeError("the source has no name")
        if not all(_SHARD.fullmatch(shard.file) and isinstance(shard.sha256, str) for shard in description.shards):
            raise ValueError("a shard has an unexpected name")  # a downloaded description could name a file elsewhere
        present = [CHECKSUMS, *(name for name, flag in zip((LABELS, CAPTIONS), flags, strict=True) if flag)]
        present += [LATENT_CHECKSUMS] if description.latents is not None else []
        if description.latents is not None and description.latents.is_noise and description.latents.shape != description.shape:
            raise ValueError("the noise has another shape than the images")
        if list(description.digests.keys()) != (present if with_checksums else []):
            raise ValueError("the digests name other files")
        return description


def _latents(content: dict[str, Any]) -> Latents:
    channels, height, width = content["shape"]
    if any(type(side) is not int or side < 1 for side in (channels, height, width)):
        raise TypeError("a side of the latents has the wrong type")
    is_noise = content.get("is_noise", False)
    if type(is_noise) is not bool:
        raise TypeError("is_noise has the wrong type")
    return Latents((channels, height, width), str(content["sha256"]), str(content["run"]), is_noise)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a description with its digest, which depends on the JSON values but not on their formatting."""
    return {**content, _SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()}


def require_size(path: Path, num_bytes: int | None) -> None:
    """Reject a file that is missing or, if ``num_bytes`` is given, has another size."""
    if not path.is_file():
        raise DataError(f"the file {path} is missing: copy it again, or pack the images again")
    found = path.stat().st_size
    if num_bytes is not None and found != num_bytes:
        raise DataError(
            f"the file {path} has {found} bytes, but {DESCRIPTION} says {num_bytes}: copy it again, or pack the images again"
        )


def read_whole(path: Path, description: Description) -> bytes:
    """Return the content of a file after comparing its digest, if the description has digests.

    Raises:
        DataError: If the file is missing or damaged.
    """
    require_size(path, None)
    content = path.read_bytes()
    if description.has_checksums and hashlib.sha256(content).hexdigest() != description.digests[path.name]:
        raise damaged(path, f"its SHA-256 differs from that in {DESCRIPTION}")
    return content


def read_vector(path: Path, description: Description, dtype: type[np.generic]) -> NDArray[Any]:
    """Read an .npy file of one value per image; a file that is too large is not read.

    Raises:
        DataError: If the file is missing, damaged, or has another shape or type.
    """
    require_size(path, None)
    num_bytes = description.num_images * np.dtype(dtype).itemsize
    if path.stat().st_size > num_bytes + MOST_HEADER:
        raise damaged(path, "it is too large")
    with io.BytesIO(read_whole(path, description)) as file:
        start = check_header(file, path, (description.num_images,), dtype)
        file.seek(start)
        content = file.read()
    if len(content) != num_bytes:
        raise damaged(path, f"its values take {len(content)} bytes, not {num_bytes}")
    return np.frombuffer(content, dtype)


def check_header(file: BinaryIO, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    """Check the shape and type in an .npy header, and return the offset of the values in bytes.

    Raises:
        DataError: If the header is damaged, or has another shape or type.
    """
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its header has an unknown version")
        found, is_transposed, found_dtype = np.lib.format.read_array_header_1_0(file)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy's parser raise nearly anything
        raise damaged(path, " ".join(str(error).split())) from error
    if found != shape or found_dtype != np.dtype(dtype) or (is_transposed and len(shape) > 1):
        raise DataError(
            f"the file {path} holds {found_dtype} {list(found)}, not {np.dtype(dtype)} {list(shape)} as {DESCRIPTION} says: "
            "copy it again, or pack the images again"
        )
    return file.tell()


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for a damaged file."""
    return DataError(f"the file {path} is damaged ({reason}): copy it again, or pack the images again")
