"""What a model can do on the page: each task has controls, and a function that makes pictures from their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from genimg.errors import UserError
from genimg.inference.between import PATHS, has_latents
from genimg.methods.capabilities import (
    Generates,
    Reconstructs,
    SamplesNearby,
    TakesConditions,
    Translates,
    TranslatesLabels,
    TranslatesRandomly,
)
from genimg.methods.options import SamplingOptions
from genimg.methods.sampling_options import has_steps, looked_up, sampling_options, without_effect
from genimg.playground import pictures, translations
from genimg.playground.controls import LARGEST_SEED, Control, Values, option_controls
from genimg.playground.model import Made, PlayedModel, Uploads

MOST_IMAGES = 64
"""Number of images that are made at once, the batch size of genimg-sample: bits may depend on the size of a batch."""

_USUAL_SPREAD = 0.5
_FEW_IMAGES = 4  # at the start of an interpolation
_DISTANCE = 100  # of the second seed from the first
_MOST_SAMPLES = 16  # of one translated picture


@dataclass(frozen=True)
class PageTask:
    """Something that a model can do.

    Attributes:
        name: Name of the task.
        title: Title on the page.
        controls: The controls.
        make: Function that makes the pictures from the values of the controls.
        is_live: Whether the result changes smoothly with a slider, so the page follows the slider while it is moved.
    """

    name: str
    title: str
    controls: Sequence[Control]
    make: Callable[[PlayedModel, Values, Uploads], Made]
    is_live: bool = False


def tasks_of(model: PlayedModel, start: Mapping[str, Any]) -> list[PageTask]:
    """Return the tasks of a model.

    Args:
        model: The model.
        start: Values of controls at the start that differ from the defaults, by name.
    """
    method, seed, count, picture = model.method, _seed(start), _count(start.get("num_images", 16)), _picture()
    seed.checked(seed.default)
    count.checked(count.default)
    tasks = []
    if isinstance(method, Generates):
        useless = _without_effect(model, method.sampling_options, start)
        options = option_controls(method.sampling_options, start, class_choices(model), useless)
        condition = _condition(model, is_required=False)
        make = partial(pictures.sampled, options, MOST_IMAGES)
        tasks.append(PageTask("sample", "Generate", [seed, count, *condition, *options], make))
        if has_latents(method):
            tasks.append(PageTask("interpolate", "Interpolate", _path(seed, [*condition, *options]), make, is_live=True))
        if isinstance(method, SamplesNearby):
            own = options if has_steps(method.sampling_options) else []
            near = [picture, _spread(), seed, count, *_condition(model, is_required=True), *own]
            tasks.append(PageTask("near", "Vary a picture", near, partial(pictures.sampled, own, MOST_IMAGES), is_live=True))
    if isinstance(method, Reconstructs):
        controls = [picture, *_condition(model, is_required=True)]
        tasks.append(PageTask("reconstruct", "Reconstruct", controls, pictures.reconstructed_upload))
    if isinstance(method, Translates):
        tasks.append(_translation(model, method, start, replace(picture, help=""), seed))
    elif isinstance(method, TranslatesLabels) and method.num_classes > 1:
        tasks.append(_change_of_class(model, method, start, picture))
    return tasks


def class_choices(model: PlayedModel) -> list[tuple[str, str]]:
    """Return ``index:N`` and the name of every class; an empty list for a model without labels."""
    count = model.method.num_classes if isinstance(model.method, TakesConditions) else 0
    return [(f"index:{label}", pictures.class_name(model, label)) for label in range(count)]


def _without_effect(model: PlayedModel, usual: SamplingOptions, start: Mapping[str, Any]) -> set[str]:
    """Return the names of the sampling options that the model refuses, except those that ``start`` sets."""
    method = model.method
    if not isinstance(method, Generates | TranslatesRandomly):
        return set()
    given = {field.name: start[field.name] for field in fields(usual) if field.name in start}
    try:
        found = looked_up(method, given, model.lookup) if isinstance(method, Generates) else given
        options = sampling_options(method, found, usual=usual)
    except UserError:  # the values at the start are checked later, with a better message
        return set()
    return without_effect(method.check_options, options) - given.keys()


def _seed(start: Values) -> Control:
    return Control(
        name="seed", label="Seed", kind="seed", default=start.get("seed", 0), least=0, most=LARGEST_SEED,
        help="Image i depends only on the seed, on i, and on the label or caption",
    )  # fmt: skip


def _count(default: int) -> Control:
    """Return the control of the number of images."""
    bounds = (1, MOST_IMAGES)
    return Control(
        name="num_images", label="Images", kind="integer", default=default, least=bounds[0], most=bounds[1], usual=bounds
    )


def _picture() -> Control:
    help = "It is converted to the size of the training images"
    return Control(name="picture", label="Picture", kind="picture", default="", help=help)


def _spread() -> Control:
    help = "Width of the distribution, in standard deviations of the prior; 0: the reconstruction"
    return Control(name="spread", label="Spread", kind="number", default=_USUAL_SPREAD, least=0, usual=(0, 1.5), help=help)


def _path(seed: Control, others: Sequence[Control]) -> list[Control]:
    """Return the controls of images between two seeds."""
    position = Control(
        name="position", label="Position", kind="number", default=0.5, least=0, most=1, usual=(0, 1),
        help="0: the first seed, 1: the second seed",
    )  # fmt: skip
    end = replace(seed, name="seed_to", label="Second seed", default=_other(seed.default), help="")
    path = Control(
        name="interpolate", label="Path", kind="choice", default="spherical", choices=[(each, each) for each in PATHS],
        help="spherical keeps the norm of latents of a normal distribution", is_rare=True,
    )  # fmt: skip
    return [position, seed, end, _count(_FEW_IMAGES), *others, path]


def _change_of_class(model: PlayedModel, method: TranslatesLabels, start: Values, picture: Control) -> PageTask:
    classes = class_choices(model)
    useless = _without_effect(model, method.label_translation_options, start)
    options = option_controls(method.label_translation_options, start, classes, useless)
    ends = [
        Control(name=name, label=label, kind="choice", default=classes[at][0], choices=classes)
        for at, (name, label) in enumerate((("label_from", "Class of the picture"), ("label_to", "Class to translate to")))
    ]
    make = partial(translations.between_classes, options)
    return PageTask("translate", "Change the class", [picture, *ends, *options], make)


def _condition(model: PlayedModel, *, is_required: bool) -> list[Control]:
    """Return the control of the label or caption, if the model reads one."""
    keys = model.method.batch_keys
    if "label" in keys:
        classes = class_choices(model)
        return [
            Control(name="label", label="Label", kind="choice", default=classes[0][0] if is_required else None, choices=classes,
                    optional=not is_required)
        ]  # fmt: skip
    if "caption" in keys:
        help = "" if is_required else "Empty: captions of the training data"
        return [Control(name="text", label="Caption", kind="text", default="" if is_required else None, help=help,
                        optional=not is_required)]  # fmt: skip
    return []


def _translation(model: PlayedModel, method: Translates, start: Values, picture: Control, seed: Control) -> PageTask:
    controls = [picture]
    if "mask" in method.task.keys:
        controls.append(Control(name="mask", label="Mask", kind="picture", default="", help="White where pixels are missing"))
    if method.directions:
        choices = [(each, each) for each in method.directions]
        controls.append(
            Control(name="direction", label="Direction", kind="choice", default=method.directions[0], choices=choices)
        )
    if translations.is_paired(model):
        choices = [("left", "left half"), ("right", "right half"), ("whole", "whole picture")]
        controls.append(
            Control(name="half", label="Use", kind="choice", default=None, choices=choices, optional=True,
                    help="For files with two pictures side by side")
        )  # fmt: skip
    options: list[Control] = []
    if isinstance(method, TranslatesRandomly):
        usual: SamplingOptions = method.sampling_options
        useless = _without_effect(model, usual, start)
        options = [each for each in option_controls(usual, start, [], useless) if each.kind != "choice" or each.choices]
        count = Control(name="num_samples", label="Results", kind="integer", default=4, least=1, most=_MOST_SAMPLES,
                        usual=(1, _MOST_SAMPLES))  # fmt: skip
        controls += [seed, count]
    make = partial(translations.translated_upload, options)
    return PageTask("translate", "Translate a picture", [*controls, *options], make)


def _other(seed: int) -> int:
    """Return another seed, at a distance that a user rarely steps through."""
    return seed + _DISTANCE if seed <= LARGEST_SEED - _DISTANCE else seed - _DISTANCE
