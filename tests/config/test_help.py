"""--help of the commands: complete, aligned, and answered without heavy imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from genimg.config import help
from genimg.config.schema import COMMANDS, GROUPS, Option, options_of
from genimg.utils.paths import config_dir

ENTRY = {"eval": "evaluate", "augment_files": "augment"}
PROGRAM = (
    "import atexit, json, sys, time; sys.argv = ['genimg', *sys.argv[1:]]\n"
    "atexit.register(lambda: print(json.dumps([time.process_time(), sorted(sys.modules)]), file=sys.stderr))\n"
    "from genimg import cli; getattr(cli, sys.argv.pop(1))()"
)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have one line for each option."""
    monkeypatch.setattr(help, "_WIDEST_TYPE", 200)
    monkeypatch.setattr(help, "_WIDEST_DEFAULT", 200)


def rows(page: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and help of each key of a page that is wide enough for one line each."""
    found = re.findall(r"^  ([a-z_.]+) {2,}(\S.*?) {2,}(\S.*?) {2,}(\S.*)$", page, re.MULTILINE)
    return {key: (kind, default, told) for key, kind, default, told in found}


def check(shown: tuple[str, str, str], option: Option) -> None:
    assert shown[0] == option.type
    assert shown[1]
    assert shown[2] == option.help


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_the_composed_config_is_in_the_help(command: str) -> None:
    found = rows(help.page(command, [], 1000))
    for option in options_of(COMMANDS[command]):
        check(found[option.name], option)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose(command)
    schemas = {schema.__name__: schema for kinds in GROUPS.values() for schema in kinds.values()}
    for key in composed:
        if key not in GROUPS or not composed[key]:
            assert key in found or composed[key] == {} or re.search(rf"^{key}: ", help.page(command, [], 1000), re.MULTILINE)
            continue
        of_schema = {
            option.name: option for option in options_of(schemas[composed._get_node(key)._metadata.object_type.__name__])
        }
        for name in composed[key]:
            if name != "_target_":
                check(found[f"{key}.{name}"], of_schema[name])


@pytest.mark.usefixtures("wide")
def test_the_defaults_are_those_of_what_is_chosen() -> None:
    assert rows(help.page("train", [], 1000))["evaluation.batch_size"][1] == "250"  # data=shapes has a classifier of its own
    chosen = rows(help.page("train", ["data=folder", "model=stylegan2"], 1000))
    assert chosen["evaluation.batch_size"][1] == "50"  # Inception
    assert chosen["data.root"][1] == "required"
    assert chosen["trainer.batch_size"][1] == "32"
    assert chosen["trainer.usual_duration"][1] == "25M images"
    recipe = rows(help.page("train", ["experiment=r3gan_cifar10"], 1000))
    assert recipe["trainer.batch_size"][1] == "512"
    assert recipe["data.horizontal_flip"][1] == "true"
    assert recipe["data.root"][1] == "$GENIMG_DATA or datasets"
    assert "evaluation.best_by" in rows(help.page("eval", ["evaluation=translation"], 1000))
    assert "evaluation.num_images" not in rows(help.page("eval", [], 1000))


@pytest.mark.usefixtures("wide")
def test_the_groups_are_listed_once_with_ones_own_options(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [base, _self_]\n_target_: x.y\nchannels: 7\nown: 3\n")
    page = help.page("train", ["--config-dir", str(tmp_path), "data=mine"], 1000)
    listed = re.findall(r"^(\w+): ([\w, ]+)$", page, re.MULTILINE)
    assert len(dict(listed)) == len(listed)
    assert {"model", "data", "loss", "penalty", "experiment"} <= set(dict(listed))
    assert "mine" in dict(listed)["data"].split(", ")
    assert "base" not in dict(listed)["data"].split(", ")
    assert rows(page)["data.channels"][1] == "7"


def test_a_predefined_search_shows_its_runs() -> None:
    shown = help.page("train", ["sweep=equal_seconds"], 128)
    assert "\nsweep=equal_seconds: 12 runs" in shown
    assert "\n  optimizer.lr: 1e-3,4e-3,8e-3\n" in shown
    assert "\nsweep=gan_search: a search of 24 runs" in help.page("train", ["sweep=gan_search"], 128)
    assert "\nsweep=" not in help.page("train", [], 128)


@pytest.mark.parametrize("width", [72, 80, 128])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_terminal(command: str, width: int) -> None:
    examples = help.page(command, [], 1000).split("\n\n")[:2]
    for line in help.page(command, [], width).splitlines():
        assert len(line) <= width or any(line in example for example in examples)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_answered_before_hydra_starts(command: str, flag: str, tmp_path: Path) -> None:
    if flag == "-h" and command not in ("train", "report"):
        pytest.skip("two are enough")
    words = [sys.executable, "-c", PROGRAM, ENTRY.get(command, command), flag]
    run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("genimg-")
    seconds, modules = json.loads(run.stderr)
    assert not {"torch", "numpy", "PIL"} & {*modules}
    assert seconds < 1  # 0.3 s on an idle machine, where Hydra's own help took 0.9 s
    assert not list(tmp_path.iterdir())
