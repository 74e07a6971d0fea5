"""The latents of a GAN's generator: their spaces, and a differentiable map from latents to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genimg.methods.gan import GAN
from genimg.methods.latent import Latent
from genimg.networks.style_based import StyleBased, TakesNoiseMaps
from genimg.types import Batch

W, W_PLUS, Z = "w", "w+", "z"
SPACES = (W, W_PLUS, Z)
"""One style for all layers, one style for each layer, and the latents that the generator was trained with."""

_BATCH = 1000  # latents that are mapped to styles at a time


@dataclass(frozen=True)
class LatentCodes:
    """Latents of N images.

    Attributes:
        space: One of ``SPACES``.
        values: Latents, float32: [N, Z] in z, [N, W] in w, [N, L, W] in w+.
        condition: Labels or captions of the images, by key of the batch; empty for an unconditional generator.
        noise_maps: Noise [N, 1, H, W] of every layer of a style-based generator; empty for the generator's fixed noise.
    """

    space: str
    values: Tensor
    condition: Batch
    noise_maps: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> LatentCodes:
        """Return the latents of some images."""
        condition = {key: value[rows] for key, value in self.condition.items()}
        return replace(
            self, values=self.values[rows], condition=condition, noise_maps=tuple(each[rows] for each in self.noise_maps)
        )

    def to(self, device: torch.device) -> LatentCodes:
        """Return the latents on a device."""
        condition = {key: value.to(device) for key, value in self.condition.items()}
        maps = tuple(each.to(device) for each in self.noise_maps)
        return replace(self, values=self.values.to(device), condition=condition, noise_maps=maps)

    def to_cpu(self) -> LatentCodes:
        """Return the latents on the CPU."""
        return self.to(torch.device("cpu"))

    @classmethod
    def joined(cls, parts: Sequence[LatentCodes]) -> LatentCodes:
        """Return the latents of several sets of images of one space, in order."""
        first = parts[0]
        condition = {key: torch.cat([part.condition[key] for part in parts]) for key in first.condition}
        maps = tuple(torch.cat(layer) for layer in zip(*(part.noise_maps for part in parts), strict=True))
        return cls(first.space, torch.cat([part.values for part in parts]), condition, maps)


class GeneratorLatents:
    """The generator of a trained GAN as a function of its latents.

    Args:
        gan: Model in evaluation mode, on its device.

    Attributes:
        generator: The generator.
        latent: Distribution of the latents z.
        device: Device of the generator.
        condition_key: Key of the batch that the generator reads; None for an unconditional generator.
        num_classes: Number of classes; 0 if it reads no labels.
    """

    def __init__(self, gan: GAN) -> None:
        self.generator = gan.generator
        self.latent: Latent = gan.latent
        self.device = next(gan.generator.parameters()).device
        self.condition_key = gan.condition_key
        self.num_classes = gan.num_classes
        self._gan = gan

    @property
    def is_style_based(self) -> bool:
        """Whether the generator has styles, as StyleGAN2's."""
        return isinstance(self.generator, StyleBased)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Spaces in which images can be described, the default first."""
        return (W, W_PLUS) if self.is_style_based else (Z,)

    @property
    def noise_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the noise of every layer; empty for a generator to which no noise can be given."""
        return self.generator.noise_sizes if isinstance(self.generator, TakesNoiseMaps) else []

    def shape(self, space: str) -> tuple[int, ...]:
        """Return the shape of the latent of one image in a space."""
        if space == Z:
            return (self.latent.dim,)
        layers, width = self._styles(self.draw([0], 0)).shape[1:]
        return (width,) if space == W else (layers, width)

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Return the latents z and conditions of generated images, as ``GAN.draw``, on the device."""
        return {key: value.to(self.device) for key, value in self._gan.draw(indices, seed).items() if key != "noise_key"}

    def codes(self, drawn: Batch, space: str, truncation: float = 1.0) -> LatentCodes:
        """Return the latents of drawn images in one of ``spaces``.

        Args:
            drawn: Latents and conditions of ``draw``.
            space: The space.
            truncation: Truncation psi of the styles; see ``StyleBased.map_latents``.
        """
        condition = {} if self.condition_key is None else {self.condition_key: drawn[self.condition_key]}
        if space == Z:
            return LatentCodes(Z, drawn["latent"], condition)
        styles = self._styles(drawn, truncation)
        return LatentCodes(space, (styles[:, 0] if space == W else styles).contiguous(), condition)

    def images(self, codes: LatentCodes) -> Tensor:
        """Return images [N, C, H, W] in [-1, 1], a differentiable function of ``codes.values`` and ``codes.noise_maps``."""
        if codes.space == Z:
            images: Tensor = self.generator(codes.values, self._condition({"latent": codes.values, **codes.condition}))
            return images
        styles = codes.values
        if codes.space == W:
            styles = styles[:, None].expand(-1, self.shape(W_PLUS)[0], -1)
        if codes.noise_maps:
            assert isinstance(self.generator, TakesNoiseMaps)
            return self.generator.synthesize(styles, noise_maps=codes.noise_maps)
        assert isinstance(self.generator, StyleBased)
        return self.generator.synthesize(styles)

    @torch.no_grad()
    def style_samples(self, count: int, seed: int, row: Batch) -> Tensor:
        """Return the styles w [count, W] of the first ``count`` generated images.

        Args:
            count: Number of images.
            seed: Seed of the images.
            row: Batch of one image with the condition of all of them; empty to draw conditions.
        """
        parts = []
        for start in range(0, count, _BATCH):
            drawn = self.draw(range(start, min(start + _BATCH, count)), seed)
            drawn |= {key: value.to(self.device).expand(len(drawn["latent"]), *value.shape[1:]) for key, value in row.items()}
            parts.append(self.codes(drawn, W).values)
        return torch.cat(parts)

    @torch.no_grad()
    def _styles(self, drawn: Batch, truncation: float = 1.0) -> Tensor:
        assert isinstance(self.generator, StyleBased)
        return self.generator.map_latents(drawn["latent"], self._condition(drawn), truncation)

    def _condition(self, batch: Batch) -> Tensor:
        condition: Tensor = self.generator.condition.of(batch)  # type: ignore[operator, union-attr]
        return condition
