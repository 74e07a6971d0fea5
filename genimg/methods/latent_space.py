"""Grids of latents of trained autoencoders, on which other models can be trained.

An autoencoder's method names the class of its latents in the class attribute ``latent_space``. The names of that class's
parameters are those of the method's networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.networks.vector_quantizer import VectorQuantizer


class KLSpace(nn.Module):
    """Latents of a ``KLAutoencoder``: the means of q(z | x).

    Args:
        encoder: Network, image [N, C', H, W] -> means and log-variances [N, 2 C, h, w].
        decoder: Network, latent [N, C, h, w] -> image.
    """

    def __init__(self, *, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, image: Tensor) -> Tensor:
        """Map images [N, C', H, W] in [-1, 1] to latents, float32 [N, C, h, w]."""
        return self.encoder(image).float().chunk(2, dim=1)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, C, h, w] to images, float32 [N, C', H, W], unbounded."""
        return self.decoder(latent).float()


class CodeSpace(nn.Module):
    """Latents of a ``VQVAE``: the encoder's vectors before quantisation. The decoder receives their nearest codes.

    Args:
        encoder: Network, image [N, C', H, W] -> vectors [N, D, h, w].
        decoder: Network, code vectors [N, D, h, w] -> image.
        quantizer: Codebook.
    """

    def __init__(self, *, encoder: nn.Module, decoder: nn.Module, quantizer: VectorQuantizer) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer

    def encode(self, image: Tensor) -> Tensor:
        """Map images [N, C', H, W] in [-1, 1] to vectors, float32 [N, D, h, w]."""
        return self.encoder(image).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map vectors [N, D, h, w] to images, float32 [N, C', H, W], unbounded."""
        return self.decoder(self.quantizer.lookup(self.quantizer.nearest(latent))).float()


class FrozenAutoencoder(nn.Module):
    """The autoencoder of another run, as part of a model. It is never trained, and always in evaluation mode.

    A config may name it by a string: the run directory, or a checkpoint. When a new run starts, genimg-train replaces this
    string with the arguments below, and loads the weights. They are then part of the new model's checkpoints, which no longer
    need the other run.

    Args:
        space: Networks of the autoencoder, a ``KLSpace`` or ``CodeSpace``.
        run: Path of the checkpoint, only for the record.
        images: Number of images that the autoencoder was trained on.
        sha256: Digest of its weights.
        shape: Shape [C, H, W] of its images.

    Attributes:
        latent_shape: Shape (C, h, w) of the latents of an image.
    """

    is_frozen = True

    def __init__(self, *, space: nn.Module, run: str, images: int, sha256: str, shape: Sequence[int]) -> None:
        super().__init__()
        self.space = space.eval().requires_grad_(False)
        self.run, self.images, self.sha256 = run, images, sha256
        channels, height, width = shape
        self.shape = (channels, height, width)
        with torch.no_grad():
            self.latent_shape: tuple[int, int, int] = tuple(self.encode(torch.zeros(1, *self.shape)).shape[1:])  # type: ignore[assignment]

    def train(self, mode: bool = True) -> FrozenAutoencoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def require_shape(self, shape: tuple[int, int, int]) -> None:
        """Check that images have the shape (C, H, W) of those that the autoencoder was trained on.

        Raises:
            ConfigError: If they have another shape.
        """
        if shape != self.shape:
            given, own = ("x".join(map(str, each)) for each in (shape, self.shape))
            raise ConfigError(
                f"autoencoder={self.run} was trained on images of {own} (channels, height, width), but the data has images of "
                f"{given}: give an autoencoder that was trained on such images, or change the data's image_size and channels",
                key="autoencoder",
            )

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Map images [N, C', H, W] in [-1, 1] to latents, float32 [N, C, h, w]."""
        latent: Tensor = self.space.encode(image)  # type: ignore[operator]
        return latent

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Map latents [N, C, h, w] to images [N, C', H, W], unbounded."""
        image: Tensor = self.space.decode(latent)  # type: ignore[operator]
        return image
