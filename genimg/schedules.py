"""Schedules: numbers that depend only on the images seen, so a resumed run continues exactly.

A class declares a number that may have a schedule as ``weight = Scheduled()`` and accepts a ``Number`` for it. Reading
``self.weight`` returns the number of the current step. The trainer sets all such numbers before each step; only
``ScheduledNumbers.advance`` changes them. They are floats, or 0-d tensors on the device if steps run as CUDA graphs: compute
with them as with either, and ask ``is_zero`` instead of comparing them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from torch import Tensor, nn

from genimg.utils.durations import NumImages

_SCHEDULES = "_schedules"
_AT_ONCE = NumImages(0)


class Schedule(ABC):
    """A number as a pure function of the images seen."""

    @abstractmethod
    def at(self, images: int, batch_size: int) -> float:
        """Return the number for the step of ``batch_size`` images that starts at ``images`` seen."""

    @property
    @abstractmethod
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest number, for checks of the range."""

    def map(self, function: Callable[[float], float]) -> Schedule:
        """Return a schedule that applies a monotone function to this schedule's numbers."""
        return _Mapped(self, function)


Number: TypeAlias = float | Schedule
"""A number, or a schedule for it. The builder accepts both for a constructor parameter of this type."""


class _Transition(Schedule):
    """A transition from ``start`` to ``end`` between ``begin`` and ``duration`` images, constant before and after.

    Args:
        start: The number until ``begin``. A duration such as ``5M images`` means its number of images.
        end: The number from ``duration`` on.
        duration: Images seen since the start of training when ``end`` is reached.
        begin: Images seen at which the transition begins.

    Raises:
        ValueError: If ``duration`` is not above ``begin``, or ``start`` and ``end`` are equal or not finite.
    """

    def __init__(
        self, *, start: float | NumImages, end: float | NumImages, duration: NumImages, begin: NumImages = _AT_ONCE
    ) -> None:
        if duration <= begin:
            raise ValueError(f"duration={duration} images must be above begin={begin} images")
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"start={start} and end={end} must be finite")
        if start == end:
            raise ValueError(f"start={start} and end={end} are the same: write the number itself")
        self.start, self.end, self.duration, self.begin = float(start), float(end), duration, begin

    def done(self, images: int) -> float:
        """Return the fraction of the transition that is completed, from 0 to 1."""
        return min(max((images - self.begin) / (self.duration - self.begin), 0.0), 1.0)

    @property
    def extremes(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class Linear(_Transition):
    """A linear transition. See ``Cosine`` for the arguments."""

    def at(self, images: int, batch_size: int) -> float:
        return self.start + (self.end - self.start) * self.done(images)


class Cosine(_Transition):
    """A transition along half a cosine, slow at both ends (Loshchilov & Hutter 2017, equation 5, without restarts).

    Args:
        start: The number until ``begin``. A duration such as ``5M images`` means its number of images.
        end: The number from ``duration`` on.
        duration: Images seen since the start of training when ``end`` is reached.
        begin: Images seen at which the transition begins.
    """

    def at(self, images: int, batch_size: int) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * self.done(images)))


class Step(Schedule):
    """A step from 0 to 1 when ``begin`` images have been seen."""

    def __init__(self, *, begin: NumImages) -> None:
        self.begin = begin

    def at(self, images: int, batch_size: int) -> float:
        return float(images >= self.begin)

    @property
    def extremes(self) -> tuple[float, float]:
        return 0.0, 1.0


class _Mapped(Schedule):
    def __init__(self, schedule: Schedule, function: Callable[[float], float]) -> None:
        self.schedule, self.function = schedule, function

    def at(self, images: int, batch_size: int) -> float:
        return self.function(self.schedule.at(images, batch_size))

    @property
    def extremes(self) -> tuple[float, float]:
        low, high = sorted(self.function(value) for value in self.schedule.extremes)
        return low, high


def extremes(number: Number) -> tuple[float, float]:
    """Return the smallest and the largest value of a number during training; they are equal for a plain number."""
    return number.extremes if isinstance(number, Schedule) else (number, number)


