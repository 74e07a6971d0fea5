"""The schema: what OmegaConf refuses while Hydra composes, and what it lets pass."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from genimg.config.messages import explain
from genimg.config.schema import COMMANDS, GROUPS, OPEN, options_of, sentence, type_of
from genimg.config.schema.option import OneOf
from genimg.utils.paths import config_dir

SCHEMAS = [*COMMANDS.values(), *(kind for kinds in (*GROUPS.values(), *OPEN.values()) for kind in kinds.values())]


def composed(*overrides: str, command: str = "train", own: Path | None = None) -> DictConfig:
    """The config of a command line, with one's own config directory."""
    search = [f"hydra.searchpath=[file://{own}]"] if own else []
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose(command, overrides=[*overrides, *search])


def refusal(*overrides: str, command: str = "train", own: Path | None = None) -> str:
    """The message for a command line that is refused while it is composed."""
    with pytest.raises(HydraException) as caught:
        composed(*overrides, command=command, own=own)
    message = explain(caught.value, command, list(overrides))
    assert message is not None
    assert "\n" not in message
    return message


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_option_has_a_type_and_one_line_of_help(schema: type) -> None:
    for option in options_of(schema):
        assert option.type
        assert option.help
        assert "\n" not in option.help
        assert not option.help.endswith(".")
        assert option.help[0] == option.help[0].upper() or not option.help[0].isalpha() or ":" in option.help


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_default_is_of_its_own_type_and_shared_with_nobody(schema: type) -> None:
    first, second = OmegaConf.structured(schema), OmegaConf.structured(schema)
    for option in options_of(schema):
        node = first._get_node(option.name)
        value = OmegaConf.to_container(first, resolve=False)[option.name]
        assert value == option.default
        if option.default is None:
            assert option.type.endswith("null")
        if isinstance(option.default, bool):
            assert "true | false" in option.type or str(option.default).lower() in option.type.split(" | ")
        assert node is not second._get_node(option.name)


def test_the_files_set_only_what_differs_from_the_schema() -> None:
    for group, kinds in GROUPS.items():
        for path in Path(config_dir(), group).glob("*.yaml"):
            text: Any = OmegaConf.to_container(OmegaConf.load(path))
            included = [entry for entry in text.get("defaults", []) if str(entry).startswith("/_schema/")]
            if included:
                name = included[0].removeprefix(f"/_schema/{group}/").removesuffix("@_here_")
                schema = (kinds | OPEN.get(group, {}))[name]
                defaults = {each.name: each.metadata["default"] for each in fields(schema)}
                same = {key for key in text if key in defaults and text[key] == defaults[key]}
                # The size of digits' images is repeated for its comment, which gives the reason.
                assert same <= ({"image_size"} if path.stem in ("mnist", "fashion_mnist") else set()), path
    for name in COMMANDS:
        assert set(OmegaConf.load(Path(config_dir(), f"{name}.yaml"))) == {"defaults", "hydra"}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["trainer.batch_size=many"], "trainer.batch_size=many must be a whole number"),
        ("train", ["trainer.batch_size=1.5"], "trainer.batch_size=1.5 must be a whole number"),
        ("train", ["trainer.batch_size=null"], "trainer.batch_size=null must be a whole number"),
        ("train", ["trainer.max_grad_norm=big"], "trainer.max_grad_norm=big must be a number or null"),
        ("train", ["trainer.accumulation=all"], "trainer.accumulation=all must be auto or a whole number"),
        ("train", ["trainer.duration=[1,2]"], "trainer.duration=[1, 2] must be a duration such as '25 epochs'"),
        ("train", ["dry_run=maybe"], "dry_run=maybe must be true or false"),
        ("train", ["seed=one"], "seed=one must be a whole number"),
        ("train", ["precision=fp16"], "precision=fp16 must be auto, fp32, tf32 or bf16"),
        ("train", ["allow=mypackage"], "allow=mypackage must be a list such as [a,b]"),
        ("train", ["optimizer_overrides=3"], "optimizer_overrides=3 must be a mapping such as {a: 1}"),
        ("train", ["performance.compile=true"], "performance.compile=true must be auto, false, default, reduce-overhead or"),
        ("train", ["data.max_corrupt=true"], "data.max_corrupt=true must be a whole number"),
        ("train", ["data=folder", "data.fit=cut"], "data.fit=cut must be crop, stretch or pad"),
        ("train", ["data=folder", "data.range=5"], "data.range=5 must be a list such as [a,b] or null"),
        ("train", ["evaluation=likelihood", "evaluation.num_samples=x"], "evaluation.num_samples=x must be a whole number"),
        ("train", ["trainer.batchsize=3"], "unknown key trainer.batchsize (did you mean 'trainer.batch_size'?)"),
        ("train", ["performance.compil=auto"], "(did you mean 'performance.compile'?)"),
        ("train", ["sed=3"], "unknown key sed (did you mean 'seed'?)"),
        ("train", ["~trainer.keep_last"], "~trainer.keep_last is not possible"),
        ("train", ["~trainer.usual_duration"], "~trainer.usual_duration is not possible"),
        ("eval", ["which=newest"], "which=newest must be last or best"),
        ("eval", ["compare=a.json"], "compare=a.json must be a list"),
        ("eval", ["whch=best"], "did you mean 'which'?"),
        ("sample", ["interpolate=loud"], "interpolate=loud must be linear, spherical or null"),
        ("translate", ["tile=big"], "tile=big must be a whole number or null"),
        ("features", ["learning_rate=high"], "learning_rate=high must be a number"),
        ("prepare", ["shard_size=1GiB"], "shard_size=1GiB must be a whole number"),
        ("prepare", ["data.refresh_index=3"], "data.refresh_index=3 must be true or false"),
        ("augment_files", ["num_workers=all"], "num_workers=all must be auto or a whole number"),
        ("export", ["format=pickle"], "format=pickle must be pt2, onnx or safetensors"),
        ("report", ["output=[a,b]"], "output=[a, b] must be a file or null"),
    ],
)  # fmt: skip
def test_what_the_schema_refuses_gets_one_line(command: str, arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments, command=command)


