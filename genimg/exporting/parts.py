"""A network to export, with its inputs and output, and a reference computed by the checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genimg.errors import ConfigError
from genimg.methods.capabilities import Translates
from genimg.methods.export_spec import Port
from genimg.types import Batch

Record = dict[str, Any]
Inputs = tuple[Tensor, ...]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choices:
    """Options of an export; None if the user did not set one."""

    truncation: float | None = None
    direction: str | None = None
    model_mode: str | None = None


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
        settings: Further entries of the record.
    """

    name: str
    network: nn.Module
    inputs: tuple[Port, ...]
    output: Port
    draw: Callable[[int, int, int, int], Inputs]
    reference: Callable[..., Tensor]
    sides: SizeConstraints | None = None
    remarks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

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


class Program(nn.Module):
    """A network that maps inputs, by position, to images [N, C, H, W], usually clamped to [-1, 1]; see ``ExportSpec``."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module | Tensor],
        inputs: Sequence[Port],
        function: Callable[[Any, Batch], Tensor],
        *,
        is_limited: bool = True,
    ) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part.detach())
        self.names = [port.name for port in inputs]
        self.function = function
        self.is_limited = is_limited

    def forward(self, *inputs: Tensor) -> Tensor:
        images = self.function(self, dict(zip(self.names, inputs, strict=True)))
        return in_range(images) if self.is_limited else images.float()


def prepared_for_export(network: Network) -> Network:
    """Return a copy on the CPU, in float32 and evaluation mode, with parametrizations such as spectral norm folded in.

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


def image_port(channels: int, height: int | str, width: int | str, *, name: str = "image", meaning: str = "in [-1, 1]") -> Port:
    """Return a port of images."""
    return Port(name, torch.float32, ("batch", channels, height, width), meaning)


def in_range(images: Tensor) -> Tensor:
    """Clamp images to [-1, 1], as in the conversion to uint8."""
    return images.float().clamp(-1.0, 1.0)


_ADVICE = {
    "truncation": "this model's latents are an input: remove it, and truncate the latents instead",
    "direction": "this model translates no images: remove it",
    "model_mode": "this model translates no images: remove it",
}


def refuse_choices(method: object, choices: Choices, *welcome: str) -> None:
    """Check that every option that the user set has an effect on the method.

    Raises:
        ConfigError: For the first option that has none.
    """
    for key, advice in _ADVICE.items():
        value = getattr(choices, key)
        if value is not None and key not in welcome:
            if isinstance(method, Translates):
                advice = (
                    "this model has no latents: remove it" if key == "truncation" else "its export_spec ignores it: remove it"
                )
            raise ConfigError(f"{key}={value} has no effect on the export of a {type(method).__name__}: {advice}")
