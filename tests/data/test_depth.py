import numpy as np
import pytest
from errors import raises
from PIL import Image

from genimg.data.datasets.builtin import CorruptImageError, folder
from genimg.data.datasets.file_index import list_images
from genimg.data.decode import PixelFormat
from genimg.data.depth import with_float_white
from genimg.errors import DataError

GREY = PixelFormat(4, 4, 1)


def write(root, name, value, kind, spread=0):
    values = np.full((4, 4), value, dtype=kind)
    values[0, 0] -= kind(spread)
    Image.fromarray(values).save(root / name)
    return name


def open_folder(root, **changes):
    settings = {"image_size": 4, "channels": 1, "fit": "crop", "labels": "none"}
    return folder(root=str(root), **(settings | changes))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_another_range_are_refused_before_anything_is_read_in_earnest(tmp_path, kind):
    for i in range(3):
        write(tmp_path, f"{i}.tif", 42000 + i, kind, spread=42000)
    with raises(DataError, "range", word="holds"):
        open_folder(tmp_path)


def test_a_range_maps_all_images_of_a_folder_alike(tmp_path):
    for i, value in enumerate((0, 21250, 42500, 50000)):
        write(tmp_path, f"{i}.tif", value, np.float32)
    source = open_folder(tmp_path, range=[0, 42500])
    assert [int(source.read(i).max()) for i in range(4)] == [0, 128, 255, 255]
    assert source.fingerprint != open_folder(tmp_path, range=[0, 50000]).fingerprint


@pytest.mark.parametrize(("others", "expected"), [(200.0, 1), (0.5, 255)])
def test_what_white_is_depends_on_the_folder_and_not_on_the_image(tmp_path, others, expected):
    for i in range(5):
        write(tmp_path, f"{i}.tif", others, np.float32)
    write(tmp_path, "5.tif", 1.0, np.float32)
    assert open_folder(tmp_path).read(5).max() == expected


def test_a_file_beyond_the_sample_is_refused_where_it_is_read(tmp_path):
    for i in range(40):
        write(tmp_path, f"{i:02d}.tif", 0.5, np.float32)
    source = open_folder(tmp_path)
    write(tmp_path, "07.tif", 9000.0, np.float32)
    with raises(CorruptImageError, word="others"):
        source.read(7)


def test_twelve_bits_in_sixteen_are_scaled_as_sixteen_with_a_warning(tmp_path, caplog):
    write(tmp_path, "a.png", 4000, np.uint16)
    with caplog.at_level("WARNING", logger="genimg.data.depth"):
        source = open_folder(tmp_path)
    assert source.read(0).max() == round(4000 / 257)
    assert "no value above 4000 of 65535" in caplog.text
    assert "range=[0,4000]" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="genimg.data.depth"):
        assert open_folder(tmp_path, range=[0, 4000]).read(0).max() == 255
    assert not caplog.text


def test_usual_images_are_not_remarked_on(tmp_path, caplog):
    write(tmp_path, "a.png", 200, np.uint8)
    write(tmp_path, "b.png", 60000, np.uint16)
    (tmp_path / "c.png").write_bytes(b"no image")
    with caplog.at_level("WARNING", logger="genimg.data.depth"):
        assert with_float_white(list_images(tmp_path, refresh=True), GREY) == GREY
    assert not caplog.text


def test_a_range_without_images_that_it_applies_to_is_warned_of(tmp_path, caplog):
    write(tmp_path, "a.png", 200, np.uint8)
    with caplog.at_level("WARNING", logger="genimg.data.depth"):
        assert open_folder(tmp_path, range=[0, 4095]).read(0).max() == 200
    assert "range=[0,4095] has no effect on 8-bit images" in caplog.text
