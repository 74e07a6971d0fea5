import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from genimg.data.tasks.base import Task
from genimg.data.tasks.colorspaces import luma
from genimg.data.tasks.degradations import Colorize, Deblur, Denoise, Edges, Inpaint, SuperResolution, eight_bits
from genimg.data.tasks.edges import Canny, Sobel
from genimg.data.tasks.masks import Boxes, Center, Files, Strokes
from genimg.utils.images import to_float, to_uint8
from genimg.utils.paths import config_dir

CONFIGS = Path(config_dir()) / "task"
RANDOM = {
    "gaussian": Denoise(noise="gaussian", amount=25),
    "blind": Denoise(noise="gaussian", amount=[0, 55]),
    "poisson": Denoise(noise="poisson", amount=30),
    "salt_and_pepper": Denoise(noise="salt_and_pepper", amount=0.1),
    "boxes": Inpaint(mask=Boxes(num_boxes=4, side=[0.1, 0.5])),
    "strokes": Inpaint(mask=Strokes(num_strokes=3, num_legs=[4, 12], width=[0.1, 0.2])),
    "deblur": Deblur(blur="gaussian", amount=[0.5, 2.0]),
    "motion": Deblur(blur="motion", amount=[3.0, 7.0]),
}
FIXED = {
    "jpeg": Denoise(noise="jpeg", amount=30),
    "center": Inpaint(mask=Center(size=0.5)),
    "super_resolution": SuperResolution(factor=4),
    "gray": Colorize(space="gray"),
    "lab": Colorize(space="lab"),
    "canny": Edges(detector=Canny(sigma=1.0, low=0.05, high=0.1)),
    "sobel": Edges(detector=Sobel()),
}
ALL = RANDOM | FIXED
GREY = [name for name, task in ALL.items() if not isinstance(task, Colorize)]  # are made of grey images, too


