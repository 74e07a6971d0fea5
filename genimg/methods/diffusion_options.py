"""Options of sampling from diffusion and flow-matching models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from genimg.diffusion.samplers import SAMPLERS, VARIANCES, num_evaluations
from genimg.methods.options import OtherModel, SamplingOptions, setting

_OWN = {
    "eta": "ddim", "variance": "ancestral", "churn": "heun", "churn_noise": "heun", "churn_from": "heun", "churn_until": "heun"
}  # fmt: skip

_OF_GUIDANCE = {"guidance_from": 0.0, "guidance_until": None, "negative": None, "autoguidance": None}


@dataclass(frozen=True)
class DiffusionOptions(SamplingOptions):
    """Options of sampling from a diffusion or flow-matching model.

    Raises:
        ValueError: If an option is unknown, out of range or without effect.
    """

    sampler: str = setting(
        "Solver: heun, euler, ddim, ancestral (the Markov chain of DDPM) or dpmpp_2m (DPM-Solver++ of second order)",
        "heun",
        choices=SAMPLERS,
    )
    steps: int = setting(
        "Number of steps, 1 or more; heun evaluates the network 2 steps - 1 times, the others once a step", 18, usual=(1, 100)
    )
    spacing: str | None = setting(
        "Spacing of the steps: uniform or quadratic (DDPM), power (EDM), uniform or power (straight line); null: the first",
        None,
        choices=("uniform", "quadratic", "power"),
    )
    guidance: int | float = setting("Guidance scale; 1: none, above 1: images closer to the condition", 1.0, usual=(0, 8))
    negative: str | int | None = setting(
        "Caption (or class) that guidance leads away from; null: the estimate without a condition",
        None,
        refers_to="condition",
    )
    autoguidance: OtherModel | None = setting(
        "Weaker model of the same data that guidance leads away from; works without conditions, too; null: none",
        None,
        refers_to="model",
    )
    guidance_from: int | float = setting("Smallest noise level, sigma / scale, with guidance", 0.0)
    guidance_until: int | float | None = setting("Largest noise level, sigma / scale, with guidance; null: no limit", None)
    eta: int | float | None = setting("New noise in ddim: 0 (none, the ODE) to 1 (as much as in ancestral); null: 0", None)
    variance: str | None = setting(
        "Variance of ancestral: small (posterior) or large (beta, for as many steps as noise levels); null: small",
        None,
        choices=VARIANCES,
    )
    churn: int | float | None = setting("Noise that heun adds in all steps together, S_churn of EDM; null: none", None)
    churn_noise: int | float | None = setting("Factor of that noise, S_noise of EDM; null: 1", None)
    churn_from: int | float | None = setting("Smallest sigma with added noise, S_tmin of EDM; null: 0", None)
    churn_until: int | float | None = setting("Largest sigma with added noise, S_tmax of EDM; null: no limit", None)
    clip: bool = setting("Limit the estimated image to [-1, 1] in each step, as DDPM does", False)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler} is unknown: choose one of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be 1 or more")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance={self.guidance:g} must be 0 or more; 1 for none")
        if not 0 <= self.guidance_from < self.largest_guided:
            raise ValueError(f"guidance_from={self.guidance_from:g} must be 0 or more, and below guidance_until")
        for name, sampler in _OWN.items():
            if (value := getattr(self, name)) is not None and self.sampler != sampler:
                raise ValueError(f"{name}={value} has no effect with sampler={self.sampler}: choose sampler={sampler}, or null")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta:g} must be from 0 to 1")
        if self.variance is not None and self.variance not in VARIANCES:
            raise ValueError(f"variance={self.variance} is unknown: choose one of {', '.join(VARIANCES)}")
        if self.churn is not None and not self.churn >= 0:
            raise ValueError(f"churn={self.churn:g} must be 0 or more")
        if self.churn_noise is not None and not self.churn_noise > 0:
            raise ValueError(f"churn_noise={self.churn_noise:g} must be above 0")
        for name in ("churn_noise", "churn_from", "churn_until"):
            if (value := getattr(self, name)) is not None and not self.churn:
                raise ValueError(f"{name}={value:g} has no effect without churn: set churn, or choose null")
        if (self.churn_from or 0) > (math.inf if self.churn_until is None else self.churn_until):
            raise ValueError(f"churn_from={self.churn_from or 0:g} must be at most churn_until={self.churn_until:g}")
        for name, usual in _OF_GUIDANCE.items():
            if self.guidance == 1 and (value := getattr(self, name)) != usual:
                raise ValueError(f"{name}={value} has no effect without guidance: set guidance, or remove it")
        if self.negative is not None and self.autoguidance is not None:
            raise ValueError(
                f"negative={self.negative} has no effect with autoguidance={self.autoguidance}: remove one of them"
            )

    def replaced(self, **given: Any) -> DiffusionOptions:
        """Return the options with other values; with another sampler, those that only the former one has are dropped."""
        if given.get("sampler", self.sampler) != self.sampler:
            given = dict.fromkeys(_OWN) | {"clip": False} | given
        return replace(self, **given)

    @property
    def is_deterministic(self) -> bool:
        """Whether the sampler follows the ODE, so the noise at the start alone determines the image."""
        return self.sampler != "ancestral" and not self.eta and not self.churn

    @property
    def num_evaluations(self) -> int:
        """Number of times that the network is evaluated for one image; guidance doubles it where it applies."""
        return num_evaluations(self.sampler, self.steps) * (1 if self.guidance == 1 else 2)

    @property
    def largest_guided(self) -> float:
        """The largest noise level with guidance."""
        return math.inf if self.guidance_until is None else float(self.guidance_until)
