"""Interface between training algorithms and the training loop."""

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
    """Updates that a method requests; the training loop handles precision, accumulation, clipping and checks."""

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        """Add ``function``'s results to every microbatch, with the graph that the next update of ``group`` needs.

        For example, a GAN generates its fakes once and uses them in both updates. With several microbatches, no graph is kept,
        because it would stay in memory during the updates in between. The next update of ``group`` then recomputes the results,
        one microbatch at a time.
        """
        ...

    def through(
        self, group: str, function: Callable[[Batch], Batch], loss: LossFunction, batch: Microbatches
    ) -> tuple[Microbatches, Metrics]:
        """Take one optimizer step on a loss of ``function``'s results.

        Returns:
            The microbatches with these results (without a graph if there are several), and the metrics.
        """
        ...

    def __call__(self, group: str, loss: LossFunction, batch: Microbatches) -> Metrics:
        """Take one optimizer step on one parameter group. Only that group's parameters receive gradients."""
        ...


@contextlib.contextmanager
def refusals_of(name: str, part: object) -> Iterator[None]:
    """Report errors of a part in terms of the method's parameters.

    Args:
        name: Parameter of the method that holds the part.
        part: Part of the method, whose errors name its own parameters.

    Raises:
        UserError: If the part raises one. Its type is kept, and ``limit=0`` becomes ``NAME.limit=0``.
    """
    try:
        yield
    except UserError as error:
        raise error.mounted(name, inspect.signature(type(part)).parameters) from error


def require_shape(name: str, output: object, wanted: Tensor, what: str) -> None:
    """Check that a network's output has the shape of another tensor.

    Args:
        name: Parameter of the method that holds the network.
        output: Output of the network.
        wanted: Tensor of the required shape.
        what: Description of that tensor, for the message.

    Raises:
        ConfigError: If the shapes differ.
    """
    if not isinstance(output, Tensor) or output.shape != wanted.shape:
        given = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"{name} gives {given}, but must give {list(wanted.shape)}, the shape of {what}", key=name)


def require_latent_dim(name: str, network: nn.Module, dim: int, named: str) -> None:
    """Check that a network takes latents of the method's dimension.

    Args:
        name: Parameter of the method that holds the network.
        network: Network to check; one without a ``latent_dim`` passes.
        dim: Dimension Z of the method's latents.
        named: Parameter that sets Z.

    Raises:
        ConfigError: If the network takes latents of another dimension.
    """
    taken = getattr(network, "latent_dim", dim)
    if taken != dim:
        raise ConfigError(f"{named}={dim} must be {taken}, the latent_dim of the {name}", key=named)


