"""What a directory holds is recognised by the names of its files."""

import zipfile

import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import folder
from genimg.data.forms import form_of
from genimg.errors import DataError

FORMS = [
    (["dataset_dict.json", "train/state.json"], "huggingface"),
    (["dataset_info.json", "state.json", "data-00000-of-00001.arrow"], "huggingface"),
    (["data.mdb", "lock.mdb"], "lmdb"),
    (["00.tar", "01.tar"], "webdataset"),
    (["00.tar", "a.png"], None),
    (["dataset_info.json"], None),
    ([], None),
]


@pytest.mark.parametrize(("names", "form"), FORMS)
def test_the_form_of_a_directory(tmp_path, names, form):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert form_of(tmp_path) == form
    if form is not None:
        with raises(DataError, "root", word=f"data={form}"):
            folder(root=str(tmp_path), image_size=8, channels=3, fit="crop", labels="auto")


def test_the_form_of_a_file(tmp_path):
    assert form_of(tmp_path / "a.tar") == "webdataset"
    assert form_of(tmp_path / "a.zip") is None
    assert form_of(tmp_path / "absent") is None


@pytest.mark.parametrize("zipped", [False, True])
def test_latents_of_edm2_are_refused(tmp_path, zipped):
    """Its dataset tool writes the mean and standard deviation of an autoencoder's latents in the layout of images."""
    root = tmp_path / ("latents.zip" if zipped else "latents")
    names = ["00000/img-mean-std-00000000.npy", "dataset.json"]
    if zipped:
        with zipfile.ZipFile(root, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
    for name in () if zipped else names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with raises(DataError, "root", word="latents of an autoencoder"):
        folder(root=str(root), image_size=8, channels=3, fit="crop", labels="auto")


def test_images_beside_tar_files_are_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "backup.tar").write_bytes(b"")
    assert len(folder(root=str(tmp_path), image_size=8, channels=3, fit="crop", labels="auto")) == 1
