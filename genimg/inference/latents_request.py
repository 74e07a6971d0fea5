"""Requests of genimg-latents: their checks and defaults, the names of their outputs, and their execution by a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genimg.data.decode import PixelFormat
from genimg.errors import ConfigError
from genimg.inference.conditions import Condition, find_conditions, repeated, require_one
from genimg.inference.direction_files import Traversal, load_directions, write_directions
from genimg.inference.directions import METHODS, find_directions
from genimg.inference.latent_files import folder_of, load_codes
from genimg.inference.project_files import check_project, project_files
from genimg.inference.projection import RESTARTS, STEPS, Projector
from genimg.inference.style_mixing import check_layers, write_mixing
from genimg.losses.image_distance import ImageDistance
from genimg.methods.gan import GAN
from genimg.methods.generator_latents import GeneratorLatents, LatentCodes, W, Z
from genimg.methods.options import require_truncation
from genimg.utils.numbers import require_least
from genimg.utils.outputs import Record
from genimg.utils.paths import expanded
from genimg.utils.regular_files import refuse_links

TASKS = ("project", "mix", "directions")
"""Options of which exactly one is given, and which say what is done."""

_ONLY = {  # options of one task, or of two
    "project": ("space", "steps", "restarts", "noise_maps", "distance"),
    "mix": ("rows", "columns"),
    "directions": ("num_directions", "strength", "frames", "layers", "num_images"),
}
_NOT_OF_PROJECT = ("latents", "truncation")
_USUAL = {"rows": 4, "columns": 6, "num_directions": 8, "strength": 3.0, "frames": 7, "num_images": 2}


@dataclass(frozen=True, kw_only=True)
class LatentsRequest:
    """The options of genimg-latents that describe a task and its output. Attributes have the names of the options.

    Attributes:
        project: Path of the image or directory to project.
        mix: Numbers of the layers with the columns' styles.
        directions: ``ganspace``, ``sefa``, or the path of a file of directions.
        label, text: The class or caption of all images; None for none.
        latents: Path of a file of latents, whose images are mixed or moved; None to draw images from the seed.
        truncation: Truncation psi of the drawn images' styles; None for none.
        seed: Seed of the drawn images and of the projection.
        batch_size: Number of images in a batch.
        space: ``w``, ``w+`` or ``z``; None for the default of the generator.
        steps, restarts: Settings of the projection; None for the defaults.
        noise_maps: ``optimised`` or ``fixed``; None for ``optimised``.
        rows, columns: Numbers of mixed images; None for the defaults.
        num_directions: Number of directions; None for the default, or for all of a file.
        strength, frames, layers: Settings of the traversal; see ``Traversal``.
        num_images: Number of images that are moved; None for the default, or for all of ``latents``.
        output: Directory; None for one that is named after the request, in the run directory.

    Raises:
        ConfigError: If an option is out of range or contradicts another.
    """

    project: str | None
    mix: list[int] | None
    directions: str | None
    label: Any
    text: Any
    latents: str | None
    truncation: float | None
    seed: int
    batch_size: int
    space: str | None
    steps: int | None
    restarts: int | None
    noise_maps: str | None
    distance: str | None
    rows: int | None
    columns: int | None
    num_directions: int | None
    strength: float | None
    frames: int | None
    layers: list[int] | None
    num_images: int | None
    output: str | None

    def __post_init__(self) -> None:
        given = [task for task in TASKS if getattr(self, task) is not None]
        if len(given) != 1:
            problem = f"{' and '.join(f'{each}=' for each in given)} are both tasks" if given else "nothing to do"
            raise ConfigError(problem, "give one of project=FILE, mix=[0,1] and directions=ganspace", key=(given or TASKS)[0])
        task = given[0]
        useless = [key for other, keys in _ONLY.items() if other != task for key in keys]
        useless += _NOT_OF_PROJECT if task == "project" else ()
        for key in useless:
            if getattr(self, key) is not None:
                raise ConfigError(f"{key}={getattr(self, key)} has no effect with {task}=: remove it", key=key)
        for key in ("batch_size", "steps", "restarts", "rows", "columns", "num_directions", "num_images"):
            if (value := getattr(self, key)) is not None:
                require_least(1, **{key: value})
        if self.frames is not None:
            require_least(2, frames=self.frames)
        if self.strength is not None and not self.strength > 0:
            raise ConfigError(f"strength={self.strength} must be a number of standard deviations above 0")
        try:
            require_truncation(self.truncation)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.latents is not None:
            for key in ("truncation", "label", "text"):
                if (value := getattr(self, key)) is not None:
                    raise ConfigError(f"{key}={value} has no effect with latents=, which holds whole latents: remove it")

    @property
    def task(self) -> str:
        """The option that says what is done."""
        return next(task for task in TASKS if getattr(self, task) is not None)

    def recorded(self) -> dict[str, Any]:
        """Return the options that are stored with the output: those that are set."""
        return {key: value for key, value in vars(self).items() if value is not None and key != "output"}

    def output_path(self, condition: Condition, run_dir: Path) -> Path:
        """Return the absolute path of the output folder, by default in the run directory.

        Raises:
            UnsafeFileError: If the default is a link.
        """
        if self.output:
            return expanded("output", self.output).resolve()
        if self.project is not None:
            parts = ["projections", Path(self.project).stem, self.space or ""]
        elif self.mix is not None:
            parts = ["mixing", f"layers{'-'.join(map(str, self.mix))}", f"seed{self.seed}"]
        else:
            known = self.directions if self.directions in METHODS else "from-file"
            parts = ["directions", str(known), f"seed{self.seed}"]
        if self.latents is not None:
            parts.append(f"of-{folder_of('latents', self.latents)}")
        path = run_dir / "-".join(part for part in (*parts, condition.name) if part)
        refuse_links(path, below=run_dir)
        return path.resolve()


def plan(
    request: LatentsRequest,
    gan: GAN,
    *,
    distance: Callable[[], ImageDistance],
    measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    pixels: PixelFormat,
    class_names: Sequence[str],
    run_dir: Path,
    model: str,
    command: str,
) -> Callable[[Record], None]:
    """Check a request against a model, before any work, and return the function that does the work.

    Args:
        request: The request.
        gan: Model in evaluation mode, on its device.
        distance: Function that returns the distance of projections.
        measures: See ``project_files``.
        pixels: Format that images are converted to.
        class_names: Class names by label; empty if the checkpoint does not have them.
        run_dir: Directory of the run, for the default output.
        model: Digest of the checkpoint.
        command: Name of the command that writes.

    Returns:
        A function that takes the metadata to store with the output.

    Raises:
        ConfigError: If the model does not support an option.
        DataError: If a file cannot be read.
    """
    gan.before_sampling()
    latents = GeneratorLatents(gan)
    conditions = find_conditions(gan, class_names, label=request.label, text=request.text)
    if request.project is not None:
        condition = require_one(gan, conditions, f"project={request.project}")
        return _projection(request, latents, condition, distance, measures, pixels, run_dir, model, command)
    if len(conditions) > 1:
        raise ConfigError(f"{request.task}= needs at most one condition, not {len(conditions)}: give one label or text")
    condition = conditions[0]
    if request.truncation is not None and not latents.is_style_based:
        raise ConfigError(f"truncation={request.truncation} needs a generator with styles here: remove it")
    output = request.output_path(condition, run_dir)
    if request.mix is not None:
        layers = request.mix
        check_layers("mix", layers, latents)
        rows, columns = (_value(request, key) for key in ("rows", "columns"))
        codes = _codes(request, latents, condition, rows + columns, model)
        if len(codes) < rows + columns:
            raise ConfigError(f"rows={rows} and columns={columns} need {rows + columns} latents, but latents={request.latents} "
                              f"holds {len(codes)}: lower one of them", key="rows")  # fmt: skip
        above, beside = codes[slice(0, rows)], codes[slice(rows, rows + columns)]
        return lambda record: write_mixing(
            latents, above, beside, layers, output, batch_size=request.batch_size, record=record
        )  # fmt: skip
    return _traversal(request, latents, condition, output, model)


def _projection(
    request: LatentsRequest,
    latents: GeneratorLatents,
    condition: Condition,
    distance: Callable[[], ImageDistance],
    measures: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    pixels: PixelFormat,
    run_dir: Path,
    model: str,
    command: str,
) -> Callable[[Record], None]:
    space = request.space or latents.spaces[0]
    if space not in latents.spaces:
        kind = "a generator with styles" if latents.is_style_based else "a generator without styles"
        raise ConfigError(f"space={space} does not exist for {kind}: choose {' or '.join(latents.spaces)}")
    if space != Z and request.restarts is not None:
        raise ConfigError(f"restarts={request.restarts} has no effect in {space}, where every start is the mean: remove it")
    if request.noise_maps is not None and not latents.noise_sizes:
        raise ConfigError(f"noise_maps={request.noise_maps} has no effect, because this generator has no noise: remove it")
    pictures, output = check_project(str(request.project), request.output_path(condition, run_dir), command)
    projector = Projector(
        latents, distance().to(latents.device), space,
        steps=STEPS[space] if request.steps is None else request.steps,
        restarts=RESTARTS[space] if request.restarts is None else request.restarts,
        optimises_noise=bool(latents.noise_sizes) and request.noise_maps != "fixed",
        seed=request.seed, row=condition.row,
    )  # fmt: skip
    return lambda record: project_files(
        projector, pictures, pixels, output, measures=measures, batch_size=request.batch_size, model=model, record=record
    )


def _traversal(
    request: LatentsRequest, latents: GeneratorLatents, condition: Condition, output: Path, model: str
) -> Callable[[Record], None]:
    if request.layers is not None:
        check_layers("layers", request.layers, latents)
    known = None if request.directions in METHODS else load_directions(str(request.directions), latents, model)
    codes = _codes(request, latents, condition, request.num_images, model)
    traversal = Traversal(_value(request, "strength"), _value(request, "frames"), request.layers)
    count = request.num_directions

    def write(record: Record) -> None:
        found = known
        if found is None:
            found = find_directions(
                str(request.directions), latents, _USUAL["num_directions"] if count is None else count,  # type: ignore[arg-type]
                seed=request.seed, row=condition.row, layers=request.layers,
            )  # fmt: skip
        write_directions(
            latents, codes, found[slice(count)], traversal, output, batch_size=request.batch_size, model=model, record=record
        )

    return write


def _codes(
    request: LatentsRequest, latents: GeneratorLatents, condition: Condition, count: int | None, model: str
) -> LatentCodes:
    """Return the latents to mix or move, on the CPU: those of the file, or of the seed's first images."""
    if request.latents is not None:
        return load_codes("latents", request.latents, latents, model)[slice(0, count)]
    indices = range(int(_USUAL["num_images"]) if count is None else count)
    drawn = latents.draw(indices, request.seed)
    drawn |= {key: value.to(latents.device) for key, value in repeated(condition.row, len(indices)).items()}
    space = W if latents.is_style_based else Z
    return latents.codes(drawn, space, 1.0 if request.truncation is None else request.truncation).to_cpu()


def _value(request: LatentsRequest, key: str) -> Any:
    value = getattr(request, key)
    return _USUAL[key] if value is None else value
