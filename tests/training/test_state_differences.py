"""Two states of a training, compared bit by bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genimg.training.state_differences import MOST_ELEMENTS, ElementDifference, compare_states

PARAMETERS = {"generator": ["generator.a", "generator.b"]}


def state() -> dict[str, Any]:
    return {
        "training": {"images": 64},
        "method": {
            "generator.a": torch.arange(6.0).reshape(2, 3), "generator.b": torch.ones(2), "class_counts": torch.tensor([3])
        },
        "averages": {"exponential": {"generator.a": torch.zeros(2, 3)}},
        "optimizers": {
            "generator": {
                "state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.zeros(2, 3)}, 1: {"step": torch.tensor(2.0)}},
                "param_groups": [{"lr": 1e-3, "betas": (0.5, 0.9), "fused": None, "params": [0, 1]}],
            }
        },
        "means": {"sums": {"loss/total": torch.tensor([1.0])}, "counts": {"loss/total": 2}},
    }  # fmt: skip


def flip(tensor: Tensor, index: int, bit: int) -> None:
    tensor.reshape(-1).view(torch.int32)[index] ^= 1 << bit


def test_equal_states_are_counted_and_have_no_differences() -> None:
    found = compare_states(state(), state(), PARAMETERS)
    assert found.differing == ()
    assert found.flipped == ()
    assert (found.num_tensors, found.num_bytes) == (8, 4 * (6 + 2 + 6 + 1 + 6 + 1 + 1) + 8)
    assert found.num_values == 1 + 6 + 1  # images; lr, two betas, fused, two params; a count
    assert {part.name: part.num_tensors for part in found.parts} == {
        "progress": 0, "generator": 2, "model": 1, "average exponential": 1, "optimizer generator": 3, "pending log values": 1,
    }  # fmt: skip


def test_a_flipped_bit_is_found_with_its_place_and_values() -> None:
    other = state()
    flip(other["method"]["generator.a"], 4, 22)
    found = compare_states(state(), other, PARAMETERS)
    ((part, difference),) = found.flipped
    assert (part.name, difference.name, difference.count) == ("generator", "generator.a", 1)
    assert difference.elements == (ElementDifference((1, 1), 4.0, 6.0, (22,)),)  # 4 is 1.0 times 2 squared; the bit adds a half
    assert difference.largest == 2.0
    assert str(part) == "generator: 1 of 2 tensors (1 number), largest difference 2"
    assert found.arose_after_training


def test_what_is_no_flipped_bit_is_no_corruption() -> None:
    two_bits = state()
    flip(two_bits["method"]["generator.a"], 4, 22)
    flip(two_bits["method"]["generator.a"], 4, 3)
    many = state()
    many["method"]["generator.c"] = torch.arange(float(MOST_ELEMENTS + 1))
    flipped = {**many, "method": {**many["method"], "generator.c": torch.arange(float(MOST_ELEMENTS + 1))}}
    for index in range(MOST_ELEMENTS + 1):
        flip(flipped["method"]["generator.c"], index, 0)
    with_value = state()
    flip(with_value["method"]["generator.a"], 4, 22)
    with_value["optimizers"]["generator"]["param_groups"][0]["lr"] = 2e-3
    for expected, other in ((state(), two_bits), (many, flipped), (state(), with_value)):
        found = compare_states(expected, other, PARAMETERS)
        assert found.differing
        assert found.flipped == ()


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (math.nan, 1.0), (math.inf, -math.inf)])
def test_bits_are_compared_not_values(before: float, after: float) -> None:
    one, other = state(), state()
    one["method"]["generator.b"][0], other["method"]["generator.b"][0] = before, after
    assert compare_states(one, other, PARAMETERS).differing
    assert not compare_states(one, one, PARAMETERS).differing


def test_missing_reshaped_and_retyped_values_differ_and_are_named_by_parameter() -> None:
    other = state()
    other["optimizers"]["generator"]["state"][0]["exp_avg"] = torch.zeros(3, 2)
    other["optimizers"]["generator"]["state"][1]["step"] = torch.tensor(2.0, dtype=torch.float64)
    del other["method"]["generator.b"]
    other["training"]["images"] = 65
    found = {
        part.name: [each.name for each in part.differences] for part in compare_states(state(), other, PARAMETERS).differing
    }
    assert found == {
        "progress": ["images"],
        "generator": ["generator.b"],
        "optimizer generator": ["state.generator.a.exp_avg", "state.generator.b.step"],
    }
    part = compare_states(state(), other, PARAMETERS).differing[0]
    assert str(part) == "progress: images is 65 instead of 64"


def test_memory_formats_do_not_matter() -> None:
    one, other = state(), state()
    image = torch.randn(2, 3, 4, 4)
    one["method"]["generator.c"] = image
    other["method"]["generator.c"] = image.to(memory_format=torch.channels_last)
    assert not compare_states(one, other, PARAMETERS).differing


def test_log_values_of_other_steps_are_not_compared() -> None:
    other = state()
    other["means"]["sums"]["loss/total"] += 1
    assert [part.name for part in compare_states(state(), other, PARAMETERS).differing] == ["pending log values"]
    other["means"]["counts"]["loss/total"] = 3
    assert not compare_states(state(), other, PARAMETERS).differing
