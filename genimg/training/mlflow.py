"""Records of a run in MLflow."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from genimg.errors import ConfigError, first_line
from genimg.training.recorder import Outcome
from genimg.training.trackers import Tracker
from genimg.utils.mappings import flatten

_STATUS = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_LONGEST = 500  # characters of a parameter; the limit of older servers
_AT_ONCE = 100  # parameters in a request; the limit of the REST API


class MlflowRecorder(Tracker):
    """Recorder for MLflow; see configs/logger/mlflow.yaml for the settings.

    The number of images seen is MLflow's step. A continued run continues its record.

    Args:
        experiment: Name of the experiment that lists the run; it is created if there is none.
        tracking_uri: Server or database; None uses $MLFLOW_TRACKING_URI, or else mlflow.db in the working directory.
        tags: Tags of the run by name; None for none.

    Raises:
        ConfigError: If mlflow is not installed.
    """

    package = "mlflow"

    def __init__(self, experiment: str, tracking_uri: str | None, tags: Mapping[str, Any] | None) -> None:
        super().__init__()
        self._experiment, self._uri = experiment, tracking_uri
        self._tags = {name: str(value) for name, value in (tags or {}).items()}
        self._id = ""

    def begin(self, run_dir: Path, config: Mapping[str, Any], known: str | None) -> str:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is down must not hold up the training
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # seconds
        mlflow = importlib.import_module("mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        try:
            self._client = mlflow.MlflowClient(tracking_uri=self._uri)
            if known is not None:
                self._client.update_run(known, status="RUNNING")
                self._id = known
                return known
            found = self._client.get_experiment_by_name(self._experiment)
            number = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
            self._id = self._client.create_run(number, run_name=run_dir.name, tags=self._tags).info.run_id
            parameters = [
                self._entities.Param(key, str(value)[:_LONGEST]) for key, value in flatten(config).items() if value is not None
            ]
            for start in range(0, len(parameters), _AT_ONCE):
                self._client.log_batch(self._id, params=parameters[start : start + _AT_ONCE])
        except Exception as error:  # of MLflow, of its database or of the connection
            if self._id:
                with contextlib.suppress(Exception):
                    self._client.set_terminated(self._id, status=_STATUS["failed"])
            raise ConfigError(
                f"mlflow cannot start a run ({first_line(error)})",
                "set logger.tracking_uri or MLFLOW_TRACKING_URI to a server that answers, or to a file such as "
                "sqlite:///mlflow.db"
                + ("" if known is None else f"; to start a new record, remove {run_dir / 'mlflow-id.txt'}"),
            ) from error
        return self._id

    def location(self, run_dir: Path) -> tuple[str, str]:
        uri = str(self._client.tracking_uri)  # also if MLflow chose it
        shown = _without_secrets(uri)
        is_server = uri.startswith(("http:", "https:", "databricks"))
        # A command without the password of a database would not work.
        return shown, "" if is_server or shown != uri else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def send_scalars(self, step: int, images: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[self._entities.Metric(name, value, now, images) for name, value in values.items()]
        )

    def send_picture(self, step: int, images: int, name: str, picture: Any) -> None:
        self._client.log_image(self._id, picture, key=name, step=images)

    def end(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._id, status=_STATUS[outcome])


def _without_secrets(uri: str) -> str:
    """Return the URI of a server or database without its user, password and options, which may be secret."""
    parts = urlsplit(uri)
    kept = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return uri if kept == parts else urlunsplit(kept)
