"""What a condition becomes before a network uses it: a vector [N, E]. Each network has its own encoder, ``condition``.

An encoder says which key of the batch it reads; networks built with ``Unconditional`` have E = 0 and need no branch. A network
without an encoder is unconditional, too: ``conditional`` wraps it, so that methods call all networks alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.types import Batch


class ConditionEncoder(nn.Module, ABC):
    """A condition as it stands in the batch -> [N, E].

    Attributes:
        key: of the batch; None where there is no condition.
        dim: E.
        num_classes: K, where conditions are labels; 0 elsewhere.
    """

    key: str | None
    dim: int
    num_classes: int = 0

    @abstractmethod
    def forward(self, condition: Tensor) -> Tensor: ...

    def of(self, batch: Batch) -> Tensor:
        """Return the conditions of a batch of N samples as they stand in it: [N, ...]."""
        assert self.key is not None
        return batch[self.key]

    def blank(self, count: int) -> Tensor:
        """That many conditions of one shape and type, as they stand in the batch."""
        return torch.zeros(count, dtype=torch.int64)

    def fitted(self, condition: Tensor) -> Tensor:
        """Conditions of any length in the shape of ``blank``'s."""
        return condition


class Unconditional(ConditionEncoder):
    """Nothing: [N, 0] -> [N, 0]."""

    key = None
    dim = 0

    def forward(self, condition: Tensor) -> Tensor:
        return condition

    def of(self, batch: Batch) -> Tensor:
        values = batch["image"] if "image" in batch else batch["latent"]
        return values.new_empty(len(values), 0)

    def blank(self, count: int) -> Tensor:
        return torch.zeros(count, 0)


class OneHot(ConditionEncoder):
    """Labels int64 [N] -> [N, K]; a linear layer upon it is an embedding with one vector for each class.

    Args:
        num_classes: K.
    """

    key = "label"

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        _require_classes(num_classes)
        self.dim = self.num_classes = num_classes

    def forward(self, condition: Tensor) -> Tensor:
        return F.one_hot(condition, self.num_classes).float()


class LabelEmbedding(ConditionEncoder):
    """Labels int64 [N] -> [N, E], learnt: what BigGAN's layers share (Brock et al. 2019, section 3.1).

    Args:
        num_classes: K.
        dim: E.
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
    """Layers one after another, of which those in need of the condition get it.

    A layer says so by an attribute ``takes_condition``; ``ConditionalBatchNorm2d`` and this class itself have it.
    """

    takes_condition = True

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """[N, ...] and [N, E] -> [N, ...]."""
        for layer in self:
            features = layer(features, condition) if getattr(layer, "takes_condition", False) else layer(features)
        return features


class Plain(nn.Module):
    """A network that reads no condition, called like one that does.

    Args:
        network: Takes the input alone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.condition = Unconditional()

    def forward(self, values: Tensor, condition: Tensor) -> Any:
        """Return what the network makes of its input."""
        return self.network(values)


def conditional(name: str, network: nn.Module) -> nn.Module:
    """Return a network that is called with an input and a condition, and has an encoder ``condition``.

    Args:
        name: Parameter that the network was given as, for messages.
        network: Any module; one without an attribute ``condition`` is called with its input alone.

    Raises:
        ValueError: If it is no module.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} is a {type(network).__name__}, but must be a torch.nn.Module")
    return network if hasattr(network, "condition") else Plain(network)


def beside_image(image: Tensor, vector: Tensor) -> Tensor:
    """Images [N, C, H, W] and, as constant channels, vectors [N, E] -> [N, C + E, H, W]."""
    if vector.shape[1] == 0:
        return image
    return torch.cat([image, vector.to(image.dtype)[:, :, None, None].expand(-1, -1, *image.shape[2:])], dim=1)


def _require_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(
            f"num_classes={num_classes} must be 1 or more: conditioning on labels needs data with labels, such as a "
            "subdirectory for each class; without them, condition on captions or on nothing"
        )
