"""The records of a run directory from elsewhere: a resumed training reads them in bounds, and keeps all that makes sense."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tiny
from errors import raises
from fork_server import run_command

from genimg.errors import ConfigError, UserError
from genimg.training.logger import Logger
from genimg.training.wandb import WandbRecorder
from genimg.utils.regular_files import UnsafeFileError

GOOD = [json.dumps({"step": step, "images": step * 8, "loss/a": 0.5}).encode() for step in (1, 2, 3)]
SENSELESS = [
    b"\xff\xfe\xfd", b'{"step": 2, "loss": "\xc3"}', b"null", b"7", b"[]", b'"text"', b'{"step": "2"}', b'{"step": null}',
    b'{"step": 1.5}', b'{"step": Infinity}', b'{"step": true}', b'{"step": [1]}', b'{"step": 2', b"{}", b"", b"\0" * 100,
    b"[" * 100_000, b'{"step": ' + b"9" * 10_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", SENSELESS, ids=lambda line: repr(line[:12]))
def test_a_unreadable_line_costs_that_line_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], line, *GOOD[1:], b""]))
    with caplog.at_level(logging.WARNING):
        Logger(tmp_path, step=3).close("completed")
    assert path.read_bytes().splitlines() == GOOD
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: line 2 cannot be read as a record and is removed; the others are kept"
    ]


def test_many_unreadable_lines_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([b"x"] * 1000 + GOOD))
    with caplog.at_level(logging.WARNING):
        Logger(tmp_path, step=3).close("completed")
    assert path.read_bytes().splitlines() == GOOD
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: lines 1, 2, 3, 4, 5, ... cannot be read as a record and are removed; the others are kept"
    ]


def test_a_line_that_a_killed_run_did_not_finish_needs_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*GOOD, b'{"step": 4, "im']))
    with caplog.at_level(logging.WARNING):
        Logger(tmp_path, step=3).close("completed")
    assert not caplog.records


@pytest.mark.skipif(os.name != "posix", reason="needs sparse files and links")
def test_records_without_end_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with raises(UnsafeFileError, word="metrics.jsonl"):
        Logger(tmp_path, step=3)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with raises(UnsafeFileError, word="link"):
        Logger(tmp_path, step=3)


class StandIn(types.ModuleType):
    """In place of the package wandb."""

    url: str | None = None  # there is none offline

    def init(self, **settings: Any) -> StandIn:
        self.identifier = settings["id"]
        return self

    def Settings(self, **settings: Any) -> None: ...  # noqa: N802

    def define_metric(self, *_: object, **__: object) -> None: ...


def recorded(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> str:
    """Return the name under which a run's record begins."""
    module = StandIn("wandb")
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    WandbRecorder("genimg", None, None, [], "offline").open(run_dir, {})
    return module.identifier


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a/b", b"../../x", b"a b", b"a\nb", b"a?x=1", b"a" * 200, b"\0"])
def test_a_damaged_name_of_a_record_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb-id.txt").write_bytes(content)
    with raises(ConfigError, word="wandb-id.txt"):
        recorded(monkeypatch, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs sparse files and links")
def test_a_name_of_a_record_is_read_in_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "wandb-id.txt", "wb") as file:
        file.truncate(1 << 40)
    with raises(UserError, word="wandb-id.txt"):
        recorded(monkeypatch, tmp_path)
    (tmp_path / "wandb-id.txt").unlink()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "wandb-id.txt").symlink_to(tmp_path / "secret")
    with raises(UserError, word="link"):
        recorded(monkeypatch, tmp_path)
    (tmp_path / "wandb-id.txt").unlink()
    first = recorded(monkeypatch, tmp_path)
    assert recorded(monkeypatch, tmp_path) == first


def test_a_run_with_damaged_records_is_continued(tmp_path: Path) -> None:
    settings = ["data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
                "model=dcgan_small", *tiny.SIZES["dcgan_small"], "evaluation=none", "device=cpu",
                "trainer.log_interval=1 steps"]  # fmt: skip
    done = run_command("train", *settings, "trainer.duration=2 steps", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = tmp_path / "run" / "metrics.jsonl"
    history = records.read_bytes()
    records.write_bytes(b"\xff\n" + history)
    done = run_command("train", "resume=run", "trainer.duration=4 steps", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "metrics.jsonl: line 1 cannot be read as a record" in done.stdout + done.stderr
    assert history
    assert records.read_bytes().startswith(history)
