"""What is taken out of a method: a network with its inputs and outputs, and what the checkpoint itself makes of the same.

``exportable`` has a case for each family of methods; another method of your own gets one by ``exportable.register``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, ConfigError
from genimg.methods.base import Method

Record = dict[str, Any]
Inputs = tuple[Tensor, ...]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choices:
    """What the user may choose; None where nothing is chosen."""

    truncation: float | None = None
    direction: str | None = None
    model_mode: str | None = None


@dataclass(frozen=True)
class Port:
    """One input, or the output.

    Attributes:
        name: in the program.
        dtype: of its tensor.
        shape: numbers, or names of what may vary, such as ``batch``; ``2*height`` is twice what ``height`` is.
        meaning: its values.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    meaning: str

    def with_sides(self, numbers: dict[str, int]) -> Port:
        """With numbers in place of these names."""
        sides: list[int | str] = []
        for side in self.shape:
            factor, _, name = str(side).rpartition("*")
            sides.append(int(factor or 1) * numbers[name] if name in numbers else side)
        return replace(self, shape=tuple(sides))

    def describe(self) -> str:
        """In one line."""
        sides = ", ".join(str(side) for side in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')} [{sides}], {self.meaning}"


@dataclass(frozen=True)
class SizeConstraints:
    """Heights and widths that a network takes.

    Attributes:
        multiple: of pixels.
        least: pixels, a multiple.
        usual: height and width that it was trained on, as multiples.
        fixed: whether it takes these alone.
    """

    multiple: int
    least: int
    usual: tuple[int, int]
    fixed: bool = False


@dataclass(frozen=True)
class ExportedNetwork:
    """A network that can be exported.

    Attributes:
        name: of what it is, as in the name of a file.
        network: a copy on the CPU, in evaluation mode, in float32, without parametrizations.
        inputs: of its forward, in this order.
        output: what it gives.
        draw: (count, seed, height, width) -> random inputs on the CPU; the size is that of images, where they are inputs.
        reference: what the checkpoint's method makes of such inputs, on its device: images [N, C, H, W] on the CPU.
        sides: of images that may vary in size; None where none do.
        remarks: what is not in it.
    """

    name: str
    network: nn.Module
    inputs: tuple[Port, ...]
    output: Port
    draw: Callable[[int, int, int, int], Inputs]
    reference: Callable[..., Tensor]
    sides: SizeConstraints | None = None
    remarks: tuple[str, ...] = ()

    def with_least(self, least: int) -> ExportedNetwork:
        """Of images of so many pixels or more."""
        assert self.sides is not None
        return replace(self, sides=replace(self.sides, least=least))

    def with_fixed_size(self) -> ExportedNetwork:
        """Of images of the size it was trained on."""
        assert self.sides is not None
        numbers = dict(zip(("height", "width"), self.sides.usual, strict=True))
        inputs = tuple(port.with_sides(numbers) for port in self.inputs)
        return replace(self, inputs=inputs, output=self.output.with_sides(numbers), sides=replace(self.sides, fixed=True))

    def describe_sides(self) -> str:
        """What images it takes, where they may vary in size."""
        if self.sides is None or self.sides.fixed:
            return ""
        multiples = f"multiples of {self.sides.multiple}, " if self.sides.multiple > 1 else ""
        return f"height and width {multiples}{self.sides.least} or more"


def settled(network: Network) -> Network:
    """A copy to be exported: on the CPU, in float32 and evaluation mode, with parametrizations such as spectral norm folded in.

    Tensors are in the order of their dimensions, because some layers look at the format of their input to choose the faster
    of two ways, of which only one takes any batch.
    """
    copied = copy.deepcopy(network)
    copied.to("cpu", torch.float32).eval()
    for layer in list(copied.modules()):
        if parametrize.is_parametrized(layer):
            _fold(layer)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    copied.requires_grad_(False)
    return copied


def _fold(layer: nn.Module) -> None:
    """Make parameters of what parametrizations give.

    Not by PyTorch's ``remove_parametrizations``, which changes the class that a copy shares with its original.
    """
    values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    kind = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = kind
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value))


@singledispatch
def exportable(method: Method, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    """The part of a method that makes images, as it stands.

    Args:
        method: with the weights to export, on the device that its references are to be computed on.
        choices: of the user.
        facts: About the data that the model was trained on.

    Raises:
        CheckpointError: If the method cannot be exported.
        ConfigError: If what is chosen cannot be exported.
    """
    raise CheckpointError(
        f"ckpt holds a {type(method).__name__}, of which genimg-export does not know what to export: give "
        "genimg.exporting.parts.exportable a case for it (docs/exporting.md)",
        key="ckpt",
    )


def image_port(channels: int, height: int | str, width: int | str, *, name: str = "image") -> Port:
    """Images in [-1, 1]."""
    return Port(name, torch.float32, ("batch", channels, height, width), "in [-1, 1]")


_ADVICE = {
    "truncation": "the latents of this model are an input: remove it, and truncate those",
    "direction": "this model translates no images: remove it",
    "model_mode": "this model translates no images: remove it",
}


def refuse_choices(method: Method, choices: Choices, *welcome: str) -> None:
    """Refuse what would have no effect.

    Raises:
        ConfigError: Naming key and value.
    """
    for key, advice in _ADVICE.items():
        value = getattr(choices, key)
        if value is not None and key not in welcome:
            if method.translates and key == "truncation":
                advice = "this model has no latents: remove it"
            raise ConfigError(f"{key}={value} has no effect on the export of a {type(method).__name__}: {advice}")
