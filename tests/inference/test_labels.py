"""Which class a value on the command line means."""

import pytest
from errors import raises
from hydra.core.override_parser.overrides_parser import OverridesParser

from genimg.errors import ConfigError
from genimg.inference.labels import find_label

MNIST = ["0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"]
NAMES = {
    "numbers from 1": ["1", "2", "3"],
    "numbers as text orders them": ["1", "10", "2"],
    "numbers with zeros": ["001", "002", "010"],
    "positions": ["0", "1", "2"],
    "mnist": MNIST,
    "a part of mnist": [MNIST[3], MNIST[5]],
    "numbers before names": ["1_cat", "2.dog", "3 bird"],
    "names": ["cat", "Dog", "a bird"],
    "some numbers": ["2-door", "coupe", "van"],
    "dates": ["2024-01-05", "2024-01-06"],
    "twice": ["1 - a", "1 - b", "c"],
    "words of Hydra": ["1.5", "null", "true"],
    "none": [],
}
FOUND = [
    ("numbers from 1", {"1": 0, "2": 1, "3": 2, "'1'": 0, "index:0": 0, "index:1": 1}),
    ("numbers as text orders them", {"1": 0, "10": 1, "2": 2}),
    ("numbers with zeros", {"1": 0, "001": 0, "2": 1, "10": 2, "010": 2}),
    ("positions", {"0": 0, "1": 1, "2": 2, "index:2": 2}),
    ("mnist", {"3": 3, "three": 3, "Three": 3, "'3 - three'": 3, "index:3": 3, "0": 0, "zero": 0}),
    ("a part of mnist", {"3": 0, "5": 1, "five": 1, "index:1": 1}),
    ("numbers before names", {"1": 0, "cat": 0, "1_cat": 0, "2": 1, "dog": 1, "3": 2, "bird": 2}),
    ("names", {"cat": 0, "CAT": 0, "dog": 1, "Dog": 1, "'a bird'": 2, "0": 0, "1": 1, "2": 2}),
    ("some numbers", {"2": 0, "door": 0, "coupe": 1, "index:2": 2}),
    ("dates", {"2024-01-06": 1, "0": 0, "1": 1}),
    ("twice", {"a": 0, "b": 1, "c": 2, "'1 - b'": 1, "index:1": 1}),
    ("words of Hydra", {"1.5": 0, "'null'": 1, "true": 2, "0": 0, "2": 2}),
    ("none", {"0": 0, "4": 4, "index:4": 4}),
]
REFUSED = [
    ("numbers from 1", ["0", "4", "-1", "cat", "index:3", "one"]),
    ("numbers as text orders them", ["0", "3"]),
    ("numbers with zeros", ["0", "3"]),
    ("positions", ["3", "-1", "index:3", "index:-1"]),
    ("mnist", ["10", "thre", "-"]),
    ("a part of mnist", ["0", "1", "4"]),
    ("numbers before names", ["0", "4"]),
    ("names", ["3", "emu", "'0'", "1.0", "true"]),
    ("some numbers", ["0", "1"]),
    ("twice", ["1", "0", "2"]),
    ("none", ["5", "cat", "index:5"]),
]
CLASSES = {name: len(names) or 5 for name, names in NAMES.items()}


def parse(text: str) -> object:
    """As genimg-sample gets it."""
    (override,) = OverridesParser.create().parse_overrides([f"label={text}"])
    value = override.value()
    return str(value) if isinstance(value, str) else value


@pytest.mark.parametrize(("names", "text", "label"), [(n, t, label) for n, found in FOUND for t, label in found.items()])
def test_a_value_means_a_class(names, text, label):
    assert find_label(parse(text), CLASSES[names], NAMES[names]) == label


@pytest.mark.parametrize(("names", "text"), [(n, text) for n, texts in REFUSED for text in texts])
def test_a_value_that_means_no_class_or_two_is_refused_with_what_to_write(names, text):
    with raises(ConfigError, "label") as error:
        find_label(parse(text), CLASSES[names], NAMES[names])
    assert "index:" in str(error.value) or "a number from 0" in str(error.value)


def test_every_class_can_be_named_by_its_name_and_by_its_position():
    for names in NAMES.values():
        for label, name in enumerate(names):
            assert find_label(name, len(names), names) == label
            assert find_label(f"index:{label}", len(names), names) == label
