"""Isola, Zhu, Zhou & Efros, "Image-to-image translation with conditional adversarial networks", CVPR 2017."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.base import Update, errors_of, require_shape
from genimg.methods.image_to_image import (
    Translation,
    checked_mode,
    generator_adversarial_loss,
    in_blocks,
    mean_logit,
    mixes_images,
    over_scales,
    pictures_of,
)
from genimg.schedules import Number, Scheduled, is_within, shown
from genimg.types import Batch, Metrics, Microbatches, Progress
from genimg.utils.mounting import in_config

log = logging.getLogger(__name__)


class Pix2Pix(Translation):
    """A translator trained to match the target and to fool a discriminator that also sees the source.

    Each step generates its fakes once, and both updates use them.

    Args:
        translator: Network, source [N, S, H, W] -> output [N, T, H, W] in [-1, 1]; its dropout is the paper's only noise.
        discriminator: Network, (image, source) -> logits of patches [N, 1, h, w], or a list of these, one for each scale.
        loss: Pair of losses; ``nonsaturating`` in the paper.
        reconstruction: Distance of the output from the target.
        reconstruction_weight: Weight lambda of equation 4; 100 in the paper.
        sampled_mode: Mode for translating: ``eval``, or ``train`` to keep dropout and batch statistics on, as in the paper.
        task: Task of the training data.
    """

    loss_type = AdversarialLoss
    inference_networks = ("network",)
    batch_keys = ("source", "target")
    reconstruction_weight = Scheduled()

    def __init__(
        self,
        *,
        translator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        reconstruction: ReconstructionLoss,
        reconstruction_weight: Number,
        sampled_mode: str,
        task: Task,
    ) -> None:
        super().__init__(task)
        if not is_within(reconstruction_weight, 0):
            raise ValueError(f"reconstruction_weight={shown(reconstruction_weight)} must be 0 or more")
        self.network = translator
        self.discriminator = discriminator
        self.loss = loss
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.sampled_mode = checked_mode(sampled_mode)

    def translator(self, direction: str | None) -> nn.Module:
        return self.network

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"discriminator": list(self.discriminator.parameters()), "translator": list(self.network.parameters())}

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        batch = update.forward("translator", lambda each: {"fake": self.network(each["source"])}, batch)
        metrics = update("discriminator", self._discriminator_loss, batch)
        return metrics | update("translator", self._translator_loss, batch)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        # Two forward passes, because batch norm must not mix the statistics of real and fake images.
        on_real = self.discriminator(batch["target"], batch["source"])
        on_fake = self.discriminator(batch["fake"].detach(), batch["source"])
        loss = over_scales(self.loss.discriminator, on_real, on_fake)
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": mean_logit(on_real),
            "logits/fake": mean_logit(on_fake),
        }

    def _translator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        def judge(images: Tensor) -> Any:
            return self.discriminator(images, batch["source"])

        adversarial = generator_adversarial_loss(self.loss, judge, batch["target"], batch["fake"])
        distance, metrics = self.reconstruction.with_metrics(batch["fake"], batch["target"], batch.get("mask"))
        loss = adversarial + self.reconstruction_weight * distance
        return loss, {"loss/translator": loss.detach(), "loss/adversarial": adversarial.detach()} | metrics

    def check(self, batch: Batch) -> None:
        output = self.network(batch["source"])
        require_shape("translator", output, batch["target"], "the targets")
        self.discriminator(batch["target"], batch["source"])
        self.discriminator(output, batch["source"])
        with errors_of("reconstruction", self.reconstruction):
            self.reconstruction(output, batch["target"], batch.get("mask"))
        if self.sampled_mode == "eval" and mixes_images(self.network):
            log.info(in_config("translations use batch norm's averages; pix2pix's authors test with sampled_mode=train"))

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return sources, translations and targets side by side."""
        return {"translations": in_blocks(pictures_of(self, batch))}
