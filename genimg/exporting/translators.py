"""The exported network of a method that translates images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from genimg.data.facts import DataFacts
from genimg.data.tasks.base import Task
from genimg.errors import ConfigError
from genimg.exporting.parts import (
    Choices,
    ExportedNetwork,
    Inputs,
    Program,
    SizeConstraints,
    image_port,
    in_range,
    prepared_for_export,
    refuse_choices,
)
from genimg.inference.translate import blank_source, chosen_direction, image_channels, least_side
from genimg.methods.capabilities import Translates
from genimg.methods.export_spec import Port
from genimg.types import Batch, height_width

_SMALLEST = 8  # pixels; smaller images are not useful, and padding uses other code for them


def exported_translator(method: Translates, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    """Return the network of one direction of a method that translates images; see ``exportable``."""
    refuse_choices(method, choices, "direction", "model_mode")
    direction = chosen_direction(method, choices.direction)
    if choices.model_mode is not None:
        method.set_mode(choices.model_mode)
    given = method.translator(direction)
    network, task = prepared_for_export(given), method.task
    if method.sampled_mode == "train":
        _refuse_dropout(network)
        network = _with_own_statistics(network)
    device = next(given.parameters()).device
    masked = "mask" in task.keys
    image_size = height_width(facts.image_size)
    source_channels = facts.channels_into(backwards=direction in method.directions[1:])
    channels = _channels(task, source_channels)
    factor = blank_source(task, channels, _SMALLEST).shape[2] // _SMALLEST  # super-resolution enlarges its inputs first
    multiple = method.size_divisor // math.gcd(method.size_divisor, factor)
    least = least_side(method, direction, device, source_channels, max(image_size))
    least = _up_to(max(math.ceil(least / factor), _SMALLEST), multiple)
    usual = [_up_to(max(math.ceil(side / factor), least), multiple) for side in image_size]

    def draw(count: int, seed: int, height: int, width: int) -> Inputs:
        numbers = torch.Generator().manual_seed(seed)
        image = torch.rand(count, channels, height, width, generator=numbers) * 2.0 - 1.0
        if not masked:
            return (image,)
        return image, (torch.rand(count, 1, height, width, generator=numbers) < 0.3).float()

    def reference(image: Tensor, mask: Tensor | None = None) -> Tensor:
        source = task.given(image, mask)
        return in_range(task.result(method.translate(source.to(device), direction).cpu(), source))

    def translated(parts: Any, batch: Batch) -> Tensor:
        source = task.given(*batch.values()).contiguous()
        return task.result(parts.translator(source).float(), source)

    made = reference(*draw(1, 0, least, least))
    ports = [image_port(channels, "height", "width")]
    if masked:
        ports.append(Port("mask", torch.float32, ("batch", 1, "height", "width"), "1 where pixels are missing, else 0"))
    output = ("height", "width") if factor == 1 else (f"{factor}*height", f"{factor}*width")
    return ExportedNetwork(
        name="translator" if direction is None or len(method.directions) == 1 else f"translator-{direction}",
        network=Program({"translator": network}, ports, translated),
        inputs=tuple(ports),
        output=image_port(made.shape[1], *output, name="translated"),
        draw=draw,
        reference=reference,
        sides=SizeConstraints(multiple, least, (usual[0], usual[1])),
    )


def _channels(task: Task, source_channels: int) -> int:
    """Return the number of channels of the input images. It is that of the source if the task accepts it, as in colorization.

    Raises:
        ConfigError: If the task does not accept such images.
    """
    try:
        if blank_source(task, source_channels, _SMALLEST).shape[1] == source_channels:
            return source_channels
    except ValueError:  # this number of channels is not supported
        pass
    return image_channels(task, source_channels)


def _refuse_dropout(network: nn.Module) -> None:
    """Check that a network has no active dropout, because an exported program must be deterministic.

    Raises:
        ConfigError: If it has dropout, which model_mode=train keeps active.
    """
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in network.modules()):
        raise ConfigError(
            "this model translates with dropout and batch statistics as in training, but dropout is random, and an exported "
            "program must be deterministic: set model_mode=eval, which turns dropout off and uses running averages",
            key="model_mode",
        )


def _with_own_statistics(network: nn.Module) -> nn.Module:
    """Replace each batch norm by a norm with each image's own statistics, as in training with a batch size of 1."""
    for layer in list(network.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                own = nn.InstanceNorm2d(child.num_features, eps=child.eps, affine=child.affine)
                own.load_state_dict({key: value for key, value in child.state_dict().items() if key in ("weight", "bias")})
                setattr(layer, name, own)
    return network.eval()


def _up_to(side: int, multiple: int) -> int:
    """Round a side up to the next multiple."""
    return -(-side // multiple) * multiple
