"""A discriminator: features of an image, and a head that judges them, with or without a condition."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.networks.conditioning import ConditionEncoder, beside_image
from genimg.networks.layers import initialise, spectral_normalise

HEADS = ("none", "concat", "projection", "auxiliary_classifier")


class DiscriminatorOutput(NamedTuple):
    """What a discriminator says of N images.

    Attributes:
        logits: of being real [N].
        class_logits: of the classes [N, K], from an auxiliary classifier; None without one.
    """

    logits: Tensor
    class_logits: Tensor | None = None


def as_discriminator_output(output: DiscriminatorOutput | Tensor) -> DiscriminatorOutput:
    """Return a discriminator's answer as a ``DiscriminatorOutput``.

    Args:
        output: A ``DiscriminatorOutput``, or logits alone: [N] or [N, 1].

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(output, DiscriminatorOutput):
        return output
    if not isinstance(output, Tensor) or output.dim() == 0 or output.numel() != len(output):
        given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(
            f"discriminator gives {given}, but must give one logit for each image, [N] or [N, 1]", key="discriminator"
        )
    return DiscriminatorOutput(output.flatten())


class Features(Protocol):
    """The convolutional part: images [N, C + condition_channels, H, W] -> [N, num_features]."""

    num_features: int

    def __call__(self, image: Tensor) -> Tensor: ...


class Discriminator(nn.Module):
    """Features and a linear head, which is computed in float32 under autocast, too.

    Args:
        features: Makes a module that fits ``Features``; for ``head=concat`` it is given the ``condition_channels`` that stand
            beside the image.
        condition: this network's own encoder.
        head: ``none``; ``concat``, the condition as constant channels beside the image (Mirza & Osindero 2014);
            ``projection``, an inner product of features and condition (Miyato & Koyama 2018, equation 3);
            ``auxiliary_classifier``, class logits of every image (Odena et al. 2017).
        bias: of the head's logit.
        initialisation: of all weights; see ``layers.initialise``.
        spectral_norm: of all layers, the head's included.

    Raises:
        ValueError: if the parts do not go together.
    """

    def __init__(
        self,
        *,
        features: Callable[..., nn.Module],
        condition: ConditionEncoder,
        head: str,
        bias: bool,
        initialisation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        _check(condition, head)
        self.features = _features(features, condition, head)
        self.condition = condition
        self.head = head
        count = int(self.features.num_features)  # type: ignore[arg-type]
        self.logit = nn.Linear(count, 1, bias=bias)
        self.projection = nn.Linear(condition.dim, count, bias=False) if head == "projection" else None
        self.classifier = nn.Linear(count, condition.num_classes) if head == "auxiliary_classifier" else None
        initialise(self, initialisation)
        if spectral_norm:
            spectral_normalise(self)

    def seen(self, image: Tensor, condition: Tensor) -> Tensor:
        """The features that images are judged by: [N, num_features]."""
        if self.head == "concat":
            image = beside_image(image, self.condition(condition))
        return self.features(image)

    def forward(self, image: Tensor, condition: Tensor) -> DiscriminatorOutput:
        """Images [N, C, H, W] and their conditions as they stand in the batch."""
        features = self.seen(image, condition)
        # Sums over thousands of features, small beside their terms: bfloat16 would round the logit to 3 digits.
        with torch.autocast(image.device.type, enabled=False):
            features = features.to(self.logit.weight.dtype)
            logits = self.logit(features).squeeze(1)
            if self.projection is not None:
                logits = logits + (self.projection(self.condition(condition).to(features.dtype)) * features).sum(dim=1)
            return DiscriminatorOutput(logits, None if self.classifier is None else self.classifier(features))


def _features(features: Callable[..., nn.Module], condition: ConditionEncoder, head: str) -> nn.Module:
    """Make the features.

    Raises:
        ValueError: If they cannot see the condition that ``head`` puts beside the image, or have no ``num_features``.
    """
    parameters = inspect.signature(features).parameters.values()
    takes_channels = any(each.name == "condition_channels" or each.kind is each.VAR_KEYWORD for each in parameters)
    if head == "concat" and not takes_channels:
        raise ValueError(
            "head=concat puts the condition beside the image, but these features have no parameter condition_channels: choose "
            "head=projection, or no conditioning"
        )
    made = features(condition_channels=condition.dim) if head == "concat" else features()
    if not isinstance(getattr(made, "num_features", None), int):
        raise ValueError(
            f"features is a {type(made).__name__} without an attribute num_features: set it to the number of values that it "
            "gives for an image"
        )
    return made


def _check(condition: ConditionEncoder, head: str) -> None:
    if head not in HEADS:
        raise ValueError(f"head={head} is unknown: choose one of {', '.join(HEADS)}")
    if (head == "none") != (condition.key is None):
        raise ValueError(
            f"head={head} does not go with the condition {type(condition).__name__}: a head other than none needs a condition, "
            "and a condition needs such a head"
        )
    if head == "auxiliary_classifier" and condition.num_classes == 0:
        raise ValueError("head=auxiliary_classifier needs labels as conditions: choose head=projection")
