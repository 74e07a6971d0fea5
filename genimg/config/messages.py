"""Turn exceptions that a user can cause into one clear message."""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, GrammarParseError, OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from genimg.config import foreign, schema
from genimg.config.resumed_keys import config_of_resumed, group_of
from genimg.config.sampling_arguments import WITH_MODEL_OPTIONS
from genimg.errors import UserError, innermost_module, is_batch_too_small, is_memory_full, is_worker_killed
from genimg.utils.paths import config_dir
from genimg.utils.type_hints import as_written
from genimg.utils.words import nearest, quoted

_FOLLOWS_DATA = "it follows the data now; remove it"
_FORMER = {
    r"data\.(num_classes|source_channels|target_channels)": _FOLLOWS_DATA,
    r"conditioning\.image_channels": "it follows conditioning.head now; remove it",
    r"model\.(a2b|b2a)": "set model.translator, which both directions share",
    r"model\.(a2b|b2a)\.\w+": "set model.translator.NAME, which both directions share",
    r"model\.discriminator_[ab]": "set model.discriminator, which both domains share",
    r"model\.discriminator_[ab]\.\w+": "set model.discriminator.NAME, which both domains share",
    r"model\.(\w+\.)*(image_size|channels|condition_channels|source_channels|target_channels|channels_a|channels_b|num_classes)":
        _FOLLOWS_DATA,
    r"conditioning\.\w+\.num_classes": _FOLLOWS_DATA,
    r"penalty\.r[12]\.image_size": _FOLLOWS_DATA,
    r"data\.placement": "it is called data.storage now",
    r"model\.(\w+\.)*smallest": "it is called bottom_size now",
    r"model\.ema_half_life": "set ema.exponential.half_life",
    r"model\.ema_ramp_up": "set ema.exponential.ramp_up",
    r"model\.sampled_weights": "set trainer.weights",
    r"model\.standing_batches": "it is called standing_stats_batches now",
    r"model\.augment": "it is called model.discriminator_augment now",
    r"augment\.(groups|target|interval|speed|policy|p)": "set discriminator_augment.NAME",
    r"data_augment": "it is called augment now",
    r"data_augment\.\w+": "set augment.NAME",
}  # fmt: skip
"""Patterns that match keys of earlier versions, each with a fix. NAME stands for the last part of the key."""

_FORMER_OPTIONS = {("augment", name): f"discriminator_augment={name}" for name in ("diffaugment", "ada", "r3gan")}
"""Groups and options of earlier versions, with the option that replaces them."""


