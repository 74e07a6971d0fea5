"""Labels and captions requested from genimg-sample."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genimg.data.captions import caption_length, encode
from genimg.errors import ConfigError
from genimg.inference.labels import find_label
from genimg.methods.capabilities import Generates, Reconstructs, TakesConditions
from genimg.methods.gan import GAN
from genimg.methods.options import SamplingOptions
from genimg.types import Batch

KEYS = {"label": "label", "text": "caption"}
"""Keys of a batch, by option of the command line."""

_SAFE = r"(?!label\d+$)\w[\w-]{0,79}"  # safe as a file name, and different from names made from a number


@dataclass(frozen=True)
class Condition:
    """A condition of generated images.

    Attributes:
        name: Name for files and, if there are several conditions, for a folder.
        row: Batch of one image with the condition; empty if the method draws conditions.
    """

    name: str
    row: Batch


def find_conditions(method: Generates | Reconstructs, class_names: Sequence[str], *, label: Any, text: Any) -> list[Condition]:
    """Return the requested conditions, or an empty one if none are requested.

    Args:
        method: The model.
        class_names: Class names by label; empty if the checkpoint does not have them.
        label: One class or a list, by name or number; None for none.
        text: One caption or a list; None for none.

    Raises:
        ConfigError: If the model does not use such conditions or has no such class, or a list is empty or has duplicates.
    """
    wanted = {"label": label, "text": text}
    found: list[Condition] = []
    for option, key in KEYS.items():
        given = wanted[option]
        if given is None:
            continue
        if key not in method.batch_keys:
            others = "".join(f", or set {o}=..." for o, k in KEYS.items() if k in method.batch_keys)
            raise ConfigError(
                f"{option}={given}: this model was trained without {key}s: remove it{others}{_how_to_train(method, key)}"
            )
        values = given if isinstance(given, list) else [given]
        if not values:
            raise ConfigError(f"{option}=[] is empty: give one {option} or more, or null")
        if option == "label":
            assert isinstance(method, TakesConditions)
            found += [_of_label(value, method.num_classes, class_names) for value in values]
        else:
            found += [_of_text(value) for value in values]
    names = [condition.name for condition in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        key = next(option for option in KEYS if wanted[option] is not None)
        raise ConfigError(f"{key}={wanted[key]} contains {twice} twice, and both would go to the same place: remove one")
    return found or [Condition("", {})]


def _how_to_train(method: Generates | Reconstructs, key: str) -> str:
    """Return how a model of this kind is trained with a condition, as the end of a message; empty if none can have one."""
    if not isinstance(method, TakesConditions):
        return ""
    if isinstance(method, GAN):
        conditioning = "projection" if key == "label" else "text"
    else:
        conditioning = key
    return f", or train a model with conditioning={conditioning} on data with {key}s"


def require_one(method: Generates | Reconstructs, conditions: Sequence[Condition], what: str) -> Condition:
    """Return the only requested condition.

    Args:
        method: The model.
        conditions: Conditions from ``find_conditions``.
        what: The option that needs exactly one condition, with its value, for messages.

    Raises:
        ConfigError: If there are several, or none although the model needs one.
    """
    require_condition(method, conditions[0].row, what)
    if len(conditions) > 1:
        raise ConfigError(f"{what} needs exactly one condition, not {len(conditions)}: give one label or text")
    return conditions[0]


def require_condition(method: Generates | Reconstructs, given: Collection[str], what: str) -> None:
    """Reject images without the labels or captions that a model needs.

    Args:
        method: The model.
        given: Keys of the batch.
        what: The option that needs the images, for messages.

    Raises:
        ConfigError: If a condition is missing; the message names its option.
    """
    for option, key in KEYS.items():
        if key in method.batch_keys and key not in given:
            raise ConfigError(f"{what}: this model needs a {key} with every image: set {option}=...", key=option)


def require_other_conditions(options: SamplingOptions, rows: Iterable[Batch]) -> None:
    """Reject a condition in the sampling options, such as ``negative``, that is also one of the requested conditions.

    Args:
        options: Sampling options.
        rows: Batches of the requested conditions; they are empty if the method draws conditions.

    Raises:
        ConfigError: If it is, because guidance then has no effect on these images.
    """
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if option.metadata["refers_to"] == "condition" and value is not None and any(_holds(row, value) for row in rows):
            raise ConfigError(
                f"{option.name}={value} is also a requested condition, so guidance has no effect on its images",
                "choose another condition",
                key=option.name,
            )


def _holds(row: Batch, value: int | str) -> bool:
    """Return whether a label or caption is one of the conditions of a batch."""
    if "label" in row:
        return isinstance(value, int) and bool(row["label"].eq(value).any())
    if "caption" not in row or (length := caption_length([str(value)])) > row["caption"].shape[1]:
        return False
    caption = torch.nn.functional.pad(encode([str(value)], length), (0, row["caption"].shape[1] - length))
    return bool(row["caption"].eq(caption).all(dim=1).any())


def repeated(row: Batch, count: int) -> Batch:
    """Repeat a batch of one row ``count`` times."""
    return {key: value.expand(count, *value.shape[1:]) for key, value in row.items()}


def _of_label(value: object, num_classes: int, class_names: Sequence[str]) -> Condition:
    label = find_label(value, num_classes, class_names)
    return Condition(name_of_label(label, num_classes, class_names), {"label": torch.tensor([label])})


def name_of_label(label: int, num_classes: int, class_names: Sequence[str]) -> str:
    """Return the class name if it is safe as a file name, else a name such as ``label03``."""
    name = class_names[label] if class_names else ""
    return name if re.fullmatch(_SAFE, name) else f"label{label:0{len(str(num_classes - 1))}d}"


def _of_text(value: object) -> Condition:
    if not isinstance(value, str):
        hint = "" if isinstance(value, list | dict) else f""", such as text="'{value}'\""""
        raise ConfigError(f"text={value} is not text: put it in quotes{hint}")
    words = re.sub(r"[^\w]+", "-", value).strip("-").lower()
    return Condition(words[:80] or "empty", {"caption": encode([value], caption_length([value]))})
