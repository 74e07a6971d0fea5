"""Variational autoencoders: Kingma & Welling, "Auto-encoding variational Bayes", ICLR 2014, and Rezende et al. 2014.

Conditions: Sohn, Lee & Yan 2015. Several samples, and hierarchies of latents: Burda et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.elbo import Bound, Inference, gaussian_kl, gaussian_log_density, importance_bound
from genimg.losses.perceptual import PerceptualLoss
from genimg.methods.base import Update, require_latent_dim, require_shape
from genimg.methods.conditional import ConditionalMethod, condition_ports, exported_condition, shared_encoder
from genimg.methods.export_spec import NORMAL, ExportSpec, normal_port
from genimg.methods.latent import truncate
from genimg.methods.latent_pictures import LatentScatter, activity_bars, interpolations, map_of_two, traversals
from genimg.methods.modes import eval_mode
from genimg.methods.options import LatentOptions
from genimg.networks.conditioning import conditional
from genimg.networks.stochastic_layers import StochasticLayer, bounded
from genimg.types import Batch, Metrics, Microbatches, PixelLikelihood, Progress
from genimg.utils.exact import double
from genimg.utils.rng import normal_field, normal_latents, subkeys

_ACTIVE = 0.01  # a latent is active if its mean's variance over the data is above this: Burda et al. 2016, section 5.2


def _truncated(batch: Batch, options: LatentOptions) -> Batch:
    if (limit := options.truncation) is None:
        return batch
    latents = {key: value for key, value in batch.items() if key in ("latent", "noise")}
    return batch | {key: truncate(value, limit) for key, value in latents.items()}


_MAX_DECODED = 4096  # latents decoded at once
_MAX_OUTPUTS = 2**25  # decoder outputs at once, so large images do not fill the memory


class VAE(ConditionalMethod):
    """An encoder and a decoder trained together on a lower bound of log p(x), with a standard normal prior.

    Args:
        encoder: Network, (image [N, C, H, W], condition) -> means and log-variances, [N, 2, Z] or a pair of [N, Z], with an
            encoder ``condition``; any other module gets the image alone.
        decoder: Network, (latent [N, Z], condition) -> parameters of the likelihood [N, O, H, W], with an encoder
            ``condition``; any other module gets the latent alone.
        loss: Bound to train on.
        latent_dim: Dimension Z of the decoder's latents.
        hierarchy: Layers of latents above these, from the lowest to the highest. The latents of the highest have the prior.
        perceptual: Distance of the likelihood's mean from the image, added to the bound with its own weight, in nats.

    Raises:
        ValueError: If the parts are incompatible.
    """

    loss_type = Bound
    inference_networks = ("encoder", "decoder", "hierarchy", "loss")  # a likelihood may have parameters
    sampling_options = LatentOptions()
    likelihood_estimator = "iw"

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        loss: Bound,
        latent_dim: int,
        hierarchy: Sequence[nn.Module],
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__()
        self.encoder = conditional("encoder", encoder)
        self.decoder = conditional("decoder", decoder)
        self.loss = loss
        self._perceptual = (perceptual,)  # not a submodule, so its weights stay out of the checkpoint
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be 1 or more")
        require_latent_dim("decoder", self.decoder, latent_dim, "latent_dim")
        self.latent_dims = [latent_dim]
        for number, layer in enumerate(hierarchy):
            if not isinstance(layer, StochasticLayer):
                raise ValueError(f"hierarchy[{number}] is a {type(layer).__name__}, but must be a StochasticLayer")
            if layer.below != self.latent_dims[-1]:
                raise ValueError(
                    f"hierarchy[{number}].below={layer.below} must be {self.latent_dims[-1]}, the latents below it"
                )
            self.latent_dims.append(layer.latent_dim)
        self.hierarchy = nn.ModuleList(hierarchy)
        self._read_conditions(shared_encoder(encoder=self.encoder, decoder=self.decoder))
        self.scatter = LatentScatter() if self.latent_dims == [2] else None
        if self.scatter is not None:
            self.optional_batch_keys = ("label",)

    @property
    def _above(self) -> list[StochasticLayer]:
        return [cast(StochasticLayer, layer) for layer in self.hierarchy]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"autoencoder": list(self.parameters())}

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("autoencoder", self._loss, batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        batch = self._observed(batch)
        moments = self._moments(batch)
        inference, _, output = self._infer(batch, moments, self.loss.num_samples)
        return self._bound(batch, moments[0], inference, output)

    def _bound(self, batch: Batch, mean: Tensor, inference: Inference, output: Tensor) -> tuple[Tensor, Metrics]:
        """Return the loss and the metrics, given an inference, its latents' means and the decoder's output for its samples."""
        loss, parts = self.loss(inference)
        metrics = {f"loss/{name}": value.detach() for name, value in parts.items()}
        if (perceptual := self._perceptual[0]) is not None:
            image = batch["image"].repeat_interleave(self.loss.num_samples, 0)
            distance = perceptual(self.loss.likelihood.mean(output), image)
            loss = loss + distance
            metrics["loss/perceptual"] = distance.detach()
        if self.scatter is not None and self.training:
            self.scatter.add(mean.detach(), batch.get("label"))
        if len(mean) > 1:
            metrics["latent/active_units"] = (mean.detach().var(dim=0) > _ACTIVE).sum().float()
        return loss, {"loss/total": loss.detach()} | metrics

    def _observed(self, batch: Batch) -> Batch:
        """Replace the images by those that the encoder and the likelihood see."""
        return batch | {"image": self.loss.likelihood.observed(batch["image"])}

    def _moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, Z] of q(z | x), the latter within bounds, for observed images.

        Raises:
            ConfigError: If the encoder's output has another shape.
        """
        given = self.encoder(batch["image"], self._condition(batch))
        moments: Tensor = (torch.stack(tuple(given), dim=1) if isinstance(given, tuple | list) else given).float()
        if moments.shape[1:] != (2, self.latent_dims[0]):
            raise ConfigError(
                f"encoder returns {' x '.join(map(str, moments.shape[1:]))} numbers for an image, but a VAE needs a mean and a "
                f"log-variance for each of latent_dim={self.latent_dims[0]} latents",
                "set the encoder's moments to 2 and its latent_dim to the model's",
                key="encoder",
            )
        mean, log_variance = moments.unbind(1)
        return mean, bounded(log_variance)

    def _infer(
        self, batch: Batch, moments: tuple[Tensor, Tensor], num_samples: int, noise: Tensor | None = None
    ) -> tuple[Inference, Tensor, Tensor]:
        """Sample the latents of a batch's images and decode them.

        Args:
            batch: Batch with images as the likelihood observes them.
            moments: Moments of these images.
            num_samples: Number K of samples per image.
            noise: Standard normal numbers [N K, sum of all Z], with an image's samples in consecutive rows; None draws random
                numbers.

        Returns:
            The cost of the samples, the lowest latents [N K, Z], and the decoder's output for them [N K, O, H, W].
        """
        image, count = batch["image"], len(batch["image"])
        mean, log_variance = (moment.repeat_interleave(num_samples, 0) for moment in moments)
        pieces = [None] * len(self.latent_dims) if noise is None else noise.split(self.latent_dims, dim=1)
        latents: list[Tensor] = []
        posteriors: list[tuple[Tensor, Tensor]] = []
        for level, piece in enumerate(pieces):
            if level:
                mean, log_variance = self._above[level - 1].infer(latents[-1])
            # The reparametrisation trick: equation 10 of the paper.
            latents.append(mean + (0.5 * log_variance).exp() * (torch.randn_like(mean) if piece is None else piece))
            posteriors.append((mean, log_variance))
        kl, ratios = [], []
        for level, (latent, (mean, log_variance)) in enumerate(zip(latents, posteriors, strict=True)):
            top = level == len(latents) - 1
            zero = torch.zeros_like(latent)
            prior = (zero, zero) if top else self._above[level].generate(latents[level + 1])
            ratio = gaussian_log_density(latent, mean, log_variance) - gaussian_log_density(latent, *prior)
            # Below the top, the prior depends on a sample that depends on this one, so there is no closed form.
            kl.append((gaussian_kl(mean, log_variance) if top else ratio).unflatten(0, (count, num_samples)))
            ratios.append(ratio.sum(dim=1).unflatten(0, (count, num_samples)))
        repeated = {key: value.repeat_interleave(num_samples, 0) for key, value in batch.items()}
        output = self.decoder(latents[0], self._condition(repeated)).float()
        nats = self.loss.likelihood.negative_log_likelihood(output, repeated["image"])
        total = torch.stack(ratios).sum(dim=0)
        inference = Inference(nats.unflatten(0, (count, num_samples)), kl, total, image[0].numel())
        return inference, latents[0], output

    # Sampling

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw the highest latents and, as ``noise``, standard normal numbers for those below."""
        *lower, top = self.latent_dims
        numbers = normal_latents(seed, indices, top + sum(lower))
        noise = {"noise": numbers[:, top:]} if lower else {}
        return {"latent": numbers[:, :top], **noise} | self._draw_conditions(indices, seed)

    def check_options(self, options: LatentOptions) -> None:
        _truncated({"latent": torch.zeros(1, 1)}, options)

    @torch.no_grad()
    def sample(self, batch: Batch, options: LatentOptions | None = None) -> Tensor:
        """Return the likelihood's mean for latents of the prior, without pixel noise, as is usual.

        Options truncate all latents, including those of a hierarchy.
        """
        batch = _truncated(batch, options or self.sampling_options)
        with eval_mode(self):
            return self._decode(self._descend(batch["latent"], batch.get("noise")), self._condition(batch))

    def _descend(self, latent: Tensor, noise: Tensor | None) -> Tensor:
        """Map the highest latents [N, Z'] to the lowest [N, Z], by standard normal numbers for the layers in between."""
        return _descended(self._above, latent, noise)

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export the decoder with the hierarchy above it."""
        *lower, top = self.latent_dims
        noise = (normal_port("noise", sum(lower), f"{NORMAL} for the latents below; 0 for their means"),) if lower else ()
        mean = self.loss.likelihood.mean  # the likelihood's parameters describe the noise around it

        def images(parts: Any, batch: Batch) -> Tensor:
            latent = _descended(list(parts.hierarchy), batch["latent"], batch.get("noise"))
            return mean(parts.decoder(latent, exported_condition(batch, latent)).float())

        return ExportSpec(
            name="decoder",
            parts={"decoder": self.decoder, "hierarchy": self.hierarchy},
            inputs=(normal_port("latent", top), *noise, *condition_ports(self.decoder)),
            forward=images,
            reference=self.sample,
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        """Decode the mean of q(z | x): [N, C, H, W] in [-1, 1]."""
        with eval_mode(self):
            return self._decode(self._moments(self._observed(batch))[0], self._condition(batch))

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Return the mean of q(z | x): [N, Z]; in a hierarchy, that of the lowest layer."""
        with eval_mode(self):
            return self._moments(self._observed(batch))[0].float()

    @torch.no_grad()
    def locate(self, image: Tensor, drawn: Batch) -> Batch:
        """Return the mean of q(z | x); in a hierarchy, that of the top and the noise of each layer below it."""
        with eval_mode(self):
            conditions = {key: value[:1] for key, value in drawn.items() if key == self.condition_key}
            latents = [self._moments(self._observed({"image": image} | conditions))[0]]
            for layer in self._above:
                latents.append(layer.infer(latents[-1])[0])
            located = {"latent": latents[-1]}
            if self.hierarchy:
                pieces = []
                for layer, below, latent in zip(self._above, latents[:-1], latents[1:], strict=True):
                    mean, log_variance = layer.generate(latent)
                    pieces.append((below - mean) * (-0.5 * log_variance).exp())  # the noise that yields ``below``
                located["noise"] = torch.cat(pieces, dim=1)
        return located

    def perturb(self, located: Batch, drawn: Batch, spread: float) -> Batch:
        return drawn | {key: value + spread * drawn[key].to(value.device) for key, value in located.items()}

    def _decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        return self.loss.likelihood.mean(self.decoder(latent, condition).float())

    # Evaluation

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, num_samples: int, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Compute equation 8 of Burda et al. 2016, with noise from (key, sample number) and sums over samples in float64."""
        with eval_mode(self):
            batch = self._observed(batch)
            moments, count = self._moments(batch), len(keys)
            channels, height, width = batch["image"].shape[1:]
            outputs = self.loss.likelihood.num_outputs(channels) * height * width
            each = max(1, min(_MAX_DECODED, _MAX_OUTPUTS // outputs) // count)
            weights, reconstruction, kl = [], [], []
            for start in range(0, num_samples, each):
                numbers = np.arange(start, min(start + each, num_samples), dtype=np.int64)
                noise = normal_field(subkeys(keys, numbers), (sum(self.latent_dims),), batch["image"].device)
                found, _, _ = self._infer(batch, moments, len(numbers), noise)
                weights.append(double(found.log_weights))
                reconstruction.append(double(found.negative_log_likelihood))
                kl.append(sum((double(layer).sum(dim=2) for layer in found.kl), torch.zeros_like(weights[-1])))
            nats, divergence = torch.cat(reconstruction, dim=1).mean(dim=1), torch.cat(kl, dim=1).mean(dim=1)
        return {
            "log_likelihood": importance_bound(torch.cat(weights, dim=1)),
            "elbo": -(nats + divergence),
            "reconstruction": nats,
            "kl": divergence,
        }

    @property
    def likelihood(self) -> PixelLikelihood:
        return self.loss.likelihood

    def check(self, batch: Batch) -> None:
        with torch.no_grad(), eval_mode(self):
            batch = self._with_conditions(batch["image"])
            image = batch["image"]
            wanted = image.new_empty(len(image), self.loss.likelihood.num_outputs(image.shape[1]), *image.shape[2:])
            latent, _ = self._moments(self._observed(batch))
            require_shape("decoder", self.decoder(latent, self._condition(batch)), wanted, "the likelihood's parameters")
            self._loss(batch)

    # Previews

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return prior samples, inputs as the encoder sees them beside their reconstructions, and pictures of the latents.

        ``traversals``: one latent per row, the most active first, from -3 to 3; the others are those of the first image.
        ``interpolations``: one pair of images per row.
        ``active_units``: a bar for the variance of every latent's mean over the images, on a log scale, with a line at the
        threshold of active latents.
        With two latents, ``latent_map``: images at equal shares of the prior, and ``latent_scatter``: recent training images,
        by class.
        """
        condition = self._condition(batch)
        with eval_mode(self):
            batch = self._observed(batch)
            mean, _ = self._moments(batch)
            pairs = torch.stack([batch["image"], self._decode(mean, condition)], dim=1).flatten(0, 1)
            pictures = {
                "samples": self._sample_by_class(drawn),
                "reconstructions": pairs,
                "traversals": traversals(self._decode, mean, condition),
                "interpolations": interpolations(self._decode, mean, condition),
            }
            if len(mean) > 1:
                pictures["active_units"] = activity_bars(mean.var(dim=0), _ACTIVE)
            if self.scatter is not None:
                pictures["latent_map"] = map_of_two(self._decode, mean, condition)
                pictures["latent_scatter"] = self.scatter.picture()
        return pictures


def _descended(hierarchy: Sequence[StochasticLayer], latent: Tensor, noise: Tensor | None) -> Tensor:
    """Map the highest latents [N, Z'] to the lowest [N, Z], by standard normal numbers for the layers in between."""
    if noise is not None:
        pieces = noise.split([layer.below for layer in hierarchy], dim=1)
        for layer, piece in zip(reversed(hierarchy), reversed(pieces), strict=True):
            mean, log_variance = layer.generate(latent)
            latent = mean + (0.5 * log_variance).exp() * piece
    return latent
