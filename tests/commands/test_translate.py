"""genimg-translate: files in, files out, at any size, in tiles, with masks, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from fork_server import run_command, run_commands
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.sample import sample
from genimg.commands.translate import translate
from genimg.data.tasks.base import Pair, Task
from genimg.data.tasks.degradations import Colorize, Denoise, Edges, SuperResolution
from genimg.data.tasks.edges import Sobel
from genimg.errors import CheckpointError, ConfigError, DataError
from genimg.inference.translate import image_channels
from genimg.methods.image_to_image import Translation
from genimg.utils.images import to_uint8
from genimg.utils.outputs import MARK
from genimg.utils.paths import config_dir

SMALL = ["data.image_size=16", "trainer.batch_size=4", "trainer.duration=2 steps", "trainer.preview_images=2", "device=cpu"]
SMALL += ["evaluation=none"]
SHAPES = [*SMALL, "data=shapes", "data.num_images=8"]
RESTORATION = [*SHAPES, "model=restoration", "model.translator.width=4", "model.translator.num_blocks=1"]
DISCRIMINATOR = ["width=4", "num_strided=1"]
RUNS = {
    "denoise": [*RESTORATION, "task=denoise"],
    "inpaint": [*RESTORATION, "task=inpaint_boxes"],
    "enlarge": [*RESTORATION, "task=super_resolution", "task.factor=2"],
    "colorize": [*RESTORATION, "task=colorize", "model.residual=false"],
    "pix2pix": [*SMALL, "model=pix2pix", "data=paired", "model.translator.width=4",
                *(f"model.discriminator.{setting}" for setting in DISCRIMINATOR)],
    "cyclegan": [*SMALL, "model=cyclegan", "data=unpaired", "data.channels_b=1", "model.identity_weight=0",
                 "model.translator.width=4", "model.translator.num_blocks=1",
                 *(f"model.discriminator.{setting}" for setting in DISCRIMINATOR)],
    "gan": [*SHAPES, "model=dcgan_small", "model.generator.width=8"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of models that have hardly been trained."""
    root = tmp_path_factory.mktemp("runs")
    write_images(root / "a", {f"{i}.png": (16, 16) for i in range(4)})
    write_images(root / "b", {f"{i}.png": (16, 16) for i in range(4)}, seed=1)
    domains = [f"data.a={root / 'a'}", f"data.b={root / 'b'}"]
    lines = [
        ["train", *arguments, f"run_dir={root / name}", *(domains if name in ("pix2pix", "cyclegan") else [])]
        for name, arguments in RUNS.items()
    ]
    codes, output = run_commands(lines)
    assert codes == [0] * len(lines), output
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def write_images(folder: Path, sizes: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """RGB noise of so many pixels, height and width."""
    random = np.random.default_rng(seed)
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


def run_translate(run: Path, *overrides: str) -> None:
    """In this process."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("translate", overrides=[f"ckpt={run}", "device=cpu", *overrides])
    translate(composed)


def loaded(run: Path) -> Translation:
    method = TrainedCheckpoint.open(run).method(torch.device("cpu"))
    assert isinstance(method, Translation)
    return method


def pixels(path: Path | str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def as_float(levels: Any) -> Tensor:
    """[H, W] or [H, W, C] of 0 to 255 as [1, C, H, W] in [-1, 1]."""
    array = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    return torch.from_numpy(array.astype(np.float32))[None] / 127.5 - 1


def assert_shows(path: Path | str, image: Tensor) -> None:
    """A file holds an image [1, C, H, W]; one level apart where another batch size sums in another order."""
    expected = to_uint8(image)[0].permute(1, 2, 0).numpy().astype(int)
    expected = expected[:, :, 0] if expected.shape[2] == 1 else expected
    found = pixels(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def files(folder: Path | str) -> list[str]:
    """All but what the folder says about itself."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file() and path.name != MARK)


# Files


def test_through_the_command_line_images_of_any_size_keep_their_names(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (20, 30), "deep/er/b.bmp": (16, 16), "c.png": (16, 16), "tiny.png": (1, 2)})
    Path("photos/notes.txt").write_text("no image")
    result = run_command("translate", f"ckpt={runs / 'cyclegan'}", "input=photos", "output=out", "device=cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr
    assert "4 images: out" in result.stdout
    assert files("out") == ["a.png", "c.png", "deep/er/b.png", "tiny.png"]
    method = loaded(runs / "cyclegan")
    assert method.size_divisor == 4
    for name, pads in (("a.png", ((0, 0), (0, 2), (0, 0))), ("c.png", ((0, 0),) * 3)):
        levels = pixels(f"photos/{name}")
        output = method.translate(as_float(np.pad(levels, pads, mode="reflect")), "a2b")
        assert_shows(f"out/{name}", output[:, :, : levels.shape[0], : levels.shape[1]])
    assert pixels("out/deep/er/b.png").shape == (16, 16)  # domain b is grey
    assert pixels("out/tiny.png").shape == (1, 2)


def test_the_grid_shows_each_image_beside_its_translation(runs: Path) -> None:
    write_images(Path("photos"), {f"{i:02d}.png": (16, 12) for i in range(18)})
    run_translate(runs / "denoise", "input=photos", "output=out")
    picture = pixels("out.png")
    assert picture.shape == (6 * 18 + 2, 6 * 14 + 2, 3)  # 16 pairs, three a row, between borders of 2
    for number in (0, 4, 15):
        top, left = 2 + 18 * (number // 3), 2 + 28 * (number % 3)
        for folder, column in (("photos", left), ("out", left + 14)):
            assert np.array_equal(picture[top : top + 16, column : column + 12], pixels(f"{folder}/{number:02d}.png"))
    assert (picture[-18:-2, -14:-2] == 255).all()  # no seventeenth


def test_the_grid_holds_large_and_small_images_and_can_be_left_away(runs: Path) -> None:
    write_images(Path("photos"), {"large.png": (16, 512), "small.png": (20, 8)})
    run_translate(runs / "denoise", "input=photos", "output=out")
    picture = pixels("out.png")
    assert picture.shape == (2 * 22 + 2, 2 * 258 + 2, 3)  # the large one is shown with 8x256 pixels
    assert np.array_equal(picture[24:44, 2 + 124 : 2 + 132], pixels("photos/small.png"))
    assert (picture[24:44, 2 : 2 + 124] == 255).all()
    run_translate(runs / "denoise", "input=photos", "output=other", "grid=false")
    assert not Path("other.png").exists()


@pytest.mark.parametrize(
    ("name", "size", "trained"),
    [("denoise", (16, 16), ""), ("denoise", (10, 40), ""), ("denoise", (64, 64), "16x16"), ("denoise", (7, 7), "16x16"),
     ("enlarge", (16, 16), ""), ("enlarge", (8, 8), ""), ("enlarge", (20, 20), "8x8")],
)  # fmt: skip
def test_an_image_far_from_the_size_of_training_is_warned_of(
    runs: Path, caplog: pytest.LogCaptureFixture, name: str, size: tuple[int, int], trained: str
) -> None:
    write_images(Path("photos"), {"a.png": size, "b.png": size})
    run_translate(runs / name, "input=photos", "output=out")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if not trained:
        assert warnings == []
        return
    (warning,) = warnings
    assert f"a.png of {size[0]}x{size[1]} pixels and 1 more are far from the size that this model was trained at" in warning
    assert f", {trained} (height x width)" in warning


def test_one_image_goes_into_a_folder(runs: Path) -> None:
    write_images(Path("."), {"photo.png": (18, 17)})
    run_translate(runs / "denoise", "input=photo.png", "output=out")
    assert files("out") == ["photo.png"]
    assert_shows("out/photo.png", loaded(runs / "denoise").translate(as_float(pixels("photo.png"))))


def test_other_kinds_of_images_are_converted(runs: Path) -> None:
    Path("photos").mkdir()
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (16, 20), dtype=np.uint8)
    Image.fromarray(grey).save("photos/grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save("photos/sixteen.png")
    clear = np.dstack([grey] * 3 + [np.where(grey < 128, 0, 255).astype(np.uint8)])
    Image.fromarray(clear).save("photos/clear.png")
    held = Image.fromarray(random.integers(0, 256, (16, 20, 3), dtype=np.uint8))
    exif = held.getexif()
    exif[0x0112] = 6  # held upright
    held.save("photos/held.png", exif=exif)
    run_translate(runs / "denoise", "input=photos", "output=out")
    method = loaded(runs / "denoise")
    colours = np.dstack([grey] * 3).astype(int)
    expected = {
        "grey": colours,
        "sixteen": colours,
        "clear": np.where(colours < 128, 255, colours),
        "held": np.rot90(np.asarray(held).astype(int), -1),
    }
    for name, levels in expected.items():
        assert_shows(f"out/{name}.png", method.translate(as_float(levels.copy())))


def test_images_of_one_size_go_together_and_a_batch_changes_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("photos"), {**{f"{i}.png": (16, 16) for i in range(5)}, "5.png": (20, 30)})
    counts: list[tuple[int, ...]] = []
    original = Translation.translate

    def noted(self: Translation, source: Tensor, direction: str | None = None) -> Tensor:
        counts.append(tuple(source.shape))
        return original(self, source, direction)

    monkeypatch.setattr(Translation, "translate", noted)
    run_translate(runs / "denoise", "input=photos", "output=one", "batch_size=3")
    assert counts[-3:] == [(1, 3, 20, 30), (3, 3, 16, 16), (2, 3, 16, 16)]  # the largest first
    run_translate(runs / "denoise", "input=photos", "output=two", "batch_size=1")
    for name in files("one"):
        assert np.abs(pixels(f"one/{name}") - pixels(f"two/{name}")).max() <= 1


def test_overwrite_replaces_an_own_folder_whole_and_no_other(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 16), "b.png": (16, 16)})
    write_images(Path("other"), {"c.png": (20, 20)})
    run_translate(runs / "denoise", "input=photos", "output=out")
    run_translate(runs / "colorize", "input=other", "output=out", "overwrite=true")
    assert files("out") == ["c.png"]  # nothing of the first model
    assert pixels("out.png").shape == (24, 46, 3)
    mark = json.loads(Path("out", MARK).read_text())
    assert mark["checkpoint"].startswith(str(runs / "colorize"))
    Path("out/notes.txt").write_text("mine")
    Path("theirs").mkdir()
    Path("theirs/a.png").write_text("theirs")
    Path("new.png").write_text("theirs")
    for output, word in (("out", "notes.txt"), ("theirs", "files"), ("new", "grid")):
        with raises(ConfigError, "output", word=word):
            run_translate(runs / "denoise", "input=photos", f"output={output}", "overwrite=true")
    assert files("out") == ["c.png", "notes.txt"]
    assert Path("theirs/a.png").read_text() == Path("new.png").read_text() == "theirs"


