"""The random numbers of a training step: a function of the seed, the step and the microbatch alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from genimg.utils.distributed import rank
from genimg.utils.rng import Stream, seed_of

_OF_NO_MICROBATCH = 2**32


class Noise:
    """Gives every microbatch of a step a random stream of its own, which goes on from one update to the next.

    Microbatches are numbered over all ranks, so that several ranks draw what one rank draws that accumulates as many
    microbatches: where a batch is cut makes no difference.

    Args:
        seed: of the training.
        num_microbatches: of this rank in every step.
        device: whose generator is used beside the CPU's.
    """

    def __init__(self, seed: int, num_microbatches: int, device: torch.device) -> None:
        self._seed = seed
        self._count = num_microbatches
        self._device = device
        self._step = 0
        self._states: dict[int, list[Tensor]] = {}

    def begin(self, step: int) -> None:
        """Start the streams of ``step``: the only microbatch's, or, where there are several, one for what belongs to none."""
        self._step = step
        self._states = {}
        of_none = seed_of(self._seed, Stream.STEP, step, _OF_NO_MICROBATCH)
        torch.manual_seed(self._seed_of_microbatch(0) if self._count == 1 else of_none)

    @contextlib.contextmanager
    def of_microbatch(self, number: int) -> Iterator[None]:
        """Draw from the stream of this rank's microbatch ``number`` in the block."""
        if self._count == 1:  # nothing to change between, and ``begin`` has seeded
            yield
            return
        if number in self._states:
            set_random_state(self._states[number], self._device)
        else:
            torch.manual_seed(self._seed_of_microbatch(number))
        yield
        self._states[number] = random_state(self._device)

    def _seed_of_microbatch(self, number: int) -> int:
        overall = rank() * self._count + number
        # The first is that of a batch which is not cut at all.
        position = (self._step, overall) if overall else (self._step,)
        return seed_of(self._seed, Stream.STEP, *position)


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the CPU's generator and of the device's; nothing waits for the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Go back to what ``random_state`` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
