"""What a training algorithm is, and what it may ask of the training loop."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.errors import ConfigError, UserError
from genimg.types import Batch, LossFunction, Metrics, Microbatches, PixelLikelihood, Progress


class Update(Protocol):
    """What a method may ask of the training loop; precision, accumulation, clipping and checks happen behind it."""

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        """Add ``function``'s results to every microbatch, with the graph that the next update of ``group`` needs.

        A GAN makes its fakes once this way, and both updates use them. With several microbatches no graph is kept, which would
        live through the updates in between: that update computes the same results again, microbatch by microbatch.
        """
        ...

    def through(
        self, group: str, function: Callable[[Batch], Batch], loss: LossFunction, batch: Microbatches
    ) -> tuple[Microbatches, Metrics]:
        """One optimizer step whose loss is that of ``function``'s results.

        Returns:
            The microbatches with these results, which have no graph if there are several, and the metrics.
        """
        ...

    def __call__(self, group: str, loss: LossFunction, batch: Microbatches) -> Metrics:
        """One optimizer step on one parameter group. Only that group's parameters receive gradients."""
        ...


@contextlib.contextmanager
def refusals_of(name: str, part: object) -> Iterator[None]:
    """Say in terms of a method what one of its parts refuses in terms of its own parameters.

    Args:
        name: Parameter of the method that the part was given as.
        part: The part.

    Raises:
        UserError: If the part raises one: of the same type, in which ``limit=0`` is ``NAME.limit=0``.
    """
    try:
        yield
    except UserError as error:
        raise error.mounted(name, inspect.signature(type(part)).parameters) from error


def require_shape(name: str, output: object, wanted: Tensor, what: str) -> None:
    """Check that a network gives tensors of another tensor's shape.

    Args:
        name: Parameter of the method that the network was given as.
        output: What it gives.
        wanted: A tensor of the shape that is needed.
        what: The tensor in words, for the message.

    Raises:
        ConfigError: If the shapes differ.
    """
    if not isinstance(output, Tensor) or output.shape != wanted.shape:
        given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"{name} gives {given}, but must give {list(wanted.shape)}, the shape of {what}", key=name)


def require_latent_dim(name: str, network: nn.Module, dim: int, named: str) -> None:
    """Check that a network takes the latents that a method draws.

    Args:
        name: Parameter of the method that the network was given as.
        network: A network; one without a ``latent_dim`` passes.
        dim: Z, of the method's latents.
        named: Parameter that says Z.

    Raises:
        ConfigError: If it takes latents of another dimension.
    """
    taken = getattr(network, "latent_dim", dim)
    if taken != dim:
        raise ConfigError(f"{named}={dim} must be {taken}, the latent_dim of the {name}", key=named)


