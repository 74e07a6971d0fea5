"""Which extractor genimg-eval uses if none is chosen."""

from __future__ import annotations

from pathlib import Path

import efficientnet
import numpy as np
import pytest
from PIL import Image

from genimg.api.evaluate import measure
from genimg.config.compose import compose
from genimg.errors import UserError
from genimg.evaluation.result import Evaluation

DEFAULT = "evaluation=inception downloads"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve photos, on a machine without Inception's weights but with the package of EfficientNet-Lite0."""
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENIMG_INCEPTION_WEIGHTS", raising=False)

    def no_network(*arguments: object, **keywords: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    efficientnet.install(tmp_path / "package", monkeypatch, efficientnet.random_state())
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.effect_noise((16, 16), 40 + i).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    return str(tmp_path / "photos")


def measured(*arguments: str) -> Evaluation | None:
    return measure(compose([*arguments, "device=cpu"], "eval"))


def test_packaged_weights_are_used_while_inceptions_are_not_here(photos, caplog):
    result = measured(f"images={photos}", f"real={photos}")
    assert result is not None
    assert next(iter(result.values)) == "fd12_efficientnet_lite0"
    assert DEFAULT in caplog.text
    for more in ("inception_weights=nowhere.pth", "++evaluation.extractor.weights=nowhere.pth"):
        with pytest.raises(UserError, match=r"nowhere\.pth"):  # the user chose Inception
            measured(f"images={photos}", f"real={photos}", more)


def test_single_keys_change_the_default_one(photos):
    result = measured(f"images={photos}", f"real={photos}", "+evaluation.metrics.inception_score=null")
    assert result is not None
    assert "fd12_efficientnet_lite0" in result.values
    assert "is12_efficientnet_lite0" not in result.values
    spatial = "+evaluation.metrics.sfid._target_=genimg.evaluation.metrics.SpatialFrechetDistance"
    with pytest.raises(UserError, match="Inception"):  # a metric that only Inception can compute
        measured(f"images={photos}", f"real={photos}", spatial)


class Present:
    """Twelve images in the place of torchvision's CIFAR-100."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        self.data = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        self.targets = list(range(12))
        self.classes = [f"class {i}" for i in range(12)]


def test_a_named_dataset_has_the_same_default(photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Present)
    (tmp_path / "data").mkdir()
    result = measured(f"images={photos}", "real=cifar100", f"data_root={tmp_path / 'data'}")
    assert result is not None
    assert "fd12_efficientnet_lite0" in result.values
    assert DEFAULT in caplog.text


@pytest.mark.parametrize(
    ("option", "name"), [("efficientnet_lite", "efficientnet_lite0"), ("cifar10_classifier", "cifar10_v2")]
)
def test_saved_statistics_have_the_extractor_that_made_them(photos, tmp_path, caplog, option, name):
    statistics = tmp_path / "statistics.pt"
    measured(f"real={photos}", f"save_statistics={statistics}", f"evaluation={option}")
    result = measured(f"images={photos}", f"real={statistics}")
    assert result is not None
    assert next(iter(result.values)) == f"fd12_{name}"
    assert DEFAULT not in caplog.text


def test_statistics_of_an_unrecorded_extractor_are_inceptions(photos, tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="Inception"):  # whose weights are missing here
        measured(f"images={photos}", f"real={tmp_path / 'other.npz'}", "accept_unrecorded=true")
