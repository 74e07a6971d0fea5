"""Which extractor genimg-eval uses for two folders if none is chosen."""

from __future__ import annotations

from pathlib import Path

import efficientnet
import pytest
from PIL import Image

from genimg.api.evaluate import measure
from genimg.config.compose import compose
from genimg.errors import UserError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS", raising=False)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.effect_noise((16, 16), 40 + i).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    return str(tmp_path / "photos")


def test_packaged_weights_are_used_while_inceptions_are_not_here(photos, tmp_path, monkeypatch, caplog):
    efficientnet.install(tmp_path / "package", monkeypatch, efficientnet.random_state())
    arguments = [f"images={photos}", f"real={photos}", "device=cpu"]
    result = measure(compose(arguments, "eval"))
    assert result is not None
    assert next(iter(result.values)) == "fd12_efficientnet_lite0"
    assert "evaluation=inception downloads" in caplog.text
    for more in ("inception_weights=nowhere.pth", "++evaluation.extractor.weights=nowhere.pth"):
        with pytest.raises(UserError, match=r"nowhere\.pth"):  # the user chose Inception
            measure(compose([*arguments, more], "eval"))
