"""Trainings are replayed between their checkpoints: honest ones are certified, and for others the cause is named."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from PIL import Image

import genimg
from genimg.api import verified_interval
from genimg.api.verification import Verification
from genimg.errors import CheckpointError, ConfigError, DataError, UserError
from genimg.training import performance, thread_choice
from genimg.training.thread_choice import ThreadChoice
from genimg.utils import verified_torch
from genimg.utils.files import InUseError
from genimg.utils.regular_files import open_regular

SMALL = [
    "data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.preview_images=4",
    "trainer.checkpoint_interval=3 steps", "trainer.log_interval=2 steps", "trainer.keep_last=9", "data.horizontal_flip=true",
    "device=cpu", "precision=fp32",
]  # fmt: skip
GAN = [*SMALL, "evaluation=none", "model=dcgan_small", "model.generator.width=4", "ema=[exponential]"]
FAMILIES = {
    "gan": [
        *GAN, "discriminator_augment=ada", "penalty=[r1_lazy]", "schedule=linear", "trainer.accumulation=2",
        "trainer.duration=9 steps",
    ],
    "vae": [
        *SMALL, "evaluation=none", "model=vae_small", *tiny.AUTOENCODERS["vae_small"], "loss.warm_up=200 steps",
        "trainer.duration=1 seconds", "trainer.max_grad_norm=1",
    ],
    "flow": [
        *SMALL, "evaluation=none", "model=flow_small", *tiny.DIFFUSION, "conditioning=label", "ema=[exponential,power]",
        "schedule=warmup", "trainer.duration=9 steps",
    ],
    "shares": [
        *(each for each in SMALL if "_interval=" not in each), "trainer.checkpoint_interval='33 %'",
        "trainer.log_interval='20 %'", "evaluation=none", "model=vae_small", *tiny.AUTOENCODERS["vae_small"],
        "loss.warm_up='60 %'", "schedule=warmup", "schedule.warmup='40 %'", "trainer.duration=9 steps",
    ],
    # With an evaluation after every second step, whose standing statistics and densities must not reach the checkpoints.
    "biggan": [
        *SMALL, "model=biggan", *tiny.SIZES["biggan"], "model.standing_stats_batches=2", "evaluation=shapes",
        "evaluation.interval=2 steps",
        "evaluation.num_images=20", "evaluation.num_real=20", "trainer.duration=6 steps",
    ],
    "rae": [
        *SMALL, "model=rae_small", *tiny.AUTOENCODERS["rae_small"], "evaluation=shapes", "evaluation.interval=2 steps",
        "evaluation.num_images=20", "evaluation.num_real=20", "trainer.duration=6 steps",
    ],
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))


def train(run_dir: Path, *arguments: str, **settings: Any) -> Path:
    return genimg.train([*arguments, f"run_dir={run_dir}"], **settings).directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a GAN with checkpoints at steps 3, 6 and 9."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_dir = train(tmp_path_factory.mktemp("whole") / "run", *GAN, "trainer.duration=9 steps")
    torch.set_num_threads(threads)
    return run_dir


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def file(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}.pt"


def shorten(run: Path, step: int) -> Path:
    """Remove the checkpoints after a step."""
    for path in (run / "checkpoints").glob("step-*.pt"):
        if int(path.stem[5:]) > step:
            path.unlink()
    shutil.copy(file(run, step), run / "checkpoints/last.pt")
    return run


def change(path: Path, edit: Any) -> None:
    """Rewrite a checkpoint, which is also last.pt if it is the newest one."""
    state = torch.load(path, weights_only=True)
    edit(state)
    path.unlink()
    torch.save(state, path)
    if path == max(path.parent.glob("step-*.pt")):
        shutil.copy(path, path.with_name("last.pt"))


def flip(path: Path, bit: int = 22) -> str:
    """Flip a bit of a weight, and return the weight's name."""

    def edit(state: dict[str, Any]) -> None:
        state["method"][NAME].view(torch.int32)[1, 0, 2, 3] ^= 1 << bit

    change(path, edit)
    return NAME


