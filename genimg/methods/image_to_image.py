"""Common code of methods that translate images into images."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.errors import ConfigError
from genimg.losses.adversarial import AdversarialLoss
from genimg.methods.base import Method
from genimg.methods.capabilities import Translates
from genimg.methods.modes import eval_mode, train_mode
from genimg.types import Batch
from genimg.utils.images import on_white

MODES = ("eval", "train")
_CHOOSE_MODE = "choose eval, or train for dropout and batch statistics as in training"


class Translation(Method):
    """A method that translates images into images.

    Args:
        task: Task of the training data.
    """

    directions: ClassVar[tuple[str, ...]] = ()
    sampled_mode: str = "eval"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    @abstractmethod
    def translator(self, direction: str | None) -> nn.Module:
        """Return the network that translates in one of ``directions``."""

    @property
    def size_divisor(self) -> int:
        networks = (self.translator(direction) for direction in self.directions or (None,))
        return math.lcm(*(int(getattr(network, "size_divisor", 1)) for network in networks))

    @torch.no_grad()
    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        assert direction is None or direction in self.directions
        mode = train_mode if self.sampled_mode == "train" else eval_mode
        with mode(self.translator(direction)) as network:
            if self.sampled_mode == "train":  # each image has its own batch statistics, as in training with a batch size of 1
                return torch.cat([network(image) for image in source.split(1)]).float()
            output: Tensor = network(source)
            return output.float()

    def set_mode(self, model_mode: str) -> None:
        """Override the mode in which images are translated.

        Args:
            model_mode: One of ``MODES``.

        Raises:
            ConfigError: If the mode is unknown, or training mode changes nothing.
        """
        networks = [self.translator(direction) for direction in self.directions or (None,)]
        changing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
        if model_mode not in MODES:
            raise ConfigError(f"model_mode={model_mode} is unknown", _CHOOSE_MODE)
        if model_mode == "train" and not any(isinstance(x, changing) for net in networks for x in net.modules()):
            raise ConfigError("model_mode=train has no effect on a model with neither dropout nor batch norm", "remove it")
        self.sampled_mode = model_mode


def pictures_of(method: Translates, batch: Batch, output: Tensor | None = None) -> Tensor:
    """Return each source, its translation and its target: [N, 3, C, H, W].

    Args:
        method: The model.
        batch: Sources and targets.
        output: Translations [N, T, H, W]; None for those of ``translate``.
    """
    source, task = batch["source"], method.task
    output = method.translate(source) if output is None else output
    return side_by_side((task.shown(source), task.result(output, source), task.result(batch["target"], source)))


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Stack images [N, C, H, W] with 1, 3 or 4 channels into [N, K, C, H, W] with 1 or 3, compositing alpha on white."""
    opaque = [on_white(each) for each in images]
    channels = max(each.shape[1] for each in opaque)
    return torch.stack([each.expand(-1, channels, -1, -1) for each in opaque], dim=1)


def in_blocks(rows: Tensor) -> Tensor:
    """Arrange rows of pictures [N, K, C, H, W] in B blocks side by side, roughly in a square: [R, B x K, C, H, W].

    The rest of the last row is white.
    """
    count, width = rows.shape[:2]
    blocks = max(1, round((count / width) ** 0.5))
    missing = -count % blocks
    rows = torch.cat([rows, rows.new_ones(missing, *rows.shape[1:])])
    return rows.unflatten(0, (-1, blocks)).flatten(1, 2)


def checked_mode(sampled_mode: str) -> str:
    """Return ``sampled_mode`` if it is ``eval`` or ``train``.

    Raises:
        ValueError: If it is neither.
    """
    if sampled_mode not in MODES:
        raise ValueError(f"sampled_mode={sampled_mode} is unknown: {_CHOOSE_MODE}")
    return sampled_mode


def mixes_images(network: nn.Module) -> bool:
    """Return whether a network's output for an image depends on the rest of the batch, as with batch norm."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def together(network: Callable[[Tensor], Tensor], *images: Tensor, apart: bool) -> list[Tensor]:
    """Apply a network to each of several batches, in one forward pass unless ``apart``."""
    if apart:
        return [network(each) for each in images]
    return list(network(torch.cat(images)).split([len(each) for each in images]))


def over_scales(loss: Callable[..., Tensor], *logits: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the mean of an adversarial loss over a discriminator's scales, each with its own patches."""
    scales = zip(*map(_as_scales, logits), strict=True)
    return torch.stack([loss(*(each.float() for each in scale)) for scale in scales]).mean()


def _as_scales(logits: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def generator_adversarial_loss(
    loss: AdversarialLoss, discriminator: Callable[[Tensor], Sequence[Tensor] | Tensor], real: Tensor, fake: Tensor
) -> Tensor:
    """Return the translator's adversarial loss; a relativistic loss also uses the real images."""
    on_fake = discriminator(fake)
    return over_scales(loss.generator, *([discriminator(real), on_fake] if loss.relativistic else [on_fake]))


def mean_logit(logits: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the mean logit of the first scale, for logging."""
    return _as_scales(logits)[0].detach().float().mean()
