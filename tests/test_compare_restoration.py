"""scripts/compare_restoration.py measures runs and the classical method on the same images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny
from command_table import succeed
from errors import raises

from genimg.errors import ConfigError

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_restoration.py"
COMMON = [
    "data=shapes", "data.image_size=16", "data.num_images=32", "data.validation=0.25", "trainer.batch_size=4",
    "trainer.duration=2 steps", "evaluation=none", "device=cpu", "precision=fp32", "trainer.preview_images=2",
]  # fmt: skip
DIFFUSION = ["model=diffusion_translation_small", *tiny.DIFFUSION]
UNET = ["model=restoration_unet", "model.translator.width=4"]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_restoration", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_restoration"] = module
    spec.loader.exec_module(module)
    return module


def test_a_table_has_the_runs_and_the_classical_method(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    runs = {
        "palette": [*DIFFUSION, "task=inpaint"], "unet": [*UNET, "task=inpaint"],
        "bicubic": [*UNET, "task=super_resolution"],
    }  # fmt: skip
    succeed([["train", *COMMON, *arguments, f"run_dir={name}"] for name, arguments in runs.items()], tmp_path)
    monkeypatch.chdir(tmp_path)
    common = ["--evaluation", "translation", "--num-images", "8"]
    script.main(["palette", "unet", *common, "--output", "table.md", "--sampling", "steps=2", "sampler=euler"])
    table = Path("table.md").read_text()
    assert table in capsys.readouterr().out
    heading, _, palette, unet, classical = (line.split(" | ") for line in table.splitlines())
    assert {"psnr", "psnr_hole", "diversity_l1_hole"} <= {each.strip(" |") for each in heading}
    assert palette[0].startswith("| palette, ")
    assert palette[0].endswith("8 images, 2 network evaluations")
    assert unet[0].endswith("1 network evaluation")
    assert classical[0] == "| biharmonic, without training"
    assert float(classical[1]) > float(unet[1])
    script.main(["bicubic", *common])
    assert "bicubic, without training" in capsys.readouterr().out
    with raises(ConfigError, word="bicubic"):
        script.main(["unet", "bicubic", *common])
