"""Latents beside packed images: what is read is what was written, for every storage and part, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.datasets.prepared import PreparedDataset, prepared
from genimg.data.loader import ImageLoader
from genimg.data.packed_files import DESCRIPTION, LATENT_CHECKSUMS, Description, Latents, sealed
from genimg.data.packed_latents import LATENTS, LatentSource
from genimg.data.packing import pack
from genimg.data.split import without_validation
from genimg.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


def encode(images: NDArray[np.uint8]) -> NDArray[np.float16]:
    return (images[:, :2, ::4, ::4] / 7.0).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = ArrayDataset("noise", IMAGES, np.arange(20) % 2, ("a", "b"))
    encoder = LatentSource(lambda images, indices: encode(images), Latents((2, 2, 2), "abc", "run"))
    pack(source, tmp_path, shard_size=1000, num_threads=2, max_corrupt=None, provenance={}, latent_source=encoder)
    return tmp_path


def opened(folder: Path) -> PreparedDataset:
    found = prepared(root=str(folder), image_size=8, channels=3)
    assert isinstance(found, PreparedDataset)
    return found


def test_latents_are_those_of_the_images(folder: Path) -> None:
    source = opened(folder)
    assert source.latent_key == "latent_abc"
    assert np.array_equal(source.latents(np.array([7, 3])), encode(IMAGES[[7, 3]]))
    description = Description.read(folder / DESCRIPTION)
    assert description.latents is not None
    assert (description.latents.shape, description.latents.run) == ((2, 2, 2), "run")
    part = without_validation(source, 0.2)
    assert part.latent_key == "latent_abc"
    assert part.validation is not None
    indices = np.arange(4)
    assert np.array_equal(part.validation.latents(indices), encode(part.validation.read_many(indices)))


@pytest.mark.parametrize("storage", ["device", "host", "workers"])
def test_batches_hold_the_latents_of_their_images(storage: str, folder: Path) -> None:
    settings = {"num_workers": 0, "horizontal_flip": False, "max_corrupt": 0, "device": torch.device("cpu")}
    loader = ImageLoader(opened(folder), storage=storage, keys=("image", "label", "latent_abc"), **settings)
    batch = next(loader.batches(3, batch_size=5, seed=0))
    images = ((batch["image"] + 1.0) * 127.5).round().byte().contiguous().numpy()
    assert np.array_equal(batch["latent_abc"].numpy(), encode(images))
    without = ImageLoader(opened(folder), storage=storage, keys=("image",), **settings)
    assert next(without.batches(3, batch_size=5, seed=0)).keys() == {"image"}
    with raises(ConfigError, word="horizontal_flip"):
        ImageLoader(opened(folder), storage=storage, keys=("image", "latent_abc"), **(settings | {"horizontal_flip": True}))


@pytest.mark.parametrize("damage", ["value", "cut", "missing", "checksums", "shape"])
def test_damage_is_noticed(damage: str, folder: Path) -> None:
    file, checksums = folder / LATENTS, folder / LATENT_CHECKSUMS
    content = bytearray(file.read_bytes())
    if damage == "value":
        content[-1] ^= 1
    elif damage == "cut":
        content = content[:-2]
    elif damage == "shape":
        content = content.replace(b"(20, 2,", b"(20, 4,")
    file.write_bytes(content)
    if damage == "missing":
        file.unlink()
    elif damage == "checksums":
        checksums.write_bytes(checksums.read_bytes()[:-1] + b"\0")
    with raises(DataError, word="latent"):
        opened(folder).latents(np.arange(20))


def test_directories_of_former_versions_still_read_and_are_written_as_before(folder: Path) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    assert content["format"] == 3
    assert content["latents"] == {"shape": [2, 2, 2], "sha256": "abc", "run": "run"}


def packed_noise(folder: Path) -> None:
    """20 images whose noise tells their index."""

    def noise(images: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.float16]:
        return np.broadcast_to(indices[:, None, None, None], (len(indices), 3, 8, 8)).astype(np.float16)

    encoder = LatentSource(noise, Latents((3, 8, 8), "abc", "run", is_noise=True))
    source = ArrayDataset("noise", np.repeat(np.arange(20, dtype=np.uint8), 192).reshape(20, 3, 8, 8))
    pack(source, folder, shard_size=1000, num_threads=1, max_corrupt=None, provenance={}, latent_source=encoder, batch_size=7)


@pytest.mark.parametrize("storage", ["device", "host", "workers"])
def test_batches_and_examples_hold_the_noise_of_their_images(storage: str, tmp_path: Path) -> None:
    packed_noise(tmp_path)
    assert json.loads((tmp_path / DESCRIPTION).read_text())["format"] == 4
    settings = {"num_workers": 0, "horizontal_flip": False, "max_corrupt": 0, "device": torch.device("cpu")}
    source = without_validation(opened(tmp_path), 0.25)
    assert source.latent_key == "noise"
    loader = ImageLoader(source, storage=storage, keys=("image", "noise"), **settings)
    assert loader.validation is not None
    chosen = np.array([4, 1])
    for batch in (
        next(loader.batches(3, batch_size=5, seed=0)), loader.examples(chosen, 0), loader.validation.examples(chosen, 0)
    ):  # fmt: skip
        levels = ((batch["image"] + 1.0) * 127.5).round()
        assert torch.equal(batch["noise"].float(), levels)
        assert batch["noise"].dtype == torch.float16
    with raises(ConfigError, word="noise"):
        ImageLoader(source, storage=storage, keys=("image", "noise"), **(settings | {"horizontal_flip": True}))
    without = ImageLoader(source, storage=storage, keys=("image",), **settings)
    assert without.examples(chosen, 0).keys() == {"image"}


def test_noise_of_another_shape_than_the_images_is_refused(tmp_path: Path) -> None:
    packed_noise(tmp_path)
    for change in ({"shape": [3, 4, 8]}, {"is_noise": 1}):
        content = json.loads((tmp_path / DESCRIPTION).read_text())
        del content["sha256"]
        content["latents"] |= change
        (tmp_path / "changed").mkdir(exist_ok=True)
        (tmp_path / "changed" / DESCRIPTION).write_text(json.dumps(sealed(content)))
        with raises(DataError, word="damaged"):
            Description.read(tmp_path / "changed" / DESCRIPTION)


def test_a_directory_without_latents_has_the_former_format(tmp_path: Path) -> None:
    pack(ArrayDataset("noise", IMAGES), tmp_path, shard_size=1000, num_threads=1, max_corrupt=None, provenance={})
    text = (tmp_path / DESCRIPTION).read_text()
    assert '"format": 2' in text
    assert "latents" not in text
    assert opened(tmp_path).latent_key is None
