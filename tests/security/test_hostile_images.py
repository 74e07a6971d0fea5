"""Images that a stranger has made: they start no program, take no memory and are counted as corrupt."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genimg.data.datasets.builtin import CorruptImageError, ImageDataset
from genimg.data.datasets.builtin import folder as folder_of_images
from genimg.data.zips import ZipImages
from genimg.errors import DataError
from genimg.utils.pillow import FORMATS, UndecodableImageError, open_header, open_image, suffixes

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(marker) (w) file closefile\nshowpage\n"
KINDS = {"PNG": {}, "JPEG": {}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "PPM": {}, "TGA": {}}


def folder(path: Path) -> ImageDataset:
    return folder_of_images(root=str(path), image_size=8, channels=3, fit="crop", labels="none")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int, color: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_postscript_that_is_called_png_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*words: object, **settings: object) -> None:
        raise AssertionError(f"a program was started: {words}")

    monkeypatch.setattr("subprocess.Popen.__init__", start)
    (tmp_path / "005.png").write_bytes(POSTSCRIPT)
    with pytest.raises(CorruptImageError, match=r"005\.png: its format is not one that genimg reads"):
        folder(tmp_path).read(0)


def test_files_of_other_formats_are_not_listed() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp", ".gif", ".mpo"} <= set(suffixes())
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf", ".h5", ".grib"} & set(suffixes())
    assert not {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "IPTC", "PCD", "SPIDER", "FITS"} & set(FORMATS)


@pytest.mark.parametrize(
    ("bits", "color"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (8, 4), (16, 4), (8, 6), (16, 6)]
)
def test_bombs_of_every_mode_are_refused_by_their_headers(tmp_path: Path, bits: int, color: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20_000, 20_000, bits=bits, color=color, pixels=zlib.compress(bytes(1000))))
    with pytest.raises(UndecodableImageError), open_header(path):
        pass
    with pytest.raises(CorruptImageError, match=r"bomb\.png: "):
        folder(tmp_path).read(0)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_deep_images_are_limited_by_the_memory_that_scaling_them_takes(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (9000, 9000)).save(buffer, "TIFF", compression="tiff_deflate")
    assert buffer.tell() < 2_000_000
    buffer.seek(0)
    with pytest.raises(UndecodableImageError, match="9000x9000"), open_header(buffer):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_that_is_called_png_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = folder(tmp_path)
    for index, name in enumerate(source.file_names()):
        if name == "pipe.png":
            with pytest.raises(CorruptImageError, match="named pipe"):
                source.read(index)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_corrupt_and_nothing_else(tmp_path: Path, kind: str) -> None:
    generator = random.Random(kind)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, "x"
    settings = {} if kind in ("GIF", "BMP", "PPM", "TGA") else {"exif": exif}
    Image.fromarray(pixels).save(buffer, kind, **KINDS[kind], **settings)
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(buffer.getvalue())
    source = folder(tmp_path)
    assert source.read(0).shape == (3, 8, 8)
    outcomes = {"read": 0, "corrupt": 0}
    for _ in range(150):
        content = bytearray(buffer.getvalue())
        how = generator.choice(["flip", "zeros", "cut", "random", "header"])
        place = generator.randrange(min(len(content), 200) if how == "header" else len(content))
        if how == "flip":
            content[place] ^= 1 << generator.randrange(8)
        elif how == "zeros":
            content[place : place + 16] = bytes(16)
        elif how == "cut":
            del content[place:]
        else:
            content[place : place + 4] = generator.randbytes(4)
        path.write_bytes(content)
        try:
            assert source.read(0).shape == (3, 8, 8)
            outcomes["read"] += 1
        except CorruptImageError:
            outcomes["corrupt"] += 1
    assert outcomes["corrupt"] > 10


def test_what_a_killed_command_left_is_no_data(tmp_path: Path) -> None:
    left = tmp_path / "made.genimg-0123456789abcdef.tmp"
    left.mkdir()
    for path in (tmp_path / "a.png", left / "b.png"):
        Image.new("RGB", (8, 8)).save(path)
    assert folder(tmp_path).file_names() == ["a.png"]


def test_members_of_a_zip_are_bounded_before_they_are_inflated(tmp_path: Path) -> None:
    for name in ("a.png", "dataset.json"):
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("b.png", "w") as member:
                Image.new("RGB", (8, 8)).save(member, "PNG")
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(2**29 // 2**24 + 1):
                    member.write(bytes(2**24))
        with pytest.raises(DataError, match=rf"{name} of .* bytes"):
            ZipImages(path).read_text_file(name)


def test_images_are_decoded_as_pillow_decodes_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=90)
    with open_image(tmp_path / "a.jpg") as image, Image.open(tmp_path / "a.jpg") as expected:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    with open_image(tmp_path / "a.jpg", draft=(20, 20)) as image:
        assert image.size == (24, 32)
