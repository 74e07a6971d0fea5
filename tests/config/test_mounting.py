"""Library classes speak of their own parameters; the config layer says where they stand."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image
from torch import nn

from genimg.config.instantiate import Builder, mounted
from genimg.data.datasets.builtin import CorruptImageError, FileDataset, folder
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError, DataError
from genimg.methods.latent import Normal
from genimg.training.state import TrainerSettings
from genimg.utils.mounting import in_config, mounting, place

ROOT = Path(__file__).resolve().parents[2]
CONDITION = {"_target_": "genimg.networks.conditioning.Unconditional"}
GENERATOR: dict[str, Any] = {
    "_target_": "genimg.networks.stylegan2.Generator", "latent_dim": 4, "condition": CONDITION, "normalisation": "modulation",
    "image_size": 16, "channels": 1, "style_dim": 4, "num_mapping_layers": 1, "channel_base": 64, "channel_max": 8,
    "style_mixing": 0.9, "style_average_decay": 0.99, "conv_clamp": 256.0,
}  # fmt: skip
FEATURES: dict[str, Any] = {
    "_target_": "genimg.networks.dcgan.Features", "image_size": 16, "channels": 1, "condition_channels": 0, "width": 4,
    "bottom_size": 4, "kernel_size": 4, "normalisation": "batch", "activation_first": False,
}  # fmt: skip
AUGMENT: dict[str, Any] = {
    "_target_": "genimg.methods.discriminator_augment.FixedAugment", "groups": {"blit": 2.0}, "p": 0.5,
}  # fmt: skip


def refusal(node: dict[str, Any], key: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Builder().build(node, key)
    return caught.value


@pytest.mark.parametrize("key", ["model.generator", "anything.else", "model"])
@pytest.mark.parametrize(
    ("node", "parameter"),
    [
        (GENERATOR | {"style_mixing": 2.0}, "style_mixing"),
        (GENERATOR | {"image_size": 7}, "image_size"),  # refused by a function that the constructor calls
        (FEATURES | {"kernel_size": 7}, "kernel_size"),
        (FEATURES | {"normalisation": "group"}, "normalisation"),  # refused by a layer that the constructor makes
        (AUGMENT, "groups.blit"),
    ],
)
def test_a_refusal_names_the_key_at_which_the_object_stands(node: dict[str, Any], parameter: str, key: str) -> None:
    error = refusal(node, key)
    assert error.key == f"{key}.{parameter}"
    assert str(error).startswith(f"{key}.{parameter}")


@pytest.mark.parametrize("key", ["model.generator", "anything.else"])
def test_a_part_is_named_by_its_own_path(key: str) -> None:
    condition = {"_target_": "genimg.networks.conditioning.OneHot", "num_classes": 0}
    assert refusal(GENERATOR | {"condition": condition}, key).key == f"{key}.condition.num_classes"


@pytest.mark.parametrize("position", [0, 1])
def test_a_part_in_a_list_is_named_by_its_position(position: int) -> None:
    layers: list[dict[str, Any]] = [
        {"_target_": "genimg.networks.stochastic_layers.StochasticLayer", "below": 4, "latent_dim": 4, "widths": [],
         "activation": "tanh"} for _ in range(2)
    ]  # fmt: skip
    layers[position]["latent_dim"] = 0
    sequence = {"_target_": "torch.nn.Sequential", "_args_": layers}
    assert refusal(sequence, "model.hierarchy").key == f"model.hierarchy._args_[{position}].latent_dim"
    with pytest.raises(ConfigError) as caught:
        Builder().build({"parts": layers}, "model")
    assert caught.value.key == f"model.parts[{position}].latent_dim"


def test_every_parameter_that_is_set_in_a_message_carries_its_key() -> None:
    error = refusal(
        {"_target_": "genimg.networks.vector_quantizer.VectorQuantizer", "num_codes": 4, "dim": 2, "decay": None,
         "restart_below": 0.5}, "model.quantizer",
    )  # fmt: skip
    assert error.key == "model.quantizer.restart_below"
    assert "model.quantizer.decay=null" in str(error)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"accumulation": 3}, "accumulation"), ({"keep_last": 0}, "keep_last"), ({"max_grad_norm": 0.0}, "max_grad_norm")],
)
def test_settings_of_the_trainer_are_named_by_their_keys(changes: dict[str, Any], key: str) -> None:
    settings = {
        "duration": "9 images", "batch_size": 4, "accumulation": 1, "max_grad_norm": None, "log_interval": "1 images",
        "preview_interval": "1 images", "checkpoint_interval": "1 images", "preview_images": 4, "keep_last": 1,
    }  # fmt: skip
    assert isinstance(Builder().settings(TrainerSettings, settings, "trainer"), TrainerSettings)
    with pytest.raises(ConfigError) as caught:
        Builder().settings(TrainerSettings, settings | changes, "trainer")
    assert caught.value.key == f"trainer.{key}"


def test_an_error_that_begins_with_no_parameter_is_a_bug_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Normal, *, dim: int) -> None:
        list(zip(range(dim), range(dim + 1), strict=True))

    monkeypatch.setattr(Normal, "__init__", wrong)
    with raises(ValueError, word="zip") as caught:
        Builder().build({"_target_": "genimg.methods.latent.Normal", "dim": 4}, "model.latent")
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith("zip() argument 2 is longer")


def test_an_error_that_begins_with_another_word_than_a_parameter_passes() -> None:
    with raises(ValueError, "depth=3") as caught, mounted("model.latent", Normal):
        raise ValueError("depth=3 is wrong")
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.Dropout", "p": 2.0},
        {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3, "groups": 2},
    ],
)
def test_what_a_class_of_torch_refuses_is_the_users_mistake(node: dict[str, Any]) -> None:
    error = refusal(node, "model.generator.layer")
    assert error.key.startswith("model.generator.layer")
    assert str(error).startswith("model.generator.layer")
    assert isinstance(error.__cause__, ValueError)
    assert isinstance(Builder().build({"_target_": "torch.nn.Identity"}, "model"), nn.Identity)


# Messages about what happens after an object was built.


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four images with levels that need a range, captions for half of them, and a damaged file."""
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((4, 4), 300.0, dtype=np.float32)).save(tmp_path / f"{name}.tiff")
    (tmp_path / "d.png").write_bytes(b"damaged")
    (tmp_path / "a.txt").write_text("a level")
    return tmp_path