# Two images side by side


@pytest.fixture
def of_pairs(runs: Path, home: Path) -> Path:
    """A checkpoint of pix2pix as if it had been trained on files with two images side by side."""
    checkpoint = TrainedCheckpoint.open(runs / "pix2pix")
    path, state = checkpoint.path, dict(checkpoint.state)
    state["config"]["data"] |= {"root": "facades", "a": None, "b": None}
    torch.save(state, home / path.name)
    return home / path.name


def test_pairs_in_one_file_are_noticed_and_a_half_can_be_taken(runs: Path, of_pairs: Path) -> None:
    write_images(Path("pairs"), {"a.png": (16, 32), "b.png": (32, 64)})
    with raises(ConfigError, "half", word="looks"):
        run_translate(of_pairs, "input=pairs", "output=out")
    for half, columns in (("left", slice(16)), ("right", slice(16, 32)), ("whole", slice(None))):
        Path(f"alone-{half}").mkdir()
        Image.open("pairs/a.png").crop((columns.start or 0, 0, columns.stop or 32, 16)).save(f"alone-{half}/a.png")
        run_translate(of_pairs, "input=pairs/a.png", f"output={half}", f"half={half}")
        run_translate(runs / "pix2pix", f"input=alone-{half}", f"output=expected-{half}")  # another folders' model: no refusal
        assert np.array_equal(pixels(f"{half}/a.png"), pixels(f"expected-{half}/a.png"))
        assert pixels(f"{half}/a.png").shape[1] == (32 if half == "whole" else 16)


