"""Randomness as a pure function of integers, so that nothing about it has to be saved to resume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LATENT_STREAM = 2  # training steps are seeded by (seed, step): without it, step i and sample i would share their noise
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_integers(*keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of a tuple of integers; array arguments broadcast."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _splitmix64(state ^ np.asarray(key, dtype=np.int64).astype(np.uint64))
    return state


def uniform(*keys: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1) that depend on the keys alone."""
    return (hash_integers(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(*keys: int) -> int:
    """A seed for ``torch.manual_seed`` that depends on the keys alone."""
    return int(hash_integers(*keys)[0] >> np.uint64(1))


def normal_latents(indices: Sequence[int], seed: int, latent_dim: int) -> Tensor:
    """Standard normal latents [N, Z] on the CPU; row i is a function of (seed, indices[i]) alone."""
    generator = torch.Generator()
    seeds = (seed_of(_LATENT_STREAM, seed, index) for index in indices)
    rows = [torch.randn(latent_dim, generator=generator.manual_seed(each)) for each in seeds]
    return torch.stack(rows)
