"""A checkpoint whose config describes a model of another size than its weights: refused before it takes memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from errors import raises
from fork_server import run_command
from omegaconf import OmegaConf
from sampling import sampled
from torch import nn

import genimg
from genimg.config.compose import compose
from genimg.config.instantiate import ALLOWED, Builder, build_model
from genimg.config.messages import is_choice
from genimg.config.model_size import _without_memory, require_fitting
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, UserError
from genimg.training import checkpoint
from genimg.utils.paths import config_dir

MODELS = sorted(path.stem for path in (Path(config_dir()) / "model").glob("*.yaml") if is_choice(path.stem))
MOST = 2**28  # bytes by which the memory of this process may grow
SECONDS = 20.0  # of a processor, so that other programs do not count


def tampered(trained: Path, home: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return a copy of a checkpoint whose unresolved and resolved configs are changed, and its facts."""
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    for name in ("raw_config", "config"):
        change(state[name])
    if "facts" in state["config"]:
        state["facts"] |= state["config"].pop("facts")
        state["raw_config"].pop("facts")
    checkpoint.save({key: value for key, value in state.items() if key not in ("format", "version")}, home / "evil.pt")
    return home / "evil.pt"


def wide(config: dict[str, Any]) -> None:
    config["model"]["generator"]["width"] = 100_000


def layered(config: dict[str, Any]) -> None:
    config["model"]["generator"] = {
        "_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU"} for _ in range(20_000)],
    }  # fmt: skip


def of_torch(config: dict[str, Any]) -> None:
    config["model"]["generator"] = {"_target_": "torch.nn.Linear", "in_features": 1_000_000, "out_features": 1_000_000}


def without_weights(config: dict[str, Any]) -> None:
    config["model"]["generator"] = {"_target_": "torch.nn.BatchNorm1d", "num_features": 10**12, "affine": False}


def beyond_64_bits(config: dict[str, Any]) -> None:
    config["model"]["generator"]["width"] = 2**62


def of_torch_beyond_64_bits(config: dict[str, Any]) -> None:
    config["model"]["generator"] = {"_target_": "torch.nn.Linear", "in_features": 2**70, "out_features": 3}


def latent(config: dict[str, Any]) -> None:
    config["model"]["latent"]["dim"] = 10**12


def vast(config: dict[str, Any]) -> None:
    config["facts"] = {"image_size": 2**40}


HOSTILE = [wide, layered, of_torch, without_weights, beyond_64_bits, of_torch_beyond_64_bits, latent, vast]


@pytest.mark.skipif(sys.platform == "win32", reason="needs the peak of the memory")
@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_another_size_is_refused_before_memory_is_taken(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    evil = tampered(trained, tmp_path, change)
    genimg.load(trained, device="cpu")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    with pytest.raises(UserError) as caught:
        genimg.load(evil, device="cpu")
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST
    assert "\n" not in str(caught.value)
    assert "memory" not in str(caught.value).replace("without memory", "")


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "ckpt={}", "output=out"],
        ["eval", "ckpt={}", "real=shapes", "evaluation=inception"],
        ["export", "ckpt={}", "output=o.pt2"],
        ["train", "resume={}", "run_dir=new", "trainer.duration=4 steps"],
        ["train", "resume={}", "run_dir=new", "trainer.duration=4 steps", "resume_force=true"],
    ],
    ids=["sample", "eval", "export", "train", "train with force"],
)
def test_commands_refuse_it_in_one_message(trained: Path, tmp_path: Path, words: list[str]) -> None:
    evil = tampered(trained, tmp_path, wide)
    done = run_command(*(word.format(evil) for word in words), "device=cpu", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "fit the model" in done.stderr or words[0] == "eval"
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize(
    "facts", [{"image_size": 0}, {"image_size": "16"}, {"image_size": [16]}, {"image_size": [2**16, 2**16]}, {"channels": 1e9},
              {"channels": None}, {"num_classes": 10**12}, {"num_classes": True}, {"unknown": 1}]
)  # fmt: skip
def test_impossible_facts_are_refused(facts: dict[str, Any]) -> None:
    with raises(CheckpointError, word="checkpoint's"):
        DataFacts.restored({"image_size": 16, "channels": 3, "num_classes": 0, **facts})


PARTS = (
    ("sngan", "conditioning=projection"), ("biggan", "conditioning=shared_embedding"), ("dcgan_small", "conditioning=concat"),
    ("dcgan_small", "conditioning=conditional_batchnorm"), ("dcgan_small", "conditioning=auxiliary_classifier"),
    ("dcgan_small", "conditioning=text"), ("dcgan_small", "conditioning=text_conditional_batchnorm"),
    ("stylegan2", "penalty=[r1_lazy,path_length]"), ("dcgan_small", "penalty=[lecam,consistency]"),
    ("sngan", "discriminator_augment=ada"),
)  # fmt: skip


ROWS = [*((model, "") for model in MODELS if model not in tiny.LATENT_DENOISERS), *PARTS]  # those need an autoencoder's run


@pytest.mark.parametrize(("model", "part"), sampled(ROWS, lambda row: [row[0].partition("_")[0], row[1]]))
def test_every_model_has_its_shapes_without_memory(model: str, part: str) -> None:
    """Otherwise its checkpoints would be refused."""
    paired = {"pix2pix": "paired", "cyclegan": "unpaired", "cut": "unpaired", "fastcut": "unpaired"}
    data = [f"data={paired.get(model, 'cifar10')}", "data.image_size=32", "data.channels=3", "data.root=x"]
    composed = compose([f"model={model}", *data, *filter(None, [part])]).config
    config = {"model": OmegaConf.to_container(composed.model, resolve=True), "task": None}
    source_channels = 4 if model == "restoration_gated" else 3
    facts = DataFacts(image_size=32, channels=3, num_classes=10, source_channels=source_channels, target_channels=3)
    for trains in (True, False):
        builder = Builder(epoch_size=1000, batch_size=64, named=frozenset(), trains=trains)
        state = torch.get_rng_state()
        with _without_memory(1000):
            shapes = {name: tensor.shape for name, tensor in build_model(config, facts, builder).state_dict().items()}
        assert torch.equal(torch.get_rng_state(), state)
        built = build_model(config, facts, builder)
        assert shapes == {name: tensor.shape for name, tensor in built.state_dict().items()}
        require_fitting(lambda: build_model(config, facts, builder), built.state_dict(), builder)  # noqa: B023


def test_modules_that_are_imported_meanwhile_keep_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constants_of_a_test.py").write_text(
        "import torch\nMEAN = torch.tensor([1.0])\nclass Layer(torch.nn.Identity): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with _without_memory(1):
        Builder((*ALLOWED, "constants_of_a_test")).build({"_target_": "constants_of_a_test.Layer"}, "model")
    assert sys.modules.pop("constants_of_a_test").MEAN.tolist() == [1.0]


def test_own_packages_are_not_built_twice() -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(nn.Linear(2, 3))
        return built[-1]

    require_fitting(build, {}, Builder((*ALLOWED, "mine")))
    assert not built
    with raises(CheckpointError, word="missing"):
        require_fitting(build, {}, Builder())
    with raises(CheckpointError, word="shape"):
        require_fitting(build, {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, Builder())
    require_fitting(build, nn.Linear(2, 3).state_dict(), Builder())
