"""Moving averages of a method's weights during training."""

from __future__ import annotations

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.methods.modes import LocalBatchNorm
from genimg.schedules import Schedule, Scheduled, is_positive, shown
from genimg.utils.distributed import own_part
from genimg.utils.durations import NumImages

if TYPE_CHECKING:
    from genimg.training.sharding import Sharding  # imports PyTorch's distributed tensors, which takes long

M = TypeVar("M", bound=Method)

RAW = "raw"
"""Name of the trained weights without averaging."""

_RESERVED = (RAW, "ema", "auto")


class Profile(ABC):
    """Weights that an average gives to the past, as a function of the images seen."""

    @abstractmethod
    def decay(self, num_images: int, images_seen: int) -> float:
        """Return the weight of the old average after ``num_images`` more images, for a total of ``images_seen``."""


class Exponential(Profile):
    """Weights that halve every ``half_life`` images, so the average is comparable at any batch size.

    Early in training, the half-life is limited to a fraction of the images seen, so the average forgets the initial weights
    (StyleGAN2-ADA's code, Karras et al. 2020).

    Args:
        half_life: Images after which a weight's influence has halved; 0, as at the start of a schedule, keeps no average.
        ramp_up: Largest half-life as a fraction of the images seen so far, including the current step; None for no limit.

    Raises:
        ValueError: If the half-life or the fraction is not above 0.
    """

    half_life = Scheduled()

    def __init__(self, *, half_life: NumImages | Schedule, ramp_up: float | None) -> None:
        if not is_positive(half_life):
            raise ValueError(f"half_life={shown(half_life)} images must be above 0")
        if ramp_up is not None and not ramp_up > 0:
            raise ValueError(f"ramp_up={ramp_up} must be above 0, or null for no limit")
        self.half_life = half_life
        self.ramp_up = math.inf if ramp_up is None else ramp_up

    def half_life_at(self, images_seen: int) -> float:
        """Return the half-life in images, limited by the ramp-up, after a step that ends at ``images_seen``."""
        return float(min(self.half_life, self.ramp_up * images_seen))

    def decay(self, num_images: int, images_seen: int) -> float:
        return float(0.5 ** (num_images / max(self.half_life_at(images_seen), 1e-8)))


class PowerFunction(Profile):
    """Weights proportional to t^gamma, so the average keeps its shape relative to the training time.

    Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3.1. From snapshots of two
    such averages, averages of any other length can be computed after training (section 3.2; ``training/posthoc_ema.py``).

    Args:
        length: Standard deviation of the profile as a fraction of the training time, such as 0.05.
        num_snapshots: Number of snapshots per run, at equal intervals; 0 keeps none.

    Raises:
        ValueError: If the length is below 0.005 or not below 0.28, or the number is negative.
    """

    def __init__(self, *, length: float, num_snapshots: int) -> None:
        if not SHORTEST <= length < LONGEST:
            raise ValueError(f"length={length} must be from {SHORTEST} to below {LONGEST} of the training time")
        if num_snapshots < 0:
            raise ValueError(f"num_snapshots={num_snapshots} must be 0 or more")
        self.length = length
        self.num_snapshots = num_snapshots
        self.exponent = exponent_of(length)

    def decay(self, num_images: int, images_seen: int) -> float:
        return float((1.0 - min(num_images / images_seen, 1.0)) ** (self.exponent + 1.0))


SHORTEST = 0.005
"""Lower limit of a power-function profile's length, as a fraction of the training time."""

LONGEST = 0.28
"""Upper limit of a power-function profile's length; the exponent would be 0, a plain mean, at 1 / sqrt(12), about 0.289."""


def exponent_of(length: float) -> float:
    """Return the exponent gamma of the power function whose profile has this standard deviation (equation 126)."""
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def with_networks(method: M, networks: Mapping[str, nn.Module]) -> M:
    """Return a shallow copy of a method that samples with other networks.

    The copy shares buffers, modules with an attribute ``is_frozen``, and modules without parameters, such as a fitted density.
    It lacks the networks that only training needs, and cannot train.

    Args:
        method: Method to copy.
        networks: Replacements of its ``inference_networks``, by name.
    """
    copied = copy.copy(method)
    copied.training = False  # methods restore this mode after sampling
    own = method._modules
    shared = {
        name: module for name, module in own.items()
        if module is None or getattr(module, "is_frozen", False) or next(module.parameters(), None) is None
    }  # fmt: skip
    copied._modules = {name: networks.get(name, shared.get(name)) for name in own if name in networks or name in shared}
    return copied


