"""The commands that README and docs show, and a process that runs them without importing torch for each."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genimg.utils.paths import config_dir

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_START = re.compile(r"(genimg-[a-z]+|(?:[A-Z_]+=\S+ )*torchrun)\s")
_END = re.compile(r"\s{2,}|\s+#")  # words behind two spaces or a hash explain the command
_PROCESS = subprocess.Popen
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


class Runner:
    """Runs commands in forks of one process that has imported everything.

    Args:
        environment: of that process.
        log: file for what it prints when it fails itself.
    """

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __call__(self, folder: Path, *words: str) -> tuple[int, str]:
        """Exit code and output of a command in ``folder``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(folder), *words]), file=self._process.stdin, flush=True)
        code, output = json.loads(self._process.stdout.readline())
        return code, output

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


class Forked:
    """A process that is a fork of this one, for ``python -m genimg.X ARGUMENTS``: what a queue of jobs needs of ``Popen``."""

    def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.clear()
            os.environ.update(env)
            _leave_with(["genimg-" + command[2].removeprefix("genimg."), *command[3:]])

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _popen(command: list[str], **settings: Any) -> Any:
    """In the place of ``subprocess.Popen``, so that the jobs of a queue do not import torch each."""
    if command[1:3] == ["-m", "genimg.train"]:
        return Forked(command, stdout=settings["stdout"], env=settings["env"])
    return _PROCESS(command, **settings)


def _leave_with(words: list[str]) -> None:
    """Run a command in this process, and end it with the command's exit code."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton

    from genimg import cli

    GlobalHydra.instance().clear()
    Singleton._instances.pop(HydraConfig, None)
    sys.argv = words
    name = words[0].removeprefix("genimg-")
    try:
        getattr(cli, {"eval": "evaluate"}.get(name, name))()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    import gc
    import importlib
    import pkgutil
    import tempfile

    import torch
    import torchvision.datasets.cifar
    from hydra.core.plugins import Plugins
    from PIL import Image

    import genimg.commands

    for module in pkgutil.iter_modules(genimg.commands.__path__):
        importlib.import_module(f"genimg.commands.{module.name}")
    torch.set_num_threads(1)
    torchvision.datasets.cifar.check_integrity = lambda path, md5=None: Path(path).is_file()  # the stand-in has other digests
    subprocess.Popen = _popen  # type: ignore[assignment,misc]
    Plugins.instance()  # looks for plugins, as the next line does, which would else be done in every fork
    Image.init()
    gc.freeze()  # so that no fork walks through what is here already, and copies it
    for request in sys.stdin:
        folder, *words = json.loads(request)
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                _leave_with(words)
            _, status = os.waitpid(pid, 0)
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)


if __name__ == "__main__":
    _serve()
