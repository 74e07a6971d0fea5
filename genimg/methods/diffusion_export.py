"""What genimg-export writes for a diffusion model: one evaluation of the denoiser, and the steps of the default sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.diffusion_sampling import spacing_of
from genimg.methods.export_spec import ExportSpec, Port
from genimg.types import Batch


def denoiser_spec(
    method: Any, options: DiffusionOptions, estimate: Callable[[Any, Batch], Tensor], state: Port, *others: Port, what: str
) -> ExportSpec:
    """Return the export of a method's denoiser; the times, scales and sigmas of a sampler's steps are part of the record.

    Args:
        method: Method with a ``denoiser``.
        options: Options of the sampler.
        estimate: Function from an object with a ``denoiser``, and a batch of the inputs, to clean images [N, C, H, W].
        state: Input of the noisy images.
        others: Inputs after the state and its times.
        what: What the exported program does, in a few words.
    """
    path = copy.deepcopy(method.denoiser.path).cpu()
    grid = path.grid(options.steps, spacing_of(options, path))
    times = torch.tensor(grid, dtype=torch.float64)

    def some_times(shape: list[int], *, generator: torch.Generator) -> Tensor:
        return times[torch.randint(options.steps, shape, generator=generator)].float()

    return ExportSpec(
        name="network",
        parts={"denoiser": method.denoiser},
        inputs=(
            state,
            Port("time", torch.float32, ("batch",), f"times from {path.end:g} to 0, the image", some_times),
            *others,
        ),
        forward=estimate,
        reference=partial(estimate, method),
        settings={
            "sampling": vars(options),
            "times": [time + 0.0 for time in grid],  # 0.0 instead of -0.0
            "scale": path.scale(times).tolist(),
            "sigma": path.sigma(times).tolist(),
        },
        remarks=(
            f"it estimates {what}; the record holds the times, scales and sigmas of the default sampler's steps "
            "(docs/diffusion.md shows the loop)",
        ),
        is_limited=False,
    )