def explain(error: Exception, command: str, arguments: list[str]) -> str | None:
    """Return the message for the user, or None for a bug, whose traceback is shown instead.

    Args:
        error: Exception that ended the command or the composition of its config.
        command: Name of the primary config.
        arguments: Arguments of the command line.
    """
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, UserError):  # from a launcher or sweeper
        return str(error.__cause__)
    if isinstance(error, UserError):
        unknown = re.match(r"unknown key ([\w.]+)", str(error))
        if unknown is None:
            return str(error)
        answer = _former_key(unknown[1]) or _foreign_key(unknown[1], command, arguments)
        return answer or f"{error}{_how_to_replace(unknown[1], arguments)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_config_error(error, command, arguments)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}: correct the YAML"
    if isinstance(error, OSError) and error.filename is not None:
        for key in ("run_dir", "output"):
            value = next((a.partition("=")[2].strip("'") for a in arguments if a.startswith(f"{key}=")), None)
            kinds = FileNotFoundError | NotADirectoryError | FileExistsError | PermissionError
            unusable = isinstance(error, kinds) or error.errno == errno.EROFS
            if unusable and value and str(error.filename).startswith(value):
                return f"{key}={value} cannot be written ({error.filename}: {error.strerror}): choose another {key}"
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and error.strerror == os.strerror(error.errno)
        fix = ": make room, or write to another disk" if is_full else ""
        return f"{error.filename}: {error.strerror}{fix}"
    in_hydra = isinstance(error, TypeError) and innermost_module(error).startswith("hydra.")  # a group that is a list of lists
    if in_hydra or str(error).startswith("Config group override must be a string"):  # Hydra does not name the group
        found = sorted(filter(None, map(_choice_that_is_no_name, arguments)), key=lambda pair: pair[1] == "null")
        key, value = found[0] if found else ("", "")
        if not key and in_hydra:
            return None
        if not key:
            return f"{error}: a group takes the name of one of its options"
        options = sorted(path.stem for path in Path(config_dir(), key).glob("*.yaml") if is_choice(path.stem))
        return f"unknown option {key}={value}: choose one of {', '.join(options)}"
    if is_memory_full(error):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "lower batch_size"
        if command == "train":
            fix = (
                "lower trainer.batch_size, data.image_size or the widths of the networks, or raise trainer.accumulation, "
                "which splits batches into microbatches"
            )
        return f"out of memory ({reason}): {fix}"
    if is_batch_too_small(error):
        fix = "raise trainer.batch_size, or lower trainer.accumulation" if command == "train" else "raise batch_size"
        return f"batch norm needs more than one value for each channel: {fix}"
    if is_worker_killed(error):
        reason = str(error).splitlines()[0].rstrip(". ")
        memory = "shared memory (/dev/shm)" if "shared memory" in str(error) else "memory"
        return f"a process that reads images has ended ({reason}), probably because {memory} ran out: lower data.num_workers"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"torch.compile failed ({reason}): performance.compile=false trains without it"
    return None


def explain_flag(command: str, arguments: list[str]) -> str | None:
    """Return a message about the first argument in argparse style, such as ``--lr 0.1``, or None if there is none.

    Args:
        command: Name of the primary config.
        arguments: Arguments of the command line.
    """
    if not any(argument.startswith("--") for argument in arguments):
        return None
    if (found := foreign.flag(arguments, get_args_parser()._option_string_actions)) is None:
        return None
    written, key, value = found
    rest = [argument for argument in arguments if not argument.startswith("--")]
    keys = _keys_of(command, key, rest)
    known = f"{key}={value or 'VALUE'}" if key in keys else foreign.answer(key, value, keys)
    how = f"set {known}" if known else f"--help lists the keys{nearest(key, keys)}"
    return f"{written}: arguments are written key=value, without dashes: {how}"


def _how_to_replace(key: str, arguments: list[str]) -> str:
    """Return how to remove a key that the YAML of a former ``_target_`` has; empty if the arguments set the key themselves."""
    node = key.rpartition(".")[0]
    typed = [argument.lstrip("+~").partition("=")[0] for argument in arguments]
    if key in typed or f"{node}._target_" not in typed:
        return ""
    return (
        f". The key belongs to the former {node}: delete it with '~{key}', or replace all of {node} with '~{node}' "
        f"'+{node}={{_target_: CLASS, NAME: VALUE}}'"
    )


def _former_key(key: str) -> str | None:
    """Return a message about a key of earlier versions, or None for any other key."""
    former = next((now for pattern, now in _FORMER.items() if re.fullmatch(pattern, key)), None)
    return former and f"{key} is a key of earlier versions: {former.replace('NAME', key.rpartition('.')[2])}"


def _foreign_key(key: str, command: str, arguments: list[str]) -> str | None:
    """Return a message about a key that other programs use, or None for any other key."""
    given = (argument.lstrip("+~").partition("=") for argument in arguments)
    value = next((value.strip("'\"") for name, _, value in given if name == key), "")
    answer = foreign.answer(key, value, _keys_of(command, key, arguments))
    return f"unknown key {key}: set {answer}" if answer else None


def is_choice(name: str) -> bool:
    """Return whether a file of a config group is an option and not a base that several options share."""
    return name.rpartition("_")[2] != "base"


