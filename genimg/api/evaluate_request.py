"""The options of genimg-eval, and their cheap checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genimg.api.inputs import ImageReader, title
from genimg.api.surface_axes import check_axes
from genimg.config import untrusted
from genimg.config.compose import Composition
from genimg.config.instantiate import Builder
from genimg.config.options import read_options
from genimg.config.schema.commands import Eval
from genimg.data.datasets.builtin import ImageDataset
from genimg.errors import ConfigError
from genimg.types import height_width
from genimg.utils.files import check_writable

_LEAST = {"num_images": 2, "num_samples": 1, "num_real": 2, "batch_size": 1, "seed": 0, "bootstrap": 0, "neighbors": 0}
_OF_STATISTICS = {
    "real", "save_statistics", "evaluation", "device", "num_images", "num_real", "batch_size", "image_size", "range",
    "data_root", "inception_weights", "allow", "traceback",
}  # fmt: skip
_OF_CHECKPOINTS = {
    "which", "weights", "seed", "model_mode", "classical", "table", "split", "num_samples", "sampling", "conditioning", "loss",
    "model", "surface",
}  # fmt: skip
_OF_SINGLE_POINTS = {
    "neighbors", "held_out", "picture", "save_statistics", "model_mode", "classical", "table", "num_samples", "provenance",
    "per_class",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The options of genimg-eval and their context.

    Attributes:
        options: Options of the command.
        groups: Config groups that are given, by name: ``evaluation`` and groups of a checkpoint's config.
        typed: Mapping from option or group to its first override.
        own: Images that replace those named by ``options.images`` and ``options.real``, by option name.
        overrides: All arguments, in order.
    """

    options: Eval
    groups: Mapping[str, Any]
    typed: Mapping[str, str]
    own: Mapping[str, ImageDataset]
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, composition: Composition, own: Mapping[str, ImageDataset]) -> Request:
        """Read and check the options, so that a mistake is reported before the evaluation starts.

        Args:
            composition: The composed options.
            own: Images given in Python, by option name.

        Raises:
            ConfigError: If a value is out of range, or a setting has no effect.
        """
        options, groups = read_options(composition.config, Eval, untrusted.GROUPS)
        request = cls(options, groups, _typed(composition), own, tuple(composition.overrides))
        if "surface" in request.typed:
            check_axes(options.surface)
        if request.evaluation == {}:
            raise ConfigError("evaluation=none evaluates nothing: choose another option of the group")
        _check_values(options)
        request._refuse_what_has_no_effect()
        request._require_images()
        return request

    @property
    def images(self) -> str | ImageDataset | None:
        """The images to measure, or their name."""
        return self.own.get("images", self.options.images)

    @property
    def real(self) -> str | ImageDataset | None:
        """The images to compare with, or their name."""
        return self.own.get("real", self.options.real)

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """The group ``evaluation``, or single keys that change the checkpoint's or dataset's evaluation; None if not given."""
        return self.groups.get("evaluation")

    def reader(self, builder: Builder, device: torch.device) -> ImageReader:
        """Return a reader of the images that the options name.

        Args:
            builder: Builder of datasets.
            device: Device of the images.
        """
        options = self.options
        return ImageReader(
            builder,
            device,
            image_size=options.image_size,
            range=options.range,
            data_root=options.data_root,
            accept_unrecorded=options.accept_unrecorded,
        )

    def _refuse_what_has_no_effect(self) -> None:
        options, typed = self.options, self.typed
        if options.compare is not None:
            useless, why = typed.keys() - {"compare", "which", "traceback"}, "with compare="
        elif options.ckpt is None and self.images is None:
            useless, why = typed.keys() - _OF_STATISTICS, "if only statistics are computed"
        elif self.images is not None:
            useless, why = typed.keys() & _OF_CHECKPOINTS, "on images that exist already"
            if not useless:
                check_picture(options)
        else:
            useless, why = (
                (typed.keys() & {"image_size", "range", "accept_unrecorded"} if self.real is None else set()),
                "without real=",
            )
        if not useless and options.surface:
            useless, why = typed.keys() & _OF_SINGLE_POINTS, "with surface="
        if useless:
            raise ConfigError(f"{typed[sorted(useless)[0]]} has no effect {why}: remove it")

    def _require_images(self) -> None:
        options = self.options
        if options.compare is not None:
            return
        if options.ckpt is not None and self.images is not None:
            raise ConfigError(
                f"ckpt={options.ckpt} and images={title(self.images)} both say what to evaluate: remove one of them"
            )
        if options.ckpt is None and self.images is None and not (self.real and options.save_statistics):
            raise ConfigError(
                "nothing to evaluate: give ckpt=CHECKPOINT, or images=DIR with real=WHAT; or real=DIR with "
                "save_statistics=FILE to make statistics; genimg-eval --help shows examples",
                key="ckpt",
            )
        if self.images is not None and self.real is None:
            raise ConfigError(
                f"images={title(self.images)} needs something to compare with: give real=DIR, an .npz, saved statistics or a "
                "dataset"
            )


def check_picture(options: Eval) -> None:
    """Check that ``picture``, the file that shows neighbours, is given only together with ``neighbors``.

    Raises:
        ConfigError: If it is given alone.
    """
    if options.picture is not None and not options.neighbors:
        raise ConfigError(f"picture={options.picture} has no effect without neighbors=: remove it")


def _check_values(options: Eval) -> None:
    for key, least in _LEAST.items():
        value = getattr(options, key)
        if value is not None and value < least:
            raise ConfigError(f"{key}={value} must be a whole number, {least} or more")
    if options.image_size is not None:
        try:
            height_width(options.image_size)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"image_size={options.image_size} must be a whole number, 1 or more, or two: [height,width]"
            ) from error
    if options.save_statistics is not None and not options.save_statistics.endswith(".pt"):
        raise ConfigError(f"save_statistics={options.save_statistics} must end in .pt, so that real= recognises it")
    if options.surface and options.output is not None and not options.output.endswith(".json"):
        raise ConfigError(f"output={options.output} must end in .json: the table and the picture are named after it")
    for key in ("output", "picture", "save_statistics", "table"):
        path = getattr(options, key)
        if path is not None:
            check_writable(key, Path(path))


def _typed(composition: Composition) -> dict[str, str]:
    found: dict[str, str] = {}
    for override in composition.overrides:
        found.setdefault(re.split(r"[.@=]", override.lstrip("+~"))[0], override.lstrip("+~"))
    return found
