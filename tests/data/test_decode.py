import io
import struct
import zlib

import numpy as np
import pytest
from errors import raises
from PIL import Image, features

from genimg.data.datasets.file_index import Index
from genimg.data.decode import PixelFormat, common_format
from genimg.errors import ConfigError, DataError
from genimg.utils.pillow import open_image, upright_size


def array(image: Image.Image, channels: int, *, size=None, fit: str = "crop") -> np.ndarray:
    """Apply the format at the image's own size unless another [height, width] is given."""
    return PixelFormat.of(size or [image.height, image.width], channels, fit).apply(image)


def through_file(image: Image.Image, format: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return Image.open(buffer)


def random_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Colour modes


def test_rgb_keeps_its_values_and_becomes_channels_first():
    values = random_image(5, 7)
    result = array(Image.fromarray(values), 3)
    assert result.dtype == np.uint8
    assert result.flags["C_CONTIGUOUS"]
    assert np.array_equal(result, values.transpose(2, 0, 1))


def test_grey_stays_grey_and_is_repeated_for_rgb():
    values = random_image(5, 7, 1)
    assert np.array_equal(array(Image.fromarray(values), 1), values[None])
    assert np.array_equal(array(Image.fromarray(values), 3), np.stack([values] * 3))


def test_rgb_becomes_grey_by_its_luma():
    values = random_image(9, 9)
    luma = values @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(array(Image.fromarray(values), 1)[0] - luma).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_put_on_white(channels):
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.stack([np.full_like(alpha, 40), np.full_like(alpha, 40), np.full_like(alpha, 40), alpha], axis=-1)
    expected = 255 + (40.0 - 255) * alpha / 255
    result = array(Image.fromarray(rgba), channels)
    assert result.shape == (channels, 16, 16)
    assert np.abs(result - expected).max() <= 1


def test_the_colour_under_fully_transparent_pixels_is_not_shown():
    image = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    assert (array(through_file(image, "PNG"), 3) == 255).all()


def test_grey_with_alpha_is_put_on_white():
    image = Image.fromarray(np.array([[[0, 0], [0, 255], [100, 128]]], dtype=np.uint8), "LA")
    assert np.abs(array(through_file(image, "PNG"), 1)[0, 0].astype(int) - [255, 0, 177]).max() <= 1
    assert np.abs(array(through_file(image, "PNG"), 3)[:, 0].astype(int) - [255, 0, 177]).max() <= 1


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_is_expanded(format):
    assert array(through_file(palette_image(), format), 3)[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour_is_put_on_white(format):
    image = through_file(palette_image(), format, transparency=0)
    assert array(image, 3)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]


def test_palette_with_partial_transparency_is_put_on_white():
    image = through_file(palette_image(), "PNG", transparency=bytes([128, 255]))
    assert np.abs(array(image, 3)[:, 0].T.astype(int) - [[255, 127, 127], [0, 0, 255]]).max() <= 1


def test_rgb_with_a_transparent_colour_key_is_put_on_white():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (90, 80, 70))
    image = through_file(image, "PNG", transparency=(10, 20, 30))
    assert array(image, 3)[:, 0].T.tolist() == [[255, 255, 255], [90, 80, 70]]


def test_grey_with_a_transparent_key_is_put_on_white():
    image = Image.new("L", (2, 1), 0)
    image.putpixel((1, 0), 90)
    assert array(through_file(image, "PNG", transparency=0), 1)[0, 0].tolist() == [255, 90]


def test_four_channels_keep_alpha_and_opaque_images_get_full_alpha():
    values = random_image(4, 4, 4)
    assert np.array_equal(array(Image.fromarray(values), 4), values.transpose(2, 0, 1))
    assert (array(Image.fromarray(random_image(4, 4)), 4)[3] == 255).all()
    grey_alpha = Image.fromarray(np.array([[[7, 9]]], dtype=np.uint8), "LA")
    assert array(grey_alpha, 4)[:, 0, 0].tolist() == [7, 7, 7, 9]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_png_is_scaled_to_eight_bits(channels):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = through_file(Image.fromarray(levels * 257), "PNG")
    assert image.mode.startswith("I")
    assert np.array_equal(array(image, channels), np.stack([levels] * channels))


def test_sixteen_bit_grey_rounds_to_the_nearest_level():
    values = np.array([[0, 128, 129, 32768, 65535]], dtype=np.uint16)
    assert array(Image.fromarray(values), 1)[0, 0].tolist() == [0, 0, 1, 128, 255]


def test_big_endian_sixteen_bit_tiff_is_scaled_to_eight_bits():
    image = Image.frombytes("I;16B", (2, 1), bytes([0x12, 0x34, 0xFF, 0xFF]))
    assert array(image, 1)[0, 0].tolist() == [round(0x1234 / 257), 255]


def test_float_grey_is_read_as_zero_to_one_or_zero_to_255():
    assert array(Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), 1)[0, 0].tolist() == [0, 51, 255]
    assert array(Image.fromarray(np.array([[0.0, 51.0, 255.0]], dtype=np.float32)), 1)[0, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize(("low", "high"), [(0, 42500), (-1, 1), (-3, 200), (0, 256)])
def test_thirty_two_bit_grey_of_another_range_is_refused_with_the_range_and_the_remedy(kind, low, high):
    values = np.array([[low, high]], dtype=kind)
    with raises(ValueError, word="range"):
        array(Image.fromarray(values), 1)


def test_int32_grey_keeps_its_levels():
    values = np.array([[0, 1, 100, 255]], dtype=np.int32)
    assert array(through_file(Image.fromarray(values), "TIFF"), 1)[0, 0].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32), ("I;16", np.uint16)])
def test_levels_say_what_is_black_and_white_and_clip_the_rest(mode, kind):
    values = np.array([[0, 100, 2000, 4100, 42500]], dtype=kind)
    image = through_file(Image.fromarray(values), "TIFF")
    assert image.mode == mode
    result = PixelFormat.of([1, 5], 1, "crop", [100, 4100]).apply(image)
    assert result[0, 0].tolist() == [0, 0, round(1900 / 4000 * 255), 255, 255]


def test_levels_leave_eight_bits_as_they_are():
    values = random_image(5, 7)
    assert np.array_equal(
        PixelFormat.of([5, 7], 3, "crop", [0, 4095]).apply(Image.fromarray(values)), values.transpose(2, 0, 1)
    )


def test_sixteen_bit_grey_that_pillow_opens_with_thirty_two_bits_is_scaled_as_sixteen():
    levels = np.array([[0, 1000, 65535]], dtype=">u2")
    image = Image.open(io.BytesIO(b"P5 3 1 65535\n" + levels.tobytes()))
    assert image.mode == "I"
    assert array(image, 1)[0, 0].tolist() == [0, round(1000 / 257), 255]


def test_a_folder_that_holds_floats_to_255_has_dark_images_without_being_stretched():
    dark = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert PixelFormat(1, 3, 1, float_white=255.0).apply(dark)[0, 0].tolist() == [0, 0, 1]
    bright = Image.fromarray(np.array([[0.0, 200.0]], dtype=np.float32))
    with raises(ValueError, word="200"):
        PixelFormat(1, 2, 1, float_white=1.0).apply(bright)


def test_cmyk_jpeg_becomes_rgb():
    image = through_file(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert image.mode == "CMYK"
    cyan = array(image, 3).reshape(3, -1).T.astype(int)
    assert np.abs(cyan - [0, 255, 255]).max() <= 3  # JPEG is lossy


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_every_mode_gives_the_wanted_shape(mode, channels, fit):
    result = array(Image.new(mode, (9, 6)), channels, size=[4, 8], fit=fit)
    assert result.shape == (channels, 4, 8)
    assert result.dtype == np.uint8


# Sizes


def test_crop_takes_the_centre_of_a_wide_and_of_a_tall_image():
    values = random_image(2, 6)
    assert np.array_equal(array(Image.fromarray(values), 3, size=2), values[:, 2:4].transpose(2, 0, 1))
    tall = values.transpose(1, 0, 2).copy()
    assert np.array_equal(array(Image.fromarray(tall), 3, size=2), tall[2:4].transpose(2, 0, 1))


def test_crop_keeps_the_largest_box_of_the_wanted_aspect_ratio():
    values = np.zeros((8, 8), dtype=np.uint8)
    values[2:6] = 200  # the centred 4x8 box
    assert (array(Image.fromarray(values), 1, size=[4, 8]) == 200).all()


def test_pad_adds_black_above_and_below_or_left_and_right():
    values = np.maximum(random_image(2, 4), 1)
    wide = array(Image.fromarray(values), 3, size=4, fit="pad")
    assert np.array_equal(wide[:, 1:3], values.transpose(2, 0, 1))
    assert (wide[:, [0, 3]] == 0).all()
    turned = values.transpose(1, 0, 2).copy()
    tall = array(Image.fromarray(turned), 3, size=4, fit="pad")
    assert np.array_equal(tall[:, :, 1:3], turned.transpose(2, 0, 1))
    assert (tall[:, :, [0, 3]] == 0).all()


def test_stretch_uses_the_whole_image():
    values = np.zeros((8, 32), dtype=np.uint8)
    values[:, 16:] = 255
    result = array(Image.fromarray(values), 1, size=8, fit="stretch")[0]
    assert (result[:, :2] <= 20).all()
    assert (result[:, -2:] >= 235).all()
    assert abs(result.mean() - 127.5) < 2


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(5, 3), (3, 5), (1, 1), (200, 1), (1, 200), (64, 64)])
def test_a_constant_image_stays_constant_at_any_size(fit, size):
    image = Image.new("RGB", size, (10, 120, 250))
    result = array(image, 3, size=[16, 12], fit=fit)
    assert (result == np.array([10, 120, 250])[:, None, None]).all()


@pytest.mark.parametrize("size", [28, [75, 100], [31, 17]])
def test_crop_accepts_images_of_every_side(size):
    """A corner computed as half the difference of two rounded widths can be slightly negative: 58 pixels cut to 28 are."""
    for side in range(1, 500):
        for image in (Image.new("L", (side, 500), 130), Image.new("L", (500, side), 130)):
            assert (array(image, 1, size=size) == 130).all()


@pytest.mark.parametrize("size", [(300, 1), (1, 300)])
def test_pad_keeps_at_least_one_pixel_of_an_extreme_image(size):
    result = array(Image.new("L", size, 200), 1, size=8, fit="pad")
    assert (result == 200).sum() == 8


def test_transparent_pixels_do_not_bleed_when_an_image_shrinks():
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 16, 8))
    assert (array(image, 3, size=4) == 255).all()
    opaque_white = array(image, 4, size=4)
    assert (opaque_white[:3, opaque_white[3] > 60] >= 250).all()


# Errors


@pytest.mark.parametrize("channels", [0, 2, 5, -1])
def test_unknown_channels_are_refused(channels):
    with raises(ConfigError, f"channels={channels}"):
        PixelFormat.of(8, channels)


def test_unknown_fit_is_refused():
    with raises(ConfigError, "fit=squeeze"):
        PixelFormat.of(8, 3, "squeeze")


@pytest.mark.parametrize("size", [0, -4, [8], [8, 8, 8], [8, 0], [8.0, 8.0], "8"])
def test_a_size_that_is_none_is_refused(size):
    with raises(ConfigError, "image_size", word="height"):
        PixelFormat.of(size, 3)


def test_shape_is_channels_height_width():
    assert PixelFormat.of([4, 6], 3).shape == (3, 4, 6)
    assert PixelFormat.of(4, 1).shape == (1, 4, 4)


