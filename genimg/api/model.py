"""A trained model in Python: sample, translate, encode, reconstruct and evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.evaluate import dataset_from_images, evaluation_argument, measure
from genimg.api.evaluate_checkpoint import LoadedCheckpoint
from genimg.api.lookup import lookup_for
from genimg.config.compose import compose
from genimg.errors import ConfigError, DataError
from genimg.evaluation.result import Evaluation
from genimg.inference.conditions import find_conditions, repeated, require_condition, require_other_conditions
from genimg.inference.sample import Sampler
from genimg.inference.translate import ImageTranslator, chosen_direction, needs_mask, way_of_training
from genimg.inference.translate_labels import BetweenLabels, between_labels, image_translator
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Reconstructs, Translates, TranslatesLabels, TranslatesRandomly
from genimg.methods.sampling_options import chosen_options
from genimg.training.device import choose_device
from genimg.types import Batch, height_width
from genimg.utils.images import to_float
from genimg.utils.numbers import require_least
from genimg.utils.words import quoted

Capability = TypeVar("Capability")

Labels = int | str | Sequence[int | str] | Tensor | NDArray[np.integer[Any]]
"""One class, by number or name, or a list, array or tensor of classes."""


def load(
    path: str | Path,
    *,
    which: str = "last",
    weights: str | float | None = None,
    device: str = "auto",
    allow: Sequence[str] = (),
) -> Model:
    """Load a trained model without running code from the checkpoint.

    Args:
        path: A run directory, or a checkpoint.
        which: Checkpoint of a run directory, ``last`` or ``best``.
        weights: ``raw``, ``ema`` (the first average), the name of another average, or the length of a power-function
            average, such as 0.08. None uses the weights that were evaluated during training.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        allow: Your own packages that the checkpoint's config may use.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
        ConfigError: If the checkpoint does not have these weights.
    """
    checkpoint = TrainedCheckpoint.open(path, which, allow, weights=weights)
    return Model(checkpoint, choose_device(device), allow)


class Model:
    """A trained model, in evaluation mode. Unsupported operations raise a ConfigError.

    Attributes:
        method: The training algorithm with its networks, a ``torch.nn.Module``.
        device: Device of the networks.
        path: Path of the checkpoint.
        config: Resolved training config.
        facts: Facts about the training data: image size, channels, number of classes.
        class_names: Class names by label; empty without labels.
        images_seen: Number of images that the model was trained on, including repeats.
        weights: Name of the weights, such as ``ema`` or ``raw``.
    """

    def __init__(self, checkpoint: TrainedCheckpoint, device: torch.device, allow: Sequence[str] = ()) -> None:
        self.method: Method = checkpoint.method(device)
        if isinstance(self.method, Generates):
            self.method.before_sampling()
        self.device = device
        self.path = checkpoint.path
        self.config: Mapping[str, Any] = checkpoint.config
        self.facts = checkpoint.facts
        self.class_names = checkpoint.class_names
        self.images_seen = checkpoint.images
        self.weights = checkpoint.weights_label
        self._allow = tuple(allow)
        self._checkpoint = LoadedCheckpoint.of(checkpoint, self.method, device)

    def __repr__(self) -> str:
        return f"<genimg model {type(self.method).__name__} from {self.path}, trained on {self.images_seen:,} images>"

    def network(self, name: str) -> nn.Module:
        """Return one of the model's networks, such as ``generator``, ``discriminator``, ``encoder`` or ``decoder``."""
        networks = dict(self.method.named_children())
        if name not in networks:
            raise ConfigError(f"network={name} is not a network of this model: choose from {', '.join(networks)}")
        return networks[name]

    def sample(
        self,
        num_images: int = 1,
        *,
        seed: int = 0,
        label: Labels | None = None,
        text: str | Sequence[str] | None = None,
        batch_size: int = 64,
        **options: Any,
    ) -> Tensor:
        """Generate images, as ``genimg-sample`` does.

        Args:
            num_images: Number of images.
            seed: Seed of the images. Image i depends only on the seed, i and its condition, not on the batch size.
            label: Class, by name or number: one for all images, or a list with one for each image. None draws classes with
                their frequencies in the data.
            text: Caption: one for all images, or a list with one for each image. None draws captions from the data.
            batch_size: Number of images per batch.
            options: Sampling options of this model, such as ``truncation=0.7``: the fields of ``sampling_options``.

        Returns:
            Float32 [num_images, C, H, W] in [-1, 1], on the CPU.

        Raises:
            ConfigError: If the model needs input images or has no such class, or if an option has no effect on it.
        """
        reconstructs = isinstance(self.method, Reconstructs)
        why_not = "reconstructs images: use reconstruct" if reconstructs else "translates images: use translate"
        method = self._capable(Generates, "sample", why_not)
        require_least(1, num_images=num_images, batch_size=batch_size)
        lookup = lookup_for(self._checkpoint, self.method, self.device, self._allow)
        chosen = chosen_options(method, options, lookup)
        rows = self._conditions(method, num_images, label=label, text=text)
        require_other_conditions(chosen, [rows])
        sampler = Sampler(method, self.device, seed, batch_size, chosen)

        def draw(indices: range) -> Batch:
            return sampler.draw(indices) | {key: row[indices.start : indices.stop] for key, row in rows.items()}

        images = torch.cat([images for _, _, images in sampler.make_all(num_images, draw, "sampling")])
        sampler.log_cost()
        return images

    def translate(
        self,
        images: object,
        *,
        masks: Tensor | NDArray[Any] | None = None,
        direction: str | None = None,
        tile: int | None = None,
        overlap: int = 32,
        seed: int = 0,
        num_samples: int | None = None,
        batch_size: int = 4,
        **options: Any,
    ) -> Tensor:
        """Translate images, as ``genimg-translate`` does.

        Args:
            images: Images of any size: float [N, C, h, w] in [-1, 1], uint8, or a dataset (see ``as_dataset``).
            masks: Masks for an inpainting model: [N, 1, h, w], 1 or True where pixels are missing.
            direction: Direction for a model that translates both ways: ``a2b`` or ``b2a``.
            tile: Side length in pixels of the tiles into which larger images are split; None uses no tiles.
            overlap: Overlap between neighbouring tiles in pixels.
            seed: Seed of random translations, and of the dropout of a model that translates in training mode.
            num_samples: Number S of translations of each image, for a model whose translations are random. None returns one.
            batch_size: Number of images per batch.
            options: Sampling options of such a model, such as ``steps=10``.

        Returns:
            Float32 [N, C', H, W] in [-1, 1], rounded to 8 bits, on the CPU; with ``num_samples``, [N, S, C', H, W].

        Raises:
            ConfigError: If the model does not translate images, or an option does not apply to it.
            DataError: If the images or masks do not fit the model.
        """
        method = self._capable(Translates, "translate", "generates images without an input: use sample")
        require_least(1, batch_size=batch_size, num_samples=1 if num_samples is None else num_samples)
        translator = ImageTranslator.of(
            method, self.facts, self.device,
            direction=chosen_direction(method, direction, way_of_training(self.config["data"])),
            tile=tile, overlap=overlap, batch_size=batch_size, seed=seed, num_samples=num_samples or 1, sampling=options,
        )  # fmt: skip
        pixels = self._pixels(images)
        if pixels.shape[1] != translator.channels:
            raise DataError(
                f"images have {pixels.shape[1]} channels, but this model translates images with {translator.channels}",
                key="images",
            )
        holes = _checked_masks(masks, pixels, method)
        # Dropout depends on the seed and the number of the first image in a batch.
        together = 1 if method.sampled_mode == "train" else batch_size
        results = []
        for start in range(0, len(pixels), together):
            some = slice(start, start + together)
            numbers = range(start, min(start + together, len(pixels)))
            made = translator(pixels[some], None if holes is None else holes[some], numbers)[1]
            results.append(made[0] if num_samples is None else torch.stack(made, dim=1))
        return to_float(torch.cat(results))

    def translate_labels(
        self, images: object, *, label_from: int | str, label_to: int | str, batch_size: int = 8, **options: Any
    ) -> Tensor:
        """Translate images from one class to another with a diffusion model that has labels.

        Args:
            images: Images of any size: float [N, C, h, w] in [-1, 1], uint8, or a dataset (see ``as_dataset``). They are
                resized to the model's size.
            label_from, label_to: Classes, by name or number.
            batch_size: Number of images per batch.
            options: Sampling options without randomness, such as ``steps=100``.

        Returns:
            Float32 [N, C, H, W] in [-1, 1], rounded to 8 bits, on the CPU.

        Raises:
            ConfigError: If the model has no labels or no such class, or an option does not apply to it.
        """
        self._capable(TranslatesLabels, "translate_labels", "cannot translate between classes")
        require_least(1, batch_size=batch_size)
        method = between_labels(self.method, self.class_names, label_from, label_to, options)
        assert isinstance(method, BetweenLabels)
        translator = image_translator(
            method, self.facts, self.config["data"], self.device, direction=None, tile=None, overlap=0, batch_size=batch_size,
            seed=0,
        )  # fmt: skip
        pixels = self._pixels(images)
        parts = []
        for start in range(0, len(pixels), batch_size):
            some = pixels[start : start + batch_size]
            parts += translator(some, None, range(start, start + len(some)))[1]
        return to_float(torch.cat(parts))

    def reconstruct(self, images: object, *, label: Any = None, text: Any = None, batch_size: int = 64) -> Tensor:
        """Encode and decode images with an autoencoder, without noise.

        Args:
            images: Images of the model's size: float [N, C, H, W] in [-1, 1], uint8, or a dataset (see ``as_dataset``).
                Floats are rounded to 8 bits first.
            label, text: As in ``sample``; required by a model that reads labels or captions.
            batch_size: Number of images per batch.

        Returns:
            Float32 [N, C, H, W] in [-1, 1], on the CPU.

        Raises:
            ConfigError: If the model is not an autoencoder, or if label or text is missing or has no effect.
            DataError: If the images do not have the model's size.
        """
        method = self._capable(Reconstructs, "reconstruct", "is not an autoencoder")
        batches = self._batches(method, images, label, text, batch_size)
        return torch.cat([method.reconstruct(each).cpu() for each in batches])

    def encode(self, images: object, *, label: Any = None, text: Any = None, batch_size: int = 64) -> Tensor:
        """Encode images with an autoencoder.

        Args:
            images, label, text, batch_size: As in ``reconstruct``.

        Returns:
            For a VAE, float32 latents [N, Z] or [N, C, h, w], the means of q(z | x); for a VQ-VAE, int64 codes [N, h, w]. Both
            are on the CPU.

        Raises:
            ConfigError, DataError: As in ``reconstruct``.
        """
        method = self._capable(Reconstructs, "encode", "is not an autoencoder")
        return torch.cat([method.encode(each).cpu() for each in self._batches(method, images, label, text, batch_size)])

    def evaluate(
        self,
        real: object = None,
        *,
        evaluation: str | Sequence[str] | None = None,
        num_images: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        bootstrap: int | None = None,
        overrides: Sequence[str] = (),
    ) -> Evaluation:
        """Measure the checkpoint, as ``genimg-eval ckpt=...`` does.

        Args:
            real: Images to compare with: a dataset such as ``cifar10:test``, a folder, an .npz, saved statistics, or any
                images that ``evaluate`` accepts. None uses the model's training data, unless it was passed from Python.
            evaluation: Option of the group ``evaluation``, or several options for several extractors; None uses
                that of the training run.
            num_images: Number of generated images.
            seed: Seed of the generated images.
            batch_size: Batch size of generation and feature extraction.
            bootstrap: Number of bootstrap resamples for 95 % intervals.
            overrides: Further arguments of ``genimg-eval``.

        Returns:
            The values by name, with intervals, provenance and warnings.

        Raises:
            UserError: If the images do not exist, or the model cannot be measured in this way.
        """
        given = {"num_images": num_images, "seed": seed, "batch_size": batch_size, "bootstrap": bootstrap}
        arguments = [f"ckpt={quoted(str(self.path))}", f"device={self.device}", f"allow=[{','.join(self._allow)}]"]
        arguments += [f"{key}={value}" for key, value in given.items() if value is not None]
        arguments += [evaluation_argument(evaluation)] if evaluation else []
        is_named = isinstance(real, str | Path)
        arguments += [f"real={quoted(str(real))}"] if is_named else []
        own = {} if real is None or is_named else {"real": dataset_from_images(real, "real")}
        composition = compose([*arguments, *overrides], "eval")
        if composition.config.get("surface"):
            raise ConfigError("surface measures several points, not one result: use it with genimg-eval", key="surface")
        result = measure(composition, own, self._checkpoint)
        assert result is not None
        return result

    @property
    def sampling_options(self) -> Any:
        """The default options of ``sample`` or of random translations, as a dataclass object; None if the model has neither."""
        return self.method.sampling_options if isinstance(self.method, Generates | TranslatesRandomly) else None

    def _capable(self, capability: type[Capability], name: str, why_not: str) -> Capability:
        """Return the method if it has a capability."""
        if not isinstance(self.method, capability):
            raise ConfigError(f"{name} does not apply to this model: a {type(self.method).__name__} {why_not}", key=name)
        return self.method

    def _conditions(self, method: Generates | Reconstructs, count: int, **given: Any) -> Batch:
        """Return the conditions as a batch with one row per image; the batch is empty if the method draws them itself."""
        given = {key: value.tolist() if isinstance(value, Tensor | np.ndarray) else value for key, value in given.items()}
        several = {
            key: list(value) for key, value in given.items() if isinstance(value, Sequence) and not isinstance(value, str)
        }
        for key, values in several.items():
            if len(values) != count:
                raise ConfigError(f"{key}=... has {len(values)} entries for {count} images: give one for each image", key=key)
        rows = [
            find_conditions(method, self.class_names,
                            **{key: several[key][i] if key in several else value for key, value in given.items()})[0].row
            for i in range(count if several else 1)
        ]  # fmt: skip
        if not several:
            return repeated(rows[0], count)
        width = max(row[key].shape[-1] if row[key].dim() > 1 else 0 for row in rows for key in row)
        return {
            key: torch.cat([_padded(row[key], width) if row[key].dim() > 1 else row[key] for row in rows]) for key in rows[0]
        }

    def _batches(self, method: Reconstructs, images: object, label: Any, text: Any, batch_size: int) -> Iterator[Batch]:
        """Yield the images with their conditions, batch by batch on the device."""
        require_least(1, batch_size=batch_size)
        pixels = self._pixels(images)
        expected = (self.facts.channels, *height_width(self.facts.image_size))
        if tuple(pixels.shape[1:]) != expected:
            shapes = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], expected))
            raise DataError("images of {} pixels do not fit this model, which takes {}".format(*shapes), key="images")
        rows = self._conditions(method, len(pixels), label=label, text=text)
        require_condition(method, rows, "images=...")
        for start in range(0, len(pixels), batch_size):
            some = slice(start, start + batch_size)
            batch = {"image": to_float(pixels[some]), **{key: row[some] for key, row in rows.items()}}
            yield {key: value.to(self.device) for key, value in batch.items()}

    def _pixels(self, images: object) -> Tensor:
        """Convert images to uint8 [N, C, H, W]."""
        dataset = dataset_from_images(images, "images")
        return torch.from_numpy(dataset.read_many(np.arange(len(dataset))))


def _checked_masks(masks: Tensor | NDArray[Any] | None, pixels: Tensor, method: Translates) -> Tensor | None:
    """Return masks as float32 [N, 1, h, w], or None for a model without inpainting."""
    if not needs_mask(method, masks, "masks", "give one for each image, 1 or True where pixels are missing"):
        return None
    holes = torch.as_tensor(masks).float().cpu()
    expected = (len(pixels), 1, *pixels.shape[2:])
    if tuple(holes.shape) != expected:
        raise DataError(f"masks have shape {list(holes.shape)}, but these images need {list(expected)}", key="masks")
    return holes


def _padded(row: Tensor, width: int) -> Tensor:
    """Pad a caption's row [1, L] with zeros."""
    return nn.functional.pad(row, (0, width - row.shape[-1]))
