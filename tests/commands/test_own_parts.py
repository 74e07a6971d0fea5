"""Parts of a package of the user's own: networks need ``allow``, what only training needs does not once it has ended."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import genimg
from genimg import cli

pytestmark = pytest.mark.usefixtures("unchanged_process")

PACKAGE = '''
import numpy as np
import torch
from torch import nn

from genimg.data.datasets.builtin import ArrayDataset
from genimg.losses.adversarial import AdversarialLoss
from genimg.losses.elbo import Bound
from genimg.losses.penalties import DiscriminatorPenalty
from genimg.losses.reconstruction import ReconstructionLoss
from genimg.methods.base import Method
from genimg.methods.export_spec import ExportSpec, Port


class Generator(nn.Module):
    def __init__(self, latent_dim, image_size, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, channels * image_size**2), nn.Tanh(), nn.Unflatten(1, (channels, image_size, image_size))
        )

    def forward(self, latent):
        return self.layers(latent)


class Judge(nn.Module):
    def __init__(self, image_size, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 1))

    def forward(self, image):
        return self.layers(image)


class Drift(DiscriminatorPenalty):
    """With a buffer, which is in the checkpoint."""

    def __init__(self, *, weight):
        super().__init__(interval=1)
        self.weight = weight
        self.register_buffer("average", torch.zeros(()))

    def forward(self, sides):
        return self.weight * sides.logits(sides.real).square().mean()


class OwnLoss(AdversarialLoss):
    pass


class OwnBound(Bound):
    def __init__(self, *, likelihood, weight):
        super().__init__(likelihood, 1)
        self.weight = weight
        self.register_buffer("seen", torch.zeros(()))

    def objective(self, inference, reconstruction, kl):
        return reconstruction + self.weight * kl, {}


class Restoring(Method):
    """Trains one network, which it exports, and can do nothing else."""

    loss_type = ReconstructionLoss
    inference_networks = ("network",)

    def __init__(self, *, network, loss):
        super().__init__()
        self.network = network
        self.loss = loss

    def parameter_groups(self):
        return {"network": list(self.network.parameters())}

    def step(self, batch, progress, update):
        return update("network", self._loss, batch)

    def _loss(self, batch):
        loss = self.loss(self.network(batch["image"] + torch.randn_like(batch["image"])), batch["image"])
        return loss, {"loss/reconstruction": loss.detach()}

    def check(self, batch):
        self._loss(batch)

    def preview(self, batch, drawn):
        return {"restored": self.network(batch["image"])}

    def export_spec(self, truncation):
        noisy = Port("noisy", torch.float32, ("batch", 3, 16, 16), "in [-1, 1]", torch.rand)
        return ExportSpec(
            name="network",
            parts={"network": self.network},
            inputs=(noisy,),
            forward=lambda parts, batch: parts.network(batch["noisy"]),
            reference=lambda batch: self.network(batch["noisy"]),
        )


def noise(*, num_images, image_size, channels):
    numbers = np.random.default_rng(0)
    return ArrayDataset("noise", numbers.integers(0, 256, (num_images, channels, image_size, image_size), dtype=np.uint8))
'''
GAN = """
defaults: [gan_base, _self_]
generator:
  _target_: own_parts.Generator
  latent_dim: ${model.latent.dim}
discriminator:
  _target_: own_parts.Judge
"""
METHOD = """
defaults:
  - override /loss@_global_.loss: l2
  - override /optimizer@_global_.optimizer: adam
  - override /ema@_global_.ema: [exponential]
  - _self_
_target_: own_parts.Restoring
loss: ${loss}
network:
  _target_: torch.nn.Sequential
  _args_:
    - {_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 3, kernel_size: 3, padding: 1}
    - {_target_: torch.nn.Tanh}