class Method(nn.Module, ABC):
    """A training algorithm: owns the networks and losses and knows the order of the updates.

    It is a Module so that ``state_dict()`` covers everything a checkpoint needs (networks, averages, pools).
    """

    batch_keys: tuple[str, ...] = ("image",)
    """What the data must provide."""

    optional_batch_keys: tuple[str, ...] = ()
    """What it likes to have beside them where the data has it, to show more in its pictures."""

    sampled_weights: str = "raw"
    """``ema`` where ``sample`` uses averaged weights; recorded beside every metric."""

    sampled_mode: str = "eval"
    """``train`` where ``sample`` or ``translate`` keeps dropout and batch statistics on; recorded beside every metric."""

    @property
    def sampled_noise(self) -> str | None:
        """What noise ``sample`` adds inside the network, as StyleGAN2 has it; None where there is none."""
        return None

    reconstructs: ClassVar[bool] = False
    """Whether it is an autoencoder, with a ``reconstruct`` of its own."""

    takes_conditions: ClassVar[bool] = False
    """Whether the ``conditioning`` group has an effect on it."""

    translates: ClassVar[bool] = False
    """Whether it makes images from images, with a ``translate`` of its own, instead of from draws alone."""

    directions: ClassVar[tuple[str, ...]] = ()
    """Of a method that translates more than one way; the first is the default."""

    loss_type: ClassVar[type]
    """The kind of loss this method can be trained with; the build refuses any other."""

    num_classes: int = 0
    """K, of a model conditioned on labels."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each named update trains; every group has its own optimizer."""

    def lazy_regularisation_ratio(self, group: str) -> float:
        """Further updates of ``group`` by lazy penalties, for each of its own; its optimizer is corrected for them."""
        return 0.0

    condition_bank_size: ClassVar[int] = 0
    """How many captions ``set_condition_bank`` takes; 0 for a method without conditions."""

    def set_condition_bank(self, batch: Batch) -> None:
        """Take the data's conditions to sample from, once, before training: all labels, or ``condition_bank_size`` captions."""

    @abstractmethod
    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        """All updates for one batch, in the order of the method's paper."""

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Everything random that ``sample`` needs, as a function of ``seed`` and each sample's index alone.

        So neither the batch size nor the number of processes changes which images are generated.
        """
        return {}

    def labels_of(self, count: int, seed: int) -> Tensor | None:
        """Labels int64 [count] for an evaluation of so many images, in random order, with exactly the data's class shares.

        They replace those of ``draw``, whose shares vary by chance. None for a model that is not told a class.
        """
        return None

    def truncated(self, drawn: Batch, amount: float) -> Batch:
        """A drawn batch (on the CPU) for samples that vary less, and are better where the model is good.

        Args:
            drawn: from ``draw``.
            amount: 0 or more; the smaller, the nearer to the average.

        Raises:
            ConfigError: If there is nothing to truncate.
        """
        raise ConfigError(f"truncation={amount:g} has no effect on a {type(self).__name__}, which has no latents", "remove it")

    def with_noise(self, drawn: Batch, mode: str) -> Batch:
        """A drawn batch (on the CPU) for samples with another kind of noise inside the network.

        Args:
            drawn: from ``draw``.
            mode: ``random``, as drawn; ``const``: fixed, the same for all samples; ``none``.

        Raises:
            ConfigError: If there is no such mode, or no such noise.
        """
        raise ConfigError(f"noise={mode} has no effect on a {type(self).__name__} without noise in its network", "remove it")

    def before_saving(self) -> None:
        """Called on every rank before a checkpoint is taken; without randomness."""

    def before_sampling(self) -> None:
        """Called before samples are drawn with weights that have changed since; without randomness."""

    def sample(self, batch: Batch) -> Tensor:
        """Generated images [N, C, H, W] in [-1, 1] for a drawn batch: evaluation mode, averaged weights, no gradient."""
        raise NotImplementedError(f"{type(self).__name__} makes no images from draws alone")

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        """What it makes of sources [N, S, H, W] in [-1, 1]: [N, T, H, W], without gradient; for methods that ``translates``.

        Args:
            source: of any height and width that are multiples of ``size_divisor``.
            direction: one of ``directions``.
        """
        raise NotImplementedError(f"{type(self).__name__} does not translate images")

    @property
    def likelihood(self) -> PixelLikelihood | None:
        """p(x | z), of a method that estimates log p(x) by ``log_likelihood``."""
        return None

    @property
    def size_divisor(self) -> int:
        """What the height and width of ``translate``'s sources must be multiples of."""
        return 1

    def reconstruct(self, batch: Batch) -> Tensor:
        """Encode and decode a batch's images [N, C, H, W] in [-1, 1], without noise; for methods that say ``reconstructs``."""
        raise NotImplementedError(f"{type(self).__name__} is not an autoencoder")

    def encode(self, batch: Batch) -> Tensor:
        """Encode a batch's images [N, C, H, W] in [-1, 1] into what the decoder takes; for methods that say ``reconstructs``.

        Returns:
            Latents float32 [N, Z], without noise; of a VQ-VAE its codes, int64 [N, h, w].
        """
        raise NotImplementedError(f"{type(self).__name__} is not an autoencoder")

    def perturb(self, image: Tensor, drawn: Batch, spread: float) -> Batch:
        """A drawn batch [N] whose samples lie around one image: latents at ``spread`` standard deviations of the prior's.

        Args:
            image: [1, C, H, W] in [-1, 1].
            drawn: from ``draw``; conditions are the image's, too.
            spread: 0 gives the image's reconstruction N times.

        Raises:
            ConfigError: If the method encodes no images into latents.
        """
        raise ConfigError(f"near has no effect on a {type(self).__name__}, which encodes no images", "remove it", key="near")

    def log_likelihood(self, batch: Batch, num_samples: int, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Estimates for every image of a batch [N], in nats; for methods with a ``likelihood``.

        Args:
            batch: images and conditions.
            num_samples: K, of the latents of an image.
            keys: [N]; what is random about image i is a function of ``keys[i]`` alone.

        Returns:
            ``log_likelihood``, the importance-weighted estimate of log p(x) from K samples; ``elbo``, ``reconstruction`` and
            ``kl`` of the same samples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood")

    @abstractmethod
    def check(self, batch: Batch) -> None:
        """Run every network once on a batch of the data, so that a shape that does not fit shows before training."""

    @abstractmethod
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Named images in [-1, 1] to look at, from fixed data and fixed draws: [M, C, H, W] or [rows, columns, C, H, W]."""
