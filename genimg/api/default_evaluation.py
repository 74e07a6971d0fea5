"""Choose the evaluation of a run or of genimg-eval if the user has not chosen one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genimg.config import resume, untrusted
from genimg.config.compose import Composition, Config, thaw
from genimg.config.evaluation import OF_SCHEDULE, is_inception
from genimg.config.instantiate import ALLOWED, Builder
from genimg.errors import ConfigError
from genimg.evaluation.extractors.inception import INCEPTION
from genimg.losses.efficientnet_lite import packaged_weights
from genimg.utils.paths import config_dir

log = logging.getLogger(__name__)

_MADE_FOR = {  # evaluation for each dataset whose own feature extractor is shipped with genimg
    "genimg.data.datasets.builtin.mnist": "mnist",
    "genimg.data.datasets.builtin.cifar10": "cifar10_classifier",
    "genimg.data.datasets.shapes.shapes": "shapes",
}
_WITH_ONE_EXTRACTOR = ("genimg.evaluation.translation.", "genimg.evaluation.autoencoder.")
_OF_PHOTOS = "efficientnet_lite"  # for other images, if the package with its weights is installed
_OF_SMALL_PHOTOS = "cifar10_classifier"  # for translations or reconstructions otherwise; its extractor reads images of 32 px
_BY_EXTRACTOR = {  # options by the names of their extractors
    "efficientnet_lite0": "efficientnet_lite",
    "mnist_v2": "mnist",
    "shapes_v2": "shapes",
    "cifar10_v2": "cifar10_classifier",
    "dinov2_vitl14_bicubic": "dinov2",
    "clip_vit_b_32_bicubic": "clip",
}


def chooses_extractor(composition: Composition) -> bool:
    """Return whether an override names the evaluation or its extractor."""
    return any(key == "evaluation" or key.startswith("evaluation.extractor") for key in composition.typed_keys())


def with_evaluation(start: resume.Start, composition: Composition) -> resume.Start:
    """Return the start of a run with the evaluation that it uses if the command line does not choose one.

    A resumed run keeps its evaluation. A run without one is evaluated as a new run would be. This depends on files of this
    machine, so only the first rank may call it.

    Args:
        start: Start of the run.
        composition: Composition that shows what the user chose.

    Raises:
        ConfigError: If the evaluation of the run cannot be continued.
        DataError: If the path of Inception's weights is not a file.
    """
    if resume.names_a_checkpoint(composition.config) or chooses_extractor(composition):
        return start
    config, builder = start.config, _builder(start.config["allow"])
    before = {} if start.saved is None else start.saved.state["config"]["evaluation"]
    if "_target_" in before:
        return replace(start, config=config.replaced(evaluation=_continued(before, config, composition, builder)))
    start = replace(start, may_replace_evaluation=True)
    if composition.choices.get("experiment") is not None:
        return start
    found = default_photo_evaluation(
        config["evaluation"], builder, option=str(composition.choices.get("evaluation")), data=str(config["data"]["_target_"])
    )
    return start if found is None else replace(start, config=config.replaced(evaluation=found))


def _continued(before: dict[str, Any], config: Config, composition: Composition, builder: Builder) -> Mapping[str, Any]:
    """Return the evaluation of a run that is resumed, with the settings that this command line gives.

    Args:
        before: Node of the run's evaluation.
        config: Resolved config of this command line.
        composition: Composition that shows what the user chose.
        builder: Builder of nodes that the user composed.

    Raises:
        ConfigError: If the node needs files that only the checkpoint names, or cannot be built any more.
    """
    now = config["evaluation"]
    if resume.same_measure(before, now) and before.get("additional") == now.get("additional"):
        return now
    # Keys that earlier versions lack come from this command line.
    added = (
        {key: value for key, value in now.items() if key != "additional"} if before["_target_"] == now.get("_target_") else {}
    )
    node: dict[str, Any] = thaw({**added, **before})
    for key in composition.typed_keys():
        group, *path = key.split(".")
        if group == "evaluation":
            _copy_value(now, node, path)
    given = {place.key: place.value for place in untrusted.places({"evaluation": thaw(now)}, builder)}
    builder = untrusted.naming(builder, given)
    try:
        untrusted.take_out({"evaluation": node}, builder)
        builder.check({key: value for key, value in node.items() if key not in OF_SCHEDULE}, "evaluation", {})
    except ConfigError as error:
        raise ConfigError(
            f"the evaluation of this run cannot be continued ({error})",
            "choose it on the command line as when the run was started, or choose another one with evaluation=NAME",
            key="evaluation",
        ) from error
    return node


def _copy_value(source: Mapping[str, Any], node: dict[str, Any], path: list[str]) -> None:
    """Copy the value at a path of keys, or remove it from ``node`` if ``source`` has none."""
    *parents, name = path
    for key in parents:
        source = source.get(key) or {}
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    if name in source:
        node[name] = thaw(source[name])
    else:
        node.pop(name, None)


def default_photo_evaluation(
    evaluation: Mapping[str, Any], builder: Builder, *, option: str = "inception", data: str = ""
) -> Mapping[str, Any] | None:
    """Return a default evaluation of photos with EfficientNet-Lite0 instead of Inception, and log a warning.

    Args:
        evaluation: Resolved node of a default evaluation.
        builder: Builder of its metrics.
        option: Option of the group ``evaluation`` that the node comes from.
        data: Name of the function that loads the images, as in ``_target_``.

    Returns:
        The node, or None if the given one stays: it does not use Inception, a metric needs Inception's spatial features,
        Inception's weights are on this machine, those of EfficientNet-Lite0 are not, or genimg comes with an extractor for
        these images.
    """
    if not is_inception(evaluation) or data in _MADE_FOR or packaged_weights() is None:
        return None
    if _spatial_metrics(evaluation, builder) or INCEPTION.is_on_disk(evaluation["extractor"].get("weights")):
        return None
    log.warning(
        "the default evaluation uses the features of %s, because the Inception weights of FID are not on this machine; its "
        "distances are not FID. evaluation=%s downloads the weights (96 MB)",
        _OF_PHOTOS, option,
    )  # fmt: skip
    return _with_extractor_of(_OF_PHOTOS, evaluation, ())


def evaluation_by_extractor(extractor: Mapping[str, Any] | None) -> str:
    """Return the option of the group ``evaluation`` for saved statistics.

    Args:
        extractor: Their record of the extractor, as ``Extractor.describe`` returns it; None if they have none.

    Returns:
        The option; ``inception`` if the extractor is not recorded or belongs to no option.
    """
    return _BY_EXTRACTOR.get(str((extractor or {}).get("name")), "inception")


def replacement_evaluation(config: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    """Return a replacement for an evaluation whose extractor weights are unavailable, and log a warning.

    Args:
        config: Resolved config.
        reason: Reason why the weights are unavailable.

    Returns:
        The node ``evaluation`` with an extractor that is on this machine and suits the data, if there is one, without
        metrics that need Inception's spatial features; otherwise the node of ``evaluation=none``.
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
        return _with_extractor_of(name, given, ())
    spatial = _spatial_metrics(given, _builder(config["allow"]))
    left = [metric for metric, node in (given.get("metrics") or {}).items() if node and metric not in spatial]
    if name is None or not left or not str(given["_target_"]).endswith(".Evaluator"):
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
    if spatial:
        log.warning("%s is not measured, because only Inception has spatial features", " and ".join(spatial))
    return _with_extractor_of(name, given, spatial)


