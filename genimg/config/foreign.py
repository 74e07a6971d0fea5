"""Translate options of other programs to the keys of genimg that do the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from genimg.utils.words import quoted

_Answer = tuple[str, Callable[[str], str]]
"""A key that must exist for the answer to apply, and a function from the user's value (empty if none) to the answer."""

_DEPTH = 2  # maximum number of parts of a key; deeper keys belong to one object, where the same word can mean something else


def _value(key: str, otherwise: str = "VALUE") -> _Answer:
    return key, lambda value: f"{key}={value or otherwise}"


def _duration(key: str, unit: str) -> _Answer:
    return key, lambda value: f"{key}='{value if re.fullmatch(r'[0-9.]+[kM]?', value) else 'N'} {unit}'"


def _run_dir(value: str) -> str:
    return f"run_dir={_plain(f'outputs/{value}')}" if value else "run_dir=DIR"


def _gpu(value: str) -> str:
    return f"device=cuda:{value if value.isdigit() else 'N'}"


def _gpu_or_several(value: str) -> str:
    return f"{_gpu(value)} (several GPUs: torchrun, docs/distributed.md)"


def _precision(value: str) -> str:
    return f"precision={'fp32' if value.lower() in ('false', '0', 'no') else 'bf16'}"


def _root(value: str) -> str:
    return f"data=NAME data.root={_plain(value) if value else 'DIR'}"


def _plain(value: str) -> str:
    """Return the value, quoted for the shell if necessary."""
    return value if re.fullmatch(r"[\w./:-]+", value) else f'"{quoted(value)}"'


def _several(names: str, *answers: _Answer) -> dict[str, tuple[_Answer, ...]]:
    return dict.fromkeys(names.split(), answers)


_KEYS = {
    **_several("epochs num_epochs max_epochs n_epochs", _duration("trainer.duration", "epochs")),
    **_several("steps max_steps num_steps train_steps iterations num_iterations", _duration("trainer.duration", "steps")),
    **_several("lr learning_rate", _value("optimizer.lr")),
    **_several("batch_size bs", _value("trainer.batch_size"), _value("batch_size")),
    **_several("img_size image_size resolution size", _value("data.image_size")),
    **_several("gpu cuda gpus num_gpus", ("trainer", _gpu_or_several), ("device", _gpu)),
    **_several("ema ema_decay ema_beta", ("ema.exponential.half_life", lambda value: "ema.exponential.half_life='N images'")),
    **_several("z_dim nz latent_dim", _value("model.latent.dim"), _value("model.latent_dim")),
    **_several("dataset", _value("data", "NAME"), ("real", lambda value: f"real={value or 'NAME'}")),
    **_several("dataroot data_root data_dir data_path", ("data", _root)),
    **_several("num_workers workers", _value("data.num_workers")),
    **_several("amp fp16 bf16 mixed_precision", ("precision", _precision)),
    **_several("save_every save_interval ckpt_every", _duration("trainer.checkpoint_interval", "steps")),
    **_several("fid_every eval_every eval_interval", _duration("evaluation.interval", "steps")),
    **_several("n_critic", _value("model.generator_interval")),
    **_several("resume_from", ("resume", lambda value: f"resume={_plain(value) if value else 'RUN'}")),
    **_several(
        "checkpoint ckpt",
        ("ckpt", lambda value: f"ckpt={_plain(value) if value else 'RUN'}"),
        ("resume", lambda value: f"resume={_plain(value) if value else 'RUN'}"),
    ),
    **_several("name exp_name run_name", ("run_dir", _run_dir)),
    **_several("wandb use_wandb", ("logger", lambda value: "logger=wandb")),
    **_several("mlflow use_mlflow", ("logger", lambda value: "logger=mlflow")),
}


def answer(key: str, value: str, known: Collection[str]) -> str | None:
    """Return the arguments that replace an option of another program.

    Args:
        key: The unknown key, such as ``epochs`` or ``trainer.epochs``.
        value: The user's value; empty if there is none.
        known: Keys of the command.

    Returns:
        One or more ``key=value``, with the user's value where it fits; None if the key is not in the table.
    """
    parts = key.lower().split(".")
    if len(parts) == 2 and parts[0] in ("sampler", "sampling"):  # not those of the training, such as its steps
        return f"evaluation.sampling.{parts[1]}={value}" if "evaluation.sampling" in known else None
    answers = _KEYS.get(parts[-1], ()) if len(parts) <= _DEPTH else ()
    return next((make(value) for wanted, make in answers if wanted in known and wanted != key), None)


def flag(arguments: list[str], own: Collection[str]) -> tuple[str, str, str] | None:
    """Return the first unknown option in argparse style, such as ``--lr 0.1`` or ``--lr=0.1``.

    Args:
        arguments: Arguments of the command line.
        own: Options of the program, such as ``--help``.

    Returns:
        The option as written, its key, such as ``lr``, and its value (empty if there is none); None without such an option.
    """
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not re.fullmatch(r"--[A-Za-z][\w.-]*", name) or any(option.startswith(name) for option in own):
            continue
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        if not equals and following and not following.startswith("--") and "=" not in following:
            value, argument = following, f"{argument} {following}"
        return argument, name.removeprefix("--").replace("-", "_"), value
    return None
