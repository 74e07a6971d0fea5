"""Measures of translations, of methods whose answers are known, against direct computation."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from test_evaluator import LinearExtractor, Painter, frechet_distance_of_scipy
from torch import Tensor, nn

from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.loader import ImageLoader, UnpairedImageLoader
from genimg.data.subsets import random_subset
from genimg.data.tasks.base import Pair, Unpaired
from genimg.data.tasks.degradations import Denoise, Inpaint, SuperResolution
from genimg.data.tasks.masks import Center
from genimg.errors import ConfigError, DataError
from genimg.evaluation.extractors.inception import Inception
from genimg.evaluation.feature_extraction import EvaluationInterruptedError
from genimg.evaluation.image_sets import NonFiniteImagesError
from genimg.evaluation.translation import PairedEvaluator, UnpairedEvaluator
from genimg.evaluation.translation_base import TranslationEvaluator
from genimg.methods.image_to_image import Translation
from genimg.methods.options import SamplingOptions, setting
from genimg.training.evaluation_schedule import EvaluationSchedule, ScheduledEvaluator
from genimg.utils.durations import NumImages
from genimg.utils.rng import normal_numbers

CPU = torch.device("cpu")


class Scaled(nn.Module):
    """Pixel by pixel, so that the batch makes no difference to the last bit."""

    def __init__(self, factor: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.factor = factor
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(image) * self.factor


class WithoutMask(nn.Module):
    """Answers the picture of a source with a hole."""

    def forward(self, source: Tensor) -> Tensor:
        return source[:, :-1]


class Translator(Translation):
    """Answers its source, or what a network makes of it."""

    batch_keys = ("source", "target")

    def __init__(self, task: Any = None, network: nn.Module | None = None, mode: str = "eval") -> None:
        super().__init__(task or Denoise(noise="gaussian", amount=25))
        self.network = network or nn.Identity()
        self.sampled_mode = mode

    def translator(self, direction: str | None) -> nn.Module:
        return self.network

    def parameter_groups(self) -> Any:
        return {}

    def step(self, batch: Any, progress: Any, update: Any) -> Any:
        raise NotImplementedError

    def check(self, batch: Any) -> None:
        raise NotImplementedError

    def preview(self, batch: Any, drawn: Any) -> Any:
        raise NotImplementedError


class BothWays(Translator):
    """a -> -a, and b -> b / 2."""

    batch_keys = ("a", "b")
    directions = ("a2b", "b2a")

    def __init__(self, channels: int = 1) -> None:
        super().__init__(task=Unpaired(source_channels=channels))
        self.networks = nn.ModuleDict({"a2b": Scaled(-1.0), "b2a": Scaled(0.5)})

    def translator(self, direction: str | None) -> nn.Module:
        return self.networks[direction or "a2b"]


class OneWay(BothWays):
    directions = ("a2b",)


class NamedInception(LinearExtractor):
    """Names metrics as Inception with its published weights does."""

    known = True
    metric_name = Inception.metric_name


def pixels(count: int, channels: int = 1, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def data_of(source: ImageDataset, task: Any = None) -> ImageLoader:
    return ImageLoader(source, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU,
                task=task or Denoise(noise="gaussian", amount=25))  # fmt: skip


def noise(count: int = 12, channels: int = 1, size: int = 4, held_out: int = 0) -> ImageLoader:
    source = ArrayDataset("noise", pixels(count, channels, size))
    if held_out:
        source.validation = ArrayDataset("held out", pixels(held_out, channels, size, seed=1))
    return data_of(source)


def domains(count_a: int = 12, count_b: int = 12, channels_b: int = 1) -> UnpairedImageLoader:
    def source(seed: int, counts: tuple[int, int]) -> UnpairedDataset:
        a = ArrayDataset("a", pixels(counts[0], seed=seed))
        return UnpairedDataset(a, ArrayDataset("b", pixels(counts[1], channels_b, seed=seed + 1)))

    whole = source(0, (20, 20))
    whole.validation = source(2, (count_a, count_b))
    return UnpairedImageLoader(
        whole, augment=None, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU
    )


SETTINGS: dict[str, Any] = {
    "num_images": 100, "batch_size": 5, "seed": 3, "extractor": None, "best_by": None,
}  # fmt: skip


def paired(**changes: Any) -> PairedEvaluator:
    return PairedEvaluator(**{**SETTINGS, "best_by": "psnr", "lpips": None, **changes})


def unpaired(**changes: Any) -> UnpairedEvaluator:
    return UnpairedEvaluator(**{**SETTINGS, **changes})


def levels(images: Tensor) -> np.ndarray:
    return np.clip(np.round((images.double().numpy() + 1) * 127.5), 0, 255)


# Against targets


@pytest.mark.parametrize(("channels", "size"), [(1, 12), (3, 16)])
def test_the_numbers_are_the_means_over_images_of_direct_computations(channels: int, size: int) -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    data = noise(12, channels, size)
    result = paired().evaluate(Translator(), data, CPU)
    batch = data.task(torch.from_numpy(data.source.images).float() / 127.5 - 1, np.arange(12), paired().noise_seed)
    source, target = levels(batch["source"]), data.source.images.astype(np.float64)
    errors = ((source - target) ** 2).reshape(12, -1).mean(axis=1)
    expected = {
        "psnr": np.mean(10 * np.log10(255**2 / errors)),
        "ssim": np.mean([
            structural_similarity(x, y, channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5,
                                  use_sample_covariance=False)
            for x, y in zip(target, source, strict=True)
        ]),
        "l1": np.abs(source - target).mean() / 255,
    }  # fmt: skip
    assert list(result.values) == ["psnr", "ssim", "l1"]
    assert result.values == pytest.approx(expected, rel=1e-4)
    assert result.intervals == {}
    assert 18 < result.values["psnr"] < 23  # noise of 25 levels: 20.2 dB, less what is clipped


def test_a_perfect_translation_has_the_best_values() -> None:
    source = np.concatenate([pixels(6), pixels(6)], axis=1)
    task = Pair(source_channels=1)
    values = paired().evaluate(Translator(task), data_of(ArrayDataset("pairs", source), task), CPU).values
    assert values == {"psnr": 100.0, "ssim": pytest.approx(1.0, abs=1e-6), "l1": 0.0}


def test_a_hole_is_measured_alone_beside_the_whole_image() -> None:
    task = Inpaint(mask=Center(size=0.5))
    data = data_of(ArrayDataset("pictures", pixels(12, 3, 12)), task)
    values = paired().evaluate(Translator(task, WithoutMask()), data, CPU).values
    assert list(values) == ["psnr", "ssim", "l1", "psnr_hole", "l1_hole"]
    hole = data.source.images[:, :, 3:9, 3:9].astype(np.float64) - 128  # the source's mid grey, rounded
    squared = (hole**2).reshape(12, -1).mean(axis=1)
    assert values["psnr_hole"] == pytest.approx(np.mean(10 * np.log10(255**2 / squared)), rel=1e-5)
    assert values["l1_hole"] == pytest.approx(np.abs(hole).mean() / 255, rel=1e-5)
    # A quarter of the pixels carries all of the error: a translator that fills nothing seems 6 dB better on the whole image.
    assert values["psnr"] == pytest.approx(values["psnr_hole"] + 10 * math.log10(4), rel=1e-5)
    assert values["l1"] == pytest.approx(values["l1_hole"] / 4, rel=1e-5)


def test_images_without_a_hole_have_no_part_in_its_mean() -> None:
    class OfSome(Center):
        def __call__(self, positions: np.ndarray, seed: int, **others: Any) -> Tensor:
            mask = super().__call__(positions, seed, **others)
            mask[torch.from_numpy(positions) % 2 == 1] = 0.0
            return mask

    task, source = Inpaint(mask=OfSome(size=0.5)), ArrayDataset("pictures", pixels(12, 3, 12))
    values = paired(batch_size=1).evaluate(Translator(task, WithoutMask()), data_of(source, task), CPU).values
    hole = source.images[::2, :, 3:9, 3:9].astype(np.float64) - 128
    assert values["l1_hole"] == pytest.approx(np.abs(hole).mean() / 255, rel=1e-5)
    assert values["psnr_hole"] < 12  # an image without a hole would count 100 dB


@pytest.mark.parametrize("channels", [1, 3])
def test_super_resolution_is_measured_as_its_tables_are(channels: int) -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rgb2ycbcr = pytest.importorskip("skimage.color").rgb2ycbcr
    task, source = SuperResolution(factor=4), ArrayDataset("pictures", pixels(6, channels, 32))
    values = paired().evaluate(Translator(task), data_of(source, task), CPU).values
    assert list(values) == ["psnr", "ssim", "l1", "psnr_y_border4", "ssim_y_border4"]
    images = torch.from_numpy(source.images).float() / 127.5 - 1
    enlarged = levels(task(images, np.arange(6), 0)["source"]).astype(np.uint8)

    def luma(image: np.ndarray) -> np.ndarray:
        y = image[0] if channels == 1 else rgb2ycbcr(image, channel_axis=0)[0]
        return y.astype(np.float64)[4:-4, 4:-4]

    ratios, structures = [], []
    for image, found in zip(source.images, enlarged, strict=True):
        x, y = luma(image), luma(found)
        ratios.append(10 * np.log10(255**2 / ((x - y) ** 2).mean()))
        structures.append(structural_similarity(x, y, data_range=255, gaussian_weights=True, sigma=1.5,
                                                use_sample_covariance=False))  # fmt: skip
    assert values["psnr_y_border4"] == pytest.approx(np.mean(ratios), rel=1e-5)
    assert values["ssim_y_border4"] == pytest.approx(np.mean(structures), rel=1e-4)


def test_images_that_are_all_border_have_no_measure_without_it() -> None:
    task = SuperResolution(factor=4)
    values = paired().evaluate(Translator(task), data_of(ArrayDataset("pictures", pixels(6, 3, 8)), task), CPU).values
    assert list(values) == ["psnr", "ssim", "l1"]


def test_multiple_scales_are_measured_where_images_are_large_enough() -> None:
    task = Pair(source_channels=1)
    for size, expected in ((161, ["psnr", "ssim", "l1", "ms_ssim"]), (160, ["psnr", "ssim", "l1"])):
        images = np.repeat(pixels(2, size=size), 2, axis=1)
        values = paired().evaluate(Translator(task), data_of(ArrayDataset("pairs", images), task), CPU).values
        assert list(values) == expected
    assert paired().primary == "psnr"
    assert paired().higher_is_better


def test_what_a_task_answers_is_an_image_of_its_own() -> None:
    """The known pixels of inpainting count as they are, whatever the network says."""

    class Halved(Pair):
        def result(self, output: Tensor, source: Tensor) -> Tensor:
            return output / 2

    images = np.concatenate([pixels(6), pixels(6, seed=1)], axis=1)
    values = paired().evaluate(Translator(Halved(source_channels=1)), data_of(ArrayDataset("pairs", images), Halved(
        source_channels=1)), CPU).values  # fmt: skip
    first, second = (np.round((image / 127.5 - 1) * 63.75 + 127.5) for image in (images[:, :1], images[:, 1:]))
    assert values["l1"] == pytest.approx(np.abs(first - second).mean() / 255, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
@pytest.mark.parametrize("extractor", [None, LinearExtractor()])
def test_in_evaluation_mode_the_batch_size_makes_no_difference(batch_size: int, extractor: Any) -> None:
    method = Translator(network=Scaled(0.8, dropout=0.5))
    reference = paired(batch_size=7, extractor=extractor).evaluate(method, noise(), CPU).values
    values = paired(batch_size=batch_size, extractor=extractor).evaluate(method, noise(), CPU).values
    assert values == pytest.approx(reference, rel=1e-6)
    assert values["l1"] == reference["l1"]


def test_in_training_mode_dropout_is_repeated_and_nothing_else_is_disturbed() -> None:
    method = Translator(network=Scaled(0.8, dropout=0.5), mode="train")
    method.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = paired().evaluate(method, noise(), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    method.eval()
    assert paired().evaluate(method, noise(), CPU).values == first.values
    assert not method.network.training
    assert paired(seed=4).evaluate(method, noise(), CPU).values != first.values
    method.sampled_mode = "eval"
    assert paired().evaluate(method, noise(), CPU).values["l1"] < first.values["l1"] - 0.05
    assert first.provenance["translation"]["mode"] == "train"


@pytest.mark.parametrize("batch_size", [1, 7])
def test_in_training_mode_every_image_is_translated_alone_whatever_the_batch_size(batch_size: int) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []
            self.layers = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))

        def forward(self, image: Tensor) -> Tensor:
            self.counts.append(len(image))
            return self.layers(image)  # type: ignore[no-any-return]

    method = Translator(network=Normalised(), mode="train")
    reference = paired(extractor=LinearExtractor()).evaluate(method, noise(), CPU).values
    values = paired(batch_size=batch_size, extractor=LinearExtractor()).evaluate(method, noise(), CPU).values
    assert values == reference
    assert method.network.counts == [1] * 48  # of two evaluations of similarities and of distances
    assert [paired().batch_size_of(Translator(mode=mode)) for mode in ("train", "eval")] == [1, 5]


def test_noise_is_not_that_of_a_training_with_the_same_seed() -> None:
    class Watched(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return image

    seen: list[Tensor] = []
    data = noise()
    for extractor in (None, LinearExtractor()):
        paired(extractor=extractor).evaluate(Translator(network=Watched()), data, CPU)
    trained = data.examples(np.arange(12), SETTINGS["seed"])["source"]
    measured = torch.cat(seen).view(3, 12, 1, 4, 4)  # once, and once more for the distances
    assert torch.equal(measured, measured[:1].expand_as(measured))
    assert (measured[0] - trained).abs().mean() > 0.05
    assert len({paired(seed=seed).noise_seed for seed in range(4)} | set(range(4))) == 8


def test_held_out_images_are_measured_where_there_are_any(caplog: pytest.LogCaptureFixture) -> None:
    data = noise(12, held_out=7)
    result = paired().evaluate(Translator(), data, CPU)
    assert caplog.messages == []
    alone = data_of(ArrayDataset("held out", pixels(7, seed=1)))
    evaluator = paired()
    with caplog.at_level(logging.WARNING):
        expected = evaluator.evaluate(Translator(), alone, CPU)
        evaluator.evaluate(Translator(), alone, CPU)
    assert caplog.messages == [
        "there are no held-out images, so training images are measured: hold out a share of the data for validation, or "
        "measure the test split with genimg-eval, if the data has one"
    ]
    assert result.values == expected.values
    assert result.values != paired().evaluate(Translator(), noise(12), CPU).values
    made = result.provenance["translation"]
    assert result.provenance == expected.provenance | {"translation": expected.provenance["translation"] | {"held_out": True}}
    assert [made[key] for key in ("held_out", "source", "num_images")] == [True, "held out", 7]
    assert made["fingerprint"] == data.validation.source.fingerprint


@pytest.mark.parametrize("whose", ["setting", "argument"])
def test_fewer_images_are_a_random_part(whose: str) -> None:
    data, evaluator = noise(12), paired(**({"num_images": 4} if whose == "setting" else {}))
    result = evaluator.evaluate(Translator(), data, CPU, num_images=4 if whose == "argument" else None)
    chosen = random_subset(4, 12, seed=0)
    batch = data.examples(chosen, evaluator.noise_seed)
    expected = np.abs(levels(batch["source"]) - data.source.images[chosen]).mean() / 255
    assert result.values["l1"] == pytest.approx(expected, rel=1e-6)
    assert result.provenance["translation"]["num_images"] == 4


def test_lpips_is_asked_about_references_and_images() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[Tensor, Tensor]] = []

        def check(self, shape: tuple[int, int, int]) -> None:
            if min(shape[1:]) < 4:
                raise ValueError(f"{list(shape)} is too small")

        def describe(self) -> dict[str, str]:
            return {"backbone": "counting"}

        def forward(self, reference: Tensor, image: Tensor) -> Tensor:
            self.seen.append((reference, image))
            return image.float().mean(dim=(1, 2, 3)) - reference.float().mean(dim=(1, 2, 3))

    data, lpips = noise(12), Counting()
    result = paired(lpips=lpips).evaluate(Translator(), data, CPU)
    values = result.values
    assert list(values) == ["psnr", "ssim", "l1", "lpips"]
    assert result.provenance["translation"]["lpips"] == {"backbone": "counting"}
    with raises(ValueError, word="small"):
        paired(lpips=lpips).check(Translator(), noise(12, size=3).source)
    references, images = (torch.cat(side) for side in zip(*lpips.seen, strict=True))
    assert references.dtype == images.dtype == torch.uint8
    assert np.array_equal(references.numpy(), data.source.images)
    assert np.array_equal(images.numpy(), levels(data.examples(np.arange(12), paired().noise_seed)["source"]))
    assert values["lpips"] == pytest.approx(images.double().mean().item() - references.double().mean().item(), abs=1e-4)
    assert list(paired().evaluate(Translator(), data, CPU).values) == ["psnr", "ssim", "l1"]


@pytest.mark.parametrize(
    ("extractor", "fd", "kd"), [(LinearExtractor, "fd_linear", "kd_linear"), (NamedInception, "fid", "kid")]
)
def test_an_extractor_adds_distances_between_targets_and_translations(extractor: Any, fd: str, kd: str) -> None:
    network, data = extractor(), noise(40, held_out=30)
    result = paired(extractor=network).evaluate(Translator(), data, CPU)
    assert list(result.values) == ["psnr", "ssim", "l1", kd, fd]
    batch = data.validation.examples(np.arange(30), paired().noise_seed)
    features = [network(torch.from_numpy(levels(batch[key])).to(torch.uint8))[0] for key in ("target", "source")]
    assert result.values[fd] == pytest.approx(frechet_distance_of_scipy(*features), rel=1e-6)
    assert result.values[kd] == pytest.approx(unbiased_kernel_distance(*features), rel=1e-4)
    assert result.provenance["extractor"] == network.describe()
    assert paired().evaluate(Translator(), data, CPU).provenance["extractor"] is None


def unbiased_kernel_distance(x: Tensor, y: Tensor) -> float:
    """Bińkowski et al. 2018, equation 4, with the kernel (x y / D + 1)^3, of equally many features [N, D]."""
    count, dim = x.shape
    xx, yy, xy = (((a @ b.T / dim + 1) ** 3).double() for a, b in ((x, x), (y, y), (x, y)))
    same = sum((kernel.sum() - kernel.diagonal().sum()).item() for kernel in (xx, yy)) / (count * (count - 1))
    return same - 2 * xy.mean().item()


def test_a_model_that_makes_nan_is_refused_by_the_number_of_the_image() -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.where(image.amax(dim=(1, 2, 3), keepdim=True) < 0, torch.nan, image)

    images = np.concatenate([np.full((12, 2, 4, 4), 200, dtype=np.uint8)])
    broken = random_subset(4, 12, seed=0)[2]
    images[broken] = 3
    task = Pair(source_channels=1)
    with raises(NonFiniteImagesError, word="model's"):
        paired(num_images=4, batch_size=1).evaluate(Translator(task, Broken()), data_of(ArrayDataset("x", images), task), CPU)


# Between domains


def cycle(images: np.ndarray) -> np.ndarray:
    """Of an image that was negated and halved, in levels: no number to be rounded lies half-way."""
    return np.abs(images - np.round(191.25 - images / 2.0)).reshape(len(images), -1).mean(axis=1) / 255


def test_cycles_and_identities_are_those_of_both_directions() -> None:
    data = domains()
    result = unpaired().evaluate(BothWays(), data, CPU)
    a, b = data.validation.source.a.images, data.validation.source.b.images
    expected = {
        "cycle_l1": (cycle(a).mean() + cycle(b).mean()) / 2,
        "cycle_l1_a": cycle(a).mean(),
        "cycle_l1_b": cycle(b).mean(),
        "identity_l1_a": np.abs(a - np.round(63.75 + a / 2.0)).mean() / 255,  # of b2a, which halves
        "identity_l1_b": np.abs(2.0 * b - 255).mean() / 255,  # of a2b: b against -b, 2 |b| of [-1, 1] or |b| of [0, 1]
    }
    assert result.values == pytest.approx(expected, rel=1e-6)
    assert next(iter(result.values)).startswith("cycle_l1")
    made = result.provenance["translation"]
    assert [made[key] for key in ("task", "num_images", "held_out")] == ["Unpaired", 12, True]


def test_what_is_its_own_inverse_comes_back_exactly() -> None:
    method = BothWays()
    method.networks["b2a"] = Scaled(-1.0)
    values = unpaired().evaluate(method, domains(), CPU).values
    assert [values[name] for name in ("cycle_l1", "cycle_l1_a", "cycle_l1_b")] == [0.0, 0.0, 0.0]
    assert values["identity_l1_a"] > 0.3


@pytest.mark.parametrize(
    ("most", "of_a", "of_b"),
    [
        (100, range(10), range(4)),
        (5, random_subset(5, 10, seed=0), range(4)),
        (2, random_subset(2, 10, seed=0), random_subset(2, 4, seed=0)),
    ],
)
@pytest.mark.parametrize("larger", ["a", "b"])
def test_each_domain_is_measured_over_its_own_images_once_each(most: int, of_a: Any, of_b: Any, larger: str) -> None:
    of_a, of_b = (of_a, of_b) if larger == "a" else (of_b, of_a)
    data, network = domains(*((10, 4) if larger == "a" else (4, 10))), LinearExtractor()
    values = unpaired(num_images=most, extractor=network).evaluate(BothWays(), data, CPU).values
    a, b = data.validation.source.a.images[list(of_a)], data.validation.source.b.images[list(of_b)]
    assert values["cycle_l1_a"] == pytest.approx(cycle(a).mean(), rel=1e-6)
    assert values["cycle_l1_b"] == pytest.approx(cycle(b).mean(), rel=1e-6)
    assert values["cycle_l1"] == pytest.approx((cycle(a).mean() + cycle(b).mean()) / 2, rel=1e-6)
    assert values["identity_l1_a"] == pytest.approx(np.abs(a - np.round(63.75 + a / 2.0)).mean() / 255, rel=1e-6)
    assert values["identity_l1_b"] == pytest.approx(np.abs(2.0 * b - 255).mean() / 255, rel=1e-6)
    real, fake = (network(torch.from_numpy(images))[0] for images in (b, 255 - a))
    assert values["fd_linear_a2b"] == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-6)


def test_a_domain_of_fewer_images_than_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genimg.evaluation.translation_base.world_size", lambda: 5)
    unpaired().evaluate(BothWays(), domains(count_a=10, count_b=5), CPU)
    for counts in ((10, 4), (4, 10)):
        with raises(DataError, word="processes"):
            unpaired().evaluate(BothWays(), domains(*counts), CPU)


def test_a_method_of_one_direction_is_measured_by_its_identity() -> None:
    data, evaluator = domains(), unpaired()
    assert evaluator.primary is None
    values = evaluator.evaluate(OneWay(), data, CPU).values
    b = data.validation.source.b.images
    assert values == {"identity_l1_b": pytest.approx(np.abs(2.0 * b - 255).mean() / 255, rel=1e-6)}
    assert evaluator.primary is None
    assert not evaluator.higher_is_better


def test_domains_of_unlike_channels_have_no_identity() -> None:
    class Recoloured(BothWays):
        def __init__(self) -> None:
            super().__init__()
            self.networks = nn.ModuleDict({"a2b": nn.Conv2d(1, 3, 1), "b2a": nn.Conv2d(3, 1, 1)})

    values = unpaired().evaluate(Recoloured(), domains(channels_b=3), CPU).values
    assert values.keys() == {"cycle_l1", "cycle_l1_a", "cycle_l1_b"}


@pytest.mark.parametrize(
    ("extractor", "fd", "kd"), [(LinearExtractor, "fd_linear", "kd_linear"), (NamedInception, "fid", "kid")]
)
def test_with_an_extractor_the_mean_kernel_distance_comes_first(extractor: Any, fd: str, kd: str) -> None:
    network, data = extractor(), domains(30, 30)
    evaluator = unpaired(extractor=network, best_by="kd")
    assert evaluator.primary == kd
    values = evaluator.evaluate(BothWays(), data, CPU).values
    assert next(iter(values)) == kd
    a, b = (torch.from_numpy(domain.images) for domain in (data.validation.source.a, data.validation.source.b))
    half = (63.75 + b / 2.0).round().to(torch.uint8)
    features = {"a2b": [network(b)[0], network(255 - a)[0]], "b2a": [network(a)[0], network(half)[0]]}
    for direction, (real, fake) in features.items():
        assert values[f"{fd}_{direction}"] == pytest.approx(frechet_distance_of_scipy(real, fake), rel=1e-6)
        assert values[f"{kd}_{direction}"] == pytest.approx(unbiased_kernel_distance(real, fake), rel=1e-4)
    assert values[kd] == pytest.approx((values[f"{kd}_a2b"] + values[f"{kd}_b2a"]) / 2, rel=1e-12)
    assert values.keys() >= {"cycle_l1", "identity_l1_a"}
    one = unpaired(extractor=network).evaluate(OneWay(), data, CPU).values
    assert one[kd] == one[f"{kd}_a2b"] == values[f"{kd}_a2b"]
    assert f"{kd}_b2a" not in one


# Both


@pytest.mark.parametrize("make", [paired, unpaired])
@pytest.mark.parametrize("extractor", [None, LinearExtractor()])
def test_should_stop_interrupts_before_every_batch(make: Any, extractor: Any) -> None:
    method, data = (Translator(), noise(12)) if make is paired else (BothWays(), domains())
    batches = 3 if extractor is None else 9  # of translations, and of each side's features
    batches *= 1 if make is paired else 2  # domains
    for answers_before in range(batches):
        asked = []

        def should_stop(asked: list[bool] = asked, most: int = answers_before) -> bool:
            asked.append(True)
            return len(asked) > most

        with pytest.raises(EvaluationInterruptedError):
            make(extractor=extractor).evaluate(method, data, CPU, should_stop)
        assert len(asked) == answers_before + 1
    evaluator = make(extractor=extractor)
    first, again = [], []
    values = [evaluator.evaluate(method, data, CPU, lambda to=to: bool(to.append(True))).values for to in (first, again)]
    assert len(first) == batches
    assert len(again) == (batches if extractor is None else batches * 2 // 3)  # targets' features are kept
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("evaluator", "method", "words"),
    [
        (paired(), BothWays(), "unpaired_translation"),
        (unpaired(), Translator(), "such as translation"),
        (paired(), Painter(), "inception"),
        (unpaired(), Painter(), "inception"),
    ],
    ids=["unpaired", "paired", "painter", "painter between domains"],
)
def test_what_does_not_fit_is_refused_with_what_does(evaluator: TranslationEvaluator, method: Any, words: str) -> None:
    with raises(ConfigError, word=words):
        evaluator.check(method)
    with raises(ConfigError, word=words):
        evaluator.evaluate(method, noise(), CPU)


def test_what_fits_is_accepted() -> None:
    paired().check(Translator())
    unpaired().check(BothWays())
    unpaired().check(OneWay())


@pytest.mark.parametrize("make", [paired, unpaired])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_images": 0}, "num_images=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_key(make: Any, changes: Any, words: str) -> None:
    with raises(ValueError, word=words):
        make(**changes)


def test_a_training_that_becomes_worse_is_noticed_in_either_direction() -> None:
    schedule = EvaluationSchedule(NumImages(1), None, {"factor": 2.0, "evaluations": 1})
    by_similarity = ScheduledEvaluator(paired(), schedule)
    assert by_similarity.has_diverged({"psnr": 9.0}, 20.0)
    assert not by_similarity.has_diverged({"psnr": 11.0}, 20.0)
    assert by_similarity.is_better(21.0, 20.0)
    by_distance = ScheduledEvaluator(unpaired(extractor=LinearExtractor(), best_by="kd"), schedule)
    assert by_distance.has_diverged({"kd_linear": 0.5}, 0.2)
    assert not by_distance.has_diverged({"kd_linear": 0.3}, 0.2)
    assert by_distance.is_better(0.1, 0.2)


class Unchanged(nn.Module):
    """Answers what it is given."""

    def forward(self, image: Tensor) -> Tensor:
        return image


class DoingNothing(BothWays):
    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"a2b": Unchanged(), "b2a": Unchanged()})


class Brightening(BothWays):
    """Translates dark images to bright ones and back, with errors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"a2b": Shifted(0.9), "b2a": Shifted(-0.9)})


