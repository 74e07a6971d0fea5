"""Training loops as in a good tutorial: eager, float32, contiguous, with a DataLoader. benchmark.py times them.

They use genimg's networks and losses, so one step function per kind of method works with every network. The steps of methods
that translate images are in plain_translation.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from plain_translation import CycleGANStep, pix2pix_step
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from genimg.data.datasets.builtin import ImageDataset
from genimg.losses.penalties import DiscriminatorPenalty, GeneratorPenalty, PenaltyInputs, WeightClipping
from genimg.methods.base import Method
from genimg.methods.diffusion import Diffusion
from genimg.methods.gan import GAN
from genimg.methods.image_to_image import Translation
from genimg.methods.vae import VAE
from genimg.types import Batch
from genimg.utils.images import to_float, to_uint8

Step = Callable[[Any, dict[str, Optimizer], Batch, int], dict[str, float]]
"""Function from a method, its optimizers, a batch and the step number to the losses, copied from the device as in tutorials,
which print them."""

Penalties = list[tuple[int, Callable[[], Tensor]]]
"""Penalties of one network: the interval of each in steps, and a function that computes its value."""


def gan_step(method: GAN, optimizers: dict[str, Optimizer], batch: Batch, step: int) -> dict[str, float]:
    """Take a step as in PyTorch's DCGAN tutorial, with one batch of fakes for both updates.

    If the model draws fresh latents, or the generator's update is rarer or larger than the discriminator's, each update has its
    own fakes, as in tutorials of WGAN-GP and SNGAN. A lazy penalty has its own update, as in ports of StyleGAN2.
    """
    real = batch["image"]
    if method.discriminator_augment is not None:
        method.discriminator_augment.begin(len(real))
    reuses_fakes = not method.fresh_latents and method.generator_interval == method.generator_batches == 1
    with torch.set_grad_enabled(reuses_fakes):
        latent, fake = _generate(method, real, batches=1)
    losses = {"discriminator": _update_discriminator(method, optimizers["discriminator"], real, latent, fake.detach(), step)}
    if step % method.generator_interval == 0:
        if not reuses_fakes:
            latent, fake = _generate(method, real, batches=method.generator_batches)
        losses["generator"] = _update_generator(method, optimizers["generator"], real, latent, fake, step)
    return {name: loss.item() for name, loss in losses.items()}


def _augmented(method: GAN, images: Tensor) -> Tensor:
    return images if method.discriminator_augment is None else method.discriminator_augment(images)


def _update_discriminator(method: GAN, optimizer: Optimizer, real: Tensor, latent: Tensor, fake: Tensor, step: int) -> Tensor:
    method.discriminator.zero_grad()
    real_logits = _discriminate(method, _augmented(method, real))
    fake_logits = _discriminate(method, _augmented(method, fake))
    if method.discriminator_augment is not None:
        method.discriminator_augment.observe(real_logits.detach())
    loss = method.loss.discriminator(real_logits, fake_logits)
    sides = PenaltyInputs(
        real=real,
        fake=fake,
        logits=lambda images: _discriminate(method, _augmented(method, images)),
        plain_logits=partial(_discriminate, method),
        perturb=partial(_perturb, method, latent),
    )
    penalties = [(p.interval, partial(p, sides)) for p in method.penalties.values() if isinstance(p, DiscriminatorPenalty)]
    loss = _descend(method.discriminator, optimizer, loss, penalties, step)
    for penalty in method.penalties.values():
        if isinstance(penalty, WeightClipping):
            penalty.clip(method.discriminator)
    return loss


def _update_generator(method: GAN, optimizer: Optimizer, real: Tensor, latent: Tensor, fake: Tensor, step: int) -> Tensor:
    method.generator.zero_grad()
    fake_logits = _discriminate(method, _augmented(method, fake))
    if method.loss.relativistic:
        real_logits = _discriminate(method, _augmented(method, real))
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
    """Update on the loss plus the penalties of interval 1, and then on each lazy penalty that is due, times its interval."""
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
def _perturb(method: GAN, latent: Tensor, std: float) -> tuple[Tensor, Tensor]:
    latents = torch.cat([latent, latent + std * torch.randn_like(latent)])
    fake, near = method.generator(latents, _nothing(latents)).chunk(2)
    return fake, near


def _generate(method: GAN, real: Tensor, *, batches: int) -> tuple[Tensor, Tensor]:
    """Return latents and their images."""
    latent = method.latent.random(batches * len(real), real.device)
    return latent, method.generator(latent, _nothing(latent))


def _discriminate(method: GAN, images: Tensor) -> Tensor:
    logits: Tensor = method.discriminator(images, _nothing(images)).logits
    return logits


def _nothing(batch: Tensor) -> Tensor:
    """Return the placeholder for the condition of an unconditional network."""
    return batch.new_empty(len(batch), 0)


def vae_step(method: VAE, optimizers: dict[str, Optimizer], batch: Batch, _: int) -> dict[str, float]:
    """Take a step as in PyTorch's VAE example."""
    image = batch["image"]
    optimizers["autoencoder"].zero_grad()
    mean, log_variance = method.encoder(image, _nothing(image)).unbind(1)
    latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    output = method.decoder(latent, _nothing(image))
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp(), dim=1)
    loss = (method.loss.likelihood.negative_log_likelihood(output, image) + kl).mean()
    loss.backward()
    optimizers["autoencoder"].step()
    return {"total": loss.item()}


