"""Training loops the way a good tutorial writes them: eager, float32, contiguous, with a DataLoader. benchmark.py times them.

They take genimg's networks and losses, so that a step function for each kind of method serves every network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from genimg.data.sources import Source
from genimg.interfaces import Method
from genimg.methods.gan import GAN
from genimg.methods.vae import VAE

Step = Callable[[Any, dict[str, Optimizer], Tensor], dict[str, float]]
"""One step on a batch of real images; the losses, read from the device as tutorials read them to print them."""


def gan_step(method: GAN, optimizers: dict[str, Optimizer], real: Tensor) -> dict[str, float]:
    """As in PyTorch's DCGAN tutorial."""
    method.discriminator.zero_grad()
    real_logits = method.discriminator(real)
    fake = method.generator(torch.randn(len(real), method.latent_dim, device=real.device))
    fake_logits = method.discriminator(fake.detach())
    discriminator_loss = method.loss.discriminator(real_logits, fake_logits)
    discriminator_loss.backward()
    optimizers["discriminator"].step()
    method.generator.zero_grad()
    generator_loss = method.loss.generator(method.discriminator(fake))
    generator_loss.backward()
    optimizers["generator"].step()
    return {"discriminator": discriminator_loss.item(), "generator": generator_loss.item()}


def vae_step(method: VAE, optimizers: dict[str, Optimizer], image: Tensor) -> dict[str, float]:
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
        self.step, self.method, self.optimizers, self.device = step, method.train(), optimizers, device
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
        return self.step(self.method, self.optimizers, images.to(self.device))


def _endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader
