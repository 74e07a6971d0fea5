"""genimg-latents, and genimg-sample with the latents that it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from fork_server import run_command
from hydra import compose, initialize_config_dir
from PIL import Image

from genimg.commands.latents import latents
from genimg.commands.sample import sample
from genimg.config.sampling_arguments import with_sampling_options
from genimg.errors import ConfigError, DataError
from genimg.evaluation.image_metrics import psnr, ssim
from genimg.inference import directions as directions_module
from genimg.inference import projection
from genimg.utils.paths import config_dir

SMALL = ["data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.duration=2 steps"]
SMALL += ["trainer.preview_images=4", "evaluation=none", "device=cpu"]
RUNS = {
    "plain": [*SMALL, "model=dcgan_small", "model.generator.width=8"],
    "styles": [*SMALL, "model=stylegan2_small", *tiny.SIZES["stylegan2_small"], "conditioning=projection"],
    "vae": [*SMALL, "model=vae_small", *tiny.AUTOENCODERS["vae_small"]],
    "flow": [*SMALL, "model=flow_small", *tiny.DIFFUSION],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of models that have hardly been trained."""
    root = tmp_path_factory.mktemp("runs")
    for name, arguments in RUNS.items():
        result = run_command("train", *arguments, f"run_dir={root / name}")
        assert result.returncode == 0, result.stdout + result.stderr
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_STYLES", 200)
    monkeypatch.setattr(directions_module, "SAMPLES", 200)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for name, size in (("a.png", (16, 16)), ("b.jpg", (20, 30)), ("sub/c.png", (16, 16))):
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(command: Any, name: str, *overrides: str) -> None:
    """In this process."""
    arguments = ["device=cpu", *overrides]
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose(name, overrides=with_sampling_options(arguments) if name == "sample" else arguments)
    command(composed)


def run_latents(*overrides: str) -> None:
    run(latents, "latents", *overrides)


def run_sample(*overrides: str) -> None:
    run(sample, "sample", *overrides)


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def assert_close_pictures(one: Path, other: Path) -> None:
    """One level apart where another batch size sums in another order."""
    assert np.abs(pixels(one) - pixels(other)).max() <= 1


@pytest.mark.parametrize(("name", "more"), [("plain", ["restarts=2"]), ("styles", ["space=w+", "label=ring"])])
def test_a_folder_is_projected_and_sampled_again(runs: Path, photos: Path, tmp_path: Path, name: str, more: list[str]) -> None:
    found, again = tmp_path / "found", tmp_path / "again"
    run_latents(f"ckpt={runs / name}", f"project={photos}", "steps=3", "batch_size=2", f"output={found}", *more)
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == {
        "a.png", "b.png", "sub/c.png", "latents.pt", "projections.json", "genimg.json",
    }  # fmt: skip
    table = json.loads((found / "projections.json").read_text())
    assert [row["name"] for row in table["images"]] == ["a.png", "b.png", "sub/c.png"]
    assert table["settings"]["steps"] == 3
    target, made = (torch.from_numpy(np.array(Image.open(root / "a.png"))).permute(2, 0, 1)[None] for root in (photos, found))
    assert table["images"][0]["ssim"] == pytest.approx(ssim(target, made).item(), abs=1e-6)
    assert table["images"][0]["psnr"] == pytest.approx(psnr(target, made).item(), abs=1e-4)
    record = json.loads((found / "genimg.json").read_text())
    assert record["made_by"] == "genimg-latents"
    assert record["options"]["project"] == str(photos)
    grid = pixels(tmp_path / "found.png")
    assert np.array_equal(grid[2:18, 2:18], pixels(photos / "a.png"))
    assert np.array_equal(grid[2:18, 20:36], pixels(found / "a.png"))
    run_sample(f"ckpt={runs / name}", f"latents={found}", f"output={again}")
    for number, file in enumerate(("a.png", "b.png", "sub/c.png")):
        assert_close_pictures(found / file, again / f"{number:06d}.png")
    if name == "styles":
        assert torch.load(found / "latents.pt", weights_only=True)["condition"]["label"].tolist() == [4, 4, 4]
        assert json.loads((again / "metadata.jsonl").read_text().splitlines()[0])["label"] == 4


