"""genimg-sample: images from a checkpoint, of chosen classes or captions, or on the way between latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.reconstruct import pixel_format, reconstruct, require_one
from genimg.config.compose import require_all_values
from genimg.config.instantiate import Config
from genimg.errors import ConfigError
from genimg.inference.conditions import KEYS, Condition, find_conditions, name_of_label
from genimg.inference.image_files import existing, read_resized
from genimg.inference.sample import Sampler
from genimg.inference.sample_files import Archive, Files, Sink
from genimg.methods.base import Method
from genimg.methods.latent import interpolate
from genimg.training.device import choose_device
from genimg.types import Batch
from genimg.utils.files import atomically
from genimg.utils.images import class_rows, grid, to_float, to_uint8, write_png
from genimg.utils.outputs import Record, exif_of, record_of, require_own_file, stamp_of
from genimg.utils.paths import expanded, relative

log = logging.getLogger(__name__)

_COMMAND = "genimg-sample"
_TOLD = ("num_images", "seed", "label", "text", "truncation", "noise", "near", "spread", "reconstruct")  # beside the samples
_MOST_SHOWN = 256  # images in a grid
_EXCLUDE = {"reconstruct": ("near", "interpolate", "truncation", "noise"), "near": ("interpolate", "truncation", "noise")}
_MOST_COLUMNS = 16  # in a grid with a row for each condition
_USUAL_SPREAD = 0.5  # standard deviations of the prior, around an image
_OF_WAYS = {"frames": 8, "frames_per_second": 12}  # what null stands for


def sample(composed: DictConfig) -> None:
    """Write generated images and a grid of them, or a way between them as a picture and an animation."""
    require_all_values(composed)
    options: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    _settle_ways(options)
    _check(options)
    checkpoint = TrainedCheckpoint.of_command(options)
    path, config = checkpoint.path, checkpoint.config
    device = choose_device(options["device"])
    method = checkpoint.method(device)
    if method.translates:
        raise ConfigError(f"ckpt={options['ckpt']}: this model translates images: use genimg-translate")
    method.before_sampling()
    conditions = find_conditions(options, method, checkpoint.class_names)
    default = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = (expanded("output", options["output"]) if options["output"] else default / _name(options, conditions)).resolve()
    if options["reconstruct"] is not None:
        log.info("from %s, trained on %d images", path, checkpoint.images)
        reconstruct(method, config["data"], options, conditions, folder, device, _record(options, checkpoint))
        return
    near = None if options["near"] is None else _near(options, method, config["data"], conditions)
    if options["interpolate"] is not None:
        _require_one_condition(options, method)
    maker = Sampler(
        method,
        device,
        options["seed"],
        options["batch_size"],
        options["truncation"],
        options["noise"],
        near,
        options["spread"] or 0.0,
    )
    if maker.truncation is not None:
        method.truncated(maker.draw(range(1)), maker.truncation)  # refuses before anything is written
    if maker.noise is not None:
        method.with_noise(maker.draw(range(1)), maker.noise)
    log.info("from %s, trained on %d images", path, checkpoint.images)
    if options["interpolate"] is not None:
        places = {condition.name: folder if len(conditions) == 1 else folder / condition.name for condition in conditions}
        for place in places.values():
            for file in _files_of_way(place):
                require_own_file(file, f"output={folder}")
        for condition in conditions:
            _write_way(maker, condition, places[condition.name], options)
    else:
        names = checkpoint.class_names
        record = _record(options, checkpoint)
        class_name = _class_name(options, method, names)
        sink = Archive(folder, record) if folder.suffix == ".npz" else Files(folder, class_name, record)
        require_own_file(_picture_of(folder), f"the grid of output={folder}")
        _write_images(maker, conditions, sink, options["num_images"])


def _near(options: Config, method: Method, data: Config, conditions: Sequence[Condition]) -> Tensor:
    """The image whose neighbourhood is asked for: [1, C, H, W] in [-1, 1].

    Raises:
        DataError: If it cannot be read.
        ConfigError: If the model encodes no images.
    """
    require_one(options, "near", method, conditions)
    file = existing("near", options["near"], "an image")
    if file.is_dir():
        raise ConfigError(f"near={options['near']} is a directory: give one image")
    image = to_float(read_resized(file, pixel_format(data))[None])
    drawn = method.draw(range(1), 0) | conditions[0].row
    device = next(method.parameters()).device
    method.nearby(image.to(device), {key: value.to(device) for key, value in drawn.items()}, 0.0)  # refuses before the work
    return image


def _record(options: Config, checkpoint: TrainedCheckpoint) -> Record:
    """What a folder or archive of samples says about itself."""
    chosen = {key: options[key] for key in _TOLD}
    return record_of(_COMMAND, checkpoint=str(checkpoint.path.resolve()), checkpoint_images=checkpoint.images, options=chosen)


def _picture_of(folder: Path) -> Path:
    """The grid beside a folder or archive."""
    return folder.with_name(folder.name.removesuffix(".npz") + ".png")


def _class_name(options: Config, method: Method, class_names: Sequence[str]) -> Callable[[int], str] | None:
    """Of a label, for directories; None where images lie together.

    Raises:
        ConfigError: If directories are asked for and there are no classes.
    """
    if not options["class_folders"]:
        return None
    if "label" not in method.batch_keys:
        raise ConfigError("class_folders=true needs a model with labels, and this one has none: remove it")
    return lambda label: name_of_label(label, method.num_classes, class_names)


def _settle_ways(options: Config) -> None:
    """Write what null stands for into the keys that belong to ``interpolate`` and to ``near``.

    Raises:
        ConfigError: If one of them is given without it.
    """
    if options["near"] is None and options["spread"] is not None:
        raise ConfigError(f"spread={options['spread']} has no effect without near=IMAGE: remove it")
    if options["near"] is not None and options["spread"] is None:
        options["spread"] = _USUAL_SPREAD
    for key, default in _OF_WAYS.items():
        if options[key] is None:
            options[key] = default
        elif options["interpolate"] is None:
            raise ConfigError(
                f"{key}={options[key]} has no effect on single images: remove it, or ask for a way between them with "
                "interpolate=linear or spherical"
            )


def _check(options: Config) -> None:
    """Refuse what no model can do.

    Raises:
        ConfigError: Naming key and value.
    """
    interpolation, truncation, speed = options["interpolate"], options["truncation"], options["frames_per_second"]
    least = {"num_images": 1 if interpolation is None else 2, "batch_size": 1, "frames": 2}
    for key, number in least.items():
        if options[key] < number:
            between = " to interpolate between them" if number == 2 and key == "num_images" else ""
            raise ConfigError(f"{key}={options[key]} must be {number} or more{between}")
    if options["near"] is not None and not options["spread"] >= 0:
        raise ConfigError(f"spread={options['spread']} must be a number of standard deviations, 0 or more")
    for one, others in _EXCLUDE.items():
        useless = next((other for other in others if options[other] is not None), None)
        if options[one] is not None and useless is not None:
            raise ConfigError(f"{useless}={options[useless]} has no effect with {one}=: remove one of them")
    archived = str(options["output"]).endswith(".npz")
    for one in ("reconstruct", "interpolate"):
        if options[one] is not None and (archived or options["class_folders"]):
            what = f"output={options['output']}" if archived else "class_folders=true"
            raise ConfigError(f"{what} is for single samples, not for {one}=: remove it")
    if archived and options["class_folders"]:
        raise ConfigError(f"class_folders=true has no effect on output={options['output']}, which holds labels: remove it")
    if truncation is not None and not truncation >= 0:
        raise ConfigError(f"truncation={truncation} must be a number, 0 or more, or null for none")
    if not 0 < speed <= 1000:
        raise ConfigError(f"frames_per_second={speed} must be a number above 0, at most 1000")


def _name(options: Config, conditions: Sequence[Condition]) -> str:
    """Of the folder, where none is given: different for whatever makes other images."""
    if options["reconstruct"] is not None:
        parts = ["reconstructions", Path(str(options["reconstruct"])).stem, conditions[0].name]
        return "-".join(part for part in parts if part)
    several = "-".join(condition.name for condition in conditions)[:80] if options["label"] is not None else "texts"
    parts = [f"samples-seed{options['seed']}", conditions[0].name if len(conditions) == 1 else several]
    parts += [f"truncation{options['truncation']:g}"] if options["truncation"] is not None else []
    parts += [f"noise-{options['noise']}"] if options["noise"] is not None else []
    parts += [f"near-{Path(str(options['near'])).stem}-{options['spread']:g}"] if options["near"] is not None else []
    parts += [options["interpolate"]] if options["interpolate"] is not None else []
    return "-".join(part for part in parts if part)


def _repeated(row: Batch, count: int) -> Batch:
    return {key: value.expand(count, *value.shape[1:]) for key, value in row.items()}


# Images, and a grid of them


def _write_images(maker: Sampler, conditions: Sequence[Condition], sink: Sink, num_images: int) -> None:
    shown = []
    with sink:
        for condition in conditions:
            place = "" if len(conditions) == 1 else f"{condition.name}/"
            kept: list[Tensor] = []

            def draw(indices: range, row: Batch = condition.row) -> Batch:
                return maker.draw(indices) | _repeated(row, len(indices))

            for indices, drawn, images in maker.make_all(num_images, draw, f"sampling {condition.name}".strip()):
                sink.add(place, indices, drawn, to_uint8(images))
                if indices.start < _MOST_SHOWN:
                    kept.append(images)
            shown.append(torch.cat(kept)[: _MOST_SHOWN if len(conditions) == 1 else _MOST_COLUMNS])
    log.info("%d images: %s", num_images * len(conditions), relative(sink.path))
    picture = _picture_of(sink.path)
    if maker.method.num_classes and not conditions[0].row:
        write_png(grid(_classes(maker, len(shown[0]))), picture, stamp_of(_COMMAND))
        log.info("grid, of images of its own, one class a row: %s", relative(picture))
    else:
        columns = None if len(conditions) == 1 else len(shown[0])
        write_png(grid(torch.cat(shown), columns), picture, stamp_of(_COMMAND))
        log.info("grid%s: %s", "" if columns is None else ", one condition a row", relative(picture))


def _classes(maker: Sampler, count: int) -> Tensor:
    """Images [rows, columns, C, H, W], with one class a row, at most ``count``."""
    rows = class_rows(count, maker.method.num_classes)
    labels = rows.flatten()

    def draw(indices: range) -> Batch:
        return maker.draw(indices) | {"label": labels[indices.start : indices.stop]}

    images = torch.cat([images for _, _, images in maker.make_all(len(labels), draw, "grid")])
    return images.unflatten(0, rows.shape)


# Ways between latents


def _require_one_condition(options: Config, method: Method) -> None:
    """Refuse to go from one class or caption to another.

    Raises:
        ConfigError: If there are conditions and none is asked for, or the method draws no latents.
    """
    for option, key in KEYS.items():
        if key in method.batch_keys and options[option] is None:
            raise ConfigError(
                f"interpolate={options['interpolate']} goes between latents, all with one {key}: say which, with {option}=..."
            )
    if "latent" not in method.draw(range(1), 0):
        raise ConfigError(f"interpolate={options['interpolate']}: a {type(method).__name__} has no latents: remove it")


def _files_of_way(path: Path) -> tuple[Path, Path]:
    """The picture and the animation."""
    picture, animation = (path.with_name(path.name + suffix) for suffix in (".png", ".webp"))
    return picture, animation


def _write_way(maker: Sampler, condition: Condition, path: Path, options: Config) -> None:
    """A closed loop through ``num_images`` latents: a picture with a row for each pair, and an animation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num_images, frames = options["num_images"], options["frames"]
    keys = maker.draw(range(num_images))["latent"]
    weights = torch.arange(frames) / frames
    spherical = options["interpolate"] == "spherical"
    ways = [interpolate(start, end, weights, spherical=spherical) for start, end in zip(keys, keys.roll(-1, 0), strict=True)]
    latents = torch.cat(ways)  # [num_images * frames, Z]
    row = {key: value[:1] for key, value in maker.draw(range(1)).items()} | condition.row

    def draw(positions: range) -> Batch:
        return _repeated(row, len(positions)) | {"latent": latents[positions.start : positions.stop]}

    made = maker.make_all(len(latents), draw, f"interpolating {condition.name}".strip())
    images = torch.cat([images for _, _, images in made])
    picture, animation = _files_of_way(path)
    write_png(grid(images, frames), picture, stamp_of(_COMMAND))
    _write_animation(to_uint8(images), animation, options["frames_per_second"])
    log.info("%d rows of %d images, from one latent to the next: %s", num_images, frames, relative(picture))
    log.info("animation: %s", relative(animation))


def _write_animation(images: Tensor, path: Path, frames_per_second: float) -> None:
    """uint8 [N, C, H, W] as a WebP without loss, which begins anew when it ends; the file appears whole or not at all."""
    arrays = images.permute(0, 2, 3, 1).numpy()  # [N, H, W, C]
    frames = [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
    with atomically(path) as temporary:
        frames[0].save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / frames_per_second),  # milliseconds
            loop=0,
            lossless=True,
            exif=exif_of(_COMMAND),
        )
