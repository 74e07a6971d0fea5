"""genimg-export: the network that makes the images, alone, in a file for other programs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

import genimg
from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config import untrusted
from genimg.config.compose import thaw
from genimg.config.options import read_options
from genimg.config.schema.commands import Export
from genimg.errors import ConfigError
from genimg.evaluation.extractors.base import sha256_of
from genimg.exporting.checks import largest_difference, trials
from genimg.exporting.formats import (
    FORMATS,
    OPSET,
    Run,
    open_onnx,
    open_pt2,
    require_packages,
    traced,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from genimg.exporting.parts import Choices, Part, Port, exportable
from genimg.exporting.rebuilding import rebuilt, recipe
from genimg.training.device import Precision, choose_device
from genimg.utils.environment import git_commit
from genimg.utils.files import atomically, check_writable, naming_full_disk
from genimg.utils.mappings import flatten
from genimg.utils.outputs import require_own_export
from genimg.utils.paths import expanded, relative

log = logging.getLogger(__name__)

_SHOWN = 16  # images of the example


def export(composed: DictConfig) -> None:
    """Write one network of a checkpoint to a file, and check that it makes the same images."""
    options, groups = read_options(composed, Export, untrusted.GROUPS)
    _check(options)
    require_packages(options.format)
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, flatten(groups) if groups else {})
    device = choose_device(options.device)
    Precision("fp32", device).apply_globally()  # the TF32 of GPUs would be the largest difference
    method = checkpoint.method(device)
    method.before_sampling()
    choices = Choices(**{key: getattr(options, key) for key in ("truncation", "direction", "model_mode")})
    part = exportable(method, choices, checkpoint.facts)
    output = _output(options, checkpoint.path, part, choices)
    record = _record(part, checkpoint, options.format, method.sampled_weights, choices)
    with naming_full_disk(f"the disk of output={output} became full: make room, or choose another output"):
        difference, part, record = _write(part, record, options, output, device)
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    log.info("%s: %s (%.2f MB)", record["description"], relative(output), output.stat().st_size / 1e6)
    for line in (*(f"  takes  {port.describe()}" for port in part.inputs), f"  makes  {part.output.describe()}"):
        log.info("%s", line)
    for remark in (part.describe_sides(), *part.remarks):
        if remark:
            log.info("  %s", remark)
    log.info("largest difference from the checkpoint, %s: %.2g", _tried(part, options.format, device), difference)
    log.info("%s", _snippet(part, options.format, relative(output)))


def _check(options: Export) -> None:
    """Refuse what no model can do.

    Raises:
        ConfigError: Naming key and value.
    """
    if options.output == "":
        raise ConfigError(f"output={options.output} is not the name of a file")
    suffix = FORMATS[options.format].suffix
    if options.output is not None and Path(options.output).suffix != suffix:
        raise ConfigError(
            f"output={options.output} must end in {suffix}, as files of format={options.format} do: rename it, or choose "
            "another format"
        )
    truncation = options.truncation
    if truncation is not None and not truncation >= 0:
        raise ConfigError(f"truncation={truncation} must be a number, 0 or more, or null for none")


def _output(options: Export, checkpoint: Path, part: Part, choices: Choices) -> Path:
    """The file to write; one that genimg-export wrote is replaced.

    Raises:
        ConfigError: If it cannot be written, or is another program's.
    """
    if options.output is not None:
        output = expanded("output", options.output)
    else:
        folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        psi = "" if choices.truncation is None else f"-truncation{choices.truncation:g}"
        output = folder / f"{part.name}{psi}{FORMATS[options.format].suffix}"
    check_writable("output", output)
    require_own_export(output)
    return output


def _record(part: Part, checkpoint: TrainedCheckpoint, kind: str, weights: str, choices: Choices) -> dict[str, Any]:
    """What the file says about itself, without inputs and output."""
    model = checkpoint.config["model"]
    network = next((model[key] for key in part.name.split("-")[::-1] if key in model), model)
    averaged = ", averaged weights" if weights == "ema" else ""
    record = {
        "description": f"{part.name} of a {model['_target_'].rpartition('.')[2]}{averaged}, {FORMATS[kind].what}",
        "model": model["_target_"],
        "network": network["_target_"],
        "weights": weights,
        **{key: value for key, value in vars(choices).items() if value is not None},
        "classes": list(checkpoint.class_names) if any(port.name == "label" for port in part.inputs) else [],
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": sha256_of(checkpoint.path),
        "images": checkpoint.images,
        "genimg_version": genimg.__version__,
        "git_commit": git_commit(),
        "torch_version": str(torch.__version__),
    }
    if kind == "onnx":
        record["opset"] = OPSET
    if kind == "safetensors":
        record["config"] = recipe(thaw(checkpoint.config), checkpoint.facts, checkpoint.state["num_images"], choices)
    return record


def _write(
    part: Part, record: dict[str, Any], options: Export, output: Path, device: torch.device
) -> tuple[float, Part, dict[str, Any]]:
    """Write the file and run it; there is none where this fails.

    Returns:
        The largest difference, the part as it became, and the whole record.

    Raises:
        ConfigError: If it cannot be exported, or makes other images than the checkpoint.
    """
    kind = options.format
    if kind != "safetensors":
        program, part = traced(part)
    record |= {"inputs": [_entry(port) for port in part.inputs], "output": _entry(part.output)}
    record |= {"sizes": part.describe_sides(), "remarks": list(part.remarks)}
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
            network = rebuilt(temporary, tuple(options.allow)).to(device)

            def run(*inputs: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    return network(*(each.to(device) for each in inputs)).cpu()

        return largest_difference(part, run), part, record


def _entry(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "dtype": str(port.dtype).removeprefix("torch."),
        "shape": list(port.shape),
        "values": port.meaning,
    }


def _tried(part: Part, kind: str, device: torch.device) -> str:
    where = "onnxruntime on cpu" if kind == "onnx" else f"PyTorch on {device.type}"
    tried = [f"{count}" if part.sides is None else f"{count} of {height}x{width}" for count, height, width in trials(part)]
    return f"{where}, batches of {', '.join(tried[:-1])} and {tried[-1]}"


# How the file is used, to be pasted


def _snippet(part: Part, kind: str, output: Path) -> str:
    name, made = part.name.partition("-")[0], part.output.name
    given = [_example(part, port, numpy=kind == "onnx") for port in part.inputs]
    if kind == "onnx":
        pairs = ", ".join(f'"{port.name}": {value}' for port, value in zip(part.inputs, given, strict=True))
        lines = [
            "import numpy as np, onnxruntime",
            f'{name} = onnxruntime.InferenceSession("{output}")',
            f"({made},) = {name}.run(None, {{{pairs}}})",
        ]
    else:
        opened = f'torch.export.load("{output}").module()' if kind == "pt2" else f'rebuilt("{output}")'
        imported = "import torch" if kind == "pt2" else "import torch; from genimg.exporting.rebuilding import rebuilt"
        lines = [imported, f"{name} = {opened}", f"{made} = {name}({', '.join(given)})"]
    needed = "without genimg" if kind != "safetensors" else "with genimg"
    return "\n".join([f"to use it, {needed}:", *(f"    {line}" for line in lines)])


def _example(part: Part, port: Port, *, numpy: bool) -> str:
    """An expression for an input."""
    height, width = (0, 0) if part.sides is None else part.sides.usual
    numbers = {"batch": _SHOWN, "height": height, "width": width}
    sides = ", ".join(str(numbers.get(str(side), side)) for side in port.shape)
    dtype = str(port.dtype).removeprefix("torch.")
    if port.name in ("latent", "noise") and "uniform" not in port.meaning:
        return f'np.random.randn({sides}).astype("float32")' if numpy else f"torch.randn({sides})"
    if port.name in ("latent", "uniform"):
        around = " * 2 - 1" if port.name == "latent" else ""
        return f'(np.random.rand({sides}){around}).astype("float32")' if numpy else f"torch.rand({sides}){around}"
    sides += "," * (len(port.shape) == 1)
    if numpy:
        return f'np.zeros(({sides}), "{dtype}")'
    return f"torch.zeros({sides.strip(',')}{'' if dtype == 'float32' else f', dtype=torch.{dtype}'})"
