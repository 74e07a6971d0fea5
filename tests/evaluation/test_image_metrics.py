"""PSNR against its formula, SSIM and MS-SSIM against scipy's filters and scikit-image, LPIPS against its equation."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import raises
from scipy.ndimage import correlate1d
from torch import nn
from torchvision.models import alexnet, vgg16

from genimg.errors import ConfigError, DataError
from genimg.evaluation.image_metrics import LPIPS, l1, ms_ssim, ms_ssim_scales, psnr, psnr_luma, ssim, ssim_luma
from genimg.losses.perceptual import LPIPSLoss


def noisy_pair(shape, deviation=20.0, seed=0):
    """Smooth uint8 images and the same with noise."""
    rng = np.random.default_rng(seed)
    num_images, channels, height, width = shape
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0.0, 6.0, (num_images, channels, 1, 1))
    original = 128.0 + 90.0 * np.sin(x / 3.0 + phases) * np.cos(y / 4.0 + phases)
    reconstruction = original + rng.normal(0.0, deviation, shape)
    return tuple(torch.from_numpy(np.clip(values.round(), 0, 255).astype(np.uint8)) for values in (original, reconstruction))


def test_luma_of_primaries_is_matlabs():
    """Documented values of rgb2ycbcr: 16 of black, 235 of white, and the three weights."""
    colours = {(0, 0, 0): 16.0, (255, 255, 255): 235.0, (255, 0, 0): 81.481, (0, 255, 0): 144.553, (0, 0, 255): 40.966}
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for colour, luma in colours.items():
        image = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
        expected = 100.0 if luma == 16.0 else 20 * math.log10(255 / (luma - 16))
        assert psnr_luma(black, image, 0).item() == pytest.approx(expected, abs=1e-4)


def test_the_border_of_the_luma_does_not_count():
    image, other = torch.zeros(2, 1, 1, 16, 20, dtype=torch.uint8)
    other[..., 2:-2, 2:-2] = 10
    changed = other.clone()
    changed[..., :2, :], changed[..., -2:, :], changed[..., :2], changed[..., -2:] = 255, 255, 255, 255
    assert psnr_luma(image, changed, 2).item() == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert ssim_luma(image, changed, 2).item() == pytest.approx(ssim_luma(image, other, 2).item(), abs=1e-6)
    assert psnr_luma(image, changed, 1).item() < 20


@pytest.mark.parametrize("measure", [psnr, l1])
def test_only_the_requested_pixels_count(measure):
    original, reconstruction = (torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8) for _ in range(2))
    where = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    where[:, :, 2:5, 1:7] = True
    expected = measure(original[:, :, 2:5, 1:7], reconstruction[:, :, 2:5, 1:7])
    assert torch.allclose(measure(original, reconstruction, where), expected)
    nowhere = torch.zeros_like(where)
    assert measure(original, reconstruction, nowhere).isnan().all()


def similarity_of_scipy(x, y):
    """Wang et al. 2004, equation 6 and the product of 9 and 10, over the windows that lie in a channel [H, W]."""
    half = (min(11, *x.shape) - 1) // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / 1.5) ** 2)
    weights /= weights.sum()

    def blurred(values):
        rows = correlate1d(values, weights, axis=0, mode="constant")
        whole = correlate1d(rows, weights, axis=1, mode="constant")
        return whole[half : values.shape[0] - half, half : values.shape[1] - half]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred((x - x.mean()) ** 2) - (mean_x - x.mean()) ** 2, blurred(y**2) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_x + variance_y + c2)


def ssim_of_scipy(original, reconstruction):
    """Wang et al. 2004, equations 13 to 16, of one image [C, H, W]."""
    pairs = zip(original.astype(np.float64), reconstruction.astype(np.float64), strict=True)
    return np.mean([np.prod(similarity_of_scipy(x, y), axis=0).mean() for x, y in pairs])


def ms_ssim_of_scipy(original, reconstruction):
    """Wang et al. 2003, equation 7, of one image [C, H, W]."""
    exponents = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]

    def halved(values):
        """Means of 2x2, and at a border of odd length of the pixels that there are."""
        rows = [values[i : i + 2].mean(axis=0) for i in range(0, values.shape[0], 2)]
        return np.stack([np.stack(rows)[:, i : i + 2].mean(axis=1) for i in range(0, values.shape[1], 2)], axis=1)

    channels = []
    for x, y in zip(original.astype(np.float64), reconstruction.astype(np.float64), strict=True):
        product = 1.0
        for exponent in exponents[:-1]:
            product *= similarity_of_scipy(x, y)[1].mean() ** exponent
            x, y = halved(x), halved(y)
        luminance, structure = similarity_of_scipy(x, y)
        channels.append(product * (luminance * structure).mean() ** exponents[-1])
    return np.mean(channels)


SHAPES = [(3, 1, 32, 32), (2, 3, 32, 32), (2, 3, 20, 45), (2, 1, 11, 11), (2, 1, 12, 12), (3, 3, 8, 8), (2, 1, 5, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_psnr_is_that_of_its_formula(shape):
    original, reconstruction = noisy_pair(shape)
    found = psnr(original, reconstruction)
    assert found.shape == (shape[0],)
    for value, x, y in zip(found.tolist(), original.numpy(), reconstruction.numpy(), strict=True):
        error = ((x.astype(np.float64) - y.astype(np.float64)) ** 2).mean()
        assert value == pytest.approx(10.0 * math.log10(255**2 / error), rel=1e-6)


def test_psnr_of_black_against_white_is_zero():
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert psnr(black, black + 255).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_psnr_of_one_step_everywhere_is_that_of_the_peak():
    grey = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    assert psnr(grey, grey + 1).item() == pytest.approx(20.0 * math.log10(255.0), rel=1e-6)
    assert psnr(grey, grey - 1).item() == pytest.approx(20.0 * math.log10(255.0), rel=1e-6)  # not 255^2 by uint8's wrapping


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ssim_is_that_of_scipys_filters(shape):
    original, reconstruction = noisy_pair(shape)
    found = ssim(original, reconstruction)
    assert found.shape == (shape[0],)
    for value, x, y in zip(found.tolist(), original.numpy(), reconstruction.numpy(), strict=True):
        assert value == pytest.approx(ssim_of_scipy(x, y), abs=2e-5)  # float32: variances are differences of squares
        assert 0.1 < value < 0.95


def test_ssim_of_flat_images_is_that_of_their_brightness():
    dark, bright = torch.full((1, 1, 16, 16), 50, dtype=torch.uint8), torch.full((1, 1, 16, 16), 100, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright).item() == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1), rel=1e-4)


def test_ssim_of_a_negative_is_below_zero():
    original, _ = noisy_pair((1, 1, 32, 32))
    assert ssim(original, 255 - original).item() < -0.5


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 1)], ids=str)
def test_identical_images_have_100_decibels_and_a_similarity_of_one(shape):
    original, _ = noisy_pair(shape)
    assert psnr(original, original.clone()).tolist() == [100.0] * shape[0]
    assert ssim(original, original.clone()).tolist() == pytest.approx([1.0] * shape[0], abs=1e-6)


def test_each_image_is_judged_by_itself():
    original, reconstruction = noisy_pair((3, 3, 16, 16))
    reconstruction[1] = original[1]
    for measure, best in ((psnr, 100.0), (ssim, 1.0)):
        together = measure(original, reconstruction).tolist()
        alone = [measure(original[i : i + 1], reconstruction[i : i + 1]).item() for i in range(3)]
        assert together == pytest.approx(alone, rel=1e-5)
        assert together[1] == pytest.approx(best)
        assert max(together[0], together[2]) < 0.9 * best


def test_more_noise_is_worse_on_both_scales():
    for measure in (psnr, ssim):
        values = [measure(*noisy_pair((1, 3, 32, 32), deviation)).item() for deviation in (2.0, 10.0, 40.0)]
        assert values == sorted(values, reverse=True)
        assert values[0] > 1.2 * values[2]


def test_l1_is_the_mean_difference_over_the_range():
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert l1(black, black + 255).tolist() == [1.0]
    assert l1(black + 7, black + 2).item() == l1(black + 2, black + 7).item() == pytest.approx(5 / 255)
    original, reconstruction = noisy_pair((3, 3, 20, 45))
    expected = np.abs(original.numpy().astype(int) - reconstruction.numpy().astype(int)).mean(axis=(1, 2, 3)) / 255
    assert l1(original, reconstruction).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("measure", [l1, psnr, ssim])
def test_images_that_do_not_belong_together_are_not_broadcast(measure):
    grey, colour = torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for other in (colour, grey[:1], grey.float()):
        with pytest.raises(AssertionError):
            measure(grey, other)


SKIMAGE_SHAPES = [(2, 1, 32, 32), (2, 3, 32, 32), (2, 3, 20, 45), (2, 1, 48, 17), (1, 3, 11, 11)]


def pairs_for_skimage(kind, shape):
    """Smooth images with noise; unrelated noise; flat bright images but for a few pixels, the worst case of float32."""
    if kind == "smooth":
        return noisy_pair(shape)
    rng = np.random.default_rng(1)
    if kind == "random":
        return tuple(torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(2))
    pair = [np.full(shape, 254, dtype=np.uint8) for _ in range(2)]
    for image in pair:
        image[rng.random(shape) < 0.01] = 250
    return tuple(map(torch.from_numpy, pair))


@pytest.mark.parametrize("kind", ["smooth", "random", "bright"])
@pytest.mark.parametrize("shape", SKIMAGE_SHAPES, ids=str)
def test_psnr_and_ssim_are_those_of_scikit_image(kind, shape):
    metrics = pytest.importorskip("skimage.metrics", reason="the optional package scikit-image is not installed")
    original, reconstruction = pairs_for_skimage(kind, shape)
    ratios, similarities = psnr(original, reconstruction).tolist(), ssim(original, reconstruction).tolist()
    for i, (x, y) in enumerate(zip(original.numpy(), reconstruction.numpy(), strict=True)):
        ratio = metrics.peak_signal_noise_ratio(x, y, data_range=255)
        similarity = metrics.structural_similarity(
            x.astype(np.float64), y.astype(np.float64), data_range=255, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert ratios[i] == pytest.approx(ratio, abs=1e-4)
        assert similarities[i] == pytest.approx(similarity, abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 176, 192), (2, 1, 161, 161), (1, 3, 163, 170)], ids=str)
def test_ms_ssim_is_that_of_scipys_filters(shape):
    original, reconstruction = noisy_pair(shape)
    found = ms_ssim(original, reconstruction)
    assert found.shape == (shape[0],)
    for value, x, y in zip(found.tolist(), original.numpy(), reconstruction.numpy(), strict=True):
        assert value == pytest.approx(ms_ssim_of_scipy(x, y), abs=2e-5)
        assert 0.1 < value < 0.99
    assert ms_ssim(original, original).tolist() == pytest.approx([1.0] * shape[0], abs=1e-6)


def test_ms_ssim_of_a_negative_is_zero_and_not_nan():
    original, _ = noisy_pair((1, 1, 161, 161))
    assert ms_ssim(original, 255 - original).tolist() == [0.0]


def test_ms_ssim_needs_five_scales():
    assert [ms_ssim_scales(size, 1000) for size in (10, 11, 20, 21, 41, 81, 160, 161, 400)] == [0, 1, 1, 2, 3, 4, 4, 5, 5]
    assert ms_ssim_scales(1000, 160) == 4
    small = torch.zeros(1, 1, 160, 200, dtype=torch.uint8)
    with raises(ValueError, word="pixels"):
        ms_ssim(small, small)


LAST_LAYERS = {"alex": (alexnet, [1, 4, 7, 9, 11]), "vgg": (vgg16, [3, 8, 15, 22, 29])}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def random_lpips(request, tmp_path_factory):
    """Its backbone's name, torchvision's layers, the linear weights [C] of each stage, and the paths of both files."""
    build, last_layers = LAST_LAYERS[request.param]
    with torch.device("meta"):
        features = build().features
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in features.state_dict().items():  # He et al. 2015, so that the last stage is not about 0
        deviation = (2.0 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        state[key] = torch.randn(value.shape, generator=generator) * deviation
    features.load_state_dict(state, assign=True)
    linear = [torch.rand(features[last - 1].out_channels, generator=generator) for last in last_layers]
    root = tmp_path_factory.mktemp(request.param)
    # As in torchvision's file, there is a classifier too.
    whole = {f"features.{key}": value for key, value in state.items()} | {"classifier.1.bias": torch.zeros(3)}
    torch.save(whole, root / "backbone.pth")
    torch.save({f"lin{i}.model.1.weight": row[None, :, None, None] for i, row in enumerate(linear)}, root / "linear.pth")
    return request.param, features, linear, str(root / "backbone.pth"), str(root / "linear.pth")


def lpips_by_hand(features, last_layers, linear, reference, image):
    """Zhang et al. 2018, equation 1, of uint8 images [N, 3, H, W], pixel by pixel."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    stages = []
    for images in (reference, image):
        values = images.double() / 255.0 * 2.0 - 1.0
        values = (values.permute(0, 2, 3, 1) - shift) / scale
        values, found = values.permute(0, 3, 1, 2), []
        for number, layer in enumerate(features[: last_layers[-1] + 1]):
            values = layer(values)
            if number in last_layers:
                found.append(values.permute(0, 2, 3, 1).clone().numpy())  # [N, H, W, C]
        stages.append(found)
    distance = 0.0
    for x, y, weights in zip(*stages, linear, strict=True):
        x, y = (side / (np.sqrt((side**2).sum(axis=-1, keepdims=True)) + 1e-10) for side in (x, y))
        distance = distance + (weights.numpy() * (x - y) ** 2).sum(axis=-1).mean(axis=(1, 2))
    return distance


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 33, 50)], ids=str)
def test_lpips_is_that_of_its_equation(random_lpips, shape):
    backbone, features, linear, *paths = random_lpips
    original, reconstruction = noisy_pair(shape)
    lpips = LPIPS(backbone=backbone, backbone_weights=paths[0], linear_weights=paths[1])
    found = lpips(original, reconstruction)
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    double = nn.Sequential(*features).double()
    with torch.no_grad():
        coloured = [side.repeat(1, 3 // shape[1], 1, 1) for side in (original, reconstruction)]
        expected = lpips_by_hand(double, LAST_LAYERS[backbone][1], linear, *coloured)
    features.float()
    assert min(expected) > 0.01
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert lpips(original, original).tolist() == [0.0, 0.0]
    assert lpips(reconstruction, original).tolist() == pytest.approx(found.tolist(), rel=1e-5)
    assert not lpips.training
    assert not [name for name, weights in lpips.named_parameters() if weights.requires_grad]


def test_lpips_as_a_loss_is_the_weighted_mean_with_the_gradient_of_the_output(random_lpips):
    backbone, _, _, *paths = random_lpips
    files = {"backbone": backbone, "backbone_weights": paths[0], "linear_weights": paths[1]}
    original, reconstruction = noisy_pair((2, 3, 32, 32))
    loss, expected = LPIPSLoss(**files, weight=0.5), LPIPS(**files)(original, reconstruction).mean().item()
    output, target = ((side / 127.5 - 1.0).requires_grad_() for side in (reconstruction, original))
    with raises(ValueError, "weight=0"):
        LPIPSLoss(**files, weight=0)
    with torch.autocast("cpu", torch.bfloat16):  # in training, losses are computed under autocast
        found = loss(output, target)
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-5)
    found.backward()
    assert target.grad is None
    assert not [name for name, weights in loss.named_parameters() if weights.grad is not None]
    with torch.no_grad():  # a small step along the gradient changes the loss as the gradient says
        step = 1e-3 * output.grad / output.grad.norm()
        change = loss((output + step).double().float(), target) - loss((output - step).double().float(), target)
    assert change.item() == pytest.approx(2e-3 * output.grad.norm().item(), rel=0.02)
    same = target.detach().requires_grad_()
    loss(same, target).backward()
    assert same.grad.abs().max() == 0.0


def test_lpips_refuses_images_that_are_too_small_or_have_alpha(random_lpips):
    backbone, _, _, *paths = random_lpips
    lpips = LPIPS(backbone=backbone, backbone_weights=paths[0], linear_weights=paths[1])
    least = {"alex": 31, "vgg": 16}[backbone]
    assert lpips(*noisy_pair((1, 3, least, least))).item() > 0.0
    for shape in ((1, 3, least, least - 1), (1, 4, 64, 64)):
        with raises(ValueError, word=str(list(shape[1:]))):
            lpips(*noisy_pair(shape))
        with raises(ConfigError, "backbone", word="sides"):
            lpips.check(shape[1:])
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    assert list(lpips.describe().values()) == [backbone, *digests]


def test_lpips_says_which_file_is_missing_or_wrong(random_lpips, tmp_path):
    backbone, _, _, whole, linear = random_lpips
    with raises(ValueError, "backbone=squeeze"):
        LPIPS(backbone="squeeze", backbone_weights=whole, linear_weights=linear)
    with raises(DataError, "backbone_weights=nowhere"):
        LPIPS(backbone=backbone, backbone_weights="nowhere", linear_weights=linear)
    with raises(DataError, "linear_weights=nowhere"):
        LPIPS(backbone=backbone, backbone_weights=whole, linear_weights="nowhere")
    with raises(DataError, word="linear.pth"):
        LPIPS(backbone=backbone, backbone_weights=linear, linear_weights=linear)
    rows = torch.load(linear, weights_only=True)
    rows["lin2.model.1.weight"] = torch.zeros(1, 5, 1, 1)
    torch.save(rows, tmp_path / "other.pth")
    with raises(DataError, word="other.pth"):
        LPIPS(backbone=backbone, backbone_weights=whole, linear_weights=str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    with raises(DataError, word="text.pth"):
        LPIPS(backbone=backbone, backbone_weights=whole, linear_weights=str(tmp_path / "text.pth"))