def is_positive(number: Number) -> bool:
    """Return whether a plain number is above 0, or a schedule is never below 0 and is sometimes above 0."""
    low, high = extremes(number)
    return low >= 0 and high > 0


def is_within(number: Number, low: float, high: float = math.inf) -> bool:
    """Return whether a number stays between ``low`` and ``high``, both inclusive."""
    return low <= extremes(number)[0] and extremes(number)[1] <= high


def shown(number: Number) -> str:
    """Format a number for a message; a schedule is shown by its smallest and largest value."""
    low, high = extremes(number)
    return f"{low} to {high}" if isinstance(number, Schedule) else f"{number}"


class Scheduled:
    """An attribute to which a ``Number`` or None is assigned, and which reads as the value in the current step."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:  # without ``__get__`` at run time, Python reads the number from the instance at no cost

        @overload
        def __get__(self, instance: None, owner: type) -> Scheduled: ...
        @overload
        def __get__(self, instance: object, owner: type) -> Any: ...
        def __get__(self, instance: object | None, owner: type) -> Any: ...

    def __set__(self, instance: object, value: Number | None) -> None:
        members = vars(instance)
        schedules = members.setdefault(_SCHEDULES, {})
        schedules.pop(self.name, None)
        if isinstance(value, Schedule):
            schedules[self.name] = value
            members[self.name] = value.at(0, 0)
        else:
            members[self.name] = value


class ScheduledNumbers:
    """All scheduled numbers in a module.

    Args:
        root: Module to search, including its submodules and the objects that these hold in attributes and tuples.
        others: Further objects with scheduled numbers, by path.
    """

    def __init__(self, root: nn.Module, others: Mapping[str, object] = MappingProxyType({})) -> None:
        self._entries: dict[str, tuple[dict[str, Any], str, Schedule]] = {}
        for path, instance in (*_holders(root), *others.items()):
            for name, schedule in vars(instance).get(_SCHEDULES, {}).items():
                self._entries[f"{path}.{name}" if path else name] = (vars(instance), name, schedule)
        self._values = {path: members[name] for path, (members, name, _) in self._entries.items()}
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """From the next ``advance`` on, set the numbers to these 0-d tensors, whose contents the caller keeps up to date.

        A number that is 0 remains a float, so ``is_zero`` does not wait for the device.
        """
        self._tensors = dict(zip(self._entries, tensors, strict=True))

    def advance(self, images: int, batch_size: int) -> None:
        """Set every number to its value for the step of ``batch_size`` images that starts at ``images`` seen."""
        for path, (members, name, schedule) in self._entries.items():
            value = self._values[path] = schedule.at(images, batch_size)
            members[name] = self._tensors[path] if path in self._tensors and value != 0 else value

    def values(self) -> dict[str, float]:
        """Return the numbers of the current step by attribute path, such as ``penalties.r1.gamma``."""
        return dict(self._values)


def is_zero(number: float | Tensor) -> bool:
    """Return whether a scheduled number is 0 in this step; a tensor never is (see ``ScheduledNumbers.hold``)."""
    return not isinstance(number, Tensor) and number == 0


def declared(kind: type) -> set[str]:
    """Return the names of the scheduled numbers that a class declares."""
    return {name for base in kind.__mro__ for name, member in vars(base).items() if isinstance(member, Scheduled)}


def _holders(root: nn.Module) -> Iterator[tuple[str, object]]:
    for path, module in root.named_modules():
        yield path, module
        yield from _held(path, module)


def _held(path: str, holder: object) -> Iterator[tuple[str, object]]:
    """Yield objects with scheduled numbers that are not torch submodules, such as a loss that is a plain object."""
    for name, member in vars(holder).items():
        for each in member if isinstance(member, tuple) else (member,):
            if declared(type(each)):
                inner = f"{path}.{name}" if path else name
                yield inner, each
                yield from _held(inner, each)
