"""Autoencoders without noise, sampled through a prior or a density fitted to their latents: WAE and RAE.

Tolstikhin et al., "Wasserstein auto-encoders", ICLR 2018, algorithm 2, with a deterministic encoder; Ghosh et al., "From
variational to deterministic autoencoders", ICLR 2020. They differ only in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.regularised_autoencoder import AutoencoderLoss
from genimg.methods.base import Update, require_latent_dim, require_shape
from genimg.methods.conditional import ConditionalMethod, condition_ports, exported_condition, shared_encoder
from genimg.methods.export_spec import ExportSpec, Port, normal_port
from genimg.methods.latent_density import ExportedMixture, LatentDensity
from genimg.methods.latent_pictures import interpolations
from genimg.methods.modes import eval_mode
from genimg.methods.options import LatentOptions
from genimg.networks.conditioning import conditional
from genimg.networks.layers import spectral_normalise
from genimg.types import Batch, Metrics, Microbatches, Progress


class DeterministicAutoencoder(ConditionalMethod):
    """An encoder and a decoder trained on a reconstruction and a penalty, and a density of the latents to sample from.

    Args:
        encoder: Network, (image [N, C, H, W], condition) -> latents [N, 1, Z] or [N, Z], with an encoder ``condition``; any
            other module gets the image alone.
        decoder: Network, (latent [N, Z], condition) -> parameters of the likelihood [N, O, H, W], with an encoder
            ``condition``; any other module gets the latent alone.
        loss: Loss of reconstructions and latents.
        latent_dim: Dimension Z.
        num_components, num_latents: Settings of the density, over all conditions together; see ``LatentDensity``.

    Raises:
        ValueError: If the parts are incompatible, or a number is out of range.
    """

    loss_type = AutoencoderLoss
    inference_networks = ("encoder", "decoder", "loss")  # a likelihood may have parameters
    sampling_options = LatentOptions()

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        loss: AutoencoderLoss,
        latent_dim: int,
        num_components: int,
        num_latents: int,
    ) -> None:
        super().__init__()
        encoder, decoder = conditional("encoder", encoder), conditional("decoder", decoder)
        if loss.normalises_decoder:
            for name, part in decoder.named_children():
                if name != "condition":
                    spectral_normalise(part)
        self.encoder = encoder
        self.decoder = decoder
        self.loss = loss
        require_latent_dim("decoder", decoder, latent_dim, "latent_dim")
        self.density = LatentDensity(latent_dim=latent_dim, num_components=num_components, num_latents=num_latents)
        self._read_conditions(shared_encoder(encoder=encoder, decoder=decoder))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"autoencoder": list(self.parameters())}

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        latents: list[Tensor] = []
        metrics = update("autoencoder", partial(self._loss, latents=latents), batch)
        self.density.add(torch.cat(latents))
        return metrics

    def _loss(self, batch: Batch, *, latents: list[Tensor]) -> tuple[Tensor, Metrics]:
        """Return the loss of a microbatch, and append its latents to ``latents``."""
        batch = self._observed(batch)
        latent = self._encode(batch)
        if torch.is_grad_enabled() and not latent.requires_grad:  # the encoder is frozen; a penalty may need this gradient
            latent.requires_grad_()
        latents.append(latent.detach().clone())
        loss, parts = self.loss(batch["image"], latent, self.decoder, self._condition(batch))
        metrics = {"loss/total": loss.detach()} | {f"loss/{name}": value.detach() for name, value in parts.items()}
        return loss, metrics

    def _encode(self, batch: Batch) -> Tensor:
        """Encode images, as the likelihood observes them, into latents [N, Z]."""
        moments: Tensor = self.encoder(batch["image"], self._condition(batch)).float()
        moments = moments[:, None] if moments.dim() == 2 else moments
        if moments.shape[1:] != (1, self.density.latent_dim):
            raise ConfigError(
                f"encoder returns {' x '.join(map(str, moments.shape[1:]))} numbers for an image, but this model needs 1 for "
                f"each of latent_dim={self.density.latent_dim} latents",
                "set the encoder's moments to 1 and its latent_dim to the model's",
                key="encoder",
            )
        return moments[:, 0]

    # Sampling

    def before_saving(self) -> None:
        """Fit the density, so a checkpoint's density always matches its latents."""
        self.density.fit()

    def before_sampling(self) -> None:
        self.density.fit()

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw latents from the density of the last fit."""
        return {"latent": self.density.at_indices(indices, seed)} | self._draw_conditions(indices, seed)

    def check_options(self, options: LatentOptions) -> None:
        self._truncated(torch.zeros(1, self.density.latent_dim), options)

    def _truncated(self, latent: Tensor, options: LatentOptions) -> Tensor:
        if options.truncation is None:
            return latent
        return self.density.truncated(latent.cpu(), options.truncation).to(latent.device)

    @torch.no_grad()
    def sample(self, batch: Batch, options: LatentOptions | None = None) -> Tensor:
        """Return the likelihood's mean for latents of the density; truncation moves them towards the mean of their Gaussian."""
        latent = self._truncated(batch["latent"], options or self.sampling_options)
        with eval_mode(self):
            return self._decode(latent, self._condition(batch))

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export the decoder with the density fitted to its latents."""
        density, count = self.density, self.density.num_components
        meaning = "uniform numbers in [0, 1), which choose among the Gaussians"
        uniform = (Port("uniform", torch.float32, ("batch",), meaning, torch.rand),) if count > 1 else ()
        mean = self.loss.likelihood.mean

        def images(parts: Any, batch: Batch) -> Tensor:
            latent = parts.density(batch["latent"], batch.get("uniform")) if count else batch["latent"]
            return mean(parts.decoder(latent, exported_condition(batch, latent)).float())

        def reference(batch: Batch) -> Tensor:
            normal = batch["latent"].cpu()
            latent = density.from_normal(normal, batch["uniform"].cpu() if uniform else normal.new_zeros(len(normal)))
            return self.sample(batch | {"latent": latent.to(batch["latent"].device)})

        return ExportSpec(
            name="decoder",
            parts={"decoder": self.decoder} | ({"density": ExportedMixture(density)} if count else {}),
            inputs=(normal_port("latent", density.latent_dim), *uniform, *condition_ports(self.decoder)),
            forward=images,
            reference=reference,
            remarks=(f"it includes the density fitted to the latents, {count} Gaussians",) if count else (),
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Tensor:
        with eval_mode(self):
            return self._decode(self._encode(self._observed(batch)), self._condition(batch))

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        with eval_mode(self):
            return self._encode(self._observed(batch)).float()

    @torch.no_grad()
    def locate(self, image: Tensor, drawn: Batch) -> Batch:
        with eval_mode(self):
            conditions = {key: value[:1] for key, value in drawn.items() if key == self.condition_key}
            return {"latent": self._encode(self._observed({"image": image} | conditions))}

    def perturb(self, located: Batch, drawn: Batch, spread: float) -> Batch:
        """Add the differences of the drawn latents from the density's mean, times ``spread``, to the image's latent."""
        latent = located["latent"]
        return drawn | {"latent": latent + spread * (drawn["latent"].to(latent.device) - self.density.mean())}

    def _observed(self, batch: Batch) -> Batch:
        """Replace the images by those that the encoder and the likelihood see."""
        return batch | {"image": self.loss.likelihood.observed(batch["image"])}

    def _decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        return self.loss.likelihood.mean(self.decoder(latent, condition).float())

    def check(self, batch: Batch) -> None:
        image = batch["image"]
        with torch.no_grad(), eval_mode(self):
            conditions = {key: value.to(image.device) for key, value in self.draw(range(len(image)), 0).items()}
            wanted = image.new_empty(len(image), self.loss.likelihood.num_outputs(image.shape[1]), *image.shape[2:])
            given = conditions | {"image": image}
            decoded = self.decoder(self._encode(self._observed(given)), self._condition(given))
            require_shape("decoder", decoded, wanted, "the likelihood's parameters")
            self._loss(given, latents=[])

    # Previews

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples, inputs with their reconstructions in the next column, and ``interpolations``, one pair per row."""
        condition = self._condition(batch)
        with eval_mode(self):
            latent = self._encode(self._observed(batch))
            pairs = torch.stack([batch["image"], self._decode(latent, condition)], dim=1).flatten(0, 1)
            return {
                "samples": self._sample_by_class(drawn),
                "reconstructions": pairs,
                "interpolations": interpolations(self._decode, latent, condition),
            }
