"""What ends a command: one line and exit code 2 for what a user can mend, a traceback and exit code 1 for a bug."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from sampling import sampled

import genimg
from genimg import cli
from genimg.errors import ConfigError

pytestmark = pytest.mark.usefixtures("unchanged_process")

Run = Callable[..., tuple[int, str]]

COMMANDS = {  # name -> function of cli, module and function of genimg.commands
    "train": ("train", "train", "train"),
    "eval": ("evaluate", "evaluate", "evaluate"),
    "sample": ("sample", "sample", "sample"),
    "translate": ("translate", "translate", "translate"),
    "play": ("play", "play", "play"),
    "features": ("features", "features", "train_features"),
    "prepare": ("prepare", "prepare", "prepare"),
    "augment": ("augment", "augment", "augment"),
    "report": ("report", "report", "report"),
    "export": ("export", "export", "export"),
}
TRAIN = ["data=shapes", "data.num_images=8", "data.image_size=16", "evaluation=none", "device=cpu", "run_dir=run"]
BUGS = {"TypeError": "(lambda: 0)(1)", "ValueError": "list(zip([1], [1, 2], strict=True))", "KeyError": "{}['absent']"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, in an empty directory; return its exit code and what it says on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # which a command wraps

    def run(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"genimg-{name}", *arguments])
        capfd.readouterr()
        try:
            getattr(cli, COMMANDS[name][0])()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            for handler in logging.getLogger().handlers:
                handler.flush()
        return code, capfd.readouterr().err

    return run


def raising(statement: str, module: str, *, takes: str = "composed, *_") -> Callable[..., Any]:
    """Return a function of the module ``module`` that executes a statement."""
    members: dict[str, Any] = {"__name__": module, "ConfigError": ConfigError, "Finished": globals().get("Finished")}
    exec(f"def broken({takes}):\n    {statement}\n", members)
    broken: Callable[..., Any] = members["broken"]
    return broken


# Bugs


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bug_is_a_traceback_and_a_line_that_says_so(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, function = COMMANDS[name]
    importlib.import_module(f"genimg.commands.{module}")
    for kind, statement in BUGS.items():
        broken = raising(statement, f"genimg.commands.{module}")
        called = "prepare" if name == "train" else function  # within what keeps the traceback
        monkeypatch.setattr(f"genimg.commands.{module}.{called}", broken)
        code, errors = run(name, *(["run_dir=run"] if name == "train" else []))
        assert code == 1, errors
        assert "Traceback (most recent call last)" in errors
        assert name != "train" or kind in Path("run/train.log").read_text()
        before, last = errors.rstrip("\n").rsplit("\n", 1)
        log_file = " and run/train.log" if name == "train" else ""
        assert last == f"genimg-{name}: this is a bug in genimg: please report it with the lines above{log_file}"
        assert before.rstrip().splitlines()[-1].startswith(kind)


@pytest.mark.parametrize("kind", BUGS)
def test_a_bug_in_a_training_is_kept_in_its_log(kind: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("genimg.commands.train.prepare", raising(BUGS[kind], "genimg.commands.train"))
    code, errors = run("train", "run_dir=run")
    assert code == 1
    assert errors.endswith("please report it with the lines above and run/train.log\n")
    text = (tmp_path / "run" / "train.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert kind in text


def test_a_refused_training_leaves_no_directory(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = raising("raise ConfigError('seed=1 is refused')", "genimg.commands.train")
    monkeypatch.setattr("genimg.commands.train.prepare", refused)
    assert run("train", "run_dir=run") == (2, "genimg-train: error: seed=1 is refused\n")
    assert not (tmp_path / "run").exists()


def test_traceback_shows_that_of_a_users_error_too(run: Run) -> None:
    code, errors = run("sample", "ckpt=nowhere", "traceback=true")
    assert code == 2
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("genimg-sample: error: ckpt=nowhere")


def test_a_bug_in_a_package_of_the_users_is_not_called_one_of_genimg(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("")
    (tmp_path / "theirs" / "networks.py").write_text("import json\n\ndef broken(composed):\n    json.loads(None)\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = importlib.import_module("theirs.networks").broken
    monkeypatch.setattr("genimg.commands.sample.sample", broken)
    for arguments in (["allow=[theirs]"], ["allow=[theirs.networks]"], []):
        code, errors = run("sample", *arguments)
        named = "theirs.networks" if "allow=[theirs.networks]" in arguments else "theirs"
        assert code == 1
        assert "Traceback" in errors
        line = f"genimg-sample: this is a bug in the package {named}, not in genimg: see the lines above"
        assert errors.splitlines()[-1] == line
    monkeypatch.setattr("genimg.commands.sample.sample", raising("(lambda: 0)(1)", "genimg.commands.sample"))
    code, errors = run("sample", "allow=[theirs]")
    assert code == 1
    line = "this is a bug in genimg, or in a package in allow=[theirs]: please report it with the lines above"
    assert errors.splitlines()[-1] == f"genimg-sample: {line}"
    for module in ("theirs", "theirs.networks"):
        del sys.modules[module]


def test_a_library_that_fails_is_a_bug_of_who_called_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = "import torch; torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(1, 3))"
    monkeypatch.setattr("genimg.commands.sample.sample", raising(statement, "genimg.commands.sample"))
    code, errors = run("sample")
    assert code == 1
    assert "genimg-sample: this is a bug in genimg: " in errors


PLACES = (
    "networks.dcgan.Generator.__init__", "networks.dcgan.Generator.forward", "methods.gan.GAN.step",
    "data.loader.ImageLoader.load",
)  # fmt: skip


@pytest.mark.parametrize(("place", "kind"), sampled(product(PLACES, (*BUGS, "RuntimeError")), lambda row: row))
def test_a_bug_below_a_command_passes_all_that_words_the_mistakes_of_users(
    place: str, kind: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = BUGS.get(kind, "raise RuntimeError('a bug')")
    monkeypatch.setattr(f"genimg.{place}", raising(statement, f"genimg.{place.rpartition('.')[0]}", takes="*_, **__"))
    code, errors = run("train", *TRAIN, "trainer.batch_size=4", "model.generator.width=4")
    assert code == 1, errors
    assert f"{kind}: " in errors
    assert errors.endswith("genimg-train: this is a bug in genimg: please report it with the lines above and run/train.log\n")


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')"])
def test_a_full_memory_is_no_bug(error: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genimg.commands.train.prepare", raising(f"raise {error}", "genimg.commands.train"))
    code, errors = run("train", "run_dir=run")
    assert code == 2
    assert errors.startswith("genimg-train: error: out of memory (")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "ValueError('Expected more than 1 value per channel when training, got input size [1, 8]')",
            "raise trainer.batch_size",
        ),
        ("RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')", "lower data.num_workers"),
        ("RuntimeError('DataLoader worker (pid(s) 7, 8) exited unexpectedly')", "lower data.num_workers"),
    ],
)
def test_what_the_machine_or_the_batch_cannot_do_is_no_bug(
    error: str, words: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genimg.commands.train.prepare", raising(f"raise {error}", "genimg.commands.train"))
    code, errors = run("train", "run_dir=run")
    assert code == 2
    assert words in errors
    assert "Traceback" not in errors


# Jobs of a sweep in this process

JOB = """
    seed = composed.config.seed
    if seed == 1: raise ConfigError('seed=1 is refused')
    if seed == 2: (lambda: 0)(1)
    return Finished()
