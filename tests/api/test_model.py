"""A model in Python gives what the commands give, and refuses what it cannot do with the argument's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_runs import Commands
from PIL import Image
from torch import Tensor

import genimg
from genimg.data.datasets.builtin import ArrayDataset
from genimg.utils.images import to_float, to_uint8

pytestmark = pytest.mark.usefixtures("unchanged_process")


@pytest.fixture
def load(commands: Commands) -> Callable[[str], genimg.Model]:
    return lambda name: genimg.load(commands.home / name, device="cpu")


def files(folder: Path) -> Tensor:
    """Its images as uint8 [N, C, H, W], in the order of their names."""
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def noise(count: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8))


def test_samples_are_those_of_the_command(commands: Commands, load: Callable[[str], genimg.Model]) -> None:
    images = load("gan").sample(6, seed=3, label=1)
    assert images.dtype == torch.float32
    assert torch.equal(to_uint8(images), files(commands.home / "samples"))


def test_the_batch_size_changes_nothing(load: Callable[[str], genimg.Model]) -> None:
    model = load("gan")
    torch.testing.assert_close(model.sample(7, seed=2), model.sample(7, seed=2, batch_size=3), rtol=0, atol=1e-5)
    vae, images = load("vae"), noise(7, 3, 16, 16)
    for method in (vae.encode, vae.reconstruct):
        torch.testing.assert_close(method(images), method(images, batch_size=2), rtol=0, atol=1e-5)
    for name in ("denoiser", "pix2pix"):  # the second has dropout
        translated = load(name).translate(images, batch_size=7), load(name).translate(images, batch_size=2)
        torch.testing.assert_close(*translated, rtol=0, atol=1.01 / 127.5)


def test_labels_are_numbers_names_or_arrays(load: Callable[[str], genimg.Model]) -> None:
    model = load("gan")
    names = [model.class_names[label] for label in (0, 2, 1)]
    expected = torch.cat([model.sample(3, label=label)[i : i + 1] for i, label in enumerate((0, 2, 1))])
    for label in ([0, 2, 1], (0, 2, 1), names, torch.tensor([0, 2, 1]), np.array([0, 2, 1])):
        torch.testing.assert_close(model.sample(3, label=label), expected, rtol=0, atol=1e-5)
    assert torch.equal(model.sample(3, label=torch.tensor(1)), model.sample(3, label=names[2]))


def test_truncation_makes_samples_vary_less(load: Callable[[str], genimg.Model]) -> None:
    model = load("vae")
    assert model.sample(16, truncation=0.1).std(0).mean() < model.sample(16).std(0).mean()


def test_encode_and_reconstruct_are_the_methods_own(commands: Commands, load: Callable[[str], genimg.Model]) -> None:
    model, images = load("vae"), noise(5, 3, 16, 16)
    batch = {"image": to_float(images)}
    assert torch.equal(model.encode(images), model.method.encode(batch))
    assert torch.equal(model.reconstruct(images), model.method.reconstruct(batch))
    for same in (images.numpy(), to_float(images), ArrayDataset("same", images.numpy()), [*images.permute(0, 2, 3, 1)]):
        assert torch.equal(model.encode(same), model.encode(images))
    latents = model.encode(images)
    torch.testing.assert_close(model.method.sample({"latent": latents}), model.reconstruct(images))
    photos = genimg.as_dataset([Image.open(path) for path in sorted((commands.home / "photos").iterdir())], image_size=16)
    assert torch.equal(to_uint8(model.reconstruct(photos)), files(commands.home / "rebuilt"))


@pytest.mark.parametrize("name", ["denoiser", "pix2pix"])
def test_translations_are_those_of_the_command(name: str, commands: Commands, load: Callable[[str], genimg.Model]) -> None:
    photos = files(commands.home / "photos")
    expected = files(commands.home / f"by_{name}")
    made = load(name).translate(photos)
    assert (to_uint8(made).int() - expected.int()).abs().max() <= 1
    assert torch.equal(load(name).translate(to_float(photos)), made)


def test_masks_say_where_to_fill_holes(load: Callable[[str], genimg.Model]) -> None:
    model, images = load("inpainter"), noise(3, 3, 16, 16)
    masks = torch.zeros(3, 1, 16, 16)
    masks[:, :, 4:8, 4:8] = 1
    made = to_uint8(model.translate(images, masks=masks, batch_size=2))
    outside = masks.expand_as(made) == 0
    assert torch.equal(made[outside], images[outside])
    assert torch.equal(to_uint8(model.translate(images, masks=masks.bool().numpy())), made)


def test_evaluate_returns_what_the_command_prints(commands: Commands, load: Callable[[str], genimg.Model]) -> None:
    result = load("gan").evaluate(evaluation="shapes", num_images=24, overrides=["num_real=24"])
    written = json.loads((commands.home / "result.json").read_text())
    assert result.values == pytest.approx(written["metrics"], rel=1e-4, abs=1e-4)
    assert result.provenance["extractor"] == written["provenance"]["extractor"]
    assert list(result.warnings) == written["warnings"]
    assert all(f"{name} " in commands.printed for name in result.values)


@pytest.fixture(scope="module")
def array_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an array, whose size and channels the config does not know."""
    images = np.random.default_rng(2).integers(0, 256, (32, 12, 16), dtype=np.uint8)
    arguments = [
        "model=vae_fully_connected", "model.encoder.widths=[8]", "model.decoder.widths=[8]", "trainer.batch_size=16",
        "trainer.duration=1 steps", "trainer.preview_images=4", "evaluation=none", "device=cpu", "precision=fp32",
    ]  # fmt: skip
    run = genimg.train([*arguments, f"run_dir={tmp_path_factory.mktemp('array') / 'vae'}"], dataset=images)
    return run.directory


