"""The modules that are exported: each maps a user's inputs to images in [-1, 1].

All take positional inputs, as the exported programs do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.methods.capabilities import Generates
from genimg.methods.gan import StyleBased
from genimg.methods.latent_density import LatentDensity
from genimg.networks.stochastic_layers import StochasticLayer


class Generating(nn.Module):
    """A GAN's generator.

    Args:
        generator: Network (latent [N, Z], condition) -> image.
        truncation: Truncation psi of a style-based generator; None disables it.
    """

    def __init__(self, generator: nn.Module, truncation: float | None) -> None:
        super().__init__()
        self.generator = generator
        self.truncation = truncation

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map latents [N, Z] and, if conditional, labels [N] or captions [N, L] to images [N, C, H, W] in [-1, 1]."""
        latent, *conditions = inputs
        condition = _condition(conditions, latent)
        if self.truncation is None or not isinstance(self.generator, StyleBased):
            return _in_range(self.generator(latent, condition))
        return _in_range(self.generator.synthesize(self.generator.map_latents(latent, condition, self.truncation)))


class Sampling(nn.Module):
    """The sampling of any method that generates, from its own random inputs.

    Args:
        method: Method with a ``sample``.
        names: Names of its random inputs, in the order of the program's.
    """

    def __init__(self, method: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.method = method
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map random inputs to images [N, C, H, W] in [-1, 1]."""
        method = self.method
        assert isinstance(method, Generates)
        return _in_range(method.sample(dict(zip(self.names, inputs, strict=True))))


class LatentsToImage(nn.Module):
    """An autoencoder's decoder, from standard normal numbers to the mean of p(x | z).

    Args:
        decoder: Network (latent [N, Z], condition) -> parameters of the likelihood.
        mean: Function from these parameters to the mean of the likelihood.
        hierarchy: Layers of latents above the decoder's, from the lowest to the highest.
        density: Density fitted to the latents; None if they are standard normal.
    """

    def __init__(
        self,
        decoder: nn.Module,
        mean: Callable[[Tensor], Tensor],
        *,
        hierarchy: nn.ModuleList,
        density: LatentDensity | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.mean = mean  # from a module that is not a submodule here: its parameters describe the noise around the mean
        self.hierarchy = hierarchy
        self.density = None if density is None else _Mixture(density)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map standard normal numbers [N, Z], followed by ``noise``, ``uniform`` and conditions if needed, to images."""
        latent, *others = inputs
        if len(self.hierarchy):
            latent = self._descend(latent, others.pop(0))
        if self.density is not None:
            latent = self.density(latent, others.pop(0) if self.density.several else None)
        return _in_range(self.mean(self.decoder(latent, _condition(others, latent)).float()))

    def _descend(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Compute the lowest latents from the highest; noise is [N, sum of the dims below], the lowest first."""
        layers = [cast(StochasticLayer, layer) for layer in self.hierarchy]
        pieces = noise.split([layer.below for layer in layers], dim=1)
        for layer, piece in zip(reversed(layers), reversed(pieces), strict=True):
            mean, log_variance = layer.generate(latent)
            latent = mean + (0.5 * log_variance).exp() * piece
        return latent


class _Mixture(nn.Module):
    """Maps standard normal numbers [N, Z] and uniform numbers in [0, 1) [N] to latents of a mixture of Gaussians."""

    def __init__(self, density: LatentDensity) -> None:
        super().__init__()
        self.several = density.num_components > 1
        sums = density.weights.double().cumsum(dim=0)
        self.bounds: Tensor
        self.means: Tensor
        self.factors: Tensor
        self.register_buffer("bounds", (sums / sums[-1])[:-1].float())
        self.register_buffer("means", density.means.clone())
        self.register_buffer("factors", density.factors.clone())

    def forward(self, normal: Tensor, chances: Tensor | None) -> Tensor:
        if chances is None:
            return self.means[0] + normal @ self.factors[0].t()
        chosen = (chances[:, None] >= self.bounds).long().sum(dim=1)  # [N]
        # Compute all products and then select one per row, which avoids gathering a batch of matrices.
        placed = torch.stack([mean + normal @ factor.t() for mean, factor in zip(self.means, self.factors, strict=True)], dim=1)
        index = chosen[:, None, None].expand(-1, 1, placed.shape[2])
        return placed.gather(1, index)[:, 0]


class CodesToImage(nn.Module):
    """A VQ-VAE's codebook and decoder.

    Args:
        decoder: Network from vectors [N, D, h, w] to an image.
        codebook: Code vectors [K, D].
    """

    codebook: Tensor

    def __init__(self, decoder: nn.Module, codebook: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("codebook", codebook)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map codes int64 [N, h, w] to images [N, C, H, W] in [-1, 1]."""
        (codes,) = inputs
        return _in_range(self.decoder(F.embedding(codes, self.codebook).permute(0, 3, 1, 2).contiguous()))


class Translating(nn.Module):
    """A translator with its task's pre- and postprocessing, as in genimg-translate but without padding.

    Args:
        translator: Network from source [N, S, H, W] to output [N, T, H, W].
        task: Task of the training data.
    """

    def __init__(self, translator: nn.Module, task: Task) -> None:
        super().__init__()
        self.translator = translator
        self.task = task

    def forward(self, *inputs: Tensor) -> Tensor:
        """Translate images [N, C, h, w] in [-1, 1]; inpainting also takes masks [N, 1, h, w], 1 where pixels are missing."""
        source = self.task.given(*inputs).contiguous()
        return _in_range(self.task.result(self.translator(source).float(), source))


def _condition(given: Sequence[Tensor], latent: Tensor) -> Tensor:
    """Return the given condition, else zeros [N, 0]; uses ``shape``, because ``len`` would fix the batch size of a program."""
    return given[0] if given else latent.new_empty(latent.shape[0], 0)


def _in_range(images: Tensor) -> Tensor:
    """Clamp images to [-1, 1], as in the conversion to uint8."""
    return images.float().clamp(-1.0, 1.0)
