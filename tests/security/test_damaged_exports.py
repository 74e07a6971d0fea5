"""Exported weights that are damaged, or whose config a stranger has written: refused in one message that names the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from damage import flip
from errors import raises
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genimg.api.data import build_dataset
from genimg.config.instantiate import Builder
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, UserError
from genimg.exporting.digests import content_digest
from genimg.exporting.formats import write_safetensors
from genimg.exporting.networks import exportable
from genimg.exporting.parts import Choices
from genimg.exporting.rebuilding import rebuilt, recipe
from genimg.utils.paths import config_dir

safetensors = pytest.importorskip("safetensors.torch", reason="the packages of genimg[export] are not installed")

SETTINGS = [
    "model=dcgan_small", *tiny.SIZES["dcgan_small"], "conditioning=conditional_batchnorm", "data.image_size=16",
    "data.num_images=4", "run_dir=unused",
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("train", overrides=SETTINGS)
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    builder = Builder(epoch_size=100, batch_size=4)
    source = build_dataset(config, builder)
    facts = DataFacts.of(source, None)
    torch.manual_seed(0)
    method = tiny.method_of(config, source, builder).eval()
    part = exportable(method, Choices(), facts)
    path = tmp_path_factory.mktemp("exported") / "generator.safetensors"
    write_safetensors(part, {"description": "a test", "config": recipe(config, facts, 4, Choices())}, path)
    return path


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "generator.safetensors"
    copy.write_bytes(exported.read_bytes())
    return copy


def image_of(path: Path) -> torch.Tensor:
    network = rebuilt(path)
    inputs = torch.ones(2, 100), torch.tensor([0, 1])
    with torch.no_grad():
        return network(inputs[0][:, : _latent_dim(path)], inputs[1])


def _latent_dim(path: Path) -> int:
    with safetensors.safe_open(str(path), framework="pt") as opened:
        return int(json.loads(opened.metadata()["config"])["model"]["latent"]["dim"])


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safetensors.safe_open(str(path), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def rewrite(
    path: Path,
    config: str | None = None,
    change: Callable[[dict[str, Any]], Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> None:
    """Put other content into the file, with a digest that fits."""
    old, metadata = parts_of(path)
    tensors = old if tensors is None else tensors
    if change is not None:
        changed = json.loads(metadata["config"])
        replaced = change(changed)
        config = json.dumps(changed if replaced is None else replaced)
    metadata["config"] = metadata["config"] if config is None else config
    safetensors.save_file(tensors, str(path), metadata=metadata | {"content_sha256": content_digest(tensors, metadata)})


# Damage


def test_no_flipped_bit_is_read_unnoticed(file: Path) -> None:
    whole, expected, chance, num_refused = file.read_bytes(), image_of(file), random.Random(0), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(200):
        file.write_bytes(whole)
        flip(file, chance.randrange(8 * header) if number % 2 else chance.randrange(8 * header, 8 * len(whole)))
        try:
            found = image_of(file)
        except UserError as error:
            assert str(file) in str(error)  # noqa: PT017 - either is right
            num_refused += 1
        else:
            assert number % 2, "a value of a tensor changed"
            assert torch.equal(found, expected)
    assert num_refused > 190


def test_a_changed_value_is_damage_and_named(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with raises(CheckpointError, word="metadata"):
        rebuilt(file)


def test_changed_metadata_are_damage_too(file: Path) -> None:
    tensors, metadata = parts_of(file)
    safetensors.save_file(tensors, str(file), metadata={**metadata, "description": "another"})
    with raises(CheckpointError, word="damaged"):
        rebuilt(file)


def test_a_file_without_a_digest_is_read_with_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = image_of(file)
    tensors, metadata = parts_of(file)
    del metadata["content_sha256"]
    safetensors.save_file(tensors, str(file), metadata=metadata)
    caplog.clear()
    found = image_of(file)
    assert torch.equal(found, expected)
    assert caplog.messages == [f"{file} was exported without a digest, so damage to it would not be noticed: export it again"]


def test_the_digest_counts_names_types_shapes_and_values() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0), "d": torch.tensor([True])}
    metadata = {"config": "{}"}
    expected = content_digest(tensors, metadata)
    assert content_digest(dict(reversed(tensors.items())), metadata | {"content_sha256": "x"}) == expected
    others = [
        tensors | {"a": tensors["a"].reshape(3, 2)},
        tensors | {"a": tensors["a"].view(torch.int32)},
        tensors | {"a": tensors["a"] + 1},
        tensors | {"c": torch.zeros(0, 2)},
        {**{name: value for name, value in tensors.items() if name != "b"}, "e": tensors["b"]},
    ]
    digests = {content_digest(other, metadata) for other in others} | {content_digest(tensors, {"config": "[]"})}
    assert len(digests) == 6
    assert expected not in digests


# Configs of strangers


@pytest.mark.parametrize(
    "config",
    ["", "{", "null", "[]", '"text"', "5", "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "NaN", '{"model": {}}']
)  # fmt: skip
def test_a_config_that_is_none_is_refused(file: Path, config: str) -> None:
    rewrite(file, config)
    with raises(CheckpointError, word="rebuilt") as caught:
        rebuilt(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def set_key(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        node = config
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return change


def nested(depth: int) -> Any:
    node: Any = {}
    for _ in range(depth):
        node = {"a": node}
    return node


PARTS = ("model", "facts", "choices")
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": lambda config, key=key: config.pop(key) and None for key in (*PARTS, "num_images")},
    **{f"{key} is {value}": set_key(key, to=value) for key in PARTS for value in (None, 5, "text", [1])},
    "no target": lambda config: config["model"].pop("_target_") and None,
    "a target that is no text": set_key("model", "_target_", to=[1]),
    "a target that is not allowed": set_key("model", "_target_", to="os.system"),
    "a target that is no model": set_key("model", "_target_", to="genimg.networks.dcgan.Generator"),
    "a target that is a layer": set_key("model", "_target_", to="torch.nn.Identity"),
    "another generator": set_key("model", "generator", to={"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}),
    "no generator": set_key("model", "generator", to=None),
    "text for a width": set_key("model", "generator", "width", to="wide"),
    "a negative width": set_key("model", "generator", "width", to=-4),
    "another width": set_key("model", "generator", "width", to=8),
    "an interpolation": set_key("model", "generator", "width", to="${oc.env:HOME}"),
    "a deep model": set_key("model", "generator", to=nested(900)),
    "an unknown fact": set_key("facts", "surprise", to=1),
    "text for a fact": set_key("facts", "image_size", to="large"),
    "another number of classes": set_key("facts", "num_classes", to=-1),
    "an unknown choice": set_key("choices", "surprise", to=1),
    "a choice without effect": set_key("choices", "direction", to="ab"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_config_of_odd_content_is_refused(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(file, change=change)
    with raises(UserError, word=str(file)) as caught:
        rebuilt(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_weights_of_another_network_are_refused(file: Path) -> None:
    tensors, _ = parts_of(file)
    name = sorted(tensors)[0]
    for changed in (
        {**tensors, name: torch.zeros(1, 2, 3)},
        {key: value for key, value in tensors.items() if key != name},
        {**tensors, "surprise": torch.zeros(1)},
        {"a": torch.zeros(1)},
    ):
        rewrite(file, tensors=changed)
        with raises(CheckpointError, word="RuntimeError") as caught:
            rebuilt(file)
        assert len(str(caught.value)) < 1000
