"""Beginnings of dotted names."""

from __future__ import annotations

from genimg.utils.prefixes import begins_with, distinct_prefixes, next_components, shared_beginning

NAMES = ["g.blocks.0.weight", "g.blocks.0.bias", "g.blocks.01.weight", "d.weight"]


def test_prefixes_are_whole_components() -> None:
    assert [begins_with(name, ["g.blocks.0", "e"]) for name in NAMES] == [True, True, False, False]
    assert begins_with("d.weight", ["d.weight"])
    assert not begins_with("d.weight", [])


def test_the_next_components_follow_the_existing_part_of_a_prefix() -> None:
    assert next_components(NAMES, "g.block") == "g.blocks"
    assert next_components(NAMES, "g.blocks.2") == "g.blocks.0, g.blocks.01"
    assert next_components(NAMES, "x") == next_components(NAMES, "") == "g, d"
    assert next_components([f"n{i}" for i in range(32)], "x").endswith("n29 and 2 more")


def test_the_shared_beginning_leaves_out_the_last_component() -> None:
    assert shared_beginning(NAMES[:2]) == "g.blocks.0"
    assert shared_beginning(NAMES[:3]) == "g.blocks"
    assert shared_beginning(["a.b"]) == "a"
    assert shared_beginning(NAMES) == ""


def test_prefixes_that_begin_the_same_names_are_equal() -> None:
    found = ["a.b", "a.bc", "d"]
    for given in (found, ["d", "a.bc", "a.b"], ["d", "d", "a.bc", "a.b", "a.b"], ["a.b.c", "d", "a.b", "d.e.f", "a.bc"]):
        assert distinct_prefixes(given) == found
    assert distinct_prefixes(["a", "b"]) != distinct_prefixes(["a"])