def pictures(count: int = 8, channels: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    """Smooth images of 256 levels, in [-1, 1]."""
    random = np.random.default_rng(0).normal(0, 1.5, (count, channels, height // 4, width // 4))
    large = torch.nn.functional.interpolate(torch.from_numpy(random).float(), (height, width), mode="bicubic")
    return eight_bits(large)


def even(level: int, size: int = 256, count: int = 4) -> torch.Tensor:
    return to_float(torch.full((count, 3, size, size), level, dtype=torch.uint8))


def noise(task: Denoise, images: torch.Tensor) -> torch.Tensor:
    """Source less target in levels of 255, float64."""
    batch = task(images, np.arange(len(images)), 7)
    return (batch["source"] - batch["target"]).double() * 127.5


# All of them


@pytest.mark.parametrize(("name", "channels"), [*((name, 3) for name in ALL), *((name, 1) for name in GREY)])
def test_batches_are_what_the_task_says(name, channels):
    task, images = ALL[name], pictures(channels=channels)
    source_channels, target_channels = task.channels((channels, 16, 24))
    batch = task(images, np.arange(8), 7)
    assert set(batch) == set(task.keys)
    assert batch["source"].shape == (8, source_channels, 16, 24)
    assert batch["target"].shape == (8, target_channels, 16, 24)
    for tensor in batch.values():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        assert tensor.abs().max() <= 1
    for key in ("source", "target"):
        assert batch[key].is_contiguous(memory_format=torch.channels_last)
    shown = task.shown(batch["source"])
    assert shown.shape[1] in (1, 3)
    assert shown.abs().max() <= 1
    assert torch.allclose(task.result(batch["target"], batch["source"]), images, atol=3e-5)  # exact but for CIELAB
    if not isinstance(task, Colorize):
        assert torch.equal(batch["target"], images)


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", ALL)
def test_where_a_batch_is_cut_changes_no_bit(name, size):
    task, images, positions = ALL[name], pictures(12), np.arange(100, 112)
    whole = task(images, positions, 7)
    pieces = [task(images[i : i + size], positions[i : i + size], 7) for i in range(0, 12, size)]
    for key in task.keys:
        assert torch.equal(torch.cat([piece[key] for piece in pieces]), whole[key])


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_or_position_changes_it(name):
    images, task = pictures(1).expand(32, -1, -1, -1), RANDOM[name]
    one, other, later = (task(images, np.arange(32) + at, seed)["source"] for at, seed in ((0, 7), (0, 8), (1, 7)))
    assert torch.equal(one, task(images, np.arange(32), 7)["source"])
    assert not torch.equal(one, other)
    assert torch.equal(one[1:], later[:-1])
    assert len(one.flatten(1).unique(dim=0)) > 30


@pytest.mark.parametrize("name", ALL)
def test_it_neither_uses_nor_moves_torchs_random_numbers(name):
    state = torch.get_rng_state()
    ALL[name](pictures(2), np.arange(2), 7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("super_resolution", "lab")])
def test_sources_have_256_levels_as_files_have(name):
    source = ALL[name].shown(ALL[name](pictures(), np.arange(8), 7)["source"])
    levels = (source + 1) * 127.5
    hole = source == 0  # mid grey is between two levels
    assert torch.allclose(levels[~hole], levels[~hole].round(), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if not isinstance(ALL[name], Inpaint)])
def test_a_mask_is_refused_where_there_are_no_holes(name):
    images = pictures(2, channels=1)
    ALL[name].given(images)
    with pytest.raises(ValueError, match="a mask has no effect on"):
        ALL[name].given(images, images)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_other_than_grey_and_rgb_images_are_refused(name, channels):
    with pytest.raises(ValueError, match=rf"these have {channels} channels: use images with"):
        ALL[name].channels((channels, 16, 24))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_makes_a_task(file, tmp_path):
    config = OmegaConf.load(file)
    if file.stem == "none":
        assert config == {}
        return
    if file.stem == "inpaint_files":
        Image.new("L", (32, 32), 255).save(tmp_path / "all.png")
        config.mask.folder = str(tmp_path)
    task = instantiate(config)
    assert isinstance(task, Task)
    task.channels((3, 32, 32))
    task(pictures(2, height=32, width=32), np.arange(2), 0)


# Denoise


def test_gaussian_noise_has_its_deviation():
    found = noise(Denoise(noise="gaussian", amount=25), even(128))
    count, rounding = found.numel(), 1 / 12
    assert found.abs().max() <= 128
    assert abs(found.std() - math.sqrt(25**2 + rounding)) < 5 * 25 / math.sqrt(2 * count)
    assert abs(found.mean()) < 5 * 25 / math.sqrt(count)
    channels = np.corrcoef(found.transpose(0, 1).flatten(1).numpy())
    assert np.abs(channels - np.eye(3)).max() < 5 / math.sqrt(count / 3)  # each its own


def test_unclipped_noise_is_normal_beyond_the_range_and_between_levels():
    found = noise(Denoise(noise="gaussian", amount=25, clip=False), even(0)).flatten()
    assert abs(found.std() - 25) < 5 * 25 / math.sqrt(2 * len(found))
    assert abs(found.mean()) < 5 * 25 / math.sqrt(len(found))
    assert stats.kstest(found[:20_000].numpy() / 25, stats.norm.cdf).pvalue > 1e-3
    assert (found - found.round()).abs().mean() == pytest.approx(0.25, abs=0.01)
    clipped = noise(Denoise(noise="gaussian", amount=25), even(0)).flatten()
    assert torch.allclose(clipped, found.round().clamp(min=0), atol=1e-4)  # half of the noise is gone on black


def test_unclipped_photons_are_brighter_than_white_where_many_came():
    source = Denoise(noise="poisson", amount=30, clip=False)(even(255), np.arange(4), 7)["source"]
    assert abs((source > 1).double().mean() - stats.poisson(30).sf(30)) < 0.01


def test_psnr_of_noise_of_25_levels():
    found = noise(Denoise(noise="gaussian", amount=25), even(128))
    assert abs(10 * math.log10(255**2 / found.square().mean()) - 20 * math.log10(255 / 25)) < 0.02  # 20.17 dB


def test_blind_noise_has_deviations_across_the_range():
    found = noise(Denoise(noise="gaussian", amount=[5, 30]), even(128, size=32, count=500)).flatten(1).std(dim=1)
    assert 4.5 < found.min() < 5.5
    assert 29 < found.max() < 31.5
    assert stats.kstest(found.numpy(), stats.uniform(5, 25).cdf).pvalue > 1e-3


@pytest.mark.parametrize("peak", [1, 30, 255, 4000])
@pytest.mark.parametrize("level", [0, 3, 100, 200])
def test_photons_are_poissons(peak, level):
    task, expected = Denoise(noise="poisson", amount=peak), peak * level / 255
    images = even(level, size=64)
    unclipped = task._noisy(images, np.arange(4), 7)
    counts = ((unclipped.double() + 1) / 2 * peak).flatten().numpy()
    assert np.abs(counts - np.rint(counts)).max() < 1e-3 * max(1, peak / 255)
    counts = np.rint(counts)
    if level == 0:
        assert (counts == 0).all()
        return
    assert abs(counts.mean() - expected) < 5 * math.sqrt(expected / counts.size)
    assert abs(counts.var() / expected - 1) < 5 * math.sqrt((2 + 1 / expected) / counts.size)
    edges = np.unique(stats.poisson(expected).ppf(np.linspace(0.02, 0.98, 25)))
    cells = np.digitize(counts, edges, right=True)
    cumulative = np.concatenate([[0], stats.poisson(expected).cdf(edges), [1]])
    observed = np.bincount(cells, minlength=len(edges) + 1)
    wanted = np.diff(cumulative) * counts.size
    seen = wanted > 5
    assert (((observed - wanted)[seen] ** 2) / wanted[seen]).sum() < stats.chi2(seen.sum()).ppf(1 - 1e-4)


def test_bright_pixels_are_clipped_after_photons_are_counted():
    batch = Denoise(noise="poisson", amount=30)(even(255), np.arange(4), 7)
    assert batch["source"].max() == 1
    assert abs((batch["source"] == 1).double().mean() - stats.poisson(30).sf(29)) < 0.01


def test_salt_and_pepper_hit_whole_pixels_by_halves():
    images = even(128)
    source = Denoise(noise="salt_and_pepper", amount=0.1)(images, np.arange(4), 7)["source"]
    count = source[:, 0].numel()
    assert torch.equal(source[:, 0], source[:, 1])
    assert torch.equal(source[:, 0], source[:, 2])
    for value in (-1.0, 1.0):
        assert abs((source[:, 0] == value).double().mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / count)
    hit = source.abs() == 1
    assert torch.equal(source[~hit], images[~hit])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 10, 75, 100])
