"""VAE with a discriminator: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genimg.interfaces import Batch, Metrics, Microbatches, Progress, Update
from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.elbo import Bound
from genimg.losses.perceptual import Perceptual
from genimg.methods.conditional import encoder_of
from genimg.methods.vae import VAE
from genimg.networks.discriminator import Discriminator, Judgement


class VAEGAN(VAE):
    """A VAE whose reconstructions and prior samples shall also deceive a discriminator.

    The discriminator is updated first. To the bound are added the adversarial loss of both kinds of fakes, the mean squared
    difference of the discriminator's features between images and reconstructions (the paper's learnt similarity), and a
    perceptual distance. What is logged of the bound stays comparable with other VAEs.

    Args:
        discriminator: (image, condition) -> Judgement; with an encoder ``condition``.
        adversarial: the pair of losses.
        adversarial_weight: of the decoder's part, in nats.
        similarity_weight: of the features' difference, in nats; 0 leaves it out.
        perceptual: with a weight of its own, in nats; None for none.
        encoder, decoder, loss, latent_dim, hierarchy: see VAE.

    Raises:
        ValueError: if the parts do not go together, or numbers are out of range.
    """

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
        adversarial_weight: float,
        similarity_weight: float,
        perceptual: Perceptual | None,
    ) -> None:
        super().__init__(encoder=encoder, decoder=decoder, loss=loss, latent_dim=latent_dim, hierarchy=hierarchy)
        for name, value in (("adversarial_weight", adversarial_weight), ("similarity_weight", similarity_weight)):
            if not value >= 0:
                raise ValueError(f"model.{name}={value} must be 0 or more")
        if encoder_of(discriminator).key != self.condition_key:
            raise ValueError("model.encoder.condition and model.discriminator.condition must read the same key of the batch")
        if adversarial.relativistic:
            raise ValueError("model.adversarial must not be relativistic: reconstructions and samples have no pairs")
        self.discriminator = discriminator
        self.adversarial = adversarial
        self.adversarial_weight = adversarial_weight
        self.similarity_weight = similarity_weight
        self._perceptual = (perceptual,)  # not as a module: its weights are no part of the checkpoint

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        judging = list(self.discriminator.parameters())
        known = {id(parameter) for parameter in judging}
        return {
            "discriminator": judging,
            "autoencoder": [parameter for parameter in self.parameters() if id(parameter) not in known],
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        metrics = update("discriminator", self._discriminator_loss, batch)
        return metrics | update("autoencoder", partial(self._loss, images_seen=progress.images), batch)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        condition = self._condition(batch)
        with torch.no_grad():
            reconstruction, sample = self._fakes(batch)
        # Forwards of their own, because batch norm must not mix the statistics of real images and fakes.
        on_real, *on_fakes = (self.discriminator(each, condition) for each in (batch["image"], reconstruction, sample))
        real = on_real.logits.float()
        loss = torch.stack([self.adversarial.discriminator(real, each.logits.float()) for each in on_fakes]).mean()
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": real.detach().mean(),
            "logits/reconstruction": on_fakes[0].logits.detach().float().mean(),
            "logits/sample": on_fakes[1].logits.detach().float().mean(),
        }

    def _fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A reconstruction from a sample of q(z | x), and an image from the prior; with gradients, if wanted."""
        image, condition = self.loss.likelihood.observed(batch["image"]), self._condition(batch)
        mean, log_variance = self.encoder(image, condition).float().unbind(1)
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        drawn = torch.randn_like(mean)
        if self.hierarchy:
            drawn = torch.randn(len(mean), self.latent_dims[-1], device=mean.device)
            for layer in reversed(self._above):
                below, log_below = layer.generate(drawn)
                drawn = below + (0.5 * log_below).exp() * torch.randn_like(below)
        return self._decode(latent, condition), self._decode(drawn, condition)

    def _loss(self, batch: Batch, *, images_seen: int) -> tuple[Tensor, Metrics]:
        loss, metrics = super()._loss(batch, images_seen=images_seen)
        image, condition = batch["image"], self._condition(batch)
        reconstruction, sample = self._fakes(batch)
        judged: list[Judgement] = [self.discriminator(each, condition) for each in (reconstruction, sample)]
        deceiving = torch.stack([self.adversarial.generator(each.logits.float()) for each in judged]).mean()
        loss = loss + self.adversarial_weight * deceiving
        metrics["loss/adversarial"] = deceiving.detach()
        if self.similarity_weight:
            on_real, on_made = (self.discriminator.seen(each, condition).float() for each in (image, reconstruction))
            difference = (on_made - on_real.detach()).square().mean()
            loss = loss + self.similarity_weight * difference
            metrics["loss/similarity"] = difference.detach()
        if (perceptual := self._perceptual[0]) is not None:
            distance = perceptual(reconstruction, image)
            loss = loss + distance
            metrics["loss/perceptual"] = distance.detach()
        return loss, metrics | {"loss/total": loss.detach()}

    def check(self, batch: Batch) -> None:
        super().check(batch)
        with torch.no_grad():
            self._loss(self._with_conditions(batch["image"]), images_seen=0)
