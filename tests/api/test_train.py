"""genimg.train writes what genimg-train writes, from a user's own images too, and says what it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import GAN, VAE, Commands
from errors import raises

import genimg
from genimg.api.train import alone_in_run, remove_if_nothing_began
from genimg.training import checkpoint
from genimg.utils.mappings import flatten

pytestmark = pytest.mark.usefixtures("unchanged_process")

OWN = [
    "model=dcgan_small", "model.generator.width=4", "trainer.batch_size=16", "trainer.duration=2 steps", "evaluation=none",
    "trainer.preview_images=4", "device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    warnings.simplefilter("ignore")


def images() -> tuple[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (32, 16, 16), dtype=np.uint8), np.arange(32) % 2


class Items(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels, labels = images()
        return torch.from_numpy(pixels[index][None]).float() / 255, int(labels[index])


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of its last checkpoint."""
    found = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, torch.Tensor):
            found[name] = node
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            walk(value, f"{name}.{key}")

    walk(checkpoint.load(run / "checkpoints" / "last.pt"), "")
    return found


def assert_same(a: Path, b: Path) -> None:
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    assert len(one) > 10
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "arguments"), [("gan", GAN), ("vae", VAE)])
def test_the_checkpoint_is_that_of_the_command(name: str, arguments: list[str], commands: Commands, tmp_path: Path) -> None:
    seen = []
    run = genimg.train([*arguments, f"run_dir={tmp_path / name}"], callbacks=[lambda count, values: seen.append(count)])
    assert_same(run.directory, commands.home / name)
    states = [checkpoint.load(each / name / "checkpoints" / "last.pt") for each in (tmp_path, commands.home)]
    configs = [flatten(state["config"]) for state in states]
    assert {key for key in configs[0] if configs[0][key] != configs[1].get(key)} == {"run_dir"}
    assert run.status == "completed"
    assert run.summary["images"] == run.model(device="cpu").images_seen == 32
    assert seen == [32]


def test_without_run_dir_a_run_makes_a_directory_of_its_own(tmp_path: Path) -> None:
    runs = [genimg.train(OWN, dataset=images()) for _ in range(2)]
    assert runs[0].directory != runs[1].directory
    assert all(run.directory.is_relative_to(tmp_path / "outputs") for run in runs)
    assert_same(runs[0].directory, runs[1].directory)
    assert "summary" not in repr(runs[0])


def test_arrays_and_items_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_a_test.py").write_text(
        "import numpy as np\n\ndef make(count):\n"
        "    return np.random.default_rng(0).integers(0, 256, (count, 16, 16), dtype=np.uint8), np.arange(count) % 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    conditional = [*OWN, "conditioning=projection"]
    arrays = genimg.train(conditional, dataset=images())
    items = genimg.train(conditional, dataset=Items())
    module = ["data=module", "data.factory=package_of_a_test:make", "+data.arguments.count=32", "allow=[package_of_a_test]"]
    named = genimg.train([*conditional, *module])
    assert_same(arrays.directory, items.directory)
    assert_same(arrays.directory, named.directory)
    assert named.model(device="cpu").class_names == ("0", "1")


def test_a_run_on_own_images_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = genimg.train([*OWN, "trainer.duration=4 steps"], dataset=images())
    genimg.train([*OWN, "run_dir=half"], dataset=images())
    resumed = genimg.train(["resume=half", "trainer.duration=4 steps"], dataset=images())
    assert resumed.directory == tmp_path / "half"
    assert_same(whole.directory, resumed.directory)
    assert genimg.train(["resume=half"], dataset=images()).status == "completed"  # nothing is left to do
    with pytest.raises(genimg.ConfigError) as caught:
        genimg.train(["resume=half", "trainer.duration=6 steps"])
    assert caught.value.key == "data"


def test_images_are_brought_to_one_size() -> None:
    run = genimg.train([*OWN, "data.image_size=32", "data.channels=3", "trainer.duration=1 steps"], dataset=images())
    model = run.model(device="cpu")
    assert (model.facts.image_size, model.facts.channels, model.facts.num_classes) == (32, 3, 2)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert genimg.train([*OWN, "dry_run=true"], dataset=images()).status == "dry_run"
    assert not (tmp_path / "outputs").exists()


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(genimg.DivergedError):
        genimg.train([*OWN, "optimizer.lr=1e38", "trainer.duration=20 steps", "loss=wasserstein"], dataset=images())


