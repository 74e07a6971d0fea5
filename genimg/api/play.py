"""Serve a page for trying out a trained model."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import FrameType, MappingProxyType
from typing import Any

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.api.lookup import lookup_for
from genimg.errors import ConfigError
from genimg.methods.capabilities import Generates, TranslatesRandomly
from genimg.methods.sampling_options import chosen_options, sampling_options
from genimg.playground.model import PlayedModel
from genimg.playground.playground import Origin, Playground
from genimg.playground.server import PlaygroundServer
from genimg.training.device import choose_device
from genimg.training.ema import RAW
from genimg.types import height_width
from genimg.utils.paths import relative, run_directory_of
from genimg.utils.terminal import stop_signals

log = logging.getLogger(__name__)

_USUAL: Mapping[str, Any] = {"which": "last", "device": "auto", "allow": [], "weights": None}
_OWN = ("seed", "num_images")  # values at the start that are not sampling options


def play(
    path: str | os.PathLike[str],
    *,
    which: str = "last",
    weights: str | float | None = None,
    device: str = "auto",
    allow: Sequence[str] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
    start: Mapping[str, Any] = MappingProxyType({}),
    other_options: Sequence[str] = (),
    port: int | None = None,
    open_browser: bool = True,
) -> None:
    """Serve a page for trying out a trained model, on this machine only, until Ctrl-C or another signal to stop.

    Args:
        path: A run directory, or a checkpoint.
        which, weights, device, allow: As in ``load``; the page can change the weights.
        named: Machine-local settings of the checkpoint's config, by dotted key.
        start: Values at the start, by name: ``seed``, ``num_images`` (up to 64), and sampling options of the model.
        other_options: Names of the caller's options, to suggest for a misspelt one.
        port: Port; None for 8765, or a free one if that is taken.
        open_browser: Whether to open the page in the browser, if there is a display.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
        ConfigError: If the model does not support a value of ``start``, or the port is taken.
    """
    opened = open_playground(
        path, which=which, weights=weights, device=device, allow=allow, named=named, start=start, other_options=other_options
    )
    with opened as playground, PlaygroundServer(playground, port) as server, _until_terminated():
        print(f"open {server.url} in a browser on this machine; stop with Ctrl-C", flush=True)
        if open_browser and _has_display():
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped")


def open_playground(
    path: str | os.PathLike[str],
    *,
    which: str = "last",
    weights: str | float | None = None,
    device: str = "auto",
    allow: Sequence[str] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
    start: Mapping[str, Any] = MappingProxyType({}),
    other_options: Sequence[str] = (),
) -> Playground:
    """Open a checkpoint for the page.

    Args:
        path, which, weights, device, allow, named, start, other_options: See ``play``.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
        ConfigError: If the model does not support a value of ``start``.
    """
    given = {"ckpt": os.fspath(path), "which": which, "device": device, "allow": list(allow), "weights": weights}
    checkpoint = TrainedCheckpoint.open(given["ckpt"], which, allow, named, weights=weights)
    log.info("from %s, trained on %d images", relative(checkpoint.path), checkpoint.images)
    arguments = {key: each for key, each in given.items() if key not in _USUAL or each != _USUAL[key]}
    arguments |= {f"++{key}": value for key, value in named.items()}
    playground = Playground(_origin(checkpoint, arguments), start)
    _check(playground.model, {key: each for key, each in start.items() if key not in _OWN}, other_options)
    return playground


def _origin(checkpoint: TrainedCheckpoint, arguments: Mapping[str, Any]) -> Origin:
    """Return where the model comes from.

    Args:
        checkpoint: The opened checkpoint.
        arguments: Options that select it, by name, without defaults.
    """
    config = checkpoint.config
    device = choose_device(arguments.get("device", "auto"))
    allow = arguments.get("allow", ())

    def load(weights: str | float) -> PlayedModel:
        opened = checkpoint.with_weights(weights)
        method = opened.method(device)
        if isinstance(method, Generates):
            method.before_sampling()
        lookup = lookup_for(opened, method, device, allow)
        lookup = replace(lookup, model=cache(lookup.model))
        return PlayedModel(method, device, checkpoint.facts, config["data"], checkpoint.class_names, lookup)

    weights = dict.fromkeys([*checkpoint.state["averages"], RAW, checkpoint.weights])
    height, width = height_width(checkpoint.facts.image_size)
    facts = {
        "checkpoint": str(relative(checkpoint.path)), "trained on": f"{checkpoint.images:,} images",
        "image size": f"{width} × {height}", "device": str(device),
    }  # fmt: skip
    title = run_directory_of(checkpoint.path.parent.resolve()).name or checkpoint.path.name
    described = [(each, "raw: those of the last step" if each == RAW else f"average: {each}") for each in weights]
    return Origin(title, facts, arguments, described, checkpoint.weights, load)


def _check(model: PlayedModel, options: Mapping[str, Any], others: Sequence[str]) -> None:
    """Check the sampling options at the start.

    Raises:
        ConfigError: If the model does not have such an option, or does not support a value.
    """
    if isinstance(model.method, Generates):
        chosen_options(model.method, options, model.lookup, others)
    elif isinstance(model.method, TranslatesRandomly):
        model.method.check_options(sampling_options(model.method, options, others))
    elif options:
        name = next(iter(options))
        raise ConfigError(f"unknown key {name}: a {type(model.method).__name__} has no sampling options", key=name)


def _has_display() -> bool:
    """Return whether a browser would open in a window; a browser in the terminal would take the terminal over."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _until_terminated() -> Iterator[None]:
    """Turn the signals that stop programs into KeyboardInterrupt, so that temporary files are removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # others cannot handle signals
        yield
        return
    former = {number: signal.signal(number, interrupt) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
