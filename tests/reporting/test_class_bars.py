from pathlib import Path

import numpy as np
from PIL import Image

from genimg.reporting.class_bars import write_class_bars

BLUE = (11, 98, 196)


def test_bars_are_as_long_as_the_values(tmp_path: Path) -> None:
    path = tmp_path / "bars.png"
    write_class_bars(path, "title", [("a", 1.0), ("b" * 90, 4.0), ("zero", 0.0), ("d", 2.0)], {"Software": "genimg-eval 1"})
    with Image.open(path) as image:
        assert image.info["Software"] == "genimg-eval 1"
        blue = (np.asarray(image) == BLUE).all(axis=2)
    lengths = [int(length) for length in blue.sum(axis=1)]
    runs = [length for length, before in zip(lengths, [0, *lengths], strict=False) if length and not before]
    assert runs == [105, 420, 210]


def test_values_of_zero_have_no_bars(tmp_path: Path) -> None:
    write_class_bars(tmp_path / "bars.png", "title", [("a", 0.0)], {})
    assert not (np.asarray(Image.open(tmp_path / "bars.png")) == BLUE).all(axis=2).any()
