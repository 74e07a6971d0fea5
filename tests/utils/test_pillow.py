"""HEIC files are read if their decoder is installed, and are named if it is not."""

import io
import sys

import numpy as np
import pytest
from errors import raises
from PIL import Image, features

from genimg.data.datasets.builtin import folder
from genimg.data.decode import PixelFormat
from genimg.errors import DataError
from genimg.utils import pillow
from genimg.utils.pillow import UndecodableImageError, open_header, open_image, register_heif, suffixes


@pytest.fixture
def values():
    """The upper left quarter is white."""
    values = np.zeros((32, 48, 3), dtype=np.uint8)
    values[:16, :24] = 255
    return values


@pytest.fixture
def without_decoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    register_heif.cache_clear()
    yield
    register_heif.cache_clear()


def heic(values, **options):
    pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "HEIF", quality=100, **options)
    return buffer.getvalue()


HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_is_read_upright(values, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # as phones store portraits
    (tmp_path / "a.HEIC").write_bytes(heic(values, exif=exif.tobytes()))
    with open_image(tmp_path / "a.HEIC") as image:
        found = PixelFormat.of([48, 32], 3).apply(image)
    assert np.abs(found.astype(int) - np.rot90(values, -1).transpose(2, 0, 1)).mean() < 3  # lossy
    source = folder(root=str(tmp_path), image_size=None, channels=None, fit="crop", labels="none")
    assert source.shape == (3, 48, 32)
    assert np.array_equal(source.read(0), found)


def test_a_damaged_heic_is_undecodable(values, tmp_path):
    content = heic(np.random.default_rng(0).integers(0, 256, values.shape, dtype=np.uint8))
    for damaged in (content[:200], content[: len(content) // 2], HEAD):
        (tmp_path / "a.heic").write_bytes(damaged)
        with pytest.raises(UndecodableImageError), open_image(tmp_path / "a.heic"):
            pass


def test_a_heic_that_is_too_large_is_refused(values, monkeypatch):
    monkeypatch.setattr(pillow, "MOST_PIXELS", 1000)
    with raises(UndecodableImageError, word="48x32"), open_header(io.BytesIO(heic(values))):
        pass


@pytest.mark.usefixtures("without_decoder")
def test_without_its_decoder_heic_is_named(tmp_path):
    (tmp_path / "b.heic").write_bytes(HEAD)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with raises(DataError, "root", word="b.heic"):
        folder(root=str(tmp_path), image_size=8, channels=3, fit="crop", labels="none")
    for brand in (b"heic", b"mif1"):
        with raises(UndecodableImageError, word="genimg[heic]"), open_header(io.BytesIO(HEAD.replace(b"heic", brand, 1))):
            pass


def test_the_list_of_suffixes_does_not_depend_on_the_decoder():
    before = suffixes()
    assert {".heic", ".heif", ".png", ".jpg", ".tif", ".webp"} <= set(before)
    register_heif()
    assert suffixes() == before


@pytest.mark.usefixtures("without_decoder")
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_of_a_shared_brand_is_no_heic(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    with open_header(io.BytesIO(content.replace(b"ftypavif", b"ftypmif1", 1))) as image:
        assert image.format == "AVIF"


def test_formats_that_this_pillow_lacks_do_not_hide_the_others(monkeypatch):
    """AVIF came with Pillow 11.3."""
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with open_header(buffer) as image:
        assert image.format == "PNG"
