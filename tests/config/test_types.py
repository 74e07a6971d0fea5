"""Values of configs that are refused by their keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from errors import raises
from torch import nn

from genimg.config.types import require_finite, require_instance, require_scalar, require_type
from genimg.errors import ConfigError

NODE = {"_target_": "x.Y"}


@dataclass
class Own:
    count: int


@pytest.mark.parametrize(("value", "hint"), [(0.5, int), (5, nn.Module), ([], Mapping[str, int]), ("a", Callable[[], int])])
def test_a_value_of_another_type_is_refused_by_its_key(value: Any, hint: Any) -> None:
    with pytest.raises(ConfigError) as error:
        require_type(value, hint, "a.b")
    assert error.value.key == "a.b"


def test_a_node_stands_for_an_object() -> None:
    for hint in (nn.Module, nn.Module | None, Callable[..., nn.Module]):
        require_type(NODE, hint, "a")


@pytest.mark.parametrize(
    ("value", "key"),
    [(float("nan"), "a"), (float("inf"), "a"), ([1.0, float("-inf")], "a[1]"), ({"b": {"c": float("nan")}}, "a.b.c"),
     (2**63, "a"), ([-(2**63) - 1], "a[0]")],
)  # fmt: skip
def test_numbers_that_no_setting_means(value: Any, key: str) -> None:
    for check in (require_finite, lambda value, key: require_type(value, Any, key)):
        with raises(ConfigError, key):
            check(value, "a")
    require_finite({**NODE, "value": value}, "a")  # which its own constructor checks
    require_finite([2**63 - 1, -(2**63), 1e308, True, None, "nan"], "a")


def test_imprecise_hints_count_for_scalars_alone() -> None:
    for value, hint in (([1], int), (NODE, float), (5, nn.Module), (5, int | Any), ("a", nn.Module | None), (None, nn.Module)):
        require_scalar(value, hint, "a")
    with raises(ConfigError, word="true"):
        require_scalar(True, float | nn.Module, "a")


def test_an_object_must_be_of_the_class() -> None:
    relu = nn.ReLU()
    require_instance(relu, nn.Module, "a")
    require_instance(relu, Callable[..., nn.Module], "a")
    require_instance({"b": relu}, Mapping[str, nn.Module | None], "a")
    require_instance(5, nn.Module, "a")  # no object
    require_instance(Own(3), nn.Conv2d, "a")  # which may do as well
    others = ((relu, nn.Conv2d, "a"), (relu, nn.Conv2d | None, "a"), ([relu], Sequence[nn.Conv2d], "a[0]"),
              ({"b": relu}, Mapping[str, nn.Conv2d | None], "a.b"))  # fmt: skip
    for value, hint, key in others:
        with raises(ConfigError, word="type") as error:
            require_instance(value, hint, "a")
        assert error.value.key == key
