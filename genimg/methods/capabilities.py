"""Capabilities of trained models, such as sampling: protocols that commands, evaluations and exports check for.

A method has a capability if it has the protocol's members. None of them is needed for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.data.tasks.base import Task
from genimg.methods.export_spec import ExportSpec
from genimg.methods.options import SamplingOptions
from genimg.types import Batch, PixelLikelihood


@runtime_checkable
class Generates(Protocol):
    """Generates images from random numbers."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys that every batch must have."""
        ...

    @property
    def sampling_options(self) -> SamplingOptions:
        """The default options of ``sample``."""
        ...

    def before_sampling(self) -> None:
        """Prepare for sampling with weights that have changed, without randomness."""
        ...

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        """Return all random inputs of ``sample``, as a function of ``seed`` and each sample's index alone.

        The generated images then depend on neither the batch size nor the number of processes.
        """
        ...

    def check_options(self, options: Any) -> None:
        """Check options of the class of ``sampling_options`` before any work.

        Raises:
            ConfigError: If an option has no effect on this model, or is out of its range.
        """
        ...

    def sample(self, batch: Batch, options: Any = None) -> Tensor:
        """Generate images [N, C, H, W] in [-1, 1] from a drawn batch, in evaluation mode and without gradient.

        Args:
            batch: Drawn batch on the device.
            options: Options that ``check_options`` accepts; None for ``sampling_options``.
        """
        ...


@runtime_checkable
class StartsFromNoise(Protocol):
    """Generates each image from noise of the image's shape. Without randomness in sampling, the noise determines the image."""

    def noise_of(self, drawn: Batch) -> Tensor:
        """Return the noise, standard normal numbers [N, C, H, W], in a drawn batch of ``Generates.draw``."""
        ...


@runtime_checkable
class TakesConditions(Protocol):
    """May be conditioned on labels or captions. The ``conditioning`` group affects only such methods."""

    condition_bank_size: ClassVar[int]
    """Number of captions in the batch for ``set_condition_bank``."""

    num_classes: int
    """Number of classes K; 0 for a model that is not conditioned on labels."""

    def set_condition_bank(self, batch: Batch) -> None:
        """Set the conditions to sample from, once, before training: all labels, or ``condition_bank_size`` captions."""
        ...

    def random_labels(self, count: int, seed: int) -> Tensor | None:
        """Return labels, int64 [count], for an evaluation, in random order and with exactly the data's class shares.

        They replace the labels of ``draw``, whose shares vary by chance. Models that are not conditioned on labels return None.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An autoencoder."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys that every batch must have."""
        ...

    def encode(self, batch: Batch) -> Tensor:
        """Encode a batch's images [N, C, H, W] in [-1, 1] into the decoder's input.

        Returns:
            Latents float32, without noise: [N, Z], or [N, C, h, w] on a grid; for a VQ-VAE, codes int64 [N, h, w].
        """
        ...

    def reconstruct(self, batch: Batch) -> Tensor:
        """Encode and decode a batch's images [N, C, H, W] in [-1, 1], without noise."""
        ...


@runtime_checkable
class HasLatentSpace(Protocol):
    """An autoencoder with a grid of latents that another model can learn, such as latent diffusion."""

    latent_space: ClassVar[type[nn.Module]]
    """Encoder and decoder. The parameters of its constructor are attributes of the method."""


