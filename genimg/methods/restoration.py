"""A translator trained only to match the target: denoising, inpainting, super-resolution, colorization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.errors import ConfigError
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.base import Update, errors_of, require_shape
from genimg.methods.image_to_image import Translation, in_blocks, pictures_of
from genimg.types import Batch, Metrics, Microbatches, Progress


class Restoration(Translation):
    """Regression from the source to the target; for an adversarial term, see ``pix2pix``.

    Args:
        translator: Network, source [N, S, H, W] -> output [N, T, H, W] in [-1, 1].
        loss: Distance of the output from the target.
        residual: Whether to add the source to the network's output, so the network only learns the difference (Zhang et al.
            2017, DnCNN). The first channels of the source must be those of the target, as in noisy images. ``auto`` adds it
            unless the source has fewer channels than the target, such as a grey image to be coloured.
        task: Task of the training data.
    """

    loss_type = ReconstructionLoss
    inference_networks = ("network",)
    batch_keys = ("source", "target")

    def __init__(self, *, translator: nn.Module, loss: ReconstructionLoss, residual: bool | str, task: Task) -> None:
        super().__init__(task)
        if residual not in (True, False, "auto"):
            raise ValueError(f"residual={residual} is unknown: choose auto, true or false")
        self.network = _Residual(translator, needed=residual is True) if residual else translator
        self.loss = loss

    def translator(self, direction: str | None) -> nn.Module:
        return self.network

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"translator": list(self.network.parameters())}

    def shardable_networks(self) -> tuple[str, ...]:
        return ("network",)

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("translator", self._loss, batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return self.loss.with_metrics(self.network(batch["source"]), batch["target"], batch.get("mask"))

    def check(self, batch: Batch) -> None:
        output = self.network(batch["source"])
        require_shape("translator", output, batch["target"], "the targets")
        with errors_of("loss", self.loss):
            self.loss(output, batch["target"], batch.get("mask"))

    @torch.no_grad()
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return sources, restored images and targets side by side."""
        return {"restored": in_blocks(pictures_of(self, batch))}


class _Residual(nn.Module):
    def __init__(self, translator: nn.Module, *, needed: bool) -> None:
        super().__init__()
        self.translator = translator
        self.needed = needed
        self.size_divisor: int = getattr(translator, "size_divisor", 1)

    def forward(self, source: Tensor) -> Tensor:
        output: Tensor = self.translator(source)
        if source.shape[1] < output.shape[1] and not self.needed:
            return output
        if source.shape[1] < output.shape[1]:
            raise ConfigError(
                f"residual=true adds sources of {source.shape[1]} channels to {output.shape[1]}", "set residual=false"
            )
        return 2.0 * output + source[:, : output.shape[1]]  # factor 2, because the tanh must be able to turn white into black
