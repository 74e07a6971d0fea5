"""Commands of genimg as a shell would run them, in forks of one process that has imported torch and genimg already.

Importing them takes four seconds of a processor, longer than most commands that are tested. Each command has a process of its
own, with its own output, working directory and environment; what is to be seen of imports or of torch's threads needs a fresh
interpreter and no fork.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_PROCESS = subprocess.Popen
_SECONDS = 600  # after which a command is killed


class ForkServer:
    """A process that runs commands in forks of itself.

    Args:
        environment: Of that process; None takes this one's.
        log: File for what it prints when it fails itself; None prints it.
        stand_ins: Whether CIFAR-10's files may be others than the original ones, and jobs of sweeps are forks, too.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, log: Path | None = None, *, stand_ins: bool = False
    ) -> None:
        self.environment = {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"}
        self._log = None if log is None else log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__, *(["stand_ins"] if stand_ins else [])],
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def run(
        self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, merged: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, such as ``genimg-train model=dcgan``, and return its exit code and what it has printed.

        Args:
            words: The command line.
            cwd: Working directory; None takes this process's.
            env: Environment; None takes this process's.
            merged: Whether stdout holds what goes to stderr, too, in the order of printing.
        """
        request = {
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "merged": merged,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process that runs commands has ended"
        return subprocess.CompletedProcess(words, *json.loads(answer))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._log is not None:
            self._log.close()


@cache
def _server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


def run_command(
    command: str, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``genimg-COMMAND ARGUMENTS`` in this process's environment and working directory, unless others are given."""
    return _server().run(f"genimg-{command}", *arguments, cwd=cwd, env=env)


def run_commands(
    commands: Iterable[Sequence[str]], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> tuple[list[int], str]:
    """Run commands, such as ``["train", "model=vae"]``, one after the other; return exit codes and all that is printed."""
    codes, output = [], ""
    for command, *arguments in commands:
        done = run_command(command, *arguments, cwd=cwd, env=env)
        codes.append(done.returncode)
        output += f"{done.stdout}{done.stderr}-- {command} {' '.join(arguments)} -> {done.returncode}\n"
    return codes, output


class _Forked:
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
        return _Forked(command, stdout=settings["stdout"], env=settings["env"])
    return _PROCESS(command, **settings)


def mode_of(get_mode: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Hydra.get_mode`` without what takes a third of a short command's time.

    Hydra composes the config twice, first to see whether it says ``hydra.mode``. That is known of a command line without flags
    and sweeps.
    """

    def mode(*arguments: Any, **keywords: Any) -> Any:
        is_sweep = any(word.startswith("-") or "hydra" in word or "sweep" in word for word in sys.argv[1:])
        return get_mode(*arguments, **keywords) if is_sweep else None

    return mode


def _leave_with(words: list[str]) -> None:
    """Run a command in this process, and end it with the command's exit code."""
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton

    from genimg import cli

    GlobalHydra.instance().clear()
    Singleton._instances.pop(HydraConfig, None)
    Hydra.get_mode = mode_of(Hydra.get_mode)  # type: ignore[method-assign]
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
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(*, stand_ins: bool) -> None:
    import gc
    import importlib
    import pkgutil
    import signal

    import torch
    import torchvision.datasets.cifar
    from hydra.core.plugins import Plugins
    from PIL import Image

    import genimg.commands

    for module in pkgutil.iter_modules(genimg.commands.__path__):
        importlib.import_module(f"genimg.commands.{module.name}")
    torch.set_num_threads(1)
    if stand_ins:
        torchvision.datasets.cifar.check_integrity = lambda path, md5=None: Path(path).is_file()  # which has other digests
        subprocess.Popen = _popen  # type: ignore[assignment,misc]
    Plugins.instance()  # looks for plugins, as the next line does, which would else be done in every fork
    Image.init()
    gc.freeze()  # so that no fork walks through what is here already, and copies it
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                signal.alarm(_SECONDS)
                os.chdir(request["cwd"])
                os.environ.clear()
                os.environ.update(request["env"])
                sys.path[:0] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2((output if request["merged"] else errors).fileno(), 2)
                _leave_with(request["words"])
            _, status = os.waitpid(pid, 0)
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)


if __name__ == "__main__":
    _serve(stand_ins=sys.argv[1:] == ["stand_ins"])
