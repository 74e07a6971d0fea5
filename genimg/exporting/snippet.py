"""Example code that uses an exported file."""

from __future__ import annotations

from pathlib import Path

from genimg.exporting.parts import ExportedNetwork
from genimg.methods.export_spec import Port

_SHOWN = 16  # images in the example


def snippet(part: ExportedNetwork, kind: str, output: Path) -> str:
    """Return Python code that uses an exported file, ready to paste.

    Args:
        part: Network in the file.
        kind: Name of the format.
        output: Path of the file.
    """
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


def _example(part: ExportedNetwork, port: Port, *, numpy: bool) -> str:
    """Return an expression for an input."""
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
