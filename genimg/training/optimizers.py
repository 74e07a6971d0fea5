"""Optimizers: one per parameter group of a method, corrected for additional updates by lazy penalties."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from genimg.errors import ConfigError, innermost_module
from genimg.schedules import Schedule
from genimg.training.schedules import holds_schedule, valued

_UNFIT: dict[Any, str] = {LBFGS: "it evaluates the loss several times a step", SparseAdam: "it supports only sparse gradients"}


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer's class and its settings, which may hold schedules.

    Attributes:
        make: Class of the optimizer.
        settings: Keyword arguments of the class.
    """

    make: Callable[..., Optimizer]
    settings: Mapping[str, Any]

    def corrected(self, ratio: float) -> OptimizerSpec:
        """Return the specification for a parameter group with lazy regularisation.

        With c = 1 / (1 + ratio) it has c times the learning rate and the c-th powers of Adam's betas: Karras et al. 2020,
        "Analyzing and improving the image quality of StyleGAN", appendix B, where the ratio is 1 / interval.

        Args:
            ratio: Number of updates by lazy penalties per regular update of the group; 0 for none.
        """
        if not ratio:
            return self
        c = 1.0 / (1.0 + ratio)
        settings, defaults = dict(self.settings), inspect.signature(self.make).parameters
        for key, change in (("lr", lambda lr: lr * c), ("betas", lambda beta: beta**c)):
            if key in settings or key in defaults:
                settings[key] = _changed(settings[key] if key in settings else defaults[key].default, change)
        return OptimizerSpec(self.make, settings)

    def schedules(self) -> dict[str, Any]:
        """Return the settings that hold schedules."""
        return {key: value for key, value in self.settings.items() if holds_schedule(value)}

    def build(
        self,
        parameters: list[nn.Parameter],
        batch_size: int,
        defaults: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] = lambda *_: {},
    ) -> Optimizer:
        """Build the optimizer with the initial values of its settings.

        Args:
            parameters: Parameters to train.
            batch_size: Images per step.
            defaults: Function from the class and the settings to further keyword arguments.

        Raises:
            ConfigError: If the class does not accept the settings.
        """
        if self.make in _UNFIT:
            raise ConfigError(f"the optimizer {self.make.__name__} cannot be used here, because {_UNFIT[self.make]}",
                              "choose another one", key="optimizer._target_")  # fmt: skip
        settings = {key: valued(value, 0, batch_size) for key, value in self.settings.items()}
        further = defaults(self.make, settings)  # outside the try block: a bug there is not a wrong setting
        try:
            return self.make(parameters, **{**further, **settings})
        except (IndexError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: settings that exclude each other
            is_of_call = isinstance(error, TypeError) and innermost_module(error) == __name__
            if not (is_of_call or isinstance(error, ValueError) or self.make.__module__.startswith("torch.")):
                raise
            unfit = (
                f"it does not accept the settings {settings} ({error})" if isinstance(error, IndexError | TypeError) else error
            )
            named = next((name for words, name in _REFUSED.items() if words in str(error).lower() and name in settings), None)
            key = "optimizer" if named is None else f"optimizer.{named}={settings[named]}"
            raise ConfigError(f"{key}: {unfit}", key=key.partition("=")[0]) from error


_REFUSED = {"learning rate": "lr", "beta": "betas", "weight_decay": "weight_decay", "epsilon": "eps", "momentum": "momentum"}
"""Words in the errors of PyTorch's optimizers, and the setting that they refer to."""


def _changed(value: Any, change: Callable[[float], float]) -> Any:
    """Apply ``change`` to every number and schedule in a setting."""
    if isinstance(value, list | tuple):
        return [_changed(each, change) for each in value]
    return value.map(change) if isinstance(value, Schedule) else change(value)


def require_capturable(optimizer: Optimizer, scheduled: Mapping[str, Any]) -> None:
    """Check that an optimizer's steps can be captured as part of a CUDA graph.

    Args:
        optimizer: Optimizer.
        scheduled: Its scheduled settings.

    Raises:
        ConfigError: If the learning rate cannot be a tensor on the device, or another setting has a schedule.
    """
    reasons = [f"{key} of the optimizer has a schedule" for key in scheduled if key != "lr"]
    if not all("capturable" in group or group.get("fused") for group in optimizer.param_groups):
        reasons.append(f"{type(optimizer).__name__} needs its learning rate on the host")
    if reasons:
        raise ConfigError(f"graph=true is impossible, because {reasons[0]}", "set graph to auto or false", key="graph")


def make_capturable(optimizer: Optimizer, scheduled: Mapping[str, Any]) -> None:
    """Let an optimizer read its learning rate from a tensor on the device. For the arguments, see ``require_capturable``."""
    require_capturable(optimizer, scheduled)
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    for parameter, state in optimizer.state.items():  # restored from a checkpoint, to where the optimizer counted before
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(parameter.device, torch.float32)


def plain_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with learning rates as floats, also if they are tensors on the device."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def require_fitting_state(optimizer: Optimizer) -> None:
    """Check that the state of a PyTorch optimizer, loaded from a checkpoint, fits its parameters.

    Raises:
        ValueError: If a tensor of the state is not a scalar and does not have its parameter's shape.
    """
    if not type(optimizer).__module__.startswith("torch."):
        return
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {[*value.shape]}, but its parameter has shape {[*parameter.shape]}")
