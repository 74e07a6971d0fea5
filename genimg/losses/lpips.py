"""The network of LPIPS: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from genimg.errors import ConfigError, DataError, first_line
from genimg.utils.files import sha256_of
from genimg.utils.machine_local import LocalPath

# (network, compared layers, minimum side in pixels). The compared layers are indices in torchvision's `features`: all ReLUs of
# AlexNet, and the last ReLU of VGG-16 before each pooling. In images of the minimum size, the last of them still has one pixel.
_BACKBONES = {
    "alex": (alexnet, (1, 4, 7, 9, 11), 31),
    "vgg": (vgg16, (3, 8, 15, 22, 29), 16),
}


class LPIPSNetwork(nn.Module):
    """Learned perceptual image patch similarity, version 0.1 (Zhang et al. 2018, equation 1), from 0 for equal images.

    Both files must be given; nothing is downloaded. The weights are fixed.

    Args:
        backbone: ``alex``, which the authors recommend for comparisons, or ``vgg``, which is common in training.
        backbone_weights: Path of torchvision's ImageNet state_dict of AlexNet (alexnet-owt-7be5be79.pth) or VGG-16
            (vgg16-397923af.pth), for which the linear weights were fitted.
        linear_weights: Path of the authors' state_dict for this backbone, lpips/weights/v0.1/alex.pth or vgg.pth of
            github.com/richzhang/PerceptualSimilarity, with lin0.model.1.weight [1, C, 1, 1] to lin4.model.1.weight.

    Raises:
        ValueError: If the backbone is unknown.
        DataError: If a file does not exist or holds other weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, backbone: str, backbone_weights: LocalPath, linear_weights: LocalPath) -> None:
        super().__init__()
        if backbone not in _BACKBONES:
            raise ValueError(f"backbone={backbone} is unknown: choose one of {', '.join(_BACKBONES)}")
        build, last_layers, self.least_side = _BACKBONES[backbone]
        self.backbone = backbone
        self._files = {"backbone_weights": backbone_weights, "linear_weights": linear_weights}
        for key, path, what in (
            ("backbone_weights", backbone_weights, f"torchvision's state_dict of {build.__name__}"),
            ("linear_weights", linear_weights, f"lpips/weights/v0.1/{backbone}.pth of richzhang/PerceptualSimilarity"),
        ):
            if not Path(path).expanduser().is_file():
                raise DataError(f"{key}={path} is not a file: put {what} there, or give another path")
        with torch.device("meta"):  # avoids allocating the classifier, most of the network
            features = build().features
        state = _state(backbone_weights, {f"features.{key}": value.shape for key, value in features.state_dict().items()})
        features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, assign=True)
        bounds = (0, *(last + 1 for last in last_layers))
        stages = [features[start:stop] for start, stop in pairwise(bounds)]
        widths = [stage[-2].out_channels for stage in stages]  # channels of the convolution before the last ReLU
        linear = {f"lin{i}.model.1.weight": torch.Size((1, width, 1, 1)) for i, width in enumerate(widths)}
        self.stages = nn.ModuleList(stages)
        self.linear = nn.ParameterList(_state(linear_weights, linear).values())
        # ImageNet's means and deviations for values in [-1, 1], rounded as in the fit of the linear weights.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check that LPIPS is defined for images of this shape (C, H, W).

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        if shape[0] not in (1, 3) or min(shape[1:]) < self.least_side:
            raise ConfigError(
                f"backbone={self.backbone} needs 1 or 3 channels and sides of {self.least_side} pixels or more, not images "
                f"[C, H, W] of {list(shape)}: choose another, or remove LPIPS"
            )

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 digests of the two files, for a record of what was measured or optimised."""
        return {f"{key}_sha256": sha256_of(Path(path).expanduser()) for key, path in self._files.items()}

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the distance, float32 [N], between float32 images [N, 1 or 3, H, W] in [-1, 1]; grey is replicated.

        Raises:
            ConfigError: If the images are too small for the network, or do not have 1 or 3 channels.
        """
        channels, height, width = reference.shape[1:]
        self.check((channels, height, width))
        x, y = ((side - self.shift) / self.scale for side in (image, reference))  # [N, 3, H, W]
        distance = torch.zeros(len(reference), device=reference.device)
        for stage, weights in zip(self.stages, self.linear, strict=True):
            x, y = stage(x), stage(y)  # [N, C, H', W']
            difference = (unit(x) - unit(y)).square()
            distance = distance + F.conv2d(difference, weights).mean(dim=(1, 2, 3))
        return distance


def unit(features: Tensor) -> Tensor:
    """Divide features [N, C, H, W] by the norm over channels, plus the constant of the authors' code."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _state(given: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Load the entries with these names and shapes from a file, in this order, as float32.

    Raises:
        DataError: If the file cannot be read, or an entry is missing or has another shape.
    """
    path = Path(given).expanduser()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # the unpickler can raise almost anything for other kinds of file
        raise DataError(f"the file {path} does not hold weights of LPIPS ({first_line(error)})") from error
    for key, shape in shapes.items():
        if key not in found or found[key].shape != shape:
            what = f"{key} {list(found[key].shape)}" if key in found else f"no {key}"
            raise DataError(
                f"the file {path} holds {what}, but LPIPS needs {key} {list(shape)}: give the file of this backbone"
            )
    return {key: found[key].float() for key in shapes}
