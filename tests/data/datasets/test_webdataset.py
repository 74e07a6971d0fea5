"""Tar shards give the images, labels and captions that were written, in any storage, and are read one group after another."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from errors import raises
from PIL import Image

from genimg.data import image_files, tars
from genimg.data.datasets import webdataset as module
from genimg.data.datasets.builtin import CorruptImageError, folder
from genimg.data.datasets.webdataset import webdataset
from genimg.data.identity import identity_of
from genimg.data.loader import ImageLoader
from genimg.data.sampler import InfiniteSampler
from genimg.data.split import at_most, without_validation
from genimg.data.tar_samples import Samples
from genimg.errors import ConfigError, DataError

COUNT, PER_SHARD = 23, 5


def encoded(seed, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def sample(i):
    content = {"label": i % 2, "caption": f"other {i}"}
    return {"png": encoded(i), "cls": str(i % 3), "txt": f"caption {i}", "json": json.dumps(content)}


def write_shards(root, samples, *, per_shard=PER_SHARD, extensions=None):
    """Write samples, each a mapping from extension to content, into root/00.tar, 01.tar and so on."""
    root.mkdir(exist_ok=True)
    for start in range(0, len(samples), per_shard):
        with tarfile.open(root / f"{start // per_shard:02d}.tar", "w") as archive:
            for i, files in enumerate(samples[start : start + per_shard], start):
                for extension, content in files.items():
                    if extensions is None or extension in extensions:
                        data = content.encode() if isinstance(content, str) else content
                        member = tarfile.TarInfo(f"./part/{i:04d}.{extension}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        os.utime(root / f"{start // per_shard:02d}.tar", (1e9, 1e9))
    return root


@pytest.fixture
def samples():
    return [sample(i) for i in range(COUNT)]


@pytest.fixture
def root(tmp_path, samples):
    return write_shards(tmp_path / "shards", samples)


def open_shards(root, **changes):
    return webdataset(**({"root": str(root), "image_size": 8, "channels": 3, "fit": "crop"} | changes))


def loader(source, storage="workers", num_workers=0, **changes):
    settings = {"storage": storage, "num_workers": num_workers, "horizontal_flip": False, "max_corrupt": None}
    return ImageLoader(source, device=torch.device("cpu"), **(settings | {"keys": ("image", "label", "caption")} | changes))


def test_images_labels_and_captions_are_those_that_were_written(root, samples):
    source = open_shards(root)
    assert len(source) == COUNT
    expected = np.stack([np.asarray(Image.open(io.BytesIO(each["png"]))).transpose(2, 0, 1) for each in samples])
    assert np.array_equal(source.read_many(np.arange(COUNT)), expected)
    assert source.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert source.class_names == ("0", "1", "2")
    assert source.captions(np.array([3, 22])) == ["caption 3", "caption 22"]
    assert source.title(7) == "01.tar/part/0007.png"
    assert open_shards(root, image_size=None, channels=None).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("extensions", "labels", "captions"),
    [
        (["png", "json"], [i % 2 for i in range(COUNT)], "other 4"),  # keys of the JSON file
        (["png", "cls"], [i % 3 for i in range(COUNT)], None),
        (["png", "txt"], None, "caption 4"),
    ],
)
def test_labels_and_captions_are_found(tmp_path, samples, extensions, labels, captions):
    source = open_shards(write_shards(tmp_path / "some", samples, extensions=extensions))
    assert (None if source.labels is None else source.labels.tolist()) == labels
    assert source.captioned == (captions is not None)
    assert source.caption(4) == captions


def test_labels_and_captions_are_chosen(root):
    source = open_shards(root, labels="json.label", captions="json.caption")
    assert source.labels.tolist() == [i % 2 for i in range(COUNT)]
    assert source.caption(5) == "other 5"
    ignored = open_shards(root, labels="none", captions=None)
    assert ignored.labels is None
    assert not ignored.captioned
    with raises(ConfigError, "labels=kind", word="cls"):
        open_shards(root, labels="kind")
    with raises(DataError, "captions", word="json (label)"):
        open_shards(root, captions="json.label").caption(0)
    with raises(ConfigError, "shuffle_buffer=0"):
        open_shards(root, shuffle_buffer=0)


NAMES = ("ship", "Zug", "auto", "3D")


@pytest.mark.parametrize("labels", ["cls", "json.name"])
def test_labels_may_be_names(tmp_path, labels, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    samples = [{"png": encoded(i), "cls": f"{NAMES[i % 4]}\n", "json": json.dumps({"name": NAMES[i % 4]})} for i in range(9)]
    root = write_shards(tmp_path / "named", samples)
    for _ in range(2):  # read, and saved
        source = open_shards(root, labels=labels)
        assert source.class_names == ("3D", "Zug", "auto", "ship")
        assert source.labels.tolist() == [(3, 1, 2, 0)[i % 4] for i in range(9)]
    assert identity_of(open_shards(write_shards(tmp_path / "copy", samples), labels=labels)) == identity_of(source)


def test_names_are_no_labels_unless_they_are_chosen(tmp_path):
    samples = [{"png": encoded(i), "json": json.dumps({"label": NAMES[i % 4]})} for i in range(4)]
    root = write_shards(tmp_path / "named", samples)
    assert open_shards(root).labels is None
    assert open_shards(root, labels="json.label").labels.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("content", "word"),
    [({"cls": "cat"}, "numbers and names"), ({"cls": "c\na"}, "200"), ({"cls": "-1"}, "-1"), ({"cls": "1.5"}, "1.5"),
     ({}, "no label")],
)  # fmt: skip
def test_labels_that_are_missing_or_no_numbers_are_refused(tmp_path, samples, content, word):
    samples[4] = {"png": encoded(4), **content}
    with raises(DataError, "labels", word=word):
        open_shards(write_shards(tmp_path / "wrong", samples, extensions=["png", "cls"]))


@pytest.mark.parametrize("content", ["{", "[1]", b"\xff", "1" * (2**20 + 1)])
def test_damaged_json_is_named(tmp_path, samples, content):
    samples[4]["json"] = content
    with raises(DataError, word="0004"):
        open_shards(write_shards(tmp_path / "wrong", samples), labels="json.label")


def test_a_few_missing_captions_are_empty_and_many_are_refused(tmp_path, caplog):
    samples = [{"png": encoded(0), "txt": "a"} for _ in range(100)]
    del samples[3]["txt"]
    assert open_shards(write_shards(tmp_path / "a", samples, per_shard=100)).captions(np.array([2, 3])) == ["a", ""]
    assert "0003" in caplog.text
    del samples[9]["txt"]
    with raises(DataError, "captions"):
        open_shards(write_shards(tmp_path / "b", samples, per_shard=100)).caption(0)


def test_samples_with_several_images_need_a_choice(tmp_path, samples):
    for number, each in enumerate(samples):
        each["seg.png"] = encoded(100 + number)
    root = write_shards(tmp_path / "two", samples)
    with raises(ConfigError, "image=null", word="seg.png"):
        open_shards(root)
    expected = np.asarray(Image.open(io.BytesIO(samples[6]["seg.png"]))).transpose(2, 0, 1)
    assert np.array_equal(open_shards(root, image="seg.png").read(6), expected)
    with raises(DataError, "root", word=".gif"):
        open_shards(root, image="gif")


def test_samples_without_an_image_are_named(tmp_path, samples, caplog):
    del samples[2]["png"]
    source = open_shards(write_shards(tmp_path / "lacking", samples))
    assert len(source) == COUNT - 1
    assert source.labels.tolist() == [i % 3 for i in range(COUNT) if i != 2]
    assert "0002" in caplog.text


def test_the_form_of_a_folder_and_of_shards_give_the_same_batches(root, tmp_path, samples):
    for i, each in enumerate(samples):
        (tmp_path / "files" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / str(i % 3) / f"{i:04d}.png").write_bytes(each["png"])
    files = folder(root=str(tmp_path / "files"), image_size=8, channels=3, fit="crop", labels="auto")
    by_class = np.argsort([i % 3 for i in range(COUNT)], kind="stable")
    assert np.array_equal(files.read_many(np.arange(COUNT)), open_shards(root).read_many(by_class))


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 1), ("host", 1), ("workers", 0), ("workers", 2)])
def test_every_storage_gives_the_same_batches_from_any_position(root, storage, num_workers):
    def batches(position, *settings):
        stream = loader(open_shards(root, shuffle_buffer=10), *settings).batches(position, batch_size=4, seed=1)
        found = [next(stream) for _ in range(3 if position else 9)]
        stream.close()
        return found

    whole = batches(0)
    for batch, expected in zip(batches(24, storage, num_workers), whole[6:], strict=True):  # in the second epoch
        for key in ("image", "label", "caption"):
            assert torch.equal(batch[key], expected[key])


def test_shards_are_read_ahead_once_for_each_group(root, monkeypatch):
    ahead = []
    monkeypatch.setattr(tars.TarArchive, "read_ahead", lambda self: ahead.append(self.name))
    source = open_shards(root, shuffle_buffer=PER_SHARD)
    source.read_many(np.arange(COUNT))  # as an evaluation does
    assert ahead == []
    stream = loader(source).batches(0, batch_size=1, seed=0)
    for _ in range(2 * COUNT):
        next(stream)
    assert len(ahead) >= 9  # of the 5 shards, in two epochs; the last ones may still be remembered
    assert set(ahead[:5]) == {f"0{i}.tar" for i in range(5)}
    order = InfiniteSampler(COUNT, seed=0, horizontal_flip=False, locality=source.locality).indices(0, COUNT)
    assert ahead[:5] == list(dict.fromkeys(source.paths[i][:6] for i in order))


def test_held_out_images_and_parts_keep_the_shards(root):
    source = at_most(without_validation(open_shards(root, shuffle_buffer=5), 0.2), 12)
    assert source.locality.sizes.sum() == len(source) == 12
    assert source.validation.locality.sizes.sum() == len(source.validation) == 5
    assert len(source.locality.sizes) <= 5
    stream = loader(source).batches(0, batch_size=12, seed=0)
    assert next(stream)["image"].shape == (12, 3, 8, 8)


def test_shards_of_single_classes_are_noticed(tmp_path, samples, caplog):
    open_shards(write_shards(tmp_path / "mixed", samples), shuffle_buffer=10)
    for number, each in enumerate(samples):
        each["cls"] = str(number // PER_SHARD)
    root = write_shards(tmp_path / "sorted", samples)
    open_shards(root, shuffle_buffer=COUNT)
    assert "shuffle_buffer" not in caplog.text
    open_shards(root, shuffle_buffer=10)
    assert "shuffle_buffer=10" in caplog.text


def test_a_corrupt_image_is_skipped_or_named(tmp_path, samples, caplog):
    samples[7]["png"] = samples[7]["png"][:60]
    source = open_shards(write_shards(tmp_path / "wrong", samples))
    with raises(CorruptImageError, word="01.tar/part/0007.png"):
        source.read(7)
    with raises(DataError, "max_corrupt"):
        loader(source, "device", 1, max_corrupt=0).load()
    data = loader(source, "device", 1, max_corrupt=1)
    data.load()
    assert "0007.png" in caplog.text
    assert torch.equal(data.images(np.array([7])), data.images(np.array([8])))


def test_an_archive_that_is_replaced_while_it_is_used_gives_no_wrong_images(root):
    source = open_shards(root)
    os.utime(root / "01.tar")
    source.read(0)
    with raises(CorruptImageError, word="changed"):
        source.read(6)


def test_the_fingerprint_is_of_names_and_contents(root, tmp_path, samples):
    before = open_shards(root)
    copy = open_shards(write_shards(tmp_path / "copy", samples))
    assert copy.fingerprint == before.fingerprint
    assert identity_of(copy)["order"] == identity_of(before)["order"]
    samples[9]["png"], samples[10]["png"] = samples[10]["png"], samples[9]["png"]
    assert open_shards(write_shards(tmp_path / "swapped", samples)).fingerprint != before.fingerprint


def test_what_takes_long_to_read_is_saved(root, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tars, "LEAST_SAVED", 1)
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    before = open_shards(root)
    assert before.caption(3) == "caption 3"
    with monkeypatch.context() as patch:
        for target, name in ((tars, "_members"), (Samples, "read"), (module, "digest_of_items")):
            patch.setattr(target, name, lambda *arguments: pytest.fail("a shard is read"))
        again = open_shards(root)
        assert again.fingerprint == before.fingerprint
        assert again.labels.tolist() == before.labels.tolist()
        assert again.caption(3) == "caption 3"
    samples[3]["txt"], samples[3]["cls"] = "caption x", "0"  # of the same sizes
    write_shards(root, samples)
    os.utime(root / "00.tar", (1e9 + 5, 1e9 + 5))
    changed = open_shards(root)
    assert changed.caption(3) == "caption x"
    assert changed.labels.tolist() == before.labels.tolist()


def test_shards_are_named_by_a_directory_a_file_or_a_pattern(root):
    whole = open_shards(root)
    assert open_shards(root / "{00..04}.tar").paths == whole.paths
    assert open_shards(root / "0{3,1}.tar").paths == whole.paths[15:20] + whole.paths[5:10]
    assert open_shards(root / "02.tar").paths == whole.paths[10:15]
    with raises(DataError, word="05.tar"):
        open_shards(root / "{00..09}.tar")
    with raises(DataError, "root", word="1,000,000"):
        open_shards(root / "{0..9999999}.tar")
    for absent in (root / "x", root / "{10..12}.tar", root.parent):
        with raises(DataError, "root"):
            open_shards(absent)


def test_compressed_shards_are_named(root):
    for name in ("05.tar.gz", "05.tgz", "05.tar.zst"):
        (root / name).write_bytes(b"x")
        with raises(DataError, word=name):
            open_shards(root)
        with raises(DataError, word=name):
            open_shards(root / name)
        (root / name).unlink()


def test_two_files_of_one_name_are_refused(tmp_path, samples):
    root = write_shards(tmp_path / "shards", samples)
    with tarfile.open(root / "00.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("part/0000.png"))
    with raises(DataError, word="part/0000.png"):
        open_shards(root)


def test_heic_without_its_decoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "register_heif", lambda: False)
    with raises(DataError, "root", word="0000.heic"):
        open_shards(write_shards(tmp_path / "shards", [{"heic": b"x"}]))
