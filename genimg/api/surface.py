"""genimg-eval surface=...: quality and cost of a checkpoint's images over sampling options and averages of the weights."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.evaluate_request import Request
from genimg.api.inputs import Side, title
from genimg.api.lookup import lookup_for
from genimg.errors import CheckpointError, ConfigError, DataError, UserError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.timed_images import TimedImages
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates
from genimg.methods.options import OtherModel
from genimg.methods.sampling_options import Lookup, looked_up, sampling_options
from genimg.reporting.surface import FILE, Point, Surface, as_csv, described, differing, read_surface, table
from genimg.reporting.surface_chart import write_picture
from genimg.training.device import describe_hardware
from genimg.utils.distributed import broadcast_object, rank
from genimg.utils.files import alone_in, atomically, check_writable, sha256_of, write_json
from genimg.utils.outputs import require_own_file, stamp_of
from genimg.utils.paths import relative, run_directory_of
from genimg.utils.progress import Progress
from genimg.utils.regular_files import UnsafeFileError
from genimg.utils.type_hints import as_written
from genimg.utils.words import nearest, quoted

log = logging.getLogger(__name__)

_WEIGHTS = "weights"
_OF_SURFACE = ("surface", "output", "provenance")  # options that the command of a single point does not have
_PLAIN = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class _Planned:
    """A point to measure.

    Attributes:
        setting: Values of the axes.
        checkpoint: The checkpoint with the point's weights.
        sampling: Values that replace those of the evaluation's sampling options, with models and labels looked up.
        options: All options and the name of the weights.
    """

    setting: dict[str, Any]
    checkpoint: TrainedCheckpoint
    sampling: dict[str, Any]
    options: dict[str, Any]


def measure_surface(
    request: Request,
    checkpoint: TrainedCheckpoint,
    method: Method,
    evaluator: Evaluator,
    real: Side,
    held_out: DatasetImages | None,
    device: torch.device,
) -> None:
    """Measure every point of the option ``surface`` that has not been measured yet; write and print the surface.

    Args:
        request: The options.
        checkpoint: The checkpoint, with the weights for points that do not choose any.
        method: Its model, on the device.
        evaluator: Evaluator of all points, which computes the statistics of the real images once.
        real: The real images.
        held_out: Images that were not used in training, if there are any.
        device: Device of the model.

    Raises:
        ConfigError: If a point is invalid (checked first), or the file's points were measured with other settings.
    """
    axes: dict[str, list[Any]] = request.options.surface
    output = request.options.output
    path = Path(output) if output is not None else run_directory_of(checkpoint.path) / FILE
    planned = _plan(axes, request, checkpoint, evaluator, method, lookup_for(checkpoint, method, device, request.options.allow))
    protocol = _protocol(request, checkpoint, evaluator, real)
    with _locked(path):
        surface = broadcast_object(_started(path, protocol, evaluator) if rank() == 0 else None)
        missing = [each for each in planned if surface.point_with(each.options) is None]
        log.info("surface: %d points, %d of them already measured", len(planned), len(planned) - len(missing))
        weights = checkpoint.weights_label
        for each in Progress(missing, desc="surface", unit="point"):
            if each.checkpoint.weights_label != weights:
                method, weights = each.checkpoint.method(device), each.checkpoint.weights_label
            surface = surface.with_point(_measured(each, request, evaluator, method, real, held_out, device))
            if rank() == 0:
                _write(surface, path)
    if rank() == 0:
        for cut in (".csv", ".png"):
            if not path.with_suffix(cut).is_file():
                _write(surface, path)  # an earlier command was killed before it wrote them
        log.info("%s, trained on %d images", checkpoint.path, checkpoint.images)
        log.info("%s", table(surface))
        log.info("written to %s; each of its commands measures one point again", relative(path.with_suffix(".csv")))
        log.info("picture:   %s", relative(path.with_suffix(".png")))
        if not evaluator.bootstrap:
            log.info("for 95 % intervals, add bootstrap=200")


def _plan(
    axes: Mapping[str, list[Any]],
    request: Request,
    checkpoint: TrainedCheckpoint,
    evaluator: Evaluator,
    method: Method,
    lookup: Lookup,
) -> list[_Planned]:
    """Check all points, and return them grouped by the weights that they use."""
    assert isinstance(method, Generates)
    names = [field.name for field in dataclasses.fields(method.sampling_options)]
    for name in axes:
        if name not in (_WEIGHTS, *names):
            raise ConfigError(
                f"surface.{name} is not an axis{nearest(name, (_WEIGHTS, *names))}",
                f"choose weights, or a sampling option of this model, a {type(method).__name__}: {', '.join(names) or 'none'}",
                key=f"surface.{name}",
            )
        fixed = request.options.weights if name == _WEIGHTS else request.options.sampling.get(name)
        if fixed is not None:
            option = name if name == _WEIGHTS else f"sampling.{name}"
            raise ConfigError(f"{option}={as_written(fixed)} and surface.{name} both set it: remove one of them", key=option)
    chosen = {value: _with_weights(checkpoint, value) for value in axes.get(_WEIGHTS, [])}
    planned: dict[str, _Planned] = {}
    order = sorted(axes, key=lambda name: name != _WEIGHTS)
    found = {name: [(value, _found(method, name, value, lookup)) for value in axes[name]] for name in order}
    for pairs in itertools.product(*found.values()):
        given = dict(zip(order, pairs, strict=True))
        setting = {name: given[name][0] for name in axes}
        sampling = {name: given[name][1] for name in axes if name != _WEIGHTS}
        own = chosen[setting[_WEIGHTS]] if _WEIGHTS in axes else checkpoint
        try:
            options = sampling_options(method, {**evaluator.sampling, **sampling})
            method.check_options(options)
        except ConfigError as error:
            if len(sampling) == 1:
                raise error.mounted("surface", sampling) from error
            raise ConfigError(f"surface: {described(setting)} is invalid: {error.problem}", error.fix, key="surface") from error
        recorded = {key: _as_scalar(value) for key, value in vars(options).items()}
        point = _Planned(setting, own, sampling, {**recorded, _WEIGHTS: own.weights_label})
        twin = planned.setdefault(repr(point.options), point)
        if twin is not point:
            raise ConfigError(
                f"surface: {described(twin.setting)} and {described(setting)} are the same point: remove a value", key="surface"
            )
    return list(planned.values())


def _found(method: Generates, name: str, value: Any, lookup: Lookup) -> Any:
    """Return the value of an axis, or the model or label that it refers to."""
    try:
        return looked_up(method, {name: value}, lookup)[name]
    except UserError as error:
        raise error.mounted("surface", [name]) from error


def _as_scalar(value: Any) -> Any:
    """Return an option's value for the records: a model by its name and digest."""
    return f"{value} (SHA-256 {value.record['sha256'][:12]})" if isinstance(value, OtherModel) else value


