"""One optimizer step: precision, accumulation, clipping and the finite check, in one place for every method.

Nothing else in genimg calls ``backward()`` or ``optimizer.step()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.interfaces import Batch, LossFunction, Metrics, Microbatches
from genimg.training.device import Precision


class NonFiniteError(Exception):
    """Training diverged: a loss or gradient of ``group`` was not finite at ``step``."""

    def __init__(self, group: str, step: int) -> None:
        super().__init__(group, step)
        self.group = group
        self.step = step


def split(batch: Batch, num_microbatches: int) -> Microbatches:
    """Cut a batch into equal microbatches along its first dimension."""
    if num_microbatches == 1:
        return [batch]
    pieces = {key: value.chunk(num_microbatches) for key, value in batch.items()}
    return [{key: piece[i] for key, piece in pieces.items()} for i in range(num_microbatches)]


class Updater:
    """Implements ``Update`` for a set of parameter groups.

    Args:
        parameters: of each group.
        optimizers: one for each group.
        precision: of forward and backward.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None leaves it.
    """

    def __init__(
        self,
        parameters: Mapping[str, list[nn.Parameter]],
        optimizers: Mapping[str, Optimizer],
        *,
        precision: Precision,
        max_grad_norm: float | None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"trainer.max_grad_norm={max_grad_norm} must be above 0, or null for no clipping")
        self.parameters = parameters
        self.optimizers = optimizers
        self.precision = precision
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.step = 0
        # The first step at which each group was not finite, kept on the device: looking at it would be a host sync.
        self._first_bad = {
            group: torch.full((), -1, dtype=torch.int64, device=tensors[0].device) for group, tensors in parameters.items()
        }

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        self._train_only(group)
        results = []
        for microbatch in batch:
            with self.precision.autocast():
                results.append(microbatch | function(microbatch))
        return results

    def __call__(self, group: str, loss: LossFunction, batch: Microbatches) -> Metrics:
        self._train_only(group)
        optimizer = self.optimizers[group]
        optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        total: Tensor | None = None
        for microbatch in batch:
            with self.precision.autocast():
                value, parts = loss(microbatch)
            (value / len(batch)).backward()
            total = value.detach() if total is None else total + value.detach()
            for name, part in parts.items():
                share = part / len(batch)
                metrics[name] = metrics[name] + share if name in metrics else share
        assert total is not None
        metrics[f"grad_norm/{group}"] = self._check_and_clip(group, total)
        optimizer.step()
        return metrics

    def raise_if_not_finite(self) -> None:
        """Wait for the device and look at the finite flags.

        Raises:
            NonFiniteError: if any loss or gradient since the start was infinite or not a number.
        """
        steps = {group: int(flag) for group, flag in self._first_bad.items()}
        bad = {group: step for group, step in steps.items() if step >= 0}
        if bad:
            group = min(bad, key=lambda name: bad[name])
            raise NonFiniteError(group, bad[group])

    def _check_and_clip(self, group: str, loss: Tensor) -> Tensor:
        parameters = self.parameters[group]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm < math.inf:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        flag = self._first_bad[group]
        bad = ~torch.isfinite(norm + loss) & (flag < 0)
        flag.copy_(torch.where(bad, self.step, flag))
        return norm

    def _train_only(self, group: str) -> None:
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == group)
