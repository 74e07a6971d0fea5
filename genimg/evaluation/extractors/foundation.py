"""DINOv2 and CLIP: networks trained without ImageNet's labels. Images are resized as for published tables.

The names of their metrics end in ``_bicubic``, because until November 2026 images were resized by TensorFlow 1's bilinear
filter, which gave other values.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors.base import (
    GREY_IS_REPLICATED,
    Extractor,
    Weights,
    WeightsNotDownloadedError,
    in_one_line,
    loaded_from,
    three_channels,
)
from genimg.evaluation.extractors.resizing import pillow_bicubic, pillow_bicubic_crop
from genimg.utils.machine_local import FoundPath, MayDownload, PublishedDigest

# Digests of the published files, by hub model.
DINOV2_SHA256 = {
    "dinov2_vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dinov2_vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2_vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "dinov2_vitg14": "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3",
}
_DINOV2_SIZE = 224
_DINOV2_COMMIT = "7764ea0f912e53c92e82eb78a2a1631e92725fc8"


class DINOv2(Extractor):
    """The class token of a DINOv2 vision transformer (Oquab et al. 2023), for FD-DINOv2 (Stein et al. 2023).

    The protocol is that of Stein et al. and their dgm-eval: images of any shape are resized to 224x224 by Pillow's bicubic
    filter in 8 bits, and normalised by ImageNet's mean and deviation.

    The network's code is run from the directory $GENIMG_DINOV2_REPOSITORY, a checkout of facebookresearch/dinov2, else from
    torch hub's cache, else downloaded. A config cannot set the directory, because it may come from a downloaded checkpoint.

    Args:
        model: ``dinov2_vits14``, ``dinov2_vitb14``, ``dinov2_vitl14`` or ``dinov2_vitg14``.
        weights: Path of the weights file; None uses $GENIMG_DINOV2_WEIGHTS, else torch hub's cache, else a download.
        sha256: Digest of that file; ``published`` is the digest of Meta's file, None accepts any.
        may_download: Whether missing code and weights are downloaded.

    Raises:
        DataError: If code or weights are not found, or the weights have another digest or do not fit.
        ConfigError: If the model is unknown.
    """

    def __init__(
        self, *, model: str, weights: FoundPath | None, sha256: PublishedDigest | None, may_download: MayDownload = True
    ) -> None:
        if model not in DINOV2_SHA256:
            raise ConfigError(f"model={model} is unknown: choose one of {', '.join(DINOV2_SHA256)}")
        published = Weights(
            what=f"the weights of {model}",
            variable="GENIMG_DINOV2_WEIGHTS",
            file=f"{model}_pretrain.pth",
            url=f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}_pretrain.pth",
            sha256=DINOV2_SHA256[model],
        )
        path, found = published.find(weights, published.sha256 if sha256 == "published" else sha256, may_download=may_download)
        network = _from_hub(model, may_download)

        def load() -> nn.Module:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return network

        loaded_from(path, f"the weights of {model}", load)
        super().__init__(
            name=f"{model}_bicubic" if found == published.sha256 else f"{model}_bicubic_unknown",
            network=network,
            weights_sha256=found,
            resize=f"pil_bicubic_{_DINOV2_SIZE}",
            channels=GREY_IS_REPLICATED,
            has_logits=False,
        )

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        values = pillow_bicubic(three_channels(images), _DINOV2_SIZE, _DINOV2_SIZE).float()
        mean = torch.tensor([0.485, 0.456, 0.406], device=values.device)[:, None, None] * 255.0
        deviation = torch.tensor([0.229, 0.224, 0.225], device=values.device)[:, None, None] * 255.0
        return self.network((values - mean) / deviation), None


class CLIP(Extractor):
    """The image embedding of a CLIP network (Radford et al. 2021), from torch-fidelity.

    Its Fréchet distance does not depend on ImageNet's classes (Kynkäänniemi et al. 2023). Images are prepared as in OpenAI's
    code and in dgm-eval: the shorter side is resized to the network's size by Pillow's bicubic filter in 8 bits, and the
    central crop is normalised by CLIP's mean and deviation.

    Args:
        model: Name of the model in torch-fidelity, such as ``clip-vit-b-32``.
        weights: Path of OpenAI's file; None uses $GENIMG_CLIP_WEIGHTS, else torch hub's cache, else a download.
        sha256: Digest of that file; ``published`` is the digest of OpenAI's file, None accepts any.
        may_download: Whether missing weights are downloaded.

    Raises:
        DataError: If the weights are not found, have another digest or are not CLIP's.
        ConfigError: If the model is unknown.
    """

    def __init__(
        self, *, model: str, weights: FoundPath | None, sha256: PublishedDigest | None, may_download: MayDownload = True
    ) -> None:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS
        from torch_fidelity.utils import create_feature_extractor

        if model not in MODEL_METADATA:
            raise ConfigError(f"model={model} is unknown: choose one of {', '.join(MODEL_METADATA)}")
        published = Weights(
            what=f"the weights of {model}",
            variable="GENIMG_CLIP_WEIGHTS",
            file=f"{model}-{MODEL_METADATA[model]['hash']}.pt",
            url=MODEL_URLS[model],
            sha256=MODEL_METADATA[model]["hash"],
        )
        path, found = published.find(weights, published.sha256 if sha256 == "published" else sha256, may_download=may_download)

        def load() -> Any:
            return create_feature_extractor(
                model, ["clip"], feature_extractor_weights_path=str(path), cuda=False, verbose=False
            )

        network: Any = loaded_from(path, f"the weights of {model}", load)
        name = f"{model.replace('-', '_')}_bicubic"
        self.size = int(network.resolution)
        super().__init__(
            name=name if found == published.sha256 else f"{name}_unknown",
            network=network,
            weights_sha256=found,
            resize=f"pil_bicubic_{self.size}_center_crop",
            channels=GREY_IS_REPLICATED,
            has_logits=False,
        )

    def extract(self, images: Tensor) -> tuple[Tensor, None]:
        # torch-fidelity's network also resizes, which has no effect on images of its size.
        return self.network(pillow_bicubic_crop(three_channels(images), self.size))[0], None


def _from_hub(model: str, may_download: bool) -> nn.Module:
    local = os.environ.get("GENIMG_DINOV2_REPOSITORY")
    cached = Path(torch.hub.get_dir()) / f"facebookresearch_dinov2_{_DINOV2_COMMIT}"  # where torch hub looks for it
    if not (local or may_download or cached.is_dir()):
        fix = "set GENIMG_DINOV2_REPOSITORY to a checkout of facebookresearch/dinov2"
        raise WeightsNotDownloadedError(f"the code of {model} is not in {cached}", fix, key="model")
    try:
        if local:
            return torch.hub.load(str(Path(local).expanduser()), model, source="local", pretrained=False)
        # torch hub's validation accepts only branches and tags, but a commit pins the code.
        return torch.hub.load(f"facebookresearch/dinov2:{_DINOV2_COMMIT}", model, pretrained=False, skip_validation=True)
    except Exception as error:  # the repository's code may raise any exception
        raise DataError(
            f"the code of {model} could not be loaded from {local or 'torch hub (facebookresearch/dinov2)'} "
            f"({in_one_line(error)}): set GENIMG_DINOV2_REPOSITORY to a directory that holds a checkout of it, or choose "
            "another evaluation"
        ) from error