class Shifted(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, image: Tensor) -> Tensor:
        return (0.95 * image + self.amount).clamp(-1.0, 1.0)


@pytest.mark.parametrize("best_by", ["kd", "fd"])
def test_a_translator_that_changes_nothing_is_never_chosen_over_one_that_translates(best_by: str) -> None:
    numbers = np.random.default_rng(0)
    dark = numbers.integers(0, 128, (40, 1, 4, 4), dtype=np.uint8)
    bright = numbers.integers(128, 256, (40, 1, 4, 4), dtype=np.uint8)
    source = UnpairedDataset(ArrayDataset("a", dark), ArrayDataset("b", bright))
    data = UnpairedImageLoader(
        source, augment=None, storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU
    )
    evaluator = unpaired(extractor=LinearExtractor(), best_by=best_by)
    name = f"{best_by}_linear"
    assert evaluator.primary == name
    nothing, bright_ones = (evaluator.evaluate(model, data, CPU).values for model in (DoingNothing(), Brightening()))
    for measure in ("cycle_l1", "identity_l1_a", "identity_l1_b"):
        assert nothing[measure] == 0 < bright_ones[measure]  # what chose before
    assert not evaluator.higher_is_better
    assert bright_ones[name] < 0.2 * nothing[name]


@pytest.mark.parametrize("best_by", ["cycle_l1", "identity_l1_b", "psnr"])
def test_what_a_translator_that_changes_nothing_wins_does_not_choose(best_by: str) -> None:
    with raises(ValueError, f"best_by={best_by}"):
        unpaired(best_by=best_by, extractor=LinearExtractor())


