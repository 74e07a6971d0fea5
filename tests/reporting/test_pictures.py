"""Pictures inside the page. Takes two seconds."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from pretend_runs import write_picture, write_run

from genimg.reporting.pictures import MAX_STEPS, Picture, gallery
from genimg.reporting.run_files import read_run


def decoded(picture: Picture) -> Image.Image:
    head, _, content = picture.uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_small_pictures_are_embedded_without_loss(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", kinds=("samples", "real")), "a")
    found = gallery([run])
    assert list(found.kinds) == ["samples", "real"]
    assert found.notes == []
    for picture in found.kinds["samples"][0]:
        original = Image.open(run.pictures["samples"][picture.images])
        assert np.array_equal(np.asarray(decoded(picture)), np.asarray(original))
        assert (picture.width, picture.height) == original.size


def test_of_many_pictures_evenly_spaced_ones_with_both_ends_are_shown_and_it_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    for number in range(100):
        write_picture(folder, "samples", 10 * number, size=8)
    found = gallery([read_run(folder, "a")])
    images = [picture.images for picture in found.kinds["samples"][0]]
    assert (len(images), images[0], images[-1]) == (MAX_STEPS, 0, 3000)
    assert f"At most {MAX_STEPS} of up to 103" in found.notes[0]


def test_a_run_of_many_kinds_does_not_wait_long_for_its_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", values=[1.0] * 29, kinds=[f"kind{number}" for number in range(8)])
    kinds = gallery([read_run(folder, "a")]).kinds
    assert [len(kinds[kind][0]) for kind in kinds] == [12] * 8  # 96 of 240


def test_the_budget_is_kept_by_fewer_and_then_by_smaller_pictures(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, values=[3.0, 2.0, 1.0] * 3), name) for name in "ab"]
    whole = sum(len(picture.uri) for pictures in gallery(runs).kinds["samples"].values() for picture in pictures)
    for budget in (8000, 1500):
        found = gallery(runs, budget=budget)
        pictures = [picture for each in found.kinds["samples"].values() for picture in each]
        assert sum(len(picture.uri) for picture in pictures) <= budget * 4 / 3 + 40 * len(pictures) < whole
        assert {pictures[0].images, pictures[-1].images} == {0, 9000}
        assert found.notes
    assert "reduced" in gallery(runs, budget=1500).notes[-1]


def test_large_pictures_are_reduced_and_broken_ones_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", values=[1.0])
    write_picture(folder, "large", 1000, size=1500)
    (folder / "samples" / "samples-000001000.png").write_bytes(b"no picture")
    found = gallery([read_run(folder, "a")])
    assert (found.kinds["large"][0][0].width, found.kinds["large"][0][0].height) == (1200, 1200)
    assert [picture.images for picture in found.kinds["samples"][0]] == [0]
    assert any("1200 pixels" in note for note in found.notes)
    assert any("samples-000001000.png of a cannot be read" in note for note in found.notes)
