"""The Inception network that defines FID and the Inception Score."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genimg.evaluation.extractors.base import GREY_IS_REPLICATED, Extractor, Weights, loaded_from, three_channels
from genimg.utils.machine_local import FoundPath, MachineLocal, MayDownload

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION = Weights(
    what="the Inception weights of FID (torch-fidelity's file, 96 MB)",
    variable="GENIMG_INCEPTION_WEIGHTS",
    file=INCEPTION_FILE,
    url=f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}",
    sha256=INCEPTION_SHA256,
)

_Digest = Annotated[str, MachineLocal(published=lambda value: value == INCEPTION_SHA256, instead=INCEPTION_SHA256)]

# Names of the metrics, only with the published weights.
_PUBLISHED_NAMES = {"fd": "fid", "kd": "kid", "is": "is", "sfd": "sfid"}

_SPATIAL_CHANNELS = 7  # of the 192 channels of ``mixed_6/conv`` in the TensorFlow graph


class Inception(Extractor):
    """torch-fidelity's port of the 2015 TensorFlow Inception: 2048 features, 1008 logits without bias, 2023 spatial features.

    Args:
        weights: Path of the weights file; None uses $GENIMG_INCEPTION_WEIGHTS, else torch hub's cache, else a download.
        sha256: Digest of that file; None accepts any, but only the published weights give metrics named FID and KID.
        may_download: Whether missing weights are downloaded.

    Raises:
        DataError: If the weights are not found, have another digest, or are not Inception's.
    """

    def __init__(self, *, weights: FoundPath | None, sha256: _Digest | None, may_download: MayDownload = True) -> None:
        path, found = INCEPTION.find(weights, sha256, may_download=may_download)
        self.known = found == INCEPTION_SHA256
        from torch_fidelity.utils import create_feature_extractor

        def load() -> Any:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity's load would run pickled code
            return create_feature_extractor(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(path),
                cuda=False,
                verbose=False,
            )

        network: Any = loaded_from(path, "the Inception weights", load)
        super().__init__(
            name="inception" if self.known else "inception_unknown",
            network=network,
            weights_sha256=found,
            resize="bilinear to 299x299 as in TensorFlow 1, without anti-aliasing",
            channels=GREY_IS_REPLICATED,
            has_logits=True,
        )
        self.has_spatial = True
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep 7 channels of ``mixed_6/conv``, 17 x 17, as [N, 2023]: the features of sFID (Nash et al. 2021) in ADM.

        They are in TensorFlow's order (rows, columns, channels), for comparison with statistics from ADM's files.
        """
        self.spatial = output[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def metric_name(self, metric: str, count: str) -> str:
        if self.known and metric in _PUBLISHED_NAMES:
            return f"{_PUBLISHED_NAMES[metric]}{count}"
        return super().metric_name(metric, count)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(three_channels(images))
        return features, logits
