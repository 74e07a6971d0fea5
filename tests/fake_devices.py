"""Tensors that pretend to be on a GPU: they have a device, a type and a memory format, but no values. No GPU is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


@contextlib.contextmanager
def fake_device(monkeypatch, kind: str, precision: str = "fp32") -> Iterator[FakeDevice]:
    """Compute on a pretended device, with autocast to bfloat16 for ``precision="bf16"``."""
    # Autocast would otherwise turn itself off on a machine without this device.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    autocast = torch.autocast(kind, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, autocast:
        yield FakeDevice(mode, torch.device(kind))


class FakeDevice:
    """A pretended device."""

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        self.mode, self.device = mode, device

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
        """Return a tensor on the device."""
        meta = torch.empty(shape, dtype=dtype, device="meta")
        return self._place(meta.to(memory_format=torch.channels_last) if channels_last else meta)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in place."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                placed = nn.Parameter(self._place(parameter.detach().to("meta")), parameter.requires_grad)
                part._parameters[name] = placed
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = self._place(buffer.to("meta"))
        return module

    def _place(self, meta: Tensor) -> Tensor:
        return FakeTensor(self.mode, meta, self.device)