# What files have in common


def save(path, image: Image.Image, **options) -> str:
    image.save(path, **options)
    return path.name


def test_files_of_one_size_have_it_in_common(tmp_path):
    names = [save(tmp_path / name, Image.new("RGB", (7, 5))) for name in ("a.png", "b.jpg", "c.bmp")]
    assert common_format(Index(list(names), "", root=tmp_path)) == PixelFormat(height=5, width=7, channels=3)


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L", "L"], 1),
        (["1", "I;16", "L"], 1),
        (["RGB"], 3),
        (["L", "RGB"], 3),
        (["RGB", "L"], 3),
        (["L", "P"], 3),
        (["RGBA"], 3),
    ],
)
def test_files_are_grey_in_common_only_where_all_are_grey(tmp_path, modes, channels):
    names = [save(tmp_path / f"{i}.png", Image.new(mode, (4, 4))) for i, mode in enumerate(modes)]
    found = common_format(Index(list(names), "", root=tmp_path))
    assert found.channels == channels
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert found.apply(image).shape == (channels, 4, 4)


def test_files_of_different_sizes_are_refused_naming_two_and_both_sizes(tmp_path):
    for name, size in (("a.png", (7, 5)), ("b.png", (7, 5)), ("c.png", (9, 4)), ("d.png", (1, 1))):
        save(tmp_path / name, Image.new("L", size))
    names = ["a.png", "b.png", "c.png", "d.png"]
    with raises(DataError, word="a.png with 7x5 pixels and c.png with 9x4"):
        common_format(Index(list(names), "", root=tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_common_is_that_of_the_picture_as_it_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = save(tmp_path / "held.jpg", Image.new("RGB", (8, 4)), exif=exif)
    upright = save(tmp_path / "upright.png", Image.new("RGB", (4, 8) if orientation > 4 else (8, 4)))
    found = common_format(Index([name, upright], "", root=tmp_path))
    assert (found.height, found.width) == ((8, 4) if orientation > 4 else (4, 8))
    picture = random_image(4, 8)
    Image.fromarray(picture).save(tmp_path / "held.png", exif=exif)
    with Image.open(tmp_path / "held.png") as image:  # nothing is cropped away
        shown = common_format(Index(["held.png"], "", root=tmp_path)).apply(image).transpose(1, 2, 0)
    assert sorted(map(tuple, shown.reshape(-1, 3))) == sorted(map(tuple, picture.reshape(-1, 3)))


@pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_without_a_size_is_refused_and_named(tmp_path, content):
    save(tmp_path / "a.png", Image.new("L", (4, 4)))
    (tmp_path / "bad.png").write_bytes(content)
    with raises(DataError, word="read"):
        common_format(Index(["a.png", "bad.png"], "", root=tmp_path))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_whose_header_is_destroyed_is_refused_and_named(tmp_path):
    # Pillow's AVIF decoder raises RuntimeError, not OSError, and does so when it opens the file.
    path = tmp_path / "bad.avif"
    Image.fromarray(random_image(64, 64)).save(path)
    content = path.read_bytes()
    start = content.index(b"iloc") + 4
    path.write_bytes(content[:start] + bytes(12) + content[start + 12 :])
    with raises(DataError, word="bad.avif"):
        common_format(Index(["bad.avif"], "", root=tmp_path))


def test_a_file_that_vanished_is_named(tmp_path):
    with raises(DataError, word="absent.png"):
        common_format(Index(["absent.png"], "", root=tmp_path))


# What files of photos and of other programs hold; docs/data.md lists these rules


def png_of(samples: np.ndarray, color_type: int) -> io.BytesIO:
    """A PNG with 16 bits per channel, which Pillow does not write; uint16 [H, W, C]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, color_type, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


SIXTEEN = np.array([[[0, 255, 256], [0x80FF, 0xFFFF, 0x1234]]], dtype=np.uint16)


def test_sixteen_bits_per_colour_keep_the_upper_eight():
    image = Image.open(png_of(SIXTEEN, 2))
    assert np.array_equal(array(image, 3), (SIXTEEN >> 8).transpose(2, 0, 1))


def test_sixteen_bits_with_alpha_keep_the_upper_eight_and_are_put_on_white():
    alpha = np.array([[[0xFFFF], [0]]], dtype=np.uint16)
    image = Image.open(png_of(np.concatenate([SIXTEEN, alpha], axis=2), 6))
    expected = (SIXTEEN >> 8).transpose(2, 0, 1).copy()
    expected[:, 0, 1] = 255  # transparent
    assert np.array_equal(array(image, 3), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_applied(orientation, format):
    values = np.zeros((16, 24), dtype=np.uint8)
    values[:8, :12] = 255  # the upper left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = through_file(Image.fromarray(values).convert("RGB"), format, exif=exif)
    turned = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.T, 6: np.rot90(values, -1),
        7: values[::-1, ::-1].T, 8: np.rot90(values),
    }[orientation]  # fmt: skip
    size = list(turned.shape)
    assert np.abs(array(image, 3, size=size)[0].astype(int) - turned).max() < 30  # JPEG is lossy


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
@pytest.mark.parametrize("of_container", [False, True])
def test_in_heic_and_avif_the_rotation_is_that_of_the_container(format, of_container):
    """A HEIC or AVIF file holds its rotation as ``irot``; the orientation in its EXIF data is only informative."""
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    values = np.zeros((32, 64), dtype=np.uint8)
    values[:, :32] = 255  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    # Both writers copy the orientation into the container, but pillow-heif only from bytes.
    Image.fromarray(values).convert("RGB").save(file, format, exif=exif.tobytes())
    content = file.getvalue()
    assert content.count(b"irot") == 1
    if not of_container:
        at = content.index(b"irot") + 4
        content = content[:at] + bytes([0]) + content[at + 1 :]  # the angle in quarter turns
    with open_image(io.BytesIO(content)) as image:
        found = array(image, 3, size=[64, 32] if of_container else [32, 64])[0].astype(int)
        assert upright_size(image) == (found.shape[1], found.shape[0])
    assert np.abs(found - (np.rot90(values, -1) if of_container else values)).max() < 30


def test_cmyk_jpeg_of_adobe_is_inverted():
    """Photoshop writes the amount of light instead of that of ink, with a marker; Pillow assumes it for all CMYK JPEGs."""
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[..., 1], ink[..., 3] = 200, 40
    image = through_file(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in image.fp.getvalue()
    expected = 255 - np.minimum(255, ink[0, 0, :3].astype(int) * (255 - 40) / 255 + 40)
    assert np.abs(array(image, 3)[:, 8, 8] - expected).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_or_page_is_used(format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    colours = ((250, 0, 0), (0, 250, 0), (0, 0, 250))
    first, *others = [Image.new("RGB", (16, 16), colour) for colour in colours]
    image = through_file(first, format, save_all=True, append_images=others)
    assert image.n_frames == 3
    assert np.abs(array(image, 3)[:, 8, 8].astype(int) - colours[0]).max() <= 8  # AVIF and WebP are lossy


def test_an_apng_whose_still_image_is_no_frame_shows_the_still_image():
    still, frame = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 250, 0))
    image = through_file(still, "PNG", save_all=True, append_images=[frame], default_image=True)
    assert array(image, 3)[:, 0, 0].tolist() == [250, 0, 0]


def test_the_transparent_parts_of_a_gif_are_put_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    gif = through_file(image, "GIF", transparency=0, save_all=True, append_images=[Image.new("P", (2, 1))])
    assert array(gif, 3)[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(random_image(16, 16)).save(tmp_path / "a.avif")
    with open_image(tmp_path / "a.avif") as image:
        assert np.array_equal(array(image, 3), np.asarray(Image.open(tmp_path / "a.avif")).transpose(2, 0, 1))
