"""Faster layers, memory allocation and optimizer steps on a CPU. Results differ by rounding, and in dropout's random numbers.

Networks do not depend on this module. Measurements are in docs/performance.md.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.networks.diffusion_layers import GroupNorm

# At 4 to 16 positions the matrix product took a quarter to half of the time on an AMD EPYC; at 64 it was slower.
_MOST_POSITIONS = 32  # positions in a batch, at the smaller of input and output
_LEAST_WEIGHTS = 2**19  # weights of a layer; smaller layers were not measured and remain convolutions
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h


def use_faster_layers(model: nn.Module) -> None:
    """Replace the forward of convolutions, norms and dropout in a model by one that is faster on a CPU.

    The change is in place; parameters, their names and copies are unaffected. Layers of other classes or on another device are
    unchanged.
    """
    for layer in model.modules():
        if type(layer) is nn.InstanceNorm2d and not layer.track_running_stats:
            layer.__class__ = _InstanceNorm2d
        elif type(layer) in (nn.GroupNorm, GroupNorm):
            layer.__class__ = _GroupNorm
        elif type(layer) is nn.Dropout and 0.0 < layer.p < 1.0 and not layer.inplace:
            layer.__class__ = _Dropout
        elif type(layer) is nn.Conv2d and _may_be_product(layer):
            layer.__class__ = _Conv2d
        elif type(layer) is nn.ConvTranspose2d and _may_be_product(layer):
            layer.__class__ = _ConvTranspose2d


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed CPU tensors for the next step; glibc only.

    By default it immediately returns every block above 32 MiB, and much of the rest, to the system. Each step then maps and
    zeroes its memory again, which takes up to a quarter of the step's time (docs/performance.md). Nothing changes if glibc's
    own environment variables are set.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # another C library
        return
    if not set_option(_M_MMAP_THRESHOLD, 2**30):
        set_option(_M_MMAP_THRESHOLD, 2**25)  # the maximum of older versions of glibc
    set_option(_M_TRIM_THRESHOLD, 2**31 - 1)
    set_option(_M_TOP_PAD, 2**26)


def step_without_copies(optimizer: Optimizer) -> None:
    """Let a fused Adam or AdamW treat channels-last tensors as contiguous tensors of permuted shape.

    Other optimizers, and optimizers of parameters on other devices, are unchanged.

    PyTorch's fused CPU kernel needs contiguous tensors. It copies weights, gradients and moments of any other format, and
    copies the weights and both moments back, which takes two thirds of the step's time. The kernel works element by element,
    so views with dimensions in memory order, the same for all tensors of a parameter, give the same bits.
    """
    on_cpu = all(parameter.device.type == "cpu" for group in optimizer.param_groups for parameter in group["params"])
    is_fused_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and optimizer.defaults.get("fused")
    if not (is_fused_adam and on_cpu):
        return
    gather = optimizer._init_group  # type: ignore[attr-defined]
    if tuple(inspect.signature(gather).parameters) != _GATHERED:  # skip versions of PyTorch with another signature
        return

    def gather_views(group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *others: list[Tensor]) -> bool:
        has_complex: bool = gather(group, parameters, gradients, *others)
        permuted = [not parameter.is_contiguous() and _is_channels_last(parameter) for parameter in parameters]
        for tensors in (parameters, gradients, *others[:-1]):  # the last list holds step counts; amsgrad's may be empty
            for index, _ in enumerate(tensors):
                if permuted[index]:
                    tensors[index] = tensors[index].permute(0, 2, 3, 1)
        # The kernel reads gradients in memory order, whatever their strides. Autograd's have the parameter's strides.
        gradients[:] = [gradient.contiguous() for gradient in gradients]
        return has_complex

    optimizer._init_group = gather_views  # type: ignore[attr-defined]


_GATHERED = ("group", "params_with_grad", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


class _Conv2d(nn.Conv2d):
    """PyTorch's convolution, computed as a matrix product with unfolded patches where that is faster: at the bottom of a U-Net.

    There each weight is used at a few positions only. Most of the time goes into converting the weights to the layout of the
    convolution, and the gradient back. Results differ by rounding.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        count, (height, width) = features.shape[0], _convolved(features, self)
        if not _is_product(features, count * height * width):
            return super().forward(features)
        area = self.kernel_size[0] * self.kernel_size[1]
        padding = (int(self.padding[0]), int(self.padding[1]))
        patches = F.unfold(features, self.kernel_size, self.dilation, padding, self.stride)  # [N, C area, H' W']
        rows = patches.unflatten(1, (-1, area)).permute(0, 3, 2, 1).reshape(count * height * width, -1)
        # Channels last in both factors, so weights stored that way are not copied.
        matrix = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        convolved = F.linear(rows, matrix, self.bias)
        return convolved.reshape(count, height, width, self.out_channels).permute(0, 3, 1, 2)


