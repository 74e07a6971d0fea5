"""Base of the recorders that send a run's records to an experiment tracker, in addition to those in its directory."""

from __future__ import annotations

import importlib.util
import logging
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from genimg.errors import ConfigError, first_line
from genimg.training.recorder import Outcome
from genimg.utils.files import atomically
from genimg.utils.regular_files import read_regular

log = logging.getLogger(__name__)

_MOST_BYTES = 1000  # of the file that holds the ID


class Tracker(ABC):
    """A recorder whose service may fail while a run continues.

    An error of the service at the start is an error of the run. Later, the first error is logged and nothing more is sent: the
    training must not end because a server is down, and the run's own directory holds everything.
    """

    package: str
    """Name of the Python package, of the option of the group ``logger`` and of the extra that installs the package."""

    def __init__(self) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"the package {self.package} is not installed",
                f"pip install 'genimg[{self.package}]', or choose another logger",
            )
        self._is_lost = False

    def open(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start the record, or continue that of an earlier launch.

        Args:
            run_dir: Run directory; its name becomes the record's name.
            config: Resolved config.

        Raises:
            ConfigError: If the service refuses, or the file that holds the record's ID is damaged.
        """
        path = run_dir / f"{self.package}-id.txt"
        known = _read_identifier(path)
        identifier = self.begin(run_dir, config, known)
        if identifier != known:
            with atomically(path) as temporary:
                temporary.write_text(identifier + "\n", encoding="utf-8")
        place, command = self.location(run_dir)
        log.info("%s: records go to %s%s", self.package, place, f"; to see them: {command}" if command else "")

    def scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Record numbers by name."""
        self._try(lambda: self.send_scalars(step, images, values))

    def picture(self, step: int, images: int, name: str, picture: Tensor) -> None:
        """Record a uint8 picture [C, H, W]."""
        self._try(lambda: self.send_picture(step, images, name, picture.permute(1, 2, 0).squeeze(-1).cpu().numpy()))

    def close(self, outcome: Outcome) -> None:
        """Send remaining records and end the record with the run's outcome."""
        self._try(lambda: self.end(outcome))

    @abstractmethod
    def begin(self, run_dir: Path, config: Mapping[str, Any], known: str | None) -> str:
        """Start or continue the record, and return its ID.

        Args:
            run_dir, config: See ``open``.
            known: ID of the record of an earlier launch; None if there is none.

        Raises:
            ConfigError: If the service refuses.
        """

    @abstractmethod
    def location(self, run_dir: Path) -> tuple[str, str]:
        """Return where the records of the started run are, without passwords, and a command that shows them.

        The command is empty if the place is a URL for a browser, or if no command is known.
        """

    @abstractmethod
    def send_scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Send numbers by name."""

    @abstractmethod
    def send_picture(self, step: int, images: int, name: str, picture: Any) -> None:
        """Send a picture, a uint8 array [H, W] or [H, W, 3]."""

    @abstractmethod
    def end(self, outcome: Outcome) -> None:
        """End the record."""

    def _try(self, send: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            send()
        except Exception as error:  # services raise exceptions of many packages
            self._is_lost = True
            log.warning(
                "%s has failed (%s): the run continues and sends it nothing more; everything is in the run directory",
                self.package, first_line(error),
            )  # fmt: skip


def new_identifier() -> str:
    """Return a random ID for a record."""
    return secrets.token_hex(8)


def _read_identifier(path: Path) -> str | None:
    """Return the ID of a run's record; None if there is none.

    Raises:
        ConfigError: If the file that holds the ID is damaged.
    """
    try:
        content = read_regular(path, below=path.parent, most=_MOST_BYTES)
    except FileNotFoundError:
        return None
    identifier = content.decode(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", identifier):
        raise ConfigError(f"{path} holds no valid ID of a run", "remove it to start a new record")
    return identifier
