"""The entry points. Nothing heavy is imported before the config is composed, so help and completion answer at once."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genimg.paths import config_dir


def train() -> None:
    """genimg-train"""
    sys.argv[1:] = _continue_in_its_own_directory(sys.argv[1:])
    _run("train", lambda config: _commands().train(config))


def evaluate() -> None:
    """genimg-eval"""
    _run("eval", lambda config: _commands().evaluate(config))


def sample() -> None:
    """genimg-sample"""
    _run("sample", lambda config: _commands().sample(config))


def _commands() -> Any:
    from genimg import commands  # imports torch

    return commands


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    """Compose the config of ``name``, run ``task`` on it, and turn what a user can cause into one message."""
    OmegaConf.register_new_resolver("genimg.job_name", _job_name, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors pass to us instead of printing them in its own way
    decorate = hydra.main(version_base="1.3", config_path=config_dir(), config_name=name)
    debug = any(argument in ("debug=true", "debug=True") for argument in sys.argv[1:])
    try:
        decorate(task)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = _explain(error)
        if message is None or debug:
            traceback.print_exc()
        if message is not None:
            print(f"genimg-{name}: error: {message}", file=sys.stderr)
        sys.exit(1)


def _explain(error: Exception) -> str | None:
    """What to tell the user, or None for a bug of ours, whose traceback is the message."""
    from hydra.errors import HydraException

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config_error(error)
    if isinstance(error, ValueError | OSError):
        if isinstance(error, OSError) and error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the GPU's memory is full ({str(error).splitlines()[0]}): lower trainer.batch_size or data.image_size, or raise "
            "trainer.accumulation, which cuts each batch into smaller parts"
        )
    return str(error) if getattr(error, "is_users", False) else None


def _explain_config_error(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line, with the nearest name for an unknown key or option."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause: BaseException = error.__cause__ or error
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    text = "\n".join(lines)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown or ("is not in struct" in text and key):
        name = unknown.group(1) if unknown else str(key)
        return f"unknown key {name}{_nearest_key(name)}: see all keys with --cfg job"
    if re.search(r"Could not find '([^']+)'|In '([^']+)': Could not", text):
        option = re.search(r"Could not find '([^']+)'", text)
        available = [line for line in lines if not line.endswith(":") and "/" not in line and " " not in line]
        name = option.group(1) if option else ""
        group, _, choice = name.rpartition("/")
        return f"unknown option {group}={choice}{_nearest(choice, available)}: choose one of {', '.join(sorted(available))}"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} is required: set {missing.group(1)}=VALUE"
    return "; ".join(lines[:2])


def _nearest_key(name: str) -> str:
    """A hint from the keys of this command's own default config."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    groups = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z_/]+=[a-z0-9_]+", a) and "." not in a]
    command = "train" if "train" in Path(sys.argv[0]).name else "eval" if "eval" in Path(sys.argv[0]).name else "sample"
    GlobalHydra.instance().clear()
    for overrides in (groups, []):
        try:
            with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
                config = compose(command, overrides=[a for a in overrides if a.split("=")[0] != name])
                return _nearest(name, _keys(OmegaConf.to_container(config, resolve=False)))
        except Exception:
            continue
    return ""


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    names = [f"{prefix}{key}" for key in node]
    return names + [name for key, value in node.items() for name in _keys(value, f"{prefix}{key}.")]


def _nearest(word: str, words: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _continue_in_its_own_directory(arguments: list[str]) -> list[str]:
    """``resume=PATH`` continues in the run directory that PATH belongs to, unless another ``run_dir`` is given."""
    if any(argument.startswith("run_dir=") for argument in arguments):
        return arguments
    for argument in arguments:
        key, _, value = argument.partition("=")
        value = value.strip("'\"")
        if key == "resume" and value not in ("", "auto", "null"):
            path = Path(value)
            run_dir = path.parent if path.suffix == ".pt" else path
            run_dir = run_dir.parent if run_dir.name == "checkpoints" else run_dir
            return [*arguments, f"run_dir='{run_dir}'"]
    return arguments


def _job_name(number: int, overrides: list[str]) -> str:
    """A directory name for a job of a sweep that needs no quotes on a command line: 003_model-vae_optimizer.lr-1e-4."""
    words = [re.sub(r"[^A-Za-z0-9.+-]+", "-", override).strip("-") for override in overrides]
    return f"{int(number):03d}_{'_'.join(words)}"[:120].rstrip("_.-") if words else f"{int(number):03d}"