NAME = "generator.layers.0.weight"


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def kinds(found: Verification) -> list[list[str]]:
    return [[cause.kind for cause in interval.causes] for interval in found.intervals]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_honest_run_is_certified_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *FAMILIES[name])
    before = contents(run_dir)
    found = genimg.verify(run_dir, **({} if name == "vae" else {"first": 0, "all": True}))
    assert found.certified
    assert contents(run_dir) == before
    assert all(not interval.notes for interval in found.intervals)
    steps = [interval.last.step for interval in found.intervals]
    assert steps == {"vae": [steps[-1]], "biggan": [2, 3, 4, 6], "rae": [2, 3, 4, 6]}.get(name, [3, 6, 9])
    last = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)
    compared = found.intervals[-1].comparison
    assert compared is not None
    weights = [*last["method"].values(), *(each for average in last["averages"].values() for each in average.values())]
    assert compared.num_tensors > len(weights)
    assert compared.num_bytes > sum(each.nbytes for each in weights)


def test_the_certificate_has_everything_that_it_depends_on(run: Path) -> None:
    found = genimg.verify(run)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    (interval,) = record["intervals"]
    assert (record["certified"], record["first_bad_interval"]) == (True, None)
    assert (interval["first"]["step"], interval["last"]["step"], interval["images"], interval["threads"]) == (6, 9, 48, [1])
    for key in ("first", "last"):
        path = Path(interval[key]["file"])
        assert interval[key]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["versions"]["numpy"] == np.__version__
    text = "\n".join(found.lines())
    assert interval["last"]["sha256"] in text
    assert interval["last"]["config_sha256"] in text


