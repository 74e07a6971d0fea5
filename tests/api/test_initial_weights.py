"""``init_from``: a training that starts from another run's weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from errors import raises
from fork_server import run_command

from genimg import load, train
from genimg.api.data import build_dataset
from genimg.api.initial_weights import InitialWeights
from genimg.config.compose import Config, compose
from genimg.config.instantiate import Builder
from genimg.errors import CheckpointError, ConfigError

FLOW = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
        "evaluation=none", "device=cpu", "precision=fp32", "model=flow_small", *tiny.DIFFUSION)  # fmt: skip


OVERRIDES = ["ema.exponential.half_life=1k images", "ema.exponential.ramp_up=null"]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    train([*FLOW, *overrides, f"run_dir={folder}"])
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    trained(folder, "trainer.duration=4 steps", *OVERRIDES)
    return folder


def test_a_run_starts_from_the_averaged_weights_and_from_nothing_else(first: Path, tmp_path: Path) -> None:
    before = torch.load(first / "checkpoints/last.pt", weights_only=True)
    after = trained(
        tmp_path / "second", f"init_from={first}", "trainer.duration=1 steps", "optimizer.lr=1e-9", "schedule=constant"
    )
    name = "denoiser.network.output.weight"
    average = before["averages"]["exponential"][name]
    assert not torch.allclose(average, before["method"][name], atol=1e-6)
    for key, value in before["averages"]["exponential"].items():
        torch.testing.assert_close(after["method"][key], value, rtol=0, atol=1e-6)
    assert after["training"]["images"] == 8
    assert after["optimizers"]["denoiser"]["state"][0]["step"] == 1
    path = first / "checkpoints/last.pt"
    assert after["initial_weights"] == {
        "path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "images": 32, "weights": "ema",
        "matching": {"denoiser": [113, 113]}, "kept": [],
    }  # fmt: skip


def test_the_file_is_not_needed_to_resume_and_the_record_stays(first: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied.pt"
    shutil.copy(first / "checkpoints/last.pt", copied)
    whole = trained(tmp_path / "whole", f"init_from={copied}", "trainer.duration=3 steps")
    trained(tmp_path / "parts", f"init_from={copied}", "trainer.duration=2 steps")
    copied.unlink()
    parts = trained(tmp_path / "parts", f"init_from={copied}", "trainer.duration=3 steps")
    assert parts["initial_weights"] == whole["initial_weights"]
    for key, value in whole["method"].items():
        assert torch.equal(value, parts["method"][key]), key
    train([f"resume={tmp_path / 'parts'}", "trainer.duration=4 steps"])
    again = torch.load(tmp_path / "parts/checkpoints/last.pt", weights_only=True)
    assert again["initial_weights"] == whole["initial_weights"]


@pytest.mark.parametrize("explicit", [True, False])
def test_runs_of_versions_without_these_options_continue(explicit: bool, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(first, run)
    for path in (run / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        for config in (state["config"], state["raw_config"]):
            del config["init_from"], config["expected"]
        torch.save(state, path)
    overrides = [f"resume={run}"] if explicit else [*FLOW, f"run_dir={run}", "resume=auto", *OVERRIDES]
    train([*overrides, "trainer.duration=5 steps"])
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["training"]["images"] == 40


def test_another_file_is_refused_when_resuming(first: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", f"init_from={first}", "trainer.duration=1 steps")
    with pytest.raises(ConfigError, match="init_from"):
        trained(tmp_path / "run", "init_from=null", "trainer.duration=2 steps")


def test_weights_of_another_network_are_refused_by_name_and_shape(first: Path, tmp_path: Path) -> None:
    with raises(ConfigError, "init_from") as caught:
        trained(tmp_path / "run", f"init_from={first}", "model.network.width=16")
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["denoiser.network.blocks.0.first.bias", "[16]", "[8]"] in rows
    with raises(ConfigError, "init_from") as caught:
        trained(tmp_path / "run", f"init_from={first}", "conditioning=label")
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert any("condition" in row[0] and row[-1] == "absent" for row in rows)
    assert not (tmp_path / "run").exists()


def warnings_about(setting: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return [message for message in messages if setting in message]


def test_weights_of_another_kind_and_a_fine_tuning_without_weights_are_warned_of(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brief = ("trainer.duration=1 steps", f"init_from={first}")
    trained(tmp_path / "same", *brief)
    assert not warnings_about("init_from", caplog)
    trained(tmp_path / "data", *brief, "model.prediction=data")
    [message] = warnings_about("init_from=", caplog)
    assert "prediction=velocity" in message
    assert "prediction=data" in message
    trained(tmp_path / "edm", "model=diffusion_small", "trainer.duration=1 steps")
    assert not warnings_about("init_from", caplog)
    for start in (tmp_path / "edm", None):
        trained(tmp_path / f"ect{start is None}", "model=ect_small", "trainer.duration=1 steps",
                *([] if start is None else [f"init_from={start}"]))  # fmt: skip
        assert len(warnings_about("init_from", caplog)) == (start is None)
    trained(tmp_path / "other", "model=ect_small", "trainer.duration=1 steps", f"init_from={first}",
            "model.network.architecture=ddpmpp", "++model.sigma_data=0.5")  # fmt: skip
    [message] = warnings_about("init_from=", caplog)
    assert "path=StraightLine" in message
    assert "path=VarianceExploding" in message


def test_what_follows_from_the_data_comes_from_the_new_data(first: Path, tmp_path: Path) -> None:
    edm = ("model=diffusion_small", "trainer.duration=1 steps")
    trained(tmp_path / "edm", *edm)
    old = torch.load(tmp_path / "edm/checkpoints/last.pt", weights_only=True)["method"]["denoiser.sigma_data"]
    new = trained(tmp_path / "new", *edm, f"init_from={tmp_path / 'edm'}", "data.seed=5")["method"]["denoiser.sigma_data"]
    assert old != new


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with raises(CheckpointError, "init_from"):
        trained(tmp_path / "run", f"init_from={tmp_path / 'absent'}")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with raises(CheckpointError, "init_from"):
        trained(tmp_path / "run", f"init_from={tmp_path / 'foreign.pt'}")


GAN = ("data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
       "evaluation=none", "device=cpu", "precision=fp32", "conditioning=projection", "trainer.duration=1 steps",
       "model=sngan", *tiny.SIZES["sngan"])  # fmt: skip


def gan(folder: Path, *overrides: str) -> dict[str, Any]:
    train([*GAN, *overrides, f"run_dir={folder}"])
    state: dict[str, Any] = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    return state


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "run"
    gan(folder, "data.classes=[circle,square,triangle]")
    return folder


UNCHANGED = ("optimizer.lr=1e-9", "ema=[]")


def test_classes_are_matched_by_name(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = torch.load(labelled / "checkpoints/last.pt", weights_only=True)
    own = gan(tmp_path / "other", "data.classes=[triangle,cross,circle]", *UNCHANGED)
    assert before["class_names"] == ["circle", "square", "triangle"]
    assert own["class_names"] == ["circle", "triangle", "cross"]
    caplog.clear()
    after = gan(tmp_path / "run", "data.classes=[triangle,cross,circle]", f"init_from={labelled}", *UNCHANGED)
    start = {**before["method"], **before["averages"]["exponential"]}
    old, new = before["class_names"], after["class_names"]
    weight = "generator.linear.weight"
    for name in ("circle", "triangle"):
        columns = after["method"][weight][:, new.index(name) - 3], start[weight][:, old.index(name) - 3]
        torch.testing.assert_close(*columns, rtol=0, atol=1e-6)
    cross = new.index("cross") - 3
    torch.testing.assert_close(after["method"][weight][:, cross], own["method"][weight][:, cross], rtol=0, atol=1e-6)
    torch.testing.assert_close(after["method"][weight][:, :-3], start[weight][:, :-3], rtol=0, atol=1e-6)
    assert after["initial_weights"]["kept"] == []
    messages = [record.getMessage() for record in caplog.records if record.getMessage().startswith("classes of the initial")]
    assert "circle, triangle" in messages[0].partition("new")[0]
    assert messages[0].endswith("new: cross; dropped: square")


def test_some_loads_what_matches_and_names_the_rest(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wider = "model.discriminator.features.widths=[16]"
    with raises(ConfigError, "init_from", "init_match=some"):
        gan(tmp_path / "run", f"init_from={labelled}", wider)
    own = gan(tmp_path / "own", wider, *UNCHANGED)
    after = gan(tmp_path / "run", f"init_from={labelled}", "init_match=some", wider, *UNCHANGED)
    start = torch.load(labelled / "checkpoints/last.pt", weights_only=True)["averages"]["exponential"]
    name = "generator.linear.bias"
    torch.testing.assert_close(after["method"][name], start[name], rtol=0, atol=1e-6)
    kept = after["initial_weights"]["kept"]
    assert kept
    for name in kept:
        assert name.startswith("discriminator.")
        if name.endswith(("original", "bias")):
            torch.testing.assert_close(after["method"][name], own["method"][name], rtol=0, atol=1e-6)
    [message] = [record.getMessage() for record in caplog.records if "keep their initial values" in record.getMessage()]
    assert kept[0] in message
    matching, total = after["initial_weights"]["matching"]["discriminator"]
    assert matching + sum(".0.left" not in name and ".0.right" not in name for name in kept) == total


def test_only_the_chosen_parts_are_loaded(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = "model.discriminator.features.widths=[16]"  # its tensors do not match, but they are not loaded
    own = gan(tmp_path / "own", other, *UNCHANGED)["method"]
    caplog.clear()
    arguments = (f"init_from={labelled}", "init_parts=[generator]", other, "freeze=[discriminator.features.blocks.0]")
    after = gan(tmp_path / "run", *arguments, *UNCHANGED)
    start = torch.load(labelled / "checkpoints/last.pt", weights_only=True)["averages"]["exponential"]
    for name, value in after["method"].items():
        if name == "generator.linear.weight":  # it also has the classes, which differ
            continue
        if name.startswith("generator.") and name.endswith(("weight", "bias")):
            torch.testing.assert_close(value, start[name], rtol=0, atol=1e-6)
        elif name.startswith("discriminator.") and name.endswith(("original", "bias")):
            torch.testing.assert_close(value, own[name], rtol=0, atol=1e-6)
    record = after["initial_weights"]
    assert (record["parts"], record["kept"]) == (["generator"], [])
    assert record["matching"]["discriminator"][0] == 0 < record["matching"]["discriminator"][1]
    [message] = [each.getMessage() for each in caplog.records if "frozen tensors" in each.getMessage()]
    assert "discriminator.features.blocks.0" in message


def test_a_file_must_hold_the_chosen_parts(labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    file = exported(labelled, tmp_path / "generator.safetensors")
    with raises(ConfigError, "init_parts", "generator"):
        gan(tmp_path / "run", f"init_from={file}", "init_parts=[discriminator]")
    gan(tmp_path / "run", f"init_from={file}", "init_parts=[generator]", *UNCHANGED)
    again = gan(
        tmp_path / "run", f"init_from={file}", "init_parts=[generator,generator]", "trainer.duration=2 steps", *UNCHANGED
    )
    assert again["initial_weights"]["parts"] == ["generator"]


@pytest.mark.parametrize("parts", ["[generator,discriminators]", "[generator.linea]", "[]"])
def test_parts_that_do_not_exist_are_refused(labelled: Path, tmp_path: Path, parts: str) -> None:
    with raises(ConfigError, "init_parts"):
        gan(tmp_path / "run", f"init_from={labelled}", f"init_parts={parts}")
    assert not (tmp_path / "run").exists()


def test_labels_are_added_to_a_model_without_them(tmp_path: Path) -> None:
    first = gan(tmp_path / "first", "conditioning=none", "ema=[]")["method"]
    own = gan(tmp_path / "own", *UNCHANGED)["method"]
    after = gan(tmp_path / "run", f"init_from={tmp_path / 'first'}", "init_match=some", *UNCHANGED)
    assert after["initial_weights"]["kept"] == [
        f"discriminator.projection.parametrizations.weight.{name}" for name in ("original", "0.left", "0.right")
    ]
    weight = after["method"]["generator.linear.weight"]
    torch.testing.assert_close(weight[:, :-5], first["generator.linear.weight"], rtol=0, atol=1e-6)
    torch.testing.assert_close(weight[:, -5:], own["generator.linear.weight"][:, -5:], rtol=0, atol=1e-6)


def test_settings_without_effect_and_weights_without_any_match_are_refused(labelled: Path, tmp_path: Path) -> None:
    for option in ("init_match=some", "init_parts=[generator]"):
        with raises(ConfigError, option.partition("=")[0]):
            gan(tmp_path / "run", option)
    with raises(ConfigError, "init_from"):
        trained(tmp_path / "run", f"init_from={labelled}", "init_match=some")
    with raises(ConfigError, "init_from"):  # both have conditions, but no network
        trained(tmp_path / "run", "conditioning=label", f"init_from={labelled}", "init_match=some")
    with raises(ConfigError, "init_match"):
        gan(tmp_path / "run", f"init_from={labelled}", "init_match=most")
    assert not (tmp_path / "run").exists()


def exported(ckpt: Path, output: Path, *more: str) -> Path:
    done = run_command("export", f"ckpt={ckpt}", f"output={output}", "format=safetensors", "device=cpu", *more)
    assert done.returncode == 0, done.stderr
    return output


def test_an_exported_generator_is_a_start(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("safetensors")
    caplog.set_level("INFO")
    file = exported(labelled, tmp_path / "generator.safetensors")
    classes = "data.classes=[circle,square,cross,triangle]"
    own = gan(tmp_path / "own", classes, *UNCHANGED)["method"]
    caplog.clear()
    after = gan(tmp_path / "run", classes, f"init_from={file}", *UNCHANGED)
    start = torch.load(labelled / "checkpoints/last.pt", weights_only=True)["averages"]["exponential"]
    columns = after["method"]["generator.linear.weight"][:, -4:-1]
    torch.testing.assert_close(columns, start["generator.linear.weight"][:, -3:], rtol=0, atol=1e-6)
    for name, value in own.items():
        if name.startswith("discriminator.") and name.endswith(("original", "bias")):
            torch.testing.assert_close(after["method"][name], value, rtol=0, atol=1e-6)
    record = after["initial_weights"]
    assert record["images"] == 8
    assert record["matching"]["discriminator"][0] == 0
    assert record["matching"]["generator"][0] == record["matching"]["generator"][1]
    assert any("discriminator: 0 of " in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("sagan", [*tiny.SIZES["sagan"], "conditioning=none"]),  # whose generator has spectral norm
        ("vae_small", [*tiny.AUTOENCODERS["vae_small"], "conditioning=none"]),
        ("vq_vae_small", [*tiny.AUTOENCODERS["vq_vae_small"], "conditioning=none"]),
        ("restoration", [*tiny.TRANSLATORS["restoration"], "conditioning=none"]),
    ],
)
def test_exports_of_other_models_make_the_same_images(model: str, more: list[str], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    arguments = [*GAN[:8], "trainer.duration=2 steps", f"model={model}", *more]
    train([*arguments, f"run_dir={tmp_path / 'run'}"])
    config, builder = Config.of(compose([*arguments, "run_dir=unused"]).config), Builder(epoch_size=1000, batch_size=10)
    torch.manual_seed(5)
    method = tiny.method_of(config, build_dataset(config, builder), builder).eval()
    initial = InitialWeights.open(str(exported(tmp_path / "run", tmp_path / "network.safetensors")), ())
    initial.load_into(method, (), lambda count: {})
    saved = load(tmp_path / "run", device="cpu").method
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        if model == "restoration":
            images = [each.translate(image) for each in (method, saved)]
        elif model == "vq_vae_small":
            codes = torch.arange(16).view(1, 4, 4)
            images = [each.decoder(each.quantizer.lookup(codes)) for each in (method, saved)]
        else:
            images = [each.sample(each.draw(range(4), 0)) for each in (method, saved)]
    assert images[0].std() > 0.01
    torch.testing.assert_close(*images, rtol=0, atol=0.02 if model == "sagan" else 1e-5)  # of the spectral norm's estimate


@pytest.mark.parametrize("content", ["absent", "text", "other", "metadata", "damaged"])
def test_files_without_weights_of_this_model_are_refused(content: str, labelled: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    file, kind = tmp_path / "weights.safetensors", CheckpointError
    if content == "text":
        file.write_text("no tensors")
    elif content == "other":
        safetensors.save_file({"layer.weight": torch.zeros(2)}, file)
        kind = ConfigError
    elif content == "metadata":
        safetensors.save_file({"layer.weight": torch.zeros(2)}, file, {"config": "{"})
    elif content == "damaged":
        exported(labelled, file)
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    with raises(kind, "init_from"):
        gan(tmp_path / "run", f"init_from={file}")
    assert not (tmp_path / "run").exists()