def diffusion_step(method: Diffusion, optimizers: dict[str, Optimizer], batch: Batch, _: int) -> dict[str, float]:
    """Take a step as in the examples of torchcfm (flow matching) and in public DDPM code, which clips gradients to norm 1."""
    image, optimizer, denoiser = batch["image"], optimizers["denoiser"], method.denoiser
    optimizer.zero_grad()
    keys = torch.randint(2**62, (len(image),), device=image.device)
    time, noise = method.objective.times.at(keys, method.path), torch.randn_like(image)
    output = denoiser(denoiser.mixed(image, noise, time), time, _nothing(image))
    loss = F.mse_loss(output, denoiser.target(image, noise, time))
    loss.backward()
    nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()
    return {"denoising": loss.item()}


STEPS: dict[str, Callable[[], Step]] = {
    "gan": lambda: gan_step,
    "vae": lambda: vae_step,
    "diffusion": lambda: diffusion_step,
    "cyclegan": CycleGANStep,
    "pix2pix": lambda: pix2pix_step,
}
"""Factories of the step for each kind of method. A step may hold state, such as an image pool."""


class Pictures(Dataset[Batch]):
    """Images in memory, uint8 [N, H, W, C], transformed one by one to float32 [C, H, W] in [-1, 1].

    For a method that translates, they are the results of its task, computed once; images of domain ``b`` are drawn at random.

    Args:
        source: Dataset of the images.
        method: Method that is trained on them.
    """

    def __init__(self, source: ImageDataset, method: Method) -> None:
        made = [_made(source, index, method) for index in range(len(source))]
        assert set(made[0]) == set(method.batch_keys) - {"noise_key"}, "the steps do not support conditions"
        self.pixels = {key: np.ascontiguousarray(np.stack([each[key] for each in made])) for key in made[0]}
        half = {key: [0.5] * pixels.shape[-1] for key, pixels in self.pixels.items()}
        self.transforms = {key: Compose([ToTensor(), Normalize(half[key], half[key])]) for key in self.pixels}

    def __len__(self) -> int:
        return len(next(iter(self.pixels.values())))

    def __getitem__(self, index: int) -> Batch:
        return {
            key: self.transforms[key](pixels[random.randrange(len(pixels)) if key == "b" else index])
            for key, pixels in self.pixels.items()
        }


def _made(source: ImageDataset, index: int, method: Method) -> dict[str, NDArray[np.uint8]]:
    """Return the entries [H, W, C] of a batch with one image."""
    image = source.read(index)
    made = {"image": image}
    if isinstance(method, Translation):
        batch = method.task(to_float(torch.from_numpy(image)[None]), np.array([index]), 0)
        made = {key: to_uint8(each[0]).numpy() for key, each in batch.items()}
    return {key: each.transpose(1, 2, 0) for key, each in made.items()}


class PlainLoop:
    """An endless loop over the images, with two worker processes.

    Args:
        step: Step of the method's kind.
        method: Method with the networks and the loss, on the device.
        optimizers: Optimizers, one for each of the method's parameter groups.
        pictures: Training images.
        batch_size: Images per step.
        device: Device of the training.
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

    def train_on(self, batch: Batch) -> dict[str, float]:
        batch = {key: images.to(self.device) for key, images in batch.items()}
        losses = self.step(self.method, self.optimizers, batch, self.steps_done)
        self.steps_done += 1
        return losses


def _endless(loader: DataLoader[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader
