"""The progress of a training: the means of its metrics since the last log line, and the progress bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genimg.types import Metrics
from genimg.utils.distributed import all_gather_rows, rank, sum_over_ranks, world_size
from genimg.utils.progress import SECONDS_BETWEEN_LINES
from genimg.utils.terminal import as_many_as_fit, columns_of, is_terminal

log = logging.getLogger(__name__)

_COLUMNS_OF_BAR = 60  # characters of a progress bar before the numbers


class MeanMetrics:
    """Running means on the device, read once per log interval.

    The sums keep their memory, so additions can be captured as part of a CUDA graph.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a step."""
        self.accumulate(metrics)
        self.count(metrics)

    def accumulate(self, metrics: Metrics) -> None:
        """Do the device's part of ``add``; ``count`` does the rest, each time that this part has run."""
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value, dtype=torch.float32)
        if metrics:
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))

    def count(self, names: Iterable[str]) -> None:
        """Count an addition to the sums of the metrics with these names."""
        for name in names:
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, over all ranks, with one transfer from the device."""
        if not self._counts:
            return {}
        means = torch.stack([self._sums[name] / count for name, count in self._counts.items()])
        result = dict(zip(self._counts, _mean_over_ranks(means).tolist(), strict=True))
        torch._foreach_zero_(list(self._sums.values()))
        self._counts = {}
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return every rank's sums [W], because a run that resumed from their mean would not be bit-equal."""
        sums = {name: all_gather_rows(self._sums[name].reshape(1).clone()) for name in self._counts}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the sums from ``state_dict``.

        Raises:
            ValueError: If the state is invalid.
        """
        if state["sums"].keys() != state["counts"].keys() or not all(
            isinstance(sums, Tensor) and type(state["counts"][name]) is int for name, sums in state["sums"].items()
        ):
            raise ValueError("the means must hold sums and counts under the same names")

        def own(sums: Tensor) -> Tensor:
            return sums.reshape(-1)[rank()] if sums.numel() == world_size() else sums.mean()

        self._sums = {name: own(sums).to(device, copy=True) for name, sums in state["sums"].items()}
        self._counts = dict(state["counts"])


def _mean_over_ranks(values: Tensor) -> Tensor:
    return sum_over_ranks(values) / world_size()


class ProgressBar:
    """A bar with images/s, losses and time left on a terminal, otherwise a line every ten seconds, on the first rank only.

    Args:
        total: Number of images in the whole run.
        initial: Number of images already seen.
    """

    def __init__(self, *, total: int, initial: int) -> None:
        self.interactive = is_terminal(sys.stderr) and rank() == 0 and initial < total
        self.total = total
        self.images = self._initial = initial
        self._numbers = ""
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total, initial=initial, unit="img", unit_scale=True, disable=not self.interactive, dynamic_ncols=True
        )

    def advance(self, images: int) -> None:
        self.images += images
        if self.interactive:
            self._bar.update(images)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (self.images - self._initial) / (now - self._start)
            left = (self.total - self.images) / rate
            log.info(
                "%d of %d images, %.0f images/s, %s left%s",
                self.images, self.total, rate, tqdm.format_interval(left), ", " * bool(self._numbers) + self._numbers,
            )  # fmt: skip

    def show(self, numbers: Mapping[str, float]) -> None:
        """Show numbers beside the bar."""
        parts = [f"{name.split('/')[-1]}={value:.3g}" for name, value in numbers.items()]
        self._numbers = " ".join(parts)
        if self.interactive and parts:
            room = columns_of(sys.stderr) - _COLUMNS_OF_BAR  # tqdm would cut the line in the middle of a number
            self._bar.set_postfix_str(as_many_as_fit(parts, room))

    def close(self) -> None:
        self._bar.close()
