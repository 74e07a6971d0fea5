"""Records of a run in trackio."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genimg.errors import ConfigError, first_line
from genimg.training.recorder import Outcome
from genimg.training.trackers import Tracker, new_identifier
from genimg.utils.mappings import flatten

_LONGEST = 100  # characters of a directory's name in that of a record


class TrackioRecorder(Tracker):
    """Recorder for trackio, which keeps its records on this machine unless a Space is given.

    trackio has no status of a run, so a failed run gets an alert. The number of images seen is its step. A continued run
    continues its record.

    Args:
        project: Project that lists the run.
        group: Name under which several runs are grouped; None for none.
        space: Hugging Face Space that receives the records; None keeps them on this machine.

    Raises:
        ConfigError: If trackio is not installed.
    """

    package = "trackio"

    def __init__(self, project: str, group: str | None, space: str | None) -> None:
        super().__init__()
        self._settings = {"project": project, "group": group, "space_id": space}

    def begin(self, run_dir: Path, config: Mapping[str, Any], known: str | None) -> str:
        trackio = self._trackio = importlib.import_module("trackio")
        # Runs are continued by their name, so it must be unique, and stay the same if the directory is renamed.
        name = known or f"{re.sub(r'[^A-Za-z0-9_-]+', '-', run_dir.name)[:_LONGEST]}-{new_identifier()}"
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in flatten(config).items()}
        try:
            with _silent():
                self._run = trackio.init(**self._settings, name=name, config=plain, resume="allow", embed=False)
        except Exception as error:
            raise ConfigError(f"trackio cannot start a run ({first_line(error)})", "choose another logger") from error
        return name

    def location(self, run_dir: Path) -> tuple[str, str]:
        # As trackio.init does, which prefers a Space.
        if space := self._settings["space_id"] or os.environ.get("TRACKIO_SPACE_ID"):
            return f"https://huggingface.co/spaces/{space}", ""
        if os.environ.get("TRACKIO_SERVER_URL"):
            return "the server of TRACKIO_SERVER_URL", ""  # the URL may hold a token
        return str(self._trackio.TRACKIO_DIR), f"trackio show --project {shlex.quote(str(self._settings['project']))}"

    def send_scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=images)

    def send_picture(self, step: int, images: int, name: str, picture: Any) -> None:
        self._run.log({f"pictures/{name}": self._trackio.Image(picture)}, step=images)

    def end(self, outcome: Outcome) -> None:
        with _silent():
            if outcome == "failed":
                self._run.alert(title="the training has failed", level=self._trackio.AlertLevel.ERROR)
            self._trackio.finish()  # also forgets the run, which would be finished again at exit


def _silent() -> contextlib.AbstractContextManager[object]:
    """Return a context that discards what trackio prints."""
    return contextlib.redirect_stdout(io.StringIO())
