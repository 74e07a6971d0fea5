"""Decide whether two measured values are comparable, and if not, why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from genimg.utils.mappings import flatten

_SECTIONS = (
    "extractor", "generated", "real", "translation", "likelihood", "reconstructions", "denoising", "metrics", "precision",
    "device", "versions",
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
    ("denoising", True, "other images are denoised"),
    ("metrics", True, "the metric is computed in another way"),
    ("additional", True, "the metrics of an additional extractor are computed in another way"),
    ("precision", False, "it changes only the last digits"),
    ("device", False, "it changes only the last digits"),
    ("versions", False, "they usually change only the last digits; decoding and resizing can change with pillow"),
)


_OF_ONE_KIND = ("generated.weights", "generated.mode", "generated.seed", "generated.fingerprint")


@dataclass(frozen=True)
class ProvenanceDifference:
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


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[ProvenanceDifference]:
    """Return all differences between two provenances, those that forbid comparing first.

    The order of several extractors does not matter: each is compared with the one of the same name.
    """
    first, second = _aligned(first, second)
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
            found.append(ProvenanceDifference(key, x, y, matters, reason))
    return sorted(found, key=lambda difference: not difference.matters)


def _aligned(first: dict[str, Any], second: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both provenances with a common extractor first, if there is one, and the others by name."""
    sides = (first, second)
    known = [_by_name(side) for side in sides]
    common = next((name for name in map(_name, sides) if name and all(name in each for each in known)), None)
    if common is None or not any("additional" in side for side in sides):
        return sides
    return tuple(_led_by(common, side, each) for side, each in zip(sides, known, strict=True))  # type: ignore[return-value]


def _by_name(side: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was measured with each extractor, by its name."""
    additional, real = side.get("additional"), side.get("real")
    own = {key: side.get(key) for key in ("extractor", "metrics")}
    own["num_kept"] = real.get("num_kept") if isinstance(real, dict) else None
    others = additional.values() if isinstance(additional, dict) else ()
    return {_name(each): each for each in (own, *others) if isinstance(each, dict)}


def _led_by(name: str, side: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    main, real = known[name], side.get("real")
    others = {other: each for other, each in known.items() if other != name}
    return {key: value for key, value in side.items() if key != "additional"} | {
        "extractor": main.get("extractor"),
        "metrics": main.get("metrics"),
        "real": (real if isinstance(real, dict) else {}) | {"num_kept": main.get("num_kept")},
        **({"additional": others} if others else {}),
    }


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


def describe_differences(found: list[ProvenanceDifference]) -> str:
    """Return the differences as text, one per line, grouped by their reason."""
    lines: list[str] = []
    for reason in dict.fromkeys(difference.reason for difference in found):
        lines.append(f"  {reason}:")
        lines += [f"    {d.key}: {d.first} against {d.second}" for d in found if d.reason == reason]
    return "\n".join(lines)
