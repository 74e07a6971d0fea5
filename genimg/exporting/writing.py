"""Write a network of a checkpoint to a file, with a record about it, and check that it makes the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import genimg
from genimg.data.facts import DataFacts
from genimg.exporting.checks import largest_difference, trials
from genimg.exporting.formats import (
    FORMATS,
    OPSET,
    Run,
    open_onnx,
    open_pt2,
    traced,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from genimg.exporting.parts import Choices, ExportedNetwork
from genimg.exporting.rebuilding import rebuilt, recipe
from genimg.methods.export_spec import Port
from genimg.training.ema import RAW
from genimg.utils.environment import git_commit
from genimg.utils.files import atomically, sha256_of

Record = dict[str, Any]  # values are primitives


def describe(
    part: ExportedNetwork,
    kind: str,
    choices: Choices,
    *,
    config: Record,
    facts: DataFacts,
    state: Mapping[str, Any],
    checkpoint: Path,
    class_names: Sequence[str],
    weights: str,
) -> Record:
    """Return the record of the file, without inputs and output, which ``write_checked`` adds.

    Args:
        part: Network to export.
        kind: Name of the format.
        choices: Options that the user set.
        config: Resolved config of the training run.
        facts: Facts about the data that the model was trained on.
        state: Content of the checkpoint.
        checkpoint: Path of the checkpoint.
        class_names: Names of the classes by label; empty without labels.
        weights: Name of the weights, ``raw`` or that of an average.
    """
    model = config["model"]
    network = next((model[key] for key in part.name.split("-")[::-1] if key in model), model)
    averaged = "" if weights == RAW else f", averaged weights ({weights})"
    record = {
        "description": f"{part.name} of a {model['_target_'].rpartition('.')[2]}{averaged}, {FORMATS[kind].what}",
        "model": model["_target_"],
        "network": network["_target_"],
        "weights": weights,
        **{key: value for key, value in vars(choices).items() if value is not None},
        "classes": list(class_names) if any(port.name == "label" for port in part.inputs) else [],
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256_of(checkpoint),
        "images": int(state["training"]["images"]),
        "genimg_version": genimg.__version__,
        "git_commit": git_commit(),
        "torch_version": str(torch.__version__),
    }
    if kind == "onnx":
        record["opset"] = OPSET
    if kind == "safetensors":
        record["config"] = recipe(config, facts, state["num_images"], choices, state["decisions"].get("images_per_second"))
    return record


def write_checked(
    part: ExportedNetwork, record: Record, kind: str, output: Path, device: torch.device, allow: Sequence[str] = ()
) -> tuple[float, ExportedNetwork]:
    """Write the file and check it by running it; leave no file if this fails.

    Args:
        part: Network to export.
        record: Record returned by ``describe``.
        kind: Name of the format.
        output: Path of the file.
        device: Device to run the file on.
        allow: The user's own packages that the checkpoint's config may refer to.

    Returns:
        The largest difference from the checkpoint's images, and the network with its final size constraints.

    Raises:
        UserError: If the network cannot be exported, or its images differ from the checkpoint's.
    """
    if kind != "safetensors":
        program, part = traced(part)
    record = {
        **record,
        "inputs": [_entry(port) for port in part.inputs],
        "output": _entry(part.output),
        "sizes": part.describe_sides(),
        "remarks": list(part.remarks),
        **({"settings": dict(part.settings)} if part.settings else {}),
    }
    run: Run
    with atomically(output) as temporary:
        if kind == "pt2":
            write_pt2(program, record, temporary)
            run = open_pt2(temporary, device)
        elif kind == "onnx":
            write_onnx(program, part, record, temporary)
            run = open_onnx(temporary)
        else:
            write_safetensors(part, record, temporary)
            network = rebuilt(temporary, tuple(allow)).to(device)

            def run(*inputs: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    return network(*(each.to(device) for each in inputs)).cpu()

        return largest_difference(part, run), part


def describe_trials(part: ExportedNetwork, kind: str, device: torch.device) -> str:
    """Describe how a file was checked: the program that runs it, and the batch sizes."""
    where = "onnxruntime on cpu" if kind == "onnx" else f"PyTorch on {device.type}"
    tried = [f"{count}" if part.sides is None else f"{count} of {height}x{width}" for count, height, width in trials(part)]
    return f"{where}, batches of {', '.join(tried[:-1])} and {tried[-1]}"


def _entry(port: Port) -> Record:
    return {
        "name": port.name,
        "dtype": str(port.dtype).removeprefix("torch."),
        "shape": list(port.shape),
        "values": port.meaning,
    }