def test_one_image_of_a_folder_is_projected_as_it_is_alone(runs: Path, photos: Path, tmp_path: Path) -> None:
    for given, output in ((photos, "all"), (photos / "b.jpg", "one")):
        run_latents(f"ckpt={runs / 'plain'}", f"project={given}", "steps=3", f"output={tmp_path / output}")
    together, alone = (torch.load(tmp_path / name / "latents.pt", weights_only=True) for name in ("all", "one"))
    torch.testing.assert_close(together["values"][1:2], alone["values"], rtol=1e-4, atol=1e-5)
    assert alone["names"] == ["b.png"]


def test_a_matrix_of_styles_has_the_mixed_images_at_its_borders(runs: Path, tmp_path: Path) -> None:
    ckpt, output = f"ckpt={runs / 'styles'}", tmp_path / "mixed"
    run_latents(ckpt, "mix=[0,1]", "rows=2", "columns=3", "label=0", "seed=5", f"output={output}")
    run_sample(ckpt, "num_images=5", "label=0", "seed=5", "noise=const", f"output={tmp_path / 'own'}")
    matrix = pixels(tmp_path / "mixed.png")
    cells = [[matrix[18 * r + 2 :][:16, 18 * c + 2 :][:, :16] for c in range(4)] for r in range(3)]
    assert (cells[0][0] == 255).all()
    borders = [cells[1][0], cells[2][0], *cells[0][1:]]
    for number, shown in enumerate(borders):
        assert np.abs(shown - pixels(tmp_path / "own" / f"{number:06d}.png")).max() <= 1
    for r in range(2):
        for c in range(3):
            assert np.array_equal(cells[r + 1][c + 1], pixels(output / f"row{r:02d}_column{c:02d}.png"))
    assert json.loads((output / "genimg.json").read_text())["options"]["mix"] == [0, 1]


@pytest.mark.parametrize(("name", "method", "more"), [("plain", "ganspace", []), ("styles", "sefa", ["layers=[0,2]"])])
def test_directions_are_written_and_applied_again(runs: Path, tmp_path: Path, name: str, method: str, more: list[str]) -> None:
    ckpt, output, again = f"ckpt={runs / name}", tmp_path / "found", tmp_path / "again"
    same = ["num_images=1", "frames=3", "strength=2", *more]
    run_latents(ckpt, f"directions={method}", "num_directions=3", *same, f"output={output}")
    assert sorted(path.name for path in output.iterdir()) == [
        "direction00.png", "direction01.png", "direction02.png", "directions.pt", "genimg.json",
    ]  # fmt: skip
    picture = pixels(tmp_path / "found.png")
    assert picture.shape[:2] == (3 * 18 + 2, 3 * 18 + 2)
    assert np.array_equal(picture[:20], pixels(output / "direction00.png"))
    run_latents(ckpt, f"directions={output}", "num_directions=2", *same, f"output={again}")
    assert np.array_equal(pixels(output / "direction01.png"), pixels(again / "direction01.png"))
    assert not (again / "direction02.png").exists()
    noise = ["noise=const"] if name == "styles" else []
    run_sample(ckpt, "num_images=1", *noise, f"output={tmp_path / 'own'}")
    assert np.abs(picture[2:18, 20:36] - pixels(tmp_path / "own" / "000000.png")).max() <= 1  # the middle does not move


def test_projections_are_moved_along_directions(runs: Path, photos: Path, tmp_path: Path) -> None:
    ckpt, found = f"ckpt={runs / 'styles'}", tmp_path / "found"
    run_latents(ckpt, f"project={photos}", "label=0", "steps=2", f"output={found}")
    run_latents(ckpt, "directions=sefa", f"latents={found}", "num_directions=1", "frames=3", f"output={tmp_path / 'moved'}")
    picture = pixels(tmp_path / "moved" / "direction00.png")
    for row, name in enumerate(("a.png", "b.png", "sub/c.png")):
        assert np.abs(picture[18 * row + 2 :][:16, 20:36] - pixels(found / name)).max() <= 1


