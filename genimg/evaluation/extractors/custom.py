"""Your own networks as extractors: a module that a config builds, or a program that torch.export saved."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from genimg.evaluation.extractors.base import Extractor, check_sha256, describe_preparation, in_one_line, prepare, sha256_of


class _Custom(Extractor):
    """A network from float images in [-1, 1] to features [N, D], or to features and logits [N, K]."""

    def __init__(
        self, name: str, network: nn.Module, weights_sha256: str | None, channels: int | None, image_size: int | None
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]\w*", name):
            raise ValueError(f"evaluation.extractor.name={name} must be letters, digits and _: it becomes part of metric names")
        if channels not in (None, 1, 3):
            raise ValueError(f"evaluation.extractor.channels={channels} must be 1, 3, or null for the images' own")
        if image_size is not None and image_size < 1:
            raise ValueError(f"evaluation.extractor.image_size={image_size} must be 1 or more pixels, or null")
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
        """Try the network on two images and on three, so that what does not fit shows before any work."""
        size = self._image_size or 32
        failures: list[Exception] = []
        for channels in (3, 1) if self._prepared_channels is None else (self._prepared_channels,):
            try:
                outputs = [network(torch.zeros(count, channels, size, size)) for count in (2, 3)]
                break
            except Exception as error:  # whatever a network of the user's may raise
                failures.append(error)
        else:
            raise ValueError(
                f"the extractor {name} cannot be run on two and on three images of {channels} channels and {size}x{size} "
                f"pixels ({in_one_line(failures[0])}): set evaluation.extractor.channels and evaluation.extractor.image_size "
                "to what it takes; an exported program needs a dynamic batch dimension"
            ) from failures[0]
        parts = outputs[0] if isinstance(outputs[0], tuple | list) else (outputs[0],)
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        if len(parts) > 2 or any(not isinstance(part, Tensor) or part.dim() != 2 or len(part) != 2 for part in parts):
            raise ValueError(
                f"the extractor {name} returned {shapes} for two images: it must return features [N, D], or features and "
                "logits [N, K]"
            )
        return len(parts) == 2

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.network(prepare(images, self._prepared_channels, self._image_size))
        return tuple(output) if self.has_logits else (output[0] if isinstance(output, tuple | list) else output, None)


class Module(_Custom):
    """A network that the config builds, from a package of your own (``allow=[PACKAGE]``) or from ``torch.nn``.

    Args:
        name: what metrics are called after.
        network: float images [N, C, H, W] in [-1, 1] -> features [N, D], or features and logits [N, K].
        weights: path of its state_dict; None leaves the network as it is built.
        sha256: of that file; None accepts any.
        channels: 1 or 3, to which images are converted; None leaves them.
        image_size: pixels, to which images are resized; None leaves them.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if their digest is another or they do not fit, or the network returns something else.
    """

    def __init__(
        self,
        *,
        name: str,
        network: nn.Module,
        weights: str | None,
        sha256: str | None,
        channels: int | None,
        image_size: int | None,
    ) -> None:
        found = None
        if weights is not None:
            path = _existing(weights, "weights")
            found = sha256_of(path)
            check_sha256(path, found, sha256)
            try:
                network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
                raise ValueError(f"{path} does not hold weights for {type(network).__name__} ({in_one_line(error)})") from error
        elif sha256 is not None:
            raise ValueError("evaluation.extractor.sha256 has no effect without evaluation.extractor.weights: remove it")
        super().__init__(name, network, found, channels, image_size)


class Program(_Custom):
    """A network that ``torch.export.save`` wrote: needs no code of yours. Its batch dimension must be dynamic.

    Args:
        program: path of the .pt2 file.
        name, sha256, channels, image_size: see Module.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an exported program, its digest is another, or it returns something else.
    """

    def __init__(self, *, name: str, program: str, sha256: str | None, channels: int | None, image_size: int | None) -> None:
        path = _existing(program, "program")
        found = sha256_of(path)
        check_sha256(path, found, sha256)
        try:
            network = torch.export.load(path).module()
        except Exception as error:  # a file of another kind makes the loader raise nearly anything
            raise ValueError(
                f"evaluation.extractor.program={program} is not a program of torch.export.save ({in_one_line(error)})"
            ) from error
        network.eval = lambda: network  # type: ignore[method-assign]  # an exported program has one mode and refuses to change it
        super().__init__(name, network, found, channels, image_size)


def _existing(path: str, key: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"evaluation.extractor.{key}={path} is not a file")
    return found
