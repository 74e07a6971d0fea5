"""The controls of the page: what they show, and the check of the values that the page sends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genimg.errors import ConfigError
from genimg.methods.options import OtherModel, SamplingOptions
from genimg.utils.type_hints import as_written, fits, options_of, type_hints
from genimg.utils.words import nearest

LARGEST_SEED = 2**53 - 1  # the largest whole number that JavaScript represents exactly
_LONGEST_TEXT = 2000  # characters

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control of the page, for one value.

    Attributes:
        name: Name of the value.
        label: Name that the page shows.
        kind: ``seed``, ``integer``, ``number``, ``choice``, ``text``, ``flag`` (on or off) or ``picture`` (an uploaded file).
        default: Value at the start.
        help: One line of help.
        least, most: Bounds of a number, inclusive; None for no bound.
        usual: Smallest and largest value of a slider; None for no slider.
        choices: Values of a choice, each with the text that the page shows.
        optional: Whether None is allowed, which the page shows as an empty field.
        is_option: Whether it is a sampling option of the model.
        is_rare: Whether the page hides it at first.
    """

    name: str
    label: str
    kind: str
    default: Any = None
    help: str = ""
    least: float | None = None
    most: float | None = None
    usual: tuple[float, float] | None = None
    choices: Sequence[tuple[Any, str]] = ()
    optional: bool = False
    is_option: bool = False
    is_rare: bool = False

    def checked(self, value: Any) -> Any:
        """Return a value that the page has sent, if it is valid.

        Raises:
            ConfigError: If it is not; the message names the control.
        """
        if value is None and self.optional:
            return None
        if self.kind == "choice":
            if not any(type(value) is type(each) and value == each for each, _ in self.choices):
                raise self._refused(value, f"one of {', '.join(as_written(each) for each, _ in self.choices)}")
        elif self.kind == "flag":
            if not isinstance(value, bool):
                raise self._refused(value, "true or false")
        elif self.kind in ("text", "picture"):
            if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
                raise self._refused(value, f"text of at most {_LONGEST_TEXT} characters")
        else:
            self._check_number(value)
        return value

    def _check_number(self, value: Any) -> None:
        is_whole = type(value) is int
        if not is_whole and (self.kind != "number" or type(value) is not float or not math.isfinite(value)):
            raise self._refused(value, "a number" if self.kind == "number" else "a whole number")
        if (self.least is not None and value < self.least) or (self.most is not None and value > self.most):
            to = " or more" if self.most is None else f" to {self.most:.17g}"
            raise self._refused(value, f"{self.least:g}{to}")

    def _refused(self, value: Any, wanted: str) -> ConfigError:
        shown = as_written(value)
        return ConfigError(f"{self.name}={shown[:80]}{'...' * (len(shown) > 80)} must be {wanted}", key=self.name)


def checked_values(controls: Sequence[Control], given: Any) -> dict[str, Any]:
    """Return the value of every control.

    Args:
        controls: The controls.
        given: Values by name from the page; missing values have their defaults.

    Raises:
        ConfigError: If there is an unknown name, or an invalid value; the message names it.
    """
    if not isinstance(given, dict):
        raise ConfigError("values must be an object of JSON", key="values")
    names = [control.name for control in controls]
    for name in given:
        if name not in names:
            short = name[:80]
            raise ConfigError(f"unknown key {short}{nearest(short, names)}", f"the keys are {', '.join(names)}", key=short)
    return {each.name: each.checked(given[each.name]) if each.name in given else each.default for each in controls}


def option_controls(
    usual: SamplingOptions, start: Values, classes: Sequence[tuple[Any, str]], without_effect: Collection[str] = ()
) -> list[Control]:
    """Return the controls of a model's sampling options.

    An option that refers to another model has a control only if ``start`` names the model, because the page must not choose
    which files on this machine are opened.

    Args:
        usual: The model's default options.
        start: Values at the start that differ from the defaults.
        classes: Value and name of every class, for an option that refers to one; empty for a model without labels.
        without_effect: Names of options without an effect on the model, which have no control.
    """
    controls, hints = [], type_hints(type(usual))
    for field in dataclasses.fields(usual):
        if field.name in without_effect:
            continue
        about, types = field.metadata, options_of(hints[field.name])
        default = start.get(field.name, getattr(usual, field.name))
        control = Control(
            name=field.name, label=field.name.replace("_", " ").capitalize(), kind="text", default=default,
            help=about["help"].replace("null:", "empty:"),
            optional=type(None) in types, usual=about["usual"], is_option=True,
            is_rare=field.name not in start and about["usual"] is None and not (about["choices"] and default is not None),
        )  # fmt: skip
        if about["refers_to"] == "model":
            if default is None or isinstance(default, OtherModel):
                continue
            control = dataclasses.replace(control, kind="choice", choices=[(default, str(default))])
        elif about["refers_to"] == "condition" and classes:
            control = dataclasses.replace(control, kind="choice", choices=classes)
        elif about["choices"]:
            control = dataclasses.replace(control, kind="choice", choices=[(each, each) for each in about["choices"]])
        elif bool in types:
            control = dataclasses.replace(control, kind="flag")
        elif fits(0.5, hints[field.name]):
            control = dataclasses.replace(control, kind="number")
        elif int in types and str not in types:
            control = dataclasses.replace(control, kind="integer")
        controls.append(control)
    return controls


def chosen_sampling(controls: Sequence[Control], values: Values, usual: SamplingOptions) -> dict[str, Any]:
    """Return the sampling options that differ from the model's defaults, by name."""
    names = [control.name for control in controls if control.is_option]
    return {name: values[name] for name in names if values[name] != getattr(usual, name)}
