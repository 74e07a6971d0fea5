"""The installed package holds what the checkout holds."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

import genimg
from genimg.utils.paths import config_dir

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed_in_pyproject() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set(setuptools.find_packages(str(ROOT), include=["genimg", "genimg.*"]))
    assert listed == found | {"genimg.configs"}


def test_configs_are_found_beside_the_package_or_inside_it() -> None:
    assert (Path(config_dir()) / "train.yaml").is_file()


OPTIONS = {
    "mnist_v2": "mnist",
    "shapes_v2": "shapes",
    "cifar10_v2": "cifar10_classifier",
}  # of evaluation=


def test_shipped_weights_are_small_and_match_the_digests_in_their_configs() -> None:
    from omegaconf import OmegaConf

    from genimg.evaluation.extractors.classifier import shipped_weights
    from genimg.utils.files import sha256_of

    files = list((ROOT / "genimg" / "evaluation" / "weights").glob("*.pt"))
    assert {file.stem for file in files} == OPTIONS.keys()
    for file in files:
        assert file.stat().st_size <= 1_000_000
        config = OmegaConf.load(ROOT / "configs" / "evaluation" / f"{OPTIONS[file.stem]}.yaml")
        assert config.extractor.sha256 == sha256_of(shipped_weights(file.stem))


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"]])
def test_help_config_and_completion_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['genimg-train', *sys.argv[1:]]\n"
        "import atexit; heavy = ('torch', 'numpy', 'PIL', 'jinja2')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules]))\n"
        "from genimg.cli import train; train()"
    )
    environment = {"COMP_LINE": "genimg-train mod", "COMP_POINT": "16", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert "HEAVY []" in run.stdout, run.stdout + run.stderr


def test_version_is_that_of_the_installed_distribution() -> None:
    from importlib.metadata import version

    assert version("genimg") == genimg.__version__
