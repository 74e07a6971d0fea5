"""The config of a checkpoint that a stranger has made: it reads no environment, opens no connection and does not grow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from fork_server import run_command

from genimg.config.compose import Config
from genimg.config.instantiate import Builder
from genimg.config.references import is_plain, require_plain_references, with_values
from genimg.errors import ConfigError
from genimg.training import checkpoint

SECRET = "a-very-secret-value"


def tampered(trained: Path, home: Path, **groups: Any) -> Path:
    """Return a copy of a checkpoint with other values in its unresolved and its resolved config."""
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    for name, value in groups.items():
        state["raw_config"][name] = state["config"][name] = value
    checkpoint.save({key: value for key, value in state.items() if key not in ("format", "version")}, home / "evil.pt")
    return home / "evil.pt"


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "x${oc.env:HOME}y", "${oc.decode:'1'}", "${hydra:runtime.cwd}", "${genimg.new_run_dir:x}",
             "${${a}}", "${oc.select:${a}}", "\\${oc.env:HOME}", "${now:%Y}", "${.a}", "${a:b}", "${oc.create:x}"]
)  # fmt: skip
def test_a_checkpoint_evaluates_references_to_its_keys_alone(text: str) -> None:
    assert not is_plain(text)
    with pytest.raises(ConfigError) as caught:
        require_plain_references({"model": {"parts": [{"name": text}]}})
    assert caught.value.key == "model.parts[0].name"


def test_references_to_keys_are_plain() -> None:
    require_plain_references({"a": {"b": 1}, "c": "${a}", "d": "${a.b}", "e": "x ${a.b} ${c.b}", "f": "${oc.select:a.x,batch}"})


def test_references_that_grow_without_end_are_refused() -> None:
    growing: dict[str, Any] = {"a0": {"x": 1, "y": 2}}
    growing |= {f"a{i}": {"x": f"${{a{i - 1}}}", "y": f"${{a{i - 1}}}"} for i in range(1, 30)}
    with raises(ConfigError, word="grow"):
        require_plain_references(growing)
    for text in ("${long}" * 50, ["${long}"] * 50):
        with raises(ConfigError, word="grow"):
            require_plain_references({"long": "x" * 300_000, "more": text})


@pytest.mark.parametrize(
    "circle", [{"a": "${b}", "b": "${a}"}, {"a": {"x": "${a}"}}, {"a": "${a}"}, {"a": "${b.x}", "b": "${a.x}"}, {"a": "${a.x}"}]
)
def test_references_in_a_circle_are_refused(circle: dict[str, Any]) -> None:
    with raises(ConfigError, word="circle"):
        require_plain_references(circle)


@pytest.mark.parametrize("order", [1, -1])
def test_long_chains_of_references_are_refused(order: int) -> None:
    chain = {f"k{i}": f"${{k{i + 1}}}" for i in range(2000)} | {"k2000": 1}
    with raises(ConfigError, word="references"):
        require_plain_references(dict(list(chain.items())[::order]))
    require_plain_references({f"k{i}": f"${{k{i + 1}}}" for i in range(20)} | {"k20": 1})


@pytest.mark.parametrize(
    "factory", ["genimg.losses.perceptual:Perceptual", "torch.nn.Linear", "genimg.data.datasets.builtin.folder"]
)
def test_no_part_of_genimg_is_called_with_arguments_that_nothing_checks(factory: str) -> None:
    node = {"_target_": "genimg.data.datasets.external.module", "factory": factory, "arguments": {"weights": "/etc/passwd"},
            "image_size": 8, "channels": 3, "fit": "crop"}  # fmt: skip
    with raises(ConfigError, "data.factory", word="checkpoint's") as caught:
        Builder(named=frozenset()).build(node, "data")
    assert caught.value.key == "data.factory"


def test_what_a_checkpoint_records_calls_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENIMG_TEST_ROOT", "/own/images")
    config = Config({"data": {"root": "${oc.env:GENIMG_TEST_ROOT}", "size": 8}, "model": {"size": "${data.size}"}})
    record = config.record()
    assert record["raw_config"] == {"data": {"root": "/own/images", "size": 8}, "model": {"size": "${data.size}"}}
    require_plain_references(record["raw_config"])
    assert with_values(["${a:b}", "${a}"], ["1", "2"]) == ["1", "${a}"]


@pytest.mark.parametrize("key", ["debug", "schedule", "augment", "unheard_of"])
def test_no_environment_variable_is_read_or_shown(trained: Path, tmp_path: Path, key: str) -> None:
    evil = tampered(trained, tmp_path, **{key: "${oc.env:GENIMG_TEST_SECRET}"})
    environment = {**os.environ, "GENIMG_TEST_SECRET": SECRET}
    done = run_command("train", f"resume={evil}", "run_dir=new", "trainer.duration=4 steps", cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "only references to its own keys are evaluated" in done.stderr
    assert "Traceback" not in done.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != evil]
    assert not any(SECRET.encode() in content for content in [done.stdout.encode(), done.stderr.encode(), *written])


def test_no_logger_is_started(trained: Path, tmp_path: Path) -> None:
    logger = {"_target_": "genimg.training.wandb.WandbRecorder", "project": "theirs", "entity": "them", "group": None,
              "tags": [], "mode": "online"}  # fmt: skip
    evil = tampered(trained, tmp_path, logger=logger)
    (tmp_path / "wandb.py").write_text("raise SystemExit('wandb was imported')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = run_command("train", f"resume={evil}", "run_dir=new", "trainer.duration=4 steps", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to continue with it, choose it again with logger=NAME" in done.stdout + done.stderr
    assert "theirs" not in (tmp_path / "new" / "config.yaml").read_text()