def test_a_file_that_breaks_the_schema_is_named(tmp_path: Path) -> None:
    texts = {
        "experiment/key": "# @package _global_\ntrainer:\n  batch_sise: 3\n",
        "experiment/type": "# @package _global_\ntrainer:\n  batch_size: x\n",
        "trainer/own": "defaults: [default, _self_]\nkeep_last: all\n",
        "data/own": "defaults: [base, _self_]\n_target_: mypackage.x\nmax_corrupt: many\nimage_size: 4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".yaml").write_text(text)
    message = refusal("experiment=key", own=tmp_path)
    assert message.startswith("unknown key trainer.batch_sise (did you mean 'trainer.batch_size'?) (in experiment/key)")
    assert refusal("experiment=type", own=tmp_path) == "trainer.batch_size=x must be a whole number (in experiment/type)"
    assert refusal("trainer=own", own=tmp_path) == "trainer.keep_last=all must be a whole number (in trainer/own)"
    assert refusal("data=own", own=tmp_path) == "data.max_corrupt=many must be a whole number (in data/own)"


def test_files_of_a_user_compose_with_a_schema_and_without(tmp_path: Path) -> None:
    texts = {
        "data/on_base": "defaults: [base, _self_]\n_target_: mypackage.x\nmine: 3\nimage_size: 4\n",
        "data/alone": "_target_: mypackage.x\nmine: 3\n",
        "data/changed": "defaults: [folder, _self_]\nroot: photos\n",
        "evaluation/alone": "_target_: mypackage.y\nmine: 3\n",
        "trainer/on_default": "defaults: [default, _self_]\nbatch_size: 7\n",
        "local/default": "# @package _global_\ntrainer:\n  keep_last: 9\n_note: free\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".yaml").write_text(text)
    config = composed("data=on_base", "trainer=on_default", "evaluation=alone", "data.mine=4", own=tmp_path)
    assert config.data.mine == 4
    assert config.data.max_corrupt == 0
    assert config.evaluation == {"_target_": "mypackage.y", "mine": 3}
    assert (config.trainer.batch_size, config.trainer.keep_last, config._note) == (7, 9, "free")
    assert composed("data=alone", own=tmp_path).data == {"_target_": "mypackage.x", "mine": 3}
    assert composed("data=changed", own=tmp_path).data.root == "photos"
    assert "unknown key data.nime" in refusal("data=on_base", "data.nime=4", own=tmp_path)


def test_what_the_command_line_could_do_without_a_schema_it_can_do_with_one() -> None:
    config = composed(
        "+trainer.later=1", "+note=2", "+optimizer_overrides.discriminator.lr=1e-3", "~evaluation.metrics.inception_score",
        "evaluation.stop_if={factor: 3, evaluations: 2}", "data.image_size=[8,16]", "data.validation=test", "penalty=[r1]",
        "trainer.max_grad_norm=1", "performance.compile=false",
    )  # fmt: skip
    assert (config.trainer.later, config.note) == (1, 2)
    assert config.optimizer_overrides == {"discriminator": {"lr": 1e-3}}
    assert "inception_score" not in config.evaluation.metrics
    assert config.evaluation.stop_if == {"factor": 3, "evaluations": 2}
    assert config.data.image_size == [8, 16]
    assert list(config.penalty) == ["r1"]
    assert type(config.trainer.max_grad_norm) is int  # numbers stay as they are written
    assert config.performance.compile is False
    assert composed("data=folder", "data.range=[0,255]").data.range == [0, 255]


def test_composed_values_are_plain() -> None:
    """Checkpoints hold primitives only."""

    def kinds(node: Any) -> set[type]:
        values = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        return {type(node)}.union(*map(kinds, values))

    for command in COMMANDS:
        container = OmegaConf.to_container(composed(command=command), resolve=False)
        assert kinds(container) <= {dict, list, str, int, float, bool, type(None)}


def test_a_value_of_a_closed_set() -> None:
    node = OneOf("auto", ("auto", False), (int,), is_optional=False)
    for value in ("auto", False, 3, "${x}", MISSING):
        node._set_value(value)
        assert copy.deepcopy(node)._value() == value
    for value in (True, "false", 1.5, None, [1]):
        with pytest.raises(ValidationError):
            node._set_value(value)
        with pytest.raises(ValidationError):
            copy.deepcopy(node)._set_value(value)
    OneOf(None, ("a",), (), is_optional=True)._set_value(None)


def test_types_in_words() -> None:
    assert type_of("trainer.accumulation", "train") == "auto | int"
    assert type_of("nothing", "train") == type_of("model.width", "train") == ""
    assert type_of("data.labels", "train", GROUPS["data"]["shapes"]) == "shape | color_shape"
    assert sentence("auto | int | null") == "auto, a whole number or null"
    assert sentence("text") == "text"
