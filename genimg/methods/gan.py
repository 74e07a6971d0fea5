"""Generative adversarial networks: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.interfaces import Batch, Images, Method, Metrics, Microbatches, Progress, Update
from genimg.losses.adversarial import AdversarialLoss
from genimg.methods.ema import EMA
from genimg.randomness import normal_latents


class GAN(Method):
    """Alternating updates of a discriminator and a generator, sampled through the generator's moving average.

    Each step makes its fakes once; both updates use them, as the public reference implementations do.

    Args:
        generator: latent [N, Z] -> image [N, C, H, W] in [-1, 1].
        discriminator: image -> logits [N].
        loss: the pair of losses.
        latent_dim: Z.
        generator_interval: the generator is updated every so many steps (n_critic).
        ema_half_life: of the generator's average.
        ema_ramp_up: largest half-life as a fraction of the images seen.
    """

    loss_type = AdversarialLoss
    sampled_weights = "ema"

    def __init__(
        self,
        *,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent_dim: int,
        generator_interval: int,
        ema_half_life: Images,
        ema_ramp_up: float,
    ) -> None:
        super().__init__()
        if generator_interval < 1:
            raise ValueError(f"model.generator_interval={generator_interval} must be 1 or more steps")
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.latent_dim = latent_dim
        self.generator_interval = generator_interval
        self.generator_ema = EMA(generator, half_life=ema_half_life, ramp_up=ema_ramp_up)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        train_generator = progress.due(self.generator_interval)
        if train_generator:
            batch = update.forward("generator", self._generate, batch)
        metrics = update("discriminator", self._discriminator_loss, batch)
        if train_generator:
            metrics |= update("generator", self._generator_loss, batch)
            seen = progress.images + progress.batch_size
            self.generator_ema.update(self.generator, seen, progress.batch_size * self.generator_interval)
        return metrics

    def _generate(self, batch: Batch) -> Batch:
        real = batch["image"]
        return {"fake": self.generator(torch.randn(len(real), self.latent_dim, device=real.device))}

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        fake = batch["fake"] if "fake" in batch else self._generate(batch)["fake"]
        # Two forwards, because batch norm must not mix the statistics of real and fake images.
        real_logits = self.discriminator(batch["image"]).float()
        fake_logits = self.discriminator(fake.detach()).float()
        loss = self.loss.discriminator(real_logits, fake_logits)
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": real_logits.detach().mean(),
            "logits/fake": fake_logits.detach().mean(),
        }

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss = self.loss.generator(self.discriminator(batch["fake"]).float())
        return loss, {"loss/generator": loss.detach()}

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        return {"latent": normal_latents(indices, seed, self.latent_dim)}

    @torch.no_grad()
    def sample(self, batch: Batch) -> Tensor:
        return self.generator_ema(batch["latent"])

    def check(self, image: Tensor) -> None:
        self.discriminator(image)
        self.discriminator(self.sample(self.draw(range(len(image)), 0)))

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        return {"samples": self.sample(drawn)}