@pytest.mark.parametrize(
    ("make", "changes", "key"),
    [
        (unpaired, {"best_by": "kd"}, "extractor"), (paired, {"best_by": "fd"}, "extractor"),
        (paired, {"best_by": "lpips"}, "lpips"), (paired, {"best_by": "cycle_l1"}, "psnr"),
    ],
)  # fmt: skip
def test_what_is_not_measured_does_not_choose(make: Any, changes: Any, key: str) -> None:
    with raises(ValueError, word=key):
        make(**changes)


def test_what_chooses_comes_first_in_its_direction() -> None:
    assert [paired(best_by=name).higher_is_better for name in ("psnr", "ssim", "ms_ssim", "l1")] == [True, True, True, False]
    values = paired(best_by="l1").evaluate(Translator(), noise(), CPU).values
    assert next(iter(values)) == "l1"
    with raises(ConfigError, "best_by=ms_ssim"):
        paired(best_by="ms_ssim").evaluate(Translator(), noise(), CPU)


# Random translations


@dataclasses.dataclass(frozen=True)
class Strength(SamplingOptions):
    strength: float = setting("Standard deviation of the noise", 0.1)


class AddsNoise(Translator):
    """The source with noise that depends on the key; counts its translations."""

    def __init__(self, task: Any = None) -> None:
        super().__init__(task)
        self.sampling_options, self.count = Strength(), 0

    def check_options(self, options: Strength) -> None:
        if options.strength < 0:
            raise ConfigError("strength must be 0 or more", key="strength")

    def translate_randomly(self, source: Tensor, keys: Tensor, options: Strength | None = None) -> Tensor:
        self.count += len(source)
        image = source[:, :-1] if isinstance(self.task, Inpaint) else source
        return image + (options or self.sampling_options).strength * normal_numbers(keys, image.shape[1:])


