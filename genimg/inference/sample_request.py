"""Requests of genimg-sample: their checks and defaults, and the names of their outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genimg.errors import ConfigError
from genimg.inference.between import Between
from genimg.inference.conditions import Condition
from genimg.inference.interpolation import Loop
from genimg.inference.latent_files import folder_of
from genimg.utils.numbers import require_least
from genimg.utils.paths import expanded
from genimg.utils.regular_files import refuse_links
from genimg.utils.type_hints import as_written

_EXCLUDE = {
    "reconstruct": ("near", "latents", "interpolate"), "near": ("latents", "interpolate"),
    "latents": ("interpolate", "label", "text"),
}  # fmt: skip
_USUAL_SPREAD = 0.5  # around an image, in standard deviations of the prior
_MIDDLE = 0.5  # between two seeds
_USUAL_FRAMES, _USUAL_SPEED = 8, 12


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The options of genimg-sample that describe images and their output. Attributes have the names of the options.

    Attributes:
        num_images: Number of images of each condition, or of latents with ``interpolate``.
        seed: Seed of the images.
        batch_size: Number of images in a batch.
        label, text: One class or caption, or a list; None for none.
        sampling: Sampling options of the model, by name.
        weights: Weights that the user chose; None for the default weights.
        near: Path of the image around which to sample; None to sample the prior.
        spread: Spread around ``near``, in standard deviations of the prior; None for the default.
        reconstruct: Path of the image or directory to reconstruct; None to sample.
        latents: Path of a file of latents whose images are generated; None to draw latents.
        interpolate: ``linear`` or ``spherical`` for a loop through latents, or for the path to ``seed_to``; None for separate
            images.
        seed_to: Seed of other images; the images then lie between those of both seeds. None for one seed.
        position: Position between both seeds, from 0 to 1; None for the default.
        frames, frames_per_second: Settings of the loop (see ``Loop``); None for the defaults.
        output: Path of a directory or .npz file; None or empty for a directory named after the request.
        class_folders: Whether to write a subdirectory for each class.

    Raises:
        ConfigError: If an option is out of range or contradicts another.
    """

    num_images: int
    seed: int
    batch_size: int
    label: Any
    text: Any
    sampling: Mapping[str, Any]
    weights: str | float | None
    near: str | None
    spread: float | None
    reconstruct: str | None
    latents: str | None
    interpolate: str | None
    seed_to: int | None
    position: float | None
    frames: int | None
    frames_per_second: float | None
    output: str | None
    class_folders: bool

    def __post_init__(self) -> None:
        if self.loop is None:
            self._refuse_settings_of_loop()
        self._refuse_settings_of_path()
        if self.near is None and self.spread is not None:
            raise ConfigError(f"spread={self.spread} has no effect without near=IMAGE: remove it")
        require_least(1, num_images=self.num_images, batch_size=self.batch_size)
        if self.spread is not None and not self.spread >= 0:
            raise ConfigError(f"spread={self.spread} must be a number of standard deviations, 0 or more")
        self._refuse_contradictions()
        self._check_kind_of_output()

    @property
    def loop(self) -> Loop | None:
        """The loop through latents, or None for separate images."""
        if self.interpolate is None or self.seed_to is not None:
            return None
        return Loop(
            interpolate=self.interpolate,
            num_images=self.num_images,
            frames=_USUAL_FRAMES if self.frames is None else self.frames,
            frames_per_second=_USUAL_SPEED if self.frames_per_second is None else self.frames_per_second,
        )

    @property
    def between(self) -> Between | None:
        """The position between two seeds, or None for one seed."""
        if self.interpolate is None or self.seed_to is None:
            return None
        position = _MIDDLE if self.position is None else self.position
        return Between(interpolate=self.interpolate, seed_to=self.seed_to, position=position)

    @property
    def spread_or_default(self) -> float | None:
        """Spread around ``near``, in standard deviations of the prior; None without ``near``."""
        return _USUAL_SPREAD if self.near is not None and self.spread is None else self.spread

    @property
    def recorded(self) -> dict[str, Any]:
        """Options stored with the images."""
        return {
            "num_images": self.num_images, "seed": self.seed, "label": self.label, "text": self.text,
            "sampling": self.sampling, "near": self.near, "spread": self.spread_or_default, "reconstruct": self.reconstruct,
            "latents": self.latents,
            **({} if self.between is None else vars(self.between)),
        }  # fmt: skip

    def output_path(self, conditions: Sequence[Condition], run_dir: Path) -> Path:
        """Return the absolute path of the output, by default in the run directory.

        Raises:
            UnsafeFileError: If the default is a link.
        """
        if self.output:
            return expanded("output", self.output).resolve()
        path = run_dir / self.folder_name(conditions)
        refuse_links(path, below=run_dir)
        return path.resolve()

    def folder_name(self, conditions: Sequence[Condition]) -> str:
        """Return the default directory name, with every option that changes the images."""
        if self.reconstruct is not None:
            return "-".join(part for part in ("reconstructions", Path(self.reconstruct).stem, conditions[0].name) if part)
        if self.latents is not None:
            return f"samples-latents-{folder_of('latents', self.latents)}"
        several = "-".join(condition.name for condition in conditions)[:80] if self.label is not None else "texts"
        parts = [f"samples-seed{self.seed}", conditions[0].name if len(conditions) == 1 else several]
        parts += [f"{key}{value:g}" if type(value) in (int, float) else f"{key}-{_as_name(as_written(value))}"
                  for key, value in self.sampling.items()]  # fmt: skip
        parts += [f"near-{Path(self.near).stem}-{self.spread_or_default:g}"] if self.near is not None else []
        parts += [f"weights-{self.weights}"] if self.weights is not None else []
        parts += [self.interpolate] if self.interpolate is not None else []
        parts += [f"to{between.seed_to}-{between.position:g}"] if (between := self.between) is not None else []
        return "-".join(part for part in parts if part)

    def _refuse_settings_of_loop(self) -> None:
        for key in ("frames", "frames_per_second"):
            if (value := getattr(self, key)) is not None:
                if self.seed_to is not None:
                    raise ConfigError(f"{key}={value} has no effect with seed_to=: remove one of them")
                raise ConfigError(
                    f"{key}={value} has no effect without interpolation: remove it, or set interpolate=linear or "
                    "interpolate=spherical"
                )

    def _refuse_settings_of_path(self) -> None:
        if self.position is not None and self.seed_to is None:
            raise ConfigError(f"position={self.position} has no effect without seed_to=SEED: remove it")
        if self.seed_to is None:
            return
        if self.interpolate is None:
            raise ConfigError(
                f"seed_to={self.seed_to} has no effect without interpolation: remove it, or set interpolate=linear or "
                "interpolate=spherical"
            )
        if self.seed_to == self.seed:
            raise ConfigError(f"seed_to={self.seed_to} is also the seed, so there is nothing between them: choose another seed")
        assert self.between is not None  # it checks the position

    def _refuse_contradictions(self) -> None:
        for one, others in _EXCLUDE.items():
            useless = next((other for other in others if getattr(self, other) is not None), None)
            if getattr(self, one) is not None and useless is not None:
                raise ConfigError(f"{useless}={getattr(self, useless)} has no effect with {one}=: remove one of them")
        for one in ("reconstruct", "latents"):
            if getattr(self, one) is not None:
                self.refuse_sampling(one)

    def refuse_sampling(self, one: str) -> None:
        """Refuse sampling options in combination with another option.

        Raises:
            ConfigError: If there are any; the message names the first one.
        """
        for name, value in self.sampling.items():
            raise ConfigError(f"{name}={value} has no effect with {one}=: remove one of them")

    def _check_kind_of_output(self) -> None:
        archived = str(self.output).endswith(".npz")
        for one, value in (("reconstruct", self.reconstruct), ("interpolate", self.loop)):
            if value is not None and (archived or self.class_folders):
                what = f"output={self.output}" if archived else "class_folders=true"
                raise ConfigError(f"{what} cannot be combined with {one}=: remove it")
        if archived and self.class_folders:
            raise ConfigError(f"class_folders=true has no effect on output={self.output}, which holds labels: remove it")


def _as_name(value: str) -> str:
    """Return text, such as a caption or a path, without characters that are special in file names."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-")[-80:]
