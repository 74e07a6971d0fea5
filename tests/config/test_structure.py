"""Configs that lack a group, or have something else in its place."""

from typing import Any

import pytest

from genimg.config.compose import Config, compose, thaw
from genimg.config.structure import require_structure
from genimg.errors import ConfigError


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    composed = Config.of(compose(["evaluation=none"]).config)
    return thaw(composed)


def test_a_composed_config_passes(config: dict[str, Any]) -> None:
    require_structure(config)


@pytest.mark.parametrize("group", ["model", "data", "loss", "optimizer", "schedule", "performance", "trainer", "evaluation"])
@pytest.mark.parametrize("value", [5, [], "x", None, "absent"])
def test_every_group_is_a_mapping(config: dict[str, Any], group: str, value: Any) -> None:
    changed = {**config, group: value}
    if value == "absent":
        del changed[group]
    with pytest.raises(ConfigError) as error:
        require_structure(changed)
    assert error.value.key == group


@pytest.mark.parametrize(
    "key", ["model._target_", "optimizer._target_", "seed", "allow", "trainer.batch_size", "data.num_workers"]
)
def test_what_every_training_reads_is_there(config: dict[str, Any], key: str) -> None:
    changed = thaw(config)
    group, _, name = key.rpartition(".")
    del (changed[group] if group else changed)[name]
    with pytest.raises(ConfigError) as error:
        require_structure(changed)
    assert error.value.key == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -3),
        ("seed", "${trainer.batch_size}"),
        ("seed", "???"),
        ("seed", [1]),
        ("allow", 5),
        ("resume_force", "no"),
        ("trainer.batch_size", [1]),
        ("trainer.batch_size", "${seed}"),
        ("trainer.accumulation", []),
        ("data.num_workers", 100_000),
        ("data.horizontal_flip", 3),
        ("task", 5),
        ("logger", [1]),
    ],
)
def test_values_of_other_types_are_refused_by_key(config: dict[str, Any], key: str, value: Any) -> None:
    changed = thaw(config)
    group, _, name = key.rpartition(".")
    (changed[group] if group else changed)[name] = value
    with pytest.raises(ConfigError) as error:
        require_structure(changed)
    assert error.value.key == key
