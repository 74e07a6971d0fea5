"""Averages of the weights from the config to the images: kept, resumed, chosen by name or by length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor

import genimg
from genimg.api.checkpoints import TrainedCheckpoint
from genimg.errors import CheckpointError, ConfigError
from genimg.training import checkpoint

COMMON = (
    "data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4", "device=cpu",
    "evaluation=shapes", "evaluation.num_images=20", "evaluation.interval=8 steps", "trainer.checkpoint_interval=4 steps",
)  # fmt: skip
GAN = ("model=dcgan_small", "model.generator.width=4", "ema=[exponential,power]", "ema.power_005.num_snapshots=4")
pytestmark = pytest.mark.usefixtures("one_thread")


def trained(folder: Path, *overrides: str) -> Path:
    genimg.train([*COMMON, *overrides, f"run_dir={folder}"])
    return folder


def state_of(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints" / "last.pt")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return trained(tmp_path_factory.mktemp("averages") / "gan", *GAN, "trainer.duration=8 steps")
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_holds_every_average_of_what_makes_images(gan: Path) -> None:
    state = state_of(gan)
    generator = {name for name in state["method"] if name.startswith("generator.")}
    assert list(state["averages"]) == ["exponential", "power_005", "power_010"]
    assert all(set(average) == generator for average in state["averages"].values())
    assert not any(same(one, other) for one in state["averages"].values() for other in state["averages"].values()
                   if one is not other)  # fmt: skip


def test_a_resumed_run_has_the_averages_and_snapshots_of_one_without_a_break(gan: Path, tmp_path: Path) -> None:
    halves = trained(tmp_path / "halves", *GAN, "trainer.duration=4 steps", "ema.power_005.num_snapshots=2")
    trained(halves, *GAN, "trainer.duration=8 steps", "ema.power_005.num_snapshots=4", "resume_force=true")
    whole, resumed = state_of(gan)["averages"], state_of(halves)["averages"]
    assert all(same(whole[name], resumed[name]) for name in whole)
    names = sorted(path.name for path in (gan / "averages").iterdir())
    assert names == [f"power_{length}-step-{step:08d}.pt" for length in ("005", "010") for step in (2, 4, 6, 8)]
    assert names == sorted(path.name for path in (halves / "averages").iterdir())
    for name in names:
        assert same(checkpoint.load(gan / "averages" / name)["weights"], checkpoint.load(halves / "averages" / name)["weights"])


def test_weights_are_chosen_by_name(gan: Path) -> None:
    state = state_of(gan)
    for weights, label, expected in (
        (None, "ema", state["averages"]["exponential"]), ("ema", "ema", state["averages"]["exponential"]),
        ("raw", "raw", state["method"]), ("power_010", "power_010", state["averages"]["power_010"]),
    ):  # fmt: skip
        model = genimg.load(gan, weights=weights)
        assert model.weights == label
        found = {f"generator.{key}": value for key, value in model.network("generator").state_dict().items()}
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_a_length_is_an_average_of_the_snapshots(gan: Path) -> None:
    near = TrainedCheckpoint.open(gan, weights=0.05).method(torch.device("cpu")).state_dict()
    kept = state_of(gan)["averages"]["power_005"]
    for key, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(near[key], value, rtol=1e-4, atol=1e-5)
    between = genimg.load(gan, weights=0.08)
    assert between.weights == "power 0.08"
    assert not torch.equal(between.sample(2), genimg.load(gan, weights=0.06).sample(2))


def test_a_length_ends_at_the_checkpoint_and_not_at_the_last_snapshot(gan: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *GAN, "ema.power_005.num_snapshots=4", "trainer.duration=9 steps")
    state = state_of(run)  # the last snapshot is of step 8
    for weights, name in ((0.05, "power_005"), ("0.1", "power_010")):
        found = genimg.load(run, weights=weights).network("generator").state_dict()
        assert all(torch.equal(value, state["averages"][name][f"generator.{key}"]) for key, value in found.items())
    for key, value in TrainedCheckpoint.open(run, weights=0.0501).method(torch.device("cpu")).state_dict().items():
        if key.startswith("generator.") and value.is_floating_point():
            torch.testing.assert_close(value, state["averages"]["power_005"][key], rtol=1e-2, atol=1e-3)


def test_an_evaluation_records_its_weights(gan: Path) -> None:
    summary = json.loads((gan / "summary.json").read_text())
    assert summary["provenance"]["generated"]["weights"] == "ema"
    model = genimg.load(gan, weights="raw")
    assert model.evaluate().provenance["generated"]["weights"] == "raw"


@pytest.mark.parametrize(
    ("model", "task"),
    [(["model=vae_small", "model.encoder.width=4"], []), (["model=rae_small", "model.encoder.width=4"], []),
     (["model=vae_small", "model.encoder.width=4", "likelihood=gaussian_learnt"], []),
     (["model=vq_vae_small", "model.encoder.width=8", "model.encoder.residual_width=4", "model.prior.width=8"], []),
     (["model=restoration", "model.translator.width=4"], ["task=denoise", "evaluation=translation"])],
    ids=["vae", "rae", "learnt likelihood", "vq_vae", "restoration"],
)  # fmt: skip
def test_every_family_keeps_averages_where_asked(tmp_path: Path, model: list[str], task: list[str]) -> None:
    common = [each for each in COMMON if not (task and each.startswith("evaluation"))]
    run = tmp_path / "run"
    genimg.train([*common, *model, *task, "ema=exponential", "ema.exponential.ramp_up=null",
                  "trainer.duration=4 steps", f"run_dir={run}"])  # fmt: skip
    state = state_of(run)
    average = state["averages"]["exponential"]
    assert average
    assert average.keys() <= state["method"].keys()
    assert any(not torch.equal(value, state["method"][key]) for key, value in average.items())
    assert (genimg.load(run).weights, genimg.load(run, weights="raw").weights) == ("ema", "raw")


@pytest.mark.parametrize("model", [
    ["model=stylegan2_small", "model.latent.dim=16", "model.generator.channel_base=128", "model.generator.channel_max=8"],
    ["model=sngan", "model.generator.widths=[8]", "model.discriminator.features.widths=[8]",
     "model.discriminator.features.bottom_size=4", "model.discriminator.features.num_flat_blocks=1"],
], ids=["stylegan2", "sngan"])  # fmt: skip
def test_lengths_work_with_spectral_norm_styles_and_batch_norm(tmp_path: Path, model: list[str]) -> None:
    run = tmp_path / "run"
    genimg.train([*COMMON, *model, "ema=power", "trainer.duration=16 steps", f"run_dir={run}"])
    loaded = genimg.load(run, weights=0.08)
    assert loaded.weights == "power 0.08"
    assert loaded.sample(2).isfinite().all()


def test_raw_weights_are_evaluated_where_asked(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *GAN[:2], "trainer.weights=raw", "trainer.duration=8 steps")
    assert json.loads((run / "summary.json").read_text())["provenance"]["generated"]["weights"] == "raw"
    assert genimg.load(run).weights == "raw"


@pytest.mark.parametrize(("overrides", "setting"), [
    (["ema=none", "trainer.weights=ema"], "trainer.weights=ema"), (["trainer.weights=slow"], "trainer.weights=slow"),
    (["ema.exponential.half_life=0 images"], "ema.exponential.half_life"), (["ema.exponential=3"], "ema.exponential=3"),
    (["ema=[exponential,exponential_r3gan]"], "ema"),
    (["+ema.raw={_target_: genimg.training.ema.Exponential, half_life: 1k images, ramp_up: null}"], "ema"),
    (["ema=power", "ema.power_005.length=0.5"], "ema.power_005.length=0.5"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, overrides: list[str], setting: str) -> None:
    with raises(ConfigError, setting):
        trained(tmp_path / "run", *GAN[:2], "trainer.duration=2 steps", *overrides)


def test_weights_that_a_checkpoint_lacks_are_refused(gan: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path / "run", "model=vae_small", "model.encoder.width=4", "trainer.duration=2 steps")
    for run, weights in ((gan, "slow"), (plain, "ema"), (plain, 0.08), (gan, 0.5)):
        with raises(ConfigError, "weights"):
            genimg.load(run, weights=weights)
    (gan / "averages" / "power_005-step-00000002.pt").write_bytes(b"no tensors")
    with raises(CheckpointError, word="power_005-step-00000002.pt"):
        genimg.load(gan, weights=0.08)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "raw", ""])
def test_a_checkpoint_cannot_name_files_by_its_averages(gan: Path, tmp_path: Path, name: str) -> None:
    state = state_of(gan)
    for config in (state["config"], state["raw_config"]):
        config["ema"] = {name: {"_target_": "genimg.training.ema.PowerFunction", "length": 0.1, "num_snapshots": 4}}
    state["averages"] = {name: state["averages"]["power_010"]}
    checkpoint.save({key: value for key, value in state.items() if key not in ("format", "version")}, tmp_path / "hostile.pt")
    with raises(ConfigError, "ema"):
        genimg.train([f"resume={tmp_path / 'hostile.pt'}", f"run_dir={tmp_path / 'run'}", "trainer.duration=16 steps"])
    with raises(ConfigError, "ema"):
        genimg.load(tmp_path / "hostile.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pt"]


def test_a_forced_run_may_add_an_average_and_forgets_the_best_of_other_weights(tmp_path: Path) -> None:
    first = ("model=dcgan_small", "model.generator.width=4", "ema=none")
    run = trained(tmp_path / "run", *first, "trainer.duration=8 steps")
    assert state_of(run)["averages"] == {}
    trained(run, "model=dcgan_small", "model.generator.width=4", "trainer.duration=16 steps", "resume_force=true")
    state = state_of(run)
    assert list(state["averages"]) == ["exponential"]
    assert state["training"]["best_images"] == 16 * 8
    assert state["training"]["num_evaluations"] == 2  # that of step 8 again, with the other weights
