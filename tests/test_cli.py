"""What a user sees: one clear message for what they can cause, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fork_server import run_command
from PIL import Image

from genimg.utils.paths import config_dir

SMALL = ["data.num_images=64", "data.image_size=16", "model.generator.width=8", "trainer.batch_size=16", "device=cpu"]
SMALL += ["trainer.preview_images=4"]
EVALUATED = [*SMALL, "evaluation.num_images=40", "evaluation.batch_size=20"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that relative paths and caches land in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def run(command: str, *arguments: str, blocked_network: bool = False) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if blocked_network:  # a proxy that refuses connections: the same on machines with and without a network
        environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return run_command(command, *arguments, env=environment)


def succeed(command: str, *arguments: str) -> str:
    result = run(command, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def refuse(*words: str, command: str = "train", arguments: list[str], blocked_network: bool = False) -> None:
    """The command fails with one message that holds all ``words``, and no traceback."""
    result = run(command, *arguments, blocked_network=blocked_network)
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert "Traceback" not in output, output
    assert "error: " in result.stderr, output
    message = result.stderr.split("error: ", 1)[1]
    for word in words:
        assert word in message, output


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 20)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def test_data_errors_name_the_files(home: Path) -> None:
    (home / "empty").mkdir()
    refuse("empty holds no images", arguments=["data=folder", "data.root=empty", "evaluation=none"])
    write_images(home / "plain", 8)
    (home / "plain" / "broken.png").write_bytes(b"not a png")
    base = ["data=folder", "data.root=plain", "data.image_size=16", "model.generator.width=8", "trainer.batch_size=4"]
    base += ["evaluation=none", "trainer.duration=2 steps", "trainer.preview_images=4"]
    refuse("plain/broken.png", "max_corrupt=0", arguments=[*base, "run_dir=a"])
    refuse("plain/broken.png", arguments=[*base, "run_dir=b", "data.storage=workers", "trainer.duration=9 steps"])
    output = succeed("train", *base, "run_dir=c", "data.max_corrupt=1")
    assert "skipped a corrupt image: " in output
    assert "plain/broken.png" in output
    refuse("plain has no labels", "data.labels=required", arguments=[*base, "data.max_corrupt=1", "data.labels=required"])


def test_without_network_the_messages_say_what_to_put_where(home: Path) -> None:
    write_images(home / "plain", 8)
    arguments = ["data=folder", "data.root=plain", "data.image_size=16", "trainer.batch_size=4"]
    words = ["weights-inception-2015-12-05-6726825d.pth", str(home / "torch" / "hub" / "checkpoints"), "another evaluation"]
    refuse(*words, arguments=[*arguments, "evaluation=inception"], blocked_network=True)
    assert not list((home / "torch").rglob("*.pth*"))
    refuse("cifar10", "datasets", "cifar-10-batches-py", arguments=["data=cifar10"], blocked_network=True)


def test_a_traceback_is_shown_only_when_requested(home: Path) -> None:
    result = run("train", "trainer.batch_size=0", "traceback=true")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "error: trainer.batch_size=0" in result.stderr


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("train", ["conditioning", "data", "evaluation", "experiment", "loss", "model", "optimizer", "penalty", "trainer"]),
        ("evaluate", ["evaluation"]),
        ("features", ["data", "evaluation"]),
        ("prepare", ["data", "evaluation"]),
        ("sample", []),
    ],
)
def test_help_lists_the_options_of_the_groups_that_the_command_takes(
    command: str, groups: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    (home / "mine" / "data").mkdir(parents=True)
    (home / "mine" / "data" / "my_database.yaml").write_text("defaults: [base, _self_]\n")
    help_text = succeed(command, "--config-dir", "mine", "--help")
    listed = dict(re.findall(r"^(\w+): ((?:\w+, )+\w+|default)$", help_text, re.MULTILINE))
    assert set(groups) <= set(listed) if command == "train" else set(groups) == set(listed)
    for group, options in listed.items():
        names = {path.stem for path in (Path(config_dir()) / group).glob("*.yaml") if path.stem.rpartition("_")[2] != "base"}
        assert set(options.split(", ")) == names | ({"my_database"} if group == "data" else set())


def test_a_value_with_a_comma_is_told_its_quotes(home: Path) -> None:
    words = ["text=a ring, a cross has several values: write text=\"'a ring, a cross'\" for one string"]
    refuse(*words, command="sample", arguments=["ckpt=run", "text=a ring, a cross"])


def test_labels_that_a_folder_lacks_are_explained(home: Path) -> None:
    write_images(home / "plain", 8)
    arguments = ["data=folder", "data.root=plain", "data.image_size=16", "trainer.batch_size=4", "evaluation=none"]
    words = [
        "conditioning on labels needs data with labels",
        "data folder, data.root=",
        "/plain,",
        "subdirectory for each class",
    ]
    refuse(*words, arguments=[*arguments, "conditioning=projection", "run_dir=run"])
    refuse("remove data.labels=none", arguments=[*arguments, "conditioning=projection", "data.labels=none", "run_dir=run"])
    assert not (home / "run").exists()


def test_a_first_image_without_its_caption_is_named(home: Path) -> None:
    write_images(home / "plain", 8)
    for path in sorted((home / "plain").glob("*.png"))[1:]:
        path.with_suffix(".txt").write_text("a picture")
    arguments = ["data=folder", "data.root=plain", "data.image_size=16", "trainer.batch_size=4", "evaluation=none"]
    words = [
        "1 of the 8 images",
        "the first is 0.png, which has no .txt beside it: write it, or ignore captions with data.captions=null",
    ]
    refuse(*words, arguments=[*arguments, "conditioning=text", "run_dir=run"])
    assert not (home / "run").exists()


def test_train_evaluate_and_sample(home: Path) -> None:
    output = succeed("train", *EVALUATED, "trainer.duration=9 steps", "evaluation.interval=4 steps", "run_dir=run")
    for name in ("config.yaml", "train.log", "metrics.jsonl", "summary.json", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert (home / "run" / name).is_file(), name
    assert list((home / "run" / "tensorboard").glob("events*"))
    assert list((home / "run" / "samples").glob("samples-*.png"))
    assert "fd40_shapes_v2" in output
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["steps"] == 9
    assert summary["provenance"]["generated"]["num_images"] == 40
    assert summary["provenance"]["generated"]["weights"] == "ema"
    assert summary["versions"]["torch"]

    again = succeed("train", "resume=run")
    assert f"this run is complete, with 144 images: fd40_shapes_v2 is {summary['last']['fd40_shapes_v2']:.6g}" in again
    assert "to train longer than 9 steps: genimg-train resume=run trainer.duration=..." in again
    assert "images/s" not in again
    assert "finished" not in again
    shorter = succeed("train", "resume=run", "trainer.duration=4 steps")
    assert "nothing to train: trainer.duration=4 steps is 64 images, and this run has seen 144 already" in shorter
    assert "genimg-train resume=run trainer.duration='... images'" in shorter
    assert "this run is complete" not in shorter

    succeed("evaluate", "ckpt=run", "output=result.json")
    result = json.loads((home / "result.json").read_text())
    assert result["metrics"] == summary["last"]
    assert result["provenance"] == summary["provenance"]
    again = succeed("evaluate", "ckpt=run/checkpoints/last.pt", "batch_size=7", "num_images=40")
    assert f"{summary['last']['fd40_shapes_v2']:.5g}"[:5] in again

    succeed("sample", "ckpt=run", "num_images=5", "seed=3", "output=one")
    succeed("sample", "ckpt=run/checkpoints/last.pt", "num_images=3", "seed=3", "batch_size=1", "output=two")
    assert len(list((home / "one").glob("*.png"))) == 5
    assert (home / "one.png").is_file()
    for name in ("000000.png", "000001.png", "000002.png"):  # image i is a function of the seed and i alone
        assert np.array_equal(Image.open(home / "one" / name), Image.open(home / "two" / name))
    refuse("label=3", "without labels", command="sample", arguments=["ckpt=run", "label=3"])
    refuse("num_images=0", command="sample", arguments=["ckpt=run", "num_images=0"])

    (home / "broken.pt").write_bytes((home / "run" / "checkpoints" / "last.pt").read_bytes()[:5000])
    torch.save({"weights": torch.zeros(3)}, home / "other.pt")
    for command in ("evaluate", "sample"):
        refuse("broken.pt", "truncated, or was not written by torch.save", command=command, arguments=["ckpt=broken.pt"])
        refuse("other.pt", "not a genimg checkpoint", command=command, arguments=["ckpt=other.pt"])
        missing = "ckpt is required" if command == "sample" else "nothing to evaluate: give ckpt=CHECKPOINT"
        refuse(missing, command=command, arguments=[])
        refuse("nowhere", "does not exist", command=command, arguments=["ckpt=nowhere"])


def test_a_checkpoint_whose_config_names_other_code_is_refused(home: Path) -> None:
    succeed("train", *SMALL, "trainer.duration=2 steps", "evaluation=none", "run_dir=run")
    path = home / "run" / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["model"]["generator"] |= {"_target_": "os.mkdir", "path": str(home / "owned")}
    torch.save(state, path)
    refuse("os.mkdir", "refused", command="sample", arguments=["ckpt=run"])
    # A checkpoint cannot allow its own code either, nor switch the comparison of configs off.
    for config in (state["config"], state["raw_config"]):
        config["model"]["generator"] |= {"_target_": "os.mkdir", "path": str(home / "owned")}
        config["allow"] = ["os", "posix"]
        config["resume_force"] = True
    torch.save(state, path)
    (home / "run" / "checkpoints" / "step-00000002.pt").unlink()
    for command, arguments in (("sample", ["ckpt=run"]), ("train", ["resume=run/checkpoints/last.pt", "run_dir=other"])):
        refuse("os.mkdir", "refused", command=command, arguments=arguments)
    assert not (home / "owned").exists()


def test_divergence_stops_with_the_group_the_step_and_what_to_try(home: Path) -> None:
    arguments = [*SMALL, "trainer.duration=60 steps", "trainer.log_interval=2 steps", "evaluation=none", "run_dir=run"]
    arguments += ["optimizer=sgd", "optimizer.lr=1e25", "trainer.checkpoint_interval=1 steps"]
    refuse("diverged", "at step", "optimizer.lr", "checkpoint", arguments=arguments)
    assert json.loads((home / "run" / "summary.json").read_text())["status"] == "diverged"
    for path in (home / "run" / "checkpoints").glob("*.pt"):
        assert all(torch.isfinite(v).all() for v in torch.load(path, weights_only=True)["method"].values())


def test_a_sweep_gives_each_job_a_directory_and_survives_a_failing_one(home: Path) -> None:
    small = [a for a in EVALUATED if "model." not in a]
    result = run(
        "train", "-m", "model=dcgan_small,vae_small", "optimizer.lr=1e-4,-1.0", *small, "trainer.duration=2 steps",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    output = result.stdout + result.stderr
    assert result.returncode == 2
    assert "Traceback" not in output
    jobs = sorted(path for path in (home / "sweep").iterdir() if path.is_dir())
    assert [job.name[:3] for job in jobs] == ["000", "001", "002", "003"]
    assert not any(set("=,() ") & set(job.name) for job in jobs)
    finished = [job for job in jobs if (job / "summary.json").is_file()]
    assert finished == [jobs[0], jobs[2]]
    assert output.count("this job failed") == 2


def test_the_value_to_optimise_is_returned(home: Path) -> None:
    program = (
        "import sys, json; sys.argv = ['genimg-train', *sys.argv[1:]]\n"
        "from genimg import cli\n"
        "from genimg.commands import train as command\n"
        "train = command.train\n"
        "command.train = lambda config: print('RETURNED', train(config))\n"
        "cli.train()"
    )
    arguments = [*EVALUATED, "trainer.duration=8 steps", "evaluation.interval=4 steps", "run_dir=run"]
    output = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True).stdout
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert f"RETURNED {summary['best']['fd40_shapes_v2']}" in output


def test_configs_of_your_own_come_from_config_dir(home: Path) -> None:
    (home / "mine" / "model").mkdir(parents=True)
    (home / "mine" / "model" / "tiny.yaml").write_text("defaults:\n  - dcgan_small\n  - _self_\ngenerator:\n  width: 8\n")
    output = succeed("train", "--config-dir", "mine", "model=tiny", "--cfg", "job")
    assert "width: 8" in output


def test_a_package_of_your_own_is_built_only_when_allowed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mylosses.py").write_text("def mine(fake_logits):\n    return -fake_logits.mean()\n")
    monkeypatch.setenv("PYTHONPATH", str(home))
    base = [*SMALL, "trainer.duration=2 steps", "evaluation=none", "loss.generator._target_=mylosses.mine"]
    refuse("mylosses.mine", "allow=[mylosses]", arguments=[*base, "run_dir=a"])
    succeed("train", *base, "allow=[mylosses]", "run_dir=b")


def test_mistakes_are_found_before_data_or_weights_are_fetched(home: Path) -> None:
    refuse("ELBO", arguments=["data=cifar10", "loss=elbo", "likelihood=gaussian"], blocked_network=True)
    refuse("data.image_size=[30,30]", arguments=["data.image_size=30", "evaluation=inception"], blocked_network=True)
    assert not list(home.iterdir()) or not list(home.rglob("config.yaml"))


def test_a_refused_start_leaves_no_directory_behind(home: Path) -> None:
    refuse("trainer.batch_size=0", arguments=["trainer.batch_size=0", "run_dir=run"])
    refuse("resume=nowhere", arguments=["resume=nowhere"])
    assert not (home / "run").exists()
    assert not (home / "nowhere").exists()


def test_changing_the_evaluation_on_resume_starts_a_new_best(home: Path) -> None:
    succeed("train", *EVALUATED, "trainer.duration=4 steps", "run_dir=a run")
    succeed("train", "resume='a run'", "evaluation.num_images=30", "trainer.duration=6 steps")
    summary = json.loads((home / "a run" / "summary.json").read_text())
    assert set(summary["best"]) > {"fd30_shapes_v2", "is30_shapes_v2", "is30_shapes_v2_std", "precision30_shapes_v2"}
    assert summary["steps"] == 6


@pytest.mark.real_data
def test_real_digits_train_and_evaluate(home: Path, real_mnist_root: Path) -> None:
    arguments = ["data=mnist", f"data.root={real_mnist_root}", "model.generator.width=8", "trainer.duration=30 steps"]
    succeed("train", *arguments, "evaluation.num_images=200", "evaluation.num_real=500", "run_dir=run")
    values = json.loads((home / "run" / "summary.json").read_text())["last"]
    assert set(values) > {
        "fd200_mnist_v2",
        "is200_mnist_v2",
        "is200_mnist_v2_std",
        "recall200_mnist_v2",
        "class_coverage200_mnist_v2",
    }


@pytest.mark.real_data
def test_a_folder_of_real_photos_trains_from_workers(home: Path, real_cifar10_root: Path) -> None:
    arguments = ["data=folder", f"data.root={real_cifar10_root}/cifar10/train", "model.generator.width=8"]
    output = succeed("train", *arguments, "trainer.duration=5 steps", "data.storage=workers", "data.num_workers=2",
                     "evaluation=none", "run_dir=run")  # fmt: skip
    assert "storage workers" in output
    assert "10 classes" in output
