"""evaluation=[a,b]: what a list of evaluations becomes, and which lists are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from genimg.config.additional_extractors import keep_extractors_and_metrics, with_additional_extractors
from genimg.config.compose import compose
from genimg.config.evaluation import build_evaluator
from genimg.config.instantiate import Builder
from genimg.config.resume import same_measure
from genimg.errors import ConfigError
from genimg.utils.paths import config_dir


def evaluation(*overrides: str, command: str = "train") -> dict[str, Any]:
    """The resolved group."""
    node = OmegaConf.to_container(compose(overrides, command).config.evaluation, resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def test_other_arguments_are_unchanged() -> None:
    arguments = ["model=dcgan", "evaluation=mnist", "evaluation.num_images=[3]", "penalty=[r1,lecam]", "+evaluation@x=mnist"]
    assert with_additional_extractors(arguments) == arguments
    assert with_additional_extractors(["evaluation=[mnist,shapes],shapes"]) == ["evaluation=[mnist,shapes],shapes"]  # a sweep


@pytest.mark.parametrize("written", ["evaluation=[mnist,shapes]", "evaluation=[mnist, shapes]", "evaluation=['mnist',shapes]"])
def test_the_first_option_is_the_evaluation_and_the_others_are_added_to_it(written: str) -> None:
    assert with_additional_extractors(["a=1", written]) == [
        "a=1", "evaluation=mnist", "+evaluation@evaluation.additional.shapes=shapes",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_list_adds_the_extractors_and_metrics_of_the_other_options(command: str) -> None:
    one, other, both = (evaluation(f"evaluation={each}", command=command) for each in ("mnist", "shapes", "[mnist,shapes]"))
    target = "genimg.evaluation.feature_metrics.FeatureMetrics"
    added = {"_target_": target, "extractor": other["extractor"], "metrics": other["metrics"]}
    assert both == {**one, "additional": {"shapes": added}}
    assert evaluation("evaluation=[mnist]", command=command) == one


def test_three_options_keep_their_order() -> None:
    assert list(evaluation("evaluation=[cifar10_classifier,shapes,mnist]")["additional"]) == ["shapes", "mnist"]


def test_an_added_extractor_has_its_own_settings_and_metrics() -> None:
    node = evaluation(
        "evaluation=[shapes,mnist]", "evaluation.additional.mnist.extractor.classifier=mine.pt",
        "~evaluation.additional.mnist.metrics.accuracy", "evaluation.num_images=7",
    )  # fmt: skip
    assert node["additional"]["mnist"]["extractor"]["classifier"] == "mine.pt"
    assert "accuracy" not in node["additional"]["mnist"]["metrics"]
    assert "accuracy" in node["metrics"]
    assert node["num_images"] == 7


def test_one_option_can_be_added_twice_under_other_names() -> None:
    place = "evaluation.additional.again"
    node = evaluation("evaluation=mnist", f"+evaluation@{place}=classifier", f"{place}.extractor.classifier=mine.pt")
    assert node["additional"]["again"]["extractor"]["classifier"] == "mine.pt"


def test_metrics_that_one_extractor_lacks_stay_with_the_other() -> None:
    node = evaluation("evaluation=[inception,dinov2]")
    assert node["metrics"]["inception_score"] is not None
    assert node["additional"]["dinov2"]["metrics"]["inception_score"] is None


def test_the_built_evaluator_has_all_extractors() -> None:
    evaluator: Any = build_evaluator(evaluation("evaluation=[shapes,mnist,cifar10_classifier]"), Builder())
    assert [each.name for each in evaluator.extractors] == ["shapes_v2", "mnist_v2", "cifar10_v2"]
    assert evaluator.primary == "fd5k_shapes_v2"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["evaluation=[]"], "evaluation"),
        (["evaluation=[mnist,mnist]"], "evaluation"),
        (["evaluation=[mnist,3]"], "evaluation"),
        (["evaluation=[mnist,none]"], "evaluation"),
        (["evaluation=[none,mnist]"], "evaluation"),
        (["evaluation=[mnist,likelihood]"], "evaluation"),
        (["evaluation=[mnist,translation_inception]"], "evaluation"),
        (["evaluation=[mnist,nope]"], "evaluation"),
        (["evaluation=[likelihood,mnist]"], None),
        (["evaluation=[translation,mnist]"], None),
        (["evaluation=[mnist,shapes]", "evaluation.additional.shapes.num_images=9"], "evaluation.additional.shapes.num_images"),
        (["evaluation=[mnist,shapes]", "evaluation.additional.shapes.seed=9"], "evaluation.additional.shapes.seed"),
    ],
)
def test_lists_and_keys_without_effect_are_refused(overrides: list[str], key: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key in (key, "")
    assert "evaluation" in str(caught.value)


@pytest.mark.parametrize(
    ("defaults", "key"),
    [
        (["override /evaluation: [shapes, mnist]"], "evaluation"),
        (["/evaluation@evaluation.additional.mnist: mnist", "override /evaluation: shapes"], None),
    ],
)
def test_a_yaml_adds_extractors_by_their_place_and_not_by_a_list(defaults: list[str], key: str | None, tmp_path: Path) -> None:
    """Hydra would silently merge the options of a list."""
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "defaults:", *(f"  - {entry}" for entry in defaults)]
    (tmp_path / "experiment" / "both.yaml").write_text("\n".join(lines) + "\n")
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=both"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    if key is None:
        keep_extractors_and_metrics(composed, overrides, choices)
        assert OmegaConf.to_container(composed.evaluation, resolve=True) == evaluation("evaluation=[shapes,mnist]")
    else:
        with pytest.raises(ConfigError) as caught:
            keep_extractors_and_metrics(composed, overrides, choices)
        assert caught.value.key == key


def test_a_list_within_a_sweep_is_refused() -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):  # as a job of the sweep is composed
        composed = hydra.compose("train", overrides=["evaluation=[shapes,mnist]"], return_hydra_config=True)
    with pytest.raises(ConfigError) as caught:
        keep_extractors_and_metrics(composed, [], composed.hydra.runtime.choices)
    assert caught.value.key == "evaluation"


def test_the_same_extractor_twice_is_refused_by_its_key() -> None:
    node = evaluation("evaluation=mnist", "+evaluation@evaluation.additional.again=mnist")
    with pytest.raises(ConfigError) as caught:
        build_evaluator(node, Builder())
    assert caught.value.key == "evaluation.additional.again.extractor"


def test_a_metric_that_the_added_extractor_does_not_support_is_refused_by_its_key() -> None:
    metric = "{_target_: genimg.evaluation.metrics.SpatialFrechetDistance}"
    node = evaluation("evaluation=[shapes,mnist]", f"+evaluation.additional.mnist.metrics.sfd={metric}")
    with pytest.raises(ConfigError) as caught:
        build_evaluator(node, Builder())
    assert caught.value.key == "evaluation.additional.mnist.metrics.sfd"


def test_an_added_extractor_leaves_best_values_comparable() -> None:
    one, both = evaluation("evaluation=shapes"), evaluation("evaluation=[shapes,mnist]")
    assert same_measure(one, both)
    assert same_measure({**one, "_target_": "genimg.evaluation.compare.Evaluator"}, both)  # its former name
    assert not same_measure(evaluation("evaluation=mnist"), both)


def test_the_former_name_of_the_evaluator_is_built() -> None:
    node = {**evaluation("evaluation=shapes"), "_target_": "genimg.evaluation.compare.Evaluator"}
    assert build_evaluator(node, Builder()) is not None
