"""Training by several processes of torchrun: the same steps as one process, and a run that survives its processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from fork_server import run_command
from PIL import Image
from sampling import only_with_all
from test_resume import MODELS, TINY, assert_same_run, losses_of, tensors

TRAINING = [*TINY, "precision=fp32", "evaluation=shapes", "evaluation.interval=8 steps", "evaluation.num_images=30",
            "evaluation.batch_size=20", "trainer.duration=12 steps"]  # fmt: skip
BATCH_STATISTICS = re.compile(r"running_mean|running_var|num_batches_tracked")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One thread each, so that sums are taken in the same order however many processes there are."""
    return {**os.environ, "GENIMG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def start(options: list[str], arguments: list[str], environment: dict[str, str], **more: Any) -> subprocess.Popen[str]:
    """torchrun itself, or with no options a single process without it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options] if options else [sys.executable]
    command = [*launcher, "-m", "genimg.train", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def train(options: list[str], arguments: list[str], environment: dict[str, str]) -> str:
    if not options:
        done = run_command("train", *arguments, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
    process = start(options, arguments, environment)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    return output


TWO = ["--standalone", "--nproc-per-node=2"]


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)


def assert_same_weights(one: Path, other: Path) -> int:
    """Bit for bit, but for the running statistics of batch norm; returns how many of those differ."""
    left, right = last_checkpoint(one), last_checkpoint(other)
    differing = 0
    for key in ("method", "optimizers"):
        a, b = tensors(left[key]), tensors(right[key])
        assert a.keys() == b.keys()
        for name in a:
            if BATCH_STATISTICS.search(name):
                differing += not torch.equal(a[name], b[name])
            else:
                assert torch.equal(a[name], b[name]), f"{key}{name}"
    return differing


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    """Return a function that trains by two ranks, each set of arguments once, and returns the run and its output."""
    folder = tmp_path_factory.mktemp("two_ranks")
    environment = {**os.environ, "GENIMG_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}

    @cache
    def train_once(*arguments: str) -> tuple[Path, str]:
        run_dir = folder / str(len(list(folder.iterdir())))
        return run_dir, train(TWO, [*arguments, f"run_dir={run_dir}"], environment)

    return train_once


@pytest.mark.parametrize("family", ["dcgan", only_with_all("vae")])
def test_two_ranks_take_the_steps_of_one_that_accumulates_twice_as_many_microbatches(
    family: str, two_ranks: Callable[..., tuple[Path, str]], tmp_path: Path, environment: dict[str, str]
) -> None:
    arguments = [*TRAINING, *MODELS[family]]
    two, output = two_ranks(*arguments)
    train([], [*arguments, f"run_dir={tmp_path / 'one'}", "trainer.accumulation=2"], environment)
    differing = assert_same_weights(two, tmp_path / "one")
    assert differing > 0  # each rank's batch norm has seen its own images
    assert losses_of(two) == [pytest.approx(record, rel=1e-6) for record in losses_of(tmp_path / "one")]
    assert "2 processes, each with 8 images of a batch" in output
    assert output.count("training for 12 steps") == 1  # said once, by the first rank
    assert json.loads((two / "summary.json").read_text())["processes"] == 2
    assert not [path for path in two.parent.iterdir() if not path.name.isdigit() and path.name != "cache"]


@pytest.mark.exhaustive
def test_two_ranks_that_accumulate_draw_the_noise_of_one(tmp_path: Path, environment: dict[str, str]) -> None:
    """Four gradients are then added in another order, so that the first steps are equal but for rounding."""
    arguments = [*TRAINING, *MODELS["dcgan"], "trainer.duration=4 steps"]
    train(TWO, [*arguments, f"run_dir={tmp_path / 'two'}", "trainer.accumulation=2"], environment)
    train([], [*arguments, f"run_dir={tmp_path / 'one'}", "trainer.accumulation=4"], environment)
    assert losses_of(tmp_path / "two") == [pytest.approx(record, rel=1e-4) for record in losses_of(tmp_path / "one")]


@pytest.mark.exhaustive
def test_the_image_pools_of_two_ranks_are_those_of_one(tmp_path: Path, environment: dict[str, str]) -> None:
    tiny.unpaired_folders(tmp_path / "unpaired")
    cyclegan = [each.replace("=unpaired", f"={tmp_path / 'unpaired'}") if "root" in each else each
                for each in tiny.TRANSLATORS["cyclegan"]]  # fmt: skip
    arguments = [
        "model=cyclegan", *cyclegan, "data.image_size=16", "trainer.batch_size=4", "trainer.duration=4 steps",
        "trainer.checkpoint_interval=2 steps", "device=cpu", "precision=fp32", "evaluation=none",
    ]  # fmt: skip
    train(TWO, [*arguments, f"run_dir={tmp_path / 'two'}"], environment)
    train([], [*arguments, f"run_dir={tmp_path / 'one'}", "trainer.accumulation=2"], environment)
    assert assert_same_weights(tmp_path / "two", tmp_path / "one") == 0
    pools = torch.load(tmp_path / "two/checkpoints/last.pt", weights_only=True)["method"]
    assert pools["pool_a.count"] == 3
    assert pools["pool_a.images"].std() > 0.01


LONG = [*TRAINING, *MODELS["dcgan"], "trainer.duration=60 steps"]


def test_a_group_that_is_stopped_resumes_bit_for_bit(
    two_ranks: Callable[..., tuple[Path, str]], tmp_path: Path, environment: dict[str, str]
) -> None:
    run_dir = tmp_path / "stopped"
    often = "trainer.checkpoint_minutes=1e-9"  # the first rank's clock asks after every step, and all ranks save together
    process = start(TWO, [*LONG, often, f"run_dir={run_dir}"], environment)
    wait_for(run_dir / "checkpoints" / "step-00000006.pt", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    assert "the checkpoint is written" in output
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "stopped"
    train(TWO, [*LONG, f"run_dir={run_dir}"], environment)
    assert_same_run(run_dir, two_ranks(*LONG)[0])


def test_a_killed_rank_is_restarted_and_the_run_continues(
    two_ranks: Callable[..., tuple[Path, str]], tmp_path: Path, environment: dict[str, str]
) -> None:
    run_dir = tmp_path / "killed"
    process = start([*TWO, "--max-restarts=1"], [*LONG, f"run_dir={run_dir}", "resume=null"], environment)
    wait_for(run_dir / "checkpoints" / "step-00000006.pt", process)
    os.kill(second_rank(process.pid), signal.SIGKILL)
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 0, output
    assert "resuming from" in output
    assert_same_run(run_dir, two_ranks(*LONG)[0])


@pytest.mark.parametrize("meeting", ["fixed ranks", only_with_all("rendezvous")])
def test_two_hosts_meet_and_only_the_first_needs_the_run_directory(
    meeting: str, two_ranks: Callable[..., tuple[Path, str]], tmp_path: Path, environment: dict[str, str]
) -> None:
    """Two agents of torchrun, as two hosts would run them, each in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*TRAINING, *MODELS["dcgan"]]
    folders = [tmp_path / "host0", tmp_path / "host1"]
    hosts = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        if meeting == "fixed ranks":
            place = [f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        else:
            place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
        hosts.append(start(["--nnodes=2", "--nproc-per-node=1", *place], [*arguments, "run_dir=run"], environment, cwd=folder))
    for host in hosts:
        output = host.communicate(timeout=200)[0]
        assert host.returncode == 0, output
    first, second = sorted(folders, key=lambda folder: not (folder / "run").exists())
    assert meeting == "rendezvous" or first == folders[0]
    assert not list(second.iterdir())
    assert_same_run(first / "run", two_ranks(*arguments)[0])


def test_what_a_user_can_get_wrong_is_said_once_and_nothing_begins(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(TWO, [*TRAINING, f"run_dir={tmp_path / 'run'}", "trainer.batch_size=15"], environment)
    output = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    message = "genimg-train: error: trainer.batch_size=15 is the total of all 2 processes and must be a multiple"
    assert output.count(message) == 1
    assert output.count("genimg-train: error") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", [only_with_all(3), 11])
def test_what_goes_wrong_in_one_process_ends_all_of_them_with_its_message(
    broken: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Each process reads images of its own, and one of them cannot be decoded."""
    for i in range(16):
        Image.fromarray(np.full((16, 16, 3), i, dtype=np.uint8)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / f"{broken:02d}.png").write_bytes(b"no image")
    arguments = [*TINY[1:], *MODELS["dcgan"], "data=folder", f"data.root={tmp_path}", "data.storage=workers",
                 "data.num_workers=0", "evaluation=none", "trainer.preview_images=1", f"run_dir={tmp_path}/run"]  # fmt: skip
    process = start(TWO, arguments, environment)
    output = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    assert (
        len(re.findall(rf"genimg-train: (?:process \d+: )?error: .*1 corrupt image so far.*\n.*{broken:02d}\.png", output)) == 1
    ), output
    assert "cli.py" not in output  # no traceback of ours; torchrun has its own


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def second_rank(agent: int) -> int:
    """The process of torchrun's with RANK=1."""
    children = subprocess.run(["pgrep", "-P", str(agent)], capture_output=True, text=True, check=True).stdout.split()
    for child in children:
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("torchrun has no second process")
