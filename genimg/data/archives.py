"""Choose the arrays of images and labels in a NumPy archive by their names and shapes, without reading the pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from genimg.data.numpy_archive import Header
from genimg.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")

_IMAGES = r"(?:x|images?|imgs?|data|samples?)"
_LABELS = r"(?:y|labels?|targets?|class|classes|class_labels?|fine_labels?)"
_OF_SPLIT = {"train": r"(?:train|training)", "val": r"(?:val|valid|validation)", "test": r"(?:test|testing)"}
FIRST, SECOND = "arr_0", "arr_1"  # np.savez's names for unnamed arrays; ADM stores samples and their labels under them
MOST_CLASSES = 1_000_000  # because each class gets a name


def choose_images(headers: Mapping[str, Header], where: str, *, key: str | None, split: str | None) -> tuple[str, str | None]:
    """Return the name of the array of images, and its split if the name contains one.

    Args:
        headers: Headers of all arrays.
        where: Name of the file, for messages.
        key: Array name given by the user; None chooses by names and shapes.
        split: ``train``, ``val`` or ``test``; None chooses the training images if the archive has splits.

    Raises:
        ConfigError: If ``key`` and ``split`` are both given, or the array that one of them names is not an array of images.
        DataError: If no array or more than one matches.
    """
    if key is not None:
        if split is not None:
            raise ConfigError(f"split={split} has no effect, because images={key} names the array", "remove one of them")
        if key not in headers:
            raise ConfigError(f"images={key} is not an array of {where}, which holds {listed(headers)}", "choose one of them")
        if len(headers[key].shape) not in (3, 4):
            raise ConfigError(f"images={key} is not an array of images: {_expected({key: headers[key]})}")
        return key, _split_of(key, _IMAGES)
    candidates = image_like(headers)
    named = {name for name in headers if _usual(name)}
    if not candidates or (named and not named & set(candidates) and len(candidates) == 1):
        raise DataError(f"path={where} holds no images: {_expected(headers)}")
    if split is not None:
        found = [name for name in candidates if _split_of(name, _IMAGES) == split]
        if not found:
            raise ConfigError(f"split={split} does not exist in {where}, which holds {listed(headers)}",
                              "remove split, or name an array with images=NAME")  # fmt: skip
    elif len(candidates) == 1:
        found = candidates
    else:
        found = [name for name in candidates if _usual(name)]
    if len(found) != 1:
        choice = found or candidates
        raise DataError(
            f"images=null is ambiguous, because {where} has {len(choice)} arrays that could be the images: "
            f"{listed({name: headers[name] for name in choice})}",
            f"choose one, such as images={choice[0]}",
        )
    return found[0], _split_of(found[0], _IMAGES)


def choose_labels(headers: Mapping[str, Header], where: str, *, key: str, images: str, split: str | None) -> str | None:
    """Return the name of the array of labels; None if there is none.

    Args:
        headers: Headers of all arrays.
        where: Name of the file, for messages.
        key: ``auto``, ``none``, or the array name given by the user.
        images: Name of the array of images.
        split: Split in the name of the images; None if it has none.

    Raises:
        ConfigError: If ``key`` names an array that does not exist.
        DataError: If more than one array matches.
    """
    if key == "none":
        return None
    others = {name: header for name, header in headers.items() if name != images}
    if key != "auto":
        if key not in others:
            raise ConfigError(f"labels={key} is not an array of {where}", f"choose auto, none or one of {listed(others)}")
        return key
    plain = [name for name in others if re.fullmatch(_LABELS, name, re.IGNORECASE)]
    found = [name for name in others if split is not None and _split_of(name, _LABELS) == split] or plain
    if not found and images == FIRST and SECOND in others and _could_be_labels(headers[SECOND], headers[FIRST].shape[0]):
        found = [SECOND]
    if len(found) > 1:
        raise DataError(
            f"labels=auto finds {len(found)} arrays of {where} that could be the labels: "
            f"{listed({name: headers[name] for name in found})}",
            f"choose one, such as labels={found[0]}, or ignore them with labels=none",
        )
    return found[0] if found else None


def image_like(headers: Mapping[str, Header]) -> list[str]:
    """Return the names of numeric arrays with 3 or 4 axes; only those with 1, 3 or 4 channels, if there are any."""
    shaped = [name for name, header in headers.items() if len(header.shape) in (3, 4) and header.dtype.kind in "uifbc"]
    return [name for name in shaped if _has_channels(headers[name])] or shaped


def listed(headers: Mapping[str, Header]) -> str:
    """Format all names with their types and shapes, for messages."""
    return ", ".join(f"{name} {header}" for name, header in headers.items()) or "nothing"


def _expected(headers: Mapping[str, Header]) -> str:
    return f"expected an array [N, H, W, C], [N, C, H, W] or [N, H, W], found {listed(headers)}"


def _has_channels(header: Header) -> bool:
    return len(header.shape) == 3 or header.shape[3] in (1, 3, 4) or header.shape[1] in (1, 3, 4)


def _could_be_labels(header: Header, count: int) -> bool:
    """Return whether an array has the type and shape of labels, whatever its name."""
    return header.dtype.kind in "ui" and header.shape in ((count,), (count, 1))


def _usual(name: str) -> bool:
    """Return whether a name is usual for training images."""
    plain = name == FIRST or re.fullmatch(_IMAGES, name, re.IGNORECASE) is not None
    return plain or _split_of(name, _IMAGES) == "train"


def _split_of(name: str, what: str) -> str | None:
    """Return the split in a name such as ``x_train``, ``train_images`` or, for images only, ``train``; None if it has none."""
    alone: Iterable[str] = SPLITS if what == _IMAGES else ()
    for split, word in _OF_SPLIT.items():
        pattern = rf"{what}_?{word}|{word}_?{what}" + (rf"|{word}" if split in alone else "")
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return split
    return None