class WeightAverage:
    """A copy of a method's inference networks whose weights follow those in training, always in evaluation mode.

    Batch-norm statistics are averaged along with the weights. Other buffers are copied: a spectral norm's singular vectors
    would lose their length, and StyleGAN2's average style is already an average.

    Args:
        method: Method in training.
        profile: Profile of the average.
        sharding: How the method's networks are divided among processes; None if they are not.

    Attributes:
        method: Copy of the method that samples with the averaged networks (see ``with_networks``).
    """

    def __init__(self, method: Method, profile: Profile, sharding: Sharding | None = None) -> None:
        self.profile = profile
        self._sharding = sharding
        self._trained = {name: network for name, network in method.named_children() if name in method.inference_networks}
        self._networks = {
            name: sharding.average_of(name) if sharding is not None and name in sharding.networks else frozen_copy(network)
            for name, network in self._trained.items()
        }
        self.method = with_networks(method, self._networks)
        self._averaged = _own_parts(self._networks)
        self._current = _own_parts(self._trained)
        layers = [
            pair for name, network in self._networks.items()
            for pair in zip(network.modules(), self._trained[name].modules(), strict=True)
        ]  # fmt: skip
        self._layers_with_buffers = [
            (ours, theirs) for ours, theirs in layers if any(True for _ in ours.buffers(recurse=False))
        ]

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Move the average towards the trained networks by a share of the distance in [0, 1], a float or a 0-d tensor."""
        averaged: list[Tensor] = [*self._averaged]
        current: list[Tensor] = [*self._current]
        copied: list[Tensor] = []
        originals: list[Tensor] = []
        for ours, theirs in self._layers_with_buffers:  # whose tensors training may replace
            for old, new in zip(ours.buffers(recurse=False), theirs.buffers(recurse=False), strict=True):
                is_averaged = _is_averaged(ours, old)
                (averaged if is_averaged else copied).append(old)
                (current if is_averaged else originals).append(new)
        if copied:
            torch._foreach_copy_(copied, originals)
        if not averaged:
            return
        if isinstance(share, Tensor):  # with a tensor, PyTorch's lerp would launch one kernel per parameter
            steps = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(averaged, steps)
        else:
            torch._foreach_lerp_(averaged, current, share)

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the past: take the weights of the trained networks."""
        for name, network in self._networks.items():
            network.load_state_dict(self._trained[name].state_dict())

    def copied_buffers(self) -> tuple[str, ...]:
        """Return the names of the buffers that are copied, as in ``state_dict``."""
        layers = [(f"{name}.{path}" if path else name, layer) for name, network in self._networks.items()
                  for path, layer in network.named_modules()]  # fmt: skip
        kept = self.state_dict().keys()  # without buffers that are not persistent
        return tuple(
            key for path, layer in layers for name, buffer in layer.named_buffers(recurse=False)
            if not _is_averaged(layer, buffer) and (key := f"{path}.{name}") in kept
        )  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and buffers by the names of the method's own, such as ``generator.layers.0.weight``."""
        return {
            f"{name}.{key}": value for name, network in self._networks.items() for key, value in network.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average.

        Raises:
            RuntimeError: If the state does not fit the networks.
        """
        networks = nn.ModuleDict(self._networks)
        networks.load_state_dict(state if self._sharding is None else self._sharding.divided(state, networks))


@torch.no_grad()
def _own_parts(networks: Mapping[str, nn.Module]) -> list[Tensor]:
    """Return this rank's parts of the parameters, which are the parameters themselves if they are not divided."""
    return [own_part(each) for network in networks.values() for each in network.parameters()]


def _is_averaged(layer: nn.Module, buffer: Tensor) -> bool:
    return isinstance(layer, nn.modules.batchnorm._NormBase) and buffer.is_floating_point()


def frozen_copy(network: nn.Module, replaced: Mapping[int, Tensor] = MappingProxyType({})) -> nn.Module:
    """Return a copy of a network in evaluation mode without gradients.

    Args:
        network: Network to copy.
        replaced: Tensors to put in the place of copies, by the originals' ids.
    """
    copied = copy.deepcopy(network, {**replaced}).eval().requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, nn.SyncBatchNorm):  # averages are sampled by one process alone
            layer.__class__ = LocalBatchNorm  # type: ignore[assignment]
    return copied


def require_names(averages: Mapping[str, Any]) -> None:
    """Check the names of averages, which become part of file names.

    Raises:
        ConfigError: If a name is no identifier of at most 80 letters, digits and underscores, or is reserved.
    """
    for name in averages:
        if not re.fullmatch(r"[A-Za-z]\w{0,79}", name) or name in _RESERVED:
            raise ConfigError(f"{name!r} is not a valid name for an average", "choose letters, digits and _")


def chosen_weights(averages: Mapping[str, Any], weights: str) -> str:
    """Return the name of the weights that ``weights`` refers to: ``raw``, or a key of ``averages``.

    Args:
        averages: Averages by name, the default first.
        weights: ``auto`` for the first average, or the raw weights if there is none; ``ema`` for the first average; ``raw``;
            or the name of an average.

    Raises:
        ConfigError: If there is no such average.
    """
    if weights == RAW or (weights == "auto" and not averages):
        return RAW
    if weights in ("auto", "ema") and averages:
        return next(iter(averages))
    if weights in averages:
        return weights
    fix = f"choose one of {', '.join(('ema', *averages, RAW))}" if averages else "the run keeps no average: choose raw"
    raise ConfigError(f"weights={weights} is unknown", fix, key="weights")


def label_of(averages: Mapping[str, Any], name: str) -> str:
    """Return the name of weights as it is recorded with metrics: ``ema`` if the first average is the exponential one."""
    return "ema" if name == "exponential" and name == next(iter(averages), None) else name