@pytest.mark.parametrize(
    ("change", "line"),
    [("seed=1", "seed: 0 -> 1"), ("optimizer.lr=5e-4", "optimizer.lr: 0.001 -> 0.0005")],
)
def test_a_changed_setting_is_named_and_established(change: str, line: str, run: Path) -> None:
    genimg.train([f"resume={shorten(run, 6)}", "trainer.duration=9 steps", change, "resume_force=true"])
    found = genimg.verify(run)
    assert kinds(found) == [["settings"]]
    (cause,) = found.intervals[0].causes
    assert line in cause.text
    assert cause.is_established is True
    assert found.advice == []
    if change == "seed=1":
        return
    earlier = genimg.verify(run, first=3)  # neither the earlier nor the later settings alone lead there
    assert [cause.is_established for cause in earlier.intervals[0].causes] == [False]
    assert "all=true" in earlier.advice[0]
    both = genimg.verify(run, all=True)
    assert kinds(both) == [[], ["settings"]]
    assert both.first_bad is both.intervals[1]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(performance, "num_cores", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_another_number_of_threads_is_repeated_or_named(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *GAN, "trainer.duration=3 steps", "performance.threads=2")
    genimg.train([f"resume={run_dir}", "trainer.duration=6 steps", "performance.threads=1"])
    found = genimg.verify(run_dir, first=0)
    assert found.certified
    assert found.intervals[0].threads == (2, 1)
    assert found.intervals[0].notes == ("the number of CPU threads changed from 2 to 1 at step 3",)
    forced = genimg.verify(run_dir, first=0, last=3, threads=1)
    assert kinds(forced) == [["threads"]]
    (cause,) = forced.intervals[0].causes
    assert "2 (recorded), 1 (replay)" in cause.text
    assert cause.is_established is True


@pytest.mark.usefixtures("two_cores")
def test_steps_that_compared_numbers_of_threads_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forced(ThreadChoice):
        """Tries one thread in the second step."""

        steps = 0

        @property
        def number(self) -> int:
            return 1 if self.steps == 1 else 2

        def add_step(self, seconds: float) -> None:
            self.steps += 1

    monkeypatch.setattr(thread_choice, "ThreadChoice", Forced)
    torch.set_num_threads(2)
    run_dir = train(tmp_path / "run", *GAN, "trainer.duration=3 steps")
    monkeypatch.undo()
    found = genimg.verify(run_dir, first=0)
    assert found.certified
    assert found.intervals[0].threads == (2, 1)
    assert found.intervals[0].notes == ("1 steps compared other numbers of CPU threads, as recorded",)
    change(file(run_dir, 3), lambda state: state["training"].pop("compared_threads"))
    assert kinds(genimg.verify(run_dir, first=0)) == [["threads"]]


def test_a_flipped_bit_of_the_later_checkpoint_is_named(run: Path) -> None:
    name = flip(file(run, 9))
    found = genimg.verify(run)
    assert kinds(found) == [["corruption"]]
    text = found.intervals[0].causes[0].text
    assert "step-00000009.pt" in text
    assert f"bit 22 of {name}[1, 0, 2, 3]" in text
    comparison = found.intervals[0].comparison
    assert comparison is not None
    ((_, difference),) = comparison.flipped
    state = torch.load(file(run, 9), weights_only=True)
    assert difference.elements[0].found == state["method"][name][1, 0, 2, 3].item()


@pytest.mark.parametrize("all", [False, True])
def test_last_is_verified_too_if_it_is_another_file(run: Path, all: bool) -> None:
    assert len(genimg.verify(run, all=all).intervals) == 1 + all
    flip(run / "checkpoints/last.pt")
    found = genimg.verify(run, all=all)
    assert kinds(found) == [[]] * (1 + all) + [["corruption"]]
    assert [(each.first.step, each.last.step) for each in found.intervals[-2:]] == [(6, 9), (6, 9)]
    assert "last.pt" in found.intervals[-1].causes[0].text


def test_a_last_of_another_step(run: Path) -> None:
    last = run / "checkpoints/last.pt"
    shutil.copy(file(run, 6), last)
    with raises(CheckpointError, "last", "step 6"):
        genimg.verify(run)
    shutil.copy(file(run, 9), last)
    file(run, 9).unlink()  # last.pt is newer than the checkpoints with numbers
    assert [(each.first.step, each.last.step) for each in genimg.verify(run).intervals] == [(6, 9)]
    last.unlink()
    assert [(each.first.step, each.last.step) for each in genimg.verify(run).intervals] == [(3, 6)]
    last.symlink_to(file(run, 6))
    with raises(UserError, word="last.pt"):
        genimg.verify(run)


def test_a_damaged_last_is_refused_before_the_replay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    monkeypatch.setattr(verified_interval, "replay", None)
    with raises(CheckpointError, word="last.pt"):
        genimg.verify(run)


def test_a_flipped_bit_of_the_earlier_checkpoint_is_found_from_the_one_before(run: Path) -> None:
    flip(file(run, 6))
    found = genimg.verify(run)
    assert kinds(found) == [["corruption"], ["unknown"]]
    assert found.first_bad is found.intervals[0]
    assert "not certified itself" in found.intervals[1].causes[0].text
    every = genimg.verify(run, all=True)  # the checkpoint after the corrupt one is intact
    assert [interval.certified for interval in every.intervals] == [False, True]
    assert every.intervals[1].first.step == 3


def test_a_changed_state_without_a_recorded_cause_says_so(run: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["method"][NAME].mul_(1.01)
        state["optimizers"]["generator"]["state"][0]["exp_avg_sq"].mul_(1.01)

    change(file(run, 9), edit)
    found = genimg.verify(run, first=6)
    assert kinds(found) == [["unknown"]]
    assert "all=true" in found.advice[0]


@pytest.mark.parametrize(
    ("edit", "equal"),
    [
        (lambda state: state["method"][NAME].mul_(1.01), "states of the optimizers"),
        (lambda state: state["averages"]["exponential"][NAME].mul_(1.001), "states of the optimizers"),
        (lambda state: state["optimizers"]["generator"]["state"][0]["exp_avg_sq"].mul_(1.01), "weights"),
    ],
)
def test_a_change_of_the_later_file_alone_is_named(run: Path, edit: Any, equal: str) -> None:
    change(file(run, 9), edit)
    found = genimg.verify(run)
    assert kinds(found) == [["change"]]
    assert f"the {equal} are equal" in found.intervals[0].causes[0].text


def test_records_that_contradict_the_replay_are_not_certified(run: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        for key in ("config", "raw_config"):
            state[key]["optimizer"]["lr"] = 5e-4
        state["num_images"] += 1

    change(file(run, 9), edit)
    found = genimg.verify(run)
    assert not found.certified
    assert kinds(found) == [["data", "settings"]]
    assert "optimizer.lr: 0.001 -> 0.0005" in found.intervals[0].causes[1].text
    comparison = found.intervals[0].comparison
    assert comparison is not None
    assert not comparison.differing
    change(file(run, 9), lambda state: state["config"]["loss"]["generator"].update(_target_="genimg.losses.adversarial.none"))
    assert kinds(genimg.verify(run)) == [["data", "settings", "settings"]]


def test_a_changed_setting_without_effect_is_noted(run: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        for key in ("config", "raw_config"):
            state[key]["trainer"]["max_grad_norm"] = 1e9

    change(file(run, 9), edit)
    (interval,) = genimg.verify(run).intervals
    assert interval.certified
    assert "trainer.max_grad_norm: None -> 1000000000.0" in interval.notes[0]


def test_recorded_facts_that_differ_are_named(run: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["torch_version"], state["hardware"]["instructions"] = "2.0.0", "AVX2"
        state["data"]["fingerprint"] = "another"
        state["method"][NAME].mul_(1.01)

    change(file(run, 9), edit)
    found = genimg.verify(run, first=6)
    assert kinds(found) == [["versions", "hardware", "data"]]
    assert "2.0.0" in found.intervals[0].causes[0].text


def test_images_from_python_are_given_again(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    settings = [each for each in GAN if not each.startswith(("data=", "data.num_images"))]
    run_dir = train(tmp_path / "run", *settings, "trainer.duration=6 steps", dataset=images)
    with raises(ConfigError, "dataset"):
        genimg.verify(run_dir)
    assert genimg.verify(run_dir, dataset=images).certified
    other = genimg.verify(run_dir, dataset=255 - images)
    assert kinds(other) == [["data"]]


def test_data_that_has_moved_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(16):
        Image.effect_noise((16, 16), 80).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    settings = [each for each in GAN if not each.startswith(("data=", "data.num_images"))]
    run_dir = train(tmp_path / "run", "data=folder", f"data.root={tmp_path / 'images'}", *settings, "trainer.duration=6 steps")
    (tmp_path / "images").rename(tmp_path / "moved")
    with raises((ConfigError, DataError), "data_root"):
        genimg.verify(run_dir)
    assert genimg.verify(run_dir, data_root=tmp_path / "moved").certified


def test_what_cannot_be_verified_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(CheckpointError, "run"):
        genimg.verify(tmp_path / "nowhere")
    with raises(CheckpointError, "run"):
        genimg.verify(file(run, 9))
    with raises(CheckpointError, "first"):
        genimg.verify(run, first=4)
    with raises(CheckpointError, "last"):
        genimg.verify(run, last="other.pt")
    with raises(CheckpointError, "first"):
        genimg.verify(run, first=9, last=6)
    with raises(ConfigError, "threads"):
        genimg.verify(run, threads=0)
    with raises(ConfigError, "device"):
        genimg.verify(run, device="mps")
    with (run / ".hydra/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with raises(InUseError, "run"):
            genimg.verify(run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(ConfigError, word="torchrun"):
        genimg.verify(run)


@pytest.mark.parametrize(
    ("edit", "key", "word"),
    [
        (lambda state: state.update(processes=2), "run", "processes"),
        (lambda state: state["hardware"].update(device="cuda", name="NVIDIA H200"), "device", "H200"),
        (lambda state: state["training"].update(threads=[(0, 10**9)]), "", "training.threads"),
        (lambda state: state["config"]["trainer"].update(batch_size=32), "last", "batch_size"),
        (lambda state: state.pop("optimizers"), "", "optimizers"),
    ],
)
def test_checkpoints_that_cannot_be_replayed_here_are_refused(edit: Any, key: str, word: str, run: Path) -> None:
    if torch.cuda.is_available() and key == "device":
        pytest.skip("this machine has a GPU")
    for step in (6, 9) if key != "last" else (9,):
        change(file(run, step), edit)
    with raises(CheckpointError, key, word):
        genimg.verify(run)


def test_another_duration_of_a_run_with_shares_is_named(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *FAMILIES["shares"])
    genimg.train([f"resume={run_dir}", "trainer.duration=18 steps", "resume_force=true"])
    found = genimg.verify(run_dir, first=9, last=12)
    texts = [cause.text for cause in found.intervals[0].causes]
    assert kinds(found) == [["settings", "settings"]]
    assert "loss.warm_up: 60 % of 9 step -> 60 % of 18 step" in texts[0]
    assert [cause.is_established for cause in found.intervals[0].causes] == [True, True]


FROZEN = ["freeze=[generator.layers.0,discriminator.features]", "penalty=[r1_lazy]"]


@pytest.mark.parametrize("loading", ["init_match=some", "init_parts=[generator]"])
def test_the_start_from_the_weights_of_another_run_needs_these_weights(run: Path, tmp_path: Path, loading: str) -> None:
    other = train(tmp_path / "other", *GAN, *FROZEN, loading, "trainer.duration=6 steps", f"init_from={run}")
    with raises(CheckpointError, "init_from", str(run.resolve() / "checkpoints/last.pt")):
        genimg.verify(other, first=0)
    found = genimg.verify(other, first=0, all=True, init_from=run)
    assert [(each.first.step, each.last.step, each.certified) for each in found.intervals] == [(0, 3, True), (3, 6, True)]
    digest = hashlib.sha256(file(run, 9).read_bytes()).hexdigest()
    assert [digest in " ".join(each.notes) for each in found.intervals] == [True, False]
    copy = shutil.copy(file(run, 9), tmp_path / "copy.pt")
    assert genimg.verify(other, first=0, last=3, init_from=copy).certified
    with raises(CheckpointError, "init_from", digest):
        genimg.verify(other, first=0, init_from=file(run, 6))
    with raises(CheckpointError, "init_from"):
        genimg.verify(other, first=0, init_from=tmp_path / "nowhere")
    with raises(ConfigError, "init_from"):
        genimg.verify(other, init_from=run)
    with raises(ConfigError, "init_from"):
        genimg.verify(run, first=0, init_from=run)


def test_the_order_of_frozen_parts_is_no_change(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", *GAN, FROZEN[0], "trainer.duration=3 steps")
    again = "freeze=[discriminator.features,generator.layers.0,generator.layers.0]"
    genimg.train([f"resume={run_dir}", again, "trainer.duration=6 steps"])
    assert genimg.verify(run_dir).certified
    change(file(run_dir, 6), lambda state: state["method"][NAME].mul_(1.01))
    assert kinds(genimg.verify(run_dir)) == [["change"]]


def test_a_run_on_tar_shards_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as archive:
            for number in range(8):
                content = io.BytesIO()
                Image.effect_noise((16, 16), 80).convert("RGB").save(content, "PNG")
                entry = tarfile.TarInfo(f"{shard}{number}.png")
                entry.size = content.tell()
                content.seek(0)
                archive.addfile(entry, content)
    settings = [each for each in GAN if not each.startswith(("data=", "data.num_images"))]
    shards = ["data=webdataset", f"data.root={tmp_path / 'shards'}", "data.shuffle_buffer=16"]
    run_dir = train(tmp_path / "run", *shards, *settings, "trainer.duration=6 steps")
    assert genimg.verify(run_dir, first=0, all=True).certified
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert genimg.verify(run_dir, data_root=tmp_path / "moved").certified
    shutil.copy(tmp_path / "moved/1.tar", tmp_path / "moved/0.tar")
    assert kinds(genimg.verify(run_dir, data_root=tmp_path / "moved")) == [["data"]]


def test_each_file_is_read_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(path: Path, **more: Any) -> Any:
        opened.append(path.name)
        return open_regular(path, **more)

    monkeypatch.setattr(verified_torch, "open_regular", noted)
    flip(file(run, 6))
    outside = shutil.copy(file(run, 9), run.parent / "outside.pt")
    genimg.verify(run, first=0, last=outside, all=True)
    assert sorted(opened) == ["outside.pt", "step-00000003.pt", "step-00000006.pt"]
    opened.clear()
    genimg.verify(run)  # also the checkpoint before the first one
    assert sorted(opened) == ["step-00000003.pt", "step-00000006.pt", "step-00000009.pt"]


def test_a_single_checkpoint_needs_the_start(run: Path) -> None:
    shorten(run, 3)
    with raises(CheckpointError, "first", "first=0"):
        genimg.verify(run)
    assert genimg.verify(run, first=0).certified


def test_a_damaged_file_is_refused_by_name(run: Path) -> None:
    content = bytearray(file(run, 9).read_bytes())
    content[len(content) // 2] ^= 1
    file(run, 9).unlink()
    file(run, 9).write_bytes(content)
    with raises(CheckpointError, word="step-00000009.pt"):
        genimg.verify(run)
