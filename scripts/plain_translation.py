"""The plain steps of methods that translate images, as in their authors' public code; see plain_loops.py."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genimg.methods.cyclegan import CycleGAN
from genimg.methods.pix2pix import Pix2Pix
from genimg.types import Batch


def pix2pix_step(method: Pix2Pix, optimizers: dict[str, Optimizer], batch: Batch, _: int) -> dict[str, float]:
    """Update the discriminator and then the translator, with one translation for both (Isola et al. 2017)."""
    source, target = batch["source"], batch["target"]
    discriminator, patches = method.discriminator, partial(_patches, method.discriminator)
    fake = method.network(source)
    _learn([discriminator], True)
    optimizers["discriminator"].zero_grad()
    on_fake = patches(fake.detach(), source)
    loss_discriminator = method.loss.discriminator(patches(target, source), on_fake)
    loss_discriminator.backward()
    optimizers["discriminator"].step()

    _learn([discriminator], False)
    optimizers["translator"].zero_grad()
    loss = method.loss.generator(patches(fake, source))
    loss = loss + method.reconstruction_weight * (fake - target).abs().mean()
    loss.backward()
    optimizers["translator"].step()
    return {"discriminator": loss_discriminator.item(), "translator": loss.item()}


class CycleGANStep:
    """Update of both translators and then of the discriminators, with one forward pass per batch (Zhu et al. 2017)."""

    def __init__(self) -> None:
        self.pools: dict[str, Pool] = {}

    def __call__(self, method: CycleGAN, optimizers: dict[str, Optimizer], batch: Batch, _: int) -> dict[str, float]:
        a, b = batch["a"], batch["b"]
        discriminators = {"a": method.discriminator_a, "b": method.discriminator_b}
        fake_b = method.a2b(a)
        cycled_a = method.b2a(fake_b)
        fake_a = method.b2a(b)
        cycled_b = method.a2b(fake_a)

        _learn(discriminators.values(), False)
        optimizers["translators"].zero_grad()
        same_b, same_a = method.a2b(b), method.b2a(a)
        loss = method.cycle_weight * method.identity_weight * ((same_b - b).abs().mean() + (same_a - a).abs().mean())
        for domain, fake in (("b", fake_b), ("a", fake_a)):
            loss = loss + method.adversarial_weight * method.loss.generator(_patches(discriminators[domain], fake))
        loss = loss + method.cycle_weight * ((cycled_a - a).abs().mean() + (cycled_b - b).abs().mean())
        loss.backward()
        optimizers["translators"].step()

        _learn(discriminators.values(), True)
        optimizers["discriminators"].zero_grad()
        losses = {"translators": loss}
        for domain, real, fake in (("a", a, fake_a), ("b", b, fake_b)):
            pool = self.pools.setdefault(domain, Pool(method.pool_a.size))
            on_real = _patches(discriminators[domain], real)
            on_fake = _patches(discriminators[domain], pool(fake.detach()))
            losses[f"discriminator_{domain}"] = method.loss.discriminator(on_real, on_fake)
            losses[f"discriminator_{domain}"].backward()
        optimizers["discriminators"].step()
        return {name: loss.item() for name, loss in losses.items()}


class Pool:
    """A list of generated images; on average, every second returned image is an older one.

    Args:
        size: Number of stored images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images [N, C, H, W] to use in place of ``images``."""
        return torch.cat([self._exchange(image) for image in images.split(1)])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if random.random() < 0.5:
            return image
        place = random.randrange(self.size)
        old, self.images[place] = self.images[place], image.clone()
        return old


def _patches(discriminator: nn.Module, image: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return the logits of a discriminator with one scale."""
    (logits,) = discriminator(image, condition)
    found: Tensor = logits
    return found


def _learn(networks: Iterable[nn.Module], whether: bool) -> None:
    for network in networks:
        network.requires_grad_(whether)