@pytest.mark.parametrize("kind", ["folder", "dataset", "array"])
def test_a_model_of_an_array_has_a_likelihood_of_other_images(kind: str, commands: Commands, array_vae: Path) -> None:
    model = genimg.load(array_vae, device="cpu")
    assert (model.facts.image_size, model.facts.channels) == ((12, 16), 1)
    real = {"folder": commands.home / "photos", "dataset": "shapes", "array": noise(12, 1, 12, 16)}[kind]
    result = model.evaluate(real, evaluation="likelihood", num_images=8, batch_size=4, overrides=["num_samples=2"])
    assert result.provenance["likelihood"]["image_shape"] == "1x12x16"
    assert result.values["nll_iw2_nats"] > 0


def test_a_model_of_an_array_is_compared_with_other_images(array_vae: Path, tmp_path: Path) -> None:
    for i, image in enumerate(noise(12, 12, 16).numpy()):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    model = genimg.load(array_vae, device="cpu")
    of_folder = model.evaluate(tmp_path, evaluation="shapes", num_images=12).values
    assert of_folder["reconstruction_real_psnr12"] > 0
    assert model.evaluate(noise(12, 12, 16), evaluation="shapes", num_images=12).values == of_folder
    settings = ["num_real=12", "evaluation.reconstructions=0"]  # of a dataset's own size and channels, which are others
    assert model.evaluate("shapes", evaluation="shapes", num_images=12, overrides=settings).values["fd12_shapes_v2"] > 0


def test_a_model_is_evaluated_without_its_file(commands: Commands, tmp_path: Path) -> None:
    path = shutil.copytree(commands.home / "gan", tmp_path / "gan")
    model = genimg.load(path, device="cpu")
    before = model.sample(4, seed=1)
    shutil.rmtree(path)
    result = model.evaluate(evaluation="shapes", num_images=24, overrides=["num_real=24"])
    assert result.values == pytest.approx(
        json.loads((commands.home / "result.json").read_text())["metrics"], rel=1e-4, abs=1e-4
    )
    assert torch.equal(model.sample(4, seed=1), before)


def test_an_evaluation_in_another_mode_leaves_the_model_in_its_own(load: Callable[[str], genimg.Model]) -> None:
    model = load("pix2pix")
    usual = model.method.sampled_mode
    other = {"train": "eval", "eval": "train"}[usual]
    found = [
        model.evaluate(evaluation="translation", num_images=4, overrides=overrides).provenance["translation"]["mode"]
        for overrides in ([f"model_mode={other}"], [])
    ]
    assert found == [other, usual]


def test_images_are_evaluated_against_images(commands: Commands) -> None:
    images = noise(24, 3, 16, 16)
    for same in (images, to_float(images), ArrayDataset("same", images.numpy())):
        result = genimg.evaluate(same, images, evaluation="shapes", device="cpu")
        assert result.values["fd24_shapes_v2"] == pytest.approx(0, abs=1e-2)
    for folder in (commands.home / "photos", str(commands.home / "photos")):
        assert genimg.evaluate(folder, images, evaluation="shapes", device="cpu", num_images=10).values


def test_networks_and_facts(load: Callable[[str], genimg.Model]) -> None:
    model = load("gan")
    logits = model.network("discriminator")(model.sample(2), torch.tensor([0, 1]))
    assert len(logits) == 2
    assert (model.facts.image_size, model.facts.channels, model.images_seen) == (16, 3, 32)
    assert model.config["trainer"]["batch_size"] == 16
    assert "GAN" in repr(model)


