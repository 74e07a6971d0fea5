"""The specification of the network that a method exports; see ``capabilities.Exports``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genimg.types import Batch

NORMAL = "standard normal numbers"


@dataclass(frozen=True)
class Port:
    """An input or the output of a network.

    Attributes:
        name: Name in the program.
        dtype: Type of the tensor's elements.
        shape: Sizes: numbers, or names of variable dimensions such as ``batch``; ``2*height`` is twice ``height``.
        meaning: Meaning of its values, with their range.
        random: Function (shape, generator=...) -> random values of an input, such as ``torch.randn``, to compare the exported
            file with the model; None for the values that the method's ``draw`` returns by the port's name.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    meaning: str
    random: Callable[..., Tensor] | None = None

    def with_sides(self, numbers: dict[str, int]) -> Port:
        """Return the port with numbers in place of these names."""
        sides: list[int | str] = []
        for side in self.shape:
            factor, _, name = str(side).rpartition("*")
            sides.append(int(factor or 1) * numbers[name] if name in numbers else side)
        return replace(self, shape=tuple(sides))

    def describe(self) -> str:
        """Describe the port in one line."""
        sides = ", ".join(str(side) for side in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')} [{sides}], {self.meaning}"


def normal_port(name: str, dim: int, meaning: str = NORMAL) -> Port:
    """Return an input of standard normal numbers [N, ``dim``]."""
    return Port(name, torch.float32, ("batch", dim), meaning, torch.randn)


def integer_port(name: str, what: str, count: int, *sides: int) -> Port:
    """Return an input of integers [N, *sides] from 0 to ``count`` - 1; each is the number of a ``what``, such as a class."""
    meaning = f"{what} numbers from 0 to {count - 1}"
    return Port(name, torch.int64, ("batch", *sides), meaning, partial(torch.randint, count))


@dataclass(frozen=True)
class ExportSpec:
    """A network that a method exports.

    Attributes:
        name: Kind of network, used in file names, such as ``generator``.
        parts: Modules and tensors of the method that hold the weights, by their names in the file. They are copied.
        inputs: Inputs in order. ``batch`` is their only variable dimension.
        forward: Function (parts, batch) -> images [N, C, H, W], which are clamped to [-1, 1]. The copies are the attributes of
            ``parts``, and ``batch`` holds the inputs by name. Batch sizes must stay symbolic: ``x.shape[0]``, not ``len(x)``.
        reference: Function that computes these images with the method itself, in evaluation mode, from such a batch on the
            method's device.
        truncation: Truncation that is part of the network; None if it has none.
        remarks: Notes for the user, such as what the network omits.
        settings: Numbers and texts that a user of the network needs, for the record in the file.
        is_limited: Whether the images are clamped to [-1, 1]; not for estimates that a sampler processes further.
    """

    name: str
    parts: Mapping[str, nn.Module | Tensor]
    inputs: tuple[Port, ...]
    forward: Callable[[Any, Batch], Tensor]
    reference: Callable[[Batch], Tensor]
    truncation: float | None = None
    remarks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_limited: bool = True
