"""The options of the config groups trainer, performance, evaluation and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genimg.config.schema.option import option, seed_option

_REFRESH = "List the files again: needed only if single files of 10,000 or more were rewritten in place"
_RANGE = "[low, high] of 16- and 32-bit images: the values that become black and white; null: see docs/data.md"
_FIT = "What to do if image_size has another aspect ratio than an image"
_FITS = ("crop", "stretch", "pad")


@dataclass
class Trainer:
    """The training loop. Durations and intervals are written as '25 epochs', '100k steps' or '5M images'."""

    duration: str = option("Duration of the whole training", "25 epochs", type="duration")  # Radford et al.'s reference code
    batch_size: int = option("Images per step", 64)
    accumulation: int | str = option(
        "Number of microbatches that each batch is split into to save memory; auto: as few as fit the GPU's memory",
        1,
        one_of=("auto",),
        or_type=(int,),
    )
    max_grad_norm: int | float | None = option("L2 norm to clip each parameter group's gradient to", None)
    sync_batch_norm: bool = option("On several GPUs: compute batch norm over all of them together", False)
    usual_duration: str | None = option(
        "Published duration for this kind of model; a much shorter training logs a warning", None, type="duration | null"
    )
    weights: str = option(
        "Weights for pictures and evaluations: ema, the first average of ema=[...]; the name of another; raw; auto: ema if "
        "there is one, else raw",
        "auto",
        type="auto | ema | raw | name",
    )
    log_interval: str = option("Interval of logged values", "50 steps", type="duration")
    preview_interval: str = option("Interval of pictures in samples/ and TensorBoard", "5 epochs", type="duration")
    preview_seconds: int | float | None = option(
        "Longest time between pictures in s; after 5 minutes, every tenth of the training time so far; "
        "null: by the interval alone",
        30,
    )
    preview_images: int = option("Number of images in each picture", 64)
    # The clock decides when something is saved, never what is computed.
    checkpoint_interval: str = option("Interval of checkpoints", "5 epochs", type="duration")
    checkpoint_minutes: int | float | None = option(
        "Longest time between checkpoints in min; step-N-timed.pt is replaced by the next checkpoint; "
        "null: by the interval alone",
        5,
    )
    keep_last: int = option(
        "Number of checkpoints by interval to keep, besides the best one and one by time: disk space for 4 is needed", 2
    )


@dataclass
class Performance:
    """How the same training runs fastest. Results differ by rounding only."""

    _target_: str = option("")
    channels_last: bool | str = option("Channels-last memory format for convolutions", "auto", one_of=("auto", True, False))
    fused_optimizer: bool | str = option(
        "Fused optimizer kernels, if the optimizer has them", "auto", one_of=("auto", True, False)
    )
    compile: bool | str = option(
        "Mode of torch.compile; auto benchmarks it on a GPU",
        "auto",
        one_of=("auto", False, "default", "reduce-overhead", "max-autotune"),
    )
    activation_checkpointing: bool = option(
        "Recompute blocks of networks in the backward pass: slower, but needs less memory", False
    )
    cpu_optimizations: bool = option("Faster implementations of the same computations on a CPU; no effect elsewhere", True)


@dataclass
class Evaluation:
    """What every kind of evaluation has in common."""

    _target_: str = option("")
    num_images: int = option("Number of images", 1000)
    batch_size: int = option("Batch size", 50)
    interval: str = option("Interval of evaluations; there is one at the end, too", "5 epochs", type="duration")
    seed: int = seed_option("Seed")
    final_num_images: int | None = option(
        "Number of images of an additional evaluation at the end of the training, such as 50000", None
    )
    stop_if: Any = option(
        "{factor: 3, evaluations: 2}: stop when the first metric is worse than 3 times its best twice in a row; "
        "{metric: memorised, above: 0.5, evaluations: 2} (or below:): bound any metric",
        None,
        type="mapping | null",
    )


@dataclass
class Distances(Evaluation):
    """Evaluation of generated images by the features of an extractor."""

    num_images: int = option("Number of generated images, part of the metrics' names", 5000)
    num_real: int | None = option(
        "Number of real images, chosen at random, stratified by class, the same in every run; null: all", None
    )
    batch_size: int = option("Batch size of generation and extraction; does not influence the values", 250)
    seed: int = seed_option("Seed of the generated images")
    extractor: Any = option("Feature extractor", type="mapping")
    metrics: dict[str, Any] = option(
        "Metrics; the first one chooses the best checkpoint; remove one with '~evaluation.metrics.NAME'", {}
    )
    additional: dict[str, Any] = option(
        "Further extractors with their metrics, one for each further option of evaluation=[a,b]", {}
    )
    bootstrap: int = option("Number of resamples for 95 % intervals; 0: no intervals", 0)
    reconstructions: int = option(
        "Number of images that an autoencoder reconstructs, held-out ones if there are any; 0: none", 1000
    )
    lpips: Any = option(
        "For reconstructions: {_target_: genimg.evaluation.image_metrics.LPIPS, backbone: alex, ...}",
        None,
        type="mapping | null",
    )
    cache_dir: str | None = option(
        "Cache of real statistics; null: $GENIMG_CACHE, or ~/.cache/genimg", None, type="directory | null"
    )


@dataclass
class Likelihood(Evaluation):
    """Likelihood of held-out images."""

    num_images: int = option("Largest number of held-out images, chosen at random, stratified by class", 1000)
    num_samples: int = option("Number K of latents per image; 5000 in the tables of Burda et al. 2016", 100)
    batch_size: int = option("Images at once; does not influence the values", 100)
    seed: int = seed_option("Seed of the latents")


@dataclass
class _Translation(Evaluation):
    """Evaluation of translations of held-out images."""

    num_images: int = option("Largest number of held-out images, chosen at random, stratified by class", 1000)
    batch_size: int = option("Batch size of translation; does not influence the values in sampled_mode=eval", 50)
    seed: int = seed_option("Seed of a task's randomness, such as noise")
    extractor: Any = option(
        "Feature extractor of another evaluation, for Fréchet and kernel distances", None, type="mapping | null"
    )


@dataclass
class PairedTranslation(_Translation):
    """Evaluation of translations against their targets."""

    best_by: str | None = option(
        "Metric that chooses the best checkpoint; null: keep only the last",
        "psnr",
        one_of=("psnr", "ssim", "ms_ssim", "l1", "lpips", "kd", "fd"),
        optional=True,
    )
    lpips: Any = option(
        "{_target_: genimg.evaluation.image_metrics.LPIPS, backbone: alex, backbone_weights: FILE, linear_weights: FILE}",
        None,
        type="mapping | null",
    )


@dataclass
class UnpairedTranslation(_Translation):
    """Evaluation of the cycles and distributions of translations."""

    # A translator that changes nothing has cycle and identity errors of 0, so these cannot choose the best checkpoint.
    best_by: str | None = option(
        "Metric that chooses the best checkpoint, with an extractor; null: keep only the last", None, one_of=("kd", "fd")
    )


@dataclass
class Data:
    """What every dataset has in common."""

    _target_: str = option("")
    image_size: Any = option("Size in pixels, or [height,width]", type="int | list")
    channels: int = option("1: grey, 3: RGB, 4: RGB with alpha", 3)
    validation: int | float | str = option(
        "Share of the images to hold out of training, or another split such as test, for metrics of held-out images",
        0,
        type="number | text",
    )
    horizontal_flip: bool = option("Mirror a random half of the training images", False)
    storage: str = option("Where the images are kept", "auto", one_of=("auto", "device", "host", "workers"))
    num_workers: int | str = option(
        "Decoding processes or threads; auto: one per core, at most 8",
        "auto",
        one_of=("auto",),
        or_type=(int,),
        least=0,
        most=1024,
    )
    max_corrupt: int = option("Number of undecodable images to skip with a warning before the run stops", 0)


@dataclass
class Folder(Data):
    """Images below a directory or in a .zip."""

    root: str = option("Directory or .zip", type="path")
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)
    labels: str = option("Whether images have classes", "auto", one_of=("auto", "required", "none"))
    captions: str | None = option(
        "JSON lines file within root; auto: see docs/data.md; null: none", "auto", type="auto | file | null"
    )
    range: list[int | float] | None = option(_RANGE, None)
    refresh_index: bool = option(_REFRESH, False)


@dataclass
class ImageNet(Data):
    """ImageNet in torchvision's layout."""

    root: str = option("Directory with train/CLASS/*.JPEG and val/CLASS/*.JPEG", type="directory")
    split: str = option("Split", "train", one_of=("train", "val"))
    image_size: Any = option("Size in pixels, or [height,width]", 64, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)
    refresh_index: bool = option(_REFRESH, False)


