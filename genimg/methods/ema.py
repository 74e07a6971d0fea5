"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genimg.schedules import Schedule, Scheduled, is_positive, shown
from genimg.utils.durations import NumImages


class EMA(nn.Module):
    """A copy of a network whose weights follow it with a given half-life, always in evaluation mode.

    The half-life is in images, so that it means the same at any batch size (Karras et al. 2020, StyleGAN2-ADA code). Early
    in training it is shortened to a fraction of the images seen, so that the average forgets the initialisation.
    Batch-norm statistics are averaged with the weights that they belong to. Other buffers are copied: a spectral norm's
    singular vectors and StyleGAN2's average style are averages already, or would lose their length.

    Args:
        network: what to follow.
        half_life: images after which a weight's influence has halved; 0, as at the start of a schedule, keeps no average.
        ramp_up: largest half-life as a fraction of the images seen so far, the step's own included; None for no limit.

    Raises:
        ValueError: for a half-life or a fraction that is not above 0.
    """

    half_life = Scheduled()

    def __init__(self, network: nn.Module, *, half_life: NumImages | Schedule, ramp_up: float | None) -> None:
        super().__init__()
        if not is_positive(half_life):
            raise ValueError(f"half_life={shown(half_life)} images must be above 0")
        if ramp_up is not None and not ramp_up > 0:
            raise ValueError(f"ramp_up={ramp_up} must be above 0, or null for no limit")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.half_life = half_life
        self.ramp_up = math.inf if ramp_up is None else ramp_up

    def half_life_at(self, images_seen: int) -> float:
        """Return the half-life in images, limited by the ramp-up, after a step that ends at ``images_seen``."""
        return float(min(self.half_life, self.ramp_up * images_seen))

    def decay(self, num_images: int, images_seen: int) -> float:
        """Return the weight of the old average after ``num_images`` more images, ``images_seen`` with these."""
        return float(0.5 ** (num_images / max(self.half_life_at(images_seen), 1e-8)))

    @torch.no_grad()
    def update(self, network: nn.Module, num_images: int, images_seen: int) -> None:
        """Move towards a network that has been trained.

        Args:
            network: What the average follows.
            num_images: Images that it was trained on since the last update.
            images_seen: Images that it was trained on since the start of the training.
        """
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
        get_ema_multi_avg_fn(self.decay(num_images, images_seen))(averaged, current, 0)

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

    def forward(self, *inputs: Tensor, **settings: Any) -> Tensor:
        output: Tensor = self.network(*inputs, **settings)
        return output

    def train(self, mode: bool = True) -> EMA:
        """Stays in evaluation mode: the average is only ever sampled from."""
        return super().train(False)