IMAGES = torch.zeros(2, 3, 16, 16)
ERRORS: list[tuple[str, str, Callable[[Any], object], type[genimg.UserError]]] = [
    ("gan", "label", lambda m: m.sample(2, label="huge"), genimg.ConfigError),
    ("gan", "label", lambda m: m.sample(2, label=[0]), genimg.ConfigError),
    ("gan", "label", lambda m: m.sample(2, label=99), genimg.ConfigError),
    ("vae", "label", lambda m: m.sample(2, label=0), genimg.ConfigError),
    ("gan", "text", lambda m: m.sample(2, text="a red disc"), genimg.ConfigError),
    ("gan", "num_images", lambda m: m.sample(0), genimg.ConfigError),
    ("gan", "batch_size", lambda m: m.sample(2, batch_size=0), genimg.ConfigError),
    ("gan", "truncation", lambda m: m.sample(2, truncation=-1), genimg.ConfigError),
    ("gan", "truncation", lambda m: m.sample(2, truncation="much"), genimg.ConfigError),
    ("gan", "noise", lambda m: m.sample(2, noise="const"), genimg.ConfigError),
    ("gan", "network", lambda m: m.network("encoder"), genimg.ConfigError),
    ("gan", "encode", lambda m: m.encode(IMAGES), genimg.ConfigError),
    ("gan", "reconstruct", lambda m: m.reconstruct(IMAGES), genimg.ConfigError),
    ("gan", "translate", lambda m: m.translate(IMAGES), genimg.ConfigError),
    ("denoiser", "sample", lambda m: m.sample(2), genimg.ConfigError),
    ("denoiser", "direction", lambda m: m.translate(IMAGES, direction="a2b"), genimg.ConfigError),
    ("denoiser", "masks", lambda m: m.translate(IMAGES, masks=IMAGES[:, :1]), genimg.ConfigError),
    ("denoiser", "batch_size", lambda m: m.translate(IMAGES, batch_size=0), genimg.ConfigError),
    ("denoiser", "tile", lambda m: m.translate(IMAGES, tile=-4), genimg.ConfigError),
    ("denoiser", "overlap", lambda m: m.translate(IMAGES, tile=32, overlap=16), genimg.ConfigError),
    ("denoiser", "images", lambda m: m.translate(IMAGES[:, :1]), genimg.DataError),
    ("inpainter", "masks", lambda m: m.translate(IMAGES), genimg.ConfigError),
    ("inpainter", "masks", lambda m: m.translate(IMAGES, masks=IMAGES), genimg.DataError),
    ("vae", "images", lambda m: m.encode(IMAGES[:, :, :8]), genimg.DataError),
    ("vae", "images", lambda m: m.encode(IMAGES[0]), genimg.DataError),
    ("vae", "images", lambda m: m.encode(IMAGES * torch.nan), genimg.DataError),
    ("vae", "images", lambda m: m.encode(3), genimg.DataError),
    ("vae", "batch_size", lambda m: m.reconstruct(IMAGES, batch_size=0), genimg.ConfigError),
    ("gan", "num_images", lambda m: m.evaluate(evaluation="shapes", num_images=1), genimg.ConfigError),
    ("gan", "real", lambda m: m.evaluate("nowhere", evaluation="shapes"), genimg.ConfigError),
    ("gan", "real", lambda m: m.evaluate(3, evaluation="shapes"), genimg.DataError),
    ("gan", "evaluation", lambda m: m.evaluate(evaluation="shape"), genimg.ConfigError),
    ("gan", "ckpt", lambda m: m.evaluate(), genimg.ConfigError),  # trained with evaluation=none
]


@pytest.mark.parametrize(
    ("name", "key", "call", "kind"), ERRORS, ids=[f"{name}-{key}-{i}" for i, (name, key, *_) in enumerate(ERRORS)]
)
def test_errors_name_the_argument(
    name: str, key: str, call: Callable[[Any], object], kind: type[genimg.UserError], load: Callable[[str], genimg.Model]
) -> None:
    with pytest.raises(kind) as caught:
        call(load(name))
    assert type(caught.value) is kind
    assert caught.value.key == key


def test_errors_of_loading(commands: Commands) -> None:
    for call, key, kind in (
        (lambda: genimg.load("nowhere"), "ckpt", genimg.CheckpointError),
        (lambda: genimg.load(commands.home / "gan", which="first"), "which", genimg.ConfigError),
        (lambda: genimg.load(commands.home / "gan", which="best"), "which", genimg.CheckpointError),
        (lambda: genimg.load(commands.home / "gan", device="gpu"), "device", genimg.ConfigError),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.key == key


def test_errors_of_evaluating_images() -> None:
    for images, real, key in (
        (IMAGES[:1], IMAGES, "images"), (IMAGES[0], IMAGES, "images"), (IMAGES, [], "real"), (IMAGES, {"train": 1}, "real"),
        (IMAGES, IMAGES * torch.inf, "real"),
    ):  # fmt: skip
        with pytest.raises(genimg.DataError) as caught:
            genimg.evaluate(images, real, evaluation="shapes", device="cpu")
        assert caught.value.key == key
