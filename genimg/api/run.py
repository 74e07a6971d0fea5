"""The results of a training run: summary.json, the report, the final messages, and the finished run."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genimg.api.debugging import say_what_was_learnt
from genimg.api.results import sentence, table
from genimg.config.compose import Composition, Config
from genimg.errors import UserError
from genimg.reporting import write_report
from genimg.training.device import describe_hardware
from genimg.training.evaluation_schedule import ScheduledEvaluator
from genimg.training.logger import write_hyperparameters
from genimg.training.state import TrainingState
from genimg.training.trainer import StopRequestedError, TimeIsOverError, Trainer, WorseningError
from genimg.training.update import NonFiniteError
from genimg.utils.distributed import rank, world_size
from genimg.utils.durations import time_in_words
from genimg.utils.environment import git_commit, versions
from genimg.utils.files import write_json
from genimg.utils.paths import relative
from genimg.utils.words import argument

if TYPE_CHECKING:
    from genimg.api.model import Model

log = logging.getLogger(__name__)

_NO_HYPERPARAMETERS = ("run_dir", "resume", "resume_force", "allow", "traceback", "print_config", "dry_run", "device", "logger",
                       "expected")  # fmt: skip


class DivergedError(UserError):
    """Training produced infinite or NaN values, or steadily worsening images."""


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        directory: Directory of the run: config.yaml, checkpoints/, samples/, metrics.jsonl, summary.json, report.html.
        status: ``completed``, also when the time of ``trainer.duration`` is over; ``stopped`` by a signal, with a checkpoint
            to continue from; or ``dry_run``.
        summary: Content of summary.json: images seen, metrics of the last and the best evaluation, speed, versions.
        best: Best value of the evaluator's first metric; None without evaluation.
        signal: Number of the signal that stopped the training, if any.
        allow: The user's own packages that the config names.
    """

    directory: Path
    status: str
    summary: Mapping[str, Any] = field(repr=False)
    best: float | None = None
    signal: int | None = None
    allow: Sequence[str] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last evaluation, by name."""
        return dict(self.summary.get("last", {}))

    def model(self, which: str = "last", *, device: str = "auto") -> Model:
        """Load the trained model.

        Args:
            which: Checkpoint to load, ``last`` or ``best``.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        """
        from genimg.api.model import load

        return load(self.directory, which=which, device=device, allow=self.allow)


class Training:
    """A run that is ready to start or to continue training.

    Args:
        composition: The composed config.
        config: The config that the run is built from; if a checkpoint is resumed, the config of the checkpoint.
        trainer: Trainer with its initial or restored state.
        run_dir: Directory of the run; only the first rank writes to it.

    Attributes:
        run: The finished run; None until the ``recorded`` block has ended.
    """

    def __init__(self, composition: Composition, config: Config, trainer: Trainer, run_dir: Path) -> None:
        self.composition = composition
        self.config = config
        self.trainer = trainer
        self.run_dir = run_dir
        self.run: Run | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[Trainer]:
        """Yield the trainer to a block that calls its ``fit``, and record the outcome of the run however the block ends.

        Raises:
            DivergedError: If the training has diverged.
        """
        trainer, state, run_dir = self.trainer, self.trainer.state, self.run_dir
        start, images_before = time.monotonic(), state.images
        stopped_by: int | None = None
        time_is_over = False
        page: Path | None = None
        summary: dict[str, Any] = {"status": "failed"}
        if rank() == 0 and images_before < trainer.settings.duration:
            (run_dir / "summary.json").unlink(missing_ok=True)  # an earlier launch wrote it
        try:
            yield trainer
            summary["status"] = "completed"
        except StopRequestedError:
            summary["status"] = "stopped"
            stopped_by = trainer.stop_signal.number or signal.SIGINT  # none if another process received the signal
            log.warning("stopped at %d images; the checkpoint is written", state.images)
            log.warning("to continue: %s %s", _command(), argument("resume", relative(run_dir)))
        except TimeIsOverError:
            summary |= {"status": "completed", "time_is_over": True}
            time_is_over = True
            log.warning(
                "the time of trainer.duration=%s is over after %d of %d images, because training was slower than measured "
                "at the start; the checkpoint is written",
                self.config["trainer"]["duration"], state.images, trainer.settings.duration,
            )  # fmt: skip
            log.warning("to train the rest: %s %s", _command(), argument("resume", relative(run_dir)))
        except KeyboardInterrupt:
            summary["status"] = "interrupted"
            log.warning("interrupted at %d images; the last checkpoint, if any, is in %s", state.images, trainer.folder.path)
            raise
        except (NonFiniteError, WorseningError) as error:
            summary["status"] = "diverged"
            raise DivergedError(_why_it_ended(error, trainer)) from error
        finally:
            summary |= _summary(self.composition, trainer, self.config)
            summary["wall_seconds"] = round(time.monotonic() - start, 1)
            if rank() == 0:
                _write_summary(run_dir, summary)
                page = _write_page(run_dir) if summary["status"] != "interrupted" else None
        name = trainer.evaluator.primary if trainer.evaluator else None
        best = state.best[name] if name and state.best else None
        self.run = Run(run_dir, summary["status"], summary, best, stopped_by, self.config["allow"])
        if summary["status"] == "stopped":
            return
        if images_before >= trainer.settings.duration:
            _say_that_it_is_complete(state, self.config["trainer"]["duration"], trainer, run_dir)
            return
        if rank() == 0 and state.last:
            settings = {key: value for key, value in self.config.items() if key not in _NO_HYPERPARAMETERS}
            write_hyperparameters(run_dir, settings, [f"evaluation/{name}" for name in state.last])
        done = state.images - images_before
        some = "" if done == state.images else f"; the last {done:,}"
        end = "ended" if time_is_over else "finished"
        log.info("%s: %s images%s in %s", end, f"{state.images:,}", some, time_in_words(summary["wall_seconds"]))
        _report(state, summary, trainer.evaluator, run_dir)
        if isinstance(debug := self.config.get("debug"), dict) and debug.get("one_batch") and rank() == 0:
            say_what_was_learnt(run_dir)
        if rank() == 0 and page is not None:
            log.info("report:      %s", relative(page))


def _command() -> str:
    return "torchrun ... -m genimg.train" if world_size() > 1 else "genimg-train"


def _say_that_it_is_complete(state: TrainingState, duration: str, trainer: Trainer, run_dir: Path) -> None:
    resume = f"{_command()} {argument('resume', relative(run_dir))}"
    if (images := trainer.settings.duration) < state.images:
        log.warning(
            "nothing to train: trainer.duration=%s is %s images, and this run has seen %s already; to continue, set more than "
            "that: %s trainer.duration='... images'",
            duration, f"{images:,}", f"{state.images:,}", resume,
        )  # fmt: skip
        return
    evaluator = trainer.evaluator
    name = (evaluator.primary or "") if evaluator else ""
    result = f": {name} is {state.last[name]:.6g}" if name in state.last else ""
    if result and state.best_images != state.images:
        result += f", and was {state.best[name]:.6g} at its {state.best_description}"
    log.info("this run is complete, with %d images%s", state.images, result)
    log.info("to train longer than %s: %s trainer.duration=...", duration, resume)


def _why_it_ended(error: NonFiniteError | WorseningError, trainer: Trainer) -> str:
    state, folder, evaluator = trainer.state, trainer.folder.path, trainer.evaluator
    if isinstance(error, NonFiniteError):
        last = folder / "last.pt"
        good = f"the last good checkpoint is {relative(last)}" if last.is_file() else "there is no earlier checkpoint"
        return (
            f"training diverged: the loss or gradient of {error.group} was not finite at step {error.step}; {good}. Try a "
            "lower optimizer.lr, trainer.max_grad_norm=1, precision=fp32, or another loss"
        )
    assert evaluator is not None
    assert evaluator.stop_if is not None
    watch = evaluator.stop_if
    name = evaluator.primary or "" if watch.metric is None else watch.name_in(state.last)
    if watch.metric is None:
        best = f"{state.best[name]:.6g} (at {state.best_images} images)"
        words = f"more than {watch.factor:g} times worse than its best of {best}"
    else:
        words = f"above {watch.above:g}" if watch.above is not None else f"below {watch.below:g}"
    kept = "best" if state.best else "last"
    return (
        f"training stopped at {state.images} images by evaluation.stop_if: {name} is {state.last[name]:.6g}, "
        f"and has been {words} for {state.worse_evaluations} evaluation{'s' * (state.worse_evaluations > 1)} in a row; "
        f"the {kept} checkpoint is {relative(folder / f'{kept}.pt')}"
    )


def _summary(composition: Composition, trainer: Trainer, config: Config) -> dict[str, Any]:
    state = trainer.state
    return {
        "overrides": [each for each in composition.overrides if not each.startswith("run_dir=")],
        "images": state.images,
        "duration": trainer.settings.duration,
        "steps": trainer.progress.step,
        "primary": trainer.evaluator.primary if trainer.evaluator else None,
        "higher_is_better": trainer.evaluator.higher_is_better if trainer.evaluator else None,
        "last": state.last,
        "best": state.best,
        "best_images": state.best_images,
        "num_evaluations": state.num_evaluations,
        "final": state.final,
        "provenance": state.provenance,
        "data": trainer.describe["data"],
        "data_history": trainer.describe["data_history"],
        "training_images_per_second": round(state.images / state.seconds, 1) if state.seconds else None,
        "data_wait_share": round(state.waiting_seconds / max(state.seconds, 1e-9), 4),
        "evaluation_seconds": round(state.evaluation_seconds, 1),
        "seed": config["seed"],
        "hardware": describe_hardware(trainer.device),
        "processes": world_size(),
        "storage": trainer.data.storage,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _write_summary(run_dir: Path, summary: Mapping[str, Any]) -> None:
    try:
        write_json(run_dir / "summary.json", summary)
    except OSError as error:  # often because the disk is full; the original error is more informative
        log.warning("summary.json cannot be written (%s)", error.strerror)


def _write_page(run_dir: Path) -> Path | None:
    """Write the report of the run; best effort."""
    try:
        return write_report([run_dir], run_dir / "report.html").html
    except Exception as error:
        log.warning("report.html cannot be written (%s)", error)
        return None


def _report(state: TrainingState, summary: Mapping[str, Any], evaluator: ScheduledEvaluator | None, run_dir: Path) -> None:
    shown = relative(run_dir)
    rate = summary["training_images_per_second"]
    waiting = state.waiting_seconds / max(state.seconds, 1e-9)
    log.info("%s images/s while training, %.1f %% of it waiting for data", rate, 100 * waiting)
    if waiting > 0.1 and summary["storage"] == "workers":
        log.info("  to reduce this time, set a larger data.num_workers, or pack the images with genimg-prepare")
    if evaluator and state.best:
        columns = {"last": state.last, state.best_description: state.best}
        log.info("%s", table(columns | ({"at the end": state.final["metrics"]} if state.final else {})))
        log.info("measured with %s", sentence(summary["provenance"]))
        share = state.evaluation_seconds / max(state.evaluation_seconds + state.seconds, 1e-9)
        log.info("evaluation took %.0f s, %.0f %% of training and evaluation together", state.evaluation_seconds, 100 * share)
    pictures = sorted((run_dir / "samples").glob(f"*-{state.images:09d}.png"))
    names = ",".join(path.name.removesuffix(f"-{state.images:09d}.png") for path in pictures)
    several = names if len(pictures) == 1 else f"{{{names}}}"
    log.info("pictures:    %s", shown / "samples" / f"{several}-{state.images:09d}.png")
    log.info("curves:      tensorboard --logdir %s   (or %s)", shlex.quote(str(shown)), shown / "metrics.jsonl")
    log.info("checkpoint:  %s", shown / "checkpoints" / ("best.pt" if state.best else "last.pt"))