def test_jpeg_is_pillows(channels, quality):
    images = pictures(channels=channels, height=32, width=40)
    source = to_uint8(Denoise(noise="jpeg", amount=quality)(images, np.arange(8), 7)["source"])
    for image, found in zip(to_uint8(images), source, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(file, format="JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(32, 40, channels)
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 0.5  # decoders differ by roundings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": "pink"}, r"^noise=pink is unknown: choose one of gaussian, poisson"),
        ({"amount": 0}, r"^amount=0 must be more than 0 and at most 255"),
        ({"amount": [30, 10]}, r"^amount=\[30, 10\] must be .* in ascending order"),
        ({"amount": [25, 25]}, r"^amount=\[25, 25\] is not a range: set amount=25"),
        ({"amount": math.nan}, r"^amount=nan must be"),
        ({"noise": "poisson", "amount": 10**6}, r"^amount=1000000 must be more than 0 and at most 65025"),
        ({"noise": "poisson", "amount": [10, 20]}, "^amount=.* must be one number, because poisson noise has no range"),
        ({"noise": "salt_and_pepper", "amount": 1.5}, r"^amount=1\.5 must be more than 0 and at most 1"),
        ({"noise": "jpeg", "amount": 0}, r"^amount=0 must be at least 1 and at most 100"),
        ({"noise": "jpeg", "amount": 50.5}, r"^amount=50\.5 must be a whole number from 1 to 100"),
        ({"noise": "jpeg", "amount": 50, "clip": False}, "^clip=false has no effect on jpeg"),
        ({"noise": "salt_and_pepper", "amount": 0.1, "clip": False}, r"^clip=false has no effect"),
    ],
)
def test_noise_that_cannot_be_made_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Denoise(**({"noise": "gaussian", "amount": 25} | settings))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Denoise(noise="gaussian", amount=[0, 55], clip=False), ["gaussian, 0 to 55", "levels", "neither clipped nor rounded"]),
        (Denoise(noise="jpeg", amount=30), ["jpeg, 30 (quality)", "256 levels"]),
        (Deblur(blur="motion", amount=7.0), ["motion", "7 pixels", "no noise"]),
        (SuperResolution(factor=4), ["factor 4", "bicubic"]),
    ],
)
def test_records_say_what_was_done_to_images(task, words):
    for word in words:
        assert word in task.describe()


# Inpaint


