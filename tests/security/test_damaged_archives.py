"""Archives of NumPy that are damaged, or ask for more memory than their file: refused in one message that names the file."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import flip
from errors import raises

from genimg.api.inputs import ImageReader
from genimg.config.instantiate import ALLOWED, Builder
from genimg.data import numpy_archive
from genimg.data.datasets.builtin import ImageDataset
from genimg.data.datasets.npz import npz
from genimg.errors import DataError
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.evaluation.stats_cache import SavedStatistics

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
FEATURES = np.random.default_rng(0).normal(size=(40, 6))


def open_npz(path: Path) -> ImageDataset:
    return npz(path=str(path), image_size=None, channels=None, fit="crop")


@contextmanager
def little_memory(most: int = 2**23) -> Iterator[None]:
    """Fail where more memory is taken, also for a moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_members(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def claim(path: Path, num_bytes: int) -> None:
    """Make the archive's directory say that its first member has this many bytes when it is inflated."""
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = struct.pack("<I", num_bytes)
    path.write_bytes(content)


# Damage


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_bit_of_images_is_read_unnoticed(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "a.npz"
    save(path, arr_0=IMAGES, arr_1=LABELS)
    whole, chance, num_refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        path.write_bytes(whole)
        flip(path, chance.randrange(8 * len(whole)))
        try:
            found = open_npz(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - either is right
            num_refused += 1
        else:
            assert np.array_equal(found.read_many(np.arange(12)), IMAGES.transpose(0, 3, 1, 2))
            assert found.labels is not None
            assert found.labels.tolist() == LABELS.tolist()
    assert num_refused > 200


def test_no_flipped_bit_of_statistics_of_another_program_is_read_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "fid.npz"
    mean, covariance = FEATURES.mean(axis=0), np.cov(FEATURES, rowvar=False)
    np.savez(path, mu=mean, sigma=covariance)
    whole, chance, num_refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        path.write_bytes(whole)
        flip(path, chance.randrange(8 * len(whole)))
        try:
            moments = SavedStatistics.read(path).summary.moments
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - either is right
            num_refused += 1
        else:
            assert np.array_equal(moments.mean.numpy(), mean)
            assert np.array_equal(moments.covariance.numpy(), covariance)
    assert num_refused > 100


def test_an_array_that_is_shorter_than_its_record_is_refused(tmp_path: Path) -> None:
    """Reading would stop before the end, where the checksum is compared."""
    path = write_members(tmp_path / "a.npz", {"images.npy": header((2, 4, 4, 3)) + bytes(3 * 4 * 4 * 3)})
    with raises(DataError, "path", word="uint8 [2, 4, 4, 3]"):
        open_npz(path)


# Memory


@pytest.mark.parametrize("shape", [(10**6, 64, 64, 3), (10**12, 64, 64, 3), (10**30, 4, 4, 3), (-5, 4, 4, 3)])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_says_to_be_huge_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], method: int
) -> None:
    path = write_members(tmp_path / "a.npz", {"images.npy": header(shape) + bytes(1000)}, method)
    with little_memory(), raises(DataError, word=str(path)):
        open_npz(path)


def test_a_member_that_says_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    num_images = (2**32 - 1 - 128) // 48
    first = header((num_images, 4, 4, 3))
    for method, word in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "numpy.savez")):
        path = write_members(tmp_path / "a.npz", {"images.npy": first + bytes(2**20)}, method)
        claim(path, len(first) + 48 * num_images)
        with little_memory(), raises(DataError, "path", word=word):
            open_npz(path)


