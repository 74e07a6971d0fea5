"""A discriminator: image features and a head that scores them, with or without a condition."""

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
    """Output of a discriminator for N images.

    Attributes:
        logits: Logits of the images being real [N].
        class_logits: Class logits of an auxiliary classifier [N, K]; None without one.
    """

    logits: Tensor
    class_logits: Tensor | None = None


def as_discriminator_output(output: DiscriminatorOutput | Tensor) -> DiscriminatorOutput:
    """Return a discriminator's output as a ``DiscriminatorOutput``.

    Args:
        output: ``DiscriminatorOutput``, or logits [N] or [N, 1].

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(output, DiscriminatorOutput):
        return output
    if not isinstance(output, Tensor) or output.dim() == 0 or output.numel() != len(output):
        given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(
            f"discriminator returns {given}, but must return one logit for each image, [N] or [N, 1]", key="discriminator"
        )
    return DiscriminatorOutput(output.flatten())


class Features(Protocol):
    """The convolutional part: maps images [N, C + condition_channels, H, W] to [N, num_features]."""

    num_features: int

    def __call__(self, image: Tensor) -> Tensor: ...


class Discriminator(nn.Module):
    """Features and a linear head, which is always computed in float32, even under autocast.

    Args:
        features: Factory of a module that implements ``Features``. With ``head=concat`` it is called with the number of
            ``condition_channels`` appended to the image.
        condition: This network's own encoder of the condition.
        head: ``none``; ``concat``, the condition as constant channels beside the image (Mirza & Osindero 2014);
            ``projection``, an inner product of features and condition (Miyato & Koyama 2018, equation 3);
            ``auxiliary_classifier``, class logits of every image (Odena et al. 2017).
        bias: Whether the logit has a bias.
        initialisation: Initialisation of all weights; see ``layers.initialise``.
        spectral_norm: Whether to apply spectral normalisation to all layers, including the head.

    Raises:
        ValueError: If the head does not match the features or the condition.
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
        """Return the features [N, num_features] that the head scores."""
        if self.head == "concat":
            image = beside_image(image, self.condition(condition))
        return self.features(image)

    def forward(self, image: Tensor, condition: Tensor) -> DiscriminatorOutput:
        """Score images [N, C, H, W] with their raw conditions."""
        features = self.seen(image, condition)
        # Sums over thousands of features are small compared to their terms; bfloat16 would round the logit to 3 digits.
        with torch.autocast(image.device.type, enabled=False):
            features = features.to(self.logit.weight.dtype)
            logits = self.logit(features).squeeze(1)
            if self.projection is not None:
                logits = logits + (self.projection(self.condition(condition).to(features.dtype)) * features).sum(dim=1)
            return DiscriminatorOutput(logits, None if self.classifier is None else self.classifier(features))


def _features(features: Callable[..., nn.Module], condition: ConditionEncoder, head: str) -> nn.Module:
    """Build the features.

    Raises:
        ValueError: If they have no parameter ``condition_channels`` for ``head=concat``, or no ``num_features``.
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
            f"features is a {type(made).__name__} without an attribute num_features: set it to the number of values that they "
            "return for an image"
        )
    return made


def _check(condition: ConditionEncoder, head: str) -> None:
    if head not in HEADS:
        raise ValueError(f"head={head} is unknown: choose one of {', '.join(HEADS)}")
    if (head == "none") != (condition.key is None):
        raise ValueError(
            f"head={head} does not match the condition {type(condition).__name__}: a head other than none needs a condition, "
            "and a condition needs such a head"
        )
    if head == "auxiliary_classifier" and condition.num_classes == 0:
        raise ValueError("head=auxiliary_classifier needs labels as conditions: choose head=projection")