class _ConvTranspose2d(nn.ConvTranspose2d):
    """PyTorch's layer, computed as a matrix product and a sum of overlapping patches where that is faster; see ``_Conv2d``."""

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        count, channels, height, width = features.shape
        if output_size is not None or not _is_product(features, count * height * width):
            return super().forward(features, output_size)
        rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
        matrix = self.weight.permute(0, 2, 3, 1).reshape(channels, -1)  # [C, area C']
        patches = (rows @ matrix).reshape(count, height * width, -1, self.out_channels)
        size = (self._length(0, height), self._length(1, width))
        columns = patches.permute(0, 3, 2, 1).flatten(1, 2)  # [N, C' area, H W]
        folded = F.fold(columns, size, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        folded = folded.contiguous(memory_format=torch.channels_last)
        return folded if self.bias is None else folded + self.bias.to(folded.dtype)[:, None, None]

    def _length(self, axis: int, length: int) -> int:
        kernel = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (length - 1) * self.stride[axis] - 2 * int(self.padding[axis]) + kernel + self.output_padding[axis]


def _may_be_product(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    is_plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_plain and layer.weight.numel() >= _LEAST_WEIGHTS


def _is_product(features: Tensor, positions: int) -> bool:
    if torch.compiler.is_exporting():  # an exported program cannot depend on the batch size
        return False
    return positions <= _MOST_POSITIONS and features.device.type == "cpu"


def _convolved(features: Tensor, layer: nn.Conv2d) -> tuple[int, int]:
    def length(axis: int) -> int:
        kernel = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        return (features.shape[2 + axis] + 2 * int(layer.padding[axis]) - kernel) // layer.stride[axis] + 1

    return length(0), length(1)


class _InstanceNorm2d(nn.InstanceNorm2d):
    """PyTorch's layer, computed image by image for channels-last features.

    PyTorch's version copies such features into contiguous ones and returns that format, so the following layers are slow, too.
    Its batch norm of a single image is equivalent and keeps the format.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
        if features.device.type != "cpu" or not last:
            return super().forward(features)
        return torch.cat(
            [F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps) for one in features.split(1)]
        )


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


class _Dropout(nn.Dropout):
    """PyTorch's layer with 16 random bits per value, so the probability is a multiple of 2^-16.

    PyTorch's version takes 64 random bits per value, one by one, and three times as long (docs/performance.md).
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map features of any shape to features of the same shape."""
        is_dense = features.is_contiguous() or _is_channels_last(features)
        if not self.training or features.device.type != "cpu" or not is_dense or torch.compiler.is_exporting():
            return super().forward(features)
        count, dropped = features.numel(), round(self.p * 2**16)  # of 2^16 values of 16 bits
        words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.int16)[:count] >= dropped - 2**15
        scale = is_kept.to(features.dtype).mul_(2**16 / (2**16 - dropped))
        return features * scale.as_strided(features.shape, features.stride())
