"""What was set differently. Takes a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from genimg.reporting.runs import Run
from genimg.reporting.settings import differing_keys, in_words, number_or_text, parsed, swept_settings


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


def test_configs_differ_in_keys_that_a_copy_inside_the_model_does_not_repeat() -> None:
    def run(name: str, loss: str, extra: dict[str, int]) -> Run:
        config = {"loss": {"name": loss}, "model": {"loss": {"name": loss}, "width": 4, **extra}, "run_dir": name, "same": 1}
        return Run(Path(name), name, config=config)

    found = differing_keys([run("a", "hinge", {}), run("b", "minimax", {"depth": 2}), Run(Path("c"), "c")])
    assert found == {"loss.name": ["hinge", "minimax"], "model.depth": ["—", 2]}


def test_values_in_words() -> None:
    assert [in_words(each) for each in (None, True, 1e-4, 3, [1, 2.5], "x")] == ["null", "true", "0.0001", "3", "[1, 2.5]", "x"]
    assert [number_or_text(each) for each in ("1e-4", "3", "true", "null", "x")] == [1e-4, 3, True, None, "x"]