def test_other_shapes_and_odd_widths(of_pairs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 16), "b.png": (16, 24)})
    run_translate(of_pairs, "input=photos", "output=out")
    assert files("out") == ["a.png", "b.png"]
    write_images(Path("odd"), {"a.png": (16, 31)})
    with raises(ConfigError, "half=left"):
        run_translate(of_pairs, "input=odd", "output=out2", "half=left")


# Kinds of models


def test_each_direction_has_its_network_and_its_channels(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 16)})
    run_translate(runs / "cyclegan", "input=photos", "output=there", "direction=a2b")
    run_translate(runs / "cyclegan", "input=there", "output=back", "direction=b2a")
    method = loaded(runs / "cyclegan")
    there = pixels("there/a.png")
    assert_shows("there/a.png", method.translate(as_float(pixels("photos/a.png")), "a2b"))
    assert_shows("back/a.png", method.translate(as_float(there), "b2a"))
    assert pixels("back/a.png").shape == (16, 16, 3)


def test_super_resolution_makes_images_larger(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (9, 14), "one.png": (1, 1)})
    run_translate(runs / "enlarge", "input=photos", "output=out")
    levels = pixels("photos/a.png").astype(np.float32)
    bands = [Image.fromarray(levels[:, :, c]).resize((28, 18), Image.Resampling.BICUBIC) for c in range(3)]
    larger = as_float(np.clip(np.dstack([np.asarray(band) for band in bands]), 0, 255))
    assert_shows("out/a.png", loaded(runs / "enlarge").translate(larger))
    assert pixels("out/one.png").shape == (2, 2, 3)


