"""Custom networks as extractors, built from a config."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors.base import (
    Extractor,
    check_sha256,
    describe_preparation,
    existing,
    in_one_line,
    prepare,
    refuse_published_name,
)
from genimg.utils.files import sha256_of
from genimg.utils.machine_local import LocalPath


class CustomExtractor(Extractor):
    """A network from float images in [-1, 1] to features [N, D], or to features and logits [N, K]."""

    def __init__(
        self, name: str, network: nn.Module, weights_sha256: str | None, channels: int | None, image_size: int | None
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]\w*", name):
            raise ConfigError(f"name={name} must be letters, digits and _: it becomes part of metric names")
        refuse_published_name(name, f"name={name}")
        if channels not in (None, 1, 3):
            raise ConfigError(f"channels={channels} must be 1, 3, or null for the images' own")
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size={image_size} must be 1 or more pixels, or null")
        self._prepared_channels, self._image_size = channels, image_size
        network.eval()
        has_logits = self._has_logits(network, name)
        resize, handling = describe_preparation(channels, image_size)
        super().__init__(
            name=name,
            network=network,
            weights_sha256=weights_sha256,
            resize=resize,
            channels=handling,
            has_logits=has_logits,
        )

    @torch.no_grad()
    def _has_logits(self, network: nn.Module, name: str) -> bool:
        """Return whether the network returns logits. Running it on two and three images detects unsuitable networks early."""
        size = self._image_size or 32
        failures: list[Exception] = []
        for channels in (3, 1) if self._prepared_channels is None else (self._prepared_channels,):
            try:
                outputs = [network(torch.zeros(count, channels, size, size)) for count in (2, 3)]
                break
            except Exception as error:  # a user's network may raise any exception
                failures.append(error)
        else:
            raise ConfigError(
                f"name={name} is a network that cannot be run on two and on three images of {channels} channels and "
                f"{size}x{size} pixels ({in_one_line(failures[0])}): set channels and image_size to match its input; an "
                "exported program needs a dynamic batch dimension"
            ) from failures[0]
        parts = outputs[0] if isinstance(outputs[0], tuple | list) else (outputs[0],)
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        if len(parts) > 2 or any(not isinstance(part, Tensor) or part.dim() != 2 or len(part) != 2 for part in parts):
            raise ConfigError(
                f"name={name} is a network that returned {shapes} for two images: it must return features [N, D], or features "
                "and logits [N, K]"
            )
        return len(parts) == 2

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.network(prepare(images, self._prepared_channels, self._image_size))
        return tuple(output) if self.has_logits else (output[0] if isinstance(output, tuple | list) else output, None)


class Module(CustomExtractor):
    """A network built from a config, from your own package (``allow=[PACKAGE]``) or from ``torch.nn``.

    Args:
        name: Name, part of the metric names.
        network: Network from float images [N, C, H, W] in [-1, 1] to features [N, D], or to features and logits [N, K].
        weights: Path of its state_dict; None keeps the initial weights.
        sha256: Digest of that file; None accepts any.
        channels: Number of channels (1 or 3) that images are converted to; None keeps their number.
        image_size: Size in pixels that images are resized to; None keeps their size.

    Raises:
        DataError: If the weights do not exist, have another digest, or do not fit the network.
        ConfigError: If a parameter is invalid, or the network does not return features.
    """

    def __init__(
        self,
        *,
        name: str,
        network: nn.Module,
        weights: LocalPath | None,
        sha256: str | None,
        channels: int | None,
        image_size: int | None,
    ) -> None:
        found = None
        if weights is not None:
            path = existing(weights, "weights")
            found = sha256_of(path)
            check_sha256(path, found, sha256)
            try:
                network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # the unpickler can raise almost anything for other kinds of file
                raise DataError(f"weights={weights} do not fit {type(network).__name__} ({in_one_line(error)})") from error
        elif sha256 is not None:
            raise ConfigError(f"sha256={sha256} has no effect without weights: remove it")
        super().__init__(name, network, found, channels, image_size)
        self._identity = _digest_of(network)

    def describe(self) -> dict[str, Any]:
        """Add a digest of the network, because networks with the same name and without a file can differ."""
        return {**super().describe(), "network_sha256": self._identity}


def _digest_of(network: nn.Module) -> str:
    digest = hashlib.sha256(f"{type(network).__module__}.{type(network).__qualname__}\n{network}".encode())
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
