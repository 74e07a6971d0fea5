"""Records of a run in Weights & Biases, in addition to those in its directory."""

from __future__ import annotations

import importlib
import importlib.util
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from genimg.errors import ConfigError, first_line
from genimg.utils.files import atomically
from genimg.utils.regular_files import read_regular

_ID = "wandb-id.txt"  # in the run directory; a resumed run continues the same record
_MOST_BYTES = 1000  # of that file


class WandbRecorder:
    """Recorder for Weights & Biases; see configs/logger/wandb.yaml for the settings.

    Args:
        project, entity, group, tags: Where the run is listed.
        mode: ``online`` or ``offline``.

    Raises:
        ValueError: If the mode is unknown.
        ConfigError: If wandb is not installed.
    """

    def __init__(self, project: str, entity: str | None, group: str | None, tags: Sequence[str], mode: str) -> None:
        if mode not in ("online", "offline"):
            raise ValueError(f"mode={mode} must be online or offline")
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("the package wandb is not installed", "pip install 'genimg[wandb]', or choose another logger")
        self._settings = {"project": project, "entity": entity, "group": group, "tags": list(tags), "mode": mode}
        self._run: Any = None

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start the record, or continue that of an earlier launch.

        Args:
            run_dir: Run directory; its name becomes the record's name.
            config: Resolved config.

        Raises:
            ConfigError: If wandb refuses, for example without a login, or the file that holds the record's ID is damaged.
        """
        wandb = importlib.import_module("wandb")
        identifier = _identifier(run_dir)
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

    def scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Record numbers by name."""
        self._run.log({**values, "images": images}, step=step)

    def picture(self, step: int, images: int, name: str, picture: Tensor) -> None:
        """Record a uint8 picture [C, H, W]."""
        shown = self._wandb.Image(picture.permute(1, 2, 0).squeeze(-1).cpu().numpy())
        self._run.log({f"pictures/{name}": shown, "images": images}, step=step)

    def close(self) -> None:
        """Send remaining records and finish the run."""
        self._run.finish()


def _identifier(run_dir: Path) -> str:
    """Return the ID of a run's record; create one if there is none.

    Raises:
        ConfigError: If the file that holds the ID is damaged.
    """
    path = run_dir / _ID
    try:
        content = read_regular(path, below=run_dir, most=_MOST_BYTES)
    except FileNotFoundError:
        identifier = secrets.token_hex(8)
        with atomically(path) as temporary:
            temporary.write_text(identifier + "\n", encoding="utf-8")
        return identifier
    identifier = content.decode(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", identifier):
        raise ConfigError(f"{path} holds no valid wandb run ID", "remove it to start a new wandb run")
    return identifier