def _with_extractor_of(name: str, evaluation: Mapping[str, Any], dropped: Iterable[str]) -> Mapping[str, Any]:
    """Return an evaluation with the extractor of the option ``name``.

    It keeps its metrics, also those that the user changed, except the ``dropped`` ones, and gets those that only this option
    has, such as the coverage of a classifier's classes.
    """
    own = _plain_yaml("evaluation", name)
    node = {**evaluation, "extractor": own["extractor"]}
    if "metrics" in evaluation:
        usual = _plain_yaml("evaluation", "inception")["metrics"]
        added = {metric: value for metric, value in own["metrics"].items() if metric not in usual}
        node["metrics"] = {**added, **evaluation["metrics"]}
        order = (*evaluation["metrics"], *added)  # the first one chooses the best checkpoint
        node["metrics"] = {metric: node["metrics"][metric] for metric in order if metric not in dropped}
    return node


def _spatial_metrics(evaluation: Mapping[str, Any], builder: Builder) -> list[str]:
    """Return the names of the metrics that need spatial features, which only Inception has."""
    return [
        name
        for name, node in (evaluation.get("metrics") or {}).items()
        if isinstance(node, Mapping)
        and "_target_" in node
        and getattr(builder.locate(node["_target_"], f"evaluation.metrics.{name}"), "needs_spatial", False)
    ]


def _builder(allow: Iterable[object] | None) -> Builder:
    """Return a builder that also builds classes of the packages that the user trusts."""
    return Builder((*ALLOWED, *map(str, allow or ())))


def _plain_yaml(group: str, name: str) -> Mapping[str, Any]:
    """Load a file of a config group, merged over the files in its defaults list."""
    node: Any = OmegaConf.load(Path(config_dir(), group, f"{name}.yaml"))
    bases = [entry for entry in node.pop("defaults", []) if entry != "_self_" and not entry.startswith("/_schema/")]
    merged = OmegaConf.merge(*(_plain_yaml(group, base) for base in bases), node)
    return OmegaConf.to_container(merged, resolve=True)  # type: ignore[return-value]
