"""Park, Efros, Zhang & Zhu, "Contrastive learning for unpaired image-to-image translation", ECCV 2020: CUT and FastCUT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.contrastive import patch_nce
from genimg.methods.base import Update
from genimg.methods.image_to_image import (
    Translation,
    checked_mode,
    generator_adversarial_loss,
    in_blocks,
    mean_logit,
    over_scales,
    side_by_side,
)
from genimg.networks.resnet_translator import Translator
from genimg.schedules import Number, Scheduled, extremes, is_positive, is_within, is_zero, shown
from genimg.types import Batch, Metrics, Microbatches, Progress

_GAIN = 0.02  # gain of the perceptrons' initial weights, from the authors' code


class CUT(Translation):
    """One translator from domain a to b, whose encoder must map the same position in source and output to similar features.

    Each step generates its fakes once. Both updates use them, the discriminator's first.

    Args:
        translator: Translator of images [N, C, H, W] in [-1, 1], with an ``encode``.
        discriminator: Network, image -> logits of patches, a list of scales.
        loss: Pair of losses; ``least_squares`` in the paper.
        adversarial_weight: Weight of the translator's adversarial loss.
        contrast_weight: Weight lambda_X of the paper's final objective, for the contrast between sources and their
            translations.
        identity_weight: Weight lambda_Y, for the contrast between images of b and their translations; 0 in FastCUT.
        layers: Encoder layers whose features are compared; see ``Translator.encode``.
        num_patches: Number of positions compared in every layer; all positions if there are fewer.
        projection_dim: Output dimension D of each layer's perceptron.
        temperature: Temperature tau.
        mirror_probability: Probability that an image is mirrored before translation and its features are mirrored back; 0.5 for
            FastCUT's flip-equivariance.
        sampled_mode: Mode for translating: ``eval``, or ``train`` to keep dropout and batch statistics on.
        task: Task of the training data.
    """

    loss_type = AdversarialLoss
    inference_networks = ("network",)
    batch_keys = ("a", "b")
    directions = ("a2b",)

    adversarial_weight = Scheduled()
    contrast_weight = Scheduled()
    identity_weight = Scheduled()
    temperature = Scheduled()

    def __init__(
        self,
        *,
        translator: Translator,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        adversarial_weight: Number,
        contrast_weight: Number,
        identity_weight: Number,
        layers: Sequence[int],
        num_patches: int,
        projection_dim: int,
        temperature: Number,
        mirror_probability: float,
        sampled_mode: str,
        task: Task,
    ) -> None:
        super().__init__(task)
        channels = _encoder_channels(translator, layers)
        for name, weight in (("adversarial_weight", adversarial_weight), ("identity_weight", identity_weight)):
            if not is_within(weight, 0):
                raise ValueError(f"{name}={shown(weight)} must be 0 or more")
        if not is_positive(contrast_weight):
            raise ValueError(f"contrast_weight={shown(contrast_weight)} must be above 0")
        if num_patches < 2:
            raise ValueError(f"num_patches={num_patches} must be 2 or more")
        if projection_dim < 1:
            raise ValueError(f"projection_dim={projection_dim} must be 1 or more")
        if not extremes(temperature)[0] > 0:
            raise ValueError(f"temperature={shown(temperature)} must be above 0")
        if not 0 <= mirror_probability <= 1:
            raise ValueError(f"mirror_probability={mirror_probability} must be between 0 and 1")
        self.network = translator
        self.discriminator = discriminator
        self.projections = Projections(channels=channels, dim=projection_dim)
        self.loss = loss
        self.adversarial_weight = adversarial_weight
        self.contrast_weight = contrast_weight
        self.identity_weight = identity_weight
        self.layers = list(layers)
        self.num_patches = num_patches
        self.temperature = temperature
        self.mirror_probability = mirror_probability
        self.sampled_mode = checked_mode(sampled_mode)

    def translator(self, direction: str | None) -> nn.Module:
        return self.network

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "discriminator": list(self.discriminator.parameters()),
            "translator": [*self.network.parameters(), *self.projections.parameters()],
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        batch = update.forward("translator", self._translate, batch)
        metrics = update("discriminator", self._discriminator_loss, batch)
        return metrics | update("translator", self._translator_loss, batch)

    def _sources(self, batch: Batch) -> Tensor:
        """Return images of a in one batch with those of b if the identity term needs them, as in the authors' code."""
        return batch["a"] if is_zero(self.identity_weight) else torch.cat([batch["a"], batch["b"]])

    def _translate(self, batch: Batch) -> Batch:
        images = self._sources(batch)
        if not self.mirror_probability:
            return {"translated": self.network(images)}
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < self.mirror_probability
        return {"translated": self.network(_mirror(images, mirrored)), "mirrored": mirrored}

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        # Two forward passes, because batch norm must not mix the statistics of real and fake images.
        on_real = self.discriminator(batch["b"])
        on_fake = self.discriminator(batch["translated"][: len(batch["a"])].detach())
        loss = over_scales(self.loss.discriminator, on_real, on_fake)
        return loss, {
            "loss/discriminator": loss.detach(),
            "logits/real": mean_logit(on_real),
            "logits/fake": mean_logit(on_fake),
        }

    def _translator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        count = len(batch["a"])
        adversarial = generator_adversarial_loss(self.loss, self.discriminator, batch["b"], batch["translated"][:count])
        each = self._contrast(batch)
        contrast = each[:count].mean()
        loss = self.adversarial_weight * adversarial + self.contrast_weight * contrast
        metrics = {"loss/adversarial": adversarial.detach(), "loss/contrast": contrast.detach()}
        if not is_zero(self.identity_weight):
            identity = each[count:].mean()
            loss = loss + self.identity_weight * identity
            metrics["loss/identity"] = identity.detach()
        return loss, metrics | {"loss/translator": loss.detach()}

    def _contrast(self, batch: Batch) -> Tensor:
        """Return the PatchNCE loss of every translated image [N], averaged over layers."""
        features = self.network.encode(batch["translated"], self.layers)
        if "mirrored" in batch:
            features = [_mirror(each, batch["mirrored"]) for each in features]
        # The positions are the same in all images of a batch, as in the authors' code.
        places = [torch.randperm(each[0, 0].numel(), device=each.device)[: self.num_patches] for each in features]
        queries = self.projections(features, places)
        with torch.no_grad():  # the output must follow the source, not vice versa
            keys = self.projections(self.network.encode(self._sources(batch), self.layers), places)
        losses = [patch_nce(q, k, temperature=self.temperature) for q, k in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean(dim=0)

    def check(self, batch: Batch) -> None:
        with torch.no_grad():
            batch = batch | self._translate(batch)
            self._discriminator_loss(batch)
            self._translator_loss(batch)

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return images of a and their translations side by side."""
        return {"a2b": in_blocks(side_by_side([batch["a"], self.translate(batch["a"])]))}


class Projections(nn.Module):
    """The perceptrons H, with one hidden layer, between the features of each layer and the loss.

    Args:
        channels: Number of channels C of each layer.
        dim: Output dimension D.
    """

    def __init__(self, *, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, dim), nn.ReLU(), nn.Linear(dim, dim)) for inputs in channels
        )
        for linear in (layer for layer in self.modules() if isinstance(layer, nn.Linear)):
            nn.init.xavier_normal_(linear.weight, _GAIN)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Project features [N, C, H, W] of each layer at its positions [P], counted row by row, to [N, P, D]."""
        return [
            perceptron(each.flatten(2).index_select(2, at).transpose(1, 2))
            for perceptron, each, at in zip(self.perceptrons, features, places, strict=True)
        ]


def _encoder_channels(translator: Translator, layers: Sequence[int]) -> list[int]:
    """Return the numbers of channels of the translator's features at ``layers``.

    Raises:
        ValueError: If the translator has no such layers, or cannot encode its own output.
    """
    kind = f"{type(translator).__module__}.{type(translator).__name__}"
    if not isinstance(translator, Translator):
        raise ValueError(f"translator={kind} has no layers to compare: choose genimg.networks.resnet_translator.Translator")
    if translator.source_channels != translator.target_channels:
        raise ValueError(
            f"translator.source_channels={translator.source_channels} must be {translator.target_channels}, like its "
            "target_channels, because one encoder sees the images of both domains: read both with the same number of channels"
        )
    last = len(translator.encoder_channels) - 1
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > last:
        raise ValueError(
            f"layers={list(layers)} must be one or more increasing numbers, from 0 (the image) to {last} (the last "
            "residual block)"
        )
    return [translator.encoder_channels[layer] for layer in layers]


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror, left to right, the images [N, C, H, W] selected by ``mirrored`` [N, 1, 1, 1]."""
    return torch.where(mirrored, images.flip(3), images)
