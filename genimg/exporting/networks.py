"""The network that a method exports, by its capabilities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError
from genimg.exporting.parts import (
    Choices,
    ExportedNetwork,
    Inputs,
    Program,
    image_port,
    in_range,
    prepared_for_export,
    refuse_choices,
)
from genimg.exporting.translators import exported_translator
from genimg.inference.translate import chosen_direction
from genimg.methods.base import Method
from genimg.methods.capabilities import Exports, Generates, Translates
from genimg.methods.export_spec import ExportSpec, Port

_RANGE = {True: "in [-1, 1]", False: "about in [-1, 1], not clamped"}


def exportable(method: Method, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    """Return the network of a method that generates or translates images.

    Args:
        method: Method with the weights to export, on the device that computes the references.
        choices: Options that the user set.
        facts: Facts about the data that the model was trained on.

    Raises:
        CheckpointError: If the method cannot be exported.
        ConfigError: If an option is not supported.
    """
    if isinstance(method, Exports):
        spec = method.export_spec(choices.truncation)
        refuse_choices(method, choices, *(["truncation"] if spec.truncation == choices.truncation else []))
        return _stated(method, spec)
    if isinstance(method, Translates):
        return exported_translator(method, choices, facts)
    if isinstance(method, Generates):
        refuse_choices(method, choices)
        return _stated(method, _sampling(method))
    raise CheckpointError(
        f"ckpt holds a {type(method).__name__}, which genimg-export cannot export: it neither generates nor translates images "
        "and has no export_spec (docs/exporting.md)",
        key="ckpt",
    )


def names_of_parts(method: Method, direction: str | None) -> dict[str, str]:
    """Return what the parts of an exported file are called in the method: modules and tensors, by their names in the file.

    A part that is made for the export, such as a constant, is omitted.

    Args:
        method: The method that is exported.
        direction: Direction of a translator; None for the first one.
    """
    parts: Mapping[str, nn.Module | Tensor] = {"method": method}
    if isinstance(method, Exports):
        parts = method.export_spec(None).parts
    elif isinstance(method, Translates):
        parts = {"translator": method.translator(chosen_direction(method, direction))}
    own: list[tuple[str, nn.Module | Tensor]] = [*method.named_modules(), *method.named_parameters(), *method.named_buffers()]
    found = {part: [name for name, each in own if each is value] for part, value in parts.items()}
    return {part: names[0] for part, names in found.items() if names}


def _stated(method: Method, spec: ExportSpec) -> ExportedNetwork:
    """Return the network described by a method's ``export_spec``."""
    device = next(method.parameters()).device
    known = method.draw(range(1), 0).keys() if isinstance(method, Generates) else ()
    for port in spec.inputs:
        if port.random is None and port.name not in known:
            raise ValueError(f"the input {port.name} of export_spec needs a function random, because draw() does not return it")

    def draw(count: int, seed: int, height: int, width: int) -> Inputs:
        drawn = method.draw(range(count), seed) if isinstance(method, Generates) else {}
        numbers = torch.Generator().manual_seed(seed)
        values = []
        for port in spec.inputs:
            shape = [count if side == "batch" else int(side) for side in port.shape]
            values.append(drawn[port.name].cpu() if port.random is None else port.random(shape, generator=numbers))
        return tuple(values)

    @torch.no_grad()
    def reference(*inputs: Tensor) -> Tensor:
        batch = {port.name: value.to(device) for port, value in zip(spec.inputs, inputs, strict=True)}
        images = spec.reference(batch)
        return (in_range(images) if spec.is_limited else images.float()).cpu()

    return ExportedNetwork(
        name=spec.name,
        network=prepared_for_export(Program(spec.parts, spec.inputs, spec.forward, is_limited=spec.is_limited)),
        inputs=spec.inputs,
        output=image_port(
            *reference(*draw(1, 0, 0, 0)).shape[1:],
            meaning="in [-1, 1]" if spec.is_limited else "about in [-1, 1], not clamped",
        ),
        draw=draw,
        reference=reference,
        remarks=spec.remarks,
        settings=spec.settings,
    )


def _sampling(method: Method) -> ExportSpec:
    """Return the export specification for sampling from a method's own random inputs with its default options."""
    assert isinstance(method, Generates)
    drawn = method.draw(range(2), 0)
    options = {name: value for name, value in vars(method.sampling_options).items() if value is not None}
    return ExportSpec(
        name="sampler",
        parts={"method": method},
        inputs=tuple(
            Port(name, value.dtype, ("batch", *value.shape[1:]), "as the model draws it") for name, value in drawn.items()
        ),
        forward=lambda parts, batch: parts.method.sample(batch),
        reference=method.sample,
        remarks=tuple(f"sampled with {name}={value}, the model's default" for name, value in options.items()),
    )
