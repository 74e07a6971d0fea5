"""Translation of images between two classes of a generative model that is conditioned on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from genimg.data.decode import PixelFormat
from genimg.data.facts import DataFacts
from genimg.data.tasks.base import Task, refuse_mask
from genimg.errors import ConfigError
from genimg.inference.checks import require_finite
from genimg.inference.labels import find_label
from genimg.inference.reconstruct import pixel_format
from genimg.inference.translate import ImageTranslator, MemoryFullError, run
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Translates, TranslatesLabels
from genimg.methods.options import SamplingOptions
from genimg.methods.sampling_options import sampling_options
from genimg.types import Batch
from genimg.utils.images import to_float, to_uint8
from genimg.utils.progress import showing_steps


class OwnImages(Task):
    """The task of translating images like those that the model generates: the source is the image itself."""

    def channels(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        return shape[0], shape[0]

    def __call__(self, images: Tensor, positions: NDArray[np.int64], seed: int) -> Batch:
        return {"source": images, "target": images}

    def given(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        refuse_mask(mask, "classes")
        return images


class BetweenLabels:
    """Translator from one class of a model to another, with the interface of an image-to-image model.

    Args:
        method: The model.
        source, target: Labels.
        options: Options of the translation.
    """

    directions: ClassVar[tuple[str, ...]] = ()
    size_divisor = 1
    sampled_mode = "eval"
    batch_keys = ("source",)

    def __init__(self, method: TranslatesLabels, source: int, target: int, options: SamplingOptions) -> None:
        self.method = method
        self.source, self.target = source, target
        self.options = options
        self.task: Task = OwnImages()

    def translator(self, direction: str | None) -> nn.Module:
        assert isinstance(self.method, nn.Module)
        return self.method

    def translate(self, source: Tensor, direction: str | None = None) -> Tensor:
        return self.method.translate_labels(source, self.source, self.target, self.options)

    def set_mode(self, model_mode: str) -> None:
        raise ConfigError(f"model_mode={model_mode} has no effect on a translation between classes: remove it")


@dataclass(frozen=True, kw_only=True)
class LabelTranslator(ImageTranslator):
    """Translator between classes, which resizes every image to the size of the model's images.

    Attributes:
        pixels: Format of the model's images.
    """

    pixels: PixelFormat

    def __call__(self, images: Tensor, masks: Tensor | None, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        resized = torch.stack([self._resized(image) for image in images])
        try:
            with showing_steps():
                output = require_finite(run(self.method.translate, to_float(resized), self.device))
        except MemoryFullError as error:
            raise ConfigError(f"batch_size={self.batch_size} is too large for the memory: choose a smaller one") from error
        return resized, [to_uint8(output)]

    def _resized(self, image: Tensor) -> Tensor:
        array = image.numpy()
        shown = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
        return torch.tensor(self.pixels.apply(shown))  # a copy, because the array may be read-only


def between_labels(
    method: Method,
    class_names: Sequence[str],
    label_from: Any,
    label_to: Any,
    given: Mapping[str, Any],
    others: Sequence[str] = (),
) -> Method | BetweenLabels:
    """Return a translator between two classes, or the method itself if it cannot translate between classes.

    Args:
        method: The model.
        class_names: Class names by label; empty if unknown.
        label_from, label_to: Classes, by name or number; None for none.
        given: Sampling options of the translation, by name.
        others: Names of the caller's own options, to suggest for a misspelt one.

    Raises:
        ConfigError: If a class is missing or unknown, or an option has no effect.
    """
    names = {"label_from": label_from, "label_to": label_to}
    able = isinstance(method, TranslatesLabels) and method.num_classes > 0 and not isinstance(method, Translates)
    if not able:
        for key, value in names.items():
            if value is not None:
                raise ConfigError(f"{key}={value} needs a diffusion model with labels, which this model is not: remove it")
        return method
    assert isinstance(method, TranslatesLabels)
    assert isinstance(method, Generates)
    for key, value in names.items():
        if value is None:
            known = f": {', '.join(class_names[:10])}" if class_names else ""
            raise ConfigError(f"{key} is required, because this model translates between its classes{known}", key=key)
    source, target = (find_label(value, method.num_classes, class_names, key) for key, value in names.items())
    if source == target:
        raise ConfigError(f"label_to={label_to} is the same class as label_from: choose another class")
    options = sampling_options(method, given, others, usual=method.label_translation_options)
    if not options.is_deterministic:
        raise ConfigError(
            "sampler must not be random for a translation between classes: choose heun, euler or dpmpp_2m", key="sampler"
        )
    method.check_options(options)
    method.before_sampling()
    return BetweenLabels(method, source, target, options)


def image_translator(
    method: Translates,
    facts: DataFacts,
    data: Mapping[str, Any],
    device: torch.device,
    *,
    direction: str | None,
    tile: int | None,
    overlap: int,
    batch_size: int,
    seed: int,
    num_samples: int = 1,
    sampling: Mapping[str, Any] = MappingProxyType({}),
    other_options: Sequence[str] = (),
) -> ImageTranslator:
    """Return an image translator for a model; see ``ImageTranslator.of``.

    Args:
        method: The model, or the result of ``between_labels``.
        facts: Facts about the training data.
        data: The ``data`` group of the checkpoint's config.
        device: Device of the model.
        direction, tile, overlap, batch_size, seed, num_samples: See ``ImageTranslator``.
        sampling, other_options: See ``ImageTranslator.of``. They are not used for the result of ``between_labels``, which
            already contains its options.

    Raises:
        ConfigError: If the tiles do not fit the model, or the memory is too small.
    """
    if not isinstance(method, BetweenLabels):
        return ImageTranslator.of(
            method, facts, device, direction=direction, tile=tile, overlap=overlap, batch_size=batch_size, seed=seed,
            num_samples=num_samples, sampling=sampling, other_options=other_options,
        )  # fmt: skip
    if num_samples > 1:
        raise ConfigError(
            f"num_samples={num_samples} has no effect on a translation between classes, which has one result: remove it",
            key="num_samples",
        )
    if tile is not None:
        raise ConfigError(f"tile={tile} has no effect on a translation between classes, which resizes images: remove it")
    pixels = pixel_format(facts, data)
    return LabelTranslator(
        method=method, direction=None, device=device, tile=None, overlap=overlap, batch_size=batch_size, seed=seed, least=1,
        channels=facts.channels, pixels=pixels,
    )  # fmt: skip
