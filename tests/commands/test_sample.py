"""genimg-sample: chosen labels and captions, truncation, and ways between latents."""

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
from scipy import stats
from torch import Tensor, nn

import genimg
from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.sample import sample
from genimg.config import instantiate
from genimg.config.sampling_arguments import with_sampling_options
from genimg.data.captions import encode
from genimg.data.datasets.builtin import folder as folder_of_images
from genimg.data.datasets.npz import npz
from genimg.errors import CheckpointError, ConfigError, DataError
from genimg.inference.conditions import find_conditions
from genimg.inference.sample_files import NpzArchive
from genimg.methods.base import Method
from genimg.methods.latent import Latent, Normal, Truncated, Uniform
from genimg.methods.options import StyleOptions
from genimg.methods.vae import VAE
from genimg.training import checkpoint
from genimg.utils.images import to_uint8
from genimg.utils.outputs import MARK, record_of
from genimg.utils.paths import config_dir

SMALL = ["data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.duration=2 steps"]
SMALL += ["trainer.preview_images=4", "evaluation=none", "device=cpu"]
GAN = [*SMALL, "model=dcgan_small", "model.generator.width=8"]
RUNS = {
    "labels": [*GAN, "conditioning=projection"],
    "texts": [*GAN, "conditioning=text_conditional_batchnorm", "data.num_objects=2"],
    "vae": [*SMALL, "model=vae_small"],
    "digits": [
        *SMALL,
        "model=vae_fully_connected",
        "model.encoder.widths=[16]",
        "model.decoder.widths=[16]",
        "conditioning=concat",
    ],
    "styles": [*SMALL, "model=stylegan2_small", *tiny.SIZES["stylegan2_small"]],
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
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_sample(*overrides: str) -> None:
    """In this process."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("sample", overrides=with_sampling_options(["device=cpu", *overrides]))
    sample(composed)


def loaded(run: Path) -> Method:
    return TrainedCheckpoint.open(run).method(torch.device("cpu"))


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def assert_shows(path: Path, image: Tensor) -> None:
    """A file holds an image [C, H, W]; one level apart where another batch size sums in another order."""
    expected = to_uint8(image[None])[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels(path) - expected).max() <= 1


def cells(path: Path, rows: int, columns: int, size: int = 16) -> Any:
    """The images of a grid with a border of two pixels: [rows, columns, H, W, C]."""
    picture = pixels(path)
    pitch = size + 2
    assert picture.shape[:2] == (rows * pitch + 2, columns * pitch + 2)
    lines = [[picture[pitch * r + 2 :][:size, pitch * c + 2 :][:, :size] for c in range(columns)] for r in range(rows)]
    return np.array(lines)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


# Labels


def test_through_the_command_line_a_list_of_labels_gives_a_row_for_each(runs: Path, tmp_path: Path) -> None:
    result = run_command(
        "sample", f"ckpt={runs / 'labels'}", "label=[3,0]", "num_images=5", "seed=2", f"output={tmp_path / 'out'}"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 images" in result.stdout
    method = loaded(runs / "labels")
    latent = method.draw(range(5), 2)["latent"]
    grid = cells(tmp_path / "out.png", 2, 5)
    for row, label in enumerate((3, 0)):
        images = method.sample({"latent": latent, "label": torch.full((5,), label)})
        for i in range(5):
            path = tmp_path / "out" / {3: "cross", 0: "circle"}[label] / f"{i:06d}.png"
            assert_shows(path, images[i])
            assert np.array_equal(pixels(path), grid[row, i])
    assert lines(tmp_path / "out")[7] == {"file_name": "circle/000002.png", "label": 0}
    result = run_command("sample", f"ckpt={runs / 'labels'}", "label=5")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    known = "give a number from 0 to 4 or a name: circle, square, triangle, cross, ring"
    assert f"error: label=5 is not a class of this model: {known}" in result.stderr


def test_one_label_fills_the_folder_and_lies_beside_the_checkpoints(runs: Path) -> None:
    run_sample(f"ckpt={runs / 'labels'}", "label=1", "num_images=3", "batch_size=2", "truncation=0.5")
    folder = runs / "labels" / "samples-seed0-square-truncation0.5"
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{i:06d}.png" for i in range(3)), MARK, "metadata.jsonl"]
    assert folder.with_name(folder.name + ".png").is_file()


def test_without_a_label_images_are_drawn_and_the_grid_has_one_class_a_row(runs: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'labels'}", "num_images=16", "batch_size=6", f"output={tmp_path / 'out'}")
    method = loaded(runs / "labels")
    drawn = method.draw(range(16), 0)
    assert [line["label"] for line in lines(tmp_path / "out")] == drawn["label"].tolist()
    for i, image in enumerate(method.sample(drawn)):
        assert_shows(tmp_path / "out" / f"{i:06d}.png", image)
    grid = cells(tmp_path / "out.png", 5, 3)
    rows = torch.arange(5).repeat_interleave(3)
    expected = to_uint8(method.sample({"latent": drawn["latent"][:15], "label": rows})).permute(0, 2, 3, 1).numpy()
    assert np.abs(grid.reshape(expected.shape) - expected.astype(int)).max() <= 1


def test_a_class_has_a_name_where_the_checkpoint_knows_it(runs: Path, tmp_path: Path) -> None:
    state = torch.load(runs / "labels" / "checkpoints" / "last.pt", weights_only=True)
    state["class_names"] = ["a dog", "square", "tri/angle", "cross", "ring"]
    torch.save(state, tmp_path / "named.pt")
    for value, number, folder in (("cross", 3, "cross"), ("a dog", 0, "label0"), ("tri/angle", 2, "label2")):
        for given in (f"label='{value}'", f"label={number}"):
            run_sample(f"ckpt={tmp_path / 'named.pt'}", given, "num_images=2")
            picture = tmp_path / f"samples-seed0-{folder}.png"
            assert lines(picture.with_suffix(""))[1] == {"file_name": "000001.png", "label": number}
            picture.unlink()
    del state["class_names"]
    torch.save(state, tmp_path / "nameless.pt")
    run_sample(f"ckpt={tmp_path / 'nameless.pt'}", "label=1", "num_images=2")
    assert (tmp_path / "samples-seed0-label1.png").is_file()
    with raises(ConfigError, "label=cross"):
        run_sample(f"ckpt={tmp_path / 'nameless.pt'}", "label=cross")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("n01440764", "n01440764"), ("big_cat-2", "big_cat-2"), ("é", "é"), ("label", "label"), ("label1", "label3"),
     ("", "label3"), ("..", "label3"), ("-x", "label3"), ("a.b", "label3"), ("x" * 81, "label3"), ("a\n", "label3")],
)  # fmt: skip
def test_a_folder_has_the_name_of_its_class_where_that_is_safe(name: str, folder: str) -> None:
    names = ["a", "b", "c", name, "d"]
    (condition,) = find_conditions(tiny.conditional_gan("projection", 5), names, label=3, text=None)
    assert condition.name == folder


def test_classes_called_by_numbers_are_drawn_by_their_names() -> None:
    """Of the folders 1 to 5, label=1 is the first, not the second."""
    model, names = tiny.conditional_gan("projection", 5), ["1", "2", "3", "4", "5"]
    conditions = find_conditions(model, names, label=[1, "2", "index:2"], text=None)
    assert [(each.name, int(each.row["label"])) for each in conditions] == [("1", 0), ("2", 1), ("3", 2)]
    with raises(ConfigError, "label=0"):
        find_conditions(model, names, label=0, text=None)


@pytest.mark.parametrize(("option", "conditioning"), [("label", "projection"), ("text", "text")])
def test_a_condition_for_a_model_without_it_is_told_how_to_train_one(option: str, conditioning: str) -> None:
    with raises(ConfigError, f"{option}=7", word=f"train a model with conditioning={conditioning}"):
        find_conditions(tiny.gan(), [], **{"label": None, "text": None, option: 7})


@pytest.mark.parametrize(("count", "rest"), [(10, "name9"), (11, "name9 and 1 more"), (100, "name9 and 90 more")])
@pytest.mark.parametrize("value", ["nmae3", -1, 100])
def test_a_wrong_label_is_told_the_numbers_and_ten_names(value: object, count: int, rest: str) -> None:
    names = [f"name{i}" for i in range(count)]
    with raises(ConfigError, f"label={value}", word=f"{', '.join(names[:9])}, {rest}") as caught:
        find_conditions(tiny.conditional_gan("projection", count), names, label=value, text=None)
    assert ("'name3'" in str(caught.value)) == (value == "nmae3")


# Captions


def test_captions_are_drawn_or_given(runs: Path, tmp_path: Path) -> None:
    run = f"ckpt={runs / 'texts'}"
    first, second = "a small red circle above a large blue square", "a large ring"
    run_sample(run, "num_images=3", f"output={tmp_path / 'drawn'}")
    method = loaded(runs / "texts")
    drawn = method.draw(range(3), 0)
    texts = [row.numpy().tobytes().rstrip(b"\0").decode() for row in drawn["caption"]]
    assert lines(tmp_path / "drawn") == [{"file_name": f"{i:06d}.png", "text": text} for i, text in enumerate(texts)]
    assert all(" a " in text for text in texts)
    run_sample(run, "num_images=3", f"text=[{first}, {second}]", f"output={tmp_path / 'given'}")
    for text, name in ((first, "a-small-red-circle-above-a-large-blue-square"), (second, "a-large-ring")):
        images = method.sample({"latent": drawn["latent"], "caption": encode([text] * 3, 64)})
        for i in range(3):
            assert_shows(tmp_path / "given" / name / f"{i:06d}.png", images[i])
    assert lines(tmp_path / "given")[3] == {"file_name": "a-large-ring/000000.png", "text": second}
    cells(tmp_path / "given.png", 2, 3)


def test_a_folder_of_samples_is_data_with_captions(runs: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'texts'}", "num_images=2", "text=['ein großer Kreis', a ring]", f"output={tmp_path / 'out'}")
    node = {"_target_": "genimg.data.datasets.builtin.folder", "root": str(tmp_path / "out"), "image_size": 16, "channels": 3,
            "fit": "crop", "labels": "auto", "refresh_index": False, "captions": "auto"}  # fmt: skip
    source = instantiate.Builder().build(node, "data")
    assert sorted(source.captions(np.arange(4))) == ["a ring", "a ring", "ein großer Kreis", "ein großer Kreis"]


# Truncation


@pytest.mark.parametrize("limit", [0.3, 1.0])
@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        (Normal(dim=4), lambda t: stats.truncnorm(-t, t)),
        (Truncated(dim=4, limit=2.0), lambda t: stats.truncnorm(-t, t)),
        (Uniform(dim=4), lambda t: stats.uniform(-t, 2 * t)),
    ],
    ids=["normal", "truncated", "uniform"],
)
def test_truncated_latents_have_the_quantiles_of_the_narrower_distribution(latent: Latent, expected: Any, limit: float) -> None:
    normal = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    truncated = latent.truncated(latent.from_normal(normal), limit).numpy()
    assert np.abs(truncated - expected(limit).ppf(stats.norm.cdf(normal.numpy()))).max() < 1e-7
    assert np.abs(truncated).max() <= limit


@pytest.mark.parametrize(("latent", "own"), [(Uniform(dim=4), "1"), (Truncated(dim=4, limit=0.5), "0.5")])
def test_a_truncation_without_effect_is_refused(latent: Latent, own: str) -> None:
    with raises(ConfigError, "truncation=1.5"):
        latent.truncated(torch.zeros(3), 1.5)


@pytest.mark.parametrize("name", ["labels", "vae"])
def test_latents_are_truncated(runs: Path, tmp_path: Path, name: str) -> None:
    label = ["label=1"] if name == "labels" else []
    run_sample(f"ckpt={runs / name}", "num_images=3", "truncation=0.5", *label, f"output={tmp_path / 'out'}")
    method = loaded(runs / name)
    latent = method.draw(range(3), 0)["latent"].double().numpy()
    narrow = torch.tensor(stats.truncnorm(-0.5, 0.5).ppf(stats.norm.cdf(latent))).float()
    images = method.sample({"latent": narrow, "label": torch.ones(3, dtype=torch.int64)})
    for i in range(3):
        assert_shows(tmp_path / "out" / f"{i:06d}.png", images[i])


class PsiGenerator(nn.Module):
    """A generator with styles of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = tiny.generator()
        self.condition, self.inner = inner.condition, inner

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        return self.inner(latent, condition)

    def map_latents(self, latent: Tensor, condition: Tensor, truncation: float = 1.0) -> Tensor:
        return truncation * self.inner(latent, condition)

    def synthesize(self, styles: Tensor, noise_key: Tensor | None = None, noise_strength: float = 1.0) -> Tensor:
        return styles


def test_a_generator_with_a_truncation_of_its_own_gets_it() -> None:
    gan = tiny.gan(generator=PsiGenerator())
    drawn = gan.draw(range(3), 0)
    plain, truncated = gan.sample(drawn), gan.sample(drawn, StyleOptions(truncation=0.25))
    assert torch.allclose(truncated, 0.25 * plain, rtol=1e-6, atol=0)


def test_at_0_a_stylegan2_makes_its_average_image(runs: Path) -> None:
    run_sample(f"ckpt={runs / 'styles'}", "num_images=3", "truncation=0", "noise=const")
    folder = runs / "styles" / "samples-seed0-truncation0-noise-const"
    method = loaded(runs / "styles")
    average = method.sample(method.draw(range(1), 7), StyleOptions(truncation=0.0, noise="const"))[0]
    for i in range(3):
        assert_shows(folder / f"{i:06d}.png", average)


def test_class_folders_are_data_with_the_labels_that_were_drawn(runs: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'labels'}", "num_images=12", "class_folders=true", f"output={tmp_path / 'out'}")
    labels = loaded(runs / "labels").draw(range(12), 0)["label"].tolist()
    names = ("circle", "square", "triangle", "cross", "ring")
    expected = sorted(f"{names[label]}/{i:06d}.png" for i, label in enumerate(labels))
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == expected
    assert [line["file_name"] for line in lines(tmp_path / "out")] == [
        f"{names[each]}/{i:06d}.png" for i, each in enumerate(labels)
    ]
    source = folder_of_images(root=str(tmp_path / "out"), image_size=16, channels=3, fit="crop", labels="auto", name="made")
    assert source.class_names == tuple(sorted({names[label] for label in labels}))


@pytest.mark.parametrize("name", ["labels", "vae"])
def test_an_archive_holds_what_files_would(runs: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "deep" / "made.npz"
    run_sample(f"ckpt={runs / name}", "num_images=5", "batch_size=2", f"output={archive}")
    run_sample(f"ckpt={runs / name}", "num_images=5", "batch_size=2", f"output={tmp_path / 'files'}")
    with np.load(archive) as found:
        assert found.files == (["arr_0", "arr_1", "labels"] if name == "labels" else ["arr_0"])
        assert (found["arr_0"].shape, found["arr_0"].dtype) == ((5, 16, 16, 3), np.uint8)
        for i, image in enumerate(found["arr_0"]):
            assert np.array_equal(image, pixels(tmp_path / "files" / f"{i:06d}.png"))
        if name == "labels":
            assert found["arr_1"].tolist() == loaded(runs / name).draw(range(5), 0)["label"].tolist()
            assert np.array_equal(found["arr_1"], found["labels"])
    assert (tmp_path / "deep" / "made.png").is_file()
    source = npz(path=str(archive), image_size=None, channels=None, fit="crop")
    assert len(source) == 5
    assert (source.labels is None) == (name == "vae")


@pytest.mark.parametrize("channels", [1, 4])
def test_an_archive_holds_three_channels_and_those_of_the_model(tmp_path: Path, channels: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8))
    with NpzArchive(tmp_path / "made.npz", record_of("genimg-sample")) as sink:
        sink.add("", range(3), {}, images[:3])
        sink.add("", range(3, 5), {}, images[3:])
    with np.load(tmp_path / "made.npz") as found:
        assert found.files == ["arr_0", "images"]
        assert np.array_equal(found["images"], images.permute(0, 2, 3, 1))
        colours = found["images"].astype(float)
        if channels == 4:
            alpha = colours[..., 3:] / 255
            colours = alpha * colours[..., :3] + (1 - alpha) * 255
        assert found["arr_0"].shape == (5, 4, 6, 3)
        assert np.abs(found["arr_0"] - colours).max() <= (0.51 if channels == 4 else 0)
    source = npz(path=str(tmp_path / "made.npz"), image_size=None, channels=None, fit="crop")
    assert np.array_equal(source.read_many(np.arange(5)), images)


def test_samples_of_another_checkpoint_replace_the_folder_whole(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sample(f"ckpt={runs / 'labels'}", "num_images=40", f"output={out}")
    run_sample(f"ckpt={runs / 'vae'}", "num_images=12", f"output={out}")
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:06d}.png" for i in range(12)), MARK]
    mark = json.loads((out / MARK).read_text())
    assert mark["checkpoint"].startswith(str(runs / "vae"))
    assert cells(tmp_path / "out.png", 3, 4).shape[:2] == (3, 4)


@pytest.mark.parametrize("neighbour", ["out/metadata.jsonl", "out.png", "made.npz", "made.png", "way.png", "way.webp"])
def test_files_of_others_are_not_overwritten(runs: Path, tmp_path: Path, neighbour: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / neighbour).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    output = {"made": "made.npz"}.get(name := Path(neighbour).parts[0].split(".")[0], name)
    way = ["interpolate=linear", "num_images=2"] if name == "way" else ["num_images=2"]
    with raises(ConfigError, "output", word="genimg"):
        run_sample(f"ckpt={runs / 'vae'}", *way, f"output={tmp_path / output}")
    assert (tmp_path / neighbour).read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_genimg_sample_wrote_is_replaced(runs: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        for output, way in (("made.npz", []), ("way", ["interpolate=linear", "frames=2"])):
            run_sample(f"ckpt={runs / 'vae'}", "num_images=2", f"seed={seed}", f"output={tmp_path / output}", *way)
    with np.load(tmp_path / "made.npz") as found:
        latest = found["arr_0"]
    run_sample(f"ckpt={runs / 'vae'}", "num_images=2", "seed=1", f"output={tmp_path / 'files'}")
    assert np.array_equal(latest[0], pixels(tmp_path / "files" / "000000.png"))


# Around an image, and reconstructions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of another size, form and number of channels than the model's."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 30, 3)), ("more/b.jpg", (16, 16, 3)), ("c.png", (20, 20))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def as_the_model_sees(path: Path) -> Tensor:
    """[1, 3, 16, 16] in [-1, 1]: the largest centred square, resized."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    small = image.resize((16, 16), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def test_a_folder_is_reconstructed_under_its_names(runs: Path, photos: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'vae'}", f"reconstruct={photos}", "batch_size=2", f"output={tmp_path / 'made'}")
    method = loaded(runs / "vae")
    made = sorted(str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file())
    assert made == ["a.png", "c.png", MARK, "more/b.png"]
    for name, original in (("a.png", "a.png"), ("more/b.png", "more/b.jpg"), ("c.png", "c.png")):
        expected = method.reconstruct({"image": as_the_model_sees(photos / original)})
        assert_shows(tmp_path / "made" / name, expected[0])
    grid = cells(tmp_path / "made.png", 3, 2)
    assert np.array_equal(grid[0, 1], pixels(tmp_path / "made" / "a.png"))


def test_a_model_with_labels_reconstructs_under_one(runs: Path, photos: Path, tmp_path: Path) -> None:
    for label in (0, 1):
        run_sample(
            f"ckpt={runs / 'digits'}", f"reconstruct={photos / 'a.png'}", f"label={label}", f"output={tmp_path / 'made'}"
        )
        batch = {"image": as_the_model_sees(photos / "a.png"), "label": torch.tensor([label])}
        assert_shows(tmp_path / "made" / "a.png", loaded(runs / "digits").reconstruct(batch)[0])


def test_samples_near_an_image_vary_with_the_spread(runs: Path, photos: Path, tmp_path: Path) -> None:
    method, image = loaded(runs / "vae"), as_the_model_sees(photos / "a.png")
    for spread in (0, 0.7):
        run_sample(f"ckpt={runs / 'vae'}", f"near={photos / 'a.png'}", f"spread={spread}", "num_images=3",
                   f"output={tmp_path / 'out'}")  # fmt: skip
        with torch.no_grad():
            mean = method.encoder(image, torch.empty(1, 0))[:, 0]
            latent = mean + spread * method.draw(range(3), 0)["latent"]
        for i, expected in enumerate(method.sample({"latent": latent})):
            assert_shows(tmp_path / "out" / f"{i:06d}.png", expected)
    assert_shows(tmp_path / "out" / "000000.png", method.sample({"latent": latent})[0])
    run_sample(f"ckpt={runs / 'vae'}", f"near={photos / 'a.png'}", "num_images=2")
    assert (runs / "vae" / "samples-seed0-near-a-0.5.png").is_file()


@pytest.mark.usefixtures("unchanged_process")
def test_files_are_read_for_a_model_that_was_trained_on_images_from_python(photos: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    vae = ["model=vae_small", "model.encoder.width=4", "trainer.batch_size=8", "trainer.duration=1 steps"]
    usual = ["trainer.preview_images=2", "evaluation=none", "device=cpu", f"run_dir={tmp_path / 'own'}"]
    run = genimg.train([*vae, *usual], dataset=images).directory
    data = TrainedCheckpoint.open(run).config["data"]
    assert (data["image_size"], data["channels"]) == (None, None)  # what is known is among the checkpoint's facts
    run_sample(f"ckpt={run}", f"reconstruct={photos}", f"output={tmp_path / 'made'}")
    image, method = as_the_model_sees(photos / "a.png"), loaded(run)
    expected = method.reconstruct({"image": image})[0]
    assert_shows(tmp_path / "made" / "a.png", expected)
    run_sample(f"ckpt={run}", f"near={photos / 'a.png'}", "spread=0", "num_images=1", f"output={tmp_path / 'near'}")
    assert_shows(tmp_path / "near" / "000000.png", expected)


def test_a_model_that_encodes_nothing_has_no_neighbourhood(runs: Path, photos: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "near", word="encodes"):
        run_sample(f"ckpt={runs / 'labels'}", f"near={photos / 'a.png'}", "label=1", f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_named(runs: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_text("no image")
    for option in (f"near={photos / 'a.png'}", f"reconstruct={photos}"):
        with raises(DataError, word="format"):
            run_sample(f"ckpt={runs / 'vae'}", option, f"output={tmp_path / 'out'}")


# Ways between latents


def way(start: Any, end: Any, weights: Any, *, spherical: bool) -> Any:
    """[S, Z], by White 2016, section 2.1."""
    angle = np.arccos(np.dot(start, end) / np.linalg.norm(start) / np.linalg.norm(end)) if spherical else 0.0
    return np.array([
        (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle) if spherical else (1 - t) * start + t * end
        for t in weights
    ])  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "spherical"])
@pytest.mark.parametrize(("name", "condition"), [("labels", ["label=2"]), ("texts", ["text=a red ring"]), ("vae", [])])
def test_a_way_is_a_closed_loop_through_the_latents(
    runs: Path, tmp_path: Path, name: str, condition: list[str], kind: str
) -> None:
    options = ["num_images=3", "frames=4", "seed=5", "batch_size=5", f"interpolate={kind}", "frames_per_second=20"]
    run_sample(f"ckpt={runs / name}", *options, *condition, f"output={tmp_path / 'out'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "out.webp"]
    method = loaded(runs / name)
    keys = method.draw(range(3), 5)["latent"].double().numpy()
    pairs = [(keys[0], keys[1]), (keys[1], keys[2]), (keys[2], keys[0])]
    latents = np.concatenate([way(*pair, (0, 0.25, 0.5, 0.75), spherical=kind == "spherical") for pair in pairs])
    conditions = {"label": torch.full((12,), 2), "caption": encode(["a red ring"] * 12, 16)}
    images = to_uint8(method.sample({"latent": torch.from_numpy(latents).float()} | conditions))
    expected = images.permute(0, 2, 3, 1).numpy().reshape(3, 4, 16, 16, 3).astype(int)
    grid = cells(tmp_path / "out.png", 3, 4)
    assert np.abs(grid - expected).max() <= 1
    with Image.open(tmp_path / "out.webp") as animation:
        assert animation.info["loop"] == 0  # without end
        shown: list[Any] = []
        for number in range(animation.n_frames):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB"))
            shown += [frame] * (animation.info["duration"] // 50)  # milliseconds; equal neighbours become one longer frame
    assert np.array_equal(np.stack(shown), grid.reshape(12, 16, 16, 3))


def test_without_frames_there_are_8_and_12_a_second(runs: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'vae'}", "num_images=2", "interpolate=linear", f"output={tmp_path / 'out'}")
    cells(tmp_path / "out.png", 2, 8)
    with Image.open(tmp_path / "out.webp") as animation:
        milliseconds = 0
        for number in range(animation.n_frames):
            animation.seek(number)
            animation.load()
            milliseconds += animation.info["duration"]
    assert milliseconds == 16 * 83


def test_an_animation_has_a_frame_for_each_image(runs: Path, tmp_path: Path) -> None:
    run_sample(f"ckpt={runs / 'vae'}", "num_images=3", "frames=5", "interpolate=spherical", f"output={tmp_path / 'out'}")
    with Image.open(tmp_path / "out.webp") as animation:
        assert (animation.format, animation.n_frames, animation.is_animated) == ("WEBP", 15, True)


def test_ways_of_several_conditions_lie_in_one_folder(runs: Path) -> None:
    run_sample(f"ckpt={runs / 'labels'}", "num_images=2", "frames=2", "label=[0,4]", "interpolate=linear")
    folder = runs / "labels" / "samples-seed0-circle-ring-linear"
    assert sorted(path.name for path in folder.iterdir()) == ["circle.png", "circle.webp", "ring.png", "ring.webp"]


def test_a_truncated_way_stays_within_the_limit(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    original = VAE._descend

    def keep(self: VAE, latent: Tensor, noise: Tensor | None) -> Tensor:
        seen.append(latent)
        return original(self, latent, noise)

    monkeypatch.setattr(VAE, "_descend", keep)
    options = ["num_images=4", "frames=3", "interpolate=spherical", "truncation=0.4"]
    run_sample(f"ckpt={runs / 'vae'}", *options, f"output={tmp_path / 'out'}")
    latents = torch.cat(seen)
    assert latents.shape[0] == 12
    assert 0.3 < latents.abs().max() <= 0.4


def test_a_method_without_latents_has_no_way(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VAE, "draw", lambda self, indices, seed: {"noise": torch.zeros(len(indices), 3)})
    with raises(ConfigError, "interpolate=linear"):
        run_sample(f"ckpt={runs / 'vae'}", "interpolate=linear")


# Between two seeds


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_an_image_lies_between_those_of_two_seeds(runs: Path, tmp_path: Path, kind: str) -> None:
    options = ["num_images=3", "seed=5", "seed_to=9", "position=0.3", f"interpolate={kind}", "truncation=2"]
    run_sample(f"ckpt={runs / 'labels'}", *options, f"output={tmp_path / 'out'}")
    method = loaded(runs / "labels")
    start, end = method.draw(range(3), 5), method.draw(range(3), 9)
    pairs = zip(start["latent"].double().numpy(), end["latent"].double().numpy(), strict=True)
    latents = np.concatenate([way(*pair, (0.3,), spherical=kind == "spherical") for pair in pairs])
    options_ = method.sampling_options.replaced(truncation=2)
    expected = to_uint8(method.sample(start | {"latent": torch.from_numpy(latents).float()}, options_))
    for number, image in enumerate(expected):
        found = pixels(tmp_path / "out" / f"{number:06d}.png").astype(int)
        assert np.abs(found - image.permute(1, 2, 0).numpy().astype(int)).max() <= 1
    assert [each["label"] for each in lines(tmp_path / "out")] == start["label"].tolist()
    assert json.loads((tmp_path / "out" / MARK).read_text())["options"]["seed_to"] == 9


def test_the_folder_names_both_seeds_and_the_position(runs: Path) -> None:
    run_sample(f"ckpt={runs / 'vae'}", "num_images=1", "seed_to=9", "interpolate=linear")
    assert (runs / "vae" / "samples-seed0-linear-to9-0.5" / "000000.png").is_file()


# What is refused


@pytest.mark.parametrize(
    ("name", "overrides", "word"),
    [
        ("vae", ["label=3"], "label=3"),
        ("vae", ["text=a ring"], "text=a ring"),
        ("labels", ["text=a ring"], "text=a ring"),
        ("texts", ["label=1"], "label=1"),
        ("labels", ["label=-1"], "label=-1"),
        ("labels", ["label=[0,5]"], "label=5"),
        ("labels", ["label=1.5"], "label=1.5"),
        ("labels", ["label=true"], "label=True"),
        ("labels", ["label=circl"], "label=circl"),
        ("labels", ["label=[]"], "label=[]"),
        ("labels", ["label=[1,1]"], "label=[1, 1]"),
        ("texts", ["text=3"], "text=3"),
        ("texts", ["text=[a ring,'a ring!']"], "twice"),
        ("vae", ["truncation=0"], "truncation=0"),
        ("labels", ["truncation=0"], "truncation=0"),
        ("styles", ["truncation=-0.5"], "truncation=-0.5"),
        ("vae", ["truncation=nan"], "truncation"),
        ("vae", ["noise=const"], "noise"),
        ("vae", ["interpolate=linear", "num_images=1"], "num_images=1"),
        ("vae", ["interpolate=linear", "frames=1"], "frames=1"),
        ("vae", ["class_folders=true"], "class_folders=true"),
        ("vae", ["interpolate=linear", "class_folders=true"], "class_folders=true"),
        ("vae", ["near=nowhere.png"], "near=nowhere.png"),
        ("vae", ["near=."], "near=."),
        ("vae", ["near=x.png", "spread=-1"], "spread=-1"),
        ("vae", ["spread=1"], "spread=1"),
        ("vae", ["near=x.png", "truncation=1"], "truncation=1"),
        ("vae", ["near=x.png", "reconstruct=x.png"], "near=x.png"),
        ("vae", ["reconstruct=nowhere"], "reconstruct=nowhere"),
        ("labels", ["reconstruct=x.png", "label=0"], "reconstruct=x.png"),
        ("digits", ["reconstruct=x.png"], "reconstruct=x.png"),
        ("digits", ["near=x.png", "label=[0,1]"], "near=x.png"),
        ("vae", ["frames=8"], "frames=8"),
        ("vae", ["frames_per_second=20"], "frames_per_second=20"),
        ("vae", ["interpolate=linear", "frames_per_second=0"], "frames_per_second=0"),
        ("vae", ["batch_size=0"], "batch_size=0"),
        ("vae", ["seed_to=1"], "seed_to=1"),
        ("vae", ["position=0.5"], "position=0.5"),
        ("vae", ["interpolate=linear", "position=0.5"], "position=0.5"),
        ("vae", ["interpolate=linear", "seed_to=1", "position=1.5"], "position=1.5"),
        ("vae", ["interpolate=linear", "seed_to=1", "position=nan"], "position"),
        ("vae", ["interpolate=linear", "seed_to=0"], "seed_to=0"),
        ("vae", ["interpolate=linear", "seed_to=1", "frames=4"], "frames=4"),
        ("labels", ["interpolate=linear"], "interpolate=linear"),
        ("texts", ["interpolate=linear"], "interpolate=linear"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_before_anything_is_written(
    runs: Path, tmp_path: Path, name: str, overrides: list[str], word: str
) -> None:
    with raises((ValueError, FileNotFoundError), word=word):
        run_sample(f"ckpt={runs / name}", *overrides, f"output={tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_writes_no_black_images(runs: Path, tmp_path: Path, value: float) -> None:
    state = checkpoint.load(runs / "labels" / "checkpoints" / "last.pt")
    for tensor in (*state["method"].values(), *state["averages"]["exponential"].values()):
        if tensor.is_floating_point():
            tensor.fill_(value)
    checkpoint.save({key: part for key, part in state.items() if key not in ("format", "version")}, tmp_path / "diverged.pt")
    for more in ([], ["interpolate=linear", "frames=3", "label=0"]):
        words = [f"ckpt={tmp_path / 'diverged.pt'}", "num_images=2", f"output={tmp_path / 'made'}", *more]
        with raises(CheckpointError, word="diverged"):
            run_sample(*words)
        assert [path.name for path in tmp_path.iterdir()] == ["diverged.pt"]
