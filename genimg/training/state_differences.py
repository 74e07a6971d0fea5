"""Compare two states of a training bit by bit: weights, buffers, averages, optimizers and progress."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genimg.utils.exact import double

MOST_ELEMENTS = 8
"""Number of elements of a tensor whose values are kept, and most elements in all tensors that count as flipped bits."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ABSENT = "(absent)"
_AVERAGE, _OPTIMIZER = "average ", "optimizer "  # beginnings of the names of parts


@dataclass(frozen=True)
class ElementDifference:
    """An element of a tensor that differs.

    Attributes:
        index: Its index.
        expected: Value in the expected state.
        found: Value in the other state.
        bits: Numbers of the bits that differ; 0 is the lowest.
    """

    index: tuple[int, ...]
    expected: float
    found: float
    bits: tuple[int, ...]


@dataclass(frozen=True)
class ValueDifference:
    """A tensor or a single value that differs.

    Attributes:
        name: Its name.
        expected, found: Descriptions of both values, or of the shapes and types of tensors.
        count: Number of elements that differ; 0 for a single value, or if the shapes or types differ.
        largest: Largest absolute difference of an element; not finite if a value is not.
        elements: The first elements that differ.
    """

    name: str
    expected: str
    found: str
    count: int = 0
    largest: float = 0.0
    elements: tuple[ElementDifference, ...] = ()

    @property
    def has_flipped_bits(self) -> bool:
        """Whether nothing differs but one bit in each of a few elements."""
        return 0 < self.count == len(self.elements) and all(len(each.bits) == 1 for each in self.elements)


@dataclass(frozen=True)
class PartComparison:
    """The comparison of a part of the state, such as a network or an optimizer.

    Attributes:
        name: Name of the part.
        num_tensors, num_values, num_bytes: Numbers of compared tensors, of other values, and of the tensors' bytes.
        differences: What differs.
    """

    name: str
    num_tensors: int
    num_values: int
    num_bytes: int
    differences: tuple[ValueDifference, ...]

    def __str__(self) -> str:
        tensors = [each for each in self.differences if each.count]
        others = [each for each in self.differences if not each.count]
        texts = []
        if tensors:
            largest = max((each.largest for each in tensors), key=lambda value: math.inf if math.isnan(value) else value)
            count = sum(each.count for each in tensors)
            numbers = f"{count:,} number{'s' if count > 1 else ''}"
            texts.append(f"{len(tensors)} of {self.num_tensors} tensors ({numbers}), largest difference {largest:.2g}")
        texts += [f"{each.name} is {each.found} instead of {each.expected}" for each in others[:3]]
        if len(others) > 3:
            texts.append(f"and {len(others) - 3} more values")
        return f"{self.name}: {'; '.join(texts) or 'equal'}"


@dataclass(frozen=True)
class StateComparison:
    """The comparison of two states.

    Attributes:
        parts: The compared parts.
    """

    parts: tuple[PartComparison, ...]

    @property
    def differing(self) -> tuple[PartComparison, ...]:
        """The parts that differ."""
        return tuple(part for part in self.parts if part.differences)

    @property
    def num_tensors(self) -> int:
        return sum(part.num_tensors for part in self.parts)

    @property
    def num_values(self) -> int:
        return sum(part.num_values for part in self.parts)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def arose_after_training(self) -> bool:
        """Whether the differences cannot come from a training step.

        Weights follow from the states of optimizers, and these from gradients, which depend on the weights. So if a step had
        been computed in another way, both would differ. This holds for optimizers with a state for each weight.
        """
        optimizers = [part for part in self.parts if part.name.startswith(_OPTIMIZER)]
        differing = [part for part in optimizers if part.differences]
        others = [part for part in self.differing if part not in differing and not part.name.startswith(_AVERAGE)]
        return all(part.num_tensors for part in optimizers) and not (differing and others)

    @property
    def flipped(self) -> tuple[tuple[PartComparison, ValueDifference], ...]:
        """The tensors with flipped bits, if nothing else differs and all have only a few; otherwise empty."""
        found = [(part, each) for part in self.differing for each in part.differences]
        is_damage = all(each.has_flipped_bits for _, each in found)
        return tuple(found) if is_damage and sum(each.count for _, each in found) <= MOST_ELEMENTS else ()