def test_colours_of_grey_and_of_coloured_images(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 18)})
    Image.open("photos/a.png").convert("L").save("photos/grey.png")
    run_translate(runs / "colorize", "input=photos", "output=out")
    assert pixels("out/a.png").shape == pixels("out/grey.png").shape == (16, 18, 3)
    left = pixels("out.png")[2:18, 2:20]
    assert (left[:, :, 0] == left[:, :, 1]).all()  # the grid shows what the model is given: the lightness
    assert (left[:, :, 0] == left[:, :, 2]).all()


@pytest.mark.parametrize("mask", ["holes", "holes/a.png"])
def test_inpainting_fills_holes_and_keeps_all_else(runs: Path, mask: str) -> None:
    write_images(Path("photos"), {"a.jpg": (20, 24), "b/c.png": (20, 24)})
    hole = np.zeros((20, 24), dtype=np.uint8)
    hole[5:11, 7:20] = 128
    hole[0, 0] = 127
    for name in ("a.png", "b/c.bmp"):
        Path("holes", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(hole).save(f"holes/{name}")
    run_translate(runs / "inpaint", "input=photos", "output=out", f"mask={mask}")
    method = loaded(runs / "inpaint")
    missing = hole >= 128
    for image, made in (("a.jpg", "a.png"), ("b/c.png", "b/c.png")):
        levels = pixels(f"photos/{image}")
        assert np.array_equal(pixels(f"out/{made}")[~missing], levels[~missing])
        gap = torch.from_numpy(missing)
        source = torch.cat([as_float(levels).masked_fill(gap, 0.0), gap.float()[None, None] * 2 - 1], dim=1)
        assert_shows(f"out/{made}", torch.where(gap, method.translate(source), as_float(levels)))


@pytest.mark.parametrize(
    ("task", "source_channels", "expected"),
    [
        (Pair(source_channels=4), 4, 4),
        (Pair(source_channels=1), 1, 1),
        (Denoise(noise="gaussian", amount=25), 3, 3),
        (SuperResolution(factor=2), 1, 1),
        (Colorize(space="gray"), 1, 3),
        (Colorize(space="lab"), 1, 3),
        (Edges(detector=Sobel()), 1, 1),
    ],
)
def test_images_are_read_with_the_channels_that_the_task_makes_sources_of(
    task: Task, source_channels: int, expected: int
) -> None:
    assert image_channels(task, source_channels) == expected


def test_sources_that_no_image_file_has_are_refused() -> None:
    with raises(CheckpointError, word="channels"):
        image_channels(Pair(source_channels=2), 2)


# Tiles


def test_tiles_make_the_same_image_and_the_network_sees_no_more(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Path("photos"), {"wide.png": (20, 75), "large.png": (61, 50), "small.png": (16, 24)})
    run_translate(runs / "denoise", "input=photos", "output=whole")
    most: list[int] = []
    original = Translation.translate

    def noted(self: Translation, source: Tensor, direction: str | None = None) -> Tensor:
        most.append(source[:, 0].numel())
        return original(self, source, direction)

    monkeypatch.setattr(Translation, "translate", noted)
    run_translate(runs / "denoise", "input=photos", "output=tiles", "tile=32", "overlap=12", "batch_size=2")
    assert max(most) == 2 * 32 * 32
    for name in files("whole"):
        assert np.abs(pixels(f"whole/{name}") - pixels(f"tiles/{name}")).max() <= 1


@pytest.mark.parametrize(
    ("name", "overrides", "setting"),
    [
        ("cyclegan", ["tile=66"], "tile=66"),
        ("cyclegan", ["tile=2", "overlap=0"], "tile=2"),
        ("cyclegan", ["tile=4", "overlap=1"], "tile=4"),
        ("denoise", ["tile=64"], "overlap=32"),
        ("denoise", ["tile=0"], "tile=0"),
        ("denoise", ["overlap=-1"], "overlap=-1"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(runs: Path, name: str, overrides: list[str], setting: str) -> None:
    write_images(Path("photos"), {"a.png": (16, 16)})
    with raises(ConfigError, setting):
        run_translate(runs / name, "input=photos", "output=out", *overrides)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["batch_size=1"], "tile=256"),
        ([], "tile=256 or a smaller batch_size"),
        (["tile=20", "overlap=4"], "tile=8 or a smaller batch_size"),
        (["tile=8", "overlap=2", "batch_size=1"], "device"),
    ],
)
def test_a_full_memory_says_what_to_set(runs: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], advice: str) -> None:
    def full(self: Translation, source: Tensor, direction: str | None = None) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    write_images(Path("photos"), {"a.png": (24, 40)})
    monkeypatch.setattr(Translation, "translate", full)
    monkeypatch.setattr("genimg.inference.translate.least_side", lambda *arguments: 8)
    with raises(ConfigError, "tile", word=advice):
        run_translate(runs / "cyclegan", "input=photos", "output=out", *overrides)
    assert files("out") == []


