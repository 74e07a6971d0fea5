"""Generative adversarial networks: Goodfellow et al., "Generative adversarial nets", NeurIPS 2014, algorithm 1."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genimg.errors import ConfigError
from genimg.losses.adversarial import AdversarialLoss, AuxiliaryClassification
from genimg.losses.penalties import (
    DRAGAN,
    R1,
    R2,
    DiscriminatorPenalty,
    GeneratorPenalty,
    GradientPenalty,
    PenaltyInputs,
    WeightClipping,
)
from genimg.methods.base import Update, errors_of, require_latent_dim, require_shape
from genimg.methods.conditional import ConditionalMethod, condition_ports, exported_condition, shared_encoder
from genimg.methods.discriminator_augment import AdaptiveAugment, Augment
from genimg.methods.export_spec import ExportSpec, Port
from genimg.methods.latent import Latent
from genimg.methods.modes import eval_mode, take_standing_statistics
from genimg.methods.options import LatentOptions, StyleOptions
from genimg.networks.conditioning import conditional
from genimg.networks.discriminator import DiscriminatorOutput, as_discriminator_output
from genimg.networks.style_based import StyleBased
from genimg.types import Batch, Metrics, Microbatches, Progress
from genimg.utils.numbers import require_least
from genimg.utils.rng import Stream, keys_of

log = logging.getLogger(__name__)

_STANDING = 64  # latents per batch for standing statistics

Penalty = DiscriminatorPenalty | GeneratorPenalty | WeightClipping

_Forward = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Real and generated images and their logits, from the forward passes of the discriminator's update."""


