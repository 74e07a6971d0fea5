"""Norms that keep the type and the memory format of their input on a GPU; on a CPU they are PyTorch's layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.autocast import without_autocast

_MOST_IMAGES = 4  # of a batch that is normalised image by image on a GPU, where each image costs a kernel launch


def normalised_by_image(features: Tensor, norm: nn.InstanceNorm2d) -> Tensor:
    """Return the instance norm of features [N, C, H, W], computed image by image, in their memory format and type.

    PyTorch's version copies channels-last features into contiguous ones and returns that format, so the following layers
    convert them again. Its batch norm of a single image is equivalent and keeps the format; its statistics are float32.

    Args:
        features: Features, N at least 1.
        norm: The layer, whose scale, shift and epsilon are used.
    """
    return torch.cat(
        [F.batch_norm(one, None, None, norm.weight, norm.bias, training=True, eps=norm.eps) for one in features.split(1)]
    )


class InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's layer (Ulyanov et al. 2016), which keeps the channels-last format on a GPU too.

    ``training.cpu_layers`` does the same on a CPU.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        is_channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        if features.device.type != "cuda" or not is_channels_last or torch.compiler.is_compiling():
            return super().forward(features)
        if len(features) <= _MOST_IMAGES:
            return normalised_by_image(features, self)
        return super().forward(features).contiguous(memory_format=torch.channels_last)


class LayerNorm2d(nn.GroupNorm):
    """Layer norm (Ba et al. 2016) over C, H and W: a group norm of one group, in the type of its input under autocast.

    Its statistics are float32 in any case. Autocast on a GPU would return float32; on a CPU it keeps the type.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        if features.device.type == "cpu":
            return super().forward(features)
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        with without_autocast(features):
            return F.group_norm(features, self.num_groups, weight, bias, self.eps)
