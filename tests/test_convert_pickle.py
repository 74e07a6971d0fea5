"""scripts/convert_pickle.py: the networks of published pickles and genimg's compute the same."""

from __future__ import annotations

import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from published_networks import (
    ResidualDiscriminator,
    ResidualGenerator,
    StyleDiscriminator,
    StyleGenerator,
    Wrapper,
)
from torch import nn

from genimg import train
from genimg.api.data import build_dataset
from genimg.api.initial_weights import InitialWeights
from genimg.config.compose import Config, compose
from genimg.config.instantiate import Builder

safetensors = pytest.importorskip("safetensors.torch")
safe_open = pytest.importorskip("safetensors").safe_open

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "convert_pickle.py"
WIDTHS = {4: 8, 8: 8, 16: 4}
BRIEF = [
    "data=shapes", "data.num_images=16", "trainer.batch_size=8", "trainer.preview_images=4", "trainer.duration=1 steps",
    "evaluation=none", "device=cpu", "precision=fp32", "optimizer.lr=1e-9", "penalty=[]",
]  # fmt: skip


def style_networks(classes: int, **changes: Any) -> tuple[nn.Module, nn.Module]:
    own = {"clamp": 2.0, "residual": True, "layers": 2, "rate": 0.01} | changes
    common = {"clamp": own["clamp"], "rate": own["rate"]}
    generator = StyleGenerator(WIDTHS, 6, 5, classes, layers=own["layers"], **common)
    return generator, StyleDiscriminator(WIDTHS, classes, residual=own["residual"], group_size=2, **common)


def residual_networks(classes: int) -> tuple[nn.Module, nn.Module]:
    widths = [12, 12, 8]
    return Wrapper(ResidualGenerator(widths, 6, classes, 4)), Wrapper(ResidualDiscriminator(widths[::-1], classes, 4))


NETWORKS = {
    "stylegan2": lambda: style_networks(0),
    "stylegan2 of CIFAR-10": lambda: style_networks(5, residual=False, clamp=None, layers=3),
    "stylegan2 with another multiplier": lambda: style_networks(5, rate=0.02),
    "r3gan": lambda: residual_networks(0),
    "r3gan with labels": lambda: residual_networks(5),
}


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(Path(__file__).resolve().parent), *sys.path]
    code = (
        f"import runpy, sys; sys.path[:] = {path!r}; sys.argv = {['convert_pickle.py', *arguments]!r}; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); assert 'genimg' not in sys.modules"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def write_pickle(path: Path, generator: nn.Module, discriminator: nn.Module) -> None:
    with path.open("wb") as file:
        pickle.dump({"G": None, "D": discriminator.eval(), "G_ema": generator.eval(), "cur_nimg": 1234}, file)


@pytest.fixture(scope="module")
def convert() -> Any:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_genimg_computes_the_images_and_logits_of_the_published_networks(name: str, convert: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator, discriminator = (network.eval() for network in NETWORKS[name]())
    tensors, overrides = convert["convert"](generator, discriminator)
    safetensors.save_file(tensors, tmp_path / "network.safetensors")
    config = Config.of(compose([*overrides, "data=shapes", "run_dir=unused"]).config)
    builder = Builder(epoch_size=1000, batch_size=10)
    method = tiny.method_of(config, build_dataset({"data": {**config["data"], "num_images": 16}}, builder), builder)
    initial = InitialWeights.open(str(tmp_path / "network.safetensors"), ())
    initial.load_into(method, (), lambda count: {})
    assert initial.matches is not None
    assert all(count == total > 0 for count, total in initial.matches.counts.values())
    method.eval()
    classes = 5 if "conditioning=projection" in overrides else 0
    labels = torch.tensor([3, 0, 4, 1]) if classes else torch.zeros(4, 0)
    one_hot = nn.functional.one_hot(labels, classes).float() if classes else labels
    latent, image = torch.randn(4, 6), torch.rand(4, 3, 16, 16) * 2 - 1
    made, wanted = method.generator(latent, labels), generator(latent, one_hot)
    logits = method.discriminator(image, labels).logits, discriminator(image, one_hot)
    for ours, theirs in ((made, wanted), logits):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_a_pickle_becomes_a_file_that_a_run_starts_from(tmp_path: Path) -> None:
    output = tmp_path / "network.safetensors"
    write_pickle(tmp_path / "network.pkl", *style_networks(0))
    done = run_script(str(tmp_path / "network.pkl"), str(output), "--run-its-code")
    assert done.returncode == 0, done.stderr
    with safe_open(output, "pt") as file:
        overrides = json.loads(file.metadata()["overrides"])
        start = file.get_tensor("generator.start")
    assert " ".join(overrides) in done.stdout
    run = tmp_path / "run"
    train([*overrides, *BRIEF, f"init_from={output}", f"run_dir={run}"])
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert state["initial_weights"]["images"] == 1234
    torch.testing.assert_close(state["method"]["generator.start"], start, rtol=0, atol=1e-6)


class Dangerous:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("arguments", [["network.pkl", "a.safetensors"], ["network.pkl", "a.pt", "--run-its-code"],
                                       ["absent.pkl", "a.safetensors", "--run-its-code"]])  # fmt: skip
def test_without_consent_or_with_wrong_names_nothing_is_unpickled(arguments: list[str], convert: Any, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.pkl").write_bytes(pickle.dumps({"D": Dangerous(tmp_path / "opened")}))
    with pytest.raises(SystemExit) as caught:
        convert["main"](arguments)
    assert caught.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["network.pkl"]


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps((1, 2, 3)), b"cnosuchmodule\nName\n.", pickle.dumps({"D": 1})])
def test_other_files_are_refused(content: bytes, convert: Any, tmp_path: Path) -> None:
    (tmp_path / "network.pkl").write_bytes(content)
    with pytest.raises(SystemExit, match="error: "):
        convert["main"]([str(tmp_path / "network.pkl"), str(tmp_path / "a.safetensors"), "--run-its-code"])
    assert not (tmp_path / "a.safetensors").exists()


def changed(name: str) -> tuple[nn.Module, nn.Module]:
    """Networks with an option that genimg's do not have."""
    generator, discriminator = residual_networks(5) if name == "embedding" else style_networks(5)
    if name == "filter":
        generator.synthesis.b8.conv0.resample_filter[0, 0] += 1.0
    elif name == "activation":
        generator.mapping.fc0.activation = "relu"
    elif name == "clamp":
        generator.synthesis.b8.conv0.conv_clamp = 3.0
    elif name == "more":
        discriminator.b4.register_buffer("further", torch.zeros(1))
    elif name == "layers":
        del discriminator.mapping.fc7
    elif name == "embedding":
        generator.Model.EmbeddingLayer = nn.Linear(5, 7, bias=False)
    return generator, nn.Linear(1, 1) if name == "kind" else discriminator


@pytest.mark.parametrize("name", ["filter", "activation", "clamp", "more", "layers", "embedding", "kind"])
def test_networks_that_genimg_does_not_have_are_refused(name: str, convert: Any) -> None:
    with pytest.raises(convert["CannotConvertError"]):
        convert["convert"](*changed(name))
