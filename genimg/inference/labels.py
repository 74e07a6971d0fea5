"""Find the class that a user requests by name, number or position."""

from __future__ import annotations

import re
from collections.abc import Sequence

from genimg.errors import ConfigError
from genimg.utils.words import nearest

_NUMBERED = re.compile(r"(\d+)(?:[ _.-]+(\D.*))?")  # "3", "3 - three" or "3_cat": a number and an optional word
_POSITION = re.compile(r"index:(\d+)")
_MAX_NAMES = 10  # class names shown in a message


def find_label(
    value: object, num_classes: int, class_names: Sequence[str], option: str = "label", *, owner: str = "this model"
) -> int:
    """Return the label of the class that ``value`` refers to.

    Names have priority over positions, because the names of classes may be numbers. With the folders 1, 2 and 3, label=1 is
    the first folder, whose position is 0. A value is resolved in this order:

    1. the class with exactly this name;
    2. for ``index:N``, the class at position N;
    3. for an integer, the only class whose name is this number or starts with it ("3 - three"); for a word, the only class
       with this name, or with this word after its number, ignoring case;
    4. for an integer that is in no name, the class at this position, unless a class name has a number other than its position.

    Args:
        value: Value parsed by Hydra.
        num_classes: Number of classes, at least 1.
        class_names: Class names by label; empty if unknown.
        option: Name of the option, for messages.
        owner: What has the classes, for messages.

    Raises:
        ConfigError: If no class or more than one matches.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text in class_names:
        return class_names.index(text)
    if position := _POSITION.fullmatch(text):
        if int(position[1]) < num_classes:
            return int(position[1])
        raise ConfigError(f"{option}={value}: positions are index:0 to index:{num_classes - 1}")
    parts = [_NUMBERED.fullmatch(name) for name in class_names]
    numbers = [None if found is None else int(found[1]) for found in parts]
    number = int(text) if re.fullmatch(r"\d+", text) else None
    if number is not None:
        meant = [label for label, own in enumerate(numbers) if own == number]
    else:
        words = [{name, found[2] or name} if found else {name} for name, found in zip(class_names, parts, strict=True)]
        meant = [label for label, own in enumerate(words) if text.casefold() in {word.casefold() for word in own}]
    if len(meant) == 1:
        return meant[0]
    if len(meant) > 1:
        names = " or ".join(repr(class_names[label]) for label in meant)
        raise ConfigError(
            f"{option}={value} could be {names}: give one of these names in full, in quotes, or a position, such as "
            f"{option}=index:{meant[0]}"
        )
    own_numbers = any(own is not None and own != label for label, own in enumerate(numbers))
    if type(value) is int and 0 <= value < num_classes and not own_numbers:
        return value
    raise ConfigError(_no_class(value, num_classes, class_names, option, owner, own_numbers=own_numbers))


def _no_class(
    value: object, num_classes: int, class_names: Sequence[str], option: str, owner: str, *, own_numbers: bool
) -> str:
    close = nearest(value, class_names) if isinstance(value, str) else ""
    begin = f"{option}={value} is not a class of {owner}{close}: give "
    if own_numbers:
        return (
            f"{begin}a name: {_shortened(class_names)}; the numbers in the names differ from the positions, so write a "
            f"position from 0 to {num_classes - 1} as {option}=index:N"
        )
    known = f" or a name: {_shortened(class_names)}" if class_names else ""
    is_name = isinstance(value, str)
    unknown = "; this checkpoint does not record class names" if is_name and not class_names else ""
    return f"{begin}a number from 0 to {num_classes - 1}{known}{unknown}"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
