"""A checkpoint whose config names what would be downloaded: nothing is, unless the command line names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from errors import raises
from fork_server import run_command
from torch import nn

from genimg.config.instantiate import Builder
from genimg.errors import ConfigError, NeedsDownloadError, UserError
from genimg.evaluation.extractors import foundation
from genimg.evaluation.extractors.base import MissingWeightsError
from genimg.training import checkpoint

DATASETS = ["mnist", "fashion_mnist", "cifar10", "cifar100"]
EXTRACTORS: list[dict[str, Any]] = [
    {"_target_": "genimg.evaluation.extractors.inception.Inception", "weights": None,
     "sha256": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"},
    {"_target_": "genimg.evaluation.extractors.foundation.DINOv2", "model": "dinov2_vits14", "weights": None,
     "sha256": "published"},
    {"_target_": "genimg.evaluation.extractors.foundation.CLIP", "model": "clip-vit-b-32", "weights": None,
     "sha256": "published"},
]  # fmt: skip


class ConnectionMadeError(Exception):
    """Raised in place of a connection."""


@pytest.fixture
def _connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def connect(*_: object, **__: object) -> None:
        raise ConnectionMadeError

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("INCEPTION_WEIGHTS", "DINOV2_WEIGHTS", "DINOV2_REPOSITORY", "CLIP_WEIGHTS"):
        monkeypatch.delenv(f"GENIMG_{variable}", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", connect)
    monkeypatch.setattr("urllib.request.urlopen", connect)
    for name in ("mnist", "cifar"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download_and_extract_archive", connect)


def data_of(name: str, root: Path) -> dict[str, Any]:
    return {"_target_": f"genimg.data.datasets.builtin.{name}", "root": str(root), "split": "train", "image_size": 8,
            "channels": 3, "fit": "crop"}  # fmt: skip


@pytest.mark.usefixtures("_connections")
@pytest.mark.parametrize("name", DATASETS)
def test_no_dataset_is_downloaded_for_a_checkpoint(tmp_path: Path, name: str) -> None:
    node = data_of(name, tmp_path / "theirs")
    with raises(NeedsDownloadError, "data.root", word="downloaded") as caught:
        Builder(named=frozenset()).build(node, "data")
    assert caught.value.key == "data.root"
    assert str(caught.value).startswith(
        f"data.root={tmp_path / 'theirs'} holds no complete copy of {name}, and nothing is downloaded"
    )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "theirs").exists()
    for builder in (Builder(), Builder(named=frozenset()).choosing("data")):
        with pytest.raises(ConnectionMadeError):
            builder.build(node, "data")
    with pytest.raises(UserError):
        Builder(named=frozenset()).choosing("evaluation").build(node, "data")


@pytest.mark.usefixtures("_connections")
@pytest.mark.parametrize("node", EXTRACTORS, ids=lambda node: str(node["_target_"]).rpartition(".")[2])
def test_no_weights_are_downloaded_for_a_checkpoint(tmp_path: Path, node: dict[str, Any]) -> None:
    for place in ({"extractor": node}, {"metrics": {"a": [node]}}):
        with pytest.raises(MissingWeightsError, match="nothing is downloaded because a checkpoint names it") as caught:
            Builder(named=frozenset()).build(place, "evaluation")
        assert caught.value.key.endswith(".weights")
        assert not (tmp_path / "torch").exists()
    with pytest.raises(ConnectionMadeError):
        Builder(named=frozenset()).choosing("evaluation").build({"extractor": node}, "evaluation")


@pytest.mark.usefixtures("_connections")
def test_the_code_of_dinov2_is_not_downloaded_but_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foundation.Weights, "find", lambda *_, **__: (tmp_path / "weights.pth", "digest"))
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights.pth")
    node = EXTRACTORS[1]
    with pytest.raises(MissingWeightsError, match="the code of dinov2_vits14 is not in"):
        Builder(named=frozenset()).build(node, "evaluation")
    cached = Path(torch.hub.get_dir()) / f"facebookresearch_dinov2_{foundation._DINOV2_COMMIT}"
    cached.mkdir(parents=True)
    (cached / "hubconf.py").write_text("import torch\n\ndef dinov2_vits14(pretrained):\n    return torch.nn.Linear(1, 1)\n")
    found = Builder(named=frozenset()).build(node, "evaluation")
    assert found.name == "dinov2_vits14_bicubic_unknown"


@pytest.mark.usefixtures("_connections")
@pytest.mark.parametrize("wrap", [lambda node: {**node, "_partial_": True}, lambda node: {**node, "may_download": True}])
def test_a_checkpoint_cannot_allow_it_or_do_it_later(tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for node in (data_of("mnist", tmp_path / "theirs"), *EXTRACTORS):
        with pytest.raises(UserError):
            Builder(named=frozenset()).build(wrap(node), "model")()
    assert not (tmp_path / "theirs").exists()


def hostile(trained: Path, home: Path) -> Path:
    """Return a checkpoint whose data is said to be MNIST in a directory that the attacker would like to be made."""
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    for name in ("raw_config", "config"):
        old = state[name]["data"]
        kept = {key: old[key] for key in ("storage", "num_workers", "horizontal_flip", "max_corrupt")}
        state[name]["data"] = {**data_of("mnist", home / "theirs"), "image_size": 16, "validation": 0, **kept}
        state[name]["evaluation"] = {
            "_target_": "genimg.evaluation.evaluator.Evaluator", "num_images": 8, "batch_size": 8, "interval": "1 epoch",
            "metrics": {"fid": {"_target_": "genimg.evaluation.metrics.FrechetDistance"}},
            "extractor": EXTRACTORS[0], "num_real": None, "cache_dir": None, "seed": 0,
        }  # fmt: skip
    checkpoint.save({key: value for key, value in state.items() if key not in ("format", "version")}, home / "evil.pt")
    return home / "evil.pt"


def test_commands_refuse_it_in_one_message(trained: Path, tmp_path: Path) -> None:
    evil = hostile(trained, tmp_path)
    commands = [
        ("eval", f"ckpt={evil}", "device=cpu"),
        ("train", f"resume={evil}", "run_dir=new", "trainer.duration=4 steps"),
        ("train", f"resume={evil}", "run_dir=new", "trainer.duration=4 steps", "evaluation=none"),
    ]
    for command in commands:
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "data.root=" in done.stderr
        assert "nothing is downloaded because a checkpoint names it" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "theirs").exists()
        assert not (tmp_path / "new").exists()


def test_other_ways_of_using_it_need_no_data(trained: Path, tmp_path: Path) -> None:
    evil = hostile(trained, tmp_path)
    done = run_command("sample", f"ckpt={evil}", "num_images=2", "output=out", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "theirs").exists()


def test_a_mark_that_a_checkpoint_brings_is_no_permission(trained: Path) -> None:
    with raises(ConfigError, word="may_download"):
        Builder(named=frozenset()).build({**EXTRACTORS[0], "may_download": True}, "evaluation")
