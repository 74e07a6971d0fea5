"""VQ-VAE: van den Oord et al., "Neural discrete representation learning", NeurIPS 2017, with the prior of its section 3.3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.diffusion.noise import KEPT
from genimg.errors import ConfigError
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.base import Update, errors_of
from genimg.methods.conditional import ConditionalMethod, shared_encoder
from genimg.methods.export_spec import ExportSpec, integer_port
from genimg.methods.latent_space import CodeSpace
from genimg.methods.modes import eval_mode
from genimg.methods.options import CodeOptions
from genimg.networks.code_transformer import CodeTransformer
from genimg.networks.pixel_cnn import PixelCNN
from genimg.networks.vector_quantizer import Usage, VectorQuantizer, perplexity, straight_through
from genimg.networks.vq_autoencoder import Decoder, Encoder
from genimg.schedules import Number, Scheduled, is_within, shown
from genimg.types import Batch, Metrics, Microbatches, Progress
from genimg.utils.durations import NumImages
from genimg.utils.rng import Stream, keys_of, mixed_keys, uniform_field, uniform_numbers


class VQVAE(ConditionalMethod):
    """An autoencoder whose latents are a grid of codes, and an autoregressive prior of these codes to sample from.

    In the paper's two stages, ``prior_from`` equals ``autoencoder_until``: first the autoencoder is trained alone, then the
    prior alone, on codes that no longer change. If the stages overlap, the prior learns the codes of each step.

    Args:
        encoder: Network, image [N, C, H, W] -> vectors [N, D, h, w].
        decoder: Network, code vectors [N, D, h, w] -> image [N, C, H, W].
        quantizer: Codebook.
        prior: Prior of the codes, with an encoder ``condition``.
        loss: Distance of the reconstruction from the image; its masks are not used.
        data_variance: Variance of the data's values in [-1, 1]. The distance is divided by it, as in the authors' code
            (sonnet's VQ-VAE example). A squared error of 1 is then that of the best constant image, and ``commitment_weight``
            has the same meaning for all data.
        commitment_weight: Weight beta of equation 3, for the mean squared distance of the encoder's output from the codes, over
            D and all positions. The paper found no difference between 0.1 and 2.
        autoencoder_until: Images seen after which encoder, decoder and codebook are frozen; None for never.
        prior_from: Images seen from which the prior is trained.

    Raises:
        ValueError: If a setting is out of range, or the parts are incompatible.
    """

    loss_type = ReconstructionLoss
    inference_networks = ("encoder", "decoder", "quantizer", "prior")
    latent_space = CodeSpace
    sampling_options = CodeOptions()
    commitment_weight = Scheduled()

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: VectorQuantizer,
        prior: PixelCNN | CodeTransformer,
        loss: ReconstructionLoss,
        data_variance: float,
        commitment_weight: Number,
        autoencoder_until: NumImages | None,
        prior_from: NumImages,
    ) -> None:
        super().__init__()
        if not is_within(commitment_weight, 0):
            raise ValueError(f"commitment_weight={shown(commitment_weight)} must be 0 or more")
        if not data_variance > 0:
            raise ValueError(f"data_variance={data_variance} must be above 0")
        if autoencoder_until is not None and prior_from > autoencoder_until:
            raise ValueError(
                f"prior_from={prior_from} images is later than autoencoder_until={autoencoder_until} images, so nothing would "
                "be trained in between: make them equal, or prior_from smaller"
            )
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if part.dim != quantizer.dim:
                raise ValueError(f"{name}.dim={part.dim} must be that of the quantizer, {quantizer.dim}")
        if prior.num_codes != quantizer.num_codes:
            raise ValueError(f"prior.num_codes={prior.num_codes} must be that of the quantizer, {quantizer.num_codes}")
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer
        self.prior = prior
        self.loss = loss
        self.data_variance = data_variance
        self.commitment_weight = commitment_weight
        self.autoencoder_until = autoencoder_until
        self.prior_from = prior_from
        self._read_conditions(shared_encoder(prior=prior))
        if prior.condition_dropout:
            self.batch_keys = (*self.batch_keys, "noise_key")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        parts = (self.encoder, self.quantizer, self.decoder)
        return {
            "autoencoder": [parameter for part in parts for parameter in part.parameters()],
            "prior": list(self.prior.parameters()),
        }

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        metrics: Metrics = {}
        if self.autoencoder_until is None or not progress.reached(self.autoencoder_until):
            batch, metrics = update.through("autoencoder", self._quantize, self._autoencoder_loss, batch)
            counts = self.quantizer.learn([Usage(*(each[f"usage/{key}"] for key in Usage._fields)) for each in batch])
            metrics["codebook/perplexity"] = perplexity(counts)
            metrics["codebook/used_codes"] = (counts > 0).sum()
        if progress.reached(self.prior_from):
            metrics |= update("prior", self._prior_loss, batch)
        return metrics

    def _quantize(self, batch: Batch) -> Batch:
        features = self.encoder(batch["image"]).float()
        codes, vectors = self.quantizer(features)
        usage = self.quantizer.usage(features, codes)._asdict()
        return {"features": features, "codes": codes, "vectors": vectors} | {f"usage/{key}": usage[key] for key in usage}

    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Compute equation 3, with the reconstruction error in units of the data's variance."""
        features, vectors = batch["features"], batch["vectors"]
        output = self.decoder(straight_through(features, vectors))
        reconstruction, metrics = self.loss.with_metrics(output, batch["image"])
        commitment = F.mse_loss(features, vectors.detach())
        loss = reconstruction / self.data_variance + self.commitment_weight * commitment
        metrics["loss/commitment"] = commitment.detach()
        if self.quantizer.decay is None:
            loss = loss + F.mse_loss(vectors, features.detach())  # equal in value to the commitment
        return loss, metrics | {"loss/total": loss.detach()}

    def _prior_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Return the codes' negative log-likelihood in nats per image."""
        codes = batch["codes"] if "codes" in batch else self.encode(batch)
        kept: tuple[Tensor, ...] = ()
        if self.prior.condition_dropout:
            kept = (uniform_numbers(mixed_keys(batch["noise_key"], KEPT), ()) >= self.prior.condition_dropout,)
        logits = self.prior(codes, self._condition(batch), *kept).float()
        nats = F.cross_entropy(logits, codes, reduction="sum") / len(codes)
        bits = nats.detach() / (codes[0].numel() * math.log(2.0))
        return nats, {"loss/prior_nats": nats.detach(), "loss/prior_bits_per_code": bits}

    @torch.no_grad()
    def encode(self, batch: Batch) -> Tensor:
        """Return the codes of a batch's images [N, C, H, W] in [-1, 1]: int64 [N, h, w]."""
        with eval_mode(self.encoder):
            return self.quantizer.nearest(self.encoder(batch["image"]))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes, int64 [N, h, w], into images [N, C, H, W] in [-1, 1]."""
        with eval_mode(self.decoder):
            return self.decoder(self.quantizer.lookup(codes)).float().clamp(-1.0, 1.0)

    def reconstruct(self, batch: Batch) -> Tensor:
        return self.decode(self.encode(batch))

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        keys = keys_of(seed, Stream.CODE, np.asarray(indices))
        return {"uniform": uniform_field(keys, self.encoder.grid, torch.device("cpu"))} | self._draw_conditions(indices, seed)

    def check_options(self, options: CodeOptions) -> None:
        if options.guidance != 1 and not self.prior.condition_dropout:
            why = "reads no condition" if self.condition_key is None else "was trained without condition_dropout"
            raise ConfigError(
                f"guidance={options.guidance:g} has no effect on a model whose prior {why}: choose 1", key="guidance"
            )

    @torch.no_grad()
    def sample(self, batch: Batch, options: CodeOptions | None = None) -> Tensor:
        uniform = batch["uniform"]
        condition = uniform.new_empty(len(uniform), 0) if self.condition_key is None else batch[self.condition_key]
        options = options or self.sampling_options
        temperature = options.temperature or 1.0
        with eval_mode(self.prior):
            if isinstance(self.prior, PixelCNN):
                return self.decode(self.prior.sample(uniform, condition, temperature=temperature))
            codes = self.prior.sample(uniform, condition, temperature=temperature, guidance=options.guidance)
            return self.decode(codes)

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Export the codebook and the decoder."""

        def images(parts: Any, batch: Batch) -> Tensor:
            return parts.decoder(F.embedding(batch["codes"], parts.codebook).permute(0, 3, 1, 2).contiguous())

        return ExportSpec(
            name="decoder",
            parts={"decoder": self.decoder, "codebook": self.quantizer.codebook},
            inputs=(integer_port("codes", "code", self.quantizer.num_codes, *self.encoder.grid),),
            forward=images,
            reference=lambda batch: self.decode(batch["codes"]),
            remarks=("it does not include the prior that draws codes: to sample, use genimg-sample",),
        )

    def check(self, batch: Batch) -> None:
        image = batch["image"]
        reconstruction = self.reconstruct(batch)
        with errors_of("loss", self.loss):
            self.loss(reconstruction, image)
        drawn = self.draw(range(len(image)), 0)
        keys = {"noise_key": torch.arange(len(image), device=image.device)}
        self._prior_loss(batch | keys | {key: value.to(image.device) for key, value in drawn.items()})

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples, and inputs with their reconstructions in the next column."""
        image = batch["image"]
        pairs = torch.stack([image, self.reconstruct(batch)], dim=1).flatten(0, 1)
        return {"samples": self._sample_by_class(drawn), "reconstructions": pairs}
