"""The commands that README and docs show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from omegaconf import OmegaConf

from genimg.utils.paths import config_dir

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_START = re.compile(r"(genimg-[a-z]+|(?:[A-Z_]+=\S+ )*torchrun)\s")
_END = re.compile(r"\s{2,}|\s+#")  # words behind two spaces or a hash explain the command
_WHOLE = re.compile(r".*(genimg-|-m genimg\.)[a-z]+ \S", re.DOTALL)


def commands_of(text: str) -> list[str]:
    """The command lines of a page, in its order and each once.

    They stand in fenced or indented blocks, there after ``$`` or nothing, and continued by backslashes; or, with at least one
    argument, as inline code. An inline ``eval "$(genimg-...)"`` is the command within.
    """
    found: list[tuple[int, str]] = []
    blocks = [match.span() for match in _FENCE.finditer(text)]
    joined = re.sub(r" *\\\n *", lambda match: " " + "\0" * (len(match[0]) - 1), text)  # at the same places as in the text
    for match in re.finditer(r"^.*$", joined, re.MULTILINE):
        line = match[0].replace("\0", "")
        is_block = line.startswith("    ") or any(start < match.start() < end for start, end in blocks)
        command = line.strip().removeprefix("$ ")
        if is_block and _START.match(command + " "):
            found.append((match.start(), _END.split(command, maxsplit=1)[0]))
    prose = _FENCE.sub(lambda match: "\n" * len(match[0]), text)
    prose = re.sub(r"^    .*$", lambda match: " " * len(match[0]), prose, flags=re.MULTILINE)
    for match in _CODE.finditer(prose):
        code = " ".join(match[1].split())
        code = re.sub(r'^eval "\$\((.*)\)"$', r"\1", code)
        if _START.match(code) and _WHOLE.match(code):
            found.append((match.start(), code))
    return list(dict.fromkeys(command for _, command in sorted(found)))


def choice(group: str, arguments: list[str], default: str) -> str:
    """What a command of genimg-train chooses of a group, itself or by its experiment; of a sweep, what stands there."""
    given = dict(each.split("=", 1) for each in arguments if "=" in each)
    if group in given:
        return given[group]
    return _of_experiment(given["experiment"], group) or default if "experiment" in given else default


def _of_experiment(experiment: str, group: str) -> str | None:
    path = Path(config_dir()) / "experiment" / f"{experiment}.yaml"
    for entry in OmegaConf.load(path).defaults if path.is_file() else []:
        if isinstance(entry, str) and entry != "_self_":
            return _of_experiment(entry, group)
        if not isinstance(entry, str) and f"override /{group}" in entry:
            return str(entry[f"override /{group}"])
    return None


def without_torchrun(command: str) -> list[str]:
    """Name and arguments of what runs; of a line of torchrun, of what each process of it runs, after its own are parsed."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[0] != "torchrun":
        return words
    from torch.distributed.run import parse_args

    words = [each for each in words if each != "..."]
    parsed = parse_args(words[1:])
    name = parsed.training_script
    return [name.replace("genimg.", "genimg-") if parsed.module else name, *parsed.training_script_args]
