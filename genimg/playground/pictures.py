"""Make the pictures of genimg-sample from the values of the page's controls."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from genimg.errors import ConfigError
from genimg.inference.conditions import KEYS, find_conditions, repeated, require_one
from genimg.inference.image_files import read_resized
from genimg.inference.labels import find_label
from genimg.inference.reconstruct import reconstructed
from genimg.inference.sample_plan import sampler_for
from genimg.inference.sample_request import SampleRequest
from genimg.methods.capabilities import Generates, Reconstructs
from genimg.methods.sampling_options import chosen_options
from genimg.playground.controls import Control, Values, chosen_sampling
from genimg.playground.model import Made, PagePicture, PlayedModel, Uploads
from genimg.types import Batch
from genimg.utils.images import to_uint8

_OF_PATH = ("interpolate", "seed_to", "position")


def sampled(controls: Sequence[Control], batch_size: int, model: PlayedModel, values: Values, uploads: Uploads) -> Made:
    """Sample images: of one seed, between two seeds, or around a picture.

    Args:
        controls: Controls of the sampling options.
        batch_size: Number of images in a batch.
        model: The model.
        values: Values of all controls.
        uploads: Uploaded pictures.

    Raises:
        UserError: If the model does not support a value.
    """
    method = model.method
    assert isinstance(method, Generates)
    path, name = uploads.find(values["picture"], "picture") if "picture" in values else (None, None)
    sampling = chosen_sampling(controls, values, method.sampling_options)
    near, label, text = None if path is None else str(path), values.get("label"), values.get("text")
    of_path = {key: values.get(key) for key in _OF_PATH}
    request = SampleRequest(
        num_images=values["num_images"], seed=values["seed"], batch_size=batch_size, label=label, text=text, sampling=sampling,
        weights=None, near=near, spread=values.get("spread"), reconstruct=None, latents=None,
        interpolate=of_path["interpolate"], seed_to=of_path["seed_to"], position=of_path["position"], frames=None,
        frames_per_second=None, output=None, class_folders=False,
    )  # fmt: skip
    chosen = chosen_options(method, sampling, model.lookup)
    conditions = find_conditions(method, model.class_names, label=label, text=text)
    sampler = sampler_for(request, method, chosen, conditions, model.pixels, model.device)

    def draw(indices: range) -> Batch:
        return sampler.draw(indices) | repeated(conditions[0].row, len(indices))

    made = [
        PagePicture.of(pixels, f"{number:06d}.png", about)
        for numbers, drawn, images in sampler.make_all(request.num_images, draw, "sampling")
        for number, pixels, about in zip(numbers, to_uint8(images), _conditions(model, drawn, len(numbers)), strict=True)
    ]
    shown = [] if path is None else [_as_seen(model, path)]
    options = {"near": name, "spread": request.spread, "seed": request.seed, **of_path, "num_images": request.num_images}
    options |= {"label": None if label is None else short_label(model, label), "text": text}
    return Made([*shown, *made], "sample", options | sampling)


def reconstructed_upload(model: PlayedModel, values: Values, uploads: Uploads) -> Made:
    """Reconstruct an uploaded picture.

    Raises:
        UserError: If there is none.
    """
    method = model.method
    assert isinstance(method, Reconstructs)
    path, name = uploads.find(values["picture"], "picture")
    label, text = values.get("label"), values.get("text")
    conditions = find_conditions(method, model.class_names, label=label, text=text)
    condition = require_one(method, conditions, f"reconstruct={name}")
    pixels = reconstructed(method, read_resized(path, model.pixels)[None], condition, model.device)[0]
    made = PagePicture.of(pixels, str(PurePosixPath(name).with_suffix(".png")), "reconstruction")
    options = {"reconstruct": name, "label": None if label is None else short_label(model, label), "text": text}
    return Made([_as_seen(model, path), made], "sample", options)


def class_name(model: PlayedModel, label: int) -> str:
    """Return the name of a class, or a name such as ``class 3`` if the checkpoint has none."""
    return model.class_names[label] if model.class_names else f"class {label}"


def short_label(model: PlayedModel, position: str) -> str | int:
    """Return a short form of a label for the command line: a number or a word if it refers to this class, else ``position``.

    Args:
        model: The model.
        position: The label as ``index:N``.
    """
    label = int(position.removeprefix("index:"))
    name = class_name(model, label)
    number = re.match(r"\d+", name)
    shorter: list[str | int] = [int(number[0])] if number else []
    shorter += [name] if re.fullmatch(r"[A-Za-z][\w-]*", name) else []
    count = len(model.class_names)
    for each in shorter:
        with contextlib.suppress(ConfigError):
            if count and find_label(each, count, model.class_names) == label:
                return each
    return position


def _as_seen(model: PlayedModel, path: Path) -> PagePicture:
    return PagePicture.of(read_resized(path, model.pixels), "your picture", "as the model sees it", is_input=True)


def _conditions(model: PlayedModel, drawn: Batch, count: int) -> list[str]:
    """Return the class name or caption of every image; empty texts for a model without conditions."""
    if KEYS["label"] in drawn:
        return [class_name(model, label) for label in drawn[KEYS["label"]].tolist()]
    if KEYS["text"] in drawn:
        return [caption_of(row) for row in drawn[KEYS["text"]]]
    return [""] * count


def caption_of(row: torch.Tensor) -> str:
    """Return the text of an encoded caption; its last character may be incomplete and is then omitted."""
    return row.cpu().numpy().tobytes().rstrip(b"\0").decode("utf-8", "ignore")
