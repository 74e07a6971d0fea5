"""How training runs on its device: memory format, fused optimizers, compilation. Results differ by rounding only."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.training import cpu, cpu_layers
from genimg.training.activation_checkpointing import recompute_blocks
from genimg.utils.distributed import world_size
from genimg.utils.environment import num_cores

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile that capture CUDA graphs themselves."""

_RECOVERS = "2.13"  # before, generators and memory pools stayed in the state of a capture that had failed
_COMPILE_MODES = ("default", *GRAPH_MODES)


@dataclass(frozen=True)
class Performance:
    """Requested performance settings; ``auto`` selects the fastest choice for the device.

    Attributes:
        channels_last: Whether convolutions use channels-last memory. Faster on every device measured (docs/performance.md).
        fused_optimizer: Whether to use one kernel for all of an optimizer's arithmetic, where PyTorch has one.
        compile: Mode of torch.compile for every trained network, or False. ``reduce-overhead`` replays CUDA graphs.
            ``auto`` is resolved by a trial on a GPU (training/autotune.py) and is False elsewhere.
        graph: Whether to run whole steps as CUDA graphs (training/step_graphs.py). ``auto`` is resolved like that of
            ``compile``.
        activation_checkpointing: Whether to recompute blocks of networks in the backward pass to save memory.
        cpu_optimizations: Whether to use faster implementations on a CPU (training/cpu.py, cpu_layers.py).
        threads: Number of CPU threads, at most the number of cores. ``auto`` is resolved by a trial (api/thread_trial.py).
    """

    channels_last: bool | str
    fused_optimizer: bool | str
    compile: bool | str
    graph: bool | str = "auto"
    activation_checkpointing: bool = False
    cpu_optimizations: bool = True
    threads: int | str = "auto"

    def __post_init__(self) -> None:
        for name in ("channels_last", "fused_optimizer", "graph"):
            if getattr(self, name) not in (True, False, "auto"):
                raise ValueError(f"{name}={getattr(self, name)} is unknown: choose auto, true or false")
        if self.compile not in ("auto", False, *_COMPILE_MODES):
            choices = ", ".join(("auto", "false", *_COMPILE_MODES))
            raise ValueError(f"compile={self.compile} is unknown: choose one of {choices}")
        if self.graph is True and self.compile in GRAPH_MODES:
            raise ValueError(
                f"graph=true does not work with compile={self.compile}, which captures CUDA graphs itself: set "
                "compile=default, or graph=false"
            )
        if self.graph is True and self.activation_checkpointing:
            raise ValueError(
                "graph=true does not work with activation_checkpointing=true, which copies the state of the random number "
                "generator: set one of them"
            )
        if self.threads != "auto" and (type(self.threads) is not int or not 1 <= self.threads <= num_cores()):
            raise ValueError(f"threads={self.threads} must be auto, or a number from 1 to {num_cores()}, the number of cores")
        if self.activation_checkpointing not in (True, False):
            raise ValueError(f"activation_checkpointing={self.activation_checkpointing} must be true or false")
        if self.activation_checkpointing and self.compile in _COMPILE_MODES:
            raise ValueError(
                f"activation_checkpointing=true does not work with compile={self.compile}, which decides itself what to "
                "recompute: set only one of them"
            )

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def refusal_of_graphs(self, device: torch.device) -> str:
        """Return why steps cannot run as CUDA graphs; empty if they can, as far as is known before building the model."""
        if device.type != "cuda":
            return f"the device is {device.type}"
        if self.activation_checkpointing:
            return "activation checkpointing copies the state of the random number generator"
        if torch.__version__ < _RECOVERS:
            return f"PyTorch {torch.__version__} does not recover from steps that cannot be captured, as {_RECOVERS} does"
        return f"compile={self.compile} captures CUDA graphs itself" if self.compile in GRAPH_MODES else ""

    def may_choose_graphs(self, device: torch.device) -> bool:
        """Return whether ``auto`` may choose CUDA graphs. Its trials send no messages, so they cannot try several processes."""
        return world_size() == 1 and not self.refusal_of_graphs(device)

    def place(self, method: Method, device: torch.device) -> None:
        """Move the networks to the device in the requested memory format, and set up compilation.

        Raises:
            ConfigError: If activation checkpointing is requested for networks without blocks.
        """
        method.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.prepare(method, device)

    def prepare(self, method: Method, device: torch.device) -> None:
        """Set up the networks for a device without moving them there; see ``place``."""
        if self.cpu_optimizations and device.type == "cpu":
            cpu.keep_freed_memory()
            cpu_layers.use_faster_layers(method)
        if self.compile in _COMPILE_MODES:
            self.compile_networks(method)
        if self.activation_checkpointing and not sum(recompute_blocks(network) for network in _trained_networks(method)):
            raise ConfigError("activation_checkpointing=true has no effect on networks without blocks", "set it to false")

    def compile_networks(self, method: Method) -> None:
        """Compile every trained network in place: names in a state_dict are unchanged, ``.forward`` stays eager."""
        for network in _trained_networks(method):
            network.compile(mode=self.compile)

    def forget_compiled(self, method: Method) -> None:
        """Undo ``compile_networks``."""
        for network in _trained_networks(method):
            network._compiled_call_impl = None  # PyTorch has no public way to undo it
        torch.compiler.reset()

    def begin_step(self) -> None:
        """Tell torch.compile that the outputs of the last step's CUDA graphs are no longer needed."""
        if self.compile in _COMPILE_MODES:
            torch.compiler.cudagraph_mark_step_begin()

    def of_optimizer(self, optimizer: Any, settings: Mapping[str, Any], device: torch.device) -> dict[str, bool]:
        """Return keyword arguments for an optimizer's class in addition to its ``settings``.

        Raises:
            ConfigError: If a fused optimizer is requested and not available.
        """
        has_one = "fused" in inspect.signature(optimizer).parameters and device.type in ("cuda", "cpu", "mps")
        if self.fused_optimizer is True and not has_one:
            name = getattr(optimizer, "__name__", optimizer)
            raise ConfigError(f"fused_optimizer=true is not supported by {name} on {device.type}", "set it to auto")
        decided = any(settings.get(other) is not None for other in ("fused", "foreach", "differentiable"))
        return {"fused": True} if self.fused_optimizer and has_one and not decided else {}

    def place_optimizer(self, optimizer: Optimizer) -> None:
        """Let a fused Adam or AdamW on a CPU process tensors in memory order."""
        if self.cpu_optimizations:
            cpu.step_without_copies(optimizer)

    def describe(self, optimizers: Iterable[Optimizer]) -> str:
        """Return a description of the active settings."""
        chosen = {
            "channels last": bool(self.channels_last),
            "fused optimizer": any(optimizer.defaults.get("fused") for optimizer in optimizers),
            "CUDA graphs": self.graph is True,
            f"torch.compile ({self.compile})": self.compile in _COMPILE_MODES,
            "activation checkpointing": self.activation_checkpointing,
        }
        return ", ".join(name for name, is_on in chosen.items() if is_on) or "plain"


def _trained_networks(method: Method) -> list[nn.Module]:
    # requires_grad cannot be used here, because the updater switches it from group to group.
    trained = {id(parameter) for group in method.parameter_groups().values() for parameter in group}
    return [network for network in method.children() if any(id(parameter) in trained for parameter in network.parameters())]


def lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give the optimizer's state the strides of its parameters.

    Fused optimizers process tensors in memory order, and the state may have been saved with another memory format.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
