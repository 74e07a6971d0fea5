"""A checkpoint from anywhere names files beside itself: none is opened, whatever command reads the checkpoint."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn

import genimg
from genimg import cli
from genimg.config import instantiate
from genimg.config.untrusted import named_again, places, take_out
from genimg.errors import ConfigError
from genimg.exporting.rebuilding import rebuilt
from genimg.utils.machine_local import Required
from genimg.utils.type_hints import type_hints

pytestmark = [pytest.mark.usefixtures("unchanged_process"), pytest.mark.filterwarnings("ignore:.*torch.jit")]

TINY = [
    "data.num_images=48", "data.image_size=16", "model=dcgan_small", "model.generator.width=4", "model.latent.dim=4",
    "trainer.batch_size=16", "trainer.duration=1 steps", "trainer.preview_images=2", "precision=fp32", "device=cpu",
]  # fmt: skip
EVALUATED = [
    "evaluation.num_images=20", "evaluation.batch_size=20", "~evaluation.metrics.kernel_distance",
    "~evaluation.metrics.precision_recall", "~evaluation.metrics.inception_score",
]  # fmt: skip
CLIP = {"_target_": "genimg.evaluation.extractors.foundation.CLIP", "model": "clip-vit-b-32"}


class Payload(nn.Module):
    """TorchScript that writes a file as soon as it is opened."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save([1.0], self.path)

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENIMG_CACHE", str(folder.parent / "cache"))
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setattr(sys, "argv", ["genimg-train", *TINY, *EVALUATED, f"run_dir={folder}"])
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        cli.train()
        root.handlers[:] = handlers
        root.setLevel(level)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENIMG_CLIP_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path


def no_network(*arguments: Any, **keywords: Any) -> None:
    raise OSError("no network")


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives its exit code and what it says."""

    def start(command: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"genimg-{command}", *arguments])
        capfd.readouterr()
        try:
            getattr(cli, command)()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        output, errors = capfd.readouterr()
        assert "Traceback" not in output + errors, errors
        return code, output + errors

    return start


def changed(trained: Path, home: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the run whose checkpoint has another config."""
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    for config in (state["config"], state["raw_config"]):
        change(config)
    state["training"] |= {"evaluated_at": -1, "last": {}, "best": {}, "final": {}}  # of the evaluation before the change
    path = home / "downloaded.pt"
    torch.save(state, path)
    return path


@pytest.fixture
def attack(home: Path) -> tuple[Path, Path]:
    """A file that writes another when torch.jit opens it, and that other file."""
    target, payload = home / "owned", home / "weights.pt"
    torch.jit.script(Payload(str(target))).save(payload)
    torch.jit.load(payload)
    assert target.exists(), "the attack itself must work, or the tests show nothing"
    target.unlink()
    return payload, target


def clip(weights: object, sha256: object) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["evaluation"]["extractor"] = {**CLIP, "weights": weights, "sha256": sha256}
        config["evaluation"]["metrics"] = {
            "frechet_distance": {"_target_": "genimg.evaluation.metrics.FrechetDistance"}
        }  # no class logits

    return change


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_torchscript_beside_a_run_is_not_opened(
    command: str, trained: Path, home: Path, attack: tuple[Path, Path], run: Run
) -> None:
    payload, target = attack
    path = changed(trained, home, clip(str(payload), None))
    arguments = [f"ckpt={path}", "device=cpu"] if command == "evaluate" else [f"resume={path}", "run_dir=other"]
    code, text = run(command, *arguments)
    assert code == 2
    assert f"evaluation.extractor.weights={payload} comes from the checkpoint's config and is not used" in text
    assert "evaluation.extractor.sha256=None" in text  # which would accept whatever lies in the cache
    assert not target.exists()


