"""What was set differently. Takes a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from genimg.reporting.runs import Run, parsed
from genimg.reporting.settings import differing_keys, number_or_text, seed_groups, swept_settings


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=1e-4", ("optimizer.lr", "1e-4")),
        ("trainer.duration='25 epochs'", ("trainer.duration", "25 epochs")),
        ("trainer.duration=30k\\ images", ("trainer.duration", "30k images")),
        ("+x.y='it\\'s'", ("x.y", "it's")),
        ("~evaluation.metrics.kd", ("evaluation.metrics.kd", "(removed)")),
        ("data.image_size=[48,64]", ("data.image_size", "[48,64]")),
        ("a='b=c'", ("a", "b=c")),
    ],
)
def test_overrides_are_read_as_hydra_reads_them(override: str, expected: tuple[str, str]) -> None:
    assert parsed(override) == expected


def test_swept_keys_have_typed_values_of_the_config_where_there_is_one() -> None:
    runs = [
        Run(Path("a"), "a", ["loss=hinge", "optimizer.lr=1e-4", "seed=1"], {"optimizer": {"lr": 0.0001}, "seed": 1}),
        Run(Path("b"), "b", ["loss=wasserstein", "seed=1"], {"optimizer": {"lr": 0.0002}, "seed": 1}),
        Run(Path("c"), "c", ["loss=elbo", "optimizer.lr=1e-3", "seed=1"]),  # failed before it had a config
    ]
    assert swept_settings(runs) == {"loss": ["hinge", "wasserstein", "elbo"], "optimizer.lr": [0.0001, 0.0002, 0.001]}


def test_a_run_without_a_config_has_the_value_of_others_with_the_same_override() -> None:
    runs = [
        Run(Path("a"), "a", ["data.root=photos", "data.classes=[1]"], {"data": {"root": "/home/photos", "classes": [1]}}),
        Run(Path("b"), "b", ["data.root=photos", "data.classes=[1]"]),  # failed before it had a config
    ]
    assert swept_settings(runs) == {}
    other = Run(Path("c"), "c", ["data.root=drawings"])
    assert swept_settings([*runs, other])["data.root"] == ["/home/photos", "/home/photos", "drawings"]
    elsewhere = Run(Path("d"), "d", ["data.root=photos"], {"data": {"root": "/tmp/photos"}})
    assert swept_settings([*runs, elsewhere])["data.root"] == ["/home/photos", "photos", "/tmp/photos"]


def test_configs_differ_in_keys_that_a_copy_inside_the_model_does_not_repeat() -> None:
    def run(name: str, loss: str, extra: dict[str, int]) -> Run:
        config = {"loss": {"name": loss}, "model": {"loss": {"name": loss}, "width": 4, **extra}, "run_dir": name, "same": 1}
        return Run(Path(name), name, config=config)

    found = differing_keys([run("a", "hinge", {}), run("b", "minimax", {"depth": 2}), Run(Path("c"), "c")])
    assert found == {"loss.name": ["hinge", "minimax"], "model.depth": ["—", 2]}


def test_values_of_the_command_line_are_parsed() -> None:
    assert [number_or_text(each) for each in ("1e-4", "3", "true", "null", "x")] == [1e-4, 3, True, None, "x"]


def test_runs_that_differ_only_in_their_seed_are_one_group() -> None:
    def run(name: str, lr: float, seed: int) -> Run:
        return Run(Path(name), name, config={"optimizer": {"lr": lr}, "seed": seed, "run_dir": name})

    runs = [run("a", 0.1, 0), run("b", 0.2, 0), run("c", 0.1, 1), run("d", 0.2, 1), run("e", 0.3, 0)]
    assert seed_groups(runs) == [[0, 2], [1, 3], [4]]
    assert seed_groups([*runs, run("f", 0.1, 1)]) == [[0], [2], [5], [1, 3], [4]]  # c and f differ in something else
    failed = [Run(Path(name), name, [f"lr={lr}", f"seed={seed}"]) for name, lr, seed in (("g", 1, 0), ("h", 1, 1), ("i", 2, 0))]
    assert seed_groups([*failed, Run(Path("j"), "j"), Run(Path("k"), "k")]) == [[0, 1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("data", "recorded", "expected"),
    [
        ({"_target_": "genimg.data.datasets.builtin.mnist", "split": "train", "root": "data"},
         {"name": "mnist/train", "num_images": 60000}, "mnist, split train, 60,000 images"),
        ({"_target_": "genimg.data.datasets.builtin.mnist", "split": "train", "root": "data"}, None, "mnist, split train"),
        ({"_target_": "genimg.data.datasets.builtin.folder", "root": "/data/photos", "validation": 0.1}, None,
         "folder photos, 10 % held out"),
        ({"_target_": "genimg.data.datasets.shapes.shapes", "validation": 0}, {"name": "shapes", "num_images": 200},
         "shapes, 200 images"),
        ({"_target_": "genimg.data.datasets.builtin.mnist", "split": "train", "validation": "test"},
         {"name": "mnist/train", "num_images": 60000}, "mnist, split train, validation split test, 60,000 images"),
        ({"_target_": "genimg.data.datasets.builtin.folder", "root": "photos", "validation": [1]}, None, "folder photos"),
    ],
)  # fmt: skip
def test_the_data_is_named_with_its_split(data: dict[str, object], recorded: dict[str, object] | None, expected: str) -> None:
    summary = {} if recorded is None else {"data": recorded}
    assert Run(Path("a"), "a", config={"data": data}, summary=summary).dataset == expected


def test_the_data_of_a_run_without_a_config_is_that_of_its_overrides() -> None:
    assert Run(Path("a"), "a", ["data=cifar10"]).dataset == "cifar10"
    assert Run(Path("a"), "a").dataset == "—"
