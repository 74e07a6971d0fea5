"""The autoencoder of latent diffusion: Rombach et al., "Latent diffusion models", CVPR 2022, section 3.1 and appendix G.

Its latents form a grid. The penalty that draws them towards N(0, 1) is slight, so N(0, 1) cannot serve as a prior for sampling:
models such as ``LatentDiffusion`` learn the distribution of the latents instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.elbo import gaussian_kl
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.base import Method, Update, errors_of, require_shape
from genimg.methods.export_spec import ExportSpec, Port
from genimg.methods.latent_space import KLSpace
from genimg.methods.modes import eval_mode
from genimg.networks.stochastic_layers import bounded
from genimg.schedules import Number, Scheduled, is_positive, is_within, shown
from genimg.types import Batch, Metrics, Microbatches, Progress, height_width
from genimg.utils.durations import NumImages
from genimg.utils.rng import normal_numbers

_LARGEST_RATIO = 1e4  # limits of the adaptive weight, as in the authors' code
_SMALLEST_NORM = 1e-4


class Adversary(nn.Module):
    """A patch discriminator for reconstructions, with its losses.

    Args:
        discriminator: Constructor of the network, image [N, C, H, W] -> list of patch logits. It receives ``target_channels``.
        loss: Pair of losses.
        weight: Weight of the autoencoder's adversarial loss. At 1, the gradient of this loss with respect to the weights of
            the decoder's last layer is as large as that of the reconstruction loss.
        start: Number of images seen from which on the discriminator is trained and used.
        channels: Number of channels of the images.

    Raises:
        ValueError: If the weight is not above 0, or the loss is relativistic.
    """

    needed_in_training_only = True

    weight = Scheduled()

    def __init__(
        self,
        *,
        discriminator: Callable[..., nn.Module],
        loss: AdversarialLoss,
        weight: Number,
        start: NumImages,
        channels: int,
    ) -> None:
        super().__init__()
        if not is_positive(weight):
            raise ValueError(f"weight={shown(weight)} must be above 0: for no discriminator, set the adversary to null")
        if loss.relativistic:
            raise ValueError("loss must not be relativistic, because each reconstruction is judged on its own")
        self.discriminator = discriminator(target_channels=channels)
        self.loss = loss
        self.weight = weight
        self.start = start

    def of_autoencoder(self, reconstruction: Tensor) -> Tensor:
        """Return the autoencoder's adversarial loss, a scalar, for reconstructions [N, C, H, W]."""
        return torch.stack([self.loss.generator(scale.float()) for scale in self.discriminator(reconstruction)]).mean()

    def of_discriminator(self, image: Tensor, reconstruction: Tensor) -> tuple[Tensor, Metrics]:
        """Return the discriminator's loss, a scalar, and metrics for images and reconstructions [N, C, H, W]."""
        # Separate passes, because batch norm must not mix the statistics of real and fake images.
        real, fake = ([scale.float() for scale in self.discriminator(each)] for each in (image, reconstruction))
        loss = torch.stack([self.loss.discriminator(*pair) for pair in zip(real, fake, strict=True)]).mean()
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": real[0].detach().mean(),
            "logits/reconstruction": fake[0].detach().mean(),
        }


