"""Warn when the command line removes a model's usual settings, and replace the default evaluation if it is unavailable."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genimg.config.compose import Composition, Config
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.evaluation.extractors.inception import INCEPTION
from genimg.losses.efficientnet_lite import packaged_weights
from genimg.methods.base import Method
from genimg.training.state import TrainerSettings
from genimg.utils.paths import config_dir

log = logging.getLogger(__name__)

_FEW_STEPS = 2000  # with fewer, any model generates blobs: a DCGAN's digits are readable after about 2,000
_MADE_FOR = {  # evaluation for each dataset whose own feature extractor is shipped with genimg
    "genimg.data.datasets.builtin.mnist": "mnist",
    "genimg.data.datasets.builtin.cifar10": "cifar10_classifier",
    "genimg.data.datasets.shapes.shapes": "shapes",
}
_WITH_ONE_EXTRACTOR = ("genimg.evaluation.translation.", "genimg.evaluation.autoencoder.")
_OF_PHOTOS = "efficientnet_lite"  # for other images, if the package with its weights is installed
_OF_SMALL_PHOTOS = "cifar10_classifier"  # for translations or reconstructions otherwise; its extractor reads images of 32 px
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


def evaluation_at_hand(evaluation: Mapping[str, Any], data: str = "") -> Mapping[str, Any] | None:
    """Return a default evaluation of photos with EfficientNet-Lite0 instead of Inception, and log a warning.

    Args:
        evaluation: Resolved node of a default evaluation.
        data: Name of the function that loads the images, as in ``_target_``.

    Returns:
        The node, or None if the given one stays: it does not use Inception, Inception's weights are on this machine, those of
        EfficientNet-Lite0 are not, or genimg comes with an extractor for these images.
    """
    if not _uses_inception(evaluation) or data in _MADE_FOR or packaged_weights() is None:
        return None
    if INCEPTION.is_on_disk(evaluation["extractor"].get("weights")):
        return None
    log.warning(
        "the default evaluation uses the features of %s, because the Inception weights of FID are not on this machine; its "
        "distances are not FID. evaluation=inception downloads the weights (96 MB)",
        _OF_PHOTOS,
    )  # fmt: skip
    return _with_extractor_of(_OF_PHOTOS, evaluation)


def with_default_evaluation(config: Config, before: Mapping[str, Any] | None, *, by_recipe: bool) -> tuple[Config, bool]:
    """Return the config of a run that did not choose its evaluation, with the extractor that it uses by default.

    Args:
        config: Resolved config.
        before: Node of the evaluation of the run that continues; None for a new run. The run keeps its extractor if that is
            Inception or replaced Inception.
        by_recipe: Whether an experiment chose the evaluation, which then stays.

    Returns:
        The config, and whether the evaluation may be replaced if its weights are unavailable.
    """
    evaluation = config["evaluation"]
    if before is not None and _uses_inception(evaluation):
        names = (*_MADE_FOR.values(), _OF_PHOTOS)
        used = next((name for name in names if _plain_yaml("evaluation", name)["extractor"] == before.get("extractor")), None)
        if used is not None:
            return config.replaced(evaluation=_with_extractor_of(used, evaluation)), False
    stays = by_recipe or (before is not None and _uses_inception(before))
    found = None if stays else evaluation_at_hand(evaluation, str(config["data"]["_target_"]))
    return config if found is None else config.replaced(evaluation=found), True


def replacement_evaluation(config: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    """Return a replacement for an evaluation whose extractor weights are unavailable, and log a warning.

    Args:
        config: Resolved config.
        reason: Reason why the weights are unavailable.

    Returns:
        The node ``evaluation`` with an extractor that is on this machine and suits the data, if there is one; otherwise the
        node of ``evaluation=none``.
    """
    given, place = config["evaluation"], reason.splitlines()[0].partition(": put the file")[0]
    name = _MADE_FOR.get(str(config["data"]["_target_"])) or (None if packaged_weights() is None else _OF_PHOTOS)
    if str(given["_target_"]).startswith(_WITH_ONE_EXTRACTOR):
        name = name or _OF_SMALL_PHOTOS
        log.warning(
            "the features of evaluation=%s replace those of the default extractor, whose weights are missing (%s); the metrics "
            "have its name, and are neither FID nor KID. Once the weights are there, genimg-eval measures the checkpoints with "
            "them",
            name, place,
        )  # fmt: skip
        return _with_extractor_of(name, given)
    if name is None or not str(given["_target_"]).endswith(".Evaluator"):
        log.warning(
            "this run is not evaluated, because the weights of the default extractor are missing (%s); once they are "
            "there, genimg-eval measures its checkpoints. For photos, pip install 'genimg[photos]' installs another extractor",
            place,
        )
        return {}
    log.warning(
        "evaluation=%s replaces the default evaluation, whose weights are missing (%s); its distances are not FID. Once the "
        "weights are there, genimg-eval measures the checkpoints with them",
        name, place,
    )  # fmt: skip
    return _with_extractor_of(name, given)


def _uses_inception(evaluation: Mapping[str, Any]) -> bool:
    return str((evaluation.get("extractor") or {}).get("_target_")).endswith(".Inception")


def _with_extractor_of(name: str, evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an evaluation with the extractor of the option ``name``, and with its metrics if those differ from Inception's."""
    own = _plain_yaml("evaluation", name)
    keeps_metrics = name == _OF_PHOTOS or str(evaluation["_target_"]).startswith(_WITH_ONE_EXTRACTOR)
    keys = ("extractor",) if keeps_metrics else ("extractor", "metrics")
    return {**evaluation, **{key: own[key] for key in keys}}


def chooses_extractor(composition: Composition) -> bool:
    """Return whether an override names the evaluation or its extractor."""
    return any(key == "evaluation" or key.startswith("evaluation.extractor") for key in composition.typed_keys())


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


def _plain_yaml(group: str, name: str) -> Mapping[str, Any]:
    """Load a file of a config group, merged over the files in its defaults list."""
    node: Any = OmegaConf.load(Path(config_dir(), group, f"{name}.yaml"))
    bases = [entry for entry in node.pop("defaults", []) if entry != "_self_" and not entry.startswith("/_schema/")]
    merged = OmegaConf.merge(*(_plain_yaml(group, base) for base in bases), node)
    return OmegaConf.to_container(merged, resolve=True)  # type: ignore[return-value]


def _place(group: str, name: object, folders: Iterable[Path]) -> str:
    """Return the key of an option below its group: the ``@package`` of its YAML, or its name."""
    path = next((path for folder in folders if (path := Path(folder, group, f"{name}.yaml")).is_file()), None)
    header = re.match(rf"# @package {group}\.(\w+)", path.read_text(encoding="utf-8")) if path else None
    return header[1] if header else str(name)
