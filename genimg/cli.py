"""The entry points. Nothing heavy is imported before the config is composed, so help and completion are fast."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import genimg
from genimg.commands.arguments import (
    arguments_of_rank,
    continued_in_its_own_directory,
    in_hydras_order,
    value_of,
    with_run,
    with_runs,
)
from genimg.commands.failures import Failure, end, leave
from genimg.config import help, resolvers
from genimg.config.additional_extractors import with_additional_extractors
from genimg.config.messages import explain_flag
from genimg.config.resumed_keys import with_keys_of_run
from genimg.config.sampling_arguments import with_open_sampling, with_sampling_options
from genimg.errors import ConfigError
from genimg.utils.paths import config_dir
from genimg.utils.terminal import is_terminal, protect_standard_streams
from genimg.utils.torchrun import rank_of_torchrun


def train() -> None:
    """genimg-train"""
    with _command(
        "train", "train.train", rewrite=lambda words: arguments_of_rank(continued_in_its_own_directory(words))
    ) as run:
        run()


def evaluate() -> None:
    """genimg-eval"""
    with _command("eval", "evaluate.evaluate") as run:
        run()


def sample() -> None:
    """genimg-sample"""
    with _command("sample", "sample.sample", rewrite=with_sampling_options, model_help="sample.options_of_model") as run:
        run()


def latents() -> None:
    """genimg-latents"""
    with _command("latents", "latents.latents") as run:
        run()


def translate() -> None:
    """genimg-translate"""
    rewrite = partial(with_sampling_options, command="translate")
    with _command("translate", "translate.translate", rewrite=rewrite, model_help="translate.options_of_model") as run:
        run()


def play() -> None:
    """genimg-play"""
    rewrite = partial(with_sampling_options, command="play")
    with _command("play", "play.play", rewrite=rewrite, model_help="play.options_of_model") as run:
        run()


def features() -> None:
    """genimg-features"""
    with _command("features", "features.train_features") as run:
        run()


def prepare() -> None:
    """genimg-prepare"""
    with _command("prepare", "prepare.prepare") as run:
        run()


def augment() -> None:
    """genimg-augment"""
    with _command("augment", "augment.augment", config="augment_files") as run:  # configs/augment/ is a group of genimg-train
        run()


def report() -> None:
    """genimg-report"""
    with _command("report", "report.report", rewrite=with_runs) as run:
        run()


def export() -> None:
    """genimg-export"""
    with _command("export", "export.export") as run:
        run()


def verify() -> None:
    """genimg-verify"""
    with _command("verify", "verify.verify", rewrite=with_run) as run:
        run()


def _greet(name: str) -> None:
    """Write a line before the slow imports, so a user sees within a second that the command has started.

    It goes to standard error, and only if that is a terminal: pipes and logs stay as they are. Hydra's flags that only print
    something, such as --cfg and -sc, have no such line.
    """
    flags = [word for word in sys.argv[1:] if word.startswith("-") and word not in ("-m", "--multirun")]
    if not flags and is_terminal(sys.stderr) and rank_of_torchrun() == 0:
        print(f"genimg-{name}: starting (loading PyTorch takes a few seconds)", file=sys.stderr, flush=True)


def _member(dotted: str) -> Callable[..., Any]:
    """Import a function below ``genimg.commands``, only when it is needed, because its module imports torch."""
    module, _, name = dotted.partition(".")
    member: Callable[..., Any] = getattr(importlib.import_module(f"genimg.commands.{module}"), name)
    return member


@contextlib.contextmanager
def _command(
    name: str,
    function: str,
    *,
    config: str | None = None,
    rewrite: Callable[[Sequence[str]], list[str]] | None = None,
    model_help: str | None = None,
) -> Iterator[Callable[[], Any]]:
    """Yield a function that composes the config and runs a command. An error that a user can cause ends in one message.

    Args:
        name: Name of the command, without genimg-.
        function: Module and name, below ``genimg.commands``, of the function that is called with the config.
        config: Name of the command's primary config; None if it is ``name``.
        rewrite: Function that turns arguments of the command line into arguments that Hydra understands.
        model_help: Module and name of the function that returns the options of the model of ``ckpt=`` for --help.
    """
    protect_standard_streams()
    primary = config or name
    failures: list[Failure] = []

    def task(composed: DictConfig) -> Any:
        """Run the command. The error of a single run is hidden from Hydra, because Hydra would print its own lines about it."""
        directories.task_begins()
        try:
            return _member(function)(composed)
        except Exception as error:
            config = HydraConfig.get()
            is_job = config.mode == RunMode.MULTIRUN
            failures.append(Failure.of_task(error, composed, int(config.job.num) if is_job else None))
            if is_job:
                raise

    try:
        if "--version" in sys.argv[1:]:
            yield partial(print, f"genimg {genimg.__version__}")
            return
        typed = sys.argv[1:]
        rewritten = typed if rewrite is None else rewrite(typed)
        rewritten = with_keys_of_run(rewritten) if name == "train" else rewritten
        sys.argv[1:] = in_hydras_order(with_additional_extractors(with_open_sampling(rewritten)))
        if help.is_requested(typed):
            of_model = _member(model_help)(typed) if model_help and value_of("ckpt", typed) else None
            yield partial(print, help.page(primary, sys.argv[1:], of_model=of_model))
            return
        if message := explain_flag(primary, sys.argv[1:]):
            raise ConfigError(message, key="")
        directories = resolvers.register()
        if name == "train":
            importlib.import_module("genimg.sweeps.plugins").register()
            os.environ[resolvers.COMMAND_LINE] = shlex.join(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
        logging.raiseExceptions = False  # a full disk must not bury the message under tracebacks of logging
        _greet(name)
        yield hydra.main(version_base="1.3", config_path=config_dir(), config_name=primary)(task)
        if failures:
            raise failures[0].error
    except KeyboardInterrupt:
        print(f"genimg-{name}: interrupted", file=sys.stderr)
        leave(130)
    except Exception as error:
        failure = next((each for each in failures if each.error is error), Failure(error))
        end(name, primary, failure, [each for each in failures if each.job is not None and failure.job is not None])
