"""The state of a training in a checkpoint: the method, the averages of its weights, the optimizers and pending metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from genimg.errors import CheckpointError
from genimg.methods.base import Method
from genimg.training.ema import WeightAverage
from genimg.training.optimizers import plain_state, require_fitting_state, restore_state
from genimg.training.performance import lay_out_as_parameters
from genimg.training.progress import MeanMetrics

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedState:
    """What training changes, other than its progress.

    Attributes:
        method: Method in training.
        averages: Averages of its weights, by name.
        optimizers: Optimizers, by parameter group.
        parameters: Parameters of each group, in the order that numbers them in a checkpoint.
        means: Metrics since the last log.
        device: Device of the method.
        sharding: How weights are divided among processes; None if they are not.
    """

    method: Method
    averages: Mapping[str, WeightAverage]
    optimizers: Mapping[str, Optimizer]
    parameters: Mapping[str, Sequence[nn.Parameter]]
    means: MeanMetrics
    device: torch.device
    sharding: Sharding | None

    def save(self) -> dict[str, Any]:
        """Return the tensors and primitives; divided weights are not gathered."""
        return {
            "method": self.method.state_dict(),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimizers": {name: plain_state(each, self.parameters[name]) for name, each in self.optimizers.items()},
            "means": self.means.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what ``save`` returned, with whole weights. Settings of the optimizers remain as they are.

        Raises:
            CheckpointError: If it does not fit the model or the optimizers.
        """
        try:
            weights = state["method"]
            self.method.load_state_dict(weights if self.sharding is None else self.sharding.divided(weights, self.method))
            for name, average in self.averages.items():
                if name in state["averages"]:
                    average.load_state_dict(state["averages"][name])
                else:  # with resume_force=true
                    log.warning("ema.%s is not in the checkpoint: it starts with the current weights", name)
                    average.restart()
            for name, optimizer in self.optimizers.items():
                restore_state(optimizer, self.parameters[name], state["optimizers"][name]["state"], self.sharding)
                require_fitting_state(optimizer)
                if self.sharding is None:
                    lay_out_as_parameters(optimizer)
            self.means.load_state_dict(state["means"], self.device)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:  # a checkpoint can hold anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise CheckpointError(
                f"the checkpoint does not fit this model or its optimizers ({reason})", "start a new run_dir"
            ) from error
