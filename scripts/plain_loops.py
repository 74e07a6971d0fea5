"""Training loops the way a good tutorial writes them: eager, float32, contiguous, with a DataLoader. benchmark.py times them.

They take genimg's networks and losses, so that a step function for each kind of method serves every network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from genimg.data.sources import Source
from genimg.interfaces import Method
from genimg.losses.penalties import DiscriminatorPenalty, GeneratorPenalty, Sides, WeightClipping
from genimg.methods.gan import GAN
from genimg.methods.vae import VAE

Step = Callable[[Any, dict[str, Optimizer], Tensor, int], dict[str, float]]
"""Takes a method, its optimizers, a batch of real images and the step's number; gives the losses, read from the device as
tutorials read them to print them."""

Penalties = list[tuple[int, Callable[[], Tensor]]]
"""Of one network: each one's interval in steps, and its value."""


def gan_step(method: GAN, optimizers: dict[str, Optimizer], real: Tensor, step: int) -> dict[str, float]:
    """As in PyTorch's DCGAN tutorial, with one batch of fakes for both updates.

    Where the generator's update is rarer or larger than the discriminator's, each has fakes of its own, as in tutorials of
    WGAN-GP and SNGAN. A lazy penalty is an update of its own, as in ports of StyleGAN2.
    """
    method.augment.begin(step * len(real), len(real))
    reuses_fakes = method.generator_interval == method.generator_batches == 1
    with torch.set_grad_enabled(reuses_fakes):
        latent, fake = _generate(method, real, batches=1)
    losses = {"discriminator": _update_discriminator(method, optimizers["discriminator"], real, latent, fake.detach(), step)}
    if step % method.generator_interval == 0:
        if not reuses_fakes:
            latent, fake = _generate(method, real, batches=method.generator_batches)
        losses["generator"] = _update_generator(method, optimizers["generator"], real, latent, fake, step)
    return {name: loss.item() for name, loss in losses.items()}


def _update_discriminator(method: GAN, optimizer: Optimizer, real: Tensor, latent: Tensor, fake: Tensor, step: int) -> Tensor:
    method.discriminator.zero_grad()
    real_logits = _judge(method, method.augment(real))
    fake_logits = _judge(method, method.augment(fake))
    method.augment.observe(real_logits.detach())
    loss = method.loss.discriminator(real_logits, fake_logits)
    sides = Sides(
        real=real,
        fake=fake,
        logits=lambda images: _judge(method, method.augment(images)),
        plain_logits=partial(_judge, method),
        nearby=partial(_nearby, method, latent),
    )
    penalties = [(p.interval, partial(p, sides)) for p in method.penalties.values() if isinstance(p, DiscriminatorPenalty)]
    loss = _descend(method.discriminator, optimizer, loss, penalties, step)
    for penalty in method.penalties.values():
        if isinstance(penalty, WeightClipping):
            penalty.clip(method.discriminator)
    return loss


def _update_generator(method: GAN, optimizer: Optimizer, real: Tensor, latent: Tensor, fake: Tensor, step: int) -> Tensor:
    method.generator.zero_grad()
    fake_logits = _judge(method, method.augment(fake))
    if method.loss.relativistic:
        real_logits = _judge(method, method.augment(real))
        loss = method.loss.generator(real_logits.repeat(method.generator_batches), fake_logits)
    else:
        loss = method.loss.generator(fake_logits)
    penalties = [
        (p.interval, partial(_of_generator, p, method, latent))
        for p in method.penalties.values()
        if isinstance(p, GeneratorPenalty)
    ]
    return _descend(method.generator, optimizer, loss, penalties, step)


def _descend(network: nn.Module, optimizer: Optimizer, loss: Tensor, penalties: Penalties, step: int) -> Tensor:
    """An update of the loss with its eager penalties, then one of each lazy penalty that is due, times its interval."""
    loss = sum((penalty() for interval, penalty in penalties if interval == 1), start=loss)
    loss.backward()
    optimizer.step()
    for interval, penalty in penalties:
        if interval > 1 and step % interval == 0:
            network.zero_grad()
            (interval * penalty()).backward()
            optimizer.step()
    return loss


def _of_generator(penalty: GeneratorPenalty, method: GAN, latent: Tensor) -> Tensor:
    value, _ = penalty(method.generator, latent, _nothing(latent))
    return value


@torch.no_grad()
def _nearby(method: GAN, latent: Tensor, std: float) -> tuple[Tensor, Tensor]:
    latents = torch.cat([latent, latent + std * torch.randn_like(latent)])
    fake, near = method.generator(latents, _nothing(latents)).chunk(2)
    return fake, near


def _generate(method: GAN, real: Tensor, *, batches: int) -> tuple[Tensor, Tensor]:
    """Latents, and their images."""
    latent = method.latent.random(batches * len(real), real.device)
    return latent, method.generator(latent, _nothing(latent))


def _judge(method: GAN, images: Tensor) -> Tensor:
    logits: Tensor = method.discriminator(images, _nothing(images)).logits
    return logits


def _nothing(batch: Tensor) -> Tensor:
    """What stands in for the condition of an unconditional network."""
    return batch.new_empty(len(batch), 0)


def vae_step(method: VAE, optimizers: dict[str, Optimizer], image: Tensor, _: int) -> dict[str, float]:
    """As in PyTorch's VAE example."""
    optimizers["autoencoder"].zero_grad()
    mean, log_variance = method.encoder(image)
    latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    loss, _ = method.loss(method.decoder(latent), image, mean, log_variance)
    loss.backward()
    optimizers["autoencoder"].step()
    return {"total": loss.item()}


STEPS: dict[str, Step] = {"gan": gan_step, "vae": vae_step}


class Pictures(Dataset[Tensor]):
    """Images in memory, uint8 [N, H, W, C], transformed one by one to float32 [C, H, W] in [-1, 1]."""

    def __init__(self, source: Source) -> None:
        pictures = [source.read(index).transpose(1, 2, 0) for index in range(len(source))]
        self.pixels: NDArray[np.uint8] = np.ascontiguousarray(np.stack(pictures))
        half = [0.5] * self.pixels.shape[-1]
        self.transform = Compose([ToTensor(), Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(self.pixels[index])
        return image


class PlainLoop:
    """A loop over the images for ever, with two worker processes.

    Args:
        step: of the method's kind.
        method: whose networks and loss it trains; on the device.
        optimizers: one for each of the method's parameter groups.
        pictures: to train on.
        batch_size: images a step.
        device: where it trains.
    """

    def __init__(
        self,
        step: Step,
        method: Method,
        optimizers: dict[str, Optimizer],
        pictures: Pictures,
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        assert method.batch_keys == ("image",), "the steps know of no conditions"
        self.step, self.method, self.optimizers, self.device = step, method.train(), optimizers, device
        self.steps_done = 0
        self.batches = _endless(
            DataLoader(
                pictures,
                batch_size=batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=2,
                persistent_workers=True,
                pin_memory=device.type == "cuda",
            )
        )

    def train_on(self, images: Tensor) -> dict[str, float]:
        losses = self.step(self.method, self.optimizers, images.to(self.device), self.steps_done)
        self.steps_done += 1
        return losses


def _endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader
