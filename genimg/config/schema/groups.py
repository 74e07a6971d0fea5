"""The options of the config groups trainer, performance, evaluation and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genimg.config.schema.option import option, seed_option

_REFRESH = "List the files again; needed if files of a dataset of 10,000 files or more were rewritten in place"
_RANGE = "For 16- and 32-bit images: [low, high], the values that become black and white; null: see docs/data.md"
_FIT = "How to fit an image whose aspect ratio differs from that of image_size"
_FITS = ("crop", "stretch", "pad")


@dataclass
class Trainer:
    """The training loop. Durations and intervals are written as '25 epochs', '100k steps', '5M images' or '8 hours'."""

    duration: str = option("Duration of training", "25 epochs", type="duration")  # Radford et al.'s reference code
    batch_size: int = option("Number of images per step", 64)
    accumulation: int | str = option(
        "Number of microbatches that each batch is split into to save memory; auto: the fewest that fit in GPU memory",
        1,
        one_of=("auto",),
        or_type=(int,),
    )
    max_grad_norm: int | float | None = option("Maximum L2 norm of each parameter group's gradient; null: no clipping", None)
    sync_batch_norm: bool = option("With several GPUs: compute batch norm statistics over all GPUs", False)
    usual_duration: str | None = option(
        "Published duration for this kind of model; a much shorter run logs a warning", None, type="duration | null"
    )
    weights: str = option(
        "Weights for pictures and evaluations: ema (the first average of ema=[...]), the name of another average, "
        "raw, or auto (ema if there is one, else raw)",
        "auto",
        type="auto | ema | raw | name",
    )
    log_interval: str = option("Interval between logged values", "50 steps", type="duration")
    preview_interval: str = option("Interval between pictures in samples/ and TensorBoard", "5 epochs", type="duration")
    preview_seconds: int | float | None = option(
        "Maximum time between pictures in seconds, or a tenth of the training time so far if that is longer; null: "
        "use only preview_interval",
        30,
    )
    preview_images: int = option("Number of images in each picture", 64)
    # The clock decides when something is saved, never what is computed.
    checkpoint_interval: str = option("Interval between checkpoints", "5 epochs", type="duration")
    checkpoint_minutes: int | float | None = option(
        "Maximum time between checkpoints in minutes; a checkpoint of this kind, step-N-timed.pt, is replaced by the "
        "next one; null: use only checkpoint_interval",
        5,
    )
    keep_last: int = option(
        "Number of regular checkpoints to keep, besides the best and a timed one: the default needs disk space for 4", 2
    )


@dataclass
class Performance:
    """Settings that make training faster. They change the results only by rounding."""

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
    graph: bool | str = option(
        "Whole training steps as CUDA graphs; auto benchmarks them on a GPU", "auto", one_of=("auto", True, False)
    )
    activation_checkpointing: bool = option(
        "Recompute blocks of networks in the backward pass: slower, but needs less memory", False
    )
    cpu_optimizations: bool = option("Faster implementations of the same computations on a CPU; no effect elsewhere", True)
    threads: int | str = option(
        "Number of CPU threads; auto: $OMP_NUM_THREADS if set, else the fastest for training on a CPU, measured at the start "
        "and again when steps become slower",
        "auto",
        one_of=("auto",),
        or_type=(int,),
    )


@dataclass
class Evaluation:
    """Options of every evaluation."""

    _target_: str = option("")
    num_images: int = option("Number of images", 1000)
    batch_size: int = option("Batch size", 50)
    interval: str = option("Interval between evaluations; there is also one at the end", "5 epochs", type="duration")
    seed: int = seed_option("Seed")
    final_num_images: int | None = option(
        "Number of images of an additional evaluation at the end of training, such as 50000", None
    )
    stop_if: Any = option(
        "{factor: 3, evaluations: 2}: stop when the first metric is worse than 3 times its best value twice in a row; "
        "{metric: memorised, above: 0.5, evaluations: 2}: stop when this metric is above 0.5 twice in a row; "
        "below: 0.5 instead stops when it is below 0.5",
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
        "Metrics; the first one selects the best checkpoint; remove one with '~evaluation.metrics.NAME'", {}
    )
    additional: dict[str, Any] = option(
        "Additional extractors with their metrics, one for each option after the first in evaluation=[a,b]", {}
    )
    bootstrap: int = option("Number of resamples for 95 % intervals; 0: no intervals", 0)
    reconstructions: int = option(
        "Number of images that an autoencoder reconstructs, held-out ones if there are any; 0: none", 1000
    )
    denoised: int = option(
        "For diffusion models: number of images, held-out if available, whose loss at each noise level is measured; 0: none",
        250,
    )
    sampling: dict[str, Any] = option(
        "Sampling options of the model, such as {steps: 10}; genimg-sample ckpt=RUN --help lists those of a model", {}
    )
    lpips: Any = option(
        "LPIPS for reconstructions: {_target_: genimg.evaluation.image_metrics.LPIPS, backbone: alex, ...}",
        None,
        type="mapping | null",
    )
    cache_dir: str | None = option(
        "Cache directory for statistics of real images; null: $GENIMG_CACHE, or ~/.cache/genimg", None, type="directory | null"
    )


@dataclass
class Likelihood(Evaluation):
    """Likelihood of held-out images."""

    num_images: int = option("Maximum number of held-out images, chosen at random, stratified by class", 1000)
    num_samples: int = option("Number of latents per image (K); 5000 in the tables of Burda et al. 2016", 100)
    batch_size: int = option("Number of images per batch; does not influence the values", 100)
    seed: int = seed_option("Seed of the latents")


@dataclass
class Reconstruction(Evaluation):
    """Evaluation of reconstructions of held-out images."""

    num_images: int = option("Maximum number of held-out images, chosen at random, stratified by class", 5000)
    batch_size: int = option("Number of images per batch; does not influence the values", 100)
    extractor: Any = option("Feature extractor", type="mapping")
    lpips: Any = option(
        "{_target_: genimg.evaluation.image_metrics.LPIPS, backbone: alex, backbone_weights: FILE, linear_weights: FILE}",
        None,
        type="mapping | null",
    )


@dataclass
class PathLength(Evaluation):
    """Evaluation of the lengths of paths through a GAN's latents."""

    num_images: int = option("Number of paths, part of the metric's name; 50000 in the papers", 1000)
    batch_size: int = option("Number of paths per batch; does not influence the values", 50)
    seed: int = seed_option("Seed of the latents")
    distance: Any = option("Distance between images", type="mapping")
    space: str | None = option("Space of the paths: w or z; null: w for StyleGAN2, z for other GANs", None, one_of=("w", "z"))
    sampling: str = option(
        "Positions on the paths: end (at the start, as published for StyleGAN2) or full (at random, as for StyleGAN)",
        "end",
        one_of=("end", "full"),
    )
    epsilon: float = option("Length of a step, as a share of the path; 1e-4 in the papers", 1e-4)
    crop: bool = option("Compare only the middle of the image, where aligned portraits have the face", False)


@dataclass
class _Translation(Evaluation):
    """Evaluation of translations of held-out images."""

    num_images: int = option("Maximum number of held-out images, chosen at random, stratified by class", 1000)
    batch_size: int = option("Batch size of translation; does not influence the values if sampled_mode=eval", 50)
    seed: int = seed_option("Seed of a task's randomness, such as noise")
    extractor: Any = option(
        "Feature extractor for Fréchet and kernel distances, as in other evaluations", None, type="mapping | null"
    )


@dataclass
class PairedTranslation(_Translation):
    """Evaluation of translations against their targets."""

    best_by: str | None = option(
        "Metric that selects the best checkpoint; null: keep only the last checkpoint",
        "psnr",
        one_of=("psnr", "ssim", "ms_ssim", "l1", "lpips", "kd", "fd"),
        optional=True,
    )
    lpips: Any = option(
        "{_target_: genimg.evaluation.image_metrics.LPIPS, backbone: alex, backbone_weights: FILE, linear_weights: FILE}",
        None,
        type="mapping | null",
    )
    sampling: dict[str, Any] = option(
        "For random translations: sampling options, such as {steps: 10}; genimg-translate ckpt=RUN --help lists them", {}
    )
    num_samples: int = option("For random translations: number of translations per image for diversity_l1; 1: omit it", 4)
    diversity_images: int = option("For random translations: maximum number of images for diversity_l1", 100)


@dataclass
class UnpairedTranslation(_Translation):
    """Evaluation of translations without targets: cycle errors and distances between distributions."""

    # A translator that changes nothing has cycle and identity errors of 0, so these cannot choose the best checkpoint.
    best_by: str | None = option(
        "Metric that selects the best checkpoint; needs an extractor; null: keep only the last", None, one_of=("kd", "fd")
    )


@dataclass
class Data:
    """Options of every dataset."""

    _target_: str = option("")
    image_size: Any = option("Size in pixels, or [height,width]", type="int | list")
    channels: int = option("1: grey, 3: RGB, 4: RGB with alpha", 3)
    classes: list[Any] | None = option(
        "Classes to use, as names, numbers or index:N for a position, such as [cat,dog]; other classes are omitted; null: all",
        None,
        type="list | null",
    )
    validation: int | float | str = option(
        "Share of the images to hold out from training, or the name of another split such as test, for metrics on "
        "held-out images",
        0,
        type="number | text",
    )
    max_images: int | None = option(
        "Number of images to train on: a random part of the data, stratified by class and the same in every run; null: all",
        None,
        least=1,
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
        "JSON Lines file with the captions, in root; auto: see docs/data.md; null: none", "auto", type="auto | file | null"
    )
    range: list[int | float] | None = option(_RANGE, None)
    refresh_index: bool = option(_REFRESH, False)


@dataclass
class HuggingFace(Data):
    """A Hugging Face dataset in a directory or in the local cache."""

    root: str | None = option("Directory that save_to_disk wrote (set either root or hub)", None, type="directory | null")
    hub: str | None = option("Id of a dataset in the local cache, such as ylecun/mnist (set either root or hub)", None)
    subset: str | None = option("With hub: configuration of the dataset, if it has several", None)
    split: str | None = option("Split; null: the only one, or train", None)
    image_column: str | None = option("Column of the images; null: the only one with the feature Image", None)
    label_column: str = option(
        "Column of the labels; auto: the only one with the feature ClassLabel", "auto", type="auto | none | text"
    )
    caption_column: str | None = option(
        "Column of the captions; auto: a text column named text or caption; null: none", "auto", type="auto | text | null"
    )
    may_download: bool = option("With hub: download the dataset if it is not in the local cache", False)
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)
    range: list[int | float] | None = option(_RANGE, None)


@dataclass
class WebDataset(Data):
    """Tar shards in WebDataset's layout."""

    root: str = option("Directory of .tar files, one such file, or a pattern such as 'train-{000..009}.tar'", type="path")
    image: str | None = option("Extension of the images, if a sample has several; null: the only one", None)
    labels: str = option(
        "Extension of the files with labels, or json.KEY; auto: see docs/data.md", "auto", type="auto | none | text"
    )
    captions: str | None = option(
        "Extension of the files with captions, or json.KEY; auto: see docs/data.md; null: none",
        "auto",
        type="auto | text | null",
    )
    shuffle_buffer: int = option("Number of images that are shuffled together; shards are read one group after another", 10000)
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)
    range: list[int | float] | None = option(_RANGE, None)
    refresh_index: bool = option("List the files in the shards again, instead of using the saved list", False)


@dataclass
class Lmdb(Data):
    """Encoded images in an LMDB database."""

    root: str = option("Directory that holds data.mdb", type="directory")
    prefix: str = option("Start of the keys of the images, if there are other values", "")
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)
    range: list[int | float] | None = option(_RANGE, None)
    refresh_index: bool = option("List the keys again, instead of using the saved list", False)


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
    """A small dataset in torchvision's layout, downloaded if it is missing."""

    root: str = option("Directory of the dataset", "${oc.env:GENIMG_DATA,datasets}", type="directory")
    split: str = option("Split", "train", one_of=("train", "test"))
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "stretch", one_of=_FITS)


