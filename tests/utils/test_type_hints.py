"""Values that do, and do not, fit type hints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from errors import raises
from torch import nn

from genimg.errors import CheckpointError
from genimg.utils.type_hints import as_written, describe_hint, fits, is_instance, restored

OBJECT = {"object": True}  # in these tests, what stands for an object


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int), (3, float), (0.5, float), (True, bool), ("a", str), (None, int | None), (3, int | str), (None, None),
        ([1, 2], Sequence[int]), ([], list[str]), ([1, 2], tuple[int, int]), ({"a": 1}, Mapping[str, int]), (OBJECT, nn.Module),
        (OBJECT, Callable[[int], int]), (OBJECT, nn.Module | None), ({"a": OBJECT, "b": None}, Mapping[str, nn.Module | None]),
        ("zeros", Literal["zeros", "reflect"]), (object(), Any), (OBJECT, object), (4, int | Sequence[int]),
        ([4, 4], int | Sequence[int]),
    ],
)  # fmt: skip
def test_values_that_fit(value: Any, hint: Any) -> None:
    assert fits(value, hint, lambda each: each == OBJECT)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (0.5, int), (True, int), (True, float), (1, bool), (1, str), (None, int), ([1, "a"], Sequence[int]),
        ("ab", Sequence[str]), ([1, 2, 3], tuple[int, int]), ({"a": "b"}, Mapping[str, int]), ([], Mapping[str, int]),
        (5, nn.Module), ("", nn.Module), ({}, nn.Module), ({"a": 1}, nn.Module | None), ([OBJECT], nn.Module),
        ("ones", Literal["zeros", "reflect"]), (5, Callable[[], int]), ({"a": 5}, Mapping[str, nn.Module | None]),
        ([[1]], int | Sequence[int]),
    ],
)  # fmt: skip
def test_values_that_do_not(value: Any, hint: Any) -> None:
    assert not fits(value, hint, lambda each: each == OBJECT)


def test_no_plain_value_is_an_object_unless_it_is_said_to_stand_for_one() -> None:
    assert not fits(OBJECT, nn.Module)


def test_objects_of_classes() -> None:
    relu = nn.ReLU()
    for hint in (nn.Module, nn.ReLU, Callable[..., nn.Module], Any):
        assert is_instance(relu, hint)
    assert not is_instance(relu, nn.Conv2d)
    assert not is_instance(object(), Callable[[], int])


def test_values_and_hints_in_words() -> None:
    assert as_written({"a": [True, None, 0.5, "b"]}) == "{a: [true, null, 0.5, b]}"
    assert describe_hint(int | Sequence[int] | None) == "a whole number or a list such as [64,48] or null"
    assert describe_hint(Literal["zeros", "reflect"]) == "one of zeros, reflect"
    assert describe_hint(nn.Module | None, "a part") == "a part or null"


@dataclass
class Record:
    count: int
    names: list[str] = field(default_factory=list)


def test_what_a_checkpoint_holds_becomes_a_dataclass() -> None:
    assert restored(Record, {"count": 3}, "record") == Record(3)
    for odd in ({"count": "3"}, {"names": []}, {"count": 3, "other": 1}, {"count": 3, "names": [1]}, [], None):
        with raises(CheckpointError, word="checkpoint's"):
            restored(Record, odd, "record")