def _explain_config_error(error: Exception, command: str, arguments: list[str]) -> str:
    """Return Hydra's or OmegaConf's message in one line, with the nearest name for an unknown key or option."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "\n".join(lines)
    # For a list such as penalty=[...], Hydra says "load" and lists no options.
    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if option:
        group, choice = option.groups()
        if now := _FORMER_OPTIONS.get((group, choice)):
            return f"{group}={choice} is an option of earlier versions: set {now}"
        options = lines[1:] if "find" in lines[0] else [path.stem for path in Path(config_dir(), group).glob("*.yaml")]
        available = [name for name in options if re.fullmatch(r"[\w.-]+", name) and is_choice(name)]
        known = f": choose one of {', '.join(sorted(available))}" if available else ""
        return f"unknown option {group}={choice}{nearest(choice, available)}{known}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, GrammarParseError):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}: correct the reference, which is written ${{KEY}}"
    if isinstance(cause, OmegaConfBaseException) and (refused := _explain_refused_value(cause, text, command)):
        return refused
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown.group(1).split("@")[0]
        given = next((each.partition("=")[2] for each in arguments if each.partition("=")[0] == key), None)
        if given is not None and schema.type_of(key, command) == "mapping":
            return f"{key}={given} has keys that {key} does not have yet: write {shlex.quote(f'++{key}={given}')}"
        return _explain_unknown_key(key, command, arguments)
    if twice := re.match(r"Multiple values for (\S+)\. ", text):
        return f"an option of {twice[1]} is chosen already: write {twice[1]}=NAME, without +"
    if "Ambiguous value for argument" in text:
        key, _, value = text.partition("'")[2].partition("\n")[0].rstrip("'").partition("=")
        one, several = f'{key}="{quoted(value)}"', f"'{key}=[{value}]'"
        return (
            f"{key}={value} has several values: write {one} for one string, {several} for a list, or add -m to sweep over them"
        )
    unreadable = next((a for a in arguments if not a.startswith("-") and not _can_be_read(a)), None)
    if unreadable is not None:
        key, equals, value = unreadable.partition("=")
        if not equals:
            return f"{unreadable!r} is not key=value; a value with spaces needs quotes: trainer.duration='25 epochs'"
        return f'the value of {key} has characters that must be quoted: write "{key}={quoted(value)}"'
    kept = re.search(r"Could not delete from config. '([^']+)' does not exist|Error merging override ~(\S+)$", text)
    if kept and schema.type_of(key := kept.group(1) or kept.group(2), command):
        return f"~{key} is not possible, because {key} must have a value: set {key}=VALUE"
    if kept and kept.group(1) and (node := kept.group(1).rpartition(".")[0]):
        return (
            f"~{kept.group(1)} is not possible, because the key is absent or null: remove it, or replace all of {node} with "
            f"'~{node}' '+{node}={{_target_: CLASS, NAME: VALUE}}'"
        )
    merged = re.search(r"Error merging override (\S.*)", text)
    if merged and "=" in merged[1]:
        key, _, value = merged[1].partition("=")
        return f"{key.lstrip('+')}={value} differs in type from the value that it replaces: --cfg job shows that value"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing.group(1)} is required: set {missing.group(1)}=VALUE"
    return "; ".join(lines[:2])


def _explain_refused_value(error: OmegaConfBaseException, text: str, command: str) -> str | None:
    """Explain a value of the wrong type or an unknown key in a group's file; return None for other errors."""
    key, file = error.full_key or "", re.search(r"In '([^']+)'", text)
    place = f" (in {file.group(1)})" if file else ""
    if isinstance(error, ValidationError) and (type := schema.type_of(key, command, error.object_type)):
        return f"{key}={as_written(error.value)} must be {schema.sentence(type)}{place}"
    if key == "evaluation.additional":
        return "this evaluation cannot be combined with others: choose it alone, or begin the list with one such as inception"
    if file and isinstance(error, ConfigKeyError | ConfigAttributeError):
        group, _, name = key.rpartition(".")
        kinds = (*schema.COMMANDS.values(), *(kind for kinds in schema.GROUPS.values() for kind in kinds.values()))
        known = [each.name for kind in kinds if kind is error.object_type for each in schema.options_of(kind)]
        hint = nearest(name, known).replace("mean '", f"mean '{group}.")
        return f"unknown key {key}{hint}{place}: {group} takes {', '.join(known)}" if known else None
    return None


