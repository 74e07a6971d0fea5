"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genimg.interfaces import Images


class EMA(nn.Module):
    """A copy of a network whose weights follow it with a given half-life, always in evaluation mode.

    The half-life is in images, so that it means the same at any batch size (Karras et al. 2020, StyleGAN2-ADA code). Early
    in training it is shortened to a fraction of the images seen, so that the average forgets the initialisation.
    Batch-norm statistics are averaged with the weights that they belong to. Other buffers are copied: a spectral norm's
    singular vectors and StyleGAN2's average style are averages already, or would lose their length.

    Args:
        network: what to follow.
        half_life: images after which a weight's influence has halved.
        ramp_up: largest half-life as a fraction of the images seen so far.
    """

    def __init__(self, network: nn.Module, *, half_life: Images, ramp_up: float) -> None:
        super().__init__()
        if ramp_up <= 0 or half_life <= 0:
            raise ValueError(f"an EMA needs half_life and ramp_up above 0, but they are {half_life} images and {ramp_up}")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.half_life = half_life
        self.ramp_up = ramp_up

    def decay(self, images: int, batch_size: int) -> float:
        """The weight of the old average after a step of ``batch_size`` images that brings the total to ``images``."""
        return 0.5 ** (batch_size / max(min(self.half_life, self.ramp_up * images), 1e-8))

    @torch.no_grad()
    def update(self, network: nn.Module, images: int, batch_size: int) -> None:
        """Move towards ``network``. ``images``: seen so far, this step's included."""
        averaged: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(network.parameters())
        for ours, theirs in zip(self.network.modules(), network.modules(), strict=True):
            follows = isinstance(ours, nn.modules.batchnorm._NormBase)
            for old, new in zip(ours.buffers(recurse=False), theirs.buffers(recurse=False), strict=True):
                if follows and old.is_floating_point():
                    averaged.append(old)
                    current.append(new)
                else:
                    old.copy_(new)
        get_ema_multi_avg_fn(self.decay(images, batch_size))(averaged, current, 0)

    @torch.no_grad()
    def take_standing_statistics(self, batches: Iterable[tuple[Tensor, ...]]) -> None:
        """Replace batch norm's running statistics by the means of those of some batches of inputs.

        Standing statistics: Brock et al. 2019, section 3.1. Those of the training are of other weights than the average's.
        """
        norms = [layer for layer in self.network.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean of all batches
            layer.training = True
        try:
            for inputs in batches:
                self.network(*inputs)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
                layer.training = False

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs)

    def train(self, mode: bool = True) -> EMA:
        """Stays in evaluation mode: the average is only ever sampled from."""
        return super().train(False)
