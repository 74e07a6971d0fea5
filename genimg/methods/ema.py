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

    The half-life is in images, so it means the same at any batch size (Karras et al. 2020, StyleGAN2-ADA code). Early in
    training it is limited to a fraction of the images seen, so the average forgets the initialisation. Batch-norm statistics
    are averaged along with the weights. Other buffers are copied: a spectral norm's singular vectors would lose their length,
    and StyleGAN2's average style is already an average.

    Args:
        network: Network to follow.
        half_life: Images after which a weight's influence has halved; 0, as at the start of a schedule, keeps no average.
        ramp_up: Largest half-life as a fraction of the images seen so far, including the current step; None for no limit.

    Raises:
        ValueError: If the half-life or the fraction is not above 0.
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
        """Return the weight of the old average after ``num_images`` more images, for a total of ``images_seen``."""
        return float(0.5 ** (num_images / max(self.half_life_at(images_seen), 1e-8)))

    @torch.no_grad()
    def update(self, network: nn.Module, num_images: int, images_seen: int) -> None:
        """Move the average towards the trained network.

        Args:
            network: Network that the average follows.
            num_images: Images that it was trained on since the last update.
            images_seen: Images that it was trained on since the start of training.
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
        """Replace batch norm's running statistics by their means over some batches of inputs.

        Standing statistics: Brock et al. 2019, section 3.1. The statistics from training belong to other weights than the
        averaged ones.
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
        """Stay in evaluation mode, because the average is used only for sampling."""
        return super().train(False)