class KLAutoencoder(Method):
    """An encoder into Gaussian latents on a grid, and a decoder, trained to reconstruct images.

    The loss is the sum of the reconstruction loss, the weighted KL divergence from N(0, 1) in nats per value of the image, and
    an adversarial loss if there is an adversary. The weight of the adversarial loss is adaptive (equation 7 of Esser et al.
    2021): it contains the ratio of the norms of the two losses' gradients with respect to the decoder's last weights, at most
    10,000. This ratio depends on the microbatch, so with an adversary, a run with accumulation differs slightly from one
    without. The noise of the latents depends only on the seed and the sample's position in training.

    Args:
        encoder: Network, image [N, C', H, W] -> means and log-variances [N, 2 C, h, w].
        decoder: Network, latent [N, C, h, w] -> image.
        loss: Distance of the reconstruction from the image; its masks are not used.
        kl_weight: Weight of the KL divergence, 0 or more.
        adversary: Discriminator of reconstructions; None for no adversarial loss.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.

    Raises:
        ValueError: If a setting is out of range.
    """

    loss_type = ReconstructionLoss
    inference_networks = ("encoder", "decoder")
    latent_space = KLSpace
    batch_keys = ("image", "noise_key")
    kl_weight = Scheduled()

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        loss: ReconstructionLoss,
        kl_weight: Number,
        adversary: Adversary | None,
        image_size: int | Sequence[int],
        channels: int,
    ) -> None:
        super().__init__()
        if not is_within(kl_weight, 0):
            raise ValueError(f"kl_weight={shown(kl_weight)} must be 0 or more")
        self.encoder = encoder
        self.decoder = decoder
        self.loss = loss
        self.kl_weight = kl_weight
        self.adversary = adversary
        self.shape = (channels, *height_width(image_size))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}
        return groups if self.adversary is None else groups | {"discriminator": list(self.adversary.parameters())}

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        judged = self.adversary if self.adversary is not None and progress.reached(self.adversary.start) else None
        batch, metrics = update.through("autoencoder", self._reconstruct, partial(self._loss, adversary=judged), batch)
        return metrics if judged is None else metrics | update("discriminator", self._discriminator_loss, batch)

    def _reconstruct(self, batch: Batch) -> Batch:
        mean, log_variance = self._moments(batch["image"])
        noise = normal_numbers(batch["noise_key"], mean.shape[1:])
        latent = mean + (0.5 * log_variance).exp() * noise
        # A compiled decoder's graph can be differentiated only once; the adaptive weight needs it several times.
        decode = self.decoder if self.adversary is None else self.decoder.forward
        return {"mean": mean, "log_variance": log_variance, "reconstruction": decode(latent).float()}

    def _moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, C, h, w] of q(z | x), the latter within bounds.

        Raises:
            ConfigError: If the encoder's output is not a grid with an even number of channels.
        """
        moments: Tensor = self.encoder(image)
        if moments.dim() != 4 or moments.shape[1] % 2:
            raise ConfigError(
                f"encoder returns {list(moments.shape)}, but must return means and log-variances, [N, 2 C, h, w]",
                key="encoder",
            )
        mean, log_variance = moments.float().chunk(2, dim=1)
        return mean, bounded(log_variance)

    def _loss(self, batch: Batch, *, adversary: Adversary | None) -> tuple[Tensor, Metrics]:
        image, output, mean = batch["image"], batch["reconstruction"], batch["mean"]
        reconstruction, metrics = self.loss.with_metrics(output, image)
        kl = gaussian_kl(mean, batch["log_variance"]).flatten(1).sum(dim=1).mean()
        loss = reconstruction + self.kl_weight / image[0].numel() * kl
        metrics |= {"loss/kl": kl.detach(), "latent/std": mean.detach().std()}
        if adversary is not None:
            adversarial = adversary.of_autoencoder(output)
            ratio = self._ratio(reconstruction, adversarial, output)
            loss = loss + adversary.weight * ratio * adversarial
            metrics |= {"loss/adversarial": adversarial.detach(), "loss/adversarial_weight": adversary.weight * ratio}
        return loss, {"loss/total": loss.detach()} | metrics

    def _ratio(self, reconstruction: Tensor, adversarial: Tensor, output: Tensor) -> Tensor:
        """Return the adaptive weight: the ratio of two losses' gradient norms with respect to the decoder's last weights.

        If all of these are frozen, the gradients are those with respect to the decoder's output.
        """
        weights = [parameter for parameter in self.decoder.parameters() if parameter.dim() > 1 and parameter.requires_grad]
        last = weights[-1] if weights else output
        ours, theirs = (torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (reconstruction, adversarial))
        return (ours / (theirs + _SMALLEST_NORM)).clamp(max=_LARGEST_RATIO).detach()

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert self.adversary is not None
        return self.adversary.of_discriminator(batch["image"], batch["reconstruction"])

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Return the means of q(z | x), float32 [N, C, h, w]."""
        with eval_mode(self.encoder):
            return self._moments(batch["image"])[0]

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents [N, C, h, w] into images [N, C', H, W] in [-1, 1]."""
        with eval_mode(self.decoder):
            return self.decoder(latent).float().clamp(-1.0, 1.0)

    def reconstruct(self, batch: Batch) -> Tensor:
        return self.decode(self.encode(batch))

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export the decoder."""
        device = next(self.encoder.parameters()).device
        latent = self.encode({"image": torch.zeros(1, *self.shape, device=device)})

        def images(parts: Any, batch: Batch) -> Tensor:
            return parts.decoder(batch["latent"]).float()

        return ExportSpec(
            name="decoder",
            parts={"decoder": self.decoder},
            inputs=(Port("latent", torch.float32, ("batch", *latent.shape[1:]), "latents of the encoder", torch.randn),),
            forward=images,
            reference=lambda batch: self.decode(batch["latent"]),
            remarks=("its input must be latents from the encoder, or from a model trained on them, not samples of N(0, 1)",),
        )

    def check(self, batch: Batch) -> None:
        image = batch["image"]
        with torch.no_grad(), eval_mode(self):
            keys = torch.arange(len(image), device=image.device)
            reconstruction = self._reconstruct({"image": image, "noise_key": keys})["reconstruction"]
            require_shape("decoder", reconstruction, image, "the data's images")
            with errors_of("loss", self.loss):
                self.loss(reconstruction, image)
            if self.adversary is not None:
                self.adversary.of_discriminator(image, reconstruction)

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return inputs with their reconstructions in the next column."""
        image = batch["image"]
        return {"reconstructions": torch.stack([image, self.reconstruct(batch)], dim=1).flatten(0, 1)}
