"""One optimizer step: precision, accumulation, ranks, randomness, clipping and the finite check, for every method.

Nothing else in genimg calls ``backward()`` or ``optimizer.step()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.training.batch_statistics import BatchStatistics
from genimg.training.device import Precision
from genimg.training.gradient_sum import GradientSum
from genimg.training.replay import Replay
from genimg.types import Batch, LossFunction, Metrics, Microbatches
from genimg.utils.distributed import least_over_ranks, rank, world_size
from genimg.utils.random_streams import RandomStream
from genimg.utils.rng import Stream, seed_generators, seed_of

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long


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


_OF_NO_MICROBATCH = 2**32


class StepRNG:
    """Gives every microbatch of a step its own random stream, which continues from one update to the next.

    Microbatches are numbered over all ranks. Several ranks therefore draw the same numbers as one rank that accumulates as many
    microbatches.

    Args:
        seed: Seed of the training.
        num_microbatches: Number of microbatches per step of this rank.
        device: Device whose generator is used in addition to the CPU's.
    """

    def __init__(self, seed: int, num_microbatches: int, device: torch.device) -> None:
        self._seed = seed
        self._first = rank() * num_microbatches  # number of this rank's first microbatch
        self._device = device
        self._streams = [RandomStream(device) for _ in range(num_microbatches)] if num_microbatches > 1 else []

    def begin(self, step: int) -> None:
        """Start the streams of ``step``. With several microbatches, also seed a stream for draws outside of them."""
        if not self._streams:
            seed_generators(self._seed_of_microbatch(step, 0), self._device)
            return
        seed_generators(seed_of(self._seed, Stream.STEP, step, _OF_NO_MICROBATCH), self._device)
        for number, stream in enumerate(self._streams):
            stream.restart(self._seed_of_microbatch(step, number))

    def of_microbatch(self, number: int) -> AbstractContextManager[None]:
        """Draw from the stream of this rank's microbatch ``number`` within the block."""
        return self._streams[number].drawing() if self._streams else nullcontext()  # a single stream, seeded by ``begin``

    def _seed_of_microbatch(self, step: int, number: int) -> int:
        overall = self._first + number
        # The first microbatch has the seed of an undivided batch.
        position = (step, overall) if overall else (step,)
        return seed_of(self._seed, Stream.STEP, *position)