"""
BOUND = """
_target_: own_parts.OwnBound
likelihood: ${likelihood}
weight: 0.5
"""
DATA = """
defaults: [base, _self_]
_target_: own_parts.noise
num_images: 16
image_size: 16
channels: 1
"""
SMALL = [
    "trainer.batch_size=8", "trainer.duration=1 steps", "trainer.preview_images=2", "evaluation=none", "precision=fp32",
    "device=cpu", "allow=[own_parts]",
]  # fmt: skip
SHAPES = ["data=shapes", "data.num_images=16", "data.image_size=16"]
RUNS = {
    "networks": ["model=own_gan", *SHAPES],
    "method": ["model=own_method", *SHAPES],
    "gan": [
        "model=dcgan_small", "model.generator.width=4", "data=noise", "loss._target_=own_parts.OwnLoss",
        "+penalty.drift._target_=own_parts.Drift", "+penalty.drift.weight=0.1", "discriminator_augment=ada",
    ],
    "vae": ["model=vae_small", "model.encoder.width=4", "data=noise", "loss=own_bound", "likelihood=gaussian_learnt"],
    "restoration": [
        "model=restoration", "model.translator.width=4", "model.translator.num_blocks=1", "task=denoise", "data=noise",
    ],
}  # fmt: skip
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("own")
    (root / "own_parts.py").write_text(PACKAGE)
    for name, text in {"model/own_gan": GAN, "model/own_method": METHOD, "loss/own_bound": BOUND, "data/noise": DATA}.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    yield root
    sys.path.remove(str(root))
    sys.modules.pop("own_parts", None)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"genimg-{name}", *arguments])
        try:
            getattr(cli, {"eval": "evaluate"}.get(name, name))()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def trained(folder: Path, run: Run) -> Callable[[str], Path]:
    """Trains the run of a name, once."""

    def trained(name: str) -> Path:
        if not (folder / name).exists():
            code, errors = run("train", "--config-dir", "configs", f"run_dir={name}", *SMALL, *RUNS[name])
            assert code == 0, errors
        return folder / name

    return trained


def forget() -> None:
    """So that the package would have to be imported again."""
    sys.modules.pop("own_parts", None)


def test_own_networks_are_sampled_evaluated_and_exported_with_allow(run: Run, trained: Callable[[str], Path]) -> None:
    path = trained("networks")
    for command in (
        ("sample", f"ckpt={path}", "num_images=2", "truncation=0.5"),
        ("export", f"ckpt={path}", "format=pt2"),
        ("eval", f"ckpt={path}", "num_images=16", "evaluation=shapes", "evaluation.bootstrap=0"),
    ):
        code, errors = run(*command, "allow=[own_parts]", "device=cpu")
        assert code == 0, errors
        code, errors = run(*command, "device=cpu")
        assert code == 2
        assert errors.splitlines()[-1].endswith("if you trust it, add allow=[own_parts]")
        assert "genimg.networks" not in errors
    latent = torch.randn(2, 100)
    exported = torch.export.load(path / "generator.pt2").module()
    generator = genimg.load(path, allow=["own_parts"]).method.generator
    assert torch.allclose(exported(latent), generator(latent, latent[:, :0]).detach(), atol=1e-6)


def test_the_export_of_an_own_generator_refuses_truncation(run: Run, trained: Callable[[str], Path]) -> None:
    code, errors = run("export", f"ckpt={trained('networks')}", "allow=[own_parts]", "truncation=0.5", "device=cpu")
    assert code == 2
    assert errors.splitlines()[-1].startswith("genimg-export: error: truncation=0.5")


def test_an_own_method_states_what_it_exports(run: Run, trained: Callable[[str], Path]) -> None:
    path = trained("method")
    code, errors = run("export", f"ckpt={path}", "allow=[own_parts]", "device=cpu")
    assert code == 0, errors
    image = torch.rand(3, 3, 16, 16)
    record = {"genimg.json": ""}
    exported = torch.export.load(path / "network.pt2", extra_files=record).module()
    network = genimg.load(path, allow=["own_parts"]).method.network
    assert torch.allclose(exported(image), network(image).detach(), atol=1e-6)
    assert '"name": "noisy"' in record["genimg.json"]


def test_a_conditioning_that_own_networks_cannot_read_is_refused(run: Run) -> None:
    code, errors = run(
        "train", "--config-dir", "configs", "run_dir=refused", *SMALL, *RUNS["networks"], "conditioning=projection"
    )
    assert code == 2
    assert errors.splitlines()[-1].startswith("genimg-train: error: conditioning has no effect")


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_sampling_and_exporting_do_not_look_at_loss_penalties_and_data(
    name: str, run: Run, trained: Callable[[str], Path]
) -> None:
    path = trained(name)
    with_package = genimg.load(path, allow=["own_parts"]).sample(3)
    forget()
    for command in (("sample", f"ckpt={path}", "num_images=2"), ("export", f"ckpt={path}", "format=pt2")):
        code, errors = run(*command, "device=cpu")
        assert code == 0, errors
    model = genimg.load(path)
    assert torch.equal(model.sample(3), with_package)
    assert "own_parts" not in sys.modules
    state = torch.load(path / "checkpoints" / "last.pt", weights_only=True)
    saved = state["method"] | state["averages"].get("exponential", {})
    own = "penalties.drift.average" if name == "gan" else "loss.seen"
    assert own in saved
    kept = model.method.state_dict()
    assert own not in kept
    assert all(torch.equal(kept[key], saved[key]) for key in kept)


def test_translating_does_not_look_at_the_data(run: Run, trained: Callable[[str], Path], folder: Path) -> None:
    path = trained("restoration")
    sampled = folder / "pictures"
    code, errors = run("sample", f"ckpt={trained('gan')}", "num_images=2", f"output={sampled}", "device=cpu")
    assert code == 0, errors
    forget()
    code, errors = run("translate", f"ckpt={path}", f"input={sampled}", f"output={folder / 'restored'}", "device=cpu")
    assert code == 0, errors
    assert "own_parts" not in sys.modules
