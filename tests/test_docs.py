"""What README and docs say is true: worked examples run, options exist, links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from fork_server import run_command

from genimg.config.messages import is_choice

ROOT = Path(__file__).resolve().parent.parent
FILES = re.compile(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```console\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_worked_examples_of_extending_run_as_they_stand(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    files = FILES.findall(text)
    commands = [line for block in COMMANDS.findall(text) for line in block.splitlines()]
    assert len(files) == 13
    assert len(commands) == 14
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": paths, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for command in commands:
        name, *arguments = shlex.split(command)
        if name == "genimg-train":  # only shorter
            resumes = any(argument.startswith("resume=") for argument in arguments)
            arguments += [f"trainer.duration={4 if resumes else 2} steps", "data.num_images=64"]
            arguments += [] if "data=stripes" in arguments else ["evaluation.num_images=20"]
        run = run_command(name.removeprefix("genimg-"), *arguments, cwd=tmp_path, env=environment)
        assert run.returncode == 0, command + run.stdout + run.stderr
    for name in ("my_gan", "my_discriminator", "resize_gan", "smoothed", "stripes", "metric", "flow"):
        assert (tmp_path / "outputs" / name / "checkpoints" / "last.pt").is_file()
    for name in ("my_gan", "resize_gan"):
        assert len(list((tmp_path / "outputs" / name / "samples-seed0").glob("*.png"))) == 4
    assert (tmp_path / "outputs" / "my_gan" / "generator.pt2").is_file()
    assert (tmp_path / "outputs" / "flow" / "sampler.pt2").is_file()
    assert len(list((tmp_path / "outputs" / "flow" / "samples-seed0-steps8").glob("*.png"))) == 4
    summary = json.loads((tmp_path / "outputs" / "flow" / "summary.json").read_text())
    assert summary["images"] == 4 * 64


def test_a_family_is_one_short_file_and_one_yaml() -> None:
    shown = dict(FILES.findall((ROOT / "docs" / "extending.md").read_text()))
    assert len(shown["my_package/flow.py"].splitlines()) <= 80
    assert {name for name in shown if "flow" in name} == {"my_package/flow.py", "my_configs/model/my_flow.yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_names_every_option_of_every_group() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"hydra"}
    assert set(table) == groups
    for group in groups:
        options = {path.stem for path in (ROOT / "configs" / group).glob("*.yaml") if is_choice(path.stem)}
        assert set(re.findall(r"`(\w+)`", table[group])) == options
