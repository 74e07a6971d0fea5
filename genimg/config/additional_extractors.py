"""``evaluation=[inception,dinov2]``: the first option is the evaluation, and the others add their extractors and metrics.

Hydra would merge the options of such a list. Each further option is therefore composed at ``evaluation.additional.NAME``,
where only its extractor and its metrics are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from genimg.errors import ConfigError

_KEYS = ("extractor", "metrics")
_EVALUATOR, _TARGET = "genimg.evaluation.evaluator.Evaluator", "genimg.evaluation.feature_metrics.FeatureMetrics"
_PLACE = "evaluation.additional"


def with_additional_extractors(arguments: Sequence[str]) -> list[str]:
    """Replace ``evaluation=[a,b]`` by ``evaluation=a +evaluation@evaluation.additional.b=b``.

    Raises:
        ConfigError: If the list is empty, holds something other than names, or names an option twice.
    """
    found: list[str] = []
    for argument in arguments:
        names = _names_in(argument)
        if names is None:
            found.append(argument)
            continue
        if not names:
            raise ConfigError(f"{argument} is empty: name an evaluation, or set evaluation=none", key="evaluation")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{argument} names {twice} twice: remove one of them", key="evaluation")
        first, *others = names
        found.append(f"{argument.partition('=')[0]}={first}")
        found += [f"+evaluation@{_PLACE}.{name}={name}" for name in others]
    return found


def _names_in(argument: str) -> list[str] | None:
    """Return the options in an argument ``evaluation=[a,b]``, or None for any other argument."""
    if not re.match(r"\+{0,2}evaluation=\[", argument):
        return None
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:  # Hydra reports it with the rest of the command line
        return None
    if override.is_sweep_override():
        return None
    value = override.value()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{argument} must be a list of options such as evaluation=[inception,dinov2]", key="evaluation")
    return [str(name) for name in value]


def keep_extractors_and_metrics(config: DictConfig, overrides: Iterable[str], choices: Mapping[str, Any]) -> None:
    """Remove, in place, everything but the extractor and the metrics of the additional evaluations.

    Args:
        config: The composed config.
        overrides: Arguments with which it was composed.
        choices: Chosen option of each group.

    Raises:
        ConfigError: If a choice has no extractor, or an override sets one of the removed keys.
    """
    evaluation = config.get("evaluation")
    if isinstance(evaluation, DictConfig) and "_target_" in evaluation and "evaluation" not in choices:
        # Hydra records the choice of a group unless the choice is a list; Hydra has then merged the list into one evaluation.
        raise ConfigError(
            "evaluation is a list of options in a sweep or in a YAML: sweep over single options; in the defaults of a YAML, "
            "write '/evaluation@evaluation.additional.NAME: NAME' for each further option, then 'override /evaluation: NAME'",
            key="evaluation",
        )
    additional = evaluation.get("additional") if isinstance(evaluation, DictConfig) else None
    if not additional:
        return
    if choices.get("evaluation") == "none":
        raise ConfigError(f"evaluation=none generates no images for {', '.join(additional)}: remove none", key="evaluation")
    for override in overrides:
        key = re.match(rf"[+~]*({_PLACE}\.(\w+)\.(\w+))", override)
        if key is not None and key[3] not in (*_KEYS, "_target_"):
            raise ConfigError(f"{key[1]} has no effect: set evaluation.{key[3]}, which all extractors share", key=key[1])
    for name in list(additional):
        node = additional[name]
        if not isinstance(node, DictConfig) or node.get("_target_") == _TARGET:
            continue
        if node.get("_target_") != _EVALUATOR:
            raise ConfigError(
                f"evaluation={choices.get(f'evaluation@{_PLACE}.{name}', name)} has no extractor that could be added to "
                "another evaluation: choose it alone",
                key="evaluation",
            )
        with open_dict(additional):
            additional[name] = {"_target_": _TARGET, **{key: node._get_node(key) for key in _KEYS}}
