"""Match the tensors of a checkpoint to those of a new model: by name and shape, and classes by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genimg.networks.conditioning import ClassColumns
from genimg.networks.layers import SpectralNorm
from genimg.utils.prefixes import begins_with

_OF_WEIGHTS = re.compile(r".+\.parametrizations\.\w+\.\d+\..+")  # singular vectors, which follow from a weight
_MOST_ROWS = 20  # tensors listed in a table


@dataclass(frozen=True)
class ClassChange:
    """The classes of a checkpoint and of a new model, if they differ, and the tensors that depend on them.

    Attributes:
        old, new: Class names by label; ``old`` is empty if that model reads no labels.
        axes: Dimension of a tensor that is indexed by classes, and where they are in it, by the tensor's name.
        others: Names of further tensors whose shapes depend on the number of classes, such as singular vectors.
    """

    old: Sequence[str]
    new: Sequence[str]
    axes: Mapping[str, tuple[int, ClassColumns]]
    others: frozenset[str]

    @classmethod
    def between(
        cls,
        old: Sequence[str],
        new: Sequence[str],
        model: nn.Module,
        shapes: Mapping[str, torch.Size],
        with_one_more: Mapping[str, torch.Size],
    ) -> ClassChange:
        """Find the tensors of a model that depend on its number of classes.

        Args:
            old, new: Class names by label.
            model: The new model.
            shapes: Shapes of its tensors.
            with_one_more: Shapes of the same model with one class more.
        """
        axes, others = {}, set()
        for name, shape in shapes.items():
            larger = with_one_more.get(name, shape)
            if len(larger) != len(shape):
                continue
            growing = [axis for axis, (now, then) in enumerate(zip(shape, larger, strict=True)) if now != then]
            if len(growing) == 1 and larger[growing[0]] == shape[growing[0]] + 1:
                axes[name] = (growing[0], _columns(model, name))
            elif growing:
                others.add(name)
        return cls(old, new, axes, frozenset(others))

    def describe(self) -> str:
        """Describe in one line which classes are taken over, new and dropped."""
        lists = {
            "taken over": [name for name in self.new if name in self.old],
            "new": [name for name in self.new if name not in self.old],
            "dropped": [name for name in self.old if name not in self.new],
        }
        return "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in lists.items())

    def converted(self, name: str, own: Tensor, found: Tensor) -> Tensor | None:
        """Return a tensor of the checkpoint for the new classes; None if it has another shape apart from its classes.

        Args:
            name: Name of the tensor.
            own: The new model's initial values, which the entries of new classes keep.
            found: The checkpoint's values.
        """
        axis, columns = self.axes[name]
        num_others = own.shape[axis] - len(self.new)
        shape = [*own.shape]
        shape[axis] = num_others + len(self.old)
        if [*found.shape] != shape:
            return None
        result, found = own.clone(), found.to(own.dtype)
        others = (len(self.new), len(self.old)) if columns.first else (0, 0)
        result.narrow(axis, others[0], num_others).copy_(found.narrow(axis, others[1], num_others))
        start = 0 if columns.first else num_others
        label_of = {name: label for label, name in enumerate(self.old)}
        pairs = [(label, label_of[name]) for label, name in enumerate(self.new) if name in label_of]
        places, origins = (torch.tensor([start + pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
        scale = (len(self.old) / len(self.new)) ** columns.power if pairs else 1.0
        return result.index_copy_(axis, places, (found.index_select(axis, origins) * scale).to(own.dtype))


@dataclass(frozen=True)
class Row:
    """A tensor that does not match.

    Attributes:
        name: Name of the tensor.
        own, found: Shapes in the new model and in the checkpoint, as text; empty if it is absent.
    """

    name: str
    own: str
    found: str

    @property
    def network(self) -> str:
        """Name of the network, or of another part of the model, that has the tensor."""
        return self.name.partition(".")[0]


def table(rows: Sequence[Row]) -> str:
    """Return an aligned table of tensors that do not match, with at most 20 rows."""
    cells = [(row.name, row.own or "absent", row.found or "absent") for row in rows[:_MOST_ROWS]]
    lines = [("tensor", "this model", "the checkpoint"), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    text = [f"  {name:<{widths[0]}}  {own:<{widths[1]}}  {found}" for name, own, found in lines]
    more = len(rows) - _MOST_ROWS
    return "\n".join([*text, *([f"  and {more} more"] if more > 0 else [])])


@dataclass(frozen=True)
class Matches:
    """The tensors of a checkpoint that fit a new model.

    Attributes:
        tensors: Values to load, by name.
        rows: Tensors that do not match, in the order of the new model, then those that only the checkpoint has.
        counts: Number of matching tensors and of all tensors of each of the new model's networks, by the network's name.
    """

    tensors: Mapping[str, Tensor]
    rows: Sequence[Row]
    counts: Mapping[str, tuple[int, int]]

    @property
    def are_empty(self) -> bool:
        """Whether no tensor of a network matches."""
        return not any(count for count, _ in self.counts.values())

    def describe(self) -> str:
        """Describe in one line how many tensors of each network match."""
        return ", ".join(f"{name}: {count} of {total} tensors" for name, (count, total) in self.counts.items())


def match(
    model: nn.Module,
    found: Mapping[str, Tensor],
    change: ClassChange | None,
    *,
    parts: Sequence[str] | None = None,
    are_folded: bool = False,
) -> Matches:
    """Match tensors by name and shape, and those of classes by the classes' names.

    Args:
        model: New model with its initial values.
        found: Tensors of the checkpoint.
        change: Change of the classes; None if they are the same.
        parts: Prefixes of the names of tensors that are matched, all others being left out; None matches all.
        are_folded: Whether the checkpoint's weights are already divided by their spectral norm, with names of plain weights.
    """
    tensors: dict[str, Tensor] = {}
    rows, unused = [], dict.fromkeys(name for name in found if parts is None or begins_with(name, parts))
    counts = {name.partition(".")[0]: (0, 0) for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        is_chosen = parts is None or begins_with(name, parts)
        plain = re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name) if are_folded else name
        given = found.get(plain) if is_chosen else None
        unused.pop(plain, None)
        follows = _OF_WEIGHTS.fullmatch(name) is not None
        if follows and (are_folded or (change is not None and name in change.others)):
            continue  # estimated again
        matching = None
        if given is not None and change is not None and name in change.axes:
            matching = change.converted(name, value, given)
        elif given is not None and given.shape == value.shape:
            matching = given
        if matching is None and is_chosen and "." in name:  # the model's own buffers follow from the data
            rows.append(Row(name, _shape(value), "" if given is None else _shape(given)))
        elif matching is not None:
            tensors[name] = matching
        if not follows and (network := name.partition(".")[0]) in counts:
            count, total = counts[network]
            counts[network] = (count + (matching is not None), total + 1)
    rows += [Row(name, "", _shape(found[name])) for name in unused if "." in name]
    return Matches(tensors, rows, counts)


def estimate_singular_vectors(model: nn.Module, loaded: Mapping[str, Tensor], change: ClassChange | None) -> None:
    """Estimate the singular vectors of weights that were loaded without them, or that depend on classes that have changed."""
    for path, layer in model.named_modules():
        weight = f"{path.rpartition('.')[0]}.original"
        if isinstance(layer, SpectralNorm) and weight in loaded:
            is_known = {f"{path}.left", f"{path}.right"} <= loaded.keys()
            if not is_known or (change is not None and weight in change.axes):
                layer.restart(model.get_parameter(weight))


def _columns(model: nn.Module, name: str) -> ClassColumns:
    """Return the ``class_columns`` of the innermost module that has them and holds a tensor."""
    found, module = ClassColumns(), model
    for part in name.split("."):
        found = getattr(module, "class_columns", found)
        module = getattr(module, part, module)  # the last part is the tensor
    return found


def _shape(tensor: Tensor) -> str:
    return str([*tensor.shape])
