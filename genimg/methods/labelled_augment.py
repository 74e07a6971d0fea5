"""Augmentation of the training images of diffusion models: Karras et al. 2022, appendix F.2.

The network receives the parameters of each image's augmentation as labels. It therefore learns to generate images without
augmentation, for which all labels are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genimg.methods.augment_operations import SYM6, in_float32, matrix_product, resample
from genimg.utils.rng import mixed_keys, normal_numbers, uniform_numbers

_SCALE = 0.2 * math.log(2.0)  # standard deviation of the logarithms of scale and stretch
_MOVE = 0.125  # standard deviation of translations, as a fraction of the image's side
_USED, _DRAWN = range(2)  # purposes of an operation's random key

Placement = tuple[Tensor, Tensor, Tensor]
"""Matrix [N, 2, 2] from output to input positions, translation [N, 2] as a fraction of the sides, and labels [N, L]."""


class LabelledAugment(nn.Module):
    """Geometric augmentation whose parameters are labels for the network.

    ``x_flip`` mirrors half of the images, as if the dataset had flipped copies. Every other operation is applied to each image
    with probability ``p``: ``y_flip``, ``scale`` by 2^N(0, 0.2^2), ``rotate`` by U(-pi, pi), ``stretch`` by 2^N(0, 0.2^2) along
    a random axis and by its inverse across it, and ``translate`` by N(0, 0.125^2) of each side. They act in this order, that of
    the paper's table 6, but images are resampled only once, as in ``augment_operations.resample``.

    Args:
        p: Probability of each operation except ``x_flip``, above 0 and at most 1; 0.12 to 0.15 in the paper.
        operations: Operations to use.

    Raises:
        ValueError: If ``p`` is out of range, or an operation is unknown or listed twice.
    """

    taps: Tensor

    def __init__(self, *, p: float, operations: Sequence[str]) -> None:
        super().__init__()
        if not 0 < p <= 1:
            raise ValueError(f"p={p} must be above 0 and at most 1: for no augmentation, set augment to null")
        if not operations or len(set(operations)) < len(operations) or not set(operations) <= set(_OPERATIONS):
            raise ValueError(f"operations={list(operations)} must be one or more of {', '.join(_OPERATIONS)}, each once")
        self.p = p
        self.operations = [name for name in _OPERATIONS if name in operations]
        taps = torch.tensor(SYM6, dtype=torch.float64)
        self.register_buffer("taps", (taps / taps.sum()).float(), persistent=False)

    @property
    def num_labels(self) -> int:
        """Number of labels L of an image."""
        return sum(_OPERATIONS[name][1] for name in self.operations)

    def forward(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Augment images [N, C, H, W]; image i depends only on the image and ``keys[i]``.

        Args:
            images: Images; beyond their borders, they are continued by reflection.
            keys: Random keys, int64 [N].

        Returns:
            Images of the same shape, and labels [N, L].
        """
        matrix = torch.eye(2, device=images.device).expand(len(images), 2, 2)
        shift = torch.zeros(len(images), 2, device=images.device)
        height, width = images.shape[2:]
        labels = []
        for name in self.operations:
            own = mixed_keys(keys, list(_OPERATIONS).index(name))
            is_used = (uniform_numbers(mixed_keys(own, _USED), ()) < (1.0 if name == "x_flip" else self.p)).float()
            turned, moved, label = _OPERATIONS[name][0](mixed_keys(own, _DRAWN), is_used)
            # The output at q shows the input at matrix @ (turned @ (q - moved)) + shift.
            matrix = matrix_product(matrix, turned)
            pixels = torch.stack([moved[:, 0] * width, moved[:, 1] * height], dim=1)
            shift = shift - (matrix * pixels.unsqueeze(1)).sum(2)
            labels.append(label)
        augmented = in_float32(lambda exact: resample(exact, matrix.to(exact.dtype), shift.to(exact.dtype), self.taps), images)
        return augmented, torch.cat(labels, dim=1)


def _x_flip(keys: Tensor, is_used: Tensor) -> Placement:
    label = is_used * (uniform_numbers(keys, ()) < 0.5)
    return _diagonal(1.0 - 2.0 * label, torch.ones_like(label)), _unmoved(label), label[:, None]


def _y_flip(keys: Tensor, is_used: Tensor) -> Placement:
    label = is_used * (uniform_numbers(keys, ()) < 0.5)
    return _diagonal(torch.ones_like(label), 1.0 - 2.0 * label), _unmoved(label), label[:, None]


def _scale(keys: Tensor, is_used: Tensor) -> Placement:
    label = is_used * normal_numbers(keys, ())
    inverse = torch.exp(-_SCALE * label)
    return _diagonal(inverse, inverse), _unmoved(label), label[:, None]


def _rotate(keys: Tensor, is_used: Tensor) -> Placement:
    angle = is_used * _angle(keys)
    return _rotation(angle), _unmoved(angle), torch.stack([angle.cos() - 1.0, angle.sin()], dim=1)


def _stretch(keys: Tensor, is_used: Tensor) -> Placement:
    axis, amount = _angle(mixed_keys(keys, 0)), is_used * normal_numbers(mixed_keys(keys, 1), ())
    factors = _diagonal(torch.exp(-_SCALE * amount), torch.exp(_SCALE * amount))
    turned = matrix_product(matrix_product(_rotation(axis), factors), _rotation(-axis))
    # As in the paper, these labels do not distinguish a stretch from its inverse along the opposite direction.
    return turned, _unmoved(amount), torch.stack([amount * axis.cos(), amount * axis.sin()], dim=1)


def _translate(keys: Tensor, is_used: Tensor) -> Placement:
    label = is_used[:, None] * normal_numbers(keys, (2,))
    one = torch.ones_like(is_used)
    return _diagonal(one, one), _MOVE * label, label


_OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Placement], int]] = {
    "x_flip": (_x_flip, 1), "y_flip": (_y_flip, 1), "scale": (_scale, 1), "rotate": (_rotate, 2), "stretch": (_stretch, 2),
    "translate": (_translate, 2),
}  # fmt: skip
"""Operations in the order in which they are applied, each with its number of labels."""


def _angle(keys: Tensor) -> Tensor:
    return (uniform_numbers(keys, ()) * 2.0 - 1.0) * math.pi


def _rotation(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y], dim=1))


def _unmoved(like: Tensor) -> Tensor:
    return like.new_zeros(len(like), 2)
