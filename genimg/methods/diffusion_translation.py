"""Image-to-image diffusion: the target is sampled given its source, so one source has many translations.

Saharia et al. 2022 (Palette, SR3): the network sees the source beside the noisy target. Liu et al. 2023 (I2SB) and Li et al.
2023 (BBDM): the path is a bridge, which leads to the source instead of to noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.diffusion.bridges import Bridge
from genimg.diffusion.denoiser import Denoiser, Source
from genimg.diffusion.noise import NOISE, normal
from genimg.diffusion.paths import Path
from genimg.diffusion.times import Times
from genimg.errors import ConfigError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.base import Update, require_shape
from genimg.methods.diffusion_export import denoiser_spec
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.diffusion_sampling import check_options, generate, quick
from genimg.methods.diffusion_training import DenoisingObjective, require_network_settings
from genimg.methods.export_spec import ExportSpec, Port
from genimg.methods.image_to_image import Translation, in_blocks, side_by_side
from genimg.methods.modes import eval_mode
from genimg.types import Batch, Metrics, Microbatches, Progress, height_width
from genimg.utils.mounting import mounting
from genimg.utils.rng import mixed_keys

_PREVIEW_ROWS, _PREVIEW_SAMPLES = 12, 2


class DiffusionTranslation(Translation):
    """A network trained to separate targets from noise, or from their sources on a bridge, given the sources.

    For inpainting, the loss covers only the missing pixels, and each step of a sampler replaces the known pixels of the
    estimate with the given ones.

    Args:
        network: Network, (x_t and the source's channels [N, T + S, H, W], time [N], condition [N, 0], None) -> prediction
            [N, T, H, W]. On a bridge, its attribute ``source_channels`` may be 0; it then sees only x_t.
        path: Path from the target to noise, or a bridge to the source.
        prediction: What the network predicts: ``noise``, ``data``, ``v``, ``velocity`` or ``edm``; on a bridge ``data``,
            ``difference`` or ``i2sb``.
        times: Distribution of the times in training.
        loss: Weighted squared error of the prediction.
        sampler: Default options of sampling.
        sigma_data: Standard deviation of the targets for ``edm``, or ``auto`` to measure it before training; otherwise None.
        image_size: Size of the targets in pixels, one number or [height, width].
        source_channels: Number S of channels of the sources.
        target_channels: Number T of channels of the targets.
        task: Task of the training data.

    Raises:
        ValueError: If the parts are incompatible or a number is out of range.
    """

    loss_type = DenoisingLoss
    inference_networks = ("denoiser",)
    batch_keys: tuple[str, ...] = ("source", "target")

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
        image_size: int | Sequence[int],
        source_channels: int,
        target_channels: int,
        task: Task,
    ) -> None:
        super().__init__(task)
        require_network_settings(network, {"num_times": 1, "augment_dim": 0})
        self._appends = getattr(network, "source_channels", source_channels) > 0
        if not self._appends and not isinstance(path, Bridge):
            raise ConfigError(
                "network.source_channels=0 hides the source from the network: remove it, or choose a bridge as path",
                key="network.source_channels",
            )
        self.denoiser = Denoiser(network, path, prediction, sigma_data)
        self.measures_data = self.denoiser.measures_data
        self.objective = DenoisingObjective(self.denoiser, times, loss)
        self.size = height_width(image_size)
        self.source_channels, self.target_channels = source_channels, target_channels
        self.batch_keys = (*type(self).batch_keys, "noise_key")
        self._sampler = sampler
        with mounting("sampler", vars(sampler)):
            self.check_options(sampler)

    def translator(self, direction: str | None) -> nn.Module:
        return self.denoiser.network

    def set_mode(self, model_mode: str) -> None:
        if model_mode == "train":
            raise ConfigError("model_mode=train does not apply to a diffusion model, whose noise is random anyway", "remove it")
        super().set_mode(model_mode)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"denoiser": list(self.denoiser.parameters())}

    def shardable_networks(self) -> tuple[str, ...]:
        return ("denoiser",)

    @property
    def path(self) -> Path:
        """Path from the target to noise or to the source."""
        return self.denoiser.path

    def set_data_statistics(self, images: Tensor) -> None:
        """Set sigma_data, if it is ``auto``, to the standard deviation of the targets of images [N, C, H, W] in [-1, 1]."""
        self.denoiser.measure(self.task(images, np.arange(len(images), dtype=np.int64), 0)["target"])

    # Training

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("denoiser", self._loss, batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        target = batch["target"].float()
        source = self._given(batch["source"].float())
        loss = self.objective.losses(target, batch["noise_key"], _no_condition(target), None, source).mean()
        return loss, {"loss/denoising": loss.detach()}

    def _given(self, source: Tensor) -> Source:
        return _source_of(source, self.task, self.target_channels, appends=self._appends, bridges=isinstance(self.path, Bridge))

    def check(self, batch: Batch) -> None:
        with torch.no_grad(), eval_mode(self.denoiser):
            target, source = batch["target"], self._given(batch["source"])
            batch = batch | {"noise_key": torch.arange(len(target), device=target.device)}
            time = self.objective.times.at(batch["noise_key"], self.path)
            output = self.denoiser(target, time, _no_condition(target), source=source)
            require_shape("network", output, target, "the targets")
            self._loss(batch)

    # Translation

    @property
    def sampling_options(self) -> DiffusionOptions:
        return self._sampler

    def check_options(self, options: DiffusionOptions) -> None:
        check_options(options, self.path, unguided="reads no condition but its source")

    @torch.no_grad()
    def translate_randomly(self, source: Tensor, keys: Tensor, options: DiffusionOptions | None = None) -> Tensor:
        given = self._given(source.float())
        noise = normal(mixed_keys(keys, NOISE), (self.target_channels, *source.shape[2:]))
        images = generate(self.denoiser, options or self.sampling_options, noise, keys, _no_condition(noise), source=given)
        return images.clamp(-1.0, 1.0)

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        """Translate sources with fixed random keys, one for each position in the batch."""
        assert direction is None
        return self.translate_randomly(source, mixed_keys(torch.arange(len(source), device=source.device), NOISE))

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export one evaluation of the denoiser; the steps of the default sampler are part of the record."""
        channels, bridges = self.target_channels, isinstance(self.path, Bridge)
        given = partial(_source_of, task=self.task, channels=channels, appends=self._appends, bridges=bridges)

        def images(parts: Any, batch: Batch) -> Tensor:
            source, noisy = given(batch["source"]), batch["noisy"]
            end = 0.0 if source.end is None else source.end
            condition = noisy.new_empty(noisy.shape[0], 0)
            return parts.denoiser.estimate(noisy - end, batch["time"], condition, source=source) + end

        state = "scale * target + (1 - scale) * source + sigma * noise" if bridges else "scale * target + sigma * noise"
        return denoiser_spec(
            self, self.sampling_options, images,
            Port("noisy", torch.float32, ("batch", channels, *self.size), state, torch.randn),
            Port("source", torch.float32, ("batch", self.source_channels, *self.size), "in [-1, 1]", _uniform),
            what="the clean target from a noisy one and the source",
        )  # fmt: skip

    # Previews

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return sources, two translations of each, and targets side by side."""
        source, task = batch["source"][:_PREVIEW_ROWS], self.task
        places, options = torch.arange(len(source), device=source.device), quick(self.sampling_options)
        samples = [self.translate_randomly(source, mixed_keys(places, number), options) for number in range(_PREVIEW_SAMPLES)]
        shown = [task.result(each, source) for each in (*samples, batch["target"][:_PREVIEW_ROWS])]
        return {"translations": in_blocks(side_by_side((task.shown(source), *shown)))}


def _source_of(source: Tensor, task: Task, channels: int, *, appends: bool, bridges: bool) -> Source:
    """Return a source [N, S, H, W] in the forms that the denoiser needs.

    Args:
        source: Sources of the task.
        task: The task.
        channels: Number of channels of the targets.
        appends: Whether the network sees the source beside x_t.
        bridges: Whether the path ends in the source.

    Raises:
        ConfigError: If a bridge cannot end in the source, because the target has other channels.
    """
    missing = task.missing(source)
    end = task.shown(source) if bridges else None
    if end is not None and end.shape[1] == 1 and channels == 3:
        end = end.expand(-1, 3, -1, -1)
    if end is not None and end.shape[1] != channels:
        raise ConfigError(
            f"a bridge cannot lead from targets of {channels} channels to sources of {end.shape[1]}: choose another path, or "
            "data whose two images have the same number of channels",
            key="path",
        )
    return Source(
        appended=source if appends else None,
        end=end,
        known=None if missing is None else task.shown(source),
        missing=missing,
    )


def _no_condition(images: Tensor) -> Tensor:
    return images.new_empty(len(images), 0)


def _uniform(shape: list[int], *, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * 2.0 - 1.0
