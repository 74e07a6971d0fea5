"""logger=mlflow and logger=trackio, with stand-ins for the packages, and with these where they are installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from errors import raises

import genimg
from genimg.api.run import DivergedError
from genimg.errors import ConfigError
from genimg.training.logger import Logger
from genimg.training.mlflow import MlflowRecorder
from genimg.training.trackers import Tracker
from genimg.training.trackio import TrackioRecorder
from genimg.training.update import NonFiniteError

TINY = [
    "data.num_images=8", "data.image_size=16", "model.generator.width=2", "trainer.batch_size=4", "trainer.duration=2 steps",
    "trainer.log_interval=1 steps", "evaluation=none",
]  # fmt: skip


class Service(Tracker):
    """A tracker that writes down what it is sent, and may fail."""

    package = "json"  # installed everywhere

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []
        self.fails = False

    def begin(self, run_dir: Path, config: Any, known: str | None) -> str:
        return known or "first"

    def location(self, run_dir: Path) -> tuple[str, str]:
        return "a server", "show it"

    def send_scalars(self, step: int, images: int, values: Any) -> None:
        if self.fails:
            raise OSError("no route to the server")
        self.sent.append((step, images, dict(values)))

    def send_picture(self, step: int, images: int, name: str, picture: Any) -> None:
        self.sent.append((name, picture.shape, picture.dtype))

    def end(self, outcome: str) -> None:
        self.sent.append(outcome)


def test_a_service_that_fails_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.open(tmp_path, {})
    logger = Logger(tmp_path, step=0, recorder=service)
    logger.scalars(1, 4, {"loss": 1.0})
    logger.pictures(1, 4, {"samples": torch.zeros(4, 3, 8, 8)})
    service.fails = True
    logger.scalars(2, 8, {"loss": 2.0})
    logger.scalars(3, 12, {"loss": 3.0})
    logger.close("completed")
    assert service.sent[0] == (1, 4, {"loss": 1.0})
    assert service.sent[1][2] == np.uint8
    assert len(service.sent) == 2  # not even the end
    assert [record.levelname for record in caplog.records if "no route" in record.getMessage()] == ["WARNING"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "completed"), (NonFiniteError("total", 1), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_the_record_ends_with_the_outcome_of_the_run(
    error: BaseException | None, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Logger, "close", lambda self, outcome: closed.append(outcome))
    if error is not None:

        def raise_it(*_: object) -> None:
            raise error

        monkeypatch.setattr("genimg.training.update.Updater.raise_if_not_finite", raise_it)
        with pytest.raises((DivergedError, KeyboardInterrupt)):
            genimg.train([*TINY, f"run_dir={tmp_path / 'run'}"])
    else:
        genimg.train([*TINY, f"run_dir={tmp_path / 'run'}"])
    assert closed == [outcome]


class Client:
    """What genimg calls of MLflow's client, written down."""

    runs: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, tracking_uri: str | None) -> None:
        if tracking_uri == "http://nowhere":
            raise ConnectionError("no route to http://nowhere\nmore")
        self.tracking_uri = tracking_uri or "sqlite:////there/mlflow.db"

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"number of {name}"

    def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> Any:
        identifier = f"run{len(self.runs)}"
        self.runs[identifier] = {
            "experiment": experiment,
            "name": run_name,
            "tags": tags,
            "params": {},
            "metrics": [],
            "pictures": [],
        }
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=identifier))

    def update_run(self, run: str, *, status: str) -> None:
        self.runs[run]["status"] = status

    def log_batch(self, run: str, *, params: Any = (), metrics: Any = ()) -> None:
        assert len(params) <= 100
        self.runs[run]["params"] |= dict(params)
        self.runs[run]["metrics"] += [(name, value, step) for name, value, _, step in metrics]

    def log_image(self, run: str, picture: np.ndarray, *, key: str, step: int) -> None:
        self.runs[run]["pictures"].append((key, step, picture.dtype))

    def set_terminated(self, run: str, *, status: str) -> None:
        self.runs[run]["status"] = status


def mlflow(**settings: Any) -> MlflowRecorder:
    return MlflowRecorder(**{"experiment": "genimg", "tracking_uri": None, "tags": {"a": 1}} | settings)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient, entities.Param, entities.Metric = Client, lambda *pair: pair, lambda *four: four  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(Client, "runs", {})
    return Client.runs


