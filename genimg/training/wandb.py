"""Records of a run in Weights & Biases."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genimg.errors import ConfigError, first_line
from genimg.training.recorder import Outcome
from genimg.training.trackers import Tracker, new_identifier
from genimg.utils.paths import relative


class WandbRecorder(Tracker):
    """Recorder for Weights & Biases; see configs/logger/wandb.yaml for the settings.

    Args:
        project, entity, group, tags: Where the run is listed.
        mode: ``online`` or ``offline``.

    Raises:
        ValueError: If the mode is unknown.
        ConfigError: If wandb is not installed.
    """

    package = "wandb"

    def __init__(self, project: str, entity: str | None, group: str | None, tags: Sequence[str], mode: str) -> None:
        if mode not in ("online", "offline"):
            raise ValueError(f"mode={mode} must be online or offline")
        super().__init__()
        self._settings = {"project": project, "entity": entity, "group": group, "tags": list(tags), "mode": mode}
        self._run: Any = None

    def begin(self, run_dir: Path, config: Mapping[str, Any], known: str | None) -> str:
        wandb = importlib.import_module("wandb")
        identifier = known or new_identifier()
        try:
            self._run = wandb.init(
                **self._settings, id=identifier, resume="allow", name=run_dir.name, dir=str(run_dir),
                config=dict(config), settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except wandb.errors.Error as error:
            reason = first_line(error).rstrip(".")
            raise ConfigError(
                f"wandb cannot start a run ({reason})",
                "log in with `wandb login`, or use the offline mode and run `wandb sync` later",
            ) from error
        self._wandb = wandb
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")
        return identifier

    def location(self, run_dir: Path) -> tuple[str, str]:
        if self._run.url:
            return self._run.url, ""
        folder = str(relative(run_dir / "wandb"))  # offline runs have no URL
        return folder, f"wandb sync {shlex.quote(folder)}/offline-run-*"

    def send_scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "images": images}, step=step)

    def send_picture(self, step: int, images: int, name: str, picture: Any) -> None:
        self._run.log({f"pictures/{name}": self._wandb.Image(picture), "images": images}, step=step)

    def end(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=int(outcome == "failed"))  # a stopped run can be continued
