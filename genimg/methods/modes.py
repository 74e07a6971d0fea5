"""Networks in another mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(network: nn.Module, mode: str) -> Iterator[nn.Module]:
    """A network in evaluation, or as in training but for its buffers, which stay as they are (batch norm's averages)."""
    training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()} if mode == "train" else {}
    network.train(mode == "train")
    try:
        yield network
    finally:
        network.train(training)
        for name, buffer in buffers.items():
            network.get_buffer(name).copy_(buffer)
