"""Reflow: Liu et al., "Flow straight and fast: learning to generate and transfer data with rectified flow", ICLR 2023."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.data.packed_files import NOISE
from genimg.diffusion.paths import Path, StraightLine
from genimg.diffusion.times import Times
from genimg.errors import ConfigError, DataError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.types import Batch


class Reflow(Diffusion):
    """Flow matching on pairs of an image and the noise from which another flow generated it.

    With independent noise, the straight lines of the pairs cross, and the flow follows their mean velocity, so its paths are
    curved. The ODE of a trained flow maps each noise to one image. The lines of these pairs hardly cross, so the flow that is
    trained on them is nearly straight, and a few Euler steps are enough. With the plain loss, ``loss/denoising`` is the mean of
    (v(x_t, t) - (noise - image))^2, which is 0 only if the lines of the pairs do not cross and the network fits them.

    Apart from the noise, which is part of the batch, training is that of ``Diffusion``.

    Args:
        network, times, loss, sampler, sigma_data, condition_dropout: See ``Diffusion``.
        path: The straight line.
        prediction: ``velocity``.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.

    Raises:
        ValueError: If the parts are incompatible or a number is out of range.
        ConfigError: If the path is not the straight line, or the network does not predict the velocity.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
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
        if not isinstance(path, StraightLine):
            raise ConfigError(f"path={type(path).__name__} does not work with this method: choose StraightLine", key="path")
        if prediction != "velocity":
            raise ConfigError(f"prediction={prediction} does not work with this method: choose velocity", key="prediction")
        super().__init__(
            network=network,
            path=path,
            prediction=prediction,
            times=times,
            loss=loss,
            sampler=sampler,
            sigma_data=sigma_data,
            condition_dropout=condition_dropout,
            image_size=image_size,
            channels=channels,
        )
        self.batch_keys = (*self.batch_keys, NOISE)

    @property
    def denoising_description(self) -> str:
        return super().denoising_description + ", with the noise of the pairs"

    def _given_noise(self, batch: Batch) -> Tensor:
        if NOISE not in batch:
            raise DataError("the images lack the noise from which they were generated: give data of genimg-prepare pairs=RUN")
        return batch[NOISE].to(torch.float32, memory_format=torch.channels_last)

    def check(self, batch: Batch) -> None:
        super().check(batch | {NOISE: torch.zeros_like(batch["image"])})
