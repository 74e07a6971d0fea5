"""Path length regularisation of StyleGAN2's generator: Karras et al. 2020, "Analyzing and improving", section 3.2."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from genimg.losses.penalties import GeneratorPenalty
from genimg.schedules import Number, Scheduled, is_positive, shown
from genimg.types import Metrics
from genimg.utils.distributed import sum_over_ranks, world_size


@runtime_checkable
class StyleGenerator(Protocol):
    """A generator with a mapping and a synthesis network."""

    def map_latents(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Map latents [N, Z] and conditions, as in the batch, to styles [N, L, W]."""
        ...

    def synthesize(self, styles: Tensor) -> Tensor:
        """Map styles [N, L, W] to images [N, C, H, W]."""
        ...


class PathLength(GeneratorPenalty):
    """weight E[(||J^T y|| - a)^2] with J = dG(w)/dw, y ~ N(0, I) and a the moving average of ||J^T y||: equation 4.

    As a result, a step in the styles w changes the image by the same amount everywhere. y is divided by the root of the number
    of pixels, as in the paper's code. The norm of J^T y [L, W] is the root of its squares, summed over W and averaged over L.
    The penalty is computed in float32.

    Args:
        weight: Weight of the penalty; 2 in the paper's code.
        decay: Share of a batch's mean length in the average; 0.01 in the paper's code.
        batch_shrink: Factor by which the number of latents is reduced; 2 in the paper's code.
        interval: Interval in updates, 4 in the paper's code; see ``GeneratorPenalty``.

    Raises:
        ValueError: If a setting is out of range.
    """

    average: Tensor
    weight = Scheduled()

    def __init__(self, *, weight: Number, decay: float, batch_shrink: int, interval: int) -> None:
        super().__init__(interval=interval)
        if not is_positive(weight):
            raise ValueError(f"weight={shown(weight)} must be above 0: for no penalty, remove it")
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay} must be above 0 and at most 1")
        if batch_shrink < 1:
            raise ValueError(f"batch_shrink={batch_shrink} must be 1 or more")
        self.weight = weight
        self.decay = decay
        self.batch_shrink = batch_shrink
        self.register_buffer("average", torch.zeros(()))

    def check(self, generator: nn.Module) -> None:
        if not isinstance(generator, StyleGenerator):
            raise ValueError(
                f"generator={type(generator).__module__}.{type(generator).__name__} has no styles, which the path length "
                "penalty needs: choose StyleGAN2's generator, or another penalty"
            )

    def forward(self, generator: nn.Module, latent: Tensor, condition: Tensor) -> tuple[Tensor, Metrics]:
        """Return the penalty for latents [N, Z] and conditions [N, ...]; the generator is a ``StyleGenerator``."""
        assert isinstance(generator, StyleGenerator)
        count = max(len(latent) // self.batch_shrink, 1)
        with torch.autocast(latent.device.type, enabled=False):
            styles = generator.map_latents(latent[:count], condition[:count])  # [n, L, W]
            if not styles.requires_grad:  # the mapping network is frozen
                styles.requires_grad_()
            image = generator.synthesize(styles)  # [n, C, H, W]
            noise = torch.randn_like(image) / math.sqrt(image.shape[2] * image.shape[3])
            (gradient,) = torch.autograd.grad((image * noise).sum(), styles, create_graph=True)
            lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()  # [n]
            with torch.no_grad():
                mean = sum_over_ranks(lengths.mean()) / world_size()
                self.average.lerp_(mean.to(self.average.dtype), self.decay)
            # The average is a constant, as in the paper. In the paper's code, this batch's share of it also has a gradient.
            penalty = (lengths - self.average).square().mean()
        return self.weight * penalty, {"path_length/mean": mean, "path_length/average": self.average.clone()}
