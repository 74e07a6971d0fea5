"""Autoencoders of latents and models of these latents through the command line: two trainings that make one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from command_table import options, run, succeed, walk
from errors import raises
from sampling import sampled

import genimg
from genimg.api.trained_networks import with_trained_networks
from genimg.config.compose import compose
from genimg.errors import ConfigError
from genimg.utils.digests import digest_of

COMMON = [
    "data.image_size=16", "data.num_images=16", "trainer.batch_size=4", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation=none", "trainer.checkpoint_interval=1 steps", "trainer.preview_interval=2 steps",
]  # fmt: skip
PATCHES = [f"model.adversary.discriminator.{each}" for each in ("width=4", "num_strided=0")]
AUTOENCODERS = {
    "kl_autoencoder": [*tiny.LATENT_AUTOENCODERS["kl_autoencoder"], *PATCHES, "model.adversary.start=1 steps"],
    "kl_autoencoder_small": tiny.LATENT_AUTOENCODERS["kl_autoencoder_small"],
    "vq_vae_small": tiny.AUTOENCODERS["vq_vae_small"],
}
LATENT = ["model=latent_flow_small", *tiny.DIFFUSION, "model.autoencoder=autoencoder"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all autoencoders, with the names of their models."""
    folder = tmp_path_factory.mktemp("autoencoders")
    fixed = [*COMMON, "trainer.duration=2 steps"]
    commands = [["train", f"model={name}", *sizes, *fixed, f"run_dir={name}"] for name, sizes in AUTOENCODERS.items()]
    succeed(commands, folder)
    return folder


def with_run(trained: Path, name: str, folder: Path) -> Path:
    shutil.copytree(trained / name, folder / "autoencoder")
    return folder / "autoencoder"


@pytest.mark.parametrize("model", sampled(tiny.LATENT_AUTOENCODERS, lambda model: [model]))
def test_every_autoencoder_trains_resumes_and_reconstructs(model: str, tmp_path: Path) -> None:
    checkpoint = walk([f"model={model}", *AUTOENCODERS[model], *COMMON], tmp_path)
    assert any(name.startswith("adversary.") for name in checkpoint["method"]) == (model == "kl_autoencoder")
    codes, output = run([["sample", "ckpt=parts", "num_images=2"]], tmp_path)
    assert codes == [2]
    assert "does not generate images" in output


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_model_of_latents_resumes_and_samples_without_the_run_of_its_autoencoder(
    name: str, trained: Path, tmp_path: Path
) -> None:
    given = with_run(trained, name, tmp_path)
    checkpoint = walk([*LATENT, "conditioning=label", "ema=[exponential]", *COMMON], tmp_path)
    own = torch.load(given / "checkpoints/last.pt", weights_only=True)
    weights = own["method"] | (own["averages"]["exponential"] if own["averages"] else {})
    for key, value in checkpoint["method"].items():
        if key.startswith("autoencoder.space."):
            assert torch.equal(value, weights[key.removeprefix("autoencoder.space.")]), key
    assert not any(key.startswith("autoencoder") for key in checkpoint["averages"]["exponential"])
    node = checkpoint["config"]["model"]["autoencoder"]
    assert node.keys() == {"_target_", "space", "run", "images", "sha256", "shape"}
    assert (node["images"], node["shape"]) == (8, [3, 16, 16])
    kept = {key: value for key, value in weights.items() if key.partition(".")[0] in node["space"]}
    assert node["sha256"] == digest_of(kept)
    assert "prior" not in node["space"]
    shutil.rmtree(given)
    succeed(
        [
            ["sample", "ckpt=parts", "num_images=2", "steps=2", "label=1", "guidance=2"],
            ["train", "resume=parts", "trainer.duration=4 steps"],
        ],
        tmp_path,
    )
    assert list(tmp_path.glob("parts/samples-seed0-*/000001.png"))


def test_errors_name_the_key(trained: Path, tmp_path: Path) -> None:
    with_run(trained, "kl_autoencoder_small", tmp_path)
    other = ["train", "model=dcgan_small", *tiny.SIZES["dcgan_small"], *COMMON, "trainer.duration=1 steps", "run_dir=gan"]
    succeed([other, ["train", *LATENT, *COMMON, "trainer.duration=1 steps", "run_dir=run"]], tmp_path)
    start = ["train", "model=latent_flow_small", *tiny.DIFFUSION, *COMMON, "trainer.duration=2 steps"]
    shutil.copytree(trained / "kl_autoencoder", tmp_path / "second")
    commands = {
        "model.autoencoder is required": start,
        "model.autoencoder=nowhere: checkpoint": [*start, "model.autoencoder=nowhere"],
        "model.autoencoder=gan holds a GAN": [*start, "model.autoencoder=gan"],
        "was trained on images of 3x16x16": [*start, "model.autoencoder=autoencoder", "data.image_size=32"],
        "was trained on images of 3x16x16 (channels, height, width), but the data has images of 1x16x16": [
            *start, "model.autoencoder=autoencoder", "data.channels=1"
        ],
        "error: model.network does not fit the autoencoder's latents, which have 4x4 positions": [
            *start, "model.autoencoder=autoencoder", "model.network.patch_size=4"
        ],
        "the latents of another one would differ": [
            *start, "model.autoencoder=second", "run_dir=run", "resume=auto", "resume_force=true"
        ],
    }  # fmt: skip
    for text, command in commands.items():
        codes, output = run([command], tmp_path)
        assert codes == [2], output
        assert text in output
    with raises(ConfigError, "sample", word="use reconstruct"):
        genimg.load(tmp_path / "autoencoder", device="cpu").sample(1)


