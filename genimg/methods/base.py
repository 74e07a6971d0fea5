"""Interface between training algorithms and the training loop."""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.types import Batch, LossFunction, Metrics, Microbatches, Progress
from genimg.utils.mounting import mounting


class Update(Protocol):
    """Updates that a method requests; the training loop handles precision, accumulation, clipping and checks."""

    def forward(self, group: str, function: Callable[[Batch], Batch], batch: Microbatches) -> Microbatches:
        """Add the results of ``function`` to every microbatch, with the graph that the next update of ``group`` needs.

        For example, a GAN generates its fakes once and uses them in both updates. With several microbatches, no graph is kept,
        because it would stay in memory during the updates in between. The next update of ``group`` then recomputes the results,
        one microbatch at a time.
        """
        ...

    def through(
        self, group: str, function: Callable[[Batch], Batch], loss: LossFunction, batch: Microbatches
    ) -> tuple[Microbatches, Metrics]:
        """Take one optimizer step on a loss computed from the results of ``function``.

        Returns:
            The microbatches with these results (without a graph if there are several), and the metrics.
        """
        ...

    def __call__(self, group: str, loss: LossFunction, batch: Microbatches) -> Metrics:
        """Take one optimizer step on one parameter group. Only that group's parameters receive gradients."""
        ...


@contextlib.contextmanager
def errors_of(name: str, part: object) -> Iterator[None]:
    """Convert errors about a part's parameters to errors about the method's parameters.

    Args:
        name: Parameter of the method that holds the part.
        part: Part of the method, whose errors name its own parameters.

    Raises:
        UserError: If the part raises a UserError. Its type is kept, and ``limit=0`` becomes ``NAME.limit=0``.
    """
    with mounting(name, () if part is None else inspect.signature(type(part)).parameters):
        yield


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
        raise ConfigError(f"{name} returns {given}, but must return {list(wanted.shape)}, the shape of {what}", key=name)


def require_latent_dim(name: str, network: nn.Module, dim: int, named: str) -> None:
    """Check that a network is built for latents of the method's dimension.

    Args:
        name: Parameter of the method that holds the network.
        network: Network to check; a network without ``latent_dim`` passes.
        dim: Dimension Z of the method's latents.
        named: Parameter that sets Z.

    Raises:
        ConfigError: If the network is built for latents of another dimension.
    """
    taken = getattr(network, "latent_dim", dim)
    if taken != dim:
        raise ConfigError(f"{named}={dim} must be {taken}, the latent_dim of the {name}", key=named)


class Method(nn.Module, ABC):
    """A training algorithm: the networks, the losses and the order of the updates.

    It is a Module, so ``state_dict()`` covers everything a checkpoint needs (networks, pools). Everything else that a
    trained model can do, such as sampling, is a capability (``methods.capabilities``).
    """

    loss_type: ClassVar[type]
    """Required type of the loss; the builder rejects any other type."""

    inference_networks: ClassVar[tuple[str, ...]]
    """Attributes of the networks that generate images, without networks for training only. Their weights can be averaged."""

    inference_interval: int = 1
    """Number of steps per update of these networks, such as a GAN's n_critic."""

    batch_keys: tuple[str, ...] = ("image",)
    """Keys that every batch must have."""

    optional_batch_keys: tuple[str, ...] = ()
    """Keys that the previews also use if the data has them."""

    _frozen_names: frozenset[str] = frozenset()

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that each named update trains; every group has its own optimizer."""

    @abstractmethod
    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        """Run all updates for one batch, in the order of the method's paper."""

    @abstractmethod
    def check(self, batch: Batch) -> None:
        """Run every network once on a batch of the data, so a wrong shape fails before training."""

    @abstractmethod
    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return named images in [-1, 1] from fixed data and fixed draws: [M, C, H, W] or [rows, columns, C, H, W].

        Args:
            batch: Images of the data.
            drawn: Random inputs of sampling; empty for a method that does not generate.
        """


def set_frozen_names(method: Method, names: frozenset[str]) -> None:
    """Set the names of the parameters that are not trained; see ``training.freezing.freeze``."""
    method._frozen_names = names


def frozen_names(method: Method) -> frozenset[str]:
    """Return the names of the parameters that are not trained, although they belong to a parameter group."""
    return method._frozen_names


def trained_groups(method: Method) -> dict[str, list[nn.Parameter]]:
    """Return a method's ``parameter_groups`` without frozen parameters."""
    names = frozen_names(method)
    frozen = {id(parameter) for name, parameter in method.named_parameters() if name in names}
    return {group: [each for each in own if id(each) not in frozen] for group, own in method.parameter_groups().items()}
