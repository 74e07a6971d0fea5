from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genimg.data.datasets.builtin import CorruptImageError
from genimg.data.datasets.paired import paired
from genimg.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)
DEFAULTS = {
    "root": None, "a": None, "b": None, "direction": "a2b", "image_size": [4, 6], "channels": 3, "channels_a": None,
    "channels_b": None, "fit": "crop",
}  # fmt: skip


def build(**changes: Any) -> Any:
    return paired(**(DEFAULTS | {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}))


def plain(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def side_by_side(path: Path, size: tuple[int, int] = (6, 4)) -> None:
    image = Image.new("RGB", (2 * size[0], size[1]), RED)
    image.paste(BLUE, (size[0], 0, 2 * size[0], size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def colors(array: np.ndarray) -> list[int]:
    assert (array == array[:, :1, :1]).all()
    return array[:, 0, 0].tolist()


@pytest.mark.parametrize(("direction", "expected"), [("a2b", [*RED, *BLUE]), ("b2a", [*BLUE, *RED])])
@pytest.mark.parametrize("size", [(6, 4), (60, 40)])
def test_one_file_holds_a_pair_side_by_side(tmp_path, direction, expected, size):
    side_by_side(tmp_path / "sub" / "one.png", size)
    source = build(root=tmp_path, direction=direction)
    assert (len(source), source.shape) == (1, (6, 4, 6))
    assert colors(source.read(0)) == expected


@pytest.mark.parametrize(("direction", "expected"), [("a2b", [*RED, *BLUE]), ("b2a", [*BLUE, *RED])])
def test_two_folders_are_matched_by_name(tmp_path, direction, expected):
    for name in ("x.png", "deep/y.png"):
        plain(tmp_path / "a" / name, RED)
        plain(tmp_path / "b" / name.replace(".png", ".bmp"), BLUE, size=(12, 8))
    source = build(a=tmp_path / "a", b=tmp_path / "b", direction=direction)
    assert len(source) == 2
    assert [colors(source.read(index)) for index in range(2)] == [expected] * 2


@pytest.mark.parametrize(("direction", "channels"), [("a2b", (1, 3)), ("b2a", (3, 1))])
def test_the_two_may_have_different_channels(tmp_path, direction, channels):
    side_by_side(tmp_path / "one.png")
    source = build(root=tmp_path, channels_a=1, direction=direction)
    assert source.task.channels(source.shape) == channels
    assert source.shape == (4, 4, 6)
    grey = [76]  # the luma of red
    assert colors(source.read(0)) == ([*grey, *BLUE] if direction == "a2b" else [*BLUE, *grey])


def test_the_fingerprint_tells_whatever_makes_other_pairs(tmp_path):
    side_by_side(tmp_path / "one.png")
    same = [build(root=tmp_path).fingerprint for _ in range(2)]
    others = [
        build(root=tmp_path, **change).fingerprint
        for change in ({"direction": "b2a"}, {"channels_b": 1}, {"image_size": 4}, {"fit": "pad"})
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5


def test_files_without_a_partner_are_listed(tmp_path):
    for name in "pqrstuvw":
        plain(tmp_path / "a" / f"{name}.png", RED)
    for name in "xr":
        plain(tmp_path / "b" / f"{name}.png", BLUE)
    with pytest.raises(ValueError, match=r"^a=.* b=.* hold 8 files without a partner .*/a/p\.png, .*/a/q\.png, .* and 3 more"):
        build(a=tmp_path / "a", b=tmp_path / "b")


def test_two_files_of_one_name_are_refused(tmp_path):
    for name in ("x.png", "x.bmp"):
        plain(tmp_path / "a" / name, RED)
    plain(tmp_path / "b" / "x.png", BLUE)
    with pytest.raises(ValueError, match=r"^a=.* has x\.bmp and x\.png, but only one of them"):
        build(a=tmp_path / "a", b=tmp_path / "b")


def test_what_cannot_be_halved_or_decoded_names_its_file(tmp_path):
    plain(tmp_path / "odd.png", RED, size=(7, 4))
    with pytest.raises(CorruptImageError, match=r"odd\.png: a width of 7 pixels"):
        build(root=tmp_path).read(0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    plain(tmp_path / "b" / "x.png", BLUE)
    with pytest.raises(CorruptImageError, match=r"a/x\.png"):
        build(a=tmp_path / "a", b=tmp_path / "b").read(0)


@pytest.mark.parametrize(
    "folders", [{}, {"a": "x"}, {"b": "x"}, {"root": "x", "a": "x", "b": "x"}, {"root": "x", "a": "x"}, {"root": "x", "b": "x"}]
)
def test_folders_are_given_in_one_way(folders):
    with pytest.raises(ValueError, match=r"give root, .* or both a and b"):
        build(**folders)


def test_missing_and_empty_folders_are_named(tmp_path):
    plain(tmp_path / "a" / "x.png", RED)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^b=.*nowhere does not exist"):
        build(a=tmp_path / "a", b=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"^b=.*empty holds no images"):
        build(a=tmp_path / "a", b=tmp_path / "empty")
    with pytest.raises(DataError, match=r"^root=.*x\.png is a file, not a directory"):
        build(root=tmp_path / "a" / "x.png")


def test_an_unknown_direction_is_refused(tmp_path):
    side_by_side(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"^direction=backwards is unknown: choose a2b or b2a"):
        build(root=tmp_path, direction="backwards")