@runtime_checkable
class SamplesNearby(Protocol):
    """A model whose samples can be drawn around an image: an autoencoder, or a diffusion model that is run backwards."""

    def locate(self, image: Tensor, drawn: Batch) -> Batch:
        """Return the latents [1, ...] of one image, by key.

        Args:
            image: Image [1, C, H, W] in [-1, 1].
            drawn: Result of ``draw``; its first condition applies to the image.
        """
        ...

    def perturb(self, located: Batch, drawn: Batch, spread: float) -> Batch:
        """Return a drawn batch [N] whose latents are scattered around those of one image.

        Args:
            located: Result of ``locate``.
            drawn: Result of ``draw``.
            spread: Distance in standard deviations of the prior; 0 gives the image's reconstruction N times.
        """
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Estimates log p(x)."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys that every batch must have."""
        ...

    @property
    def likelihood(self) -> PixelLikelihood:
        """What the probability is of, for the names and units of metrics: p(x | z) of a VAE, or that of an image's levels."""
        ...

    likelihood_estimator: str
    """Kind of estimate, which is part of the metric's name: ``iw`` for importance weighting, ``ode`` for the ODE."""

    def log_likelihood(self, batch: Batch, num_samples: int, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """Estimate log p(x) for every image of a batch [N], in nats.

        Args:
            batch: Images and conditions.
            num_samples: Number K of random samples per image, such as latents.
            keys: Random keys [N]; the randomness of image i is a function of ``keys[i]`` alone.

        Returns:
            ``log_likelihood``, the importance-weighted estimate of log p(x) from K samples; and, if there is a variational
            bound, ``elbo``, ``reconstruction`` and ``kl`` of the same samples.
        """
        ...


@runtime_checkable
class Denoises(Protocol):
    """Removes noise from images."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys that every batch must have."""
        ...

    @property
    def denoising_description(self) -> str:
        """What the loss is, for records."""
        ...

    def denoising_loss(self, batch: Batch, quantile: float, keys: NDArray[np.uint64]) -> Tensor:
        """Return the training loss of every image of a batch [N], at one noise level.

        Args:
            batch: Images and conditions.
            quantile: Level as a quantile of those in training, in (0, 1), from the least noise to the most.
            keys: Random keys [N] of the noise.
        """
        ...


@runtime_checkable
class Translates(Protocol):
    """Translates images into images."""

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Keys that every batch must have."""
        ...

    task: Task
    """Task of the training data."""

    directions: ClassVar[tuple[str, ...]]
    """Named directions, the default first; empty if there is only one."""

    sampled_mode: str
    """``train`` if ``translate`` keeps dropout and batch statistics on, else ``eval``; recorded with every metric."""

    @property
    def size_divisor(self) -> int:
        """Number that must divide the height and width of sources."""
        ...

    def translator(self, direction: str | None) -> nn.Module:
        """Return the network that translates in one of ``directions``; None for the default."""
        ...

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        """Translate sources [N, S, H, W] in [-1, 1] to images [N, T, H, W], without gradient.

        Args:
            source: Images whose height and width are multiples of ``size_divisor``.
            direction: One of ``directions``; None for the default.
        """
        ...

    def set_mode(self, model_mode: str) -> None:
        """Override ``sampled_mode``.

        Raises:
            ConfigError: If the mode is unknown, or training mode changes nothing.
        """
        ...


@runtime_checkable
class TranslatesLabels(Protocol):
    """Generates images of classes, and can turn an image of one class into one of another, without training for it."""

    shape: tuple[int, int, int]
    """Shape (C, H, W) of the images."""

    num_classes: int
    """Number of classes; 0 for a model that is not conditioned on labels and therefore cannot translate."""

    @property
    def label_translation_options(self) -> SamplingOptions:
        """The default options of ``translate_labels``."""
        ...

    def translate_labels(self, image: Tensor, source: int, target: int, options: Any = None) -> Tensor:
        """Return images [N, C, H, W] of class ``target`` for images [N, C, H, W] of class ``source``, both in [-1, 1].

        Args:
            image: Images of the model's shape, on its device.
            source, target: Labels.
            options: Options that ``check_options`` accepts and that are deterministic; None for the defaults.
        """
        ...


@runtime_checkable
class TranslatesRandomly(Protocol):
    """Translates an image into one of many results, chosen by a random key.

    Such a model also ``Translates``, with fixed keys.
    """

    @property
    def sampling_options(self) -> Any:
        """The default options; see ``Generates``."""
        ...

    def check_options(self, options: Any) -> None:
        """Check options before any work; see ``Generates``."""
        ...

    def translate_randomly(self, source: Tensor, keys: Tensor, options: Any = None) -> Tensor:
        """Translate sources [N, S, H, W] in [-1, 1] to images [N, T, H, W], in evaluation mode and without gradient.

        Args:
            source: Images whose height and width are multiples of ``size_divisor``.
            keys: Random keys, int64 [N]; the result for image i depends only on its source and ``keys[i]``.
            options: Options that ``check_options`` accepts; None for ``sampling_options``.
        """
        ...


@runtime_checkable
class Exports(Protocol):
    """Specifies the network that ``genimg-export`` writes for other programs.

    The method returns data, an ``ExportSpec``: the parts that hold the weights, a function of them and of named inputs, the
    inputs' shapes and ranges, and a reference that computes the same images with the method itself. The package
    ``genimg.exporting`` does the rest, and contains no code for specific methods: it copies the parts to the CPU, traces the
    function, writes the file, and compares the file's images with the reference.

    A method needs this only to export a network or inputs other than the default. The default for a method that ``Translates``
    is its translator with the pre- and postprocessing of its task. The default for a method that ``Generates`` is its
    ``sample``, with the drawn random numbers as inputs.
    """

    def export_spec(self, truncation: float | None) -> ExportSpec:
        """Return the specification of the exported network.

        Args:
            truncation: Truncation that the user chose; None for none. If the network includes it, the result repeats it;
                otherwise the option is rejected.
        """
        ...


@runtime_checkable
class RegularisesLazily(Protocol):
    """Has penalties with separate updates, for which Adam is corrected (Karras et al. 2020, appendix B)."""

    def lazy_regularisation_ratio(self, group: str) -> float:
        """Return the number of lazy penalty updates per regular update of a parameter group."""
        ...


@runtime_checkable
class MeasuresData(Protocol):
    """Has settings that depend on the pixels of the training data."""

    measures_data: bool
    """Whether such a setting is to be measured."""

    def set_data_statistics(self, images: Tensor) -> None:
        """Set them, once, before training, from random training images [N, C, H, W] in [-1, 1]."""
        ...


@runtime_checkable
class PreparesSaving(Protocol):
    """Computes a part of its state only for checkpoints."""

    def before_saving(self) -> None:
        """Compute that part, on every rank and without randomness."""
        ...


@runtime_checkable
class TrainsSharded(Protocol):
    """Trains with weights of which each process has only a part (training/sharding.py)."""

    def shardable_networks(self) -> tuple[str, ...]:
        """Return the names of the networks whose weights may be divided.

        They are among the ``inference_networks``. A step calls each as a whole, computes only first derivatives, and has one
        parameter group.
        """
        ...


CAPABILITIES: dict[type, str] = {
    Generates: "sample",
    StartsFromNoise: "noise_of",
    TakesConditions: "random_labels",
    Reconstructs: "reconstruct",
    SamplesNearby: "perturb",
    HasLikelihood: "log_likelihood",
    Denoises: "denoising_loss",
    Translates: "translate",
    TranslatesLabels: "translate_labels",
    TranslatesRandomly: "translate_randomly",
    Exports: "export_spec",
    RegularisesLazily: "lazy_regularisation_ratio",
    MeasuresData: "set_data_statistics",
    PreparesSaving: "before_saving",
    TrainsSharded: "shardable_networks",
}
"""All capabilities, each with the function that says that a class means to have it."""


def offers(kind: type, capability: type) -> bool:
    """Return whether a class has the functions of a capability, before an instance exists."""
    return not _missing(kind, capability)


def require_whole_capabilities(kind: type) -> None:
    """Reject a class that has the main function of a capability but lacks others, because the capability would be ignored.

    Raises:
        TypeError: If functions are missing; the message names them.
    """
    for capability, main in CAPABILITIES.items():
        missing = _missing(kind, capability)
        if main not in missing and missing:
            raise TypeError(
                f"{kind.__name__} has {main}() but lacks {', '.join(missing)} of {capability.__name__} (docs/extending.md)"
            )


def _missing(kind: type, capability: type) -> list[str]:
    return [name for name in _members(capability) if getattr(kind, name, None) is None]  # a subclass may set one to None


def _members(capability: type) -> list[str]:
    """Return the members that a class has before an instance exists: the functions, and the type of the options."""
    return [
        name for name, member in vars(capability).items()
        if not name.startswith("_") and (callable(member) or name == "sampling_options")
    ]  # fmt: skip
