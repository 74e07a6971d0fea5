"""Faster layers on a CPU. Results differ by rounding, and in dropout's random numbers.

Networks do not depend on this module. Measurements are in docs/performance.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.networks.diffusion_layers import GroupNorm
from genimg.networks.norms import InstanceNorm2d, LayerNorm2d, normalised_by_image
from genimg.training.cpu import is_channels_last
from genimg.training.cpu_convolutions import ProductConv2d, ProductConvTranspose2d, may_be_product


def use_faster_layers(model: nn.Module) -> None:
    """Replace the forward of convolutions, norms, ReLUs and dropout in a model by one that is faster on a CPU.

    The change is in place; parameters, their names and copies are unaffected. Layers of other classes or on another device are
    unchanged.
    """
    for layer in model.modules():
        if type(layer) in (nn.InstanceNorm2d, InstanceNorm2d) and not layer.track_running_stats:
            layer.__class__ = _InstanceNorm2d
        elif type(layer) in (nn.GroupNorm, GroupNorm, LayerNorm2d):
            layer.__class__ = _GroupNorm
        elif type(layer) in _REPLACED_ACTIVATIONS:
            layer.__class__ = _REPLACED_ACTIVATIONS[type(layer)]
        elif type(layer) is nn.Dropout and 0 < _num_dropped(layer.p) < 2**16 and not layer.inplace:
            layer.__class__ = _Dropout
        elif type(layer) is nn.Conv2d and may_be_product(layer):
            layer.__class__ = ProductConv2d
        elif type(layer) is nn.ConvTranspose2d and may_be_product(layer):
            layer.__class__ = ProductConvTranspose2d


class _InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's layer, computed image by image for channels-last features."""

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        if features.device.type != "cpu" or not last:
            return super().forward(features)
        return normalised_by_image(features, self)


class _GroupNorm(nn.GroupNorm):
    """PyTorch's layer, computed in float32 for features of lower precision; the result has their dtype.

    PyTorch's kernels for bfloat16 in channels-last memory took 2 to 5 times as long, copies included (docs/performance.md).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, ...] to [N, C, ...]."""
        if features.device.type != "cpu" or features.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float()).to(features.dtype)


class _ReLU(nn.ReLU):
    """PyTorch's layer, with a gradient in the memory format of the features; see ``_with_gradient_laid_out``."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features of any shape to features of the same shape."""
        return _with_gradient_laid_out(super().forward(features))


class _LeakyReLU(nn.LeakyReLU):
    """PyTorch's layer, with a gradient in the memory format of the features; see ``_with_gradient_laid_out``."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features of any shape to features of the same shape."""
        return _with_gradient_laid_out(super().forward(features))


_REPLACED_ACTIVATIONS: dict[type[nn.Module], type[nn.Module]] = {nn.ReLU: _ReLU, nn.LeakyReLU: _LeakyReLU}


def _with_gradient_laid_out(features: Tensor) -> Tensor:
    """Return the features, whose gradient will be copied to their own memory format before it is used.

    The gradient has another format where channels-last features are flattened for a linear layer, and where a linear layer's
    output becomes the first features. PyTorch's backward pass of a ReLU then takes five times as long as the copy and a pass in
    one format (docs/performance.md).
    """
    if features.dim() == 4 and features.requires_grad and features.device.type == "cpu" and not torch.compiler.is_compiling():
        if is_channels_last(features):
            features.register_hook(_in_channels_last)
        elif features.is_contiguous():
            features.register_hook(Tensor.contiguous)
    return features


def _in_channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class _Dropout(nn.Dropout):
    """PyTorch's layer with 16 random bits per value, so the probability is a multiple of 2^-16.

    PyTorch's version takes 64 random bits per value, one by one, and three times as long (docs/performance.md).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map features of any shape to features of the same shape."""
        is_dense = features.is_contiguous() or is_channels_last(features)
        if not self.training or features.device.type != "cpu" or not is_dense or torch.compiler.is_exporting():
            return super().forward(features)
        count, dropped = features.numel(), _num_dropped(self.p)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=features.device).random_(-(2**63), None)
        is_kept = words.view(torch.int16)[:count] >= dropped - 2**15
        scale = is_kept.to(features.dtype).mul_(2**16 / (2**16 - dropped))
        return features * scale.as_strided(features.shape, features.stride())


def _num_dropped(probability: float) -> int:
    """Return how many of the 2^16 values of 16 bits mean that a feature is dropped."""
    return round(probability * 2**16)
