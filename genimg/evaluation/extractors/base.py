"""What an extractor is, how its weights are found and checked, and how images are prepared for it."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import ConfigError, DataError, NeedsDownloadError

log = logging.getLogger(__name__)


class WeightsNotAtHandError(DataError):
    """Published weights are neither on the disk nor can they be downloaded."""


class WeightsNotDownloadedError(WeightsNotAtHandError, NeedsDownloadError):
    """Published weights are not on the disk, and the caller did not allow to download them."""


class Extractor(ABC):
    """A fixed network that maps images to features.

    Args:
        name: what metrics made with it are called after.
        network: in evaluation mode from here on.
        weights_sha256: of the weights' file; None where there is none.
        resize: in words, what happens to an image of another size.
        channels: in words, what happens to grey images, colour and alpha.
        has_logits: whether it also classifies.
        class_names: by logit, where they are known.

    Attributes:
        has_spatial: Whether it has spatial features beside the others.
        spatial: Those of the last batch [N, S].
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
        """What a metric made with it is called: ``fd`` of ``5k`` images is ``fd5k_mnist_v2``."""
        return f"{metric}{count}_{self.name}"

    def describe(self) -> dict[str, Any]:
        """What determines the features; part of every value's provenance and of the cache's key."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "channels": self.channels,
        }

    def to(self, device: torch.device) -> Extractor:
        """Move the network; does nothing where it is there already."""
        if device != self.device:
            self.network.to(device)
            self.device = device
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [N, C, H, W] -> features [N, D] and class logits [N, K], or None without logits."""
        return self.extract(images.to(self.device))

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``__call__``, for images on the network's device."""


GREY_IS_REPLICATED = "grey replicated to 3, alpha dropped"


def three_channels(images: Tensor) -> Tensor:
    """Images [N, C, H, W] with C of 1, 3 or 4 as [N, 3, H, W]: grey is replicated, alpha dropped."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]


def prepare(images: Tensor, channels: int | None, image_size: int | None) -> Tensor:
    """uint8 [N, C, H, W] to float in [-1, 1], with other channels (1 or 3) and another size (pixels) where they are given.

    Colour becomes grey by its luma; sizes change by bilinear interpolation with anti-aliasing; alpha is dropped.
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
    """``prepare`` in words: what it does to sizes, and to channels."""
    resize = "none" if image_size is None else f"bilinear with anti-aliasing to {image_size}x{image_size}"
    words = {1: "colour to grey by its luma, alpha dropped", 3: GREY_IS_REPLICATED, None: "alpha dropped"}
    return resize, words[channels]


@dataclass(frozen=True)
class Weights:
    """Where published weights come from.

    Attributes:
        what: in words, for messages.
        variable: an environment variable that may hold the file's path.
        file: its name in torch hub's cache.
        url: where it is published.
        sha256: of the published file.
    """

    what: str
    variable: str
    file: str
    url: str
    sha256: str

    def find(self, given: str | None, sha256: str | None, *, may_download: bool = True) -> tuple[Path, str]:
        """The file and its digest: the path given, else the environment variable's, else hub's cache, else a download.

        Raises:
            DataError: If the weights are not found, or their digest is not ``sha256`` (None accepts any).
        """
        path = self._given(given)
        if path is None:
            path = Path(torch.hub.get_dir()) / "checkpoints" / self.file
            if not path.is_file():
                if not may_download:
                    raise WeightsNotDownloadedError(
                        f"{self.what} are not at {path}", f"put the file {self.file} there", key="weights"
                    )
                self._download(path)
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        return path, found

    def _given(self, given: str | None) -> Path | None:
        for source, value in (("weights", given), (self.variable, os.environ.get(self.variable))):
            if value:
                path = Path(value).expanduser()
                if not path.is_file():
                    raise DataError(f"{source}={value} is not a file: name {self.what}")
                return path
        return None

    def _download(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log.info("downloading %s to %s", self.what, path)
            torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.sha256)
        except (OSError, RuntimeError) as error:
            raise WeightsNotAtHandError(
                f"{self.what} are not at {path} and could not be downloaded ({error}): put the file {self.file} there, or "
                f"name another place with weights=PATH or {self.variable}=PATH, or choose another evaluation",
                key="weights",
            ) from error


def check_sha256(path: Path, found: str, wanted: str | None) -> None:
    """Refuse a file with another digest than an extractor's parameter ``sha256``.

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
        DataError: If there is none.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise DataError(f"{key}={path} is not a file")
    return found


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_published_name(name: str, given: str) -> None:
    """Refuse the name of a published network for the metrics of another one.

    Args:
        name: Name of the extractor.
        given: The parameter that determines it, as ``name=value``.

    Raises:
        ConfigError: If it is such a name.
    """
    if name.startswith(("inception", "dinov2_", "clip_")):
        raise ConfigError(f"{given} has the name of a published network: choose another name for your own")


def in_one_line(error: Exception) -> str:
    """What an error says, not too long, or its kind where it says nothing."""
    text = " ".join(str(error).split())
    return text[:300] if text else type(error).__name__