def test_a_run_may_move_but_not_change(trained: Path, tmp_path: Path) -> None:
    given = with_run(trained, "kl_autoencoder_small", tmp_path)
    succeed([["train", *LATENT, *COMMON, "trainer.duration=1 steps", "run_dir=run"]], tmp_path)
    given.rename(tmp_path / "moved")
    again = ["train", *LATENT[:-1], *COMMON, "trainer.duration=2 steps", "run_dir=run", "resume=auto"]
    succeed([[*again, "model.autoencoder=moved"]], tmp_path)
    state = torch.load(tmp_path / "moved/checkpoints/last.pt", weights_only=True)
    state["averages"]["exponential"]["encoder.output.bias"] += 1
    for file in (tmp_path / "moved/checkpoints").glob("*.pt"):
        torch.save(state, file)
    codes, output = run([[*again, "model.autoencoder=moved", "trainer.duration=3 steps"]], tmp_path)
    assert codes == [2]
    assert "model.autoencoder.sha256" in output


def test_a_start_from_a_run_with_another_autoencoder_keeps_the_one_given(trained: Path, tmp_path: Path) -> None:
    with_run(trained, "kl_autoencoder_small", tmp_path)
    shutil.copytree(tmp_path / "autoencoder", tmp_path / "second")
    state = torch.load(tmp_path / "second/checkpoints/last.pt", weights_only=True)
    state["averages"]["exponential"]["encoder.output.bias"] += 1
    for file in (tmp_path / "second/checkpoints").glob("*.pt"):
        torch.save(state, file)
    common = [*LATENT[:-1], *COMMON, "trainer.duration=1 steps"]
    succeed([
        ["train", *common, "model.autoencoder=autoencoder", "run_dir=first"],
        ["train", *common, "model.autoencoder=second", "init_from=first", "run_dir=run"],
    ], tmp_path)  # fmt: skip
    made = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["method"]
    expected = state["averages"]["exponential"]["encoder.output.bias"]
    assert made["autoencoder.space.encoder.output.bias"].equal(expected)


@pytest.mark.parametrize("allow", [[], ["collections"]])
@pytest.mark.parametrize("change", ["interpolation", "code", "size", "file"])
def test_a_hostile_run_is_refused(
    change: str, allow: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_run(trained, "kl_autoencoder_small", tmp_path)
    state = torch.load(given / "checkpoints/last.pt", weights_only=True)
    encoder = state["config"]["model"]["encoder"]
    if change == "interpolation":
        encoder["width"] = "${oc.env:HOME}"
    elif change == "code":
        encoder["_target_"] = "os.system"
    elif change == "file":
        encoder["_target_"] = "genimg.data.datasets.npz.npz"
    else:
        encoder["width"] = 10**6
    torch.save(state, given / "checkpoints/last.pt")
    monkeypatch.chdir(tmp_path)
    from genimg.errors import UserError

    if change == "size" and allow:
        return  # trusted code may build networks of any size
    with pytest.raises(UserError):
        with_trained_networks(compose([*LATENT, f"allow={allow}"]))


def test_packed_latents_replace_the_encoder_in_training(trained: Path, tmp_path: Path) -> None:
    with_run(trained, "kl_autoencoder_small", tmp_path)
    shutil.copytree(trained / "kl_autoencoder", tmp_path / "second")
    data = ["data=shapes", "data.image_size=16", "data.num_images=16"]
    output = succeed([["prepare", *data, "output=packed", "autoencoder=autoencoder", "device=cpu"]], tmp_path)
    files = [*(tmp_path / "packed").glob("shard-*.npy"), tmp_path / "packed/latents.npy"]
    assert f"in {len(files)} files, {sum(file.stat().st_size for file in files)} bytes" in output
    assert "genimg-train model=latent_flow model.autoencoder=autoencoder data=prepared data.root=packed" in output
    packed = [*COMMON, "data=prepared", "data.root=packed", "trainer.duration=2 steps", "trainer.preview_interval=100 images"]
    packed.remove("data.num_images=16")
    own = ["train", *LATENT, *packed, "conditioning=label", "run_dir=own"]
    output = succeed([own, [*own, "dry_run=true"]], tmp_path)
    assert "packed latents of" not in output
    assert output.count("the packed latents are used") == 2
    others = {
        "the model has another autoencoder": [*LATENT[:-1], "model.autoencoder=second"],
        "flips and augmentation change the images": [*LATENT, "data.horizontal_flip=true"],
    }
    for number, (text, arguments) in enumerate(others.items()):
        assert text in succeed([["train", *arguments, *packed, f"run_dir=other{number}"]], tmp_path)
    codes, output = run([["prepare", "data=shapes", "output=more", "autoencoder=autoencoder"]], tmp_path)
    assert codes == [2]
    assert "was trained on images of 3x16x16" in output


def test_the_tables_have_every_model() -> None:
    names = {name for name in options("model") if name.startswith(("kl_", "latent_"))}
    assert names == tiny.LATENT_AUTOENCODERS.keys() | tiny.LATENT_DENOISERS.keys()


STAGES = [
    name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.LATENT_AUTOENCODERS | tiny.LATENT_DENOISERS
]


@pytest.mark.parametrize("experiment", sampled(STAGES, lambda name: [tiny.model_of(name)]))
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, trained: Path, tmp_path: Path) -> None:
    model = tiny.model_of(experiment)
    assert model is not None
    sizes = AUTOENCODERS.get(model, [*tiny.DIFFUSION, "model.autoencoder=autoencoder"])
    with_run(trained, "kl_autoencoder_small", tmp_path)
    images = ["data=shapes", "data.validation=0", "trainer.duration=8 images", "trainer.checkpoint_interval=8 images"]
    succeed([["train", f"experiment={experiment}", *COMMON, *sizes, *images, "run_dir=run"]], tmp_path)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
