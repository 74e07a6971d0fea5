"""Decide whether two measured values are comparable, and if not, why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from genimg.utils.mappings import flatten

_SECTIONS = (
    "extractor", "generated", "real", "translation", "likelihood", "reconstructions", "metrics", "precision", "device",
    "versions",
)  # fmt: skip

_OPTIONAL = ("additional",)  # present only in evaluations with several extractors

# (key prefix, whether a difference forbids comparing, reason). The first entry that is a prefix of the key decides.
_CONSEQUENCES: tuple[tuple[str, bool, str], ...] = (
    ("extractor", True, "distances in different feature spaces have different scales"),
    ("generated.num_images", True, "the Fréchet distance falls as the count grows"),
    ("generated.image_shape", True, "the resolution changes what the extractor sees"),
    ("generated.augmentation", True, "augmented images follow another distribution"),
    ("generated.mode", True, "batch statistics and dropout change the images"),
    ("generated", False, "the images differ, as expected"),
    ("real.source", True, "they are measured against other images"),
    ("real.fingerprint", True, "they are measured against other images"),
    ("real", True, "the real images or their number differ"),
    ("translation.weights", False, "the images differ, as expected"),
    ("translation", True, "the translated images or the settings differ"),
    ("likelihood.weights", False, "the images differ, as expected"),
    ("likelihood", True, "the measured images, the likelihood or the number of samples differ"),
    ("reconstructions", True, "other images are reconstructed"),
    ("metrics", True, "the metric is computed in another way"),
    ("additional", True, "the metrics of an additional extractor are computed in another way"),
    ("precision", False, "it changes only the last digits"),
    ("device", False, "it changes only the last digits"),
    ("versions", False, "they usually change only the last digits; decoding and resizing can change with pillow"),
)


_OF_ONE_KIND = ("generated.weights", "generated.mode", "generated.seed", "generated.fingerprint")


@dataclass(frozen=True)
class Difference:
    """A difference between the provenances of two measurements.

    Attributes:
        key: Dotted key in the provenance.
        first, second: Values of both sides.
        matters: Whether the difference forbids comparing.
        reason: Reason why it does or does not.
    """

    key: str
    first: object
    second: object
    matters: bool
    reason: str


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[Difference]:
    """Return all differences between two provenances, those that forbid comparing first.

    The order of several extractors does not matter: each is compared with the one of the same name.
    """
    second = _in_order_of(first, second)
    a, b = (
        flatten({key: side.get(key) for key in (*_SECTIONS, *_OPTIONAL) if key in side or key in _SECTIONS})
        for side in (first, second)
    )
    found = []
    for key in dict.fromkeys([*a, *b]):
        x, y = a.get(key, "not recorded"), b.get(key, "not recorded")
        if x != y:
            matters, reason = next(
                (m, why) for prefix, m, why in _CONSEQUENCES if key == prefix or key.startswith(prefix + ".")
            )
            # Generated images have a seed and a mode, a folder has a fingerprint, so a key may exist on one side only.
            matters = matters and not (key in _OF_ONE_KIND and (key not in a or key not in b))
            if not (_has_metric(key, first) and _has_metric(key, second)):
                matters, reason = False, "measured on one side only"
            found.append(Difference(key, x, y, matters, reason))
    return sorted(found, key=lambda difference: not difference.matters)


def _in_order_of(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Reorder the extractors of ``second`` to start with the first extractor of ``first``, if ``second`` also has it."""
    places, name, own_name = _places(second), _name(first), _name(second)
    if name == own_name or name not in places:
        return second
    chosen, real = second["additional"][places[name]], second.get("real")
    real = real if isinstance(real, dict) else {}
    own = {"extractor": second.get("extractor"), "metrics": second.get("metrics"), "num_kept": real.get("num_kept")}
    others = {place: each for place, each in second["additional"].items() if place != places[name]}
    return second | {
        "extractor": chosen["extractor"],
        "metrics": chosen.get("metrics"),
        "real": real | {"num_kept": chosen.get("num_kept")},
        "additional": others | {_places(first).get(own_name, own_name): own},
    }


def _places(provenance: dict[str, Any]) -> dict[str, str]:
    """Return the keys of the additional extractors, by extractor name."""
    additional = provenance.get("additional")
    pairs = additional.items() if isinstance(additional, dict) else ()
    return {_name(each): place for place, each in pairs if isinstance(each, dict) and _name(each)}


def _name(measured: dict[str, Any]) -> str:
    """Return the name of the extractor that values were measured with; empty if it is not recorded."""
    extractor = measured.get("extractor")
    return str(extractor.get("name", "")) if isinstance(extractor, dict) else ""


def _has_metric(key: str, provenance: dict[str, Any]) -> bool:
    """Return false if a key belongs to a metric or an additional extractor that the provenance does not have."""
    node: Any = provenance
    for section, name in itertools.pairwise(key.split(".")):
        node = node.get(section) if isinstance(node, dict) else None
        if section in ("metrics", "additional") and not (isinstance(node, dict) and name in node):
            return False
    return True


def describe_differences(found: list[Difference]) -> str:
    """Return the differences as text, one per line, grouped by their reason."""
    lines: list[str] = []
    for reason in dict.fromkeys(difference.reason for difference in found):
        lines.append(f"  {reason}:")
        lines += [f"    {d.key}: {d.first} against {d.second}" for d in found if d.reason == reason]
    return "\n".join(lines)