ERRORS: list[tuple[str, list[str], Callable[[], object], type[genimg.UserError]]] = [
    ("dataset", ["data=mnist"], images, genimg.ConfigError),
    ("dataset", [], lambda: 3, genimg.DataError),
    ("dataset", [], lambda: "mnist", genimg.DataError),
    ("dataset", [], lambda: Path("mnist"), genimg.DataError),
    ("dataset", [], lambda: {"train": []}, genimg.DataError),
    ("dataset", [], list, genimg.DataError),
    ("dataset", [], lambda: np.zeros((4, 8, 8)), genimg.DataError),
    ("dataset", [], lambda: (images()[0], images()[1][:5]), genimg.DataError),
    ("data.channels", ["data.channels=2"], images, genimg.ConfigError),
    ("data.fit", ["data.fit=squeeze"], images, genimg.ConfigError),
    ("data", ["data=given"], lambda: None, genimg.ConfigError),
    ("modle", ["modle=dcgan"], images, genimg.ConfigError),
    ("model.generator.widht", ["model.generator.widht=8"], images, genimg.ConfigError),
    ("trainer.batch_size", ["trainer.batch_size=64"], images, genimg.ConfigError),
    ("data.factory", ["data=module", "data.factory=tiny:gan"], lambda: None, genimg.ConfigError),
    ("data.factory", ["data=module", "data.factory=tiny:gan", "allow=[tiny]"], lambda: None, genimg.ConfigError),
    ("data.factory", ["data=module", "data.factory=tiny:no_such", "allow=[tiny]"], lambda: None, genimg.ConfigError),
    ("data.arguments", ["data=module", "data.factory=tiny:loader_of", "allow=[tiny]"], lambda: None, genimg.ConfigError),
]


@pytest.mark.parametrize(
    ("key", "arguments", "dataset", "kind"), ERRORS, ids=[f"{key}-{i}" for i, (key, *_) in enumerate(ERRORS)]
)
def test_errors_name_the_setting_and_leave_nothing_behind(
    key: str, arguments: list[str], dataset: Callable[[], object], kind: type[genimg.UserError], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        genimg.train([*OWN, *arguments], dataset=dataset())
    assert type(caught.value) is kind
    assert caught.value.key == key
    assert not list((tmp_path / "outputs").glob("*/*"))


@pytest.mark.parametrize(
    ("key", "arguments", "command"),
    [
        ("modle", ["modle=x"], "train"),
        ("trainer.batch_size", ["trainer.batch_size=x"], "train"),
        ("data.root", ["data=folder"], "train"),
        ("provenence", ["provenence=true"], "eval"),
        ("command", [], "fly"),
    ],
)
def test_errors_of_composing(key: str, arguments: list[str], command: str) -> None:
    with pytest.raises(genimg.ConfigError) as caught:
        genimg.compose(arguments, command=command)
    assert caught.value.key == key


@pytest.mark.parametrize(
    "command",
    ["train", "eval", "sample", "latents", "translate", "play", "features", "prepare", "augment", "report", "export", "verify"],
)
def test_every_command_composes(command: str) -> None:
    given = {
        "sample": ["ckpt=a"],
        "play": ["ckpt=a"],
        "latents": ["ckpt=a"],
        "export": ["ckpt=a"],
        "verify": ["run=a"],
        "features": ["data=shapes", "name=a"],
        "prepare": ["data=shapes", "output=a"],
    }
    given |= {"translate": ["ckpt=a", "input=b", "output=c"], "augment": ["input=b", "output=c"], "report": ["runs=[a]"]}
    config = genimg.compose(given.get(command, []), command=command)
    assert config
    with pytest.raises(TypeError):
        config["seed"] = 3


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, genimg; print(sorted({'torch', 'numpy', 'hydra', 'omegaconf', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
    names = "import genimg; [getattr(genimg, name) for name in genimg.__all__]; print(set(genimg.__all__) <= set(dir(genimg)))"
    assert subprocess.run([sys.executable, "-c", names], capture_output=True, text=True).stdout == "True\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with raises(AttributeError, word="trian"):
        genimg.trian  # noqa: B018


def folder_with(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_notes_of_a_refused_start_are_removed_with_the_days_folder(tmp_path: Path) -> None:
    run = folder_with(tmp_path / "2026-11-28" / "run", ".hydra/config.yaml", "train.log")
    other = folder_with(tmp_path / "2026-11-27" / "run", "train.log", "wandb-id.txt", "wandb/run/data")
    folder_with(tmp_path / "2026-11-27" / "another", "config.yaml")
    for each in (run, other):
        remove_if_nothing_began(each)
    assert not run.parent.exists()
    assert [path.name for path in other.parent.iterdir()] == ["another"]


def test_nothing_that_is_anothers_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = folder_with(tmp_path / "theirs", "train.log", "wandb/run/data")
    begun = folder_with(tmp_path / "begun", ".hydra/config.yaml", "train.log", "checkpoints/last.pt")
    used = folder_with(tmp_path / "used", ".hydra/config.yaml", "train.log")
    here = folder_with(tmp_path / "here", "train.log")
    monkeypatch.chdir(here)
    with alone_in_run(used):
        for each in (theirs, begun, used, here):
            remove_if_nothing_began(each)
    for each in (theirs, begun, used, here):
        assert (each / "train.log").is_file()
    assert (theirs / "wandb/run/data").is_file()
