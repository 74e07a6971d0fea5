"""Latents beside packed images: what is read is what was written, for every storage and part, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from numpy.typing import NDArray

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.datasets.prepared import PreparedDataset, prepared
from genimg.data.loader import ImageLoader
from genimg.data.packed_files import DESCRIPTION, LATENT_CHECKSUMS, Description
from genimg.data.packed_latents import LATENTS, LatentEncoder
from genimg.data.packing import pack
from genimg.data.split import without_validation
from genimg.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


def encode(images: NDArray[np.uint8]) -> NDArray[np.float16]:
    return (images[:, :2, ::4, ::4] / 7.0).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = ArrayDataset("noise", IMAGES, np.arange(20) % 2, ("a", "b"))
    encoder = LatentEncoder(encode, (2, 2, 2), "abc", "run")
    pack(source, tmp_path, shard_size=1000, num_threads=2, max_corrupt=None, provenance={}, encoder=encoder)
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


def test_a_directory_without_latents_has_the_former_format(tmp_path: Path) -> None:
    pack(ArrayDataset("noise", IMAGES), tmp_path, shard_size=1000, num_threads=1, max_corrupt=None, provenance={})
    text = (tmp_path / DESCRIPTION).read_text()
    assert '"format": 2' in text
    assert "latents" not in text
    assert opened(tmp_path).latent_key is None