def _explain_unknown_key(key: str, command: str, arguments: list[str]) -> str:
    if key.startswith("hydra."):
        ours = [f"hydra.{path.parent.name}.{name}" for path in Path(config_dir(), "hydra").glob("*/*.yaml")
                for name in map(str, OmegaConf.load(path))]  # fmt: skip
        return f"unknown key {key}{nearest(key, ours)}: --cfg hydra shows all keys of Hydra, its launcher and its sweeper"
    if message := _former_key(key) or _foreign_key(key, command, arguments):
        return message
    keys = _keys_of(command, key, arguments)
    if re.fullmatch(r"[a-z_]+", key) and key in keys and Path(config_dir(), key).is_dir():
        return f"{key} is a group: choose one of its options, {key}=NAME, or set single keys, {key}.KEY=VALUE"
    group, dot, name = key.rpartition(".")
    own = group_of(config_of_resumed(arguments), key) if command == "train" and dot else {}
    keys += [f"{group}.{each}" for each in own]
    siblings = [k.removeprefix(group + dot) for k in keys if k.startswith(group + dot) and "." not in k[len(group) + 1 :]]
    siblings = list(map(str, own)) or siblings  # those of the run, not those of the default groups
    if dot and group in keys:
        takes = (
            f"{group} takes {', '.join(k for k in siblings if k != '_target_')}"
            if siblings
            else f"{group} has no settings here"
        )
        hint = nearest(name, siblings).replace("mean '", f"mean '{group}.")
        return f"unknown key {key}{hint}: {takes}"
    same_name = [k for k in keys if k.rpartition(".")[2] == key and not k.startswith(("model.", "data."))]
    hint = f" (did you mean {same_name[0]!r}?)" if same_name else nearest(key, keys)
    of_model = ""
    if "." not in key and "sampling" in keys and command not in WITH_MODEL_OPTIONS:
        of_model = f"; a sampling option of the model is sampling.{key}=VALUE"
    return f"unknown key {key}{hint}: --cfg job shows all keys{of_model}"


def _choice_that_is_no_name(argument: str) -> tuple[str, str] | None:
    """Return the group and value of an argument such as ``model=3`` or ``debug=true``, else None."""
    key, _, value = argument.lstrip("+~").partition("=")
    is_group = re.fullmatch(r"[a-z_/]+", key) and Path(config_dir(), key).is_dir()
    parsed = OverridesParser.create().parse_override(argument).value() if is_group and _can_be_read(argument) else ""
    is_name = isinstance(parsed, str) or (isinstance(parsed, list) and all(isinstance(each, str) for each in parsed))
    return None if is_name else (key, value)


def _can_be_read(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _keys_of(command: str, unknown: str, arguments: list[str]) -> list[str]:
    """Return all keys of the config composed with this command line's group choices, or else with the defaults."""
    choices = [a for a in arguments if re.fullmatch(r"[a-z_/]+=[A-Za-z0-9_]+", a) and a.split("=")[0] != unknown]
    for overrides in (choices, []):
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
                return _flatten(OmegaConf.to_container(compose(command, overrides=overrides), resolve=False))
        except Exception:  # another mistake in the same command line; it is reported once this one is fixed
            continue
    return []


def _flatten(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    names = [f"{prefix}{key}" for key in node]
    return names + [name for key, value in node.items() for name in _flatten(value, f"{prefix}{key}.")]
