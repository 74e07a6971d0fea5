"""Activation checkpointing: blocks keep only their inputs and recompute the rest in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", 2016. Gradients equal those of the plain forward bit for bit,
because the state that a forward pass in training mode changes (batch norm's running statistics, spectral norm's vectors) is
restored for the second forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genimg.networks.layers import SpectralNorm


def recompute_blocks(network: nn.Module) -> int:
    """Make every member of a network's list ``blocks`` recompute its activations; return the number of blocks."""
    lists = (getattr(module, "blocks", None) for module in network.modules())
    blocks = [block for found in lists if isinstance(found, nn.ModuleList) for block in found]
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def _forward(block: nn.Module, forward: Callable[..., Any], *inputs: Tensor) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)

    def contexts() -> tuple[_First, _Again]:
        first = _First(block)
        return first, _Again(first)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


class _First(contextlib.AbstractContextManager[None]):
    """Context of a block's first forward, which stores the final vectors of its spectral norms."""

    def __init__(self, block: nn.Module) -> None:
        self.norms = [layer for layer in block.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
        self.spectral = [layer for layer in block.modules() if isinstance(layer, SpectralNorm)]
        self.vectors: list[tuple[Tensor, Tensor]] = []

    def __exit__(self, *_: object) -> None:
        self.vectors = [(layer.left.clone(), layer.right.clone()) for layer in self.spectral]


class _Again(contextlib.AbstractContextManager[None]):
    """Context of the recomputed forward pass, which happens in the backward pass, and again in that of a second derivative."""

    def __init__(self, first: _First) -> None:
        self._first = first
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        first = self._first
        for norm in first.norms:
            self._stack.callback(_restore, norm, norm.momentum, norm.num_batches_tracked)
            norm.momentum = 0.0  # keeps the running statistics
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        for layer, (left, right) in zip(first.spectral, first.vectors, strict=True):
            self._stack.enter_context(layer.held_at(left, right))

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _restore(norm: nn.modules.batchnorm._NormBase, momentum: float | None, count: Tensor | None) -> None:
    norm.momentum, norm.num_batches_tracked = momentum, count
