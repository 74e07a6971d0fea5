"""Values that do, and do not, fit type hints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from torch import nn

from genimg.errors import CheckpointError, ConfigError
from genimg.utils.type_hints import fits, require_instance, require_scalar, require_type, restored

NODE = {"_target_": "x.Y"}


@dataclass
class Record:
    count: int
    names: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (3, float),
        (0.5, float),
        (True, bool),
        ("a", str),
        (None, int | None),
        (3, int | str),
        ([1, 2], Sequence[int]),
        ([], list[str]),
        ([1, 2], tuple[int, int]),
        ({"a": 1}, Mapping[str, int]),
        (NODE, nn.Module),
        (NODE, Callable[[int], int]),
        (NODE, nn.Module | None),
        ({"a": NODE, "b": None}, Mapping[str, nn.Module | None]),
        ("zeros", Literal["zeros", "reflect"]),
        (object(), Any),
        (NODE, object),
        (4, int | Sequence[int]),
        ([4, 4], int | Sequence[int]),
        (None, None),
    ],
)
def test_values_that_fit(value: Any, hint: Any) -> None:
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (0.5, int),
        (True, int),
        (True, float),
        (1, bool),
        (1, str),
        (None, int),
        ([1, "a"], Sequence[int]),
        ("ab", Sequence[str]),
        ([1, 2, 3], tuple[int, int]),
        ({"a": "b"}, Mapping[str, int]),
        ([], Mapping[str, int]),
        (5, nn.Module),
        ("", nn.Module),
        ({}, nn.Module),
        ({"a": 1}, nn.Module | None),
        ([NODE], nn.Module),
        ("ones", Literal["zeros", "reflect"]),
        (5, Callable[[], int]),
        ({"a": 5}, Mapping[str, nn.Module | None]),
        ([[1]], int | Sequence[int]),
    ],
)
def test_values_that_do_not(value: Any, hint: Any) -> None:
    assert not fits(value, hint)
    with pytest.raises(ConfigError) as error:
        require_type(value, hint, "a.b")
    assert error.value.key == "a.b"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [1.0, float("-inf")], {"a": {"b": float("nan")}}, 2**63, [-(2**63) - 1]]
)
def test_numbers_that_no_setting_means(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"finite|64 bits"):
        require_type(value, Any, "a")
    require_type({**NODE, "value": value}, nn.Module, "a")  # which its own constructor checks


def test_hints_of_others_count_for_scalars_alone() -> None:
    require_scalar([1], int, "a")
    require_scalar(NODE, float, "a")
    require_scalar(5, nn.Module, "a")
    require_scalar(5, int | Any, "a")
    with pytest.raises(ConfigError, match="a=true must be a number"):
        require_scalar(True, float | nn.Module, "a")


def test_an_object_must_be_of_the_class() -> None:
    relu = nn.ReLU()
    require_instance(relu, nn.Module, "a")
    require_instance(relu, Callable[..., nn.Module], "a")
    require_instance({"b": relu}, Mapping[str, nn.Module | None], "a")
    require_instance(5, nn.Module, "a")  # no object of a node
    require_instance(Record(3), nn.Conv2d, "a")  # one's own
    others = (
        (relu, nn.Conv2d, "a"), (relu, nn.Conv2d | None, "a"), ([relu], Sequence[nn.Conv2d], "a[0]"),
        ({"b": relu}, Mapping[str, nn.Conv2d | None], "a.b"), (Record(3), Callable[[], int], "a"),
    )  # fmt: skip
    for value, hint, key in others:
        with pytest.raises(ConfigError, match="must be a ") as error:
            require_instance(value, hint, "a")
        assert error.value.key == key


def test_what_a_checkpoint_holds_becomes_a_dataclass() -> None:
    assert restored(Record, {"count": 3}, "record") == Record(3)
    for odd in ({"count": "3"}, {"names": []}, {"count": 3, "other": 1}, {"count": 3, "names": [1]}, [], None):
        with pytest.raises(CheckpointError, match="the checkpoint's record"):
            restored(Record, odd, "record")
