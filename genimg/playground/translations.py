"""Make the pictures of genimg-translate from the values of the page's controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from genimg.data.decode import checked_levels
from genimg.errors import ConfigError
from genimg.inference.image_files import InputImage, halved, read_image, read_mask, with_sizes
from genimg.inference.translate import ImageTranslator, MemoryFullError, chosen_direction, way_of_training
from genimg.inference.translate_files import names_of_translations, require_whole
from genimg.inference.translate_labels import between_labels, image_translator
from genimg.methods.capabilities import Translates, TranslatesLabels, TranslatesRandomly
from genimg.playground.controls import Control, Values, chosen_sampling
from genimg.playground.model import Made, PagePicture, PlayedModel, Uploads
from genimg.playground.pictures import short_label

_OUTPUT = "translated"
_OVERLAP, _BATCH_SIZE = 32, 8  # of genimg-translate


def is_paired(model: PlayedModel) -> bool:
    """Return whether the files of the training data hold two images side by side."""
    return str(model.data["_target_"]).endswith("paired.paired") and model.data.get("root") is not None


def translated_upload(controls: Sequence[Control], model: PlayedModel, values: Values, uploads: Uploads) -> Made:
    """Translate an uploaded picture.

    Args:
        controls: Controls of the sampling options.
        model: The model.
        values: Values of all controls.
        uploads: Uploaded pictures.

    Raises:
        UserError: If the picture or a value does not fit the model.
    """
    method = model.method
    assert isinstance(method, Translates)
    mask, mask_name = uploads.find(values["mask"], "mask") if "mask" in values else (None, None)
    picture, name = _opened(values, uploads, mask)
    half = values.get("half")
    if half in ("left", "right"):
        picture = halved([picture], half)[0]
    elif half is None and is_paired(model):
        require_whole([picture], model.facts, model.data["direction"])
    usual = method.sampling_options if isinstance(method, TranslatesRandomly) else None
    sampling = {} if usual is None else chosen_sampling(controls, values, usual)
    translator = image_translator(
        method, model.facts, model.data, model.device,
        direction=chosen_direction(method, values.get("direction"), way_of_training(model.data)), seed=values.get("seed", 0),
        num_samples=values.get("num_samples", 1), sampling=sampling, tile=None,
        overlap=_OVERLAP, batch_size=_BATCH_SIZE,
    )  # fmt: skip
    given = {key: values[key] for key in ("direction", "half", "seed", "num_samples") if key in values}
    options = {"input": name, "mask": mask_name, "output": _OUTPUT, **given, **sampling}
    return Made(_pictures(model, translator, picture), "translate", options)


def between_classes(controls: Sequence[Control], model: PlayedModel, values: Values, uploads: Uploads) -> Made:
    """Translate an uploaded picture from one class to another; the arguments and errors are those of ``translated_upload``."""
    assert isinstance(model.method, TranslatesLabels)
    picture, name = _opened(values, uploads, None)
    sampling = chosen_sampling(controls, values, model.method.label_translation_options)
    ends = {key: values[key] for key in ("label_from", "label_to")}
    method = between_labels(model.method, model.class_names, ends["label_from"], ends["label_to"], sampling)
    assert isinstance(method, Translates)
    translator = image_translator(
        method, model.facts, model.data, model.device, direction=None, seed=0, tile=None, overlap=_OVERLAP,
        batch_size=_BATCH_SIZE,
    )  # fmt: skip
    options = {"input": name, "output": _OUTPUT, **{key: short_label(model, each) for key, each in ends.items()}, **sampling}
    return Made(_pictures(model, translator, picture), "translate", options)


def _opened(values: Values, uploads: Uploads, mask: Any) -> tuple[InputImage, str]:
    """Return the uploaded picture with its size, and its name on the user's side."""
    path, name = uploads.find(values["picture"], "picture")
    result = str(PurePosixPath(name).with_suffix(".png"))
    return with_sizes([InputImage(path, result, 0, mask=mask)])[0], name


def _pictures(model: PlayedModel, translator: ImageTranslator, picture: InputImage) -> list[PagePicture]:
    """Translate a picture, and return its source and its translations."""
    image = read_image(picture, translator.channels, checked_levels(model.data.get("range")))[None]
    mask: Tensor | None = None if picture.mask is None else torch.stack([read_mask(picture)])
    try:
        sources, results = translator(image, mask, [picture.number])
    except MemoryFullError as error:
        height, width = picture.size
        raise ConfigError(
            f"picture: the memory is too small for {height}x{width} pixels", "choose a smaller picture", key="picture"
        ) from error
    names = names_of_translations(picture.name, len(results))
    made = [PagePicture.of(each[0], name) for each, name in zip(results, names, strict=True)]
    return [PagePicture.of(sources[0], "your picture", "as the model sees it", is_input=True), *made]
