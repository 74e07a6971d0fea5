"""Distances between features of VGG-16: Johnson, Alahi & Fei-Fei, "Perceptual losses for real-time style transfer", 2016."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import vgg16

from genimg.errors import ConfigError, first_line
from genimg.schedules import Number, Scheduled, is_positive, shown
from genimg.utils.machine_local import LocalPath

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for values in [0, 1]


class Perceptual(nn.Module):
    """The mean absolute difference of features, summed over layers: equation 2 with L1, as in later work.

    Nothing is downloaded, and the weights are not stored in checkpoints.

    Args:
        weights: Path of torchvision's state_dict of VGG-16 (vgg16-397923af.pth).
        layers: Indices in ``features`` of the layers whose outputs are compared: 3, 8, 15 and 22 are relu1_2, relu2_2, relu3_3
            and relu4_3.
        weight: Weight relative to the distance of pixels, above 0.

    Raises:
        ValueError: If the file does not exist or holds other weights, or a setting is out of range.
    """

    needed_in_training_only = True  # sampling must not require the file

    mean: Tensor
    deviation: Tensor
    weight = Scheduled()

    def __init__(self, *, weights: LocalPath, layers: Sequence[int], weight: Number) -> None:
        super().__init__()
        with torch.device("meta"):  # saves the time and the memory of random weights
            features = vgg16().features
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(features):
            raise ValueError(f"layers={list(layers)} must be increasing numbers from 0 to {len(features) - 1}")
        if not is_positive(weight):
            raise ValueError(f"weight={shown(weight)} must be above 0: for no perceptual loss, set it to null")
        features = features[: layers[-1] + 1]
        features.load_state_dict(_state(weights, features), assign=True)
        bounds = (0, *(layer + 1 for layer in layers))
        self.stages = nn.ModuleList(features[start:stop] for start, stop in pairwise(bounds))
        self.weight = weight
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None])
        for layer in self.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the next layer must not change the features that are compared
        self.eval().requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the weighted scalar for images [N, 1 or 3, H, W] in [-1, 1]; only the output has a gradient.

        Raises:
            ConfigError: If the images have another number of channels.
        """
        if output.shape[1] not in (1, 3):
            raise ConfigError(
                f"a perceptual loss compares grey or RGB images, not images of {output.shape[1]} channels", "set it to null"
            )
        self.to(output.device)
        x, y = self._scaled(output), self._scaled(target).detach()
        total = output.new_zeros((), dtype=torch.float32)
        for stage in self.stages:
            x, y = stage(x), stage(y)
            total = total + (x.float() - y.float()).abs().mean()
        return self.weight * total

    def _scaled(self, images: Tensor) -> Tensor:
        return ((images.float() + 1.0) / 2.0 - self.mean) / self.deviation  # [N, 3, H, W]; grey is replicated


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