@pytest.mark.parametrize("name", ["center", "boxes", "strokes"])
def test_holes_are_mid_grey_and_the_rest_is_as_it_was(name):
    images = pictures()
    batch = ALL[name](images, np.arange(8), 7)
    source, missing = batch["source"], batch["mask"].expand(-1, 3, -1, -1) > 0
    assert 0 < missing.float().mean() < 1
    assert (source[:, :3][missing] == 0).all()
    assert torch.equal(source[:, :3][~missing], images[~missing])
    assert torch.equal(source[:, 3:], batch["mask"] * 2 - 1)
    assert torch.equal(ALL[name].shown(source), source[:, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_pixels_come_through_bit_for_bit(dtype):
    task, images = ALL["strokes"], pictures() * 0.987654  # not of 256 levels: as after an augmentation
    batch = task(images, np.arange(8), 7)
    output = torch.full_like(images, 0.25).to(dtype)
    result = task.result(output, batch["source"])
    assert result.dtype == torch.float32
    assert torch.equal(result, torch.where(batch["mask"] > 0, 0.25, images))


def test_given_images_get_their_own_mask():
    task, images = ALL["center"], pictures(2)
    batch = task(images, np.arange(2), 7)
    assert torch.equal(task.given(images, batch["mask"]), batch["source"])
    with pytest.raises(ValueError, match="Inpaint needs a mask for every image"):
        task.given(images)
    with pytest.raises(ValueError, match=r"masks of \[2, 1, 16, 23\] do not fit images of \[2, 3, 16, 24\]"):
        task.given(images, batch["mask"][..., :-1])


def test_images_with_masks_of_their_own_need_no_folder_of_masks():
    images = pictures(2)
    mask = torch.zeros_like(images[:, :1])
    assert torch.equal(Inpaint(mask=Files(folder="absent")).given(images, mask)[:, :3], images)


def test_masks_that_do_not_fit_the_images_show_at_once(tmp_path):
    Image.new("L", (32, 32), 255).save(tmp_path / "hole.png")
    task = Inpaint(mask=Files(folder=str(tmp_path)))
    assert task.channels((3, 32, 32)) == (4, 3)
    with pytest.raises(ValueError, match=r"^mask\.folder=.* the mask hole\.png of 32x32 pixels, but images are 64x64"):
        task.channels((3, 64, 64))


# SuperResolution


@pytest.mark.parametrize("factor", [2, 4])
def test_small_images_and_their_enlargements_are_pillows(factor):
    images = eight_bits(pictures(4) * 0.6)  # Pillow clips between rows and columns
    source = to_uint8(SuperResolution(factor=factor)(images, np.arange(4), 7)["source"])
    for image, found in zip(to_uint8(images), source, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        small = picture.resize((24 // factor, 16 // factor), Image.Resampling.BICUBIC)
        expected = np.asarray(small.resize((24, 16), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2  # and rounds


def test_a_small_image_as_a_user_has_it_becomes_the_same_source():
    task, images = SuperResolution(factor=2), pictures(2)
    small = eight_bits(torch.nn.functional.interpolate(images, (8, 12), mode="bicubic", antialias=True))
    assert torch.equal(task.given(small), task(images, np.arange(2), 7)["source"])


@pytest.mark.parametrize("factor", [1, 2.5, 0, -2])
def test_factors_that_enlarge_nothing_are_refused(factor):
    with pytest.raises(ValueError, match=rf"^factor={factor} must be a whole number, 2 or more"):
        SuperResolution(factor=factor)


def test_a_factor_must_divide_both_sides():
    assert SuperResolution(factor=3).channels((3, 30, 33)) == (3, 3)
    for shape in ((3, 32, 30), (3, 30, 32)):
        with pytest.raises(ValueError, match=r"^factor=3 does not divide .* set it to a divisor of 2, or"):
            SuperResolution(factor=3).channels(shape)


# Colorize


@pytest.mark.parametrize("space", ["gray", "lab"])
def test_given_colours_have_no_effect_and_grey_images_are_taken(space):
    task, images = Colorize(space=space), pictures(2)
    assert torch.equal(task.given(images), task(images, np.arange(2), 7)["source"])
    grey = eight_bits(luma(images))
    assert torch.allclose(task.given(grey), task.given(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert (task.given(grey) - task.given(images)).abs().max() < (1e-6 if space == "gray" else 0.6)
    with pytest.raises(ValueError, match="Colorize takes grey or RGB images, but these have 4 channels"):
        task.given(torch.zeros(1, 4, 8, 8))


def test_the_lightness_is_shown_as_the_grey_that_has_it():
    task, grey = Colorize(space="lab"), pictures(2, channels=1)
    assert torch.allclose(task.shown(task.given(grey)), grey, atol=2e-3)  # D65 is not quite the grey of sRGB's matrix


def test_what_colorize_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"^space=hsv is unknown: choose gray or lab"):
        Colorize(space="hsv")
    with pytest.raises(ValueError, match="Colorize needs RGB images, but these have 1 channels"):
        Colorize(space="lab").channels((1, 8, 8))


# Deblur


def test_blurs_take_their_amounts_from_the_range():
    point = torch.full((400, 1, 33, 33), -1.0)
    point[:, :, 16, 16] = 1.0
    distance = torch.arange(33).sub(16.0).square()
    for blur, low, high in (("gaussian", 1.0, 2.0), ("motion", 3.0, 9.0)):
        source = Deblur(blur=blur, amount=[low, high])(point, np.arange(400), 7)["source"].double()
        light = (source + 1) / (source + 1).sum(dim=(2, 3), keepdim=True)
        variance = (light.sum(dim=3) * distance).sum(dim=2) + (light.sum(dim=2) * distance).sum(dim=2)
        if blur == "gaussian":  # from the height, as rounding cuts the flanks off
            found = (1 / (math.pi * (source[:, :, 16, 16] + 1))).sqrt()
        else:  # a line; bilinear interpolation adds up to half a square pixel
            found = (variance * 12).sqrt()
        assert low - 0.1 < found.min() < low + 0.2 * (high - low)
        assert high - 0.1 < found.max() < high + 0.15 * (high - low)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blur": "box"}, r"^blur=box is unknown: choose gaussian or motion"),
        ({"amount": 0.1}, r"^amount=0\.1 must be at least 0\.2"),
        ({"blur": "motion", "amount": 1.0}, r"^amount=1\.0 must be more than 1"),
        ({"noise": -1.0}, r"^noise=-1\.0 must be from 0 to 255"),
        ({"noise": math.nan}, r"^noise=nan must be from 0 to 255"),
    ],
)
def test_blurs_that_would_not_blur_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Deblur(**({"blur": "gaussian", "amount": 1.6} | settings))


@pytest.mark.parametrize("blur", ["gaussian", "motion"])
def test_noise_comes_after_the_blur(blur):
    images, positions = pictures(64), np.arange(64)
    blurred = Deblur(blur=blur, amount=2.0, clip=False)(images, positions, 7)["source"]
    noisy = Deblur(blur=blur, amount=2.0, noise=2.0, clip=False)(images, positions, 7)["source"]
    found = (noisy - blurred).double().flatten() * 127.5
    assert abs(found.std() - 2.0) < 5 * 2.0 / math.sqrt(2 * len(found))
    assert stats.kstest(found[:20_000].numpy() / 2, stats.norm.cdf).pvalue > 1e-3
    clipped = Deblur(blur=blur, amount=2.0, noise=2.0)(images, positions, 7)["source"]
    assert torch.equal(clipped, eight_bits(noisy))


def test_the_default_blur_is_scenario_5_of_danielyan_et_al():
    task = instantiate(OmegaConf.load(CONFIGS / "deblur.yaml"))
    assert (task.blur, task.amount, task.noise) == ("gaussian", (1.6, 1.6), 2.0)
    assert task.describe() == (
        "blur: gaussian, standard deviation of 1.6 pixels, kernel of 13x13, reflected borders, white noise of 2 levels of 255, "
        "clipped and rounded to 256 levels"
    )


def test_blurs_across_the_whole_image_are_refused():
    Deblur(blur="gaussian", amount=1.6).channels((3, 7, 20))
    with pytest.raises(
        ValueError, match=r"^amount=1\.6 blurs across 6 pixels on each side, which is too much for images of 6x20 pixels"
    ):
        Deblur(blur="gaussian", amount=1.6).channels((3, 6, 20))


# Edges


def test_given_edge_maps_stay_as_they_are():
    task, edges = ALL["canny"], pictures(2, channels=1)
    assert task.given(edges) is edges
    with pytest.raises(ValueError, match="Edges takes edge maps with 1 channel, but these have 3"):
        task.given(pictures(2))
    with pytest.raises(ValueError, match=r"^detector=Canny needs 4 pixels .*smaller sigma"):
        task.channels((3, 4, 20))
