"""Directional derivatives of networks by forward-mode differentiation, in float32 and without a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from genimg.networks.autocast import without_autocast

_Function = Callable[..., Tensor]


def directional_derivative(
    function: _Function, inputs: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a function's value and its derivative in a direction, as ``torch.func.jvp`` does.

    Attention uses plain matrix products, because faster kernels have no forward-mode derivative. Autocast is off. The
    derivatives of convolutions and group norms are cheaper than PyTorch's, which include the parameters' derivatives although
    these are 0.

    Args:
        function: Function of the inputs, such as the forward pass of a network.
        inputs: Inputs of any shape.
        directions: Derivative of each input, of the input's shape.

    Returns:
        The value and the derivative, without a graph.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(without_autocast(inputs[0]))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(forward_mode.dual_level())
        stack.enter_context(_CheaperDerivatives())
        pairs = [forward_mode.make_dual(value, slope) for value, slope in zip(inputs, directions, strict=True)]
        value, slope = forward_mode.unpack_dual(function(*pairs))
        return value, torch.zeros_like(value) if slope is None else slope


class _CheaperDerivatives(TorchFunctionMode):
    """Replaces the forward-mode derivatives of convolutions and group norms whose parameters are constant."""

    def __torch_function__(
        self, function: _Function, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _DERIVATIVES:
            value, slope = forward_mode.unpack_dual(args[0])
            if slope is not None:
                return forward_mode.make_dual(*_DERIVATIVES[function](value, slope, *args[1:], **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def _of_convolution(
    value: Tensor, slope: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    return F.conv2d(value, weight, bias, *settings, **named), F.conv2d(slope, weight, None, *settings, **named)


def _of_group_norm(
    value: Tensor, slope: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of features x [N, C, H, W] with derivative x', and the norm's derivative.

    The derivative is weight / std * (x' - mean(x') - (x - mean(x)) * cov(x, x') / std^2), with statistics over each group.
    """
    if not value.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous()
    count, channels, height, width = value.shape
    normed, mean, inverse = torch.native_group_norm(
        value, weight, bias, count, channels, height * width, num_groups, eps
    )  # mean and 1 / std: [N, groups]
    slope_mean, product_mean = (
        each.mean(dim=(2, 3)).unflatten(1, (num_groups, -1)).mean(dim=2) for each in (slope, value * slope)
    )
    share = (product_mean - mean * slope_mean) * inverse.square()  # [N, groups]
    gain, of_value, constant = (
        (each[:, :, None] * weight.view(num_groups, -1)).flatten(1)[:, :, None, None]
        for each in (inverse, -share * inverse, (share * mean - slope_mean) * inverse)
    )  # [N, C, 1, 1]
    return normed, torch.addcmul(torch.addcmul(constant, value, of_value), slope, gain)


_DERIVATIVES: dict[_Function, Callable[..., tuple[Tensor, Tensor]]] = {
    F.conv2d: _of_convolution,
    F.group_norm: _of_group_norm,
}