def dataset(root: Path, **settings: object) -> FileDataset:
    node = {"_target_": "genimg.data.datasets.builtin.folder", "root": str(root), "image_size": 4, "channels": 1, "fit": "crop",
            "labels": "auto", **settings}  # fmt: skip
    found = Builder().build(node, "data")
    assert isinstance(found, FileDataset)
    return found


def test_a_loader_names_the_key_of_its_corrupt_images(images: Path) -> None:
    source = dataset(images, range=[0, 300])
    settings: dict[str, Any] = {"storage": "host", "num_workers": 0, "horizontal_flip": False, "device": torch.device("cpu")}
    with mounted("data", ImageLoader):
        loader = ImageLoader(source, max_corrupt=0, **settings)
    with pytest.raises(DataError) as caught:
        loader.load()
    assert caught.value.key == "data.max_corrupt"
    assert "with data.max_corrupt=N" in caught.value.fix
    with pytest.raises(DataError) as caught:
        ImageLoader(source, max_corrupt=0, **settings).load()  # of a command with this option
    assert "with max_corrupt=N" in caught.value.fix


def test_an_image_that_is_read_later_names_the_key_of_its_levels(images: Path) -> None:
    """Also in another process."""
    content = (images / "a.tiff").read_bytes()
    for name in ("a", "b", "c"):  # the check before training finds no levels
        (images / f"{name}.tiff").write_bytes(b"damaged")
    source = dataset(images)
    (images / "a.tiff").write_bytes(content)
    with pytest.raises(CorruptImageError, match=r" data\.range=\[low,high\]"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_captions_that_are_read_later_name_their_key(images: Path) -> None:
    source = dataset(images, captions="auto", range=[0, 300])
    with pytest.raises(DataError) as caught:
        source.caption(0)
    assert caught.value.key == "data.captions"
    assert "data.captions=null" in caught.value.fix


def test_warnings_name_the_keys_of_the_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.png", "b/1.png", "stray.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    dataset(tmp_path, range=[0, 4095])
    assert "data.range=[0,4095] has no effect" in caplog.text
    assert " data.labels=none" in caplog.text
    caplog.clear()
    folder(root=str(tmp_path), image_size=4, channels=1, fit="crop", labels="auto")
    assert " labels=none" in caplog.text


def test_a_place_ends_with_its_block() -> None:
    with mounting("model", ["width"]), mounting("loss", ["weight"]):
        kept = place()
        assert in_config("width=1 and weight=2") == "model.width=1 and loss.weight=2"
    assert in_config("width=1") == "width=1"
    assert kept.name("width=1") == "model.width=1"
    error = kept.mounted(ConfigError("weight=0 must be positive: see width=1"))
    assert (str(error), error.key) == ("loss.weight=0 must be positive: see model.width=1", "loss.weight")


# The source itself.

PACKAGES = ("data", "evaluation", "networks", "losses", "methods", "training", "inference")
"""Packages of genimg whose messages must not name the config."""

GROUPS = (
    "model", "loss", "likelihood", "penalty", "discriminator_augment", "augment", "conditioning", "trainer", "performance",
    "optimizer", "schedule", "logger", "evaluation", "data", "task",
)  # fmt: skip
SETTING = re.compile(rf"\b({'|'.join(GROUPS)})(\.\w+)+=")


def text_of(node: ast.AST) -> str:
    """Return a string of the source, with an x for every value that is put into it; nothing for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def strings_for_users(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string in a raise statement or a call of ``log``."""
    for node in ast.walk(tree):
        is_log = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "log"
        if isinstance(node, ast.Raise) or is_log:
            yield from (
                (part.lineno, text) for part in ast.walk(node) if isinstance(part, ast.expr) and (text := text_of(part))
            )


def test_messages_of_libraries_name_no_key_of_the_config() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / "genimg" / package).rglob("*.py"))]
    assert len(paths) > 50
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in [*paths, ROOT / "genimg" / "schedules.py"]
        for line, text in strings_for_users(ast.parse(path.read_text(encoding="utf-8")))
        if SETTING.search(text)
    ]
    assert not found, "\n".join(found)


