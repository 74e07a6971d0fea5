"""Safe opening of images of unknown origin with Pillow.

Pillow chooses the decoder by a file's content, not its name: a PostScript program named ``005.png`` would start Ghostscript.
Therefore only formats whose decoders start no program and read no other file are opened. An image is rejected if its header
shows that its pixels would take more memory than those of any photo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from genimg.utils.regular_files import open_regular

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
"""Names of the formats in Pillow; JPEG includes MPO. Older versions of Pillow lack AVIF."""

HEIF = "HEIF"
"""Pillow's name of the format of HEIC files, which the optional package pillow-heif reads."""

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
INSTALL_HEIF = "install the decoder with pip install 'genimg[heic]'"

MOST_PIXELS = 178_956_970
"""Width times height; twice the number above which Pillow warns."""

_MOST_BYTES = 2**30  # memory of an image during decoding
_HEIF_HEAD = 64  # bytes with the file's brand, and usually all brands that it is compatible with
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")  # ISO/IEC 23008-12
_SHARED_BRANDS = (b"mif1", b"msf1")  # also used by AVIF files, which then name avif as a compatible brand
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_BYTES_OF_DEEP = 16  # per pixel, because images of 16 or 32 bits are scaled in double precision
_BYTES = 4


class UndecodableImageError(OSError):
    """A file that is not an image in a supported format, is damaged, or would take too much memory."""


@contextlib.contextmanager
def open_header(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels.

    Args:
        file: Path of a regular file, or an open file.

    Raises:
        UndecodableImageError: If it is not an image of ``FORMATS``, or would take too much memory.
        UnsafeFileError: If the path is a named pipe, device or socket.
        OSError: If the file cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_regular(file)) if isinstance(file, Path) else file
        with _decoding():
            image = stack.enter_context(Image.open(opened, formats=_formats_for(opened)))
        _refuse_bomb(image)
        yield image


@contextlib.contextmanager
def open_image(file: Path | BinaryIO, *, draft: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """Open an image and decode its pixels.

    Args:
        file: Path of a regular file, or an open file.
        draft: Sufficient width and height. A JPEG is decoded at the smallest scale that is at least as large, which is several
            times faster.

    Raises:
        UndecodableImageError: See ``open_header``, or if it is truncated or damaged.
        UnsafeFileError: If the path is a named pipe, device or socket.
        OSError: If the file cannot be opened.
    """
    with open_header(file) as image:
        with _decoding():
            if draft is not None:
                image.draft(None, draft)
            image.load()
        yield image


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image to its EXIF orientation and keep its format. Phones store the sensor's picture unrotated.

    The decoders of HEIC and AVIF replace the EXIF orientation by that of the container, or apply the latter themselves.

    Raises:
        UndecodableImageError: If the orientation data is damaged.
    """
    with _decoding():
        turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height that ``upright`` gives an image, without decoding it.

    Raises:
        UndecodableImageError: If the orientation data is damaged.
    """
    with _decoding():
        orientation = Image.Image.getexif(image).get(0x0112, 1)  # a PNG's own method would decode the image to find more
    return image.size[::-1] if isinstance(orientation, int) and orientation in _SIDEWAYS else image.size


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files, sorted and in lower case, such as ``.png``.

    Those of HEIC are included even if its decoder is not installed, because such files must not be skipped silently.
    """
    Image.init()
    own = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    return tuple(sorted({*own, *HEIF_SUFFIXES}))


@cache
def register_heif() -> bool:
    """Register the decoder of HEIC with Pillow; return whether the package pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _formats_for(file: BinaryIO) -> list[str]:
    """Return the formats that are tried for a file; its position is 0 before and after.

    Raises:
        UndecodableImageError: If it is a HEIC image and its decoder is not installed.
    """
    head = file.read(_HEIF_HEAD)
    file.seek(0)
    brand = head[8:12]
    if head[4:8] == b"ftyp" and (brand in _HEIF_BRANDS or (brand in _SHARED_BRANDS and b"avif" not in head)):
        if not register_heif():
            raise UndecodableImageError(f"it is a HEIC image: {INSTALL_HEIF}")
        return [HEIF]
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Convert exceptions from Pillow, whose decoders raise almost any type for damaged files."""
    try:
        yield
    except UnidentifiedImageError as error:  # its message is only an object's address
        raise UndecodableImageError("its format is not one that genimg reads") from error
    except MemoryError:  # this machine has too little memory, because the image's size is bounded
        raise
    except Exception as error:
        raise UndecodableImageError(str(error) or type(error).__name__) from error


def _refuse_bomb(image: Image.Image) -> None:
    pixels = image.width * image.height
    is_deep = image.mode.startswith("I") or image.mode == "F"
    if pixels > MOST_PIXELS or pixels * (_BYTES_OF_DEEP if is_deep else _BYTES) > _MOST_BYTES:
        raise UndecodableImageError(
            f"its {image.width}x{image.height} pixels (mode {image.mode}) would take too much memory: make it smaller"
        )
