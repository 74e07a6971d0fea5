"""``dry_run=true``, ``trainer.accumulation=auto`` and ``performance=``, through the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import MODELS, TINY, losses_of, records

from genimg.commands import assembly


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def train(arguments: list[str], environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "genimg.train", *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd, timeout=200)
    return process.returncode, process.stdout + process.stderr


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("family", MODELS)
def test_a_dry_run_says_what_a_training_takes_and_writes_nothing(
    family: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    root = make_folder(tmp_path / "images", {"cats": 30, "dogs": 2})
    arguments = [*TINY[1:], *MODELS[family], "data=folder", f"data.root={root}", "evaluation=shapes", "dry_run=true",
                 "trainer.duration=5 epochs", "evaluation.interval=2 epochs", "evaluation.num_images=50"]  # fmt: skip
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    status, output = train(arguments, environment, tmp_path)
    assert status == 0, output
    assert "classes: 2, cats 30, dogs 2" in output
    assert "the largest class has 30 images and the smallest 2" in output
    assert "data check: 32 images read" in output
    seconds, rate = re.search(r"step: ([\d.]+) ms, (\d+) images/s", output).groups()  # type: ignore[union-attr]
    assert 16 / (float(seconds) / 1e3) == pytest.approx(float(rate), rel=0.02)
    assert re.search(r"training for 5 epochs: about \d+ s", output)
    assert re.search(r"evaluation: 3 of 50 images", output)
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if "outputs" in str(path)] in (
        [], [Path("outputs")]
    )  # fmt: skip
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.name not in ("outputs", "cache"))
    assert after == before


def test_a_dry_run_finds_corrupt_images(tmp_path: Path, environment: dict[str, str]) -> None:
    root = make_folder(tmp_path / "images", {"cats": 30})
    (root / "cats" / "7.png").write_bytes(b"no image")
    arguments = [*TINY[1:], *MODELS["dcgan"], "data=folder", f"data.root={root}", "evaluation=none", "dry_run=true"]
    status, output = train(arguments, environment, tmp_path)
    assert status == 1
    assert "7.png" in output
    assert "Traceback" not in output


def test_a_dry_run_leaves_a_run_as_it_is(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.duration=4 steps", "run_dir=run"]
    assert train(arguments, environment, tmp_path)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and ".hydra" not in str(path)}
    status, output = train([*arguments, "dry_run=true"], environment, tmp_path)
    assert status == 0, output
    for path, content in before.items():
        if path.name != "train.log":
            assert path.read_bytes() == content


def test_automatic_accumulation_is_one_on_a_cpu_and_recorded(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.accumulation=auto", "run_dir=run"]
    status, output = train([*arguments, "trainer.duration=4 steps"], environment, tmp_path)
    assert status == 0, output
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["config"]["trainer"]["accumulation"] == 1
    status, output = train([*arguments, "trainer.duration=8 steps"], environment, tmp_path)  # continues
    assert status == 0, output
    assert "resuming from" in output


@pytest.mark.parametrize(("fits_from", "found"), [(1, 1), (3, 4), (16, 16)])
def test_accumulation_grows_until_a_step_fits(fits_from: int, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts:
        device = torch.device("cuda")

        def __init__(self, count: int) -> None:
            self.count = count

    monkeypatch.setattr(assembly, "assemble", lambda config, device: Parts(config["trainer"]["accumulation"]))
    monkeypatch.setattr(assembly, "_fits", lambda parts: parts.count >= fits_from)
    config = {"trainer": {"batch_size": 16, "accumulation": "auto"}}
    assert assembly.find_accumulation(config, "cuda") == found
    assert config["trainer"]["accumulation"] == "auto"


def test_a_model_that_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts:
        device = torch.device("cuda")

    monkeypatch.setattr(assembly, "assemble", lambda config, device: Parts())
    monkeypatch.setattr(assembly, "_fits", lambda parts: False)
    with pytest.raises(ValueError, match="not even single images fit"):
        assembly.find_accumulation({"trainer": {"batch_size": 6}}, "cuda")


@pytest.mark.parametrize("family", MODELS)
def test_the_plain_path_and_the_fast_path_have_the_same_losses(
    family: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [*TINY, *MODELS[family], "evaluation=none", "trainer.duration=8 steps", "precision=fp32"]
    for name in ("auto", "plain"):
        status, output = train([*arguments, f"performance={name}", f"run_dir={name}"], environment, tmp_path)
        assert status == 0, output
    assert losses_of(tmp_path / "auto") == [pytest.approx(record, rel=1e-3) for record in losses_of(tmp_path / "plain")]


def test_bfloat16_has_the_losses_of_float32_to_its_own_precision(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["vae"], "evaluation=none", "trainer.duration=8 steps"]
    for name in ("fp32", "bf16"):
        status, output = train([*arguments, f"precision={name}", f"run_dir={name}"], environment, tmp_path)
        assert status == 0, output
    one, other = losses_of(tmp_path / "fp32"), losses_of(tmp_path / "bf16")
    for a, b in zip(one, other, strict=True):
        losses = [name for name in a if name.startswith("loss/")]
        assert losses
        assert [a[name] for name in losses] == pytest.approx([b[name] for name in losses], rel=2e-2)
    assert records(tmp_path / "fp32") != records(tmp_path / "bf16")


def test_compiled_networks_have_the_losses_of_eager_ones(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*TINY, *MODELS["dcgan"], "evaluation=none", "trainer.duration=4 steps", "precision=fp32"]
    for name in ("false", "default"):
        status, output = train([*arguments, f"performance.compile={name}", f"run_dir=run_{name}"], environment, tmp_path)
        if "No module named" in output or ("compiler" in output.lower() and status):
            pytest.skip("torch.compile needs a C++ compiler here")
        assert status == 0, output
    assert losses_of(tmp_path / "run_default") == [
        pytest.approx(record, rel=1e-3) for record in losses_of(tmp_path / "run_false")
    ]
