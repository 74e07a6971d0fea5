"""One optimizer step: precision, accumulation, ranks, noise, clipping and the finite check, in one place for every method.

Nothing else in genimg calls ``backward()`` or ``optimizer.step()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.training.device import Precision
from genimg.training.replay import Replay
from genimg.training.step_rng import Noise
from genimg.types import Batch, LossFunction, Metrics, Microbatches
from genimg.utils.distributed import add_over_ranks_, least_over_ranks, world_size


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

    Gradients are added over microbatches and then once over ranks, so that k ranks take the step that one rank takes which
    accumulates k times as many microbatches. The graph of one microbatch is in memory at a time.

    Args:
        parameters: of each group.
        optimizers: one for each group.
        precision: of forward and backward.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None leaves it.
        noise: of each microbatch; None leaves the random numbers to the caller.
        networks: of all groups, whose buffers change once in a step, although ``forward`` of several microbatches is computed
            twice.
    """

    def __init__(
        self,
        parameters: Mapping[str, list[nn.Parameter]],
        optimizers: Mapping[str, Optimizer],
        *,
        precision: Precision,
        max_grad_norm: float | None,
        noise: Noise | None = None,
        networks: Sequence[nn.Module] = (),
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm} must be above 0, or null for no clipping")
        self.parameters = parameters
        self.optimizers = optimizers
        self.precision = precision
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.noise = noise
        self.networks = networks
        self.step = 0
        self._replays: dict[str, list[Replay]] = {}
        # The first step at which each group was not finite, kept on the device: looking at it would be a host sync.
        self._first_bad = {
            group: torch.full((), -1, dtype=torch.int64, device=tensors[0].device) for group, tensors in parameters.items()
        }

    def begin(self, step: int) -> None:
        """Start a step, and its random numbers."""
        self.step = step
        self._replays = {}
        if self.noise is not None:
            self.noise.begin(step)

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        self._train_only(group)
        if len(batch) == 1:
            with self._of_microbatch(0), self.precision.autocast():
                return [batch[0] | function(batch[0])]
        networks = self._networks_of(group)
        replays = [Replay(function, microbatch, networks, self.precision.device) for microbatch in batch]
        results = []
        for number, (microbatch, replay) in enumerate(zip(batch, replays, strict=True)):
            with self._of_microbatch(number), self.precision.autocast():
                results.append(microbatch | replay.first())
        self._replays[group] = replays
        return results

    def through(
        self, group: str, function: Callable[[Batch], Batch], loss: LossFunction, batch: Microbatches
    ) -> tuple[Microbatches, Metrics]:
        made: Microbatches = []

        def both(microbatch: Batch) -> tuple[Tensor, Metrics]:
            results = function(microbatch)
            made.append(microbatch | {key: value.detach() for key, value in results.items()})
            return loss(microbatch | results)

        metrics = self(group, both, batch)
        return made, metrics

    def __call__(self, group: str, loss: LossFunction, batch: Microbatches) -> Metrics:
        self._train_only(group)
        optimizer = self.optimizers[group]
        optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        total: Tensor | None = None
        replays = self._replays.pop(group, None)
        for number, microbatch in enumerate(batch):
            with self._of_microbatch(number), self.precision.autocast():
                value, parts = loss(microbatch if replays is None else microbatch | replays[number].again())
            (value / (len(batch) * world_size())).backward()
            total = value.detach() if total is None else total + value.detach()
            for name, part in parts.items():
                share = part / len(batch)
                metrics[name] = metrics[name] + share if name in metrics else share
        assert total is not None
        add_over_ranks_(p.grad for p in self.parameters[group] if p.grad is not None)
        metrics[f"grad_norm/{group}"] = self._check_and_clip(group, total)
        optimizer.step()
        return metrics

    def raise_if_not_finite(self) -> None:
        """Wait for the device and look at the finite flags.

        Raises:
            NonFiniteError: if any loss or gradient since the start was infinite or not a number.
        """
        never = torch.iinfo(torch.int64).max
        flags = torch.stack([flag.cpu() for flag in self._first_bad.values()])
        steps = least_over_ranks(flags.where(flags >= 0, never)).tolist()  # a loss can be infinite on one rank alone
        bad = {group: step for group, step in zip(self._first_bad, steps, strict=True) if step < never}
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
        flag.masked_fill_(bad, self.step)  # a number in a kernel's arguments; torch.where would copy it, and wait
        return norm

    def _of_microbatch(self, number: int) -> AbstractContextManager[None]:
        return nullcontext() if self.noise is None else self.noise.of_microbatch(number)

    def _networks_of(self, group: str) -> list[nn.Module]:
        own = {id(parameter) for parameter in self.parameters[group]}
        return [network for network in self.networks if any(id(parameter) in own for parameter in network.parameters())]

    def _train_only(self, group: str) -> None:
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == group)