@dataclass
class Npz(Data):
    """Images in a NumPy archive."""

    path: str = option("Archive (.npz)", type="file")
    split: str | None = option(
        "Split of an archive with arrays such as x_train and x_test; null: train", None, type="train | val | test | null"
    )
    images: str | None = option("Name of the array of images; null: found by names and shapes, see docs/data.md", None)
    labels: str = option("Name of the array of labels", "auto", type="auto | none | text")
    range: list[int | float] | None = option(
        "[low, high]: the values that become black and white; null: values are uint8, or floats between 0 and 1", None
    )
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    fit: str = option(_FIT, "crop", one_of=_FITS)


@dataclass
class Prepared(Data):
    """Images that genimg-prepare packed."""

    root: str = option("Directory that genimg-prepare wrote", type="directory")
    image_size: Any = option("Size in pixels of the packed images; any other value is an error", 32, type="int | list")


@dataclass
class Shapes(Data):
    """Generated images of simple shapes."""

    seed: int = seed_option("Seed of the dataset, independent of the run's seed")
    num_images: int = option("Number of images", 10000)
    image_size: Any = option("Size in pixels, or [height,width]", 32, type="int | list")
    num_objects: int = option(
        "Number of shapes in an image: 1, or 2 with captions such as 'a small red circle above a large blue square'", 1
    )
    labels: str = option("Classes: shape, or colour and shape such as 'red circle'", "shape", one_of=("shape", "color_shape"))
    held_out: list[str] = option("Combinations that are never drawn, such as [red circle,blue square]", [])


@dataclass
class _Two(Data):
    """Two domains of images, a and b."""

    root: str | None = option("Directory of the files", None, type="directory | null")
    a: str | None = option("Folder of domain a (set either root, or a and b)", None, type="directory | null")
    b: str | None = option("Folder of domain b (set either root, or a and b)", None, type="directory | null")
    image_size: Any = option("Size of the images of both domains in pixels, or [height,width]", 256, type="int | list")
    channels_a: int | None = option("Number of channels of a, if it differs from that of b", None)
    channels_b: int | None = option("Number of channels of b, if it differs from that of a", None)
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
    """A dataset that a function in your own package returns."""

    factory: str = option("Function that returns the dataset, as package.module:function", type="text")
    arguments: dict[str, Any] = option("Keyword arguments of the function", {})
    image_size: Any = option("Size in pixels, or [height,width]; null: as in the first image", None, type="int | list | null")
    channels: int | None = option("1: grey, 3: RGB, 4: RGB with alpha; null: as in the first image", None)  # type: ignore[assignment]
    fit: str = option(_FIT, "crop", one_of=_FITS)


@dataclass
class Given(Data):
    """Images that a Python program passes in memory."""

    image_size: Any = option("Size in pixels, or [height,width]; null: as in the first image", None, type="int | list | null")
    channels: int | None = option("1: grey, 3: RGB, 4: RGB with alpha; null: as in the first image", None)  # type: ignore[assignment]
    fit: str = option(_FIT, "crop", one_of=_FITS)


GROUPS: dict[str, dict[str, type]] = {
    "trainer": {"trainer": Trainer},
    "performance": {"performance": Performance},
    "evaluation": {
        "distances": Distances, "likelihood": Likelihood, "reconstruction": Reconstruction, "path_length": PathLength,
        "paired_translation": PairedTranslation, "unpaired_translation": UnpairedTranslation,
    },
    "data": {
        "folder": Folder, "imagenet": ImageNet, "torchvision": Torchvision, "npz": Npz, "prepared": Prepared, "shapes": Shapes,
        "paired": Paired, "unpaired": Unpaired, "module": Module, "given": Given, "huggingface": HuggingFace,
        "webdataset": WebDataset, "lmdb": Lmdb,
    },
}  # fmt: skip
"""Schemas by group and name. Each file of a group includes one in its defaults list: ``/_schema/GROUP/NAME@_here_``."""

OPEN: dict[str, dict[str, type]] = {"data": {"common": Data}}
"""Schemas for files that add keys, such as the configs of your own datasets."""
