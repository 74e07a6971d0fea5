"""genimg-verify in several processes, as torchrun would start them: for runs that as many processes have trained."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import tiny
from errors import raises
from fork_server import ForkServer

import genimg
from genimg.errors import CheckpointError

PROCESSES = 2
TRAINING = [*tiny.SHORT_RUN, "trainer.checkpoint_interval=2 steps", "trainer.log_interval=3 steps", "trainer.keep_last=9"]

Together = Callable[..., list[CompletedProcess[str]]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    """Run a command in all processes at the same time."""
    servers = [ForkServer() for _ in range(PROCESSES)]

    def run(*words: str, cwd: Path) -> list[CompletedProcess[str]]:
        group = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

        def of_rank(rank: int) -> CompletedProcess[str]:
            environment = {**os.environ, **group, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            return servers[rank].run(*words, cwd=cwd, env=environment)

        with ThreadPoolExecutor(PROCESSES) as pool:
            return list(pool.map(of_rank, range(PROCESSES)))

    yield run
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def home(together: Together, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of four steps."""
    found = tmp_path_factory.mktemp("processes")
    for done in together("genimg-train", *TRAINING, "trainer.duration=4 steps", "run_dir=run", cwd=found):
        assert done.returncode == 0, done.stdout + done.stderr
    return found


def codes(done: list[CompletedProcess[str]]) -> list[int]:
    return [each.returncode for each in done]


def test_an_honest_run_is_certified_and_a_changed_setting_is_named(together: Together, home: Path) -> None:
    done = together("genimg-verify", "run", "first=0", "all=true", "output=a.json", "device=cpu", cwd=home)
    assert codes(done) == [0, 0], done[0].stderr
    assert "processes             2" in done[0].stdout
    assert done[1].stdout == ""
    record = json.loads((home / "a.json").read_text())
    assert (record["certified"], record["processes"]) == (True, PROCESSES)
    assert [(each["first"]["step"], each["last"]["step"]) for each in record["intervals"]] == [(0, 2), (2, 4)]
    together("genimg-train", "resume=run", "trainer.duration=6 steps", "seed=1", "resume_force=true", "device=cpu", cwd=home)
    done = together("genimg-verify", "run", "output=b.json", "device=cpu", cwd=home)
    assert codes(done) == [3, 3], done[0].stderr
    (interval,) = json.loads((home / "b.json").read_text())["intervals"]
    (cause,) = interval["causes"]
    assert (interval["last"]["step"], cause["kind"], cause["established"]) == (6, "settings", True)


def test_the_start_from_other_weights_is_replayed_by_all_processes(together: Together, home: Path) -> None:
    start = ["init_from=run/checkpoints/step-00000002.pt", "init_parts=[generator]", "trainer.duration=2 steps"]
    done = together("genimg-train", *TRAINING, *start, "run_dir=other", cwd=home)
    assert codes(done) == [0, 0], done[0].stderr
    again = ["first=0", "device=cpu"]
    assert codes(together("genimg-verify", "other", *again, start[0], cwd=home)) == [0, 0]
    done = together("genimg-verify", "other", *again, "init_from=run/checkpoints/step-00000004.pt", cwd=home)
    assert codes(done) == [2, 2]
    assert done[0].stderr.startswith("genimg-verify: error: init_from=")


def test_an_error_ends_all_processes(together: Together, home: Path) -> None:
    done = together("genimg-verify", "run", "first=7", "output=error.json", "device=cpu", cwd=home)
    assert codes(done) == [2, 2]
    assert done[0].stderr.startswith("genimg-verify: error: first=7")
    assert not (home / "error.json").exists()


def test_another_number_of_processes_is_refused(home: Path) -> None:
    with raises(CheckpointError, "run", f"--nproc-per-node={PROCESSES}"):
        genimg.verify(home / "run")