def _with_weights(checkpoint: TrainedCheckpoint, weights: Any) -> TrainedCheckpoint:
    """Return the checkpoint with other weights, after checking that they can be loaded."""
    try:
        if (weights is not None and not isinstance(weights, str | int | float)) or isinstance(weights, bool):
            raise ConfigError(f"weights={as_written(weights)} must be a name or a number", key=_WEIGHTS)
        changed = checkpoint.with_weights(weights)
        changed.require_weights()
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"surface: {error.problem}", error.fix, key="surface.weights") from error
    return changed


def _protocol(request: Request, checkpoint: TrainedCheckpoint, evaluator: Evaluator, real: Side) -> dict[str, Any]:
    """Return, as primitives, everything that the values of all points depend on except hardware and versions."""
    measured = {"": evaluator.main, **evaluator.additional}
    compared = real.compared
    return {
        "checkpoint": {"images": checkpoint.images, "sha256": sha256_of(checkpoint.path)},
        "extractors": {name or "main": each.extractor.describe() for name, each in measured.items()},
        "metrics": {
            name or "main": {
                key: {k: v for k, v in vars(metric).items() if v is not None} for key, metric in each.metrics.items()
            }
            for name, each in measured.items()
        },
        "real": compared.describe() if isinstance(compared, DatasetImages) else compared.images,
        "named": None if request.real is None else title(request.real),
        "num_images": evaluator.num_images,
        "num_real": evaluator.num_real,
        "seed": evaluator.seed,
        "bootstrap": evaluator.bootstrap,
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Prevent two commands from measuring the same surface, because one would lose the other's points."""
    if rank() > 0:
        yield
        return
    check_writable("output", path)
    message = f"{relative(path)} is in use by another genimg-eval: wait until it ends, or choose another output"
    with alone_in(path.with_name(f".{path.name}.lock"), message):
        yield


def _started(path: Path, protocol: dict[str, Any], evaluator: Evaluator) -> Surface:
    """Return the surface in a file, or an empty one if there is no such file.

    Raises:
        ConfigError: If the file is not a surface, or its points were measured with other settings.
        UnsafeFileError: If it is a link or not a regular file.
    """
    try:
        found = read_surface(path, below=path.parent)
    except FileNotFoundError:
        _require_own_table(path.with_suffix(".csv"))
        require_own_file(path.with_suffix(".png"), f"the picture of {path.name}")
        return Surface(evaluator.primary, evaluator.higher_is_better, protocol)
    except UnsafeFileError as error:
        raise ConfigError(f"{error}", "choose another output", key="output") from error
    if found is None:
        raise ConfigError(
            f"{relative(path)} is not a surface that genimg-eval wrote", "move it away, or choose another output", key="output"
        )
    if keys := list(differing(found.protocol, protocol)):
        raise ConfigError(
            f"the points in {relative(path)} were measured with other settings ({', '.join(keys[:4])})",
            "choose another output, or move the file away",
            key="output",
        )
    return found


def _require_own_table(path: Path) -> None:
    """Refuse to replace a table that does not belong to a surface."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        titles = next(csv.reader(file), [])
    if titles[-2:] != ["pareto_optimal_in", "command"]:
        raise ConfigError(
            f"the surface would replace {relative(path)}, which genimg did not write: move that away, or choose another output",
            key="output",
        )


def _measured(
    point: _Planned,
    request: Request,
    evaluator: Evaluator,
    method: Method,
    real: Side,
    held_out: DatasetImages | None,
    device: torch.device,
) -> Point:
    """Measure one point, exactly as the command in its record does."""
    assert isinstance(method, Generates)
    names, label = point.checkpoint.class_names, point.checkpoint.weights_label
    made = evaluator.generated(method, device, names, weights=label, sampling={**evaluator.sampling, **point.sampling})
    timed = TimedImages(made)
    try:
        result = evaluator.compare(real.compared, timed, device, held_out=held_out, published=real.published)
    except UserError as error:
        raise type(error)(f"surface: {described(point.setting)}: {error.problem}", error.fix, key="surface") from error
    metrics = {name: value for name, value in result.values.items() if math.isfinite(value)}
    if evaluator.primary not in metrics:
        raise DataError(f"surface: {described(point.setting)}: {evaluator.primary} is not finite", key="surface")
    return Point(
        setting=point.setting,
        options=point.options,
        metrics=metrics,
        intervals={name: bounds for name, bounds in result.intervals.items() if name in metrics},
        num_evaluations=getattr(made.options, "num_evaluations", None),
        seconds_per_image=timed.seconds_per_image,
        command=_command(point.setting, request.overrides),
        provenance={**result.provenance, "hardware": describe_hardware(device)},
    )


def _command(setting: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return the command that measures one point, from the arguments of the command that measures the surface."""
    given = [override for override in overrides if _key(override) not in _OF_SURFACE]
    given = [override.lstrip("+") if _key(override) == "sampling" else override for override in given]
    own = [f"{name if name == _WEIGHTS else f'sampling.{name}'}={_in_hydras_grammar(value)}" for name, value in setting.items()]
    return shlex.join(["genimg-eval", *given, *own])


def _key(override: str) -> str:
    return re.split(r"[.@=]", override.lstrip("+~"))[0]


def _in_hydras_grammar(value: Any) -> str:
    is_word = isinstance(value, str) and not (_PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false"))
    return quoted(value) if is_word else as_written(value)


def _write(surface: Surface, path: Path) -> None:
    """Write the surface, its table and its picture, each atomically."""
    write_json(path, surface.record())
    with atomically(path.with_suffix(".csv")) as temporary:
        temporary.write_text(as_csv(surface), encoding="utf-8", newline="")
    with atomically(path.with_suffix(".png")) as temporary:
        write_picture(surface, temporary, stamp_of("genimg-eval"))
