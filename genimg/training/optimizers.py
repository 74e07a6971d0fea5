"""Optimizers: one per parameter group of a method, corrected for additional updates by lazy penalties."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam

from genimg.errors import ConfigError, innermost_module
from genimg.schedules import Schedule
from genimg.training.schedules import holds_schedule, valued

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long

_OF_WHOLE_WEIGHTS = (torch.optim.Adafactor, torch.optim.Muon)
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

    def require_elementwise(self) -> None:
        """Check that the optimizer can train weights of which each process has a part.

        Raises:
            ConfigError: If it computes with whole weights.
        """
        if self.make in _OF_WHOLE_WEIGHTS:
            problem = f"optimizer._target_={self.make.__name__} computes with whole weights, of which each process has a part"
            raise ConfigError(problem, "choose another one, or distributed=replicated", key="optimizer._target_")

    def build(
        self,
        parameters: Sequence[nn.Parameter] | Sequence[Mapping[str, Any]],
        batch_size: int,
        defaults: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] = lambda *_: {},
    ) -> Optimizer:
        """Build the optimizer with the initial values of its settings.

        Args:
            parameters: Parameters to train, or groups of them.
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


def plain_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Return an optimizer's state in one form, also if its learning rates are tensors or it has several groups.

    Args:
        optimizer: Optimizer.
        parameters: Its parameters, in the order that numbers them in the state.
    """
    packed, places = optimizer.state_dict(), _places(optimizer, parameters)
    numbers = {place: number for number, place in places.items()}
    group = packed["param_groups"][0]
    return {
        # Some optimizers also have state that belongs to no parameter, under other keys.
        "state": {numbers.get(place, place): value for place, value in packed["state"].items()},
        "param_groups": [{**group, "lr": float(group["lr"]), "params": list(places)}],
    }


def restore_state(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], state: Mapping[Any, Any], sharding: Sharding | None
) -> None:
    """Load what ``plain_state`` returned under ``state``; settings remain those of the optimizer.

    Args:
        optimizer: Optimizer to restore.
        parameters: Its parameters, in the order that numbers them in the state.
        state: State of each parameter, and state of no parameter.
        sharding: How parameters are divided among processes; None if they are not.
    """
    places = _places(optimizer, parameters)
    if sharding is not None:
        state = {
            number: {key: sharding.divided_like(value, parameters[number]) for key, value in values.items()}
            if number in places else values
            for number, values in state.items()
        }  # fmt: skip
    placed = {places.get(number, number): values for number, values in state.items()}
    optimizer.load_state_dict({"state": placed, "param_groups": optimizer.state_dict()["param_groups"]})


def _places(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> dict[int, int]:
    """Return each parameter's number in the optimizer's own order."""
    own = {id(each): place for place, each in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return {number: own[id(parameter)] for number, parameter in enumerate(parameters)}


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
