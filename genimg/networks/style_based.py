"""Interface of generators with styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class StyleBased(Protocol):
    """A generator with styles that can be truncated and per-pixel noise, such as StyleGAN2's (Karras et al. 2019, 2020)."""

    def map_latents(self, latent: Tensor, condition: Tensor, truncation: float = 1.0) -> Tensor:
        """Map latents [N, Z] and raw conditions to styles: truncation 0 gives the average style, and 1 truncates nothing."""
        ...

    def synthesize(self, styles: Tensor, noise_key: Tensor | None = None, noise_strength: float = 1.0) -> Tensor:
        """Map styles to images [N, C, H, W]. Keys, int64 [N], determine the noise of each image; None uses fixed noise."""
        ...


@runtime_checkable
class TakesNoiseMaps(Protocol):
    """A style-based generator to which the noise of every layer can be given."""

    @property
    def noise_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the noise of every layer, in the order of the layers."""
        ...

    def synthesize(
        self,
        styles: Tensor,
        noise_key: Tensor | None = None,
        noise_strength: float = 1.0,
        noise_maps: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Map styles to images, as in ``StyleBased``, with the noise [N, 1, H, W] of every layer, of ``noise_sizes``."""
        ...
