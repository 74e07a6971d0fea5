"""Variational autoencoder: Kingma & Welling, "Auto-encoding variational Bayes", ICLR 2014, and Rezende et al. 2014."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genimg.interfaces import Batch, Method, Metrics, Microbatches, Progress, Update
from genimg.losses.elbo import ELBO
from genimg.methods.latent import truncate
from genimg.randomness import normal_latents


class VAE(Method):
    """An encoder and a decoder trained together on the evidence lower bound, with a standard normal prior.

    Args:
        encoder: image [N, C, H, W] -> mean and log-variance, each [N, Z].
        decoder: latent [N, Z] -> parameters of the likelihood [N, C, H, W].
        loss: the bound.
        latent_dim: Z.
    """

    loss_type = ELBO
    reconstructs = True

    def __init__(self, *, encoder: nn.Module, decoder: nn.Module, loss: ELBO, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.loss = loss
        self.latent_dim = latent_dim

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("autoencoder", self._loss, batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        image = batch["image"]
        mean, log_variance = (moment.float() for moment in self.encoder(image))
        # The reparametrisation trick: equation 10 of the paper, with one sample an image.
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        output = self.decoder(latent).float()
        loss, parts = self.loss(output, image, mean, log_variance)
        return loss, {"loss/total": loss.detach()} | {f"loss/{name}": value.detach() for name, value in parts.items()}

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        return {"latent": normal_latents(indices, seed, self.latent_dim)}

    def truncated(self, drawn: Batch, amount: float) -> Batch:
        return drawn | {"latent": truncate(drawn["latent"], amount)}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        """The likelihood's mean for latents of the prior; pixel noise is left out, as is usual."""
        return self._evaluate(lambda: self.decoder(batch["latent"]))

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Decode the mean of q(z | x): [N, C, H, W] -> [N, C, H, W] in [-1, 1]."""
        return self._evaluate(lambda: self.decoder(self.encoder(image)[0]))

    def _evaluate(self, decode: Callable[[], Tensor]) -> Tensor:
        training = self.training
        self.eval()
        try:
            return self.loss.likelihood.mean(decode().float())
        finally:
            self.train(training)

    def check(self, batch: Batch) -> None:
        image = batch["image"]
        self.loss.likelihood.negative_log_likelihood(self.reconstruct(image), image)

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Prior samples, and inputs with their reconstructions in the next column."""
        image = batch["image"]
        pairs = torch.stack([image, self.reconstruct(image)], dim=1).flatten(0, 1)
        return {"samples": self.sample(drawn), "reconstructions": pairs}
