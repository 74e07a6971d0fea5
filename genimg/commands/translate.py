"""genimg-translate: translate images with a checkpoint of a translation model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from omegaconf import DictConfig

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.model_options import listed_options
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema import Option, options_of
from genimg.config.schema.commands import Translate
from genimg.data.decode import checked_levels
from genimg.errors import ConfigError
from genimg.inference.image_files import checked_output, find_pictures, with_sizes
from genimg.inference.tiling import check_tiles
from genimg.inference.translate import chosen_direction, way_of_training
from genimg.inference.translate_files import halves, require_whole, translate_files, warn_of_unusual_sizes, with_fitting_masks
from genimg.inference.translate_labels import between_labels, image_translator
from genimg.methods.capabilities import Translates, TranslatesRandomly
from genimg.training.device import choose_device
from genimg.utils.mappings import flatten
from genimg.utils.numbers import require_least
from genimg.utils.outputs import record_of
from genimg.utils.paths import relative

log = logging.getLogger(__name__)

_COMMAND = "genimg-translate"
_RECORDED = (
    "input",
    "mask",
    "direction",
    "model_mode",
    "tile",
    "seed",
    "label_from",
    "label_to",
    "num_samples",
    "sampling",
)  # options written to genimg.json


def translate(composed: DictConfig) -> None:
    """Write the translation of every image of ``input``, and a grid that shows a few of them."""
    options, groups = read_options(composed, Translate, untrusted.GROUPS)
    _check(options)
    pictures = find_pictures(options.input)
    device = choose_device(options.device)
    named = flatten(groups) if groups else {}
    checkpoint = TrainedCheckpoint.open(options.ckpt, options.which, options.allow, named, weights=options.weights)
    data, facts = checkpoint.config["data"], checkpoint.facts
    own = [option.name for option in options_of(Translate)]
    method = between_labels(
        checkpoint.method(device), checkpoint.class_names, options.label_from, options.label_to, options.sampling, own
    )
    if not isinstance(method, Translates):
        raise ConfigError(f"ckpt={options.ckpt}: this model takes no input images: use genimg-sample")
    direction = chosen_direction(method, options.direction, way_of_training(data))
    if options.model_mode is not None:
        method.set_mode(options.model_mode)
    pictures = with_fitting_masks(pictures, method, options.mask)
    read = {"input": options.input, "mask": options.mask}
    output = checked_output(options.output, read, pictures, grid=options.grid, overwrite=options.overwrite,
                            command=_COMMAND)  # fmt: skip
    pictures = with_sizes(pictures)
    if options.half in ("left", "right"):
        pictures = halves(pictures, options.half, options.mask)
    elif options.half is None and str(data["_target_"]).endswith("paired.paired") and data.get("root") is not None:
        require_whole(pictures, facts, data["direction"])
    levels = checked_levels(data.get("range"))
    translator = image_translator(
        method, facts, data, device, direction=direction, tile=options.tile, overlap=options.overlap,
        batch_size=options.batch_size, seed=options.seed, num_samples=options.num_samples, sampling=options.sampling,
        other_options=own,
    )  # fmt: skip
    warn_of_unusual_sizes(translator, pictures, facts)
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    recorded = {key: getattr(options, key) for key in _RECORDED} | {"weights": checkpoint.weights_label}
    about = {"checkpoint": str(checkpoint.path.resolve()), "checkpoint_images": checkpoint.images, "options": recorded}
    translate_files(translator, pictures, levels, output, record_of(_COMMAND, **about), grid=options.grid)


def options_of_model(arguments: Sequence[str]) -> tuple[str, list[Option]]:
    """Return a heading and the sampling options of the model of ``ckpt=``, for --help."""
    return listed_options(arguments, (TranslatesRandomly,), "because its translations are not random")


def _check(options: Translate) -> None:
    """Check the options that do not depend on the model.

    Raises:
        ConfigError: If a path is empty, or a number is out of range.
    """
    for key in ("input", "output", "mask"):
        if getattr(options, key) == "":
            raise ConfigError(f"{key}= is not the name of a file or directory")
    require_least(1, batch_size=options.batch_size, num_samples=options.num_samples)
    check_tiles(options.tile, options.overlap)
