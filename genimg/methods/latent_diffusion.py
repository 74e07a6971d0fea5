"""Diffusion in the latents of an autoencoder: Rombach et al., "Latent diffusion models", CVPR 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from genimg.data.packed_files import LATENT
from genimg.diffusion.paths import Path
from genimg.diffusion.times import Times
from genimg.errors import ConfigError, subject_of
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.export_spec import ExportSpec
from genimg.methods.latent_space import FrozenAutoencoder
from genimg.methods.options import OtherModel
from genimg.types import Batch, height_width
from genimg.utils.exact import double

_ENCODED_AT_ONCE = 64  # images, when the statistics are measured


class LatentDiffusion(Diffusion):
    """Diffusion or flow matching of the latents of a trained autoencoder, whose decoder turns them into images.

    Latents are standardised for each channel, with the mean and standard deviation over random training images. Both are
    measured once before training, and are part of the checkpoint, as are the autoencoder's weights. If the data holds latents
    of the same autoencoder (``genimg-prepare autoencoder=RUN``), images are not encoded in each step.

    Args:
        autoencoder: The trained autoencoder.
        network: Constructor of the network; ``channels`` and ``image_size`` of the latents are passed to it.
        path, prediction, times, loss, sampler, sigma_data, condition_dropout: See ``Diffusion``.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.

    Raises:
        ValueError: If the parts are incompatible or a number is out of range.
    """

    log_likelihood = None  # type: ignore[assignment]  # the likelihood of the latents is not that of the images
    noise_of = None  # type: ignore[assignment]  # it is noise of latents, which have another shape than the images

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        *,
        autoencoder: FrozenAutoencoder,
        network: Callable[..., nn.Module],
        path: Path,
        prediction: str,
        times: Times,
        loss: DenoisingLoss,
        sampler: DiffusionOptions,
        sigma_data: float | str | None,
        condition_dropout: float,
        image_size: int | Sequence[int],
        channels: int,
    ) -> None:
        autoencoder.require_shape((channels, *height_width(image_size)))
        latent_channels, height, width = autoencoder.latent_shape
        super().__init__(
            network=_network(network, latent_channels, height, width),
            path=path,
            prediction=prediction,
            times=times,
            loss=loss,
            sampler=sampler,
            sigma_data=sigma_data,
            condition_dropout=condition_dropout,
            image_size=[height, width],
            channels=latent_channels,
        )
        self.autoencoder = autoencoder
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))
        self._latent_key = LATENT + autoencoder.sha256
        self.optional_batch_keys = (self._latent_key,)
        self.measures_data = True

    def set_data_statistics(self, images: Tensor) -> None:
        """Set the statistics of the latents from images [N, C, H, W] in [-1, 1], and sigma_data if it is ``auto``."""
        latents = torch.cat([self.autoencoder.encode(some) for some in images.split(_ENCODED_AT_ONCE)])
        std, mean = torch.std_mean(double(latents), dim=(0, 2, 3), correction=0, keepdim=True)
        self.latent_mean.copy_(mean[0])
        self.latent_std.copy_(std[0].clamp(min=1e-6))
        self.denoiser.measure(self._standardised(latents))

    def _standardised(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) / self.latent_std

    def _encoded(self, batch: Batch) -> Tensor:
        packed = batch.get(self._latent_key)
        return self._standardised(self.autoencoder.encode(batch["image"].float()) if packed is None else packed.float())

    def _decoded(self, data: Tensor) -> Tensor:
        return self.autoencoder.decode(self.latent_mean + self.latent_std * data).clamp(-1.0, 1.0)

    def check_options(self, options: DiffusionOptions) -> None:
        if options.clip:
            raise ConfigError("clip=true has no meaning for latents, which have no fixed range: set it to false", key="clip")
        super().check_options(options)

    def _check_guide(self, other: OtherModel) -> None:
        super()._check_guide(other)
        guide = other.method
        if not (
            isinstance(guide, LatentDiffusion)
            and guide.autoencoder.sha256 == self.autoencoder.sha256
            and torch.allclose(guide.latent_mean, self.latent_mean)
            and torch.allclose(guide.latent_std, self.latent_std)
        ):
            raise ConfigError(
                f"autoguidance={other} has other latents than this model: give a model of the same autoencoder and data"
            )

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export one evaluation of the denoiser of latents; their statistics are part of the record."""
        spec = super().export_spec(truncation)
        statistics = {"latent_mean": self.latent_mean.flatten().tolist(), "latent_std": self.latent_std.flatten().tolist()}
        return replace(
            spec,
            settings={**spec.settings, **statistics},
            remarks=(
                *spec.remarks,
                "its images are standardised latents: multiply each channel by the record's latent_std, add its latent_mean, "
                "and decode with the decoder that genimg-export writes for the autoencoder's own run",
            ),
        )


def _network(constructor: Callable[..., nn.Module], channels: int, height: int, width: int) -> nn.Module:
    """Build the network of latents [C, h, w].

    Raises:
        ConfigError: If it does not fit their size; the message names that size, because the config only has that of images.
    """
    try:
        return constructor(channels=channels, image_size=[height, width])
    except ValueError as error:
        if (error.key if isinstance(error, ConfigError) else subject_of(str(error))).rpartition(".")[2] != "image_size":
            raise
        reason = str(error).partition(": ")[2].partition(";")[0]
        raise ConfigError(
            f"network does not fit the autoencoder's latents, which have {height}x{width} positions: {reason}",
            "network.patch_size must be smaller (or, in a U-Net, the list of its multipliers shorter)",
            key="network.patch_size",
        ) from error
