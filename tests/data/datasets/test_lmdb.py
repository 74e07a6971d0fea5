"""An LMDB database gives the images that were written, in any process, and is opened read-only."""

import io
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.data.datasets import lmdb as module
from genimg.data.datasets.builtin import CorruptImageError
from genimg.data.loader import ImageLoader
from genimg.errors import ConfigError, DataError

lmdb = pytest.importorskip("lmdb")
COUNT = 20


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(i):
    buffer = io.BytesIO()
    Image.fromarray(pixels(i)).save(buffer, "WEBP", lossless=True)  # LSUN's format
    return buffer.getvalue()


def write(path, values):
    environment = lmdb.open(str(path), map_size=2**24, subdir=path.suffix != ".mdb")
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    return write(tmp_path / "db", {b"%08x" % (i * 7919): encoded(i) for i in range(COUNT)})


def open_database(root, **changes):
    return module.lmdb(**({"root": str(root), "image_size": 8, "channels": 3, "fit": "crop"} | changes))


def keys():
    return sorted(range(COUNT), key=lambda i: b"%08x" % (i * 7919))


def test_images_are_those_that_were_written(root):
    source = open_database(root)
    assert source.paths == [f"{i * 7919:08x}" for i in keys()]
    assert np.array_equal(source.read_many(np.arange(COUNT)), np.stack([pixels(i).transpose(2, 0, 1) for i in keys()]))
    assert source.labels is None
    assert not source.captioned
    assert open_database(root, image_size=None, channels=None).shape == (3, 8, 8)


def test_nothing_is_written_beside_the_database(tmp_path, root):
    (root / "lock.mdb").unlink()
    os.chmod(root, 0o500)
    try:
        open_database(root).read(0)
        assert os.listdir(root) == ["data.mdb"]
    finally:
        os.chmod(root, 0o700)


def test_a_database_in_one_file_is_read(tmp_path):
    path = write(tmp_path / "one.mdb", {b"a": encoded(0)})
    assert np.array_equal(open_database(path).read(0), pixels(0).transpose(2, 0, 1))


def test_other_values_are_left_out(tmp_path):
    images = {b"64-%05d" % i: encoded(i) for i in range(3)} | {b"128-%05d" % i: encoded(9) for i in range(3)}
    root = write(tmp_path / "db", images | {b"length": b"3", b"num-samples": b"3", b"label-1": b"cat"})
    source = open_database(root, prefix="64-")
    assert source.paths == ["64-00000", "64-00001", "64-00002"]
    with raises(DataError, "root", word="32-"):
        open_database(root, prefix="32-")
    everything = open_database(root)
    assert len(everything) == 7
    with raises(CorruptImageError, word="label-1"):
        everything.read(6)


def _read(source):
    return np.stack([source.read(i % COUNT) for i in range(100)])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_threads_and_processes_read_at_once(root, method):
    source = open_database(root)
    expected = _read(source)  # before the processes start, so that the open database would be shared
    assert len(pickle.dumps(source)) < 5000
    with multiprocessing.get_context(method).Pool(2) as pool, ThreadPoolExecutor(2) as threads:
        found = pool.map_async(_read, [source] * 3)
        assert all(np.array_equal(images, expected) for images in threads.map(_read, [source] * 3))
        assert all(np.array_equal(images, expected) for images in found.get(timeout=120))


def test_workers_give_the_same_batches(root):
    batches = []
    for storage, num_workers in (("device", 1), ("workers", 2)):
        data = ImageLoader(open_database(root), storage=storage, num_workers=num_workers, horizontal_flip=True,
                           max_corrupt=None, device=torch.device("cpu"))  # fmt: skip
        stream = data.batches(0, batch_size=6, seed=0)
        batches.append([next(stream)["image"] for _ in range(5)])
        stream.close()
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


def test_the_fingerprint_is_of_keys_and_contents(root, tmp_path):
    values = {b"%08x" % (i * 7919): encoded(i) for i in range(COUNT)}
    before = open_database(root).fingerprint
    assert open_database(write(tmp_path / "copy", values)).fingerprint == before
    values[b"%08x" % 0] = encoded(99)
    assert open_database(write(tmp_path / "other", values)).fingerprint != before


def test_a_long_list_of_keys_is_saved(root, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    before = open_database(root)
    with monkeypatch.context() as patch:
        patch.setattr(module.LmdbImages, "_walk", lambda *arguments: pytest.fail("the keys are listed"))
        again = open_database(root)
        assert (again.paths, again.fingerprint) == (before.paths, before.fingerprint)
    assert open_database(root, refresh_index=True).paths == before.paths


def test_what_is_no_complete_database_is_refused(root, tmp_path):
    with raises(DataError, "root", word="absent"):
        open_database(tmp_path / "absent")
    with raises(DataError, "root", word="data.mdb"):
        open_database(tmp_path)
    (tmp_path / "wrong.mdb").write_bytes(b"x" * 10_000)
    with raises(DataError, "root", word="wrong.mdb"):
        open_database(tmp_path / "wrong.mdb")
    content = (root / "data.mdb").read_bytes()
    (tmp_path / "short.mdb").write_bytes(content[: len(content) // 8192 * 4096])
    with raises(DataError, "root", word="short.mdb"):
        open_database(tmp_path / "short.mdb")
    with raises(DataError, "root", word="no images"):
        open_database(write(tmp_path / "empty", {}))


def test_without_the_package_its_name_is_given(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with raises(ConfigError, word="genimg[lmdb]"):
        open_database(root)
