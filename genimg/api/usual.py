"""Warn when the command line removes or contradicts a model's usual settings."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genimg.config.compose import Composition
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.methods.base import Method
from genimg.training.state import TrainerSettings

log = logging.getLogger(__name__)

_FEW_STEPS = 2000  # with fewer, any model generates blobs: a DCGAN's digits are readable after about 2,000
_SMALL_SHARE = 0.002  # fraction of the published duration


def refuse_repeated_options(composition: Composition) -> None:
    """Reject two options in ``penalty=[...]`` or ``ema=[...]`` that have the same config key, because Hydra would merge them.

    Raises:
        ConfigError: If two names are equal or variants of one option, such as r1 and r1_lazy.
    """
    folders = composition.folders
    for override in composition.typed():
        group = str(override.key_or_group)
        names = override.value() if group in ("penalty", "ema") else None
        if not isinstance(names, list):
            continue
        places = [_place(group, name, folders) for name in names]
        for place in places:
            if places.count(place) > 1:
                same = " and ".join(dict.fromkeys(name for name, other in zip(names, places, strict=True) if other == place))
                fix = "remove one of them" if group == "penalty" else "add a second one by name (docs/concepts.md)"
                raise ConfigError(f"{override.input_line}: {same} share one config key, {group}.{place}", fix, key=group)


def refuse_concatenated_labels(config: Mapping[str, Any]) -> None:
    """Reject ``conditioning=concat`` for a new run of a diffusion or flow-matching model, whose network embeds labels.

    Runs of earlier versions, where it had the effect of ``label``, can still be resumed.

    Args:
        config: Resolved config.

    Raises:
        ConfigError: If the conditioning is for another kind of model.
    """
    if (config.get("conditioning") or {}).get("head") == "concat" and "times" in config["model"]:  # times of noise levels
        raise ConfigError(
            "conditioning=concat is for GANs and autoencoders, but this model embeds labels", "set conditioning=label"
        )


def warn_of_missing_penalties(composition: Composition) -> None:
    """Warn if an override removes penalties that the model's YAML sets."""
    if "penalty" not in composition.typed_keys():
        return
    folders, model = composition.folders, composition.choices.get("model")
    needed = brought_by_model(str(model), "penalty", folders) or []
    chosen = {key for key, node in composition.config.penalty.items() if "_target_" in node}
    if missing := [name for name in needed if _place("penalty", name, folders) not in chosen]:
        log.warning(
            "penalty=[%s] omits %s: the published training of model=%s always has penalty=[%s], and without them it "
            "often diverges or collapses; remove penalty= to keep them",
            ",".join(map(str, chosen)), " and ".join(missing), model, ",".join(needed),
        )  # fmt: skip


def warn_of_conditioning_without_effect(composition: Composition, method: Method) -> None:
    """Warn if an override sets the dropout of a condition that the model does not read.

    Args:
        composition: Composition that shows what the user chose.
        method: The model that was built.
    """
    key = "model.condition_dropout"
    if key in composition.typed_keys() and not {"label", "caption"} & {*method.batch_keys}:
        log.warning(
            "%s=%s has no effect, because this model reads no condition: remove it, or set conditioning=label or caption",
            key, composition.config.model.condition_dropout,
        )  # fmt: skip


def brought_by_model(model: str, group: str, folders: Iterable[Path]) -> Any:
    """Return the option or options of a group that a model's YAML chooses, directly or through a YAML that it extends.

    Args:
        model: Option of the group ``model``.
        group: Config group, such as ``penalty`` or ``trainer``.
        folders: Directories of configs.

    Returns:
        The name, or the list of names; None if the YAML chooses no option of the group.
    """
    path = next((path for folder in folders if (path := Path(folder, "model", f"{model}.yaml")).is_file()), None)
    if path is None:
        return None
    defaults = OmegaConf.to_container(OmegaConf.load(path)).get("defaults", [])  # type: ignore[union-attr]
    for entry in defaults:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if re.fullmatch(rf"override /{group}(@.*)?", key):
                return value
    bases = [entry for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    return next((found for base in bases if (found := brought_by_model(base, group, folders)) is not None), None)


def warn_of_short_training(
    composition: Composition, settings: TrainerSettings, config: Mapping[str, Any], builder: Builder
) -> None:
    """Warn if the default duration is too short for the model to learn anything.

    Args:
        composition: Composition that shows whether the user chose the duration.
        settings: Settings of the trainer.
        config: Resolved config.
        builder: Builder for this run, which converts epochs to images.
    """
    if composition.typed_keys() & {"trainer.duration", "trainer", "debug"} or config.get("dry_run"):
        return
    steps, usual = settings.duration // settings.batch_size, settings.usual_duration
    if steps >= _FEW_STEPS and (usual is None or settings.duration >= _SMALL_SHARE * usual):
        return
    published = ""
    if usual is not None:
        published = f"; the published training of this model takes {config['trainer']['usual_duration']}"
        published += f" ({usual // settings.batch_size:,} steps of {settings.batch_size} images here)"
    enough = max(_FEW_STEPS * 5 * settings.batch_size, int(_SMALL_SHARE * (usual or 0)))
    log.warning(
        "%s of %s images are %s steps, which are too few to learn much%s: set trainer.duration; for a first impression, "
        "trainer.duration='%dk images'",
        config["trainer"]["duration"], f"{builder.epoch_size:,}", f"{steps:,}", published, -(-enough // 1000),
    )  # fmt: skip


def _place(group: str, name: object, folders: Iterable[Path]) -> str:
    """Return the key of an option below its group: the ``@package`` of its YAML, or its name."""
    path = next((path for folder in folders if (path := Path(folder, group, f"{name}.yaml")).is_file()), None)
    header = re.match(rf"# @package {group}\.(\w+)", path.read_text(encoding="utf-8")) if path else None
    return header[1] if header else str(name)
