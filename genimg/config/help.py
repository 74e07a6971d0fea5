"""Print the commands' --help from the schema and the config files, without composing a config."""

from __future__ import annotations

import functools
import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from genimg.config.messages import is_choice
from genimg.config.schema import COMMANDS, GROUPS, OPEN, Option, options_of
from genimg.utils.paths import config_dir

_ROOT_GROUPS = ("experiment", "local")  # the files of these groups set keys of other groups
_WIDEST_TYPE, _WIDEST_DEFAULT, _NARROWEST_HELP, _NARROWEST_PAGE = 22, 20, 32, 72  # characters


def is_requested(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(argument in ("-h", "--help") for argument in arguments)


def page(
    name: str, arguments: Sequence[str], width: int | None = None, *, of_model: tuple[str, Sequence[Option]] | None = None
) -> str:
    """Return the help of a command: examples, its options, and the options of the chosen groups.

    Args:
        name: Name of the primary config.
        arguments: Arguments of the command line, which choose the groups.
        width: Width of the page in characters; None uses the terminal's.
        of_model: Heading and options of the model that the arguments name; None if they name no model.
    """
    width = max(width or shutil.get_terminal_size().columns, _NARROWEST_PAGE)
    files = _Files([config_dir(), *_own_directories(arguments)])
    config = files.load(Path(config_dir(), f"{name}.yaml"))
    texts = config["hydra"]["help"]
    examples, *remarks = texts["template"].split("\n\n")
    parts = [_fill(texts["header"], width), textwrap.indent(examples, "  "), *(_fill(each, width) for each in remarks)]
    parts += _sections("", options_of(COMMANDS[name]), width)
    if of_model is not None:
        title, rows = of_model
        parts += _sections("", rows, width, title) if rows else [title]
    defaults = [(str(key), value) for entry in config["defaults"] if isinstance(entry, dict) for key, value in entry.items()]
    groups = {key.removeprefix("optional "): value for key, value in defaults if not key.startswith("override ")}
    choices = files.choices(groups, arguments)
    changed = [files.read(group, choices.get(group)).values for group in _ROOT_GROUPS if group in groups]
    for group in sorted(groups.keys() & GROUPS.keys(), key=list(GROUPS).index):
        read = files.read(group, choices[group])
        if read.schema is not None:
            values = functools.reduce(lambda one, other: one | other.get(group, {}), changed, read.values)
            options = (_with_default(option, values) for option in options_of(read.schema))
            parts += _sections(f"{group}.", options, width, f"{group}={choices[group]}: {_doc(read.schema)}")
    if (search := choices.get("sweep")) is not None:
        parts += _search(str(search), files.read("sweep", str(search)).values, width)
    if listed := {group: names for group in sorted(groups) if (names := files.names(group))}:
        parts.append(_listed(listed, width))
        parts.append(_fill(f"The options of another choice, such as {_example(groups)}, are listed by {texts['app_name']} "
                           f"{_example(groups)} --help. --cfg job prints the composed config, --config-dir DIR adds your own "
                           "files, and --hydra-help lists the flags of Hydra.", width))  # fmt: skip
    return "\n\n".join(parts)


@dataclass(frozen=True)
class _Read:
    """The contents of a group's option and of the files that it extends.

    Attributes:
        values: Values by key.
        schema: Included schema; None if there is none.
        overrides: Choices for other groups, in descending order of precedence.
    """

    values: dict[str, Any]
    schema: type | None
    overrides: list[tuple[str, Any]]


class _Files:
    """The config files of several directories.

    Args:
        directories: Directories of configs. If several contain the same file, the first one takes precedence.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = [Path(directory) for directory in directories]

    def names(self, group: str) -> list[str]:
        """Return the options of a group."""
        found = {path.stem for folder in self._directories for path in (folder / group).glob("*.yaml")}
        return sorted(filter(is_choice, found))

    @staticmethod
    def load(path: Path) -> dict[str, Any]:
        """Return the contents of a file, unresolved."""
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # type: ignore[return-value]

    def read(self, group: str, name: Any) -> _Read:
        """Return the contents of an option and of the files that it extends; empty if it has no file."""
        paths = [path for folder in self._directories if (path := folder / group / f"{name}.yaml").is_file()]
        if not paths:
            return _Read({}, None, [])
        own = self.load(paths[0])
        entries = own.pop("defaults", [])
        values: dict[str, Any] = {}
        schema: type | None = None
        overrides: list[tuple[str, Any]] = []
        for entry in reversed(entries):
            if isinstance(entry, dict):
                overrides += [(key.removeprefix("override /").partition("@")[0], each) for key, each in entry.items()]
            elif included := re.fullmatch(r"/_schema/(\w+)/(\w+)@_here_", entry):
                schema = (GROUPS[included[1]] | OPEN.get(included[1], {}))[included[2]]
            elif entry != "_self_":
                base = self.read(group, entry)
                values, schema, overrides = base.values | values, schema or base.schema, overrides + base.overrides
        return _Read(values | own, schema, overrides)

    def choices(self, groups: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
        """Return the option of each group that the command line or else the config files choose.

        Args:
            groups: Default options by group, in the order of the defaults list; later files take precedence.
            arguments: Arguments of the command line.
        """
        given = (argument.partition("=") for argument in arguments)
        chosen: dict[str, Any] = {key: value for key, _, value in given if key in groups}
        for group in reversed(groups):
            for other, value in self.read(group, chosen.get(group, groups[group])).overrides:
                chosen.setdefault(other, value)
        return groups | chosen


def _search(name: str, values: dict[str, Any], width: int) -> Iterator[str]:
    """Yield the settings that a predefined search varies, with their values."""
    sweeper = values.get("hydra", {}).get("sweeper", {})
    settings: dict[str, Any] = sweeper.get("params", {})
    if not settings:
        return
    if "n_trials" in sweeper:
        title = f"sweep={name}: a search of {sweeper['n_trials']} runs over"
    else:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create()
        parsed = (parser.parse_override(f"{key}={value}") for key, value in settings.items())
        count = math.prod(len(list(each.sweep_string_iterator())) if each.is_sweep_override() else 1 for each in parsed)
        title = f"sweep={name}: {count} runs, one for each combination of"
    rows = [_fill(f"  {key}: {value}", width, "      ") for key, value in settings.items()]
    yield "\n".join([title, *rows])


def _own_directories(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the values of --config-dir."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield value or following


def _with_default(option: Option, values: dict[str, Any]) -> Option:
    return replace(option, default=values[option.name]) if option.name in values else option


def _doc(schema: type) -> str:
    return (schema.__doc__ or "").partition("\n")[0]


def _example(groups: Iterable[str]) -> str:
    return "data=mnist" if "data" in groups else "evaluation=inception"


def _sections(prefix: str, options: Iterable[Option], width: int, title: str = "") -> Iterator[str]:
    """Yield a table of options for each heading."""
    rows: list[tuple[str, str, str, str]] = []
    for option in options:
        if option.heading and not prefix:
            if rows:
                yield _table(title, rows, width)
            title, rows = option.heading, []
        rows.append((prefix + option.name, option.type, _as_written(option.default), option.help))
    yield _table(title, rows, width)


def _table(title: str, rows: Sequence[tuple[str, str, str, str]], width: int) -> str:
    """Return aligned rows of key, type, default and help; on narrow terminals, the help is on separate lines."""
    keys, types, defaults, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    widths = [keys, min(types, _WIDEST_TYPE), min(defaults, _WIDEST_DEFAULT)]
    left = width - sum(widths) - 2 * 4
    is_narrow = left < _NARROWEST_HELP
    lines = [_fill(f"{title}:" if not title.endswith((".", ":")) else title, width)]
    for *cells, help_text in rows:
        columns = [_wrapped(cell, wide) for cell, wide in zip(cells, widths, strict=True)]
        columns += [] if is_narrow else [_wrapped(help_text, left)]
        for i in range(max(map(len, columns))):
            row = [column[i] if i < len(column) else "" for column in columns]
            padded = (cell.ljust(wide) for cell, wide in zip(row, [*widths, 0], strict=False))
            lines.append(("  " + "  ".join(padded)).rstrip())
        if is_narrow:
            lines += [f"      {line}" for line in _wrapped(help_text, width - 6)]
    return "\n".join(lines)


def _listed(options: dict[str, list[str]], width: int) -> str:
    """Return a wrapped line with the options of each group."""
    lines = [f"{group}: {', '.join(names)}" for group, names in options.items()]
    return "\n".join(["Groups (group=option):", *(_fill(line, width, "    ") for line in lines)])


def _fill(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _as_written(value: Any) -> str:
    """Return a default as it is written in a config file."""
    if value == MISSING:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return f"[{','.join(map(_as_written, value))}]"
    if environment := re.fullmatch(r"\$\{oc\.env:(\w+),(\w+)\}", str(value)):
        return f"${environment[1]} or {environment[2]}"
    if str(value).startswith("${genimg.new_run_dir:"):
        return "outputs/DATE/TIME_MODEL_DATA"
    return "null" if value is None else str(value)