@dataclass
class Torchvision(Data):
    """A small dataset in torchvision's layout, downloaded when absent."""

    root: str = option("Directory of the dataset", "${oc.env:GENIMG_DATA,datasets}", type="directory")
    split: str = option("Split", "train", one_of=("train", "test"))
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "stretch", one_of=_FITS)


@dataclass
class Npz(Data):
    """Images in a NumPy archive."""

    path: str = option("File", type="file")
    split: str | None = option(
        "Split of an archive with arrays such as x_train and x_test; null: train", None, type="train | val | test | null"
    )
    images: str | None = option("Name of the array of images; null: by names and shapes, see docs/data.md", None)
    labels: str = option("Name of the array of labels", "auto", type="auto | none | text")
    range: list[int | float] | None = option(
        "[low, high]: the values that become black and white; null: uint8, or floats between 0 and 1", None
    )
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)


@dataclass
class Prepared(Data):
    """Images that genimg-prepare packed."""

    root: str = option("Directory that genimg-prepare wrote", type="directory")
    image_size: Any = option("Size in pixels as they were packed; others are refused", 32, type="int | list")


@dataclass
class Shapes(Data):
    """Drawn shapes."""

    seed: int = seed_option("Seed of the dataset, not of the training")
    num_images: int = option("Number of images", 10000)
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    num_objects: int = option("1, or 2 with captions such as 'a small red circle above a large blue square'", 1)
    labels: str = option("Classes: shape, or colour and shape such as 'red circle'", "shape", one_of=("shape", "color_shape"))
    held_out: list[str] = option("Combinations that are never drawn, such as [red circle,blue square]", [])


