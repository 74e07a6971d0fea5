"""Context managers that switch a network's mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
