"""Diffusion and flow matching: a network that removes noise from images, and samplers that use it step by step.

Ho et al. 2020 (DDPM), Karras et al. 2022 (EDM), Lipman et al. 2023 and Liu et al. 2023 (flow matching) differ only in the path
from image to noise, in what the network predicts, and in the noise levels that it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.diffusion.bridges import Bridge
from genimg.diffusion.denoiser import Denoiser
from genimg.diffusion.noise import KEPT, NOISE, TIME, normal, state_type
from genimg.diffusion.paths import Path
from genimg.diffusion.reverse import UniformDequantisation, log_density, to_noise
from genimg.diffusion.times import Times
from genimg.errors import ConfigError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.base import Update, require_shape
from genimg.methods.conditional import ConditionalMethod, condition_ports, exported_condition, shared_encoder
from genimg.methods.diffusion_export import denoiser_spec
from genimg.methods.diffusion_guidance import check_negative, negative_condition, plain_estimate
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.diffusion_sampling import check_options, generate, quick
from genimg.methods.diffusion_training import DenoisingObjective, require_network_settings
from genimg.methods.export_spec import ExportSpec, Port
from genimg.methods.labelled_augment import LabelledAugment
from genimg.methods.modes import eval_mode
from genimg.methods.options import OtherModel
from genimg.networks.magnitude_preserving_unet import NormalisedLayer, Uncertainty
from genimg.types import Batch, Metrics, Microbatches, Progress, height_width
from genimg.utils.mounting import mounting
from genimg.utils.rng import Stream, keys_of, mixed_keys, normal_latents, subkeys, uniform_numbers

_PREVIEW_ROWS = 8
_ODE_STEPS = 100  # from an image to noise


class Diffusion(ConditionalMethod):
    """A network trained to separate images from Gaussian noise.

    Noise, time and dropped condition of a training sample depend only on the seed and its position in training, not on the
    number of microbatches or processes.

    Args:
        network: Network, (x_t [N, C, H, W], time [N], condition, keep [N] or None) -> prediction [N, C, H, W], with an encoder
            ``condition``. Where ``keep`` is 0, it must ignore the condition.
        path: Path from image to noise.
        prediction: What the network predicts: ``noise``, ``data``, ``v``, ``velocity`` or ``edm``.
        times: Distribution of the times in training.
        loss: Weighted squared error of the prediction.
        sampler: Default options of sampling.
        sigma_data: Standard deviation of the data for ``edm``, or ``auto`` to measure it before training; None for others.
        condition_dropout: Probability of training without the condition, from 0 to below 1, which guidance needs.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.
        augment: Augmentation of the training images; its number of labels must be the network's ``augment_dim``. None omits it.
        uncertainty: Network that learns the expected error at each time, see ``DenoisingObjective``; None for none.

    Raises:
        ValueError: If the parts are incompatible or a number is out of range.
    """

    loss_type = DenoisingLoss
    inference_networks = ("denoiser",)
    likelihood_estimator = "ode"

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
        augment: LabelledAugment | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        super().__init__()
        if isinstance(path, Bridge):
            raise ConfigError(
                "path leads from an image to its source, but this method has no sources: choose a path to noise, or an "
                "image-to-image model such as bridge",
                key="path",
            )
        require_network_settings(network, {"num_times": 1})
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout={condition_dropout} must be from 0 to below 1")
        self.denoiser = Denoiser(network, path, prediction, sigma_data)
        self.measures_data = self.denoiser.measures_data
        self.augment, self.uncertainty = augment, uncertainty
        self.objective = DenoisingObjective(self.denoiser, times, loss, augment, uncertainty)
        self._normalised = [layer for layer in self.modules() if isinstance(layer, NormalisedLayer)]
        self.shape = (channels, *height_width(image_size))
        self._read_conditions(shared_encoder(network=network))
        self.condition_dropout = condition_dropout if self.condition_key is not None else 0.0
        self.batch_keys = (*self.batch_keys, "noise_key")
        self._sampler = sampler
        with mounting("sampler", vars(sampler)):
            self.check_options(sampler)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        parts = [self.denoiser] if self.uncertainty is None else [self.denoiser, self.uncertainty]
        return {"denoiser": [parameter for part in parts for parameter in part.parameters()]}

    def shardable_networks(self) -> tuple[str, ...]:
        return ("denoiser",)

    @property
    def path(self) -> Path:
        """Path from image to noise."""
        return self.denoiser.path

    def set_data_statistics(self, images: Tensor) -> None:
        """Set sigma_data, if it is ``auto``, to the standard deviation of images [N, C, H, W] in [-1, 1]."""
        self.denoiser.measure(images)

    # The space in which noise is added and removed: latent diffusion overrides these two methods

    def _encoded(self, batch: Batch) -> Tensor:
        """Return the data to which noise is added, float32 [N, C, H, W]: here the images themselves."""
        return batch["image"].float()

    def _decoded(self, data: Tensor) -> Tensor:
        """Return the images, in [-1, 1], that correspond to data [N, C, H, W]."""
        return data.clamp(-1.0, 1.0)

    def _given_noise(self, batch: Batch) -> Tensor | None:
        """Return the noise of training samples, float32 [N, C, H, W], if the batch has it; None to draw it.

        Reflow overrides this method.
        """
        return None

    # Training

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        metrics = update("denoiser", self._loss, batch)
        for layer in self._normalised:
            layer.normalise()
        return metrics

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        key, keep = batch["noise_key"], None
        if self.condition_dropout:
            keep = uniform_numbers(mixed_keys(key, KEPT), ()) >= self.condition_dropout
        loss = self.objective.losses(
            self._encoded(batch), key, self._condition(batch), keep, noise=self._given_noise(batch)
        ).mean()
        return loss, {"loss/denoising": loss.detach()}

    @property
    def denoising_description(self) -> str:
        return self.objective.description

    def denoising_loss(self, batch: Batch, quantile: float, keys: NDArray[np.uint64]) -> Tensor:
        image, times = self._encoded(batch), self.objective.times
        noise = self._given_noise(batch)
        if noise is None:
            noise = normal(torch.from_numpy(keys.view(np.int64)).to(image.device), image.shape[1:])
        time = torch.full((len(image),), times.quantile(quantile, self.path), device=image.device)
        objective = replace(self.objective, denoiser=self.denoiser)  # an average has the objective of the trained network
        with eval_mode(self.denoiser):
            return objective.losses_at(image, noise, time, self._condition(batch), None)

    def check(self, batch: Batch) -> None:
        with torch.no_grad(), eval_mode(self.denoiser):
            image = batch["image"]
            batch = batch | self._with_conditions(image) | {"noise_key": torch.arange(len(image), device=image.device)}
            data, time = self._encoded(batch), self.objective.times.at(batch["noise_key"], self.path)
            require_shape("network", self.denoiser(data, time, self._condition(batch)), data, "the data's images")
            self._loss(batch)

    # Sampling

    @property
    def sampling_options(self) -> DiffusionOptions:
        return self._sampler

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw the noise at the start, as flat ``latent``, and the keys of the noise that samplers add."""
        keys = keys_of(seed, Stream.PIXEL_NOISE, np.asarray(indices, dtype=np.int64))
        latent = normal_latents(seed, indices, math.prod(self.shape))
        return {"latent": latent, "noise_key": torch.from_numpy(keys.view(np.int64))} | self._draw_conditions(indices, seed)

    def noise_of(self, drawn: Batch) -> Tensor:
        return drawn["latent"].view(-1, *self.shape)

    def check_options(self, options: DiffusionOptions) -> None:
        unguided, negative = None, options.negative
        if options.autoguidance is not None:
            self._check_guide(options.autoguidance)
        elif negative is not None:
            check_negative(negative, self.condition_key, self.num_classes)
        elif not self.condition_dropout:
            unguided = "reads no condition" if self.condition_key is None else "was trained without condition_dropout"
        guides = "autoguidance, a weaker model"
        if self.condition_key is not None:
            guides = f"negative, another {'class' if self.num_classes else 'caption'}, or {guides}"
        check_options(options, self.path, unguided=unguided, guides=guides)

    def _check_guide(self, other: OtherModel) -> None:
        guide, what = other.method, f"autoguidance={other}"
        if not isinstance(guide, Diffusion):
            raise ConfigError(f"{what} is a {type(guide).__name__}: give a diffusion or flow-matching model")
        for name, own, its in (
            ("image shape", self.shape, guide.shape),
            ("condition", self.condition_key or "none", guide.condition_key or "none"),
            ("number of classes", self.num_classes, guide.num_classes),
        ):
            if own != its:
                raise ConfigError(f"{what} has {name} {its}, but this model has {own}: give a model of the same data")
        if not guide.path.has_times_of(self.path):
            raise ConfigError(f"{what} does not have this model's path from image to noise: give a model with the same path")

    @torch.no_grad()
    def sample(self, batch: Batch, options: DiffusionOptions | None = None) -> Tensor:
        options = options or self.sampling_options
        noise, condition = batch["latent"].view(-1, *self.shape), self._condition(batch)
        negative, weaker = None, None
        if options.negative is not None:
            condition = self._fit(condition)
            negative = negative_condition(options.negative, condition)
        if options.autoguidance is not None:
            guide = options.autoguidance.method
            assert isinstance(guide, Diffusion)
            weaker = plain_estimate(guide.denoiser, condition)
        return self._decoded(
            generate(self.denoiser, options, noise, batch["noise_key"], condition, negative=negative, weaker=weaker)
        )

    @torch.no_grad()
    def locate(self, image: Tensor, drawn: Batch) -> Batch:
        """Return the noise to which the ODE maps an image; samplers of the ODE lead from it back to the image."""
        given = {key: value[:1] for key, value in drawn.items() if key == self.condition_key}
        denoise = plain_estimate(self.denoiser, self._condition({"image": image} | given))
        with eval_mode(self.denoiser):
            noise = to_noise(self.path, _ODE_STEPS, denoise, self._encoded({"image": image}).to(state_type(image)))
        return {"latent": noise.float().flatten(1)}

    def perturb(self, located: Batch, drawn: Batch, spread: float) -> Batch:
        """Mix the image's noise with the drawn noise, to unit variance."""
        noise = located["latent"]
        return drawn | {"latent": (noise + spread * drawn["latent"].to(noise.device)) / math.sqrt(1.0 + spread**2)}

    @property
    def label_translation_options(self) -> DiffusionOptions:
        """Heun's method, with as many steps as ``near=`` takes from an image to noise."""
        return DiffusionOptions(sampler="heun", steps=min(_ODE_STEPS, self.path.num_levels or _ODE_STEPS))

    @torch.no_grad()
    def translate_labels(self, image: Tensor, source: int, target: int, options: DiffusionOptions | None = None) -> Tensor:
        """Follow the ODE of the source class to noise, and then that of the target class to an image.

        This is DDIB: Su et al. 2023, algorithm 1.
        """
        options = options or self.label_translation_options
        start, end = (torch.full((len(image),), label, device=image.device) for label in (source, target))
        encoded = self._encoded({"image": image}).to(state_type(image))
        with eval_mode(self.denoiser):
            noise = to_noise(self.path, options.steps, plain_estimate(self.denoiser, start), encoded)
        return self.sample({"latent": noise, "noise_key": torch.zeros_like(start), "label": end}, options)

    @property
    def likelihood(self) -> UniformDequantisation:
        return UniformDequantisation(_ODE_STEPS)

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, num_samples: int, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Bound ln P of the images' levels by the probability-flow ODE: the mean over ``num_samples`` dequantisations."""
        image, levels, found = batch["image"], self.likelihood, []
        denoise = plain_estimate(self.denoiser, self._condition(batch))
        with eval_mode(self.denoiser):
            for number in range(num_samples):
                own = torch.from_numpy(subkeys(keys, np.array([number])).view(np.int64)).to(image.device)
                uniform = uniform_numbers(mixed_keys(own, NOISE), self.shape)
                signs = (uniform_numbers(mixed_keys(own, TIME), self.shape) < 0.5).to(state_type(image)) * 2.0 - 1.0
                noisy = levels.dequantised(image, uniform).to(signs.dtype)
                found.append(log_density(self.path, _ODE_STEPS, denoise, noisy, signs))
        return {"log_likelihood": levels.log_probability(torch.stack(found, dim=1).mean(dim=1), math.prod(self.shape))}

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export one evaluation of the denoiser; the steps of the default sampler are part of the record."""

        def images(parts: Any, batch: Batch) -> Tensor:
            condition = exported_condition(batch, batch["time"][:, None])
            return parts.denoiser.estimate(batch["noisy"], batch["time"], condition)

        state = Port("noisy", torch.float32, ("batch", *self.shape), "scale * image + sigma * noise", torch.randn)
        return denoiser_spec(
            self, self.sampling_options, images, state, *condition_ports(self.denoiser.network),
            what="the clean image from a noisy one, without guidance",
        )  # fmt: skip

    # Previews

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples, and images beside their mixtures with more and more noise, each with its denoised form."""
        batch = {key: value[:_PREVIEW_ROWS] for key, value in batch.items()}
        image, condition = self._encoded(batch), self._condition(batch)
        noise = self._given_noise(batch)
        if noise is None:
            noise = normal(mixed_keys(torch.arange(len(image), device=image.device), NOISE), self.shape)
        columns = [image]
        with eval_mode(self.denoiser):
            for each in reversed(self.path.grid(5, self.path.spacings[0])[1:-1]):
                time = torch.full((len(image),), each, device=image.device)
                noisy = self.denoiser.mixed(image, noise, time)
                columns += [noisy / noisy.std(dim=(1, 2, 3), keepdim=True), self.denoiser.estimate(noisy, time, condition)]
        return {
            "samples": self._sample_by_class(drawn, quick(self.sampling_options)),
            "denoised": self._decoded(torch.stack(columns, dim=1).flatten(0, 1)).unflatten(0, (len(image), len(columns))),
        }
