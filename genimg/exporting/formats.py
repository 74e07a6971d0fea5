"""The formats of exported files, with functions to write each file and to open it for running."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx.experimental import _config as symbols

from genimg.errors import ConfigError
from genimg.exporting.digests import DIGEST, content_digest
from genimg.exporting.parts import ExportedNetwork, Record
from genimg.methods.export_spec import Port

OPSET = 18
"""Version of the ONNX operator set: the oldest that PyTorch's exporter writes, which most programs read."""

METADATA = "genimg.json"
"""Name of the record in a .pt2 file; other formats hold its entries as text in their own metadata."""

_EXAMPLES = 2  # size of the traced batch; the tracer would take a size of 1 as fixed
_LARGEST = 2**31  # largest size of an ONNX file in bytes

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: Suffix of its file names.
        packages: Packages that it needs besides PyTorch.
        what: Description of a file's content.
    """

    suffix: str
    packages: tuple[str, ...]
    what: str


FORMATS = {
    "pt2": Format(".pt2", (), "a program for PyTorch"),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), "a program for ONNX runtimes"),
    "safetensors": Format(".safetensors", ("safetensors",), "weights without a program"),
}


def require_packages(name: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ConfigError: For the first missing package.
    """
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"format={name} needs the package {package} ({error}): pip install 'genimg[export]', or choose format=pt2"
            ) from error


# Programs


def traced(part: ExportedNetwork) -> tuple[ExportedProgram, ExportedNetwork]:
    """Trace the network as a program of PyTorch operators, for any batch size and, if supported, any image size.

    Returns:
        The program, and the network with its final size constraints: ``sides.least`` is larger if the program requires it. If
        the network accepts only one size, the sizes of inputs and output are numbers, and ``sides`` is fixed.

    Raises:
        ConfigError: If the network cannot be traced.
    """
    attempts = [part]
    if part.sides is not None:
        least = part.sides.least
        while least < max(part.sides.usual):  # a window or a border may need more pixels than the smallest image has
            least = min(2 * least, max(part.sides.usual))
            attempts.append(part.with_least(least))
        attempts.append(part.with_fixed_size())
    for number, attempt in enumerate(attempts):
        try:
            program = _traced(attempt)
            if attempt.sides is not None and not attempt.sides.fixed:
                # The program's guards raise an error if small images would take another branch than the traced ones.
                program.module()(*attempt.draw(1, 0, attempt.sides.least, attempt.sides.least))
            return program, attempt
        except Exception as error:  # the tracer raises exceptions of various types
            if number + 1 == len(attempts):
                raise ConfigError(
                    f"this {part.name} cannot be traced by torch.export ({_reason(error)}): format=safetensors needs no trace",
                    key="format",
                ) from error
    raise AssertionError("there is always an attempt")


def _traced(part: ExportedNetwork) -> ExportedProgram:
    dims: dict[int | str, Any] = {"batch": Dim("batch", min=1)}
    height, width = 0, 0
    if part.sides is not None:
        multiple, least = part.sides.multiple, part.sides.least
        height, width = part.sides.usual
        if not part.sides.fixed:
            height, width = least + multiple, least + 2 * multiple  # different, so the tracer does not equate them
            for name in ("height", "width"):
                units = Dim(name if multiple == 1 else f"{name}_units", min=least // multiple)
                dims[name] = units if multiple == 1 else multiple * units
    inputs = part.draw(_EXAMPLES, 0, height, width)
    shapes = tuple({axis: dims[side] for axis, side in enumerate(port.shape) if side in dims} for port in part.inputs)
    # Without this setting, the tracer would assume that the smallest feature map always has several pixels, as in the example.
    with torch.no_grad(), _quiet(), symbols.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(part.network, inputs, dynamic_shapes=(shapes,), strict=False)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it holds file names of this machine
    return program


def write_pt2(program: ExportedProgram, record: Record, path: Path) -> None:
    """Write a program and its record to a .pt2 file."""
    buffer = io.BytesIO()  # PyTorch aborts the process if it cannot write, as on a full disk
    with _quiet():
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(record, indent=2)})
    path.write_bytes(buffer.getbuffer())


def open_pt2(path: Path, device: torch.device) -> Run:
    """Open the program in a file, to run it on a device with inputs and images on the CPU."""
    with _quiet(), open(path, "rb") as file:
        program = torch.export.load(file)
        if device.type != "cpu":
            program = move_to_device_pass(program, device)
    module = program.module()
    return lambda *inputs: module(*(each.to(device) for each in inputs)).cpu()


def write_onnx(program: ExportedProgram, part: ExportedNetwork, record: Record, path: Path) -> None:
    """Write a single-file ONNX model, with the record in its metadata properties.

    Raises:
        ConfigError: If an operator has no ONNX form, or the model is too large for one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.network.state_dict().values())
    if size >= _LARGEST:
        raise ConfigError(
            f"format=onnx holds up to 2 GiB in a file, and these weights are {size / 2**30:.1f} GiB: use format=pt2"
        )
    names = [port.name for port in part.inputs]
    try:
        with _quiet():
            converted = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names, output_names=[part.output.name], verbose=False
            )
    except Exception as error:  # each stage of the exporter raises its own error type
        raise ConfigError(f"format=onnx: {_reason(error)}: use format=pt2") from error
    assert converted is not None
    graph = converted.model.graph
    for node in graph:
        for value in node.outputs:
            value.shape = None  # its symbols are renamed below; runtimes infer these shapes
    for value, port in zip((*graph.inputs, *graph.outputs), (*part.inputs, part.output), strict=True):
        value.shape = onnx_shape(port)
    converted.model.metadata_props.update({key: _text(value) for key, value in record.items()})
    converted.model.doc_string = str(record["description"])
    with _quiet():
        converted.save(str(path), external_data=False)


def open_onnx(path: Path) -> Run:
    """Open the model in a file, to run it by onnxruntime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def write_safetensors(part: ExportedNetwork, record: Record, path: Path) -> None:
    """Write the network's tensors, with the record as text in the metadata."""
    safetensors = importlib.import_module("safetensors.torch")
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in part.network.state_dict().items()}
    metadata = {key: _text(value) for key, value in record.items()}
    # The format has no checksum.
    metadata[DIGEST] = content_digest(tensors, metadata)
    path.write_bytes(safetensors.save(tensors, metadata=metadata))  # save_file would make the file unreadable for other users


def onnx_shape(port: Port) -> Any:
    """Return the ONNX shape of a port, with names for variable dimensions."""
    return importlib.import_module("onnx_ir").Shape(list(port.shape))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reason(error: Exception) -> str:
    """Return the innermost cause of an exporter's error in one line, which names the unsupported operator."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' output and logs for their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