@pytest.mark.parametrize("batch_size", [7, 500])
def test_random_translations_and_their_diversity_do_not_depend_on_the_batch(batch_size: int) -> None:
    task = Inpaint(mask=Center(size=0.5))
    data = data_of(ArrayDataset("grey pictures", 100 + pixels(500) // 5), task)  # so that noise does not leave the levels
    method = AddsNoise(task)
    extractor = LinearExtractor()
    settings = {"num_images": 500, "num_samples": 3, "diversity_images": 400, "extractor": extractor}
    found = paired(batch_size=batch_size, **settings).evaluate(method, data, CPU)
    other = paired(batch_size=50, **settings).evaluate(AddsNoise(task), data, CPU)
    assert found.values == pytest.approx(other.values, rel=1e-4)
    assert method.count == 500 + 3 * 400  # those of the pixels are also those of the features
    # Two draws of a normal distribution differ by 2 std / sqrt(pi) on average; levels are from -1 to 1.
    expected = 0.1 * 2 / math.sqrt(math.pi) / 2
    assert found.values["diversity_l1_hole"] == pytest.approx(expected, rel=0.05)
    assert found.values["diversity_l1"] == pytest.approx(found.values["diversity_l1_hole"] / 4, rel=1e-4)
    assert found.provenance["sampling"] == {"strength": 0.1, "num_samples": 3, "diversity_images": 400}


def test_sampling_options_are_those_of_the_evaluation() -> None:
    weak = paired(sampling={"strength": 0.0}, num_samples=2).evaluate(AddsNoise(), noise(), CPU)
    assert weak.values["diversity_l1"] == 0.0
    assert weak.values["psnr"] == paired().evaluate(Translator(), noise(), CPU).values["psnr"]
    assert "diversity_l1" not in paired(num_samples=1).evaluate(AddsNoise(), noise(), CPU).values
    for sampling, key in (({"strength": -1.0}, "sampling.strength"), ({"strenght": 1.0}, "strenght")):
        with raises(ConfigError, key):
            paired(sampling=sampling).check(AddsNoise())
    with raises(ConfigError, "sampling"):
        paired(sampling={"strength": 1.0}).check(Translator())
    with raises(ValueError, "num_samples=0"):
        paired(num_samples=0)
