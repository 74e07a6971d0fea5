"""Evaluation and training mode of networks, and standing statistics of batch norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn


class LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of inputs of any shape, using only the statistics of this process."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def keep_in_eval_mode(module: nn.Module) -> None:
    """Put a module into evaluation mode for good: neither ``train`` of itself nor that of a parent changes it."""
    module.eval()
    vars(module)["train"] = MethodType(_unchanged, module)  # an instance's own, which its copies keep


def is_kept_in_eval_mode(module: nn.Module) -> bool:
    """Return whether ``keep_in_eval_mode`` was called for a module."""
    return "train" in vars(module)


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into evaluation mode temporarily."""
    training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(training)


@contextmanager
def train_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Put a network into training mode temporarily; its buffers, such as batch norm's averages, are restored."""
    training, buffers = network.training, {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    try:
        yield network
    finally:
        network.train(training)
        for name, buffer in buffers.items():
            network.get_buffer(name).copy_(buffer)


@torch.no_grad()
def take_standing_statistics(network: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Replace batch norm's running statistics by their means over some batches of inputs.

    See standing statistics, Brock et al. 2019, section 3.1. The running statistics from training come from earlier weights, not
    from the current or averaged weights. Statistics of frozen layers do not change.
    """
    norms = [
        layer for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and not is_kept_in_eval_mode(layer)
    ]  # fmt: skip
    momenta, kinds = [layer.momentum for layer in norms], [layer.__class__ for layer in norms]
    with eval_mode(network):
        for layer in norms:
            if isinstance(layer, nn.SyncBatchNorm):  # other processes do not sample at the same time
                layer.__class__ = LocalBatchNorm  # type: ignore[assignment]
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean of all batches
            layer.training = True
        try:
            for inputs in batches:
                network(*inputs)
        finally:
            for layer, momentum, kind in zip(norms, momenta, kinds, strict=True):
                layer.__class__ = kind
                layer.momentum = momentum
                layer.training = False
