"""DINOv2 and CLIP: the published tables' preprocessing, any network of that kind, and which files are refused."""

import inspect
import urllib.error

import pytest
import torch
from errors import raises
from torch import nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors import foundation
from genimg.evaluation.extractors.foundation import CLIP, DINOV2_SHA256, DINOv2
from genimg.utils.files import sha256_of

# CLIP is published as TorchScript, which PyTorch is about to leave.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

HUBCONF = """
from torch import nn

dependencies = ["torch"]


def dinov2_vits14(pretrained=True):
    assert not pretrained, "the weights are loaded by genimg"
    return nn.Sequential(nn.Conv2d(3, 8, 14, stride=14), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16 * 16, 6))
"""


def random_images(num_images, channels, size=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _only_what_is_here(tmp_path, monkeypatch):
    """No weights or code from the machine's own caches, and none from the network."""

    def fail(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # which torch-fidelity sets
    monkeypatch.delenv("GENIMG_DINOV2_WEIGHTS", raising=False)
    monkeypatch.delenv("GENIMG_CLIP_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "urlopen", fail)


# DINOv2


@pytest.fixture
def dinov2(tmp_path):
    """A repository with a small network in DINOv2's place, and its weights; their paths and the network."""
    repository, weights = tmp_path / "repository", tmp_path / "weights.pth"
    repository.mkdir()
    (repository / "hubconf.py").write_text(HUBCONF)
    namespace = {}
    exec(HUBCONF, namespace)
    torch.manual_seed(0)
    network = namespace["dinov2_vits14"](pretrained=False)
    torch.save(network.state_dict(), weights)
    return str(repository), str(weights), network.eval()


def build_dinov2(repository, weights, *, model="dinov2_vits14", sha256=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENIMG_DINOV2_REPOSITORY", repository)
        return DINOv2(model=model, weights=weights, sha256=sha256)


@pytest.mark.parametrize("size", [(224, 224), (28, 28), (32, 32), (260, 300)])
def test_dinov2s_features_are_those_of_images_prepared_by_pillow_and_torchvision(dinov2, size):
    """As Stein et al. 2023 prepare them: squeezed to 224x224 by Pillow's bicubic filter, then ImageNet's statistics."""
    repository, weights, network = dinov2
    extractor = build_dinov2(repository, weights)
    images = random_images(3, 3, size=300)[:, :, : size[0], : size[1]].contiguous()
    prepare = Compose([
        Resize((224, 224), InterpolationMode.BICUBIC), ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ])  # fmt: skip
    with torch.no_grad():
        expected = network(torch.stack([prepare(to_pil_image(image)) for image in images]))
    found, logits = extractor(images)
    assert logits is None
    assert not extractor.has_logits
    assert found.shape == (3, 6)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_dinov2_replicates_grey_drops_alpha_and_looks_at_each_image_alone(dinov2):
    repository, weights, _ = dinov2
    extractor = build_dinov2(repository, weights)
    grey, colour = random_images(2, 1), random_images(2, 4)
    found = extractor(torch.cat([grey.expand(-1, 3, -1, -1), colour[:, :3]]))[0]
    torch.testing.assert_close(extractor(grey)[0], found[:2], rtol=0.0, atol=1e-5)
    singly = torch.cat([extractor(image[None])[0] for image in colour])
    torch.testing.assert_close(singly, found[2:], rtol=0.0, atol=1e-5)


def test_dinov2_is_called_so_only_with_the_published_weights(dinov2, monkeypatch):
    repository, weights, _ = dinov2
    digest = sha256_of(weights)
    unknown = build_dinov2(repository, weights)
    assert unknown.metric_name("fd", "5k") == "fd5k_dinov2_vits14_bicubic_unknown"
    monkeypatch.setitem(foundation.DINOV2_SHA256, "dinov2_vits14", digest)
    known = build_dinov2(repository, weights, sha256="published")
    assert known.metric_name("fd", "5k") == "fd5k_dinov2_vits14_bicubic"
    assert known.describe() == {
        "name": "dinov2_vits14_bicubic",
        "weights_sha256": digest,
        "resize": "pil_bicubic_224",
        "channels": "grey replicated to 3, alpha dropped",
    }


@pytest.mark.parametrize("sha256", ["published", "0" * 64])
def test_dinov2_weights_with_another_digest_are_refused(dinov2, sha256):
    repository, weights, _ = dinov2
    wanted = DINOV2_SHA256["dinov2_vits14"] if sha256 == "published" else sha256
    with raises(DataError, f"sha256={wanted}"):
        build_dinov2(repository, weights, sha256=sha256)


def test_an_unknown_dinov2_is_refused_with_the_known_ones(dinov2):
    repository, weights, _ = dinov2
    with raises(ConfigError, "model=dinov2"):
        build_dinov2(repository, weights, model="dinov2")


def test_weights_of_another_network_are_not_taken_for_dinov2(dinov2, tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pth")
    with raises(DataError, word="other.pth"):
        build_dinov2(dinov2[0], str(tmp_path / "other.pth"))


def test_dinov2_without_its_code_says_what_to_give(dinov2, tmp_path):
    (tmp_path / "empty").mkdir()
    with raises(DataError, word="GENIMG_DINOV"):
        build_dinov2(str(tmp_path / "empty"), dinov2[1])


def test_without_the_network_torch_hubs_code_is_asked_for_by_name(dinov2, monkeypatch):
    def fail(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load", fail)
    monkeypatch.delenv("GENIMG_DINOV2_REPOSITORY", raising=False)
    with raises(DataError, word="facebookresearch"):
        DINOv2(model="dinov2_vits14", weights=dinov2[1], sha256=None)


def test_a_repository_that_lacks_the_model_is_refused(dinov2):
    with raises(DataError, word="vitb"):
        build_dinov2(dinov2[0], dinov2[1], model="dinov2_vitb14")


def test_no_config_can_name_code_to_run():
    """A config may come out of a downloaded checkpoint."""
    assert set(inspect.signature(DINOv2).parameters) == {"model", "weights", "sha256", "may_download"}


def test_dinov2_weights_that_cannot_be_had_name_their_file_and_the_ways_out(dinov2, tmp_path):
    with pytest.raises(DataError) as caught:
        build_dinov2(dinov2[0], None, sha256="published")
    message = str(caught.value)
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth") in message
    for words in ("no network", "weights=PATH", "GENIMG_DINOV2_WEIGHTS=PATH"):
        assert words in message


# CLIP


class Holder(nn.Module):
    """Another module's parameters under their names, without its code, which TorchScript may not take."""

    def __init__(self, module):
        super().__init__()
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in module.named_children():
            self.add_module(name, Holder(child))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A file as OpenAI's of a tiny CLIP (2 layers of width 64, patches of 16 in images of 32 pixels); its path and network."""
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    torch.manual_seed(0)
    network = CLIPVisual(embed_dim=16, image_resolution=32, vision_layers=2, vision_width=64, vision_patch_size=16)
    network.register_parameter("text_projection", nn.Parameter(torch.zeros(8, 16)))  # from which the embedding's size is read
    for parameter in network.parameters():
        parameter.data = parameter.half().float()  # torch-fidelity keeps the linear layers' weights in half precision
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.jit.script(Holder(network)).save(str(path))
    return str(path), network.visual.eval()


def build_clip(weights, *, model="clip-vit-b-32", sha256=None):
    return CLIP(model=model, weights=weights, sha256=sha256)


def test_clips_features_are_those_of_its_network_for_normalised_images(clip):
    path, network = clip
    images = random_images(3, 3, size=32)  # the network's own size
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # of openai/CLIP
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        expected = network((images / 255.0 - mean) / deviation)
    found, logits = build_clip(path)(images)
    assert logits is None
    assert found.shape == (3, 16)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 20), (45, 45), (45, 61), (20, 33)])
def test_clips_features_are_those_of_images_prepared_as_by_openai(clip, size):
    path, network = clip
    images = random_images(2, 3, size=61)[:, :, : size[0], : size[1]].contiguous()
    prepare = Compose([
        Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(),
        Normalize([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    ])  # fmt: skip
    with torch.no_grad():
        expected = network(torch.stack([prepare(to_pil_image(image)) for image in images]))
    torch.testing.assert_close(build_clip(path)(images)[0], expected, rtol=0.0, atol=1e-5)


def test_clip_replicates_grey_drops_alpha_and_looks_at_each_image_alone(clip):
    extractor = build_clip(clip[0])
    grey, colour = random_images(2, 1), random_images(2, 4)
    found = extractor(torch.cat([grey.expand(-1, 3, -1, -1), colour[:, :3]]))[0]
    torch.testing.assert_close(extractor(grey)[0], found[:2], rtol=0.0, atol=1e-5)
    singly = torch.cat([extractor(image[None])[0] for image in colour])
    torch.testing.assert_close(singly, found[2:], rtol=0.0, atol=1e-5)


def test_clip_is_called_so_only_with_the_published_weights(clip, monkeypatch):
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA

    path, _ = clip
    assert build_clip(path).metric_name("fd", "5k") == "fd5k_clip_vit_b_32_bicubic_unknown"
    monkeypatch.setitem(MODEL_METADATA, "clip-vit-b-32", {"hash": sha256_of(path), "filename": "ViT-B-32"})
    known = build_clip(path, sha256="published")
    assert known.metric_name("fd", "5k") == "fd5k_clip_vit_b_32_bicubic"
    assert known.describe() == {
        "name": "clip_vit_b_32_bicubic",
        "weights_sha256": sha256_of(path),
        "resize": "pil_bicubic_32_center_crop",
        "channels": "grey replicated to 3, alpha dropped",
    }


@pytest.mark.parametrize("sha256", ["published", "0" * 64])
def test_clip_weights_with_another_digest_are_refused(clip, sha256):
    with raises(DataError, "sha256", word="tiny.pt"):
        build_clip(clip[0], sha256=sha256)


def test_an_unknown_clip_is_refused_with_the_known_ones(clip):
    with raises(ConfigError, "model=clip"):
        build_clip(clip[0], model="clip")


def test_a_file_of_something_else_is_not_taken_for_clip(tmp_path, write_something_else):
    write_something_else(tmp_path / "other.pt")
    with raises(DataError, word="clip-vit-b"):
        build_clip(str(tmp_path / "other.pt"))


def test_clip_weights_that_cannot_be_had_name_their_file_and_the_ways_out(tmp_path):
    with pytest.raises(DataError) as caught:
        build_clip(None, sha256="published")
    message = str(caught.value)
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "clip-vit-b-32-") in message
    for words in ("no network", "weights=PATH", "GENIMG_CLIP_WEIGHTS=PATH"):
        assert words in message