def test_a_member_that_is_compressed_more_than_any_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = np.zeros((1000, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "black.npz", images=black)
    assert open_npz(tmp_path / "black.npz").read(7).max() == 0  # 12 MB are no harm
    monkeypatch.setattr(numpy_archive, "_MOST_INFLATED", 2**23)
    with little_memory(), raises(DataError, "path", word="numpy.savez"):
        open_npz(tmp_path / "black.npz")
    np.savez(tmp_path / "stored.npz", images=black)
    assert len(open_npz(tmp_path / "stored.npz")) == 1000
    noise = np.random.default_rng(0).integers(0, 16, (1000, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "noise.npz", images=noise)
    assert len(open_npz(tmp_path / "noise.npz")) == 1000


def test_a_header_without_end_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    endless = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28) + b" " * 2**26
    path = write_members(tmp_path / "a.npz", {"images.npy": endless}, zipfile.ZIP_DEFLATED)
    with little_memory(), raises(DataError, word=str(path)):
        open_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_whose_readers_have_no_bound_are_refused(tmp_path: Path, method: int) -> None:
    path = write_members(tmp_path / "a.npz", {"images.npy": header((4, 4, 4, 3)) + bytes(192)}, method)
    with raises(DataError, "path", word="compression"):
        open_npz(path)


# Objects and oddities


ODD: dict[str, dict[str, bytes]] = {
    "no members": {},
    "a member that is no array": {"images.npy": header((1, 4, 4, 3)) + bytes(48), "README": b"text"},
    "two arrays of one name": {"images.npy": header((1, 4, 4, 3)) + bytes(48), "images": header((1, 4, 4, 3)) + bytes(48)},
    "a header that is deep": {"images.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000},
    "a header that is code": {"images.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 16) + b"__import__('os')"},
    "a header of two lines": {"images.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 8) + b"  {\n}\n \n"},
    "objects": {"images.npy": header((1, 4, 4), "|O") + bytes(48)},
    "values without bytes": {"images.npy": header((10**9, 4, 4, 3), "|V0")},
}


@pytest.mark.parametrize("members", ODD.values(), ids=ODD)
def test_archives_of_odd_content_are_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = write_members(tmp_path / "a.npz", members)
    with little_memory(), raises(DataError, f"path={path}"):
        open_npz(path)


def test_objects_are_not_read_beside_images_either(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([{"a": 1}] * 12, dtype=object))
    with raises(DataError, "path", word="labels"):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("key", ["images", "real"])
def test_what_genimg_eval_is_given_is_refused_by_the_name_of_the_option(tmp_path: Path, key: str) -> None:
    path = write_members(tmp_path / "a.npz", {"images.npy": header((10**6, 64, 64, 3)) + bytes(1000)})
    reader = ImageReader(Builder(ALLOWED), torch.device("cpu"))
    with little_memory(), raises(DataError, f"{key}={path}"):
        reader.read(key, str(path))


# Statistics


def write_own(path: Path, **changes: Any) -> None:
    values = torch.from_numpy(FEATURES)
    summary = FeatureStats(
        GaussianStatistics.of(values), features=values.float(), positions=torch.arange(40), predictions=torch.arange(40) % 3
    )
    SavedStatistics(summary, {"name": "x"}, {"source": "y", "num_images": 40}).write(path)
    if changes:
        torch.save(torch.load(path, weights_only=True) | changes, path)


NAN, EYE = float("nan"), torch.eye(6, dtype=torch.float64)
OWN: dict[str, dict[str, Any]] = {
    "no images": {"num_images": 0},
    "half an image": {"num_images": 2.5},
    "text for the mean": {"mean": "text"},
    "a list for the mean": {"mean": [0.0] * 6},
    "an empty mean": {"mean": torch.zeros(0, dtype=torch.float64), "covariance": torch.zeros(0, 0, dtype=torch.float64)},
    "another mean": {"mean": torch.zeros(5, dtype=torch.float64)},
    "a mean of integers": {"mean": torch.zeros(6, dtype=torch.int64)},
    "a mean that is not finite": {"mean": torch.full((6,), NAN, dtype=torch.float64)},
    "a covariance that is not square": {"covariance": torch.zeros(6, 7, dtype=torch.float64)},
    "a covariance that is a vector": {"covariance": torch.zeros(36, dtype=torch.float64)},
    "a covariance that is not finite": {"covariance": EYE * NAN},
    "a covariance that is not symmetric": {"covariance": EYE + torch.triu(torch.ones(6, 6, dtype=torch.float64), 1)},
    "negative variances": {"covariance": -EYE},
    "another root": {"root": torch.eye(5, dtype=torch.float64)},
    "no root": {"root": None},
    "other features": {"features": torch.zeros(40, 5)},
    "features that are not finite": {"features": torch.full((40, 6), NAN)},
    "positions that decrease": {"positions": torch.arange(40).flip(0)},
    "positions beyond the images": {"positions": torch.arange(40) + 10},
    "fewer positions": {"positions": torch.arange(30)},
    "predictions that are numbers": {"predictions": torch.zeros(40)},
    "negative predictions": {"predictions": torch.full((40,), -1)},
    "text for the spatial features": {"spatial": "text"},
    "half of the spatial features": {"spatial": {"num_images": 40, "mean": torch.zeros(3, dtype=torch.float64)}},
    "text for the images": {"images": "text"},
    "text for their number": {"images": {"num_images": "many"}},
    "text for the extractor": {"extractor": "text"},
}


@pytest.mark.parametrize("changes", OWN.values(), ids=OWN)
def test_statistics_of_odd_content_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "statistics.pt"
    write_own(path)
    SavedStatistics.read(path)
    write_own(path, **changes)
    with raises(DataError, word="statistics"):
        SavedStatistics.read(path)


MEAN, SIGMA = np.zeros(3), np.eye(3)
FOREIGN: dict[str, dict[str, Any]] = {
    "no mean": {"sigma": SIGMA},
    "no covariance": {"mu": MEAN},
    "text": {"mu": np.array(["a"] * 3), "sigma": SIGMA},
    "objects": {"mu": np.array([{}] * 3, dtype=object), "sigma": SIGMA},
    "complex values": {"mu": MEAN, "sigma": SIGMA * 1j},
    "truth values": {"mu": MEAN > 0, "sigma": SIGMA > 0},
    "a number": {"mu": np.array(0.0), "sigma": SIGMA},
    "nothing": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
    "not square": {"mu": MEAN, "sigma": np.zeros((3, 4))},
    "not finite": {"mu": MEAN, "sigma": SIGMA * NAN},
    "not symmetric": {"mu": MEAN, "sigma": np.triu(np.ones((3, 3)))},
    "negative": {"mu": MEAN, "sigma": -SIGMA},
    "half of the spatial features": {"mu": MEAN, "sigma": SIGMA, "mu_s": MEAN},
    "features of another size": {"arr_0": np.zeros((5, 4)), "mu": MEAN, "sigma": SIGMA},
    "features that are not finite": {"arr_0": np.full((5, 4), NAN)},
    "features of one image": {"arr_0": np.zeros((1, 4))},
    "no features": {"arr_0": np.zeros((5, 0))},
    "more features than memory": {"arr_0": np.zeros((2, 100_000))},
}


@pytest.mark.parametrize("arrays", FOREIGN.values(), ids=FOREIGN)
def test_statistics_of_other_programs_of_odd_content_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "fid.npz"
    np.savez(path, **arrays)
    with raises(DataError, word="statistics"):
        SavedStatistics.read(path)
