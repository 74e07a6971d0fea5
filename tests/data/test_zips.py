"""Images in a zip file are those of the directory that was zipped, for every thread and process."""

import io
import json
import multiprocessing
import os
import pickle
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import CorruptImageError, folder
from genimg.data.loader import ImageLoader
from genimg.data.zips import ZipImages
from genimg.errors import ConfigError, DataError

NAMES = ["cat/1.png", "cat/2.jpg", "dog/1.PNG", "dog/deep/2.bmp", "emu/1.png"]


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(NAMES):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "root" / name)
    return tmp_path / "root"


def zipped(root, path, *, how=zipfile.ZIP_STORED, names=None):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name in names or sorted((str(file.relative_to(root)) for file in root.rglob("*")), reverse=True):
            archive.write(root / name, name)
    return path


def open_images(path, **changes):
    settings = {"root": str(path), "image_size": 8, "channels": 3, "fit": "crop", "labels": "auto"}
    return folder(**(settings | changes))


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_holds_what_its_directory_holds(root, tmp_path, how):
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"hidden")
    archive = zipped(root, tmp_path / "images.zip", how=how)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/cat/1.png", b"of another system")
    directory, source = open_images(root), open_images(archive)
    assert source.paths == directory.paths == NAMES
    assert source.labels.tolist() == directory.labels.tolist() == [0, 0, 1, 1, 2]
    assert source.class_names == directory.class_names
    everything = np.arange(len(NAMES))
    assert np.array_equal(source.read_many(everything), directory.read_many(everything))
    assert open_images(archive, image_size=None, channels=None).shape == (3, 8, 8)


def test_the_fingerprint_is_of_all_contents(root, tmp_path):
    before = open_images(zipped(root, tmp_path / "a.zip")).fingerprint
    assert open_images(zipped(root, tmp_path / "b.ZIP", how=zipfile.ZIP_DEFLATED)).fingerprint == before
    one, other = root / "cat" / "1.png", root / "emu" / "1.png"
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    assert open_images(zipped(root, tmp_path / "c.zip")).fingerprint != before


def test_a_zip_file_behind_other_bytes_is_read(root, tmp_path):
    """As self-extracting archives are."""
    archive = zipped(root, tmp_path / "images.zip")
    archive.write_bytes(b"#!/bin/sh\n" * 100 + archive.read_bytes())
    assert np.array_equal(open_images(archive).read(0), open_images(root).read(0))


def _read(source):
    return np.stack([source.read(i % len(NAMES)) for i in range(200)])


def test_threads_and_processes_read_at_once(root, tmp_path):
    source, directory = open_images(zipped(root, tmp_path / "images.zip")), open_images(root)
    expected = np.stack([directory.read(i % len(NAMES)) for i in range(200)])
    source.read(0)  # before the processes start, so that an open file would be shared
    with multiprocessing.get_context("fork").Pool(2) as pool, ThreadPoolExecutor(2) as threads:
        found = pool.map_async(_read, [source] * 3)
        assert all(np.array_equal(images, expected) for images in threads.map(_read, [source] * 3))
        assert all(np.array_equal(images, expected) for images in found.get(timeout=60))


def test_workers_give_the_batches_of_the_directory(root, tmp_path):
    batches = []
    for path in (root, zipped(root, tmp_path / "images.zip")):
        data = ImageLoader(open_images(path), storage="workers", num_workers=2, horizontal_flip=False, max_corrupt=0,
                    device=torch.device("cpu"), keys=("image", "label"))  # fmt: skip
        stream = data.batches(0, batch_size=3, seed=0)
        batches.append([next(stream) for _ in range(3)])
        stream.close()
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_a_damaged_image_is_corrupt_and_named(root, tmp_path):
    archive = zipped(root, tmp_path / "images.zip", names=NAMES)
    source = open_images(archive)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(bytes(content))
    problems = []
    for index in range(len(NAMES)):
        try:
            source.read(index)
        except CorruptImageError as error:
            problems.append(str(error))
    assert len(problems) == 1
    assert f"{archive}/" in problems[0]
    archive.write_bytes(b"another file")
    with raises(CorruptImageError, word="replaced"):
        source.read(0)


def test_what_cannot_be_read_is_refused_at_the_start(root, tmp_path):
    (tmp_path / "none.zip").write_bytes(b"no zip file")
    with raises(DataError, word="none.zip"):
        open_images(tmp_path / "none.zip")
    with raises(DataError, word="compressed"):
        open_images(zipped(root, tmp_path / "lzma.zip", how=zipfile.ZIP_LZMA))
    archive = zipped(root, tmp_path / "secret.zip", names=NAMES)
    content = archive.read_bytes()
    entry = content.index(b"PK\x01\x02")  # the first in the directory, whose flags lie 8 bytes behind its signature
    archive.write_bytes(content[: entry + 8] + struct.pack("<H", 1) + content[entry + 10 :])
    with raises(DataError, word="encrypted"):
        open_images(archive)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as empty:
        empty.writestr("notes.txt", "no image")
    with raises(DataError, "root", word="empty.zip"):
        open_images(tmp_path / "empty.zip")
    with raises(DataError, "root", word="exist"):
        open_images(tmp_path / "absent.zip")
    with raises(ConfigError, "captions=metadata.jsonl"):
        open_images(zipped(root, tmp_path / "a.zip"), captions="metadata.jsonl")


def test_what_is_sent_to_a_worker_is_small(root, tmp_path):
    images = ZipImages(zipped(root, tmp_path / "images.zip"))
    assert len(pickle.dumps(images)) < 2000
    assert pickle.loads(pickle.dumps(images)).open(NAMES[0]).read() == (root / NAMES[0]).read_bytes()


def test_names_that_are_not_utf8_or_long_are_read(root, tmp_path):
    name = "Größe \U0001f600/" + "x" * 100 + ".png"
    (root / name).parent.mkdir()
    os.link(root / NAMES[0], root / name)
    source = open_images(zipped(root, tmp_path / "images.zip"))
    assert np.array_equal(source.read(source.paths.index(name)), source.read(0))


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_layout_of_stylegans_dataset_tool_is_read(tmp_path, how, labelled):
    """The dataset tools of StyleGAN2-ADA, StyleGAN3, EDM and EDM2 write images in numbered folders, then dataset.json."""
    names, labels, expected = [], [], []
    with zipfile.ZipFile(tmp_path / "dataset.zip", "w", how) as archive:
        for i in (*range(3), *range(999, 1002)):  # into two folders
            name = f"{i // 1000:05d}/img{i:08d}.png"
            values = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(values).save(buffer, "png", compress_level=0, optimize=False)
            archive.writestr(name, buffer.getbuffer())
            names.append(name)
            labels.append(i % 5)
            expected.append(values.transpose(2, 0, 1))
        table = [list(pair) for pair in zip(names, labels, strict=True)]
        archive.writestr("dataset.json", json.dumps({"labels": table if labelled else None}))
    source = open_images(tmp_path / "dataset.zip")
    assert source.paths == names
    assert np.array_equal(source.read_many(np.arange(6)), np.stack(expected))
    assert (None if source.labels is None else source.labels.tolist()) == (labels if labelled else None)
    assert source.class_names == (("0", "1", "2", "3", "4") if labelled else ())
