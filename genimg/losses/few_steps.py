"""Losses of models that generate in one step or a few."""

from __future__ import annotations

from torch import Tensor

_SMALLEST = 1e-12  # the square root has no gradient below this squared error; at 0 it would be infinite


class AdaptiveLoss:
    """The squared error S of each image, summed over its values and divided by a power of itself: S / sg(S + offset)^power.

    Geng et al. 2025 ("Mean flows for one-step generative modeling"), section 4.3: a power of 1/2 gives the Pseudo-Huber loss,
    and 0 the plain squared error. No gradient flows through ``sg``.

    Args:
        power: Exponent p of the divisor, from 0 to 1; 0.75 in the paper for CIFAR-10 and 1 for ImageNet.
        offset: Number c added to the squared error, above 0; 0.001 in the paper.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, *, power: float, offset: float) -> None:
        if not 0 <= power <= 1:
            raise ValueError(f"power={power} must be from 0 to 1")
        if not offset > 0:
            raise ValueError(f"offset={offset} must be above 0")
        self.power, self.offset = power, offset

    def of_images(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and, without a graph, the mean squared error of each image: float32 [N] each."""
        error = (output.float() - target.float()).square().flatten(1)
        total = error.sum(dim=1)
        return total / (total.detach() + self.offset) ** self.power, error.detach().mean(dim=1)


class ConsistencyLoss:
    """The Pseudo-Huber distance between two estimates of an image, sqrt(S + offset^2) - offset for the squared error S.

    Geng et al. 2024 ("Consistency models made easy"), section 3. S is summed over the values of an image.

    Args:
        offset: Constant c, 0 or more; 0 in the paper's recipes for CIFAR-10, which gives the L2 norm.

    Raises:
        ValueError: If the constant is negative.
    """

    def __init__(self, *, offset: float) -> None:
        if not offset >= 0:
            raise ValueError(f"offset={offset} must be 0 or more")
        self.offset = offset

    def of_images(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each image, float32 [N]."""
        total = (output.float() - target.float()).square().flatten(1).sum(dim=1)
        return (total + self.offset**2).clamp(min=_SMALLEST).sqrt() - self.offset
