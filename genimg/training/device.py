"""Device and precision: requested settings, checked against the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from genimg.errors import ConfigError

DEVICES = ("auto", "cuda", "cpu", "mps")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")


def choose_device(name: object) -> torch.device:
    """Return the device of the setting ``device``; ``auto`` prefers CUDA, then MPS, then the CPU.

    ``cuda:N`` becomes PyTorch's current GPU, so code that does not name a GPU, such as ``torch.cuda.synchronize()``, uses this
    one, too. ``cuda`` is the current GPU. Either is returned with its number, which later choices do not change.

    Raises:
        ConfigError: If it is unknown or not available.
    """
    kind, _, number = str(name).partition(":")
    if kind not in DEVICES or (number and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"device={name} is unknown", f"choose one of {', '.join(DEVICES)}, or cuda:N for one of several GPUs")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        reason = "sees no GPU" if torch.version.cuda else "was built without CUDA"
        problem = f"device={name} is not available, because this PyTorch ({torch.__version__}) {reason}"
        raise ConfigError(problem, "use device=auto or device=cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name} does not exist", f"this machine's GPUs are cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device={name} is not available, because there is no Apple GPU here", "use device=auto or device=cpu"
        )
    if kind != "cuda":
        return torch.device(kind)
    if number:
        torch.cuda.set_device(int(number))
    return torch.device(kind, torch.cuda.current_device())


@dataclass(frozen=True)
class Precision:
    """Precision of forward and backward; weights, optimizers and losses are always float32."""

    name: str
    device: torch.device

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[object]]:
        """Factory of the context for a forward."""
        return partial(torch.autocast, self.device.type, torch.bfloat16) if self.name == "bf16" else nullcontext

    @property
    def autocast_without_cache(self) -> Callable[[], AbstractContextManager[object]]:
        """The same, but each use of a weight converts it again, so no converted weight stays in memory."""
        uncached = partial(torch.autocast, self.device.type, torch.bfloat16, cache_enabled=False)
        return uncached if self.name == "bf16" else nullcontext

    def apply_globally(self) -> None:
        """Set PyTorch's process-wide switches for float32 matrix products and convolutions."""
        allow = self.name in ("tf32", "bf16")
        torch.set_float32_matmul_precision("high" if allow else "highest")
        torch.backends.cudnn.allow_tf32 = allow
        torch.backends.cudnn.benchmark = True  # worth its cost, because image sizes are fixed


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of the setting ``precision``; ``auto`` uses bf16 where the processor has instructions for it.

    Raises:
        ConfigError: If it is unknown or would have no effect on this device.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"precision={name} is unknown", f"choose one of {', '.join(PRECISIONS)}")
    if name == "auto":
        return Precision("bf16" if _has_fast_bf16(device) else "fp32", device)
    if name == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32 has no effect on device {device.type}", "use fp32, bf16 or auto")
    return Precision(name, device)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def describe_hardware(device: torch.device) -> dict[str, str | int]:
    """Return the hardware facts that are recorded with measured numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    instructions = {"instructions": torch.backends.cpu.get_cpu_capability()} if device.type == "cpu" else {}
    return {
        "device": device.type, "name": name, **instructions, "threads": torch.get_num_threads(), "system": platform.platform()
    }  # fmt: skip


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