@dataclass
class _Two(Data):
    """Two domains of images, a and b."""

    root: str | None = option("Directory of the files", None, type="directory | null")
    a: str | None = option("Folder of images a, instead of root", None, type="directory | null")
    b: str | None = option("Folder of images b, instead of root", None, type="directory | null")
    image_size: Any = option("Size of either image in pixels, or [height,width]", 256, type="int | list")
    channels_a: int | None = option("Channels of a, if they differ from those of b", None)
    channels_b: int | None = option("Channels of b, if they differ from those of a", None)
    fit: str = option(_FIT, "crop", one_of=_FITS)
    range: list[int | float] | None = option(_RANGE, None)
    refresh_index: bool = option(_REFRESH, False)


@dataclass
class Paired(_Two):
    """Pairs of images, side by side in one file or with equal names in two folders."""

    direction: str = option("Direction: a2b translates a to b, b2a translates b to a", "a2b", one_of=("a2b", "b2a"))
    fit: str = option(_FIT, "stretch", one_of=_FITS)


@dataclass
class Unpaired(_Two):
    """Two folders of images without pairs."""


@dataclass
class Module(Data):
    """What a function of your own package returns."""

    factory: str = option("Function, as package.module:function", type="text")
    arguments: dict[str, Any] = option("Its keyword arguments", {})
    image_size: Any = option("Size in pixels, or [height,width]; null: that of the first image", None, type="int | list | null")
    channels: int | None = option("1: grey, 3: RGB, 4: RGB with alpha; null: those of the first image", None)  # type: ignore[assignment]
    fit: str = option(_FIT, "crop", one_of=_FITS)


@dataclass
class Given(Data):
    """Images that a Python program brings."""

    image_size: Any = option("Size in pixels, or [height,width]; null: that of the first image", None, type="int | list | null")
    channels: int | None = option("1: grey, 3: RGB, 4: RGB with alpha; null: those of the first image", None)  # type: ignore[assignment]
    fit: str = option(_FIT, "crop", one_of=_FITS)


GROUPS: dict[str, dict[str, type]] = {
    "trainer": {"trainer": Trainer},
    "performance": {"performance": Performance},
    "evaluation": {
        "distances": Distances, "likelihood": Likelihood, "paired_translation": PairedTranslation,
        "unpaired_translation": UnpairedTranslation,
    },
    "data": {
        "folder": Folder, "imagenet": ImageNet, "torchvision": Torchvision, "npz": Npz, "prepared": Prepared, "shapes": Shapes,
        "paired": Paired, "unpaired": Unpaired, "module": Module, "given": Given,
    },
}  # fmt: skip
"""Schemas by group and name. A file of the group includes one in its defaults list: ``/_schema/GROUP/NAME@_here_``."""

OPEN: dict[str, dict[str, type]] = {"data": {"common": Data}}
"""Schemas for files that add keys, such as the configs of your own datasets."""