def test_neither_a_cache_with_other_weights_is_opened(
    trained: Path, home: Path, attack: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload, target = attack
    monkeypatch.setenv("GENIMG_CLIP_WEIGHTS", str(payload))  # where, say, another program keeps its files
    code, text = run("evaluate", f"ckpt={changed(trained, home, clip(None, None))}", "device=cpu")
    assert code == 2
    assert "these are other weights" in text
    assert not target.exists()


def test_an_interpolation_does_not_lead_to_it_either(trained: Path, home: Path, attack: tuple[Path, Path], run: Run) -> None:
    payload, target = attack

    def change(config: dict[str, Any]) -> None:
        clip("${_file}", "${_digest}")(config)
        config["_extractor"] = {**config["evaluation"]["extractor"], "_target_": "${_name}"}
        config |= {"_file": str(payload), "_digest": None, "_name": CLIP["_target_"]}
        config["evaluation"]["extractor"] = "${_extractor}"

    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    change(state["raw_config"])
    torch.save(state, home / "downloaded.pt")
    code, text = run("train", "resume=downloaded.pt", "run_dir=other", "resume_force=true", "trainer.duration=2 steps")
    assert code == 2
    assert "weights=" in text
    assert not target.exists()


def test_what_the_command_line_names_is_opened(trained: Path, home: Path, attack: tuple[Path, Path], run: Run) -> None:
    payload, target = attack
    path = changed(trained, home, clip(str(payload), None))
    code, text = run(
        "evaluate",
        f"ckpt={path}",
        "device=cpu",
        f"++evaluation.extractor.weights={payload}",
        "++evaluation.extractor.sha256=null",
    )
    assert (code, "does not hold the weights" in text) == (2, True)  # it has been opened, and is no CLIP
    assert target.exists()


def classifier(path: Path) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["evaluation"]["extractor"] = {
            "_target_": "genimg.evaluation.extractors.classifier.Classifier", "classifier": str(path), "sha256": None,
        }  # fmt: skip

    return change


@pytest.mark.parametrize("suffix", [".pt", ""])
def test_a_run_with_weights_of_ones_own_is_used_again_once_they_are_named(
    suffix: str, trained: Path, home: Path, run: Run
) -> None:
    own = home / "mine.pt"
    own.write_bytes(Path(genimg.__file__).with_name("evaluation").joinpath("weights", "shapes_v2.pt").read_bytes())
    named = own if suffix else Path("../../../../../../../..") / own.with_suffix("").relative_to("/")  # out of the package
    path = changed(trained, home, classifier(named))
    code, text = run("evaluate", f"ckpt={path}", "device=cpu")
    assert code == 2
    assert "++evaluation.extractor.classifier=PATH" in text
    code, text = run("evaluate", f"ckpt={path}", "device=cpu", f"++evaluation.extractor.classifier={own}")
    assert code == 0, text
    assert "fd20_mine" in text
    code, text = run("train", f"resume={path}", "run_dir=other", "trainer.duration=2 steps")
    assert code == 2
    assert "++evaluation.extractor.classifier=PATH" in text
    code, text = run(
        "train", f"resume={path}", "run_dir=other", "trainer.duration=2 steps", f"++evaluation.extractor.classifier={own}"
    )
    assert code == 0, text
    assert "fd20_mine" in text


def test_commands_that_evaluate_nothing_need_no_weights_of_the_evaluation(trained: Path, home: Path, run: Run) -> None:
    path = changed(trained, home, classifier(home / "elsewhere.pt"))
    code, text = run("sample", f"ckpt={path}", "num_images=2", "device=cpu", "output=samples")
    assert code == 0, text
    code, text = run("sample", f"ckpt={path}", "num_images=2", "output=more", "++conditioning.encoder.path=here")
    assert code == 2
    assert "conditioning.encoder.path=here has no effect" in text


TEXT = {"_target_": "genimg.networks.text.ClipText", "path": "beside", "dim": 4, "max_length": 8}
PERCEPTUAL = {"_target_": "genimg.losses.perceptual.Perceptual", "weights": "beside.pth", "layers": [3], "weight": 1.0}


def test_a_path_in_several_networks_is_named_once() -> None:
    config = {"conditioning": {"encoder": dict(TEXT)}, "model": {"a": dict(TEXT), "b": [dict(TEXT)]}}
    builder = instantiate.Builder(named=frozenset())
    with raises(ConfigError, "conditioning.encoder.path", word="PATH"):
        take_out(config, builder)
    renamed, builder = named_again(config, builder, {"conditioning.encoder.path": "mine"})
    assert [place.value for place in places(renamed, builder)] == ["mine"] * 3
    assert take_out(renamed, builder) == []
    with raises(ConfigError, "model.a.dim", word="effect"):
        named_again(config, builder, {"model.a.dim": 3})


def test_what_only_training_needs_is_left_out_elsewhere() -> None:
    assert instantiate.Builder(named=frozenset(), trains=False).build({"loss": PERCEPTUAL}, "model") == {"loss": None}
    with raises(ConfigError, word="model.loss.weights"):
        instantiate.Builder(named=frozenset()).build({"loss": PERCEPTUAL}, "model")


def test_the_rule_stands_in_front_of_every_constructor_even_where_nothing_was_taken_out() -> None:
    with raises(ConfigError, word="beside"):
        instantiate.Builder(named=frozenset({("path", "other"), ("weights", "beside")})).build([TEXT], "model")  # type: ignore[arg-type]


def test_an_exported_network_names_no_files_either(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    import json

    config = {"model": {"_target_": "torch.nn.Sequential", "_args_": [TEXT]}, "num_images": 1, "batch_size": 1,
              "facts": {"image_size": 8, "channels": 1, "num_classes": 0}}  # fmt: skip
    safetensors.save_file({"weight": torch.zeros(1)}, tmp_path / "network.safetensors", {"config": json.dumps(config)})
    with raises(ConfigError, word="beside"):
        rebuilt(tmp_path / "network.safetensors")


# Text parameters that any config may set: words that a constructor compares with those it knows, and names. A digest of a file
# whose path the user names can only refuse it.
WORDS = {
    "activation", "architecture", "backbone", "binarisation", "blur", "channels_last", "compile", "convolution",
    "direction", "entity", "fit", "fused_optimizer", "gamma", "graph", "group", "head", "held_out", "initialisation", "kind",
    "interpolation", "labels", "meaning", "mode", "model", "name", "negative", "noise", "normalisation", "operations",
    "ordering", "padding", "policy", "pooling", "project",
    "regulariser", "remarks", "run", "prediction", "reduction", "sampler", "schedule", "sigma_data", "spacing", "variance",
    "weighting", "resampling", "residual", "best_by", "sampled_mode", "sampling", "shape", "space", "split", "stop_if",
    "tags", "threads",
    "upsampling",
    "experiment", "tracking_uri",  # a logger is taken from the command line alone
}  # fmt: skip
DIGESTS = {
    ("Classifier", "sha256"), ("FrozenAutoencoder", "sha256"), ("Module", "sha256"), ("Program", "sha256"),
    ("CustomExtractor", "weights_sha256"),
}  # fmt: skip


def constructors() -> Iterator[tuple[str, Any]]:
    """Everything of genimg that a config can name."""
    allowed = (*instantiate.ALLOWED, "genimg.evaluation.extractors.program")
    for info in pkgutil.walk_packages(genimg.__path__, "genimg."):
        if info.name.startswith("genimg.data"):  # images, which Pillow and NumPy read without pickles
            continue
        if any(info.name == prefix or info.name.startswith(f"{prefix}.") for prefix in allowed):
            for name, member in vars(importlib.import_module(info.name)).items():
                own = getattr(member, "__module__", "") == info.name and not name.startswith("_")
                if own and (inspect.isclass(member) or inspect.isfunction(member)):
                    yield name, member


def takes_text(hint: Any) -> bool:
    """Whether a value, or an item of a list, may be text; keys of mappings are names."""
    arguments = typing.get_args(hint)
    parts = (
        arguments[1:]
        if isinstance(typing.get_origin(hint), type) and issubclass(typing.get_origin(hint), Mapping)
        else arguments
    )
    return hint is str or any(takes_text(part) for part in parts)


def test_every_text_parameter_is_a_word_or_marked_as_local() -> None:
    marked = set()
    for name, member in constructors():
        marks = instantiate.local_parameters(member)
        marked |= {(name, parameter) for parameter in marks}
        if not marks and inspect.isclass(member) and not hasattr(member, "__init__"):
            continue
        hints = type_hints(member)
        parameters = inspect.signature(member).parameters if hints else {}
        for parameter, hint in hints.items():
            if parameter not in parameters or not takes_text(hint):
                continue
            if parameter in marks:
                assert parameters[parameter].kind is inspect.Parameter.KEYWORD_ONLY, "positions would pass it by"
                continue
            if inspect.isfunction(member):  # of networks and losses: they open nothing
                continue
            assert parameter in WORDS or (name, parameter) in DIGESTS, (
                f"{name}.{parameter}: if it names a file of weights or code, declare it as genimg.utils.machine_local says"
            )
    assert marked >= {
        ("Inception", "weights"), ("Inception", "sha256"), ("DINOv2", "weights"), ("DINOv2", "sha256"),
        ("CLIP", "weights"), ("CLIP", "sha256"), ("Classifier", "classifier"), ("Module", "weights"),
        ("Program", "program"), ("Evaluator", "cache_dir"), ("LPIPS", "backbone_weights"),
        ("LPIPS", "linear_weights"), ("LPIPSLoss", "backbone_weights"), ("LPIPSLoss", "linear_weights"),
        ("Perceptual", "weights"), ("ClipText", "path"),
    }  # fmt: skip
    marks = instantiate.local_parameters(instantiate.Builder().locate(CLIP["_target_"], ""))
    assert Required not in {mark.instead for mark in marks.values()}
