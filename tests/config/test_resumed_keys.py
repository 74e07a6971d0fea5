"""``resume=RUN KEY=VALUE``: the keys are those of the run, not those of the default model and dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from PIL import Image

import genimg
from genimg.config.resumed_keys import config_of_resumed, with_keys_of_run
from genimg.errors import ConfigError

RUN = ("data=folder", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4", "evaluation=none", "device=cpu",
       "model=vae_small", *tiny.AUTOENCODERS["vae_small"])  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    (root / "images").mkdir()
    numbers = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(numbers.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    genimg.train([*RUN, f"data.root={root / 'images'}", "trainer.duration=1 steps", f"run_dir={root / 'run'}"])
    return root


def test_keys_of_the_run_are_set(trained: Path, tmp_path: Path) -> None:
    run, moved = shutil.copytree(trained / "run", tmp_path / "run"), shutil.copytree(trained / "images", tmp_path / "moved")
    for path in (run, run / "checkpoints/last.pt"):
        assert with_keys_of_run([f"resume={path}", "loss.kl_weight=0.5", "model=vae", "seed=1", "data.rot=x"]) == [
            f"resume={path}", "++loss.kl_weight=0.5", "model=vae", "seed=1", "data.rot=x",
        ]  # fmt: skip
    with raises(ConfigError, word="loss.kl_weight"):  # it is known, and it changes the result
        genimg.train([f"resume={run}", "loss.kl_weight=0.5", "trainer.duration=2 steps"])
    genimg.train([f"resume={run}", f"data.root={moved}", "trainer.duration=2 steps"])
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["config"]["data"]["root"] == str(moved)


def test_an_unknown_key_is_answered_with_those_of_the_run(trained: Path) -> None:
    with raises(ConfigError, "data.rot", word="(did you mean 'data.root'?)"):
        genimg.train([f"resume={trained / 'run'}", "data.rot=x"])


@pytest.mark.parametrize("content", [None, b"[1]", b"a: [", b"\xff\xfe", b"a: &x [*x]", b"!!python/object:os.system {}"])
def test_runs_without_a_readable_config_have_no_keys(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    assert with_keys_of_run([f"resume={tmp_path}", "a.b=1"]) == [f"resume={tmp_path}", "a.b=1"]


@pytest.mark.parametrize("resume", ["resume=auto", "resume=null", "resume=", "seed=1"])
def test_without_a_path_there_is_no_run(resume: str) -> None:
    assert config_of_resumed([resume]) == {}