def test_mlflow_receives_numbers_by_images_seen_pictures_and_the_outcome(
    runs: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    recorder = mlflow()
    recorder.open(tmp_path, {"optimizer": {"lr": 0.1}, "x": None, "many": {str(i): i for i in range(250)}, "long": "y" * 1000})
    recorder.scalars(5, 40, {"loss/total": 1.5})
    recorder.picture(5, 40, "samples", torch.zeros(3, 8, 8, dtype=torch.uint8))
    recorder.close("failed")
    found = runs["run0"]
    assert (found["experiment"], found["name"], found["tags"]) == ("number of genimg", tmp_path.name, {"a": "1"})
    assert found["params"]["optimizer.lr"] == "0.1"
    assert len(found["params"]) == 252
    assert len(found["params"]["long"]) == 500
    assert found["metrics"] == [("loss/total", 1.5, 40)]
    assert found["pictures"] == [("samples", 40, np.uint8)]
    assert found["status"] == "FAILED"
    for outcome, status in (("completed", "FINISHED"), ("stopped", "KILLED")):
        again = mlflow()
        again.open(tmp_path, {})
        assert found["status"] == "RUNNING"
        again.close(outcome)
        assert found["status"] == status
    assert list(runs) == ["run0"]


def test_mlflow_without_its_server_or_record_is_one_message(runs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    with raises(ConfigError, word="nowhere"):
        mlflow(tracking_uri="http://nowhere").open(tmp_path, {})
    assert not (tmp_path / "mlflow-id.txt").exists()
    (tmp_path / "mlflow-id.txt").write_text("gone\n")
    with raises(ConfigError, word="mlflow-id.txt"):
        mlflow().open(tmp_path, {})


@pytest.mark.parametrize(("uri", "place", "command"), [
    (None, "sqlite:////there/mlflow.db", "mlflow ui --backend-store-uri sqlite:////there/mlflow.db"),
    ("sqlite:///my db", "sqlite:///my db", "mlflow ui --backend-store-uri 'sqlite:///my db'"),
    ("http://me:secret@server:5000", "http://server:5000", ""),
    ("postgresql://me:a@b@host/name?password=secret", "postgresql://host/name", ""),
    ("databricks", "databricks", ""),
])  # fmt: skip
def test_where_mlflow_has_its_records_is_logged_without_passwords(
    uri: str | None, place: str, command: str, runs: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = mlflow(tracking_uri=uri)
    with caplog.at_level("INFO"):
        recorder.open(tmp_path, {})
    assert recorder.location(tmp_path) == (place, command)
    [message] = caplog.messages
    assert place in message
    assert command in message
    assert "secret" not in message


@pytest.mark.parametrize("make", [mlflow, lambda: TrackioRecorder("genimg", None, None)])
def test_without_the_package_the_message_names_the_extra(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(ConfigError, word="genimg["):
        make()


class Trackio(types.ModuleType):
    """What genimg calls of trackio, written down."""

    AlertLevel = types.SimpleNamespace(ERROR="error")

    def __init__(self) -> None:
        super().__init__("trackio")
        self.TRACKIO_DIR = Path("/there")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.alerts: list[str] = []
        self.ended = 0

    def init(self, **settings: Any) -> Trackio:
        print("welcome")
        self.begun.append(settings)
        return self

    def Image(self, picture: np.ndarray) -> np.ndarray:  # noqa: N802
        return picture

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def alert(self, *, title: str, level: str) -> None:
        self.alerts.append(level)

    def finish(self) -> None:
        self.ended += 1


def test_trackio_continues_a_run_by_its_name_and_alerts_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for outcome in ("failed", "completed"):
        recorder = TrackioRecorder("genimg", "group", None)
        recorder.open(tmp_path, {"optimizer": {"lr": 0.1}, "x": None})
        recorder.scalars(5, 40, {"loss/total": 1.5})
        recorder.picture(5, 40, "samples", torch.zeros(1, 8, 8, dtype=torch.uint8))
        recorder.close(outcome)  # type: ignore[arg-type]
    first, again = module.begun
    assert first == again
    assert (first["project"], first["group"], first["space_id"], first["resume"]) == ("genimg", "group", None, "allow")
    assert first["name"].startswith(f"{tmp_path.name}-")
    assert first["config"] == {"optimizer.lr": 0.1, "x": "None"}
    assert module.logged[0] == ({"loss/total": 1.5}, 40)
    assert module.logged[1][0]["pictures/samples"].shape == (8, 8)
    assert (module.alerts, module.ended) == (["error"], 2)
    assert capsys.readouterr().out == ""
    assert recorder.location(tmp_path) == ("/there", "trackio show --project genimg")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://server?token=secret")
    assert "secret" not in recorder.location(tmp_path)[0]
    assert TrackioRecorder("genimg", None, "me/mine").location(tmp_path) == ("https://huggingface.co/spaces/me/mine", "")


def test_a_real_mlflow_holds_what_a_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    settings = ["logger=mlflow", "logger.tracking_uri=sqlite:///mlflow.db", "logger.tags={by:me}"]
    genimg.train([*TINY, *settings, "run_dir=run"])
    client = package.MlflowClient("sqlite:///mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("genimg").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.tags["by"]) == ("FINISHED", "run", "me")
    assert run.data.params["trainer.batch_size"] == "4"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "loss/discriminator")] == [4, 8]
    assert client.list_artifacts(run.info.run_id, "images")


def test_a_real_trackio_holds_what_a_run_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    genimg.train([*TINY, "logger=trackio", f"run_dir={tmp_path / 'run'}"])
    from trackio.sqlite_storage import SQLiteStorage

    [name] = SQLiteStorage.get_runs("genimg")
    assert name.startswith("run-")
    assert [each["step"] for each in SQLiteStorage.get_logs("genimg", name) if "loss/discriminator" in each] == [4, 8]
