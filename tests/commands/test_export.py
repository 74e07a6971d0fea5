"""genimg-export: the files, run where there is no genimg, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from fork_server import run_command, run_commands
from hydra import compose, initialize_config_dir
from PIL import Image

import genimg
from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands import export as command
from genimg.commands.export import export
from genimg.commands.sample import sample
from genimg.errors import CheckpointError, ConfigError, UserError
from genimg.exporting import writing
from genimg.exporting.formats import FORMATS
from genimg.exporting.rebuilding import rebuilt
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates
from genimg.utils.images import to_uint8
from genimg.utils.paths import config_dir

OLDER = b'older, with "genimg_version"'  # as genimg-export left it
SMALL = ["data=shapes", "data.num_images=16", "data.image_size=16", "trainer.batch_size=8", "trainer.duration=2 steps",
         "trainer.preview_images=4", "evaluation=none", "device=cpu"]  # fmt: skip
RUNS = {
    "labels": [
        *SMALL,
        "model=dcgan_small",
        "model.generator.width=4",
        "conditioning=projection",
        "model.standing_stats_batches=2",
    ],
    "styles": [*SMALL, "model=stylegan2_small", *tiny.SIZES["stylegan2_small"]],
    "vae": [*SMALL, "model=vae_small", *tiny.AUTOENCODERS["vae_small"]],
    "rae": [*SMALL, "model=rae", *tiny.AUTOENCODERS["rae"]],
    "restoration": [*SMALL, "model=restoration", *tiny.TRANSLATORS["restoration"]],
}
WITHOUT_GENIMG = """
import sys
sys.path.insert(0, sys.argv[1])
try:
    import genimg
    sys.exit("genimg is here")
except ModuleNotFoundError:
    pass
import numpy as np, torch
folder, *names = sys.argv[2:]
for name in names:
    given = dict(np.load(f"{folder}/{name}_inputs.npz"))
    record = {"genimg.json": ""}
    module = torch.export.load(f"{folder}/{name}.pt2", extra_files=record).module()
    found = {"pt2": module(*(torch.from_numpy(each) for each in given.values())).numpy(), "record": record["genimg.json"]}
    try:
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx")
        found["onnx"] = session.run(None, given)[0]
        found["properties"] = repr(session.get_modelmeta().custom_metadata_map)
    except ImportError:
        pass
    np.savez(f"{folder}/{name}_found.npz", **found)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of models that have hardly been trained."""
    root = tmp_path_factory.mktemp("runs")
    lines = [["train", *arguments, f"run_dir={root / name}"] for name, arguments in RUNS.items()]
    codes, output = run_commands(lines)
    assert codes == [0] * len(lines), output
    return root


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed but genimg."""
    folder = tmp_path_factory.mktemp("packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "genimg" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_export(*overrides: str) -> None:
    """In this process."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("export", overrides=["device=cpu", *overrides])
    export(composed)


def loaded(run: Path) -> Method:
    method = TrainedCheckpoint.open(run).method(torch.device("cpu"))
    if isinstance(method, Generates):
        method.before_sampling()
    return method


def with_onnx() -> bool:
    """Whether what format=onnx needs is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


# Without genimg


def test_programs_run_without_genimg_and_make_the_images_of_genimg_sample(runs: Path, packages: Path, tmp_path: Path) -> None:
    names, expected = ("labels", "vae", "restoration"), {}
    kinds = ["pt2", "onnx"] if with_onnx() else ["pt2"]
    for name in names:
        for kind in kinds:
            run_export(f"ckpt={runs / name}", f"format={kind}", f"output={tmp_path / name}.{kind}")
        method = loaded(runs / name)
        if name == "restoration":
            given = {"image": torch.rand(2, 3, 20, 28) * 2 - 1}
            expected[name] = method.translate(given["image"]).clamp(-1, 1)
        else:
            given = method.draw(range(4), 3)
            expected[name] = method.sample(given).clamp(-1, 1)
        np.savez(tmp_path / f"{name}_inputs.npz", **{key: value.numpy() for key, value in given.items()})
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WITHOUT_GENIMG, str(packages), str(tmp_path), *names],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for name in names:
        with np.load(tmp_path / f"{name}_found.npz") as found:
            for kind in kinds:
                assert np.abs(found[kind] - expected[name].numpy()).max() <= 1e-4
            record = json.loads(str(found["record"]))
            assert record["output"]["shape"][1:] == ([3, "height", "width"] if name == "restoration" else [3, 16, 16])
            with np.load(tmp_path / f"{name}_inputs.npz") as given_arrays:
                assert [entry["name"] for entry in record["inputs"]] == given_arrays.files
            assert record["classes"] == (["circle", "square", "triangle", "cross", "ring"] if name == "labels" else [])
            if "onnx" in kinds:
                assert record["checkpoint_sha256"] in str(found["properties"])
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        overrides = [f"ckpt={runs / 'labels'}", "num_images=4", "seed=3", "device=cpu", f"output={tmp_path / 'images'}"]
        sample(compose("sample", overrides=overrides))
    with np.load(tmp_path / "labels_found.npz") as found:
        for i, made in enumerate(to_uint8(torch.from_numpy(found["pt2"])).permute(0, 2, 3, 1).numpy().astype(int)):
            assert np.abs(np.asarray(Image.open(tmp_path / "images" / f"{i:06d}.png")).astype(int) - made).max() <= 1


# What is written


def test_through_the_command_line_a_file_lies_in_the_run_directory(runs: Path) -> None:
    arguments = [f"ckpt={runs / 'styles'}", "truncation=0.5", "device=cpu"]
    result = run_command("export", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    file = runs / "styles" / "generator-truncation0.5.pt2"
    lines = result.stdout.splitlines()
    assert lines[0] == f"from {runs / 'styles' / 'checkpoints' / 'last.pt'}, trained on 16 images"
    size = f"{file.stat().st_size / 1e6:.2f}"
    assert lines[1] == f"generator of a GAN, averaged weights (ema), a program for PyTorch: {file} ({size} MB)"
    assert lines[2] == "  takes  latent: float32 [batch, 16], standard normal numbers"
    assert lines[3] == "  makes  image: float32 [batch, 3, 16, 16], in [-1, 1]"
    assert lines[4] == "  the per-pixel noise is fixed and the same for all images"
    assert lines[5].startswith("largest difference from the checkpoint, PyTorch on cpu, batches of 1, 3 and 8: ")
    assert float(lines[5].rpartition(" ")[2]) < 1e-4
    snippet = "\n".join(line.strip() for line in lines[7:])
    found: dict[str, Any] = {}
    exec(snippet, found)
    assert found["image"].shape == (16, 3, 16, 16)
    extra = {"genimg.json": ""}
    torch.export.load(file, extra_files=extra)
    record = json.loads(extra["genimg.json"])
    digest = hashlib.sha256((runs / "styles" / "checkpoints" / "last.pt").read_bytes()).hexdigest()
    expected = {"model": "genimg.methods.gan.GAN", "network": "genimg.networks.stylegan2.Generator", "weights": "ema",
                "truncation": 0.5, "checkpoint": "last.pt", "checkpoint_sha256": digest, "images": 16,
                "genimg_version": genimg.__version__, "torch_version": str(torch.__version__)}  # fmt: skip
    assert record | expected == record
    assert record["inputs"][0]["values"] == "standard normal numbers"
    assert not any(path.suffix == ".tmp" for path in runs.rglob("*"))


def test_an_onnx_file_says_the_same_and_replaces_an_older_one(runs: Path, tmp_path: Path, caplog: Any) -> None:
    onnx = pytest.importorskip("onnx", reason="the packages of genimg[export] are not installed")
    pytest.importorskip("onnxruntime", reason="the packages of genimg[export] are not installed")
    output = tmp_path / "deep" / "made.onnx"
    output.parent.mkdir()
    output.write_bytes(OLDER)
    with caplog.at_level("INFO"):
        run_export(f"ckpt={runs / 'restoration'}", "format=onnx", f"output={output}")
    model = onnx.load(str(output))
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    shape = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, shape) == ("image", ["batch", 3, "height", "width"])
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["opset"] == "18"
    assert properties["network"] == "genimg.networks.resnet_translator.Translator"
    assert json.loads(properties["output"])["name"] == "translated"
    text = caplog.text
    assert "height and width multiples of" in text or "height and width 8 or more" in text
    found: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in caplog.messages[-1].splitlines()[1:]), found)
    assert found["translated"].shape == (16, 3, 16, 16)
    assert [path.name for path in output.parent.iterdir()] == ["made.onnx"]


@pytest.mark.parametrize("name", ["labels", "rae", "restoration"])
def test_weights_become_the_network_again(name: str, runs: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="the packages of genimg[export] are not installed")
    file = tmp_path / "made.safetensors"
    run_export(f"ckpt={runs / name}", "format=safetensors", f"output={file}")
    network, method = rebuilt(file), loaded(runs / name)
    assert not network.training
    with safetensors.safe_open(str(file), framework="pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    assert json.loads(metadata["config"])["model"]["_target_"].startswith("genimg.methods.")
    if name == "labels":
        drawn = method.draw(range(3), 5)
        assert (network(*drawn.values()) - method.sample(drawn)).abs().max() <= 1e-4
        assert {each.partition(".")[0] for each in names} == {"generator"}
    elif name == "rae":
        assert {each.partition(".")[0] for each in names} == {"decoder", "density"}
        placed = method.density.from_normal(torch.ones(2, 4), torch.tensor([0.1, 0.9]))  # type: ignore[operator, union-attr]
        found = network(torch.ones(2, 4), torch.tensor([0.1, 0.9]))
        assert (found - method.sample({"latent": placed}).clamp(-1, 1)).abs().max() <= 1e-4
    else:
        image = torch.rand(1, 3, 12, 16) * 2 - 1
        assert (network(image) - method.translate(image).clamp(-1, 1)).abs().max() <= 1e-4
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        file.write_bytes(content)
        with raises(CheckpointError, word="complete"):
            rebuilt(file)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(file))
    with raises(CheckpointError, word="genimg-export"):
        rebuilt(file)
    with raises(CheckpointError, word="exist"):
        rebuilt(tmp_path / "nothing.safetensors")


# What is refused


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["format=onnx", "output=made.pt2"], "output=made.pt2"),
        (["output=made"], "output=made"),
        (["truncation=-1"], "truncation=-1"),
        (["+weights=ema"], "weights"),
        (["+directon=a2b"], "directon"),
        (["direction=a2b"], "direction=a2b"),
    ],
)
def test_a_wrong_value_is_refused(overrides: list[str], setting: str, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    with raises(ConfigError, setting):
        run_export(f"ckpt={runs / 'vae'}", *overrides)
    assert sorted(runs.rglob("*")) == before


def test_a_directory_is_no_output(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "made.pt2").mkdir()
    with raises(ConfigError, "output", word="directory"):
        run_export(f"ckpt={runs / 'vae'}", f"output={tmp_path / 'made.pt2'}")


def test_a_missing_package_is_named_with_the_extra(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, missing in (("onnx", "onnxscript"), ("safetensors", "safetensors")):
        with monkeypatch.context() as patch:
            for package in FORMATS[kind].packages:
                patch.setitem(sys.modules, package, None if package == missing else json)  # type: ignore[arg-type]
            with raises(ConfigError, f"format={kind}"):
                run_export(f"ckpt={runs / 'vae'}", f"format={kind}")


def test_a_file_that_fails_the_check_is_not_left(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "made.pt2"
    output.write_bytes(OLDER)
    right = writing.open_pt2
    monkeypatch.setattr(writing, "open_pt2", lambda *of: lambda *inputs: right(*of)(*inputs) + 0.01)
    with raises(UserError, word="exported"):
        run_export(f"ckpt={runs / 'vae'}", f"output={output}")
    assert [path.name for path in tmp_path.iterdir()] == ["made.pt2"]
    assert output.read_bytes() == OLDER


def test_a_file_of_another_program_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "made.pt2").write_bytes(b"weights")
    with raises(ConfigError, "output", word="genimg-export"):
        run_export(f"ckpt={runs / 'vae'}", f"output={tmp_path / 'made.pt2'}")
    assert (tmp_path / "made.pt2").read_bytes() == b"weights"


def test_an_operator_without_onnx_form_is_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="the packages of genimg[export] are not installed")
    right = command.exportable

    def with_cummax(*of: Any) -> Any:
        part = right(*of)
        part.network.register_forward_hook(lambda module, given, made: made.cummax(dim=2).values)
        return part

    monkeypatch.setattr(command, "exportable", with_cummax)
    with raises(ConfigError, "format=onnx"):
        run_export(f"ckpt={runs / 'vae'}", "format=onnx", f"output={tmp_path / 'made.onnx'}")
    assert list(tmp_path.iterdir()) == []
