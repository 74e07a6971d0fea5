"""genimg-play: try out a trained model on a page in the browser."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from genimg.api.play import play as serve
from genimg.commands.model_options import listed_options
from genimg.config import untrusted
from genimg.config.options import read_options
from genimg.config.schema import Option, options_of
from genimg.config.schema.commands import Play
from genimg.methods.capabilities import Generates, TranslatesRandomly
from genimg.utils.mappings import flatten


def play(composed: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    options, groups = read_options(composed, Play, untrusted.GROUPS)
    serve(
        options.ckpt, which=options.which, weights=options.weights, device=options.device, allow=options.allow,
        named=flatten(groups) if groups else {}, port=options.port, open_browser=options.open_browser,
        start={"seed": options.seed, "num_images": options.num_images, **options.sampling},
        other_options=[option.name for option in options_of(Play)],
    )  # fmt: skip


def options_of_model(arguments: Sequence[str]) -> tuple[str, list[Option]]:
    """Return a heading and the sampling options of the model of ``ckpt=``, for --help."""
    return listed_options(arguments, (Generates, TranslatesRandomly), "because its images are not random")