class Method(nn.Module, ABC):
    """A training algorithm: the networks, the losses and the order of the updates.

    It is a Module, so ``state_dict()`` covers everything a checkpoint needs (networks, averages, pools).
    """

    batch_keys: tuple[str, ...] = ("image",)
    """Keys that every batch must have."""

    optional_batch_keys: tuple[str, ...] = ()
    """Keys that the previews also use if the data has them."""

    sampled_weights: str = "raw"
    """``ema`` if ``sample`` uses averaged weights; recorded with every metric."""

    sampled_mode: str = "eval"
    """``train`` if ``sample`` or ``translate`` keeps dropout and batch statistics on; recorded with every metric."""

    @property
    def sampled_noise(self) -> str | None:
        """Kind of noise that ``sample`` adds inside the network, as in StyleGAN2; None if there is none."""
        return None

    reconstructs: ClassVar[bool] = False
    """Whether the method is an autoencoder and implements ``reconstruct``."""

    takes_conditions: ClassVar[bool] = False
    """Whether the ``conditioning`` group has an effect."""

    translates: ClassVar[bool] = False
    """Whether the method makes images from images (``translate``) instead of from draws alone (``sample``)."""

    directions: ClassVar[tuple[str, ...]] = ()
    """Named directions of translation, the default first."""

    loss_type: ClassVar[type]
    """Required type of the loss; the build rejects any other."""

    num_classes: int = 0
    """K; 0 for a model that is not conditioned on labels."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named update trains; every group has its own optimizer."""

    def lazy_regularisation_ratio(self, group: str) -> float:
        """Return the number of lazy penalty updates per regular update of ``group``; its optimizer is corrected for them."""
        return 0.0

    condition_bank_size: ClassVar[int] = 0
    """Number of captions that ``set_condition_bank`` takes; 0 for a method without conditions."""

    def set_condition_bank(self, batch: Batch) -> None:
        """Set the conditions to sample from, once, before training: all labels, or ``condition_bank_size`` captions."""

    @abstractmethod
    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        """Run all updates for one batch, in the order of the method's paper."""

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Return all random inputs of ``sample``, as a function of ``seed`` and each sample's index alone.

        The generated images then depend on neither the batch size nor the number of processes.
        """
        return {}

    def labels_of(self, count: int, seed: int) -> Tensor | None:
        """Return labels, int64 [count], for an evaluation, in random order and with exactly the data's class shares.

        They replace the labels of ``draw``, whose shares vary by chance. None for a model that is not conditioned on labels.
        """
        return None

    def truncated(self, drawn: Batch, amount: float) -> Batch:
        """Truncate a drawn batch (on the CPU): samples vary less and, if the model is good, look better.

        Args:
            drawn: Result of ``draw``.
            amount: Amount of truncation, 0 or more; smaller values are closer to the average.

        Raises:
            ConfigError: If there is nothing to truncate.
        """
        raise ConfigError(f"truncation={amount:g} has no effect on a {type(self).__name__}, which has no latents", "remove it")

    def with_noise(self, drawn: Batch, mode: str) -> Batch:
        """Change the kind of noise inside the network for a drawn batch (on the CPU).

        Args:
            drawn: Result of ``draw``.
            mode: ``random`` (as drawn), ``const`` (fixed, the same for all samples) or ``none``.

        Raises:
            ConfigError: If the mode is unknown, or the network has no such noise.
        """
        raise ConfigError(f"noise={mode} has no effect on a {type(self).__name__} without noise in its network", "remove it")

    def before_saving(self) -> None:
        """Prepare for a checkpoint, on every rank and without randomness."""

    def before_sampling(self) -> None:
        """Prepare for sampling with weights that have changed, without randomness."""

    def sample(self, batch: Batch) -> Tensor:
        """Generate images [N, C, H, W] in [-1, 1] from a drawn batch: evaluation mode, averaged weights, no gradient."""
        raise NotImplementedError(f"{type(self).__name__} makes no images from draws alone")

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        """Translate sources [N, S, H, W] in [-1, 1] to images [N, T, H, W], without gradient, if the method ``translates``.

        Args:
            source: Images whose height and width are multiples of ``size_divisor``.
            direction: One of ``directions``; None for the default.
        """
        raise NotImplementedError(f"{type(self).__name__} does not translate images")

    @property
    def likelihood(self) -> PixelLikelihood | None:
        """p(x | z), if the method estimates log p(x) by ``log_likelihood``; else None."""
        return None

    @property
    def size_divisor(self) -> int:
        """Number that must divide the height and width of ``translate``'s sources."""
        return 1

    def reconstruct(self, batch: Batch) -> Tensor:
        """Encode and decode a batch's images [N, C, H, W] in [-1, 1], without noise, if the method ``reconstructs``."""
        raise NotImplementedError(f"{type(self).__name__} is not an autoencoder")

    def encode(self, batch: Batch) -> Tensor:
        """Encode a batch's images [N, C, H, W] in [-1, 1] into the decoder's input, if the method ``reconstructs``.

        Returns:
            Latents float32 [N, Z], without noise; for a VQ-VAE, codes int64 [N, h, w].
        """
        raise NotImplementedError(f"{type(self).__name__} is not an autoencoder")

    def perturb(self, image: Tensor, drawn: Batch, spread: float) -> Batch:
        """Return a drawn batch [N] whose latents are scattered around those of one image.

        Args:
            image: Image [1, C, H, W] in [-1, 1].
            drawn: Result of ``draw``; its conditions also apply to the image.
            spread: Distance in standard deviations of the prior; 0 gives the image's reconstruction N times.

        Raises:
            ConfigError: If the method does not encode images into latents.
        """
        raise ConfigError(f"near has no effect on a {type(self).__name__}, which encodes no images", "remove it", key="near")

    def log_likelihood(self, batch: Batch, num_samples: int, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Estimate log p(x) for every image of a batch [N], in nats, if the method has a ``likelihood``.

        Args:
            batch: Images and conditions.
            num_samples: Number K of latents per image.
            keys: Random keys [N]; the randomness of image i is a function of ``keys[i]`` alone.

        Returns:
            ``log_likelihood``, the importance-weighted estimate of log p(x) from K samples, and ``elbo``, ``reconstruction``
            and ``kl`` of the same samples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no likelihood")

    @abstractmethod
    def check(self, batch: Batch) -> None:
        """Run every network once on a batch of the data, so a wrong shape fails before training."""

    @abstractmethod
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return named images in [-1, 1] from fixed data and fixed draws: [M, C, H, W] or [rows, columns, C, H, W]."""