class Updater:
    """Implements ``Update`` for a set of parameter groups.

    Gradients are summed over microbatches and then once over ranks, so k ranks take the same step as one rank that accumulates
    k times as many microbatches. Only the graph of one microbatch is in memory at a time. Messages between ranks travel while
    backward passes compute.

    Args:
        parameters: Parameters of each group.
        optimizers: Optimizers, one per group.
        precision: Precision of forward and backward.
        max_grad_norm: L2 norm to which each group's gradient is clipped; None for no clipping.
        rng: Random streams of the microbatches; None uses the caller's random state.
        networks: Networks of all groups. Their buffers change once per step, although ``forward`` of several microbatches is
            computed twice.
        sharding: How parameters are divided among ranks; None if each rank has all of them.
        has_frozen: Whether networks have frozen parameters. A penalty may then depend on nothing that is trained.
    """

    def __init__(
        self,
        parameters: Mapping[str, list[nn.Parameter]],
        optimizers: Mapping[str, Optimizer],
        *,
        precision: Precision,
        max_grad_norm: float | None,
        rng: StepRNG | None = None,
        networks: Sequence[nn.Module] = (),
        sharding: Sharding | None = None,
        has_frozen: bool = False,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm} must be above 0, or null for no clipping")
        self.parameters = parameters
        self.optimizers = optimizers
        self._device = precision.device
        # The cache would keep a bf16 copy of all weights that are gathered and freed.
        self._autocast = precision.autocast if sharding is None else precision.autocast_without_cache
        self._num_ranks = world_size()
        several = self._num_ranks > 1
        self._sharding = sharding
        self._has_frozen = has_frozen
        self._sums = {group: GradientSum(self._undivided(tensors)) for group, tensors in parameters.items()} if several else {}
        self._statistics = BatchStatistics(networks) if several else None
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.rng = rng
        self.networks = networks
        self.step: int | Tensor = 0
        self._replays: dict[str, list[Replay]] = {}
        # The first step at which each group was not finite, kept on the device because reading it would synchronise.
        self._first_bad = {
            group: torch.full((), -1, dtype=torch.int64, device=tensors[0].device) for group, tensors in parameters.items()
        }

    def begin(self, step: int) -> None:
        """Start a step and its random streams."""
        if isinstance(self.step, Tensor):
            self.step.fill_(step)
        else:
            self.step = step
        self._replays = {}
        if self.rng is not None:
            self.rng.begin(step)

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        self._train_only(group)
        if len(batch) == 1:
            with self._of_microbatch(0), self._autocast():
                return [batch[0] | function(batch[0])]
        networks = self._networks_of(group)
        replays = [Replay(function, microbatch, networks, self._device) for microbatch in batch]
        results = []
        for number, (microbatch, replay) in enumerate(zip(batch, replays, strict=True)):
            with self._of_microbatch(number), self._autocast():
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
            with self._of_microbatch(number), self._autocast():
                value, parts = loss(microbatch if replays is None else microbatch | replays[number].again())
            is_last = number == len(batch) - 1
            if is_last and self._statistics is not None:
                self._statistics.begin_average()
            with self._sums[group].of_backward(is_last=is_last) if self._sums else nullcontext():
                if value.requires_grad or not self._has_frozen:
                    (value / (len(batch) * self._num_ranks)).backward()
            total = value.detach() if total is None else total + value.detach()
            for name, part in parts.items():
                share = part / len(batch)
                metrics[name] = metrics[name] + share if name in metrics else share
        assert total is not None
        metrics[f"grad_norm/{group}"] = self._check_and_clip(group, total)
        optimizer.step()
        return metrics

    def end(self) -> None:
        """End a step: all ranks have the same running statistics of batch norm, their mean."""
        if self._statistics is not None:
            self._statistics.finish_average()

    def abandon(self) -> None:
        """Forget what a step has begun that failed before its end."""
        self._replays = {}
        if self._statistics is not None:
            self._statistics.abandon()

    def hold_step(self) -> None:
        """From now on, keep the number of the step on the device, so the operations of a step can be captured."""
        self.step = torch.zeros((), dtype=torch.int64, device=self._device)

    def raise_if_not_finite(self) -> None:
        """Wait for the device and check the finite flags.

        Raises:
            NonFiniteError: If any loss or gradient since the start was infinite or NaN.
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
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if self._sharding is None else self._sharding.norm(gradients)
        if self.max_grad_norm < math.inf:
            if self._sharding is None:
                nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
            else:
                self._sharding.clip(gradients, self.max_grad_norm, norm)
        flag = self._first_bad[group]
        bad = ~torch.isfinite(norm + loss) & (flag < 0)
        if isinstance(self.step, Tensor):
            flag.copy_(torch.where(bad, self.step, flag))
        else:
            flag.masked_fill_(bad, self.step)  # passes the step as a kernel argument; torch.where would copy it and synchronise
        return norm

    def _of_microbatch(self, number: int) -> AbstractContextManager[None]:
        return nullcontext() if self.rng is None else self.rng.of_microbatch(number)

    def _undivided(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        return parameters if self._sharding is None else [p for p in parameters if not self._sharding.is_divided(p)]

    def _networks_of(self, group: str) -> list[nn.Module]:
        own = {id(parameter) for parameter in self.parameters[group]}
        return [network for network in self.networks if any(id(parameter) in own for parameter in network.parameters())]

    def _train_only(self, group: str) -> None:
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == group)