# Training mode


def test_dropout_is_a_function_of_the_seed_and_the_images_number(runs: Path) -> None:
    write_images(Path("photos"), {f"{i}.png": (32, 32) for i in range(3)})
    for output, overrides in (
        ("eval", []), ("one", ["model_mode=train"]), ("two", ["model_mode=train", "batch_size=1"]),
        ("other", ["model_mode=train", "seed=1"]),
    ):  # fmt: skip
        run_translate(runs / "pix2pix", "input=photos", f"output={output}", *overrides)
    for name in files("one"):
        made = {output: pixels(f"{output}/{name}") for output in ("eval", "one", "two", "other")}
        assert np.array_equal(made["one"], made["two"])
        assert not np.array_equal(made["one"], made["other"])
        assert not np.array_equal(made["one"], made["eval"])


def test_training_mode_without_anything_to_train_is_refused(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 16)})
    with raises(ConfigError, "model_mode=train"):
        run_translate(runs / "denoise", "input=photos", "output=out", "model_mode=train")


# What is refused


@pytest.mark.parametrize(
    ("name", "overrides", "word"),
    [
        ("denoise", ["input=nowhere"], "input=nowhere"),
        ("denoise", ["input=empty"], "input=empty"),
        ("denoise", ["input=photos", "output=photos"], "output=photos"),
        ("denoise", ["output=photos/made"], "output=photos/made"),
        ("denoise", ["output=."], "input=photos"),
        ("denoise", ["input=photos/a.png", "output=photos", "overwrite=true"], "input=photos/a.png lies"),
        ("denoise", ["output=full"], "output=full"),
        ("denoise", ["output=full/file.txt"], "output=full/file.txt"),
        ("denoise", ["output=made.png"], "output=made.png"),
        ("denoise", ["output=taken"], "output=taken"),
        ("denoise", ["input=twice"], "twice/a.bmp"),
        ("denoise", ["input=links", "output=full", "overwrite=true"], "links/b.png"),
        ("denoise", ["input=broken"], "broken/a.png"),
        ("denoise", ["direction=a2b"], "direction=a2b"),
        ("pix2pix", ["direction=b2a"], "direction=b2a"),
        ("denoise", ["mask=photos"], "mask=photos"),
        ("inpaint", [], "mask is required"),
        ("inpaint", ["mask=nowhere"], "mask=nowhere"),
        ("inpaint", ["mask=empty"], "mask=empty"),
        ("inpaint", ["mask=twice"], "mask=twice"),
        ("inpaint", ["mask=large.png"], "photos/a.png"),
        ("inpaint", ["mask=masks", "output=masks/made"], "output=masks/made"),
        ("denoise", ["batch_size=0"], "batch_size=0"),
        ("denoise", ["+titel=3"], "titel"),
        ("gan", [], "genimg-sample"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    runs: Path, home: Path, name: str, overrides: list[str], word: str
) -> None:
    write_images(home / "photos", {"a.png": (16, 20)})
    write_images(home, {"taken.png": (16, 16), "large.png": (20, 16)})
    write_images(home / "twice", {"a.png": (16, 20), "a.bmp": (16, 20)})
    for folder in ("empty", "full", "links", "broken", "masks"):
        (home / folder).mkdir()
    (home / "full" / "file.txt").write_text("kept")
    write_images(home / "full", {"b.png": (16, 16)})
    (home / "links" / "b.png").symlink_to(home / "full" / "b.png")
    (home / "broken" / "a.png").write_bytes(b"not a picture")
    (home / "broken" / "b.png").write_bytes(b"")
    write_images(home / "masks", {"a.png": (16, 20)})
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    given = {"input": "photos", "output": "out"} | dict(override.split("=", 1) for override in overrides)
    with raises((ValueError, FileNotFoundError), word=word):
        run_translate(runs / name, *(f"{key}={value}" for key, value in given.items()))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert not (home / "out").exists()


def test_through_the_command_line_a_mistake_is_one_message(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (16, 16)})
    result = run_command("translate", f"ckpt={runs / 'gan'}", "input=photos", "output=out")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "genimg-translate: error: ckpt=" in result.stderr
    misspelt = [f"ckpt={runs / 'denoise'}", "input=photos", "output=out", "titel=3"]
    for arguments, message in (([f"ckpt={runs}"], "input is required"), (misspelt, "did you mean 'tile'?")):
        result = run_command("translate", *arguments)
        assert result.returncode == 2
        assert message in result.stderr.split("error: ", 1)[1]


def test_sampling_from_a_translator_is_refused(runs: Path) -> None:
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("sample", overrides=[f"ckpt={runs / 'cyclegan'}", "device=cpu"])
    with raises(ConfigError, "ckpt", word="genimg-translate"):
        sample(composed)


def test_a_file_that_breaks_off_is_named_and_nothing_is_written(runs: Path) -> None:
    write_images(Path("photos"), {"a.png": (40, 40), "b.png": (30, 30)})
    content = Path("photos/b.png").read_bytes()
    Path("photos/b.png").write_bytes(content[: len(content) // 2])
    with raises(DataError, "photos", word="truncated"):
        run_translate(runs / "denoise", "input=photos", "output=out")
    assert not Path("out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_writes_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    write_images(Path("photos"), {"a.png": (16, 16)})
    answer: Callable[..., Tensor] = lambda self, source, direction=None: source * value  # noqa: E731
    monkeypatch.setattr(Translation, "translate", answer)
    with raises(CheckpointError, "photos", word="infinite"):
        run_translate(runs / "denoise", "input=photos", "output=out")
    assert files("out") == []