def compare_states(
    expected: Mapping[str, Any], found: Mapping[str, Any], parameters: Mapping[str, Sequence[str]]
) -> StateComparison:
    """Compare everything in two checkpoints that a later step depends on.

    The pending log values are compared if both states have counted the same steps since the last log.

    Args:
        expected, found: Contents of the checkpoints.
        parameters: Names of the parameters that each optimizer trains, in the order that numbers them in its state.
    """
    parts = _leaves_by_part(expected, parameters), _leaves_by_part(found, parameters)
    names = list(dict.fromkeys([*parts[0], *parts[1]]))
    if expected["means"].get("counts") != found["means"].get("counts"):
        names.remove("pending log values")
    return StateComparison(tuple(_compare_part(name, parts[0].get(name, {}), parts[1].get(name, {})) for name in names))


def _leaves_by_part(state: Mapping[str, Any], parameters: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Return the tensors and other values of a checkpoint by part and name."""
    parts: dict[str, dict[str, Any]] = {"progress": {"images": state["training"]["images"]}}
    for name, value in state["method"].items():
        network, _, rest = name.partition(".")
        parts.setdefault(network if rest else "model", {})[name] = value
    for name, average in state["averages"].items():
        parts[f"{_AVERAGE}{name}"] = dict(_leaves(average, ""))
    for name, optimizer in state["optimizers"].items():
        own = parameters.get(name, ())
        named = {
            own[key] if isinstance(key, int) and 0 <= key < len(own) else key: value
            for key, value in optimizer.get("state", {}).items()
        }
        parts[f"{_OPTIMIZER}{name}"] = dict(_leaves({**optimizer, "state": named}, ""))
    parts["pending log values"] = dict(_leaves(state["means"], ""))
    return parts


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _leaves(value, f"{name}[{number}]")
    else:
        yield name, node


def _compare_part(name: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> PartComparison:
    differences = []
    for key in dict.fromkeys([*expected, *found]):
        difference = _compare(key, expected.get(key, _ABSENT), found.get(key, _ABSENT))
        if difference is not None:
            differences.append(difference)
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return PartComparison(name, len(tensors), len(found) - len(tensors), num_bytes, tuple(differences))


def _compare(name: str, expected: Any, found: Any) -> ValueDifference | None:
    """Return the difference of two tensors or other values, or None if they are the same bit for bit."""
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        is_same = type(expected) is type(found) and (expected == found or (expected != expected and found != found))
        return None if is_same else ValueDifference(name, _described(expected), _described(found))
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return ValueDifference(name, _described(expected), _described(found))
    first, second = (each.detach().cpu().contiguous().reshape(-1) for each in (expected, found))
    bits = _INTEGERS.get(first.element_size())
    assert bits is not None, first.dtype
    changed = torch.bitwise_xor(first.view(bits), second.view(bits))
    places = changed.nonzero().reshape(-1)
    if not len(places):
        return None
    largest = (double(first[places]) - double(second[places])).abs().max().item()
    elements = tuple(
        ElementDifference(
            tuple(int(number) for number in torch.unravel_index(place, expected.shape)) if expected.dim() else (),
            first[place].item(),
            second[place].item(),
            _set_bits(int(changed[place].item()), 8 * first.element_size()),
        )
        for place in places[:MOST_ELEMENTS]
    )
    return ValueDifference(name, _described(expected), _described(found), len(places), largest, elements)


def _set_bits(value: int, size: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(size) if value >> bit & 1)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return str(value)
