"""Zhu, Park, Isola & Efros, "Unpaired image-to-image translation using cycle-consistent adversarial networks", ICCV 2017."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.losses.adversarial import AdversarialLoss
from genimg.methods.base import Update
from genimg.methods.image_pool import ImagePool
from genimg.methods.image_to_image import (
    Translation,
    checked_mode,
    generator_adversarial_loss,
    in_blocks,
    mean_logit,
    mixes_images,
    over_scales,
    side_by_side,
    together,
)
from genimg.schedules import Number, Scheduled, extremes, is_within, is_zero, shown
from genimg.types import Batch, Metrics, Microbatches, Progress


class CycleGAN(Translation):
    """Two translators, each trained as the inverse of the other, and one discriminator per domain.

    A step updates the translators first, then the discriminators on images from the image pools, as in the authors' code.

    Args:
        translator: Factory of translators of images [N, C, H, W] in [-1, 1], called for each direction with ``source_channels``
            and ``target_channels``.
        discriminator: Factory of discriminators, image -> logits of patches, a list of scales. It is called for each domain
            with the domain's ``target_channels`` and ``source_channels`` 0.
        loss: Pair of losses; ``least_squares`` in the paper.
        adversarial_weight: Weight of the translators' adversarial losses.
        cycle_weight: Weight lambda of equation 3, for the L1 distance of an image from its translation there and back.
        identity_weight: Weight of the L1 distance of an image from its translation into its own domain, as a fraction of
            ``cycle_weight``: section 5.2, which preserves colours.
        pool_size: Number of generated images of each domain in its image pool; 50 in the paper.
        image_size: Side in pixels, or [height, width].
        source_channels, target_channels: Channels of the domains a and b.
        sampled_mode: Mode for translating: ``eval``, or ``train`` to keep dropout and batch statistics on.
        task: Task of the training data.
    """

    loss_type = AdversarialLoss
    inference_networks = ("a2b", "b2a")
    batch_keys = ("a", "b")
    directions = ("a2b", "b2a")

    adversarial_weight = Scheduled()
    cycle_weight = Scheduled()
    identity_weight = Scheduled()

    def __init__(
        self,
        *,
        translator: Callable[..., nn.Module],
        discriminator: Callable[..., nn.Module],
        loss: AdversarialLoss,
        adversarial_weight: Number,
        cycle_weight: Number,
        identity_weight: Number,
        pool_size: int,
        image_size: int | Sequence[int],
        source_channels: int,
        target_channels: int,
        sampled_mode: str,
        task: Task,
    ) -> None:
        super().__init__(task)
        weights = {"adversarial": adversarial_weight, "cycle": cycle_weight, "identity": identity_weight}
        for name, weight in weights.items():
            if not is_within(weight, 0):
                raise ValueError(f"{name}_weight={shown(weight)} must be 0 or more")
        if extremes(identity_weight)[1] and source_channels != target_channels:
            raise ValueError(
                f"identity_weight={shown(identity_weight)} compares images of both domains, but they have "
                f"{source_channels} and {target_channels} channels: set it to 0"
            )
        if pool_size < 0:
            raise ValueError(f"pool_size={pool_size} must be 0 images or more")
        self.a2b = translator(source_channels=source_channels, target_channels=target_channels)
        self.b2a = translator(source_channels=target_channels, target_channels=source_channels)
        self.discriminator_a = discriminator(target_channels=source_channels, source_channels=0)
        self.discriminator_b = discriminator(target_channels=target_channels, source_channels=0)
        self.loss = loss
        self.adversarial_weight = adversarial_weight
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight
        self.pool_a = ImagePool(size=pool_size, channels=source_channels, image_size=image_size)
        self.pool_b = ImagePool(size=pool_size, channels=target_channels, image_size=image_size)
        self.sampled_mode = checked_mode(sampled_mode)
        # Instance norm treats each image alone, so several batches can share one forward pass.
        self._apart = {name: mixes_images(network) for name, network in self.named_children()}

    def translator(self, direction: str | None) -> nn.Module:
        return self.b2a if direction == "b2a" else self.a2b

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "translators": [*self.a2b.parameters(), *self.b2a.parameters()],
            "discriminators": [*self.discriminator_a.parameters(), *self.discriminator_b.parameters()],
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        batch, metrics = update.through("translators", self._translate, self._translators_loss, batch)
        return metrics | update("discriminators", self._discriminators_loss, batch)

    def _translate(self, batch: Batch) -> Batch:
        a, b = batch["a"], batch["b"]
        made: Batch = {}
        if not is_zero(self.identity_weight):
            made["fake_b"], made["same_b"] = together(self.a2b, a, b, apart=self._apart["a2b"])
            made["fake_a"], made["same_a"] = together(self.b2a, b, a, apart=self._apart["b2a"])
        else:
            made["fake_b"], made["fake_a"] = self.a2b(a), self.b2a(b)
        made["cycled_a"], made["cycled_b"] = self.b2a(made["fake_b"]), self.a2b(made["fake_a"])
        return made

    def _translators_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        adversarial = generator_adversarial_loss(self.loss, self.discriminator_b, batch["b"], batch["fake_b"])
        adversarial = adversarial + generator_adversarial_loss(self.loss, self.discriminator_a, batch["a"], batch["fake_a"])
        cycle = _l1(batch["cycled_a"], batch["a"]) + _l1(batch["cycled_b"], batch["b"])
        loss = self.adversarial_weight * adversarial + self.cycle_weight * cycle
        metrics = {"loss/adversarial": adversarial.detach(), "loss/cycle": cycle.detach()}
        if not is_zero(self.identity_weight):
            identity = _l1(batch["same_a"], batch["a"]) + _l1(batch["same_b"], batch["b"])
            loss = loss + self.identity_weight * self.cycle_weight * identity
            metrics["loss/identity"] = identity.detach()
        return loss, metrics | {"loss/translators": loss.detach()}

    def _discriminators_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        total = batch["a"].new_zeros(())
        metrics: Metrics = {}
        for domain, discriminator, pool in (
            ("a", self.discriminator_a, self.pool_a),
            ("b", self.discriminator_b, self.pool_b),
        ):
            real, fake = batch[domain], pool(batch[f"fake_{domain}"])
            if self._apart[f"discriminator_{domain}"]:
                on_real, on_fake = discriminator(real), discriminator(fake)
            else:
                both = discriminator(torch.cat([real, fake.to(real.dtype)]))
                on_real, on_fake = [scale[: len(real)] for scale in both], [scale[len(real) :] for scale in both]
            loss = over_scales(self.loss.discriminator, on_real, on_fake)
            total = total + loss
            metrics |= {
                f"loss/discriminator_{domain}": loss.detach(),
                f"logits/real_{domain}": mean_logit(on_real),
                f"logits/fake_{domain}": mean_logit(on_fake),
            }
        return total, metrics

    def check(self, batch: Batch) -> None:
        with torch.no_grad():
            self._translators_loss(batch | self._translate(batch))

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return images of each domain, their translations and the back-translations, in one row per image."""
        pictures = {}
        for direction, back, key in (("a2b", "b2a", "a"), ("b2a", "a2b", "b")):
            translated = self.translate(batch[key], direction)
            pictures[direction] = in_blocks(side_by_side([batch[key], translated, self.translate(translated, back)]))
        return pictures


def _l1(output: Tensor, image: Tensor) -> Tensor:
    return (output.float() - image).abs().mean()
