"""Averages of any length, computed after training from snapshots of power-function averages.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3.2 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genimg.errors import CheckpointError, ConfigError
from genimg.training import checkpoint
from genimg.training.ema import LONGEST, SHORTEST, exponent_of
from genimg.utils.exact import double
from genimg.utils.type_hints import fits

FOLDER = "averages"
"""Folder of snapshots in a run directory."""

_LARGEST_ERROR = 0.15  # of a profile, relative to its norm
_CONTENTS = {"length": float, "images": int, "weights": dict[str, Tensor], "copied": list[str]}


@dataclass(frozen=True)
class Snapshot:
    """A power-function average at one point of training.

    Attributes:
        length: Standard deviation of its profile, as a fraction of the training time.
        images: Images seen.
        weights: Weights and buffers by name.
        copied: Names of the buffers that are not averaged.
    """

    length: float
    images: int
    weights: dict[str, Tensor]
    copied: tuple[str, ...]


@dataclass(frozen=True)
class SavedSnapshot:
    """A snapshot in a file, whose weights are read when they are needed.

    Attributes:
        length, images, copied: See Snapshot.
        read: Function that reads and checks the file.
    """

    length: float
    images: int
    copied: tuple[str, ...]
    read: Callable[[], dict[str, Any]]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers by name, from the file."""
        weights: dict[str, Tensor] = self.read()["weights"]
        return weights


def path_of(folder: Path, name: str, step: int) -> Path:
    """Return the path of the snapshot of the average ``name`` at ``step``."""
    return folder / f"{name}-step-{step:08d}.pt"


def save(path: Path, length: float, images: int, copied: Sequence[str], weights: Mapping[str, Tensor]) -> None:
    """Write a snapshot with these attributes atomically."""
    path.parent.mkdir(exist_ok=True)
    checkpoint.save({"length": length, "images": images, "weights": weights, "copied": list(copied)}, path)


def find(run_dir: Path, until: int, like: Mapping[str, Tensor]) -> list[SavedSnapshot]:
    """Return a run's snapshots with at most ``until`` images seen, after checking the contents of each file.

    Args:
        run_dir: Run directory.
        until: Images seen.
        like: Weights of the model. Those of a snapshot must have the same names, shapes and types.

    Raises:
        CheckpointError: If a file is damaged, or is not a snapshot of this model.
    """
    found = []
    for path in sorted((run_dir / FOLDER).glob("*-step-*.pt")):
        read = partial(_read, path, run_dir, like)
        state = read()
        if state["images"] <= until:
            found.append(SavedSnapshot(state["length"], state["images"], tuple(state["copied"]), read))
    return found


def _read(path: Path, run_dir: Path, like: Mapping[str, Tensor]) -> dict[str, Any]:
    state = checkpoint.load(path, below=run_dir)
    if not _is_snapshot(state, like):
        raise CheckpointError(f"{path} is not a snapshot of this model's averaged weights", "remove it")
    return state


def _is_snapshot(state: Mapping[str, Any], like: Mapping[str, Tensor]) -> bool:
    if not all(fits(state.get(key), hint, lambda value: type(value) is Tensor) for key, hint in _CONTENTS.items()):
        return False
    weights: Mapping[str, Tensor] = state["weights"]
    networks = {name.partition(".")[0] for name in weights}
    expected = {name: value for name, value in like.items() if name.partition(".")[0] in networks}
    return (
        SHORTEST <= state["length"] < LONGEST
        and state["images"] > 0
        and weights.keys() == expected.keys()
        and set(state["copied"]) <= weights.keys()
        and all(value.shape == expected[name].shape and value.dtype == expected[name].dtype for name, value in weights.items())
        and all(bool(value.isfinite().all()) for value in weights.values())
    )


def correlations(times: NDArray[np.float64], exponents: NDArray[np.float64], other_times: NDArray[np.float64],
                 other_exponents: NDArray[np.float64]) -> NDArray[np.float64]:  # fmt: skip
    """Return the inner products [A, B] of power-function profiles that end at these times.

    A profile that ends at T with exponent g is p(t) = (g + 1) / T (t / T)^g for 0 <= t <= T.

    Args:
        times, exponents: Ends and exponents of the first profiles [A].
        other_times, other_exponents: Ends and exponents of the second profiles [B].
    """
    a, g = times[:, None], exponents[:, None]
    b, h = other_times[None, :], other_exponents[None, :]
    # The integral over the common time, up to the earlier end m, where the earlier profile's own factor is 1.
    earlier_over_later = np.minimum(a, b) / np.maximum(a, b)
    exponent_of_later = np.where(a < b, h, g)
    return (g + 1) * (h + 1) / (g + h + 1) * earlier_over_later**exponent_of_later / np.maximum(a, b)


def coefficients(images: Sequence[int], lengths: Sequence[float], target_images: int, length: float) -> NDArray[np.float64]:
    """Return the factors [S] for which the weighted sum of the snapshots is closest to an average of another length.

    They minimise the squared difference of the profiles, among factors that add up to 1 so that weights keep their scale.

    Args:
        images: Images seen at each snapshot.
        lengths: Length of each snapshot's profile.
        target_images: Images seen at which the average ends.
        length: Length of its profile.

    Raises:
        ConfigError: If the snapshots do not determine such an average, because they are too few or cover only a part of the
            run.
    """
    unit = float(target_images)
    times = np.asarray(images, dtype=np.float64) / unit
    exponents = np.array([exponent_of(each) for each in lengths])
    target = np.array([1.0]), np.array([exponent_of(length)])
    products = correlations(times, exponents, times, exponents)
    wanted = correlations(times, exponents, *target)[:, 0]
    # Lagrange conditions of the least-squares problem with the sum as constraint.
    count = len(times)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count], system[:count, count], system[count, :count] = products, 1.0, 1.0
    factors: NDArray[np.float64] = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=None)[0][:count]
    norm = correlations(*target, *target)[0, 0]
    error = math.sqrt(max(norm - 2.0 * factors @ wanted + factors @ products @ factors, 0.0) / norm)
    if error > _LARGEST_ERROR:
        raise ConfigError(
            f"weights={length:g} is an average that the {count} snapshots of this run do not determine (error {error:.2f})",
            f"choose a length nearer to theirs, {min(lengths):g} to {max(lengths):g}, or train with more snapshots",
            key="weights",
        )
    return factors


def weights_of_length(snapshots: Sequence[Snapshot | SavedSnapshot], images: int, length: float) -> dict[str, Tensor]:
    """Return the weights of an average of any length.

    Args:
        snapshots: Snapshots of one run, with one or more lengths. Saved ones are read into memory one at a time.
        images: Images seen at which the average ends.
        length: Standard deviation of its profile, as a fraction of ``images``.

    Returns:
        Weights by name. Buffers that are not averaged are those of the last snapshot.

    Raises:
        ConfigError: If there are fewer than two snapshots, or the length is out of range.
    """
    if not SHORTEST <= length < LONGEST:
        raise ConfigError(f"weights={length:g}: an average has a length from {SHORTEST} to {LONGEST}", key="weights")
    if len(snapshots) < 2:
        raise ConfigError(
            f"weights={length:g} needs at least two snapshots of power-function averages in the run's folder {FOLDER}",
            "choose other weights, or train with a power-function average whose num_snapshots is above 0",
            key="weights",
        )
    factors = coefficients([each.images for each in snapshots], [each.length for each in snapshots], images, length)
    last = max(snapshots, key=lambda each: each.images)
    latest = last.weights
    summed = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in latest.items() if key not in last.copied}
    for factor, snapshot in zip(factors.tolist(), snapshots, strict=True):
        weights = snapshot.weights
        for key, total in summed.items():
            total.add_(double(weights[key]), alpha=factor)
    return {key: summed[key].to(value.dtype) if key in summed else value for key, value in latest.items()}
