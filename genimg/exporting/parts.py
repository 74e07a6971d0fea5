"""The exportable network of a method, with its inputs and outputs, and a reference computed by the checkpoint.

``exportable`` has a case for each family of methods; add your own method with ``exportable.register``.
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
from genimg.methods.capabilities import Translates

Record = dict[str, Any]
Inputs = tuple[Tensor, ...]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choices:
    """Choices of the user; None for those not made."""

    truncation: float | None = None
    direction: str | None = None
    model_mode: str | None = None


@dataclass(frozen=True)
class Port:
    """An input or the output of a network.

    Attributes:
        name: Name in the program.
        dtype: Type of the tensor's elements.
        shape: Sizes: numbers, or names of variable dimensions such as ``batch``; ``2*height`` is twice ``height``.
        meaning: Meaning of its values.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    meaning: str

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


@dataclass(frozen=True)
class SizeConstraints:
    """Heights and widths that a network accepts.

    Attributes:
        multiple: Number of pixels that must divide each side.
        least: Smallest side in pixels, a multiple of ``multiple``.
        usual: Height and width of the training images, rounded up to multiples of ``multiple``.
        fixed: Whether it accepts only the usual size.
    """

    multiple: int
    least: int
    usual: tuple[int, int]
    fixed: bool = False


@dataclass(frozen=True)
class ExportedNetwork:
    """A network that can be exported.

    Attributes:
        name: Kind of network, as used in file names.
        network: Copy of the network on the CPU, in evaluation mode and float32, without parametrizations.
        inputs: Inputs of its forward, in order.
        output: Its output.
        draw: Function (count, seed, height, width) -> random inputs on the CPU; the size applies to input images.
        reference: Function from such inputs to the checkpoint's images [N, C, H, W] on the CPU, computed on its device.
        sides: Constraints on images of variable size; None if there are none.
        remarks: Notes about what the export omits.
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
        """Return the network restricted to images with sides of at least ``least`` pixels."""
        assert self.sides is not None
        return replace(self, sides=replace(self.sides, least=least))

    def with_fixed_size(self) -> ExportedNetwork:
        """Return the network restricted to the size of the training images."""
        assert self.sides is not None
        numbers = dict(zip(("height", "width"), self.sides.usual, strict=True))
        inputs = tuple(port.with_sides(numbers) for port in self.inputs)
        return replace(self, inputs=inputs, output=self.output.with_sides(numbers), sides=replace(self.sides, fixed=True))

    def describe_sides(self) -> str:
        """Describe the accepted image sizes, if they may vary."""
        if self.sides is None or self.sides.fixed:
            return ""
        multiples = f"multiples of {self.sides.multiple}, " if self.sides.multiple > 1 else ""
        return f"height and width {multiples}{self.sides.least} or more"


def prepared_for_export(network: Network) -> Network:
    """Return a copy for export: on the CPU, float32, in evaluation mode, with parametrizations (e.g. spectral norm) folded in.

    Tensors are in contiguous memory format, because some layers choose the faster of two algorithms by the format of their
    input, and only one of them supports any batch size.
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
    """Replace parametrizations by parameters with their values.

    PyTorch's ``remove_parametrizations`` would change the class that a copy shares with its original.
    """
    values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    kind = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.__class__ = kind
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value))


@singledispatch
def exportable(method: Method, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    """Return the network of a method that makes images.

    Args:
        method: Method with the weights to export, on the device that computes the references.
        choices: Choices of the user.
        facts: About the data that the model was trained on.

    Raises:
        CheckpointError: If the method cannot be exported.
        ConfigError: If what is chosen cannot be exported.
    """
    raise CheckpointError(
        f"ckpt holds a {type(method).__name__}, which genimg-export cannot export: register "
        "it with genimg.exporting.parts.exportable (docs/exporting.md)",
        key="ckpt",
    )


def image_port(channels: int, height: int | str, width: int | str, *, name: str = "image") -> Port:
    """Return a port of images in [-1, 1]."""
    return Port(name, torch.float32, ("batch", channels, height, width), "in [-1, 1]")


_ADVICE = {
    "truncation": "this model's latents are an input: remove it, and truncate the latents instead",
    "direction": "this model translates no images: remove it",
    "model_mode": "this model translates no images: remove it",
}


def refuse_choices(method: Method, choices: Choices, *welcome: str) -> None:
    """Check that every choice has an effect on the method.

    Raises:
        ConfigError: For the first choice that has none.
    """
    for key, advice in _ADVICE.items():
        value = getattr(choices, key)
        if value is not None and key not in welcome:
            if isinstance(method, Translates) and key == "truncation":
                advice = "this model has no latents: remove it"
            raise ConfigError(f"{key}={value} has no effect on the export of a {type(method).__name__}: {advice}")
