"""Options of sampling: what a user can choose when a trained model generates images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


def setting(
    help: str,
    default: Any,
    *,
    refers_to: str | None = None,
    choices: Sequence[str] = (),
    usual: tuple[float, float] | None = None,
) -> Any:
    """Return the dataclass field of a sampling option.

    Args:
        help: One line of help: meaning, unit and range.
        default: Default value, a primitive.
        refers_to: ``model`` if the value that a user gives is the path of another model's checkpoint, and the field holds
            an ``OtherModel``; ``condition`` if it is a caption or a class; None for a plain value.
        choices: Allowed values of a text, besides None if the type allows it.
        usual: Smallest and largest value that is usual, for the slider of a number; values beyond it may be allowed, too.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "refers_to": refers_to, "choices": tuple(choices), "usual": usual}
    )


@dataclass(frozen=True, eq=False)
class OtherModel:
    """Another trained model, as the value of a sampling option.

    Attributes:
        method: The model in evaluation mode, on the device of the model that samples, prepared for sampling.
        name: Path of the checkpoint or run directory, as the user gave it.
        record: Everything that identifies the model, for records: path, digest and weights.
    """

    method: object
    name: str
    record: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class SamplingOptions:
    """Base of the options of sampling: a frozen dataclass whose fields are made by ``setting``."""

    def replaced(self, **given: Any) -> Self:
        """Return the options with other values.

        Raises:
            ValueError: If a value is out of range.
        """
        return dataclasses.replace(self, **given)

    @property
    def num_evaluations(self) -> int | None:
        """Number of times that the network is evaluated for one image; None if the options do not determine it."""
        return None

    @property
    def is_deterministic(self) -> bool:
        """Whether the latents alone determine the image."""
        return True


@dataclass(frozen=True)
class NoOptions(SamplingOptions):
    """Sampling has no options."""


@dataclass(frozen=True)
class LatentOptions(SamplingOptions):
    """Options of sampling from latents."""

    truncation: int | float | None = setting(
        "Truncates latents to [-t, t], t above 0, for less varied but usually better images; null: none", None, usual=(0.1, 2)
    )

    def __post_init__(self) -> None:
        require_truncation(self.truncation)


NOISE_MODES = ("random", "const", "none")
"""Per-pixel noise that differs between samples, is fixed and the same for all samples, or is absent."""


@dataclass(frozen=True)
class StyleOptions(SamplingOptions):
    """Options of sampling from a style-based generator."""

    truncation: int | float | None = setting(
        "Truncation psi, from 0 (the average image) to 1 (none), for less varied but usually better images; null: none",
        None,
        usual=(0, 1),
    )
    noise: str = setting(
        "Per-pixel noise: random (different for each sample), const (the same for all) or none", "random", choices=NOISE_MODES
    )

    def __post_init__(self) -> None:
        require_truncation(self.truncation)
        if self.noise not in NOISE_MODES:
            raise ValueError(f"noise={self.noise} is unknown: choose one of {', '.join(NOISE_MODES)}")


@dataclass(frozen=True)
class CodeOptions(SamplingOptions):
    """Options of sampling codes from an autoregressive prior."""

    temperature: int | float | None = setting(
        "Divides the prior's logits; above 0 and below 1, for less varied but usually better images; null: 1",
        None,
        usual=(0.1, 0.99),
    )
    guidance: int | float = setting(
        "Classifier-free guidance scale of a transformer prior; 1: none, above 1: images closer to the condition",
        1.0,
        usual=(0, 8),
    )

    def __post_init__(self) -> None:
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance={self.guidance:g} must be 0 or more; 1 for none")
        if self.temperature is not None and not 0 < self.temperature < 1:
            raise ValueError(f"temperature={self.temperature:g} must be above 0 and below 1, or null")


def require_truncation(truncation: float | None) -> None:
    """Reject a truncation that no model supports.

    Raises:
        ValueError: If it is neither None nor a finite number, 0 or more.
    """
    if truncation is not None and not (truncation >= 0 and math.isfinite(truncation)):
        raise ValueError(f"truncation={truncation} must be a number, 0 or more, or null for none")