"""


class Finished:
    """A training that has nothing left to do."""

    run = genimg.Run(Path(), "completed", {}, best=0.0)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[Any]:
        yield SimpleNamespace(fit=lambda: None)


@pytest.mark.parametrize(
    ("seeds", "code", "line"),
    [
        ("0,3", 0, ""),
        ("0,1", 2, "error: 1 job of the sweep failed, #1: seed=1 is refused"),
        ("0,1,2", 1, "lines above and sweep/002_seed-2/train.log (2 jobs of the sweep failed, #1, #2 because of a bug)"),
        ("2,1", 1, "lines above and sweep/000_seed-2/train.log (2 jobs of the sweep failed, #0 because of a bug, #1)"),
    ],
)
def test_a_bug_in_a_job_is_told_apart_from_a_setting_that_cannot_work(
    seeds: str, code: int, line: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genimg.commands.train.prepare", raising(JOB, "genimg.commands.train"))
    found, errors = run("train", "-m", f"seed={seeds}", "hydra.sweep.dir=sweep")
    assert found == code, errors
    assert line in errors
    assert ("this is a bug in genimg" in errors) == ("Traceback" in errors) == (code == 1)


# What a user can mend

CASES = [
    ("train", ["modle=dcgan"], "modle"),
    ("train", ["model=dcgam"], "model=dcgam"),
    ("train", ["+model=dcgan"], "an option of model is chosen already: write model=NAME"),
    ("train", ["model=vae_small", "+model=dcgan"], "+model=dcgan has no effect together with another model="),
    ("train", ["trainer.nosuch=1"], "trainer.nosuch"),
    ("train", ["trainer.batch_size=["], "trainer.batch_size"),
    ("train", ["trainer.duration"], "'trainer.duration' is not key=value"),
    ("train", ["trainer.duration=1 epochs,2 epochs"], "trainer.duration"),
    ("train", ["data=folder", "run_dir=run"], "data.root is required"),
    ("train", [*TRAIN, "trainer.duration=soon"], "trainer.duration=soon is not a duration"),
    ("train", [*TRAIN, "dry_run=maybe"], "dry_run=maybe"),
    ("train", [*TRAIN, "penalty=[r1,r1]"], "penalty=[r1,r1]"),
    ("train", [*TRAIN[:-1], "run_dir=broken_run"], "step-00000001.pt"),
    ("train", [*TRAIN[:-1], "run_dir=file.txt"], "run_dir=file.txt cannot be written"),
    ("train", ["debug=true"], "debug=true"),
    ("train", ["resume=nowhere"], "resume=nowhere does not exist"),
    ("train", ["resume=broken.pt", "run_dir=run"], "broken.pt"),
    ("train", ["hydra/launcher=gpu_queue", "run_dir=run"], "hydra/launcher=gpu_queue"),
    ("train", ["-m", "hydra/launcher=gpu_queue", "hydra.launcher.n_jobs=0", "seed=0"], "hydra.launcher.n_jobs=0"),
    ("train", ["-m", "hydra/sweeper=optuna_study", "seed=0,1"], "hydra/launcher=gpu_queue"),
    ("train", ["--resolve"], "--resolve"),
    ("train", ["device=${nowhere}", "run_dir=run"], "device: Interpolation key 'nowhere' not found"),
    ("train", ["dry_run=${nowhere}", "run_dir=run"], "dry_run: Interpolation key 'nowhere' not found"),
    ("train", ["resume=${nowhere}", "run_dir=run"], "resume: Interpolation key 'nowhere' not found"),
    ("train", ["--config-dir", "nowhere", "model=dcgan"], "--config-dir nowhere"),
    ("train", ["--config-dir", "configs", "model=torn"], "torn.yaml, line 2"),
    ("train", ["run_dir="], "run_dir="),
    ("train", ["resume=broken.pt"], "resume=broken.pt is not in a run directory"),
    ("train", [*TRAIN, "trainer.batch_size=4", "optimizer.lr=-1"], "optimizer.lr=-1"),
    ("train", [*TRAIN, "trainer.batch_size=4", "optimizer.betas=[0.5,2]"], "optimizer.betas=[0.5, 2]"),
    ("train", [*TRAIN, "+model.a=${nowhere}"], "model.a: Interpolation key 'nowhere' not found"),
    (
        "train",
        ["run_dir=run", "evaluation=none", "data=module", "data.factory=mine", "allow=[mine]"],
        "data.factory=mine names no function",
    ),
    ("train", ["model=[[a]]", "run_dir=run"], "unknown option model=[[a]]"),
    ("train", ["+model=3", "run_dir=run"], "unknown option model=3"),
    ("train", ["data=null", "experiment=null", "run_dir=run"], "unknown option data=null"),
    ("train", ["model={a:1}", "run_dir=run"], "model is a group"),
    ("train", ["optimizer_overrides={a: {lr: 1}}", "run_dir=run"], "write '++optimizer_overrides={a: {lr: 1}}'"),
    ("train", ["--config-dir", "configs", "model=unclosed"], "no viable alternative at input '${nowhere'"),
    ("train", ["--config-dir", "marked", "model=dcgan"], "bom.yaml begins with a byte order mark"),
    ("train", [*TRAIN, "seed=-3"], "seed=-3"),
    ("train", [*TRAIN, "seed=9223372036854775808"], "seed=9223372036854775808"),
    ("train", [*TRAIN, "data.num_workers=100000"], "data.num_workers=100000"),
    ("train", [*TRAIN, "trainer.batch_size=4", "optimizer.lr=true"], "optimizer.lr=true"),
    ("train", [*TRAIN, "trainer.batch_size=4", "conditioning.encoder=5"], "conditioning.encoder=5"),
    ("train", [*TRAIN, "trainer.batch_size=4", "ema.exponential.ramp_up=nan"], "ema.exponential.ramp_up=nan"),
    ("train", [*TRAIN, "trainer.batch_size=4", "model.generator.width=-3"], "model.generator.width=-3"),
    ("train", [*TRAIN, "trainer.batch_size=4", "model.generator._target_=torch.nn.ReLU"], "model.generator"),
    ("train", [*TRAIN, "trainer.batch_size=4", "model.loss={_target_:torch.nn.ReLU}"], "model.loss is a ReLU"),
    ("train", [*TRAIN, "~performance"], "performance is required"),
    (
        "train",
        [*TRAIN, "trainer.batch_size=4", "model=flow_small", "model.path._target_=genimg.diffusion.paths.VarianceExploding"],
        "unknown key model.path.shift: model.path takes sigma_min, sigma_max, rho. The key belongs to the former model.path: "
        "delete it with '~model.path.shift', or replace all of model.path with '~model.path' '+model.path={_target_",
    ),
    ("train", [*TRAIN, "trainer.batch_size=4", "model=flow_small", "conditioning=concat"], "set conditioning=label"),
    ("train", [*TRAIN, "trainer.batch_size=4", "model=flow_small", "conditioning=projection"], "choose conditioning=label"),
    ("train", [*TRAIN, "model=flow_small", "~model.network.channels_per_head"], "the key is absent or null"),
    ("train", [*TRAIN, "trainer.batch_size=4", "optimizer.lr=1e30", "dry_run=true"], "training diverged"),
    ("train", ["model.generator.widht=3"], "did you mean 'model.generator.width'?"),
    ("train", ["+model.generator.widht=3"], "did you mean 'width'?"),
    ("train", ["optimizer.learning_rate=3"], "optimizer.learning_rate"),
    ("train", ["data=mnits"], "did you mean 'mnist'?"),
    ("train", ["penalty=[r1,gradiant_penalty]"], "penalty=gradiant_penalty (did you mean 'gradient_penalty'?)"),
    ("train", ["penalty=r1,lecam"], "penalty=r1,lecam has several values"),
    ("train", ["conditioning=projection", "+conditioning.encoder.num_classes=3"], "remove num_classes"),
    ("train", ["data=folder", "data.root=nowhere", "evaluation=none"], "nowhere does not exist"),
    ("train", ["trainer.duration=1000"], "trainer.duration=1000"),
    ("train", ["trainer.batch_size=128", "data.num_images=100"], "trainer.batch_size=128"),
    ("train", ["trainer.batch_size=0"], "trainer.batch_size=0"),
    ("train", ["trainer.batch_size=many"], "trainer.batch_size=many"),
    ("train", ["trainer.accumulation=3"], "trainer.accumulation=3"),
    ("train", ["data.image_size=30"], "data.image_size=[30,30]"),
    ("train", ["+model.generator.channels=1"], "model.generator returns [2, 1, 32, 32]"),
    ("train", ["+model.discriminator.features.channels=1"], "3 channels"),
    ("train", ["loss=elbo", "likelihood=gaussian"], "ELBO"),
    ("train", ["model=vae", "loss=hinge"], "loss=beta_vae, elbo, elbo_capacity, iwae"),
    ("train", ["likelihood=gaussian"], "AdversarialLoss"),
    ("train", ["model=vae", "likelihood=none"], "ELBO"),
    ("train", ["model=vae", "likelihood=gausian"], "did you mean 'gaussian'?"),
    ("train", ["model=vae", "likelihood.scale=0"], "likelihood.scale=0"),
    ("train", ["model=vae", "conditioning=projection"], "conditioning=label"),
    ("train", ["model=flow_small", "sampler=none"], "sampler=heun"),
    ("train", ["model=dcgan_small", "sampler=heun"], "sampler has no effect"),
    ("train", ["model=vae", "loss=elbo_capacity", "loss.free_bits=0.5"], "loss.capacity=25.0"),
    ("train", ["device=tpu"], "device=tpu"),
    ("train", ["precision=tf32", "device=cpu"], "precision=tf32"),
    ("train", ["precision=fp64"], "precision=fp64"),
    ("train", ["data.storage=moon"], "data.storage=moon"),
    ("train", ["model.generator._target_=os.system"], "model.generator._target_=os.system"),
    ("train", ["+optimizer_overrides.critic.lr=1"], "optimizer_overrides.critic"),
    ("train", ["run_dir=/dev/null/run"], "run_dir=/dev/null/run"),
    ("train", ["evaluation.num_images=1"], "evaluation.num_images=1"),
    ("train", ["+nonsense=1"], "nonsense"),
    ("eval", [], "nothing to evaluate: give ckpt="),
    ("eval", ["ckpt=nowhere", "device=cpu"], "ckpt=nowhere"),
    ("eval", ["ckpt=broken.pt", "device=cpu"], "ckpt=broken.pt"),
    ("eval", ["ckpt=empty", "device=cpu"], "ckpt=empty"),
    ("eval", ["ckpt=nowhere", "which=worst"], "which=worst"),
    ("eval", ["ckpt=nowhere", "num_images=1"], "num_images=1"),
    ("eval", ["ckpt=nowhere", "output=empty"], "output=empty is a directory"),
    ("eval", ["ckpt=nowhere", "output=file.txt/result.json"], "output=file.txt/result.json cannot be written"),
    ("eval", ["ckpt=nowhere", "save_statistics=a.npz"], "save_statistics=a.npz"),
    ("eval", ["ckpt=nowhere", "images=photos"], "ckpt=nowhere and images=photos"),
    ("eval", ["ckpt=nowhere", "evaluation=none"], "evaluation=none"),
    ("eval", ["images=photos"], "images=photos"),
    (
        "train",
        [*TRAIN, "trainer.batch_size=4", "optimizer._target_=torch.optim.LBFGS", "~optimizer.betas"],
        "the optimizer LBFGS cannot be used here",
    ),
    ("train", [*TRAIN, "~debug"], "debug is required"),
    ("train", [*TRAIN, "trainer.batch_size=4", "model.penalties=-1"], "model.penalties=-1"),
    ("train", [*TRAIN, "+penalty.r1=3"], "penalty.r1=3"),
    ("train", [*TRAIN, "trainer.batch_size=4", "optimizer.lr=inf"], "optimizer.lr=inf"),
    ("train", [*TRAIN, "optimizer.betas={a:1}"], "optimizer.betas={a:1}"),
    ("report", ["empty", "++runs=[empty]"], "both name runs"),
    ("eval", ["images=photos", "real=photos", "picture=a.png"], "picture=a.png"),
    ("eval", ["images=photos", "real=photos", "split=test"], "split=test"),
    ("eval", ["compare=[a.json]"], "compare=['a.json']"),
    ("eval", ["compare=[a.json,b.json]"], "a.json"),
    ("eval", ["compare=[deep/metadata.jsonl,a.json]"], "deep/metadata.jsonl is not a result"),
    ("eval", ["compare=[file.txt,file.txt]"], "file.txt is not a result"),
    ("sample", [], "ckpt is required"),
    ("sample", ["ckpt=nowhere"], "ckpt=nowhere"),
    ("sample", ["ckpt=broken.pt"], "ckpt=broken.pt"),
    ("sample", ["ckpt='~nobody-of-that-name/a.pt'"], "ckpt=~nobody-of-that-name/a.pt"),
    ("sample", ["ckpt=nowhere", "which=worst"], "which=worst"),
    ("sample", ["ckpt=nowhere", "num_images=0"], "num_images=0"),
    ("sample", ["ckpt=nowhere", "interpolate=round"], "interpolate=round"),
    ("sample", ["ckpt=nowhere", "frames=8"], "frames=8"),
    ("translate", ["titel=3"], "ckpt is required"),  # the model may have such an option
    ("translate", ["ckpt=nowhere", "input=nowhere", "output=made"], "input=nowhere"),
    ("translate", ["ckpt=nowhere", "input=empty", "output=made"], "input=empty"),
    ("translate", ["ckpt=nowhere", "input=photos", "output=made", "tile=0"], "tile=0"),
    ("translate", ["ckpt=nowhere", "input=photos", "output=made", "half=top"], "half=top"),
    ("features", ["data=shapes", "name=../a"], "name=../a"),
    ("features", ["data=shapes", "name=a", "epochs=0"], "epochs=0"),
    ("prepare", ["data=folder", "data.root=photos", "output=photos"], "output="),
    ("prepare", ["data=folder", "data.root=deep", "output=made"], "line 1 of the file deep/metadata.jsonl is not JSON"),
    ("prepare", ["data=folder", "data.root=photos", "output=made", "shard_size=1GiB"], "shard_size=1GiB"),
    ("prepare", ["data=folder", "data.root=photos", "output=made", "data.horizontal_flip=true"], "data.horizontal_flip=True"),
    ("augment", ["input=nowhere", "output=made"], "input=nowhere"),
    ("augment", ["input=empty", "output=made"], "input=empty"),
    ("augment", ["input=photos", "output=made", "copies=0"], "copies=0"),
    ("augment", ["input=photos", "output=photos/made"], "output="),
    ("augment", ["input=corrupt", "output=made", "max_corrupt=null"], "input=corrupt"),
    ("report", [], "runs is required"),
    ("report", ["nowhere"], "nowhere does not exist"),
    ("report", ["empty"], "empty holds neither a run nor a sweep"),
    ("report", ["empty", "runs=[empty]"], "runs=[empty]"),
    ("report", ["old_run", "output=page.txt"], "output=page.txt"),
    ("report", ["old_run", "output=file.txt/page.html"], "output=file.txt/page.html cannot be written"),
    ("report", ["old_run", "output=other.html"], "output=other.html"),
    ("export", ["ckpt=nowhere"], "ckpt=nowhere"),
    ("export", ["ckpt=nowhere", "format=pdf"], "format=pdf"),
    ("export", ["ckpt=nowhere", "output=made.txt"], "output=made.txt"),
    ("export", ["ckpt=nowhere", "model_mode=half"], "model_mode=half"),
]


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Things to name on the command line."""
    for name in ("empty", "photos", "corrupt", "deep", "old_run", "broken_run/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "photos" / "a.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "deep" / "a.png")
    (tmp_path / "deep" / "metadata.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    (tmp_path / "corrupt" / "a.png").write_bytes(b"no image")
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "torn.yaml").write_text("generator: {width: 4\n")
    (tmp_path / "configs" / "model" / "unclosed.yaml").write_text("defaults: [dcgan_small]\nwidth: ${nowhere\n")
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / "bom.yaml").write_bytes(b"\xef\xbb\xbf# @package _global_\nseed: 1\n")
    (tmp_path / "file.txt").write_text("no result")
    (tmp_path / "other.html").write_text("no report")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    (tmp_path / "broken_run" / "checkpoints" / "step-00000001.pt").write_bytes(b"no checkpoint")
    (tmp_path / "old_run" / "metrics.jsonl").write_text('{"images": 1}\n')


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("name", "arguments", "words"), CASES, ids=[f"{name} {' '.join(rest)}" for name, rest, _ in CASES])
def test_what_a_user_can_mend_is_one_line(name: str, arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    code, errors = run(name, *arguments)
    assert code == 2, errors
    assert "Traceback" not in errors
    begin = f"genimg-{name}: error: "
    assert errors.count(begin) == 1, errors
    message = errors.split(begin)[1]
    assert message.count("\n") == 1, errors  # one line, the last
    assert words in message
    assert not (tmp_path / "made").exists()