REFUSED: list[tuple[str, list[str], type, str]] = [
    ("plain", [], ConfigError, "project"),
    ("plain", ["project=PHOTOS", "directions=sefa"], ConfigError, "project"),
    ("plain", ["project=PHOTOS", "rows=2"], ConfigError, "rows"),
    ("plain", ["project=PHOTOS", "latents=x"], ConfigError, "latents"),
    ("plain", ["project=nowhere"], DataError, "project"),
    ("plain", ["project=PHOTOS", "space=w"], ConfigError, "space"),
    ("plain", ["project=PHOTOS", "noise_maps=fixed"], ConfigError, "noise_maps"),
    ("plain", ["project=PHOTOS", "distance=lpips"], ConfigError, "backbone_weights"),
    ("plain", ["project=PHOTOS", "linear_weights=x"], ConfigError, "backbone_weights"),
    ("plain", ["project=PHOTOS", "linear_weights=x", "backbone_weights=y"], DataError, "backbone_weights"),
    ("plain", ["project=PHOTOS", "label=1"], ConfigError, "label"),
    ("plain", ["project=PHOTOS", "steps=0"], ConfigError, "steps"),
    ("plain", ["project=PHOTOS", "output=PHOTOS"], ConfigError, "output"),
    ("plain", ["mix=[0]"], ConfigError, "mix"),
    ("plain", ["directions=sefa", "num_directions=101"], ConfigError, "num_directions"),
    ("plain", ["directions=sefa", "layers=[0]"], ConfigError, "layers"),
    ("plain", ["directions=sefa", "frames=1"], ConfigError, "frames"),
    ("plain", ["directions=sefa", "strength=0"], ConfigError, "strength"),
    ("plain", ["directions=sefa", "truncation=0.5"], ConfigError, "truncation"),
    ("plain", ["directions=nowhere"], DataError, "directions"),
    ("plain", ["directions=sefa", "latents=nowhere"], DataError, "latents"),
    ("plain", ["directions=sefa", "latents=x", "label=0"], ConfigError, "label"),
    ("styles", ["project=PHOTOS"], ConfigError, "label"),
    ("styles", ["project=PHOTOS", "label=0", "restarts=2"], ConfigError, "restarts"),
    ("styles", ["mix=[9]"], ConfigError, "mix"),
    ("vae", ["project=PHOTOS"], ConfigError, "ckpt"),
    ("flow", ["project=PHOTOS"], ConfigError, "ckpt"),
]


@pytest.mark.parametrize(("name", "arguments", "kind", "key"), REFUSED)
def test_what_is_wrong_is_said_before_anything_is_written(
    runs: Path, photos: Path, tmp_path: Path, name: str, arguments: list[str], kind: type, key: str
) -> None:
    given = [argument.replace("PHOTOS", str(photos)) for argument in arguments]
    own = [] if any(argument.startswith("output=") for argument in given) else [f"output={tmp_path / 'made'}"]
    before = sorted(photos.rglob("*"))
    with raises(kind, key):
        run_latents(f"ckpt={runs / name}", *given, *own)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "made.png").exists()
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize(("name", "hint"), [("vae", "reconstruct="), ("flow", "near=FILE")])
def test_models_that_encode_images_themselves_name_their_own_option(
    runs: Path, photos: Path, tmp_path: Path, name: str, hint: str
) -> None:
    result = run_command("latents", f"ckpt={runs / name}", f"project={photos}", f"output={tmp_path / 'made'}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize("name", ["vae", "flow"])
@pytest.mark.parametrize(("key", "value"), [("directions", "ganspace"), ("mix", "[0]")])
def test_tasks_of_gans_are_refused_for_other_models(runs: Path, tmp_path: Path, name: str, key: str, value: str) -> None:
    with raises(ConfigError, key, word="a GAN"):
        run_latents(f"ckpt={runs / name}", f"{key}={value}", f"output={tmp_path / 'made'}")


def test_sampling_latents_refuses_other_models_and_options(runs: Path, photos: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    run_latents(f"ckpt={runs / 'plain'}", f"project={photos}", "steps=1", f"output={found}")
    for name, more, kind, key in (
        ("styles", [], DataError, "latents"), ("vae", [], ConfigError, "latents"), ("plain", ["label=1"], ConfigError, "label"),
        ("plain", ["truncation=0.5"], ConfigError, "truncation"), ("plain", ["interpolate=linear"], ConfigError, "interpolate"),
    ):  # fmt: skip
        with raises(kind, key):
            run_sample(f"ckpt={runs / name}", f"latents={found}", f"output={tmp_path / 'made'}", *more)
    assert not (tmp_path / "made").exists()
    run_sample(f"ckpt={runs / 'plain'}", f"latents={found}", f"output={tmp_path / 'made.npz'}")
    assert np.load(tmp_path / "made.npz")["arr_0"].shape == (3, 16, 16, 3)
