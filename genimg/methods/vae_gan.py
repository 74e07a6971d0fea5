"""VAE with a discriminator: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.elbo import Bound
from genimg.losses.perceptual import PerceptualLoss
from genimg.methods.base import Update
from genimg.methods.conditional import shared_encoder
from genimg.methods.vae import VAE
from genimg.networks.discriminator import Discriminator
from genimg.schedules import Number, Scheduled, is_positive, is_within, is_zero, shown
from genimg.types import Batch, Metrics, Microbatches, Progress


class VAEGAN(VAE):
    """A VAE whose reconstructions and prior samples must also fool a discriminator, which is updated first.

    Two terms are added to the bound (algorithm 1). The adversarial loss of both kinds of fakes trains the decoder only. The
    learnt similarity, the mean squared difference of discriminator features between images and reconstructions, also trains the
    encoder. Unlike in the paper, the pixel likelihood is kept, so the logged bound is comparable with that of other VAEs.

    Args:
        discriminator: Network, (image, condition) -> DiscriminatorOutput, with an encoder ``condition``.
        adversarial: Pair of losses.
        adversarial_weight: Weight of the decoder's adversarial loss, in nats.
        similarity_weight: Weight of the difference of features, in nats; 0 omits it.
        encoder, decoder, loss, latent_dim, hierarchy, perceptual: See ``VAE``.

    Raises:
        ValueError: If the parts are incompatible, or a number is out of range.
    """

    adversarial_weight = Scheduled()
    similarity_weight = Scheduled()

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        discriminator: Discriminator,
        loss: Bound,
        latent_dim: int,
        hierarchy: Sequence[nn.Module],
        adversarial: AdversarialLoss,
        adversarial_weight: Number,
        similarity_weight: Number,
        perceptual: PerceptualLoss | None,
    ) -> None:
        super().__init__(
            encoder=encoder, decoder=decoder, loss=loss, latent_dim=latent_dim, hierarchy=hierarchy, perceptual=perceptual
        )
        if not is_positive(adversarial_weight):
            raise ValueError(f"adversarial_weight={shown(adversarial_weight)} must be above 0: without it, choose a VAE")
        if not is_within(similarity_weight, 0):
            raise ValueError(f"similarity_weight={shown(similarity_weight)} must be 0 or more")
        if not isinstance(discriminator, Discriminator):
            raise ValueError(
                f"discriminator is a {type(discriminator).__name__}, but must be a Discriminator "
                "(genimg.networks.discriminator), whose features are compared: pass your network as its features"
            )
        shared_encoder(encoder=self.encoder, discriminator=discriminator)
        if adversarial is not None and adversarial.relativistic:  # None if nothing is trained
            raise ValueError("adversarial must not be relativistic: reconstructions and samples have no pairs")
        self.discriminator = discriminator
        self.adversarial = adversarial
        self.adversarial_weight = adversarial_weight
        self.similarity_weight = similarity_weight

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        judging = list(self.discriminator.parameters())
        known = {id(parameter) for parameter in judging}
        return {
            "discriminator": judging,
            "autoencoder": [parameter for parameter in self.parameters() if id(parameter) not in known],
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        metrics = update("discriminator", self._discriminator_loss, batch)
        return metrics | update("autoencoder", self._loss, batch)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        condition = self._condition(batch)
        with torch.no_grad():
            mean, log_variance = self._moments(self._observed(batch))
            latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            fakes = (self._decode(latent, condition), self._decode(self._from_prior(len(mean), mean.device), condition))
        # Separate forward passes, because batch norm must not mix the statistics of real and fake images.
        real, *made = (self.discriminator(each, condition).logits.float() for each in (batch["image"], *fakes))
        loss = torch.stack([self.adversarial.discriminator(real, each) for each in made]).mean()
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": real.detach().mean(),
            "logits/reconstruction": made[0].detach().mean(),
            "logits/sample": made[1].detach().mean(),
        }

    def _from_prior(self, count: int, device: torch.device) -> Tensor:
        """Draw the lowest latents [count, Z] from the prior."""
        *lower, top = self.latent_dims
        noise = torch.randn(count, sum(lower), device=device) if lower else None
        return self._descend(torch.randn(count, top, device=device), noise)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        image, batch = batch["image"], self._observed(batch)
        moments = self._moments(batch)
        inference, latents, output = self._infer(batch, moments, self.loss.num_samples)
        loss, metrics = self._bound(batch, moments[0], inference, output)
        condition, every = self._condition(batch), self.loss.num_samples
        latent, reconstruction = latents[::every], self.loss.likelihood.mean(output[::every])  # an image's first sample
        fakes = (self._decode(latent.detach(), condition), self._decode(self._from_prior(len(image), image.device), condition))
        judged = [self.adversarial.generator(self.discriminator(each, condition).logits.float()) for each in fakes]
        adversarial = torch.stack(judged).mean()
        loss = loss + self.adversarial_weight * adversarial
        metrics["loss/adversarial"] = adversarial.detach()
        if not is_zero(self.similarity_weight):
            on_real, on_made = (self.discriminator.seen(each, condition).float() for each in (image, reconstruction))
            difference = (on_made - on_real.detach()).square().mean()
            loss = loss + self.similarity_weight * difference
            metrics["loss/similarity"] = difference.detach()
        return loss, metrics | {"loss/total": loss.detach()}

    def check(self, batch: Batch) -> None:
        super().check(batch)
        with torch.no_grad():
            self.discriminator(batch["image"], self._condition(self._with_conditions(batch["image"])))
