"""Answer the page's requests: describe the model, keep uploaded pictures, and make pictures."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from genimg.errors import ConfigError
from genimg.playground.controls import Control, Values, checked_values
from genimg.playground.model import MOST_BYTES_OF_UPLOAD, Made, PlayedModel, Uploads
from genimg.playground.shell import command_line
from genimg.playground.tasks import PageTask, tasks_of
from genimg.playground.turns import Turns
from genimg.utils.words import nearest

_FILES = ("near", "reconstruct", "input", "mask")  # options of commands that name uploaded pictures
_LONGEST_PAGE = 64  # characters of a page's identifier
_MOST_MODELS = 2  # of different weights, kept in memory


@dataclass(frozen=True)
class Origin:
    """Where the model comes from.

    Attributes:
        title: Name of the run or checkpoint.
        facts: Facts that the page shows, by title.
        arguments: Options that select the checkpoint, by name, for commands.
        weights: Names or lengths of the checkpoint's weights, each with a description.
        usual_weights: The weights to start with.
        load: Function that loads the model with weights from ``weights``.
    """

    title: str
    facts: Mapping[str, str]
    arguments: Mapping[str, Any]
    weights: Sequence[tuple[str | float, str]]
    usual_weights: str | float
    load: Callable[[str | float], PlayedModel]


class Playground:
    """A model and the requests that pages make to it.

    It is a context manager, which keeps uploaded pictures in a temporary directory.

    Args:
        origin: Where the model comes from.
        start: Values of controls at the start that differ from the defaults, by name.

    Raises:
        ConfigError: If the model can do nothing that the page offers, or has no control of a name in ``start``.
    """

    def __init__(self, origin: Origin, start: Mapping[str, Any]) -> None:
        self._origin = origin
        self._load = lru_cache(_MOST_MODELS)(origin.load)
        model = self.model
        weights = Control(
            name="weights", label="Weights", kind="choice", default=origin.usual_weights, choices=origin.weights, is_rare=True
        )
        of_all = [weights] if len(origin.weights) > 1 else []
        self._tasks = {task.name: (task, [*task.controls, *of_all]) for task in tasks_of(model, start)}
        if not self._tasks:
            what = f"a {type(model.method).__name__} neither generates nor translates images"
            raise ConfigError(f"ckpt={origin.arguments['ckpt']}: {what}", key="ckpt")
        self._method = type(model.method).__name__

    def __enter__(self) -> Self:
        self.turns, self.uploads = Turns(), Uploads()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.turns.close()
        self.uploads.__exit__(kind, error, trace)

    @property
    def model(self) -> PlayedModel:
        """The model with the weights to start with."""
        return self._load(self._origin.usual_weights)

    def describe(self) -> dict[str, Any]:
        """Return the model's facts, tasks and controls as JSON values."""
        tasks = [
            {"name": task.name, "title": task.title, "is_live": task.is_live, "controls": [vars(each) for each in controls]}
            for task, controls in self._tasks.values()
        ]
        facts = {"model": self._method, **self._origin.facts}
        return {"title": self._origin.title, "facts": facts, "tasks": tasks, "most_bytes": MOST_BYTES_OF_UPLOAD}

    def make(self, request: Any) -> dict[str, Any]:
        """Make pictures.

        Args:
            request: Parsed JSON: ``page``, the identifier of the page; ``task``; and ``values`` of the task's controls.

        Returns:
            The pictures, the command that makes the same files, and the time in seconds.

        Raises:
            ReplacedError: If a newer request of the page arrives, or the page stops it.
            UserError: If a value is invalid, or the model does not support it.
        """
        page, name = page_of(request), request.get("task")
        if unknown := request.keys() - {"page", "task", "values"}:
            raise ConfigError(f"unknown key {min(unknown)[:80]}", "the keys are page, task, values", key=min(unknown)[:80])
        if not isinstance(name, str) or name not in self._tasks:
            close = nearest(name[:80], self._tasks) if isinstance(name, str) else ""
            raise ConfigError(f"task={str(name)[:80]} is unknown{close}: choose one of {', '.join(self._tasks)}", key="task")
        task, controls = self._tasks[name]
        values = checked_values(controls, request.get("values", {}))
        before = time.monotonic()
        made = self.turns.run(page, lambda: self._make(task, values))
        return {**self._answer(made, values.get("weights")), "seconds": time.monotonic() - before}

    def _make(self, task: PageTask, values: Values) -> Made:
        model = self._load(values.get("weights", self._origin.usual_weights))
        return task.make(model, {key: value for key, value in values.items() if key != "weights"}, self.uploads)

    def _answer(self, made: Made, weights: str | float | None) -> dict[str, Any]:
        files = [each for key in _FILES if (each := made.options.get(key)) is not None]
        options = dict(self._origin.arguments)
        if files:  # the command must run in their folder
            options["ckpt"] = os.path.abspath(os.path.expanduser(options["ckpt"]))
        if weights not in (None, self._origin.usual_weights):
            options["weights"] = weights
        return {
            "pictures": [{**vars(each), "png": base64.b64encode(each.png).decode("ascii")} for each in made.pictures],
            "command": command_line(f"genimg-{made.command}", options | dict(made.options)),
            "files": files,
        }


def page_of(request: Any) -> str:
    """Return the identifier of the page that sends a request.

    Raises:
        ConfigError: If there is none.
    """
    page = request.get("page") if isinstance(request, dict) else None
    if not isinstance(page, str) or not 0 < len(page) <= _LONGEST_PAGE:
        raise ConfigError(f"page must be the identifier of a page, text of 1 to {_LONGEST_PAGE} characters", key="page")
    return page
