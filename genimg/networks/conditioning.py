"""Encoders that turn a condition into a vector [N, E]. Each network has its own encoder, ``condition``.

An encoder's ``key`` is the key of the batch that it reads. With ``Unconditional``, E is 0 and networks need no special case. A
network without an encoder is also unconditional: ``conditional`` wraps it, so methods call all networks in the same way.

A network that joins the vector with other inputs appends it to them. With one-hot labels, the last K inputs of its first layer
are therefore the classes. A network that does otherwise has an attribute ``class_columns``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.types import Batch


@dataclass(frozen=True)
class ClassColumns:
    """How the tensors of a network are indexed by K classes, for copying them to a network of other classes.

    A module's attribute ``class_columns`` applies to its tensors and to those of its submodules that have none of their own.

    Attributes:
        first: Whether the classes come before other inputs, instead of after them.
        power: Exponent p of the factor K^p by which the module multiplies the entries of a class.
    """

    first: bool = False
    power: float = 0.0


class ConditionEncoder(nn.Module, ABC):
    """Encoder of raw conditions, as they are in a batch, into vectors [N, E].

    Attributes:
        key: Key of the batch; None for no condition.
        dim: Length E of the vector.
        num_classes: Number of classes K if conditions are labels, otherwise 0.
    """

    key: str | None
    dim: int
    num_classes: int = 0

    @abstractmethod
    def forward(self, condition: Tensor) -> Tensor: ...

    def of(self, batch: Batch) -> Tensor:
        """Return the raw conditions of a batch of N samples: [N, ...]."""
        assert self.key is not None
        return batch[self.key]

    def blank(self, count: int) -> Tensor:
        """Return ``count`` placeholder conditions of the batch's shape and type."""
        return torch.zeros(count, dtype=torch.int64)

    def fitted(self, condition: Tensor) -> Tensor:
        """Cut or pad conditions of any length to the shape of those from ``blank``."""
        return condition


class Unconditional(ConditionEncoder):
    """No condition: [N, 0] -> [N, 0]."""

    key = None
    dim = 0

    def forward(self, condition: Tensor) -> Tensor:
        return condition

    def of(self, batch: Batch) -> Tensor:
        values = batch["image"] if "image" in batch else batch["latent"]
        return values.new_empty(values.shape[0], 0)  # ``len`` would fix the batch size of an exported program

    def blank(self, count: int) -> Tensor:
        return torch.zeros(count, 0)


class OneHot(ConditionEncoder):
    """One-hot encoding of labels, from int64 [N] to [N, K]; a linear layer after it is an embedding of the class.

    Args:
        num_classes: Number of classes K.
    """

    key = "label"

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        _require_classes(num_classes)
        self.dim = self.num_classes = num_classes

    def forward(self, condition: Tensor) -> Tensor:
        return F.one_hot(condition, self.num_classes).float()


class LabelEmbedding(ConditionEncoder):
    """Learnt embedding of labels, from int64 [N] to [N, E], as shared by BigGAN's layers (Brock et al. 2019, section 3.1).

    Args:
        num_classes: Number of classes K.
        dim: Length E of the embedding.
    """

    key = "label"

    def __init__(self, *, num_classes: int, dim: int) -> None:
        super().__init__()
        _require_classes(num_classes)
        self.num_classes = num_classes
        self.dim = dim
        self.embedding = nn.Embedding(num_classes, dim)

    def forward(self, condition: Tensor) -> Tensor:
        return self.embedding(condition)


class Conditioned(nn.ModuleList):
    """A chain of layers that passes the condition to each layer that uses it.

    A layer uses it if its attribute ``takes_condition`` is true, as in ``ConditionalBatchNorm2d`` and in this class itself.
    """

    takes_condition = True

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map features [N, ...] and conditions [N, E] to features [N, ...]."""
        for layer in self:
            features = layer(features, condition) if getattr(layer, "takes_condition", False) else layer(features)
        return features


class Plain(nn.Module):
    """Wrapper of a network without a condition that gives it the interface of a conditional one.

    Args:
        network: Network that is called with the input alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.condition = Unconditional()

    def forward(self, values: Tensor, condition: Tensor) -> Any:
        """Return the network's output for ``values``."""
        return self.network(values)


def conditional(name: str, network: nn.Module) -> nn.Module:
    """Return a network that is called with an input and a condition, and has an encoder ``condition``.

    Args:
        name: Name of the network's parameter, for messages.
        network: Any module; a module without an attribute ``condition`` is called with its input alone.

    Raises:
        ValueError: If it is not a module.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} is a {type(network).__name__}, but must be a torch.nn.Module")
    return network if hasattr(network, "condition") else Plain(network)


def beside_image(image: Tensor, vector: Tensor) -> Tensor:
    """Append vectors [N, E] to images [N, C, H, W] as constant channels: [N, C + E, H, W]."""
    if vector.shape[1] == 0:
        return image
    return torch.cat([image, vector.to(image.dtype)[:, :, None, None].expand(-1, -1, *image.shape[2:])], dim=1)


def _require_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(
            f"num_classes={num_classes} must be 1 or more: give the number of classes, or condition on captions or on nothing"
        )
