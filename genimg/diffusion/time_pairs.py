"""Distributions of pairs of times on a straight line, between which a network learns the average velocity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genimg.utils.rng import mixed_keys, normal_numbers, uniform_numbers

_LATER, _EARLIER, _EQUAL = range(3)
ORDERINGS = ("swap", "limit")


class TimePair(NamedTuple):
    """Two times of each sample, 0 for the image and 1 for the noise.

    Attributes:
        later: The time t of the state, [N].
        earlier: The time r, at most t, [N].
    """

    later: Tensor
    earlier: Tensor


class LogitNormalPairs:
    """Two logit-normal times per sample; some samples keep only the later one: Geng et al. 2025, section 4.3.

    Args:
        mean, std: Mean and standard deviation of logit(t), for the later time.
        earlier_mean, earlier_std: The same for the earlier time.
        ordering: If the earlier time is drawn above the later one, ``swap`` the two, or ``limit`` the earlier to the later one.
        share: Share of the samples with two times, from 0 to 1. The others have r = t, which is plain flow matching.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    def __init__(
        self, *, mean: float, std: float, earlier_mean: float, earlier_std: float, ordering: str, share: float
    ) -> None:
        for name, value in (("std", std), ("earlier_std", earlier_std)):
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0")
        if ordering not in ORDERINGS:
            raise ValueError(f"ordering={ordering} is unknown: choose one of {', '.join(ORDERINGS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} must be from 0 to 1")
        self.mean, self.std = mean, std
        self.earlier_mean, self.earlier_std = earlier_mean, earlier_std
        self.ordering, self.share = ordering, share

    def at(self, keys: Tensor) -> TimePair:
        """Return times, float32 [N] each; those of sample i are a function of ``keys[i]`` (int64 [N]) alone."""
        later = torch.sigmoid(self.mean + self.std * normal_numbers(mixed_keys(keys, _LATER), ()))
        earlier = torch.sigmoid(self.earlier_mean + self.earlier_std * normal_numbers(mixed_keys(keys, _EARLIER), ()))
        if self.ordering == "swap":
            later, earlier = torch.maximum(later, earlier), torch.minimum(later, earlier)
        is_single = uniform_numbers(mixed_keys(keys, _EQUAL), ()) >= self.share
        return TimePair(later, torch.where(is_single, later, torch.minimum(earlier, later)))
