"""Consistency models: denoisers whose estimates agree along the path from noise to an image, so one step can generate it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from genimg.diffusion.denoiser import Denoiser
from genimg.diffusion.noise import NOISE, TIME, normal
from genimg.diffusion.paths import VarianceExploding
from genimg.diffusion.times import Times
from genimg.errors import ConfigError
from genimg.losses.few_steps import ConsistencyLoss
from genimg.methods.base import Update, require_shape
from genimg.methods.conditional import ConditionalMethod, shared_encoder
from genimg.methods.diffusion_training import require_network_settings
from genimg.methods.modes import eval_mode
from genimg.methods.options import SamplingOptions, setting
from genimg.schedules import Schedule, Scheduled
from genimg.types import Batch, Metrics, Microbatches, Progress, height_width
from genimg.utils.durations import NumImages
from genimg.utils.random_streams import StreamPosition
from genimg.utils.rng import Stream, keys_of, mixed_keys, normal_latents

_MIDDLE = 0.821  # noise before the second step on CIFAR-10: Geng et al. 2024, the authors' code
_SHARPNESS = 8.0  # k of the mapping from t to r, section 3; b is 1


@dataclass(frozen=True)
class ConsistencyOptions(SamplingOptions):
    """Options of sampling from a consistency model.

    Raises:
        ValueError: If an option is out of range or without effect.
    """

    steps: int = setting("Number of steps, 1 or 2", 1, usual=(1, 2))
    middle: int | float | None = setting("Standard deviation of the new noise before the second step; null: 0.821", None)

    def __post_init__(self) -> None:
        if self.steps not in (1, 2):
            raise ValueError(f"steps={self.steps} must be 1 or 2")
        if self.middle is not None and self.steps == 1:
            raise ValueError(f"middle={self.middle:g} has no effect with steps=1: set steps=2, or choose null")
        if self.middle is not None and not self.middle > 0:
            raise ValueError(f"middle={self.middle:g} must be above 0")

    @property
    def num_evaluations(self) -> int:
        """Number of times that the network is evaluated for one image."""
        return self.steps


def _drops(layer: nn.Module) -> bool:
    """Return whether a layer is a dropout, or has a setting ``dropout`` above 0."""
    setting = getattr(layer, "dropout", 0)
    return isinstance(layer, nn.modules.dropout._DropoutNd) or (isinstance(setting, int | float) and setting > 0)


class _Stages(Schedule):
    """1 / q^s at stage s, counted from 1. The last stage has q^s up to 2^16; farther on, r would round to t."""

    def __init__(self, ratio: float, stage: NumImages) -> None:
        self._ratio, self._stage = ratio, stage
        self._last = max(1, int(16 / math.log2(ratio)))

    def at(self, images: int, batch_size: int) -> float:
        return self._ratio ** -min(images // self._stage + 1, self._last)

    @property
    def extremes(self) -> tuple[float, float]:
        return self._ratio**-self._last, 1.0 / self._ratio


class ConsistencyModel(ConditionalMethod):
    """Geng et al., "Consistency models made easy", 2024 (ECT).

    The denoiser D of EDM (Karras et al. 2022) is trained to estimate the same image from a noisier state, x + t e, as from a
    less noisy one, x + r e. Where r is 0, the target is the image x. The gap between t and r shrinks in stages. The method is a
    fine-tuning, so training should start from the weights of a diffusion model (``init_from``).

    The noise and time of a training sample depend only on the seed and its position in training. Both passes have the same
    dropout mask.

    Args:
        network: Network like that of ``methods.diffusion``, with one time.
        path: EDM's path.
        times: Distribution of the larger time t.
        loss: Distance between the two estimates.
        sampling: Default options of sampling.
        sigma_data: Standard deviation of the data, or ``auto`` to measure it before training.
        ratio: The number q, above 1: at stage s, counted from 1, the mapping is r = max(0, 1 - (1 + 8 sigmoid(-t)) / q^s) t.
            Stages end where q^s is 2^16.
        stage: Length of a stage; None for a single stage.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.

    Raises:
        ValueError: If a number is out of range.
        ConfigError: If the network does not take one time, or times do not fit the path.
    """

    loss_type = ConsistencyLoss
    inference_networks = ("denoiser",)
    gap = Scheduled()

    def __init__(
        self,
        *,
        network: nn.Module,
        path: VarianceExploding,
        times: Times,
        loss: ConsistencyLoss,
        sampling: ConsistencyOptions,
        sigma_data: float | str,
        ratio: float,
        stage: NumImages | None,
        image_size: int | Sequence[int],
        channels: int,
    ) -> None:
        super().__init__()
        if not ratio > 1:
            raise ValueError(f"ratio={ratio} must be above 1")
        if stage is not None and stage < 1:
            raise ValueError(f"stage={stage} must be one image or more, or null for a single stage")
        if not isinstance(path, VarianceExploding):
            raise ConfigError(
                f"path={type(path).__name__} does not work with this method: choose VarianceExploding", key="path"
            )
        require_network_settings(network, {"num_times": 1, "augment_dim": 0})
        self.denoiser = Denoiser(network, path, "edm", sigma_data)
        self.measures_data = self.denoiser.measures_data
        self.times, self.loss = times, loss
        self.gap = 1.0 / ratio if stage is None else _Stages(ratio, stage)
        self.shape = (channels, *height_width(image_size))
        self._read_conditions(shared_encoder(network=network))
        self.batch_keys = (*self.batch_keys, "noise_key")
        self._sampling = sampling
        self._has_dropout = any(map(_drops, network.modules()))
        try:
            times.check(path)
        except ValueError as error:
            raise ConfigError(f"times do not fit the path: {error}", key="times") from error

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"denoiser": list(self.denoiser.parameters())}

    def shardable_networks(self) -> tuple[str, ...]:
        return ("denoiser",)

    def set_data_statistics(self, images: Tensor) -> None:
        """Set sigma_data, if it is ``auto``, to the standard deviation of images [N, C, H, W] in [-1, 1]."""
        self.denoiser.measure(images)

    # Training

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("denoiser", self._loss, batch)

    def earlier(self, time: Tensor) -> Tensor:
        """Return the smaller times r for times t [N] in the current stage."""
        return time * (1.0 - (1.0 + _SHARPNESS * torch.sigmoid(-time)) * self.gap).clamp(min=0.0)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        image, key, condition = batch["image"].float(), batch["noise_key"], self._condition(batch)
        noise = normal(mixed_keys(key, NOISE), image.shape[1:])
        time = self.times.at(mixed_keys(key, TIME), self.denoiser.path)
        earlier = self.earlier(time)
        target = self._target(image, noise, time, earlier, condition)
        estimate = self.denoiser.estimate(self.denoiser.mixed(image, noise, time), time, condition)
        distance = self.loss.of_images(estimate, target)
        loss = (distance / (time - earlier)).mean()
        return loss, {"loss/consistency": loss.detach(), "loss/distance": distance.detach().mean()}

    def _target(self, image: Tensor, noise: Tensor, time: Tensor, earlier: Tensor, condition: Tensor) -> Tensor:
        """Return the estimates [N, C, H, W] at the smaller times, without a graph; the images where these are 0."""
        is_image = earlier == 0.0
        safe = torch.where(is_image, time, earlier)  # avoids ln 0, because the network receives ln r
        # Both passes have the same dropout mask. Geng et al. 2024, section 3.
        same_mask = StreamPosition(image.device).repeated() if self._has_dropout else nullcontext()
        with same_mask, torch.no_grad():
            estimate = self.denoiser.estimate(self.denoiser.mixed(image, noise, safe), safe, condition)
        return torch.where(is_image[:, None, None, None], image, estimate)

    def check(self, batch: Batch) -> None:
        with torch.no_grad(), eval_mode(self.denoiser):
            image = batch["image"]
            batch = self._with_conditions(image) | {"noise_key": torch.arange(len(image), device=image.device)}
            time = self.times.at(batch["noise_key"], self.denoiser.path)
            require_shape("network", self.denoiser(image, time, self._condition(batch)), image, "the data's images")
            self._loss(batch)

    # Sampling

    @property
    def sampling_options(self) -> ConsistencyOptions:
        return self._sampling

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw the noise at the start, as flat ``latent``, and the keys of the noise of the second step."""
        keys = keys_of(seed, Stream.PIXEL_NOISE, np.asarray(indices, dtype=np.int64))
        latent = normal_latents(seed, indices, math.prod(self.shape))
        return {"latent": latent, "noise_key": torch.from_numpy(keys.view(np.int64))} | self._draw_conditions(indices, seed)

    def check_options(self, options: ConsistencyOptions) -> None:
        if options.middle is not None and not options.middle < self.denoiser.path.end:
            raise ConfigError(
                f"middle={options.middle:g} must be below {self.denoiser.path.end:g}, the noise at the start", key="middle"
            )

    @torch.no_grad()
    def sample(self, batch: Batch, options: ConsistencyOptions | None = None) -> Tensor:
        options, condition = options or self.sampling_options, self._condition(batch)
        noise = batch["latent"].view(-1, *self.shape)
        with eval_mode(self.denoiser):
            image = self._estimate(torch.zeros_like(noise), noise, self.denoiser.path.end, condition)
            if options.steps == 2:
                middle = _MIDDLE if options.middle is None else float(options.middle)
                image = self._estimate(image, normal(mixed_keys(batch["noise_key"], NOISE), self.shape), middle, condition)
        return image.clamp(-1.0, 1.0)

    def _estimate(self, image: Tensor, noise: Tensor, sigma: float, condition: Tensor) -> Tensor:
        time = sigma * torch.ones_like(noise[:, 0, 0, 0])  # not ``full``, which would fix an exported program's batch size
        return self.denoiser.estimate(image + sigma * noise, time, condition)

    # Previews

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples with the default options."""
        return {"samples": self._sample_by_class(drawn)}