OPTIONS = {"copy_folder.py", "stats_cache.py", "sample.py"}  # files whose log messages name options of commands


def calls_of_log(tree: ast.AST) -> Iterator[tuple[int, bool, bool]]:
    """Yield for each call of ``log``: its line, whether its text sets a parameter, and whether ``in_config`` adds the key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "log":
            sets = any(re.search(r"(?<![\w.])[a-z_]+=", text_of(part)) for part in ast.walk(node))
            yield node.lineno, sets, "in_config(" in ast.unparse(node)


def test_log_messages_of_libraries_get_the_keys_of_the_config() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in sorted((ROOT / "genimg" / package).rglob("*.py"))
        if path.name not in OPTIONS
        for line, sets, has_key in calls_of_log(ast.parse(path.read_text(encoding="utf-8")))
        if sets and not has_key
    ]
    assert not found, "\n".join(found)


def test_the_search_finds_what_it_is_for() -> None:
    source = """
raise ValueError(f"model.width={w} must be positive")
raise ValueError(f"penalty.{name}.gamma={gamma} must be positive")
log.info("to use it, set data.root=PATH")
raise ValueError("width=0 must be positive")
text = "model.width=1"
"""
    found = {line for line, text in strings_for_users(ast.parse(source)) if SETTING.search(text)}
    assert found == {2, 3, 4}