class GAN(ConditionalMethod):
    """Alternating updates of a discriminator and a generator.

    Each step generates its fakes once, and both updates use them, as in PyTorch's DCGAN example. The authors' code of most
    papers draws new latents for the generator's update. Fakes have the same conditions as the step's real images.

    Args:
        generator: Network, (latent [N, Z], condition) -> image [N, C, H, W] in [-1, 1], with an encoder ``condition``; any
            other module gets the latent alone.
        discriminator: Network, (image, condition) -> DiscriminatorOutput, or logits [N] or [N, 1], with an encoder
            ``condition``; any other module gets the image alone.
        loss: Pair of losses.
        latent: Distribution of the latents.
        penalties: Penalties of either network, by name.
        discriminator_augment: Augmentation applied to discriminator inputs; None for none.
        auxiliary: Weights of the discriminator's classifier; None if it has none.
        generator_interval: Number of steps per generator update (n_critic).
        generator_batches: Number of batches of fakes in the generator's update.
        standing_stats_batches: Number of batches of 64 latents from which batch norm's statistics are recomputed before
            sampling; 0 keeps the averages from training.
        fresh_latents: Whether the generator's update generates new images from new latents, after the discriminator's update;
            otherwise both updates use the same images.
        dequantisation: Width of the uniform noise added to real images in [-1, 1]; 0 adds none. SNGAN's code uses 1/128, the
            width of one of 256 levels.
        generator_lazy_interval: Number of generator updates. Adam is corrected as if there were a lazy penalty with this
            interval, as in StyleGAN2-ADA's code if path length has weight 0. None corrects only for existing penalties.
    """

    loss_type = AdversarialLoss
    inference_networks = ("generator",)

    def __init__(
        self,
        *,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        latent: Latent,
        penalties: Mapping[str, Penalty],
        discriminator_augment: Augment | None,
        auxiliary: AuxiliaryClassification | None,
        generator_interval: int,
        generator_batches: int,
        standing_stats_batches: int = 0,
        fresh_latents: bool = False,
        dequantisation: float = 0.0,
        generator_lazy_interval: int | None = None,
    ) -> None:
        super().__init__()
        require_least(1, generator_interval=generator_interval, generator_batches=generator_batches)
        if generator_lazy_interval is not None and generator_lazy_interval < 2:
            raise ValueError(f"generator_lazy_interval={generator_lazy_interval} must be 2 or more updates, or null")
        if dequantisation < 0:
            raise ValueError(f"dequantisation={dequantisation} must be 0 or more")
        if standing_stats_batches < 0:
            raise ValueError(f"standing_stats_batches={standing_stats_batches} must be 0 or more")
        self.generator = conditional("generator", generator)
        self.discriminator = conditional("discriminator", discriminator)
        self.loss = loss
        self.latent = latent
        self.penalties = nn.ModuleDict(penalties)
        self.discriminator_augment = discriminator_augment
        self.auxiliary = auxiliary
        self.generator_interval = self.inference_interval = generator_interval
        self.generator_batches = generator_batches
        self.standing_stats_batches = standing_stats_batches
        self.fresh_latents = fresh_latents
        self.dequantisation = dequantisation
        self.generator_lazy_interval = generator_lazy_interval
        self._read_conditions(shared_encoder(discriminator=self.discriminator, generator=self.generator))
        self._check_parts()

    def _check_parts(self) -> None:
        require_latent_dim("generator", self.generator, self.latent.dim, "latent.dim")
        if self.discriminator_augment is not None and not isinstance(self.discriminator_augment, Augment):
            kind = type(self.discriminator_augment).__name__
            raise ValueError(f"discriminator_augment is a {kind}, but must be an Augment (genimg.methods), or none")
        for name, penalty in self.penalties.items():
            if not isinstance(penalty, DiscriminatorPenalty | GeneratorPenalty | WeightClipping):
                raise ValueError(f"penalties.{name} is a {type(penalty).__name__}, which is not a GAN penalty")
            if isinstance(penalty, GeneratorPenalty):
                penalty.check(self.generator)

    def _warn_of_unwise_choices(self) -> None:
        held = any(parametrize.is_parametrized(layer) for layer in self.discriminator.modules())
        if self.loss.unbounded and not self.penalties and not held:
            log.warning("this loss needs a Lipschitz-constrained critic: add a gradient penalty, or clip its weights")
        if self.loss.boundary is None and isinstance(self.discriminator_augment, AdaptiveAugment):
            log.warning("adaptive augmentation: the sign of this loss's logits does not show overfitting; choose DiffAugment")
        mixes = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.discriminator.modules())
        if mixes and any(isinstance(penalty, GradientPenalty | DRAGAN | R1 | R2) for penalty in self.penalties.values()):
            log.warning(
                "gradient penalties assume that each logit depends on one image only, but the discriminator's batch norm mixes "
                "a batch: use layer normalisation or none, as the authors of the penalties do"
            )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def lazy_regularisation_ratio(self, group: str) -> float:
        share = sum(1.0 / penalty.interval for _, penalty in self._penalties_of(group) if penalty.interval > 1)
        if group == "generator" and self.generator_lazy_interval is not None:
            return max(share, 1.0 / self.generator_lazy_interval)
        return share

    def _penalties_of(self, group: str) -> list[tuple[str, DiscriminatorPenalty | GeneratorPenalty]]:
        kind = DiscriminatorPenalty if group == "discriminator" else GeneratorPenalty
        return [(name, penalty) for name, penalty in self.penalties.items() if isinstance(penalty, kind)]

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        if self.discriminator_augment is not None:
            self.discriminator_augment.begin(progress.batch_size)
        train_generator = progress.due(self.generator_interval)
        generate = partial(self._generate, batches=self.generator_batches)
        if self.dequantisation:
            batch = update.forward("discriminator", self._dequantise, batch)
        if train_generator and not self.fresh_latents:
            batch = update.forward("generator", generate, batch)
        metrics = update("discriminator", self._discriminator_loss, batch)
        metrics |= self._update_lazily("discriminator", batch, progress, update)
        for clipping in self.penalties.values():
            if isinstance(clipping, WeightClipping):
                clipping.clip(self.discriminator)
        if train_generator:
            if self.fresh_latents:
                batch = update.forward("generator", generate, batch)
            metrics |= update("generator", self._generator_loss, batch)
            metrics |= self._update_lazily("generator", batch, progress, update)
        return metrics if self.discriminator_augment is None else metrics | self.discriminator_augment.metrics()

    def _update_lazily(self, group: str, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        """Run one update for each lazy penalty that is due, on the penalty times its interval."""
        metrics: Metrics = {}
        steps = 1 if group == "discriminator" else self.generator_interval  # per update of the group
        for name, penalty in self._penalties_of(group):
            if penalty.interval > 1 and progress.due(steps * penalty.interval):
                found = update(group, partial(self._penalty, name, penalty, penalty.interval), batch)
                metrics |= {key: value for key, value in found.items() if not key.startswith("grad_norm/")}
        return metrics

    def _generate(self, batch: Batch, *, batches: int) -> Batch:
        condition = torch.cat([self._condition(batch)] * batches)
        latent = self.latent.random(len(condition), condition.device)
        return {"fake": self.generator(latent, condition), "fake_condition": condition, "latent": latent}

    def _dequantise(self, batch: Batch) -> Batch:
        return {"image": batch["image"] + self.dequantisation * torch.rand_like(batch["image"])}

    def _discriminate(self, images: Tensor, condition: Tensor) -> DiscriminatorOutput:
        # Images that require a gradient need second derivatives, which PyTorch lacks for compiled networks.
        judge = self.discriminator.forward if images.requires_grad and images.is_leaf else self.discriminator
        return as_discriminator_output(judge(self._augmented(images), condition))

    def _augmented(self, images: Tensor) -> Tensor:
        return images if self.discriminator_augment is None else self.discriminator_augment(images)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        count = len(batch["image"])
        made = batch if "fake" in batch else batch | self._generate(batch, batches=1)
        real, fake, condition = batch["image"], made["fake"][:count].detach(), self._condition(batch)
        reused = set().union(
            *(penalty.reuses for penalty in self.penalties.values() if isinstance(penalty, DiscriminatorPenalty))
        )
        real = real.detach().float().requires_grad_() if "real" in reused else real
        fake = fake.float().requires_grad_() if "fake" in reused else fake
        # Two forward passes, because batch norm must not mix the statistics of real and fake images.
        on_real, on_fake = self._discriminate(real, condition), self._discriminate(fake, condition)
        real_logits, fake_logits = on_real.logits.float(), on_fake.logits.float()
        if self.discriminator_augment is not None:
            self.discriminator_augment.observe(real_logits.detach() - (self.loss.boundary or 0.0))
        loss = self.loss.discriminator(real_logits, fake_logits)
        metrics = {
            "loss/discriminator": loss.detach(),
            "logits/real": real_logits.detach().mean(),
            "logits/fake": fake_logits.detach().mean(),
        }
        if self.auxiliary is not None:
            for name, judged, weight in (
                ("real", on_real, self.auxiliary.real_weight),
                ("fake", on_fake, self.auxiliary.fake_weight),
            ):
                entropy = _cross_entropy(judged, condition)
                loss = loss + weight * entropy
                metrics[f"loss/class_{name}"] = entropy.detach()
        own_forward = ((real, on_real.logits), (fake, on_fake.logits)) if reused else None
        penalties, found = self._eager_penalties("discriminator", made, own_forward)
        return loss + penalties, metrics | found

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        judged = self._discriminate(batch["fake"], batch["fake_condition"])
        fake_logits = judged.logits.float()
        if self.loss.relativistic:
            real = self._discriminate(batch["image"], self._condition(batch)).logits.float()
            loss = self.loss.generator(real.repeat(self.generator_batches), fake_logits)
        else:
            loss = self.loss.generator(fake_logits)
        metrics = {"loss/generator": loss.detach()}
        if self.auxiliary is not None:
            entropy = _cross_entropy(judged, batch["fake_condition"])
            loss = loss + self.auxiliary.generator_weight * entropy
            metrics["loss/class_generator"] = entropy.detach()
        penalties, found = self._eager_penalties("generator", batch)
        return loss + penalties, metrics | found

    def _eager_penalties(self, group: str, batch: Batch, own_forward: _Forward | None = None) -> tuple[Tensor, Metrics]:
        """Return the sum of the penalties that are part of every loss."""
        total = batch["image"].new_zeros(())
        metrics: Metrics = {}
        for name, penalty in self._penalties_of(group):
            if penalty.interval == 1:
                value, found = self._penalty(name, penalty, 1, batch, own_forward)
                total = total + value
                metrics |= found
        return total, metrics

    def _penalty(
        self,
        name: str,
        penalty: DiscriminatorPenalty | GeneratorPenalty,
        times: int,
        batch: Batch,
        own_forward: _Forward | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Return a penalty times ``times``, outside autocast; its logged value omits ``times``. See ``losses.penalties``."""
        made = batch if "fake" in batch else batch | self._generate(batch, batches=1)
        with torch.autocast(batch["image"].device.type, enabled=False):
            if isinstance(penalty, DiscriminatorPenalty):
                value, metrics = penalty(self._penalty_inputs(made, own_forward)), {}
            else:
                value, metrics = penalty(self.generator, made["latent"], made["fake_condition"])
        return times * value, metrics | {f"penalty/{name}": value.detach()}

    def _penalty_inputs(self, batch: Batch, own_forward: _Forward | None) -> PenaltyInputs:
        condition = self._condition(batch)
        count = len(condition)

        def plain_logits(images: Tensor) -> Tensor:
            return as_discriminator_output(self.discriminator.forward(images, condition)).logits

        @torch.no_grad()
        def perturb(std: float) -> tuple[Tensor, Tensor]:
            # Both sets need a new forward pass: the step's fakes may be in bfloat16, and rounding would count as a difference.
            latent = batch["latent"][:count]
            latents = torch.cat([latent, latent + std * torch.randn_like(latent)])
            fake, near = self.generator.forward(latents, torch.cat([condition, condition])).chunk(2)
            return fake, near

        return PenaltyInputs(
            real=batch["image"].float(),
            fake=batch["fake"][:count].detach().float(),
            logits=lambda images: plain_logits(self._augmented(images)),
            plain_logits=plain_logits,
            perturb=perturb,
            judged_real=own_forward and own_forward[0],
            judged_fake=own_forward and own_forward[1],
        )

    # Sampling

    @property
    def sampling_options(self) -> StyleOptions | LatentOptions:
        return StyleOptions() if isinstance(self.generator, StyleBased) else LatentOptions()

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw latents, conditions and, for a style-based generator, the key of each sample's noise."""
        drawn = {"latent": self.latent.at_indices(indices, seed)} | self._draw_conditions(indices, seed)
        if isinstance(self.generator, StyleBased):
            keys = keys_of(seed, Stream.PIXEL_NOISE, np.asarray(indices, dtype=np.int64))
            drawn["noise_key"] = torch.from_numpy(keys.view(np.int64))
        return drawn

    def check_options(self, options: StyleOptions | LatentOptions) -> None:
        if isinstance(options, LatentOptions) and options.truncation is not None:
            self.latent.truncated(torch.zeros(1, self.latent.dim), options.truncation)

    def before_sampling(self) -> None:
        device = next(self.generator.parameters()).device
        ranges = (range(start, start + _STANDING) for start in range(0, self.standing_stats_batches * _STANDING, _STANDING))
        drawn = ({key: value.to(device) for key, value in self.draw(numbers, 0).items()} for numbers in ranges)
        if self.standing_stats_batches:
            take_standing_statistics(self.generator, ((batch["latent"], self._condition(batch)) for batch in drawn))

    @torch.no_grad()
    def sample(self, batch: Batch, options: StyleOptions | LatentOptions | None = None) -> Tensor:
        """Generate images; options truncate the styles of a style-based generator, and the latents of any other."""
        latent, condition, options = batch["latent"], self._condition(batch), options or self.sampling_options
        with eval_mode(self.generator) as generator:
            if isinstance(options, LatentOptions):
                limit = options.truncation
                images: Tensor = generator(latent if limit is None else self.latent.truncated(latent, limit), condition)
                return images
            assert isinstance(generator, StyleBased)
            styles = generator.map_latents(latent, condition, 1.0 if options.truncation is None else options.truncation)
            keys = batch.get("noise_key") if options.noise == "random" else None
            return generator.synthesize(styles, keys, 0.0 if options.noise == "none" else 1.0)

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export the generator; if it is style-based, with its truncation and with fixed noise per pixel."""
        latent = Port("latent", torch.float32, ("batch", self.latent.dim), self.latent.describe())
        is_style_based = isinstance(self.generator, StyleBased)
        psi = truncation if is_style_based else None
        options = StyleOptions(truncation=psi, noise="const") if is_style_based else None

        def images(parts: Any, batch: Batch) -> Tensor:
            inputs = batch["latent"], exported_condition(batch, batch["latent"])
            if psi is None:
                return parts.generator(*inputs)
            return parts.generator.synthesize(parts.generator.map_latents(*inputs, psi))

        return ExportSpec(
            name="generator",
            parts={"generator": self.generator},
            inputs=(latent, *condition_ports(self.generator)),
            forward=images,
            reference=lambda batch: self.sample(batch, options),
            truncation=psi,
            remarks=("the per-pixel noise is fixed and the same for all images",) if is_style_based else (),
        )

    def check(self, batch: Batch) -> None:
        image = batch["image"]
        drawn = self.draw(range(len(image)), 0)
        made = self.sample(drawn)
        for images in (image, made):  # real first, so a discriminator's error is not blamed on the generator
            if images is made:
                require_shape("generator", made, image, "the data's images")
            with errors_of("discriminator_augment", self.discriminator_augment):
                augmented = self._augmented(images)
            judged = as_discriminator_output(self.discriminator(augmented, self._condition(drawn)))
        if (judged.class_logits is None) != (self.auxiliary is None):
            raise ConfigError(
                "auxiliary must be set if and only if the discriminator has an auxiliary classifier", key="auxiliary"
            )
        self._warn_of_unwise_choices()

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples; one class per row if the model is conditioned on labels."""
        return {"samples": self._sample_by_class(drawn)}


def _cross_entropy(judged: DiscriminatorOutput, labels: Tensor) -> Tensor:
    assert judged.class_logits is not None
    return F.cross_entropy(judged.class_logits.float(), labels)
