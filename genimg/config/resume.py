"""Find the checkpoint that a run starts from, and check that the config still describes the same training."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genimg.config import instantiate, untrusted
from genimg.config.compose import Composition, Config, resolved
from genimg.config.instantiate import Node
from genimg.config.model_size import require_fitting
from genimg.config.references import require_plain_references
from genimg.config.structure import require_saved_structure, require_structure
from genimg.data.facts import DataFacts
from genimg.data.identity import refused_differences, warned_differences
from genimg.errors import CheckpointError, ConfigError
from genimg.training import checkpoint
from genimg.training.decisions import Decisions
from genimg.training.state import TrainingState
from genimg.utils.durations import to_seconds, to_share
from genimg.utils.mappings import flatten
from genimg.utils.prefixes import distinct_prefixes
from genimg.utils.type_hints import fits

log = logging.getLogger(__name__)


_NEW: Node = {
    "init_from": None, "init_match": "all", "init_parts": None, "freeze": [], "expected": [], "distributed": "replicated",
    "budget": None,
}  # fmt: skip
"""Keys that the configs of earlier versions lack, with their defaults."""

_ADDED = ("data.max_images", "data.classes")  # keys that checkpoints of earlier versions lack; null is their behaviour

# Keys that may differ from the checkpoint's config without changing the training. trainer.duration is one of them because
# schedules that depend on it store their own duration.
_HARMLESS = (
    "run_dir", "resume", "resume_force", "allow", "debug", "traceback", "print_config", "dry_run", "budget", "device",
    "distributed", "evaluation", "expected", "performance", "logger",
    "data.storage", "data.num_workers", "data.max_corrupt",
    "data.refresh_index", "data.may_download",
    "trainer.duration", "trainer.log_interval", "trainer.preview_interval", "trainer.preview_images",
    "trainer.checkpoint_interval", "trainer.keep_last", "trainer.checkpoint_minutes", "trainer.preview_seconds",
    "trainer.usual_duration", "trainer.weights",
    "model.autoencoder.run",  # the autoencoder's digest is compared instead
)  # fmt: skip


_OF_THIS_COMMAND = ("resume", "resume_force", "run_dir", "allow", "traceback", "print_config", "dry_run", "budget", "logger")

_WITH_PATHS = ("data", "task")  # groups that name files
_PATHS = ("root", "a", "b", "path", "folder")  # keys at any depth of these groups whose values are relative paths

_NO_FIT = "the checkpoint's weights no longer fit the model"
_ABSENT = "(absent)"  # stands for a missing value


@dataclass(frozen=True)
class Saved:
    """A loaded checkpoint and its path."""

    state: Node
    path: Path


def names_a_checkpoint(composed: DictConfig) -> bool:
    """Return whether ``resume`` is a path; the command then starts from the checkpoint's own config."""
    return resolved(composed, "resume") not in (None, "auto")


@dataclass(frozen=True)
class Start:
    """The starting point of a run.

    Attributes:
        config: Config to train with.
        saved: Checkpoint to continue from, if any.
        named: See ``Builder.named``.
        may_replace_evaluation: See ``assemble``.
    """

    config: Config
    saved: Saved | None = None
    named: instantiate.Named | None = None
    may_replace_evaluation: bool = False

    @property
    def decided(self) -> Decisions | None:
        """The values that ``auto`` settings had in the continued run."""
        return Decisions.restored(self.saved.state["decisions"]) if self.saved else None


def find_start(composition: Composition, run_dir: Path) -> Start:
    """Return the config to train with and the checkpoint to start from, if any.

    With ``resume=PATH``, the values of this command line are applied on top of the checkpoint's own config, so
    ``genimg-train resume=PATH`` needs no other arguments.

    Raises:
        CheckpointError, ConfigError: If the checkpoint is missing or damaged, is not the newest of its run, or has
            another config.
    """
    composed = composition.config
    folder = checkpoint.CheckpointFolder(run_dir / "checkpoints", keep_last=1)
    if names_a_checkpoint(composed):
        path = Path(str(composed.resume)).expanduser()
        # For a run directory, load the newest readable checkpoint, because last.pt of a killed run may be older.
        newest = folder.load_last() if path.is_dir() and path.resolve() == run_dir.resolve() else None
        saved: Saved | None = Saved(*(newest or checkpoint.load_named(path)))
    elif composed.resume == "auto":
        found = folder.load_last()
        saved = Saved(*found) if found else None
        if not found and (run_dir / "metrics.jsonl").exists():
            log.info("%s has no checkpoint yet: starting from the beginning", run_dir)
    else:
        saved = None
    if saved is not None:
        checkpoint.require_whole(saved.state, saved.path)
        require_saved_structure(saved.state["config"], saved.path)
    _refuse_to_overwrite(folder, saved)
    return start_from(saved, composition, run_dir)


def start_from(saved: Saved | None, composition: Composition, run_dir: Path) -> Start:
    """Return the config to train with from a checkpoint, if any, on top of whose config this command line is applied.

    Args:
        saved: Complete checkpoint to continue from; None for a new run.
        composition: Composition of the command line.
        run_dir: Directory of the run.

    Raises:
        CheckpointError, ConfigError: See ``find_start``.
    """
    composed = composition.config
    raw = _on_top_of(saved.state, composition) if saved and names_a_checkpoint(composed) else _plain(composed)
    raw["run_dir"] = str(run_dir)
    named = _take_out_what_is_local(raw, composition) if saved and names_a_checkpoint(composed) else None
    resolved = _resolved(raw)
    for group in _WITH_PATHS:  # so the run can be continued from any directory
        _make_absolute(resolved.get(group), raw.get(group))
    config = Config(raw)
    require_structure(config)
    if saved is not None:
        _compare(saved, config, named)
    return Start(config, saved, named)


def _take_out_what_is_local(source: Node, composition: Composition) -> instantiate.Named:
    """Replace, in place, paths and digests that come only from the checkpoint; return those given on the command line.

    Raises:
        ConfigError: If a value has no replacement.
    """
    builder = instantiate.Builder((*instantiate.ALLOWED, *map(str, source["allow"] or ())))
    composed = composition.config
    own = {key: _composed_group(composed, key) for key in untrusted.GROUPS}
    given = {place.key: place.value for place in untrusted.places(own, builder)}
    typed = composition.typed_keys()
    config, raw = _resolved(source), _plain(composed)
    for place in untrusted.places(config, builder):
        # Compare with the text as typed, because an interpolation could refer to a value of the checkpoint's config.
        if any(f"{place.key}.".startswith(f"{key}.") for key in typed) and _at(raw, place.path) == place.value:
            given[place.key] = place.value
    builder = untrusted.naming(builder, given)
    for place in untrusted.take_out(config, builder):
        node = _at(source, place.path[:-1])
        if isinstance(node, dict):
            node[place.path[-1]] = place.mark.instead
    if left := untrusted.take_out(_resolved(source), builder):  # values behind an interpolation
        raise ConfigError(instantiate.name_again({place.key: "${...}" for place in left}))
    chosen = {override.key_or_group for override in composition.typed()} & {"data", "evaluation"}
    builder = builder.choosing(*chosen)
    assert builder.named is not None
    return builder.named


def _at(node: Any, path: Sequence[str | int]) -> Any:
    """Return the node at a path of keys and positions, without following interpolations, or None if there is none."""
    for key in path:
        try:
            node = node[key]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def _composed_group(composed: DictConfig, key: str) -> Any:
    """Return a group as this command line composes it, resolved; None if it needs values from the checkpoint's config."""
    try:
        return OmegaConf.to_container(composed[key], resolve=True)
    except OmegaConfBaseException:
        return None


def _make_absolute(config: Any, source: Any) -> None:
    """Make the paths of a group absolute in both the resolved and the unresolved config."""
    if isinstance(config, list):
        for index, item in enumerate(config):
            _make_absolute(item, source[index] if isinstance(source, list) else None)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key in _PATHS and isinstance(value, str) and "://" not in value:
            config[key] = str(Path(value).expanduser().absolute())
            if isinstance(source, dict):
                source[key] = config[key]
        else:
            _make_absolute(value, source.get(key) if isinstance(source, dict) else None)


def same_measure(old: Node, new: Node) -> bool:
    """Return whether two ``evaluation`` groups compute the same metrics, so their best values can be compared."""
    indifferent = (
        "interval", "batch_size", "cache_dir", "bootstrap", "reconstructions", "denoised", "final_num_images", "stop_if",
        "additional",
    )  # fmt: skip
    first, second = (
        {key: instantiate.present_name(value) if key == "_target_" else value
         for key, value in node.items() if key not in indifferent}
        for node in (old, new)
    )  # fmt: skip
    return first == second


_OTHER_IMAGES = "point data.root at the original images, or continue anyway with resume_force=true"


def check_classes(saved: Node, class_names: Sequence[str], *, force: bool) -> None:
    """Compare the data's classes with those of the checkpoint, before a model is built for them.

    Raises:
        ConfigError: If they differ and ``force`` is not set.
    """
    before = {key: value for key, value in _recorded_images(saved).items() if key == "class_names"}
    if not force and (refused := refused_differences(before, {"class_names": list(class_names)})):
        raise ConfigError("; ".join(refused), _OTHER_IMAGES)


def check_facts(saved: Node, facts: Node, *, force: bool) -> None:
    """Compare facts that are not in the config: the images, and the software and hardware.

    Raises:
        ConfigError: If the number, classes or order of the images differ and ``force`` is not set.
    """
    _compare_images(saved, facts, force=force)
    for name in ("decisions", "genimg_version", "torch_version", "numpy_version", "hardware", "processes", "performance"):
        if name in saved:
            then = saved[name]
            if name == "decisions":
                then = {**Decisions.restored(then).record(), "threads": last_threads(saved)}
            for key, now in _entries(name, facts[name]).items():
                if key == "hardware.threads" and facts["decisions"]["threads"] is not None and last_threads(saved) is not None:
                    continue  # compared as a decision: the number may change during a run
                if key not in _entries(name, then):  # a checkpoint of an earlier version
                    continue
                before = _entries(name, then)[key]
                if key == "decisions.threads" and now is None:  # a GPU trains now, and the device differs, too
                    continue
                if now != before and before is not None:  # None: durations in time were first used for the rest of the run
                    log.warning(
                        "%s is %s, but was %s: the run continues, but not bit for bit",
                        key.removeprefix("decisions."),
                        now,
                        before,
                    )


def last_threads(saved: Node) -> int | None:
    """Return the last number of CPU threads that a run chose; None if its checkpoint has none.

    Raises:
        CheckpointError: If an entry is invalid.
    """
    history = TrainingState.restored(saved["training"]).threads
    return history[-1][1] if history else Decisions.restored(saved["decisions"]).threads


def data_history(saved: Node, facts: Node) -> list[Node]:
    """Return the earlier datasets of a run, each with the number of images seen when it was replaced."""
    history: list[Node] = list(saved.get("data_history", []))
    before = _recorded_images(saved)
    if refused_differences(before, facts["data"]) or warned_differences(before, facts["data"]):
        history.append({"until_images": saved["training"]["images"], **before})
    return history


def _recorded_images(saved: Node) -> Node:
    """Return a checkpoint's record of its images; early checkpoints have only the number of images and the class names."""
    record: Node = saved.get("data") or {key: saved[key] for key in ("num_images", "class_names") if key in saved}
    return record


def _compare_images(saved: Node, facts: Node, *, force: bool) -> None:
    """Raise or warn if the images differ from those recorded in the checkpoint."""
    before, now = _recorded_images(saved), facts["data"]
    if refused := refused_differences(before, now):
        if not force:
            raise ConfigError("; ".join(refused), _OTHER_IMAGES)
        log.warning("resuming with different data: %s", "; ".join(refused))
    if "data" not in saved:
        log.warning(
            "the checkpoint does not record which images it was trained on: they cannot be compared with the current ones"
        )
    elif warned := warned_differences(before, now):
        log.warning("%s have changed: the run continues with the new ones and records both", ", ".join(warned))


def _entries(name: str, fact: Any) -> Node:
    """Split a fact with several values into one entry per value."""
    return {f"{name}.{key}": value for key, value in fact.items()} if isinstance(fact, dict) else {name: fact}


def differences(old: Node, new: Node) -> dict[str, str]:
    """Return ``old -> new`` by key, for every key that differs and affects the training."""
    flat_old, flat_new = _comparable(flatten(_NEW | old)), _comparable(flatten(_NEW | new))
    keys = [key for key in sorted(flat_old | flat_new) if not _harmless(key)]
    changes = {key: (flat_old.get(key, _ABSENT), flat_new.get(key, _ABSENT)) for key in keys}
    added = {key for key, values in changes.items() if key in _ADDED and values in ((None, _ABSENT), (_ABSENT, None))}
    return {key: f"{before} -> {now}" for key, (before, now) in changes.items() if before != now and key not in added}


def _comparable(flat: Node) -> Node:
    """Return a flat config whose values are equal if they mean the same.

    Shares of the training name its duration, because they change with it. ``freeze`` and ``init_parts`` are sets of prefixes,
    whose order and repetitions do not matter.
    """
    text = flat.get("trainer.duration")
    duration = f"{seconds} seconds" if (seconds := to_seconds(text)) else str(text).removesuffix("s")
    flat = {key: value if to_share(value) is None else f"{value} of {duration}" for key, value in flat.items()}
    for key in ("freeze", "init_parts"):
        prefixes = flat.get(key)
        if isinstance(prefixes, list | tuple) and fits(prefixes, list[str]):  # a checkpoint may hold anything
            flat[key] = distinct_prefixes(prefixes)
    return flat


def in_short(changes: dict[str, str], old_raw: Node, new_raw: Node) -> str:
    """Return the differences as lines. A group with another option has one line; keys that follow from other keys have none."""
    flat_old, flat_new = flatten(old_raw), flatten(new_raw)
    derived = {
        key
        for name, reference in flat_old.items()
        if flat_new.get(name) == reference and re.fullmatch(r"\$\{[\w.]+\}", str(reference))
        for key in changes
        if f"{key}.".startswith(f"{name}.") and reference[2:-1] + key.removeprefix(name) in changes
    }
    groups: dict[str, list[str]] = {}
    for key in changes.keys() - derived:
        groups.setdefault(key.partition(".")[0], []).append(key)
    lines = []
    for group, keys in sorted(groups.items()):
        another = any(key.endswith("._target_") or _ABSENT in changes[key] for key in keys)
        shown = sorted(f"{key}: {changes[key]}" for key in keys)
        lines += [f"{group}: {len(shown)} keys, such as {min(shown, key=len)}"] if another and len(shown) > 2 else shown
    return "\n  ".join(lines)


def _compare(saved: Saved, config: Config, named: instantiate.Named | None) -> None:
    changes = differences(saved.state["config"], config)
    found = Decisions.restored(saved.state["decisions"]).accumulation
    if {saved.state["config"]["trainer"]["accumulation"], config["trainer"]["accumulation"]} <= {"auto", found}:
        changes.pop("trainer.accumulation", None)
    builder = instantiate.Builder((*instantiate.ALLOWED, *map(str, config["allow"] or ())))
    for place in untrusted.places(config, builder):  # the file may be the same in a new place
        changes.pop(place.key, None)
    if not changes:
        return
    listed = in_short(changes, saved.state["raw_config"], config.raw)
    differs = f"the config differs from that of {saved.path} in ways that change the result:\n  {listed}\n"
    impossible = _why_impossible(saved.state, changes, config, named)
    if impossible:
        raise ConfigError(f"{differs}{impossible}: undo the changes, or choose another run_dir for a new run")
    if not config["resume_force"]:
        raise ConfigError(
            f"{differs}undo them, choose another run_dir for a new run, or continue anyway with resume_force=true"
        )
    log.warning("resuming with a changed config:\n  %s", listed)


def _why_impossible(state: Node, changes: dict[str, str], config: Node, named: instantiate.Named | None) -> str | None:
    """Return why even ``resume_force`` cannot continue with these changes, or None if it can."""
    if "trainer.batch_size" in changes:
        return "steps are counted in batches, so trainer.batch_size cannot change within a run"
    if "optimizer._target_" in changes:
        return "another optimizer cannot use the state of this one"
    if "freeze" in changes:
        return "optimizers have no state for parameters that were frozen"
    if any(key.startswith("model.autoencoder.") for key in changes):
        return "the autoencoder is part of the checkpoint, and the latents of another one would differ"
    allowed = (*instantiate.ALLOWED, *map(str, config["allow"] or ()))
    builder = instantiate.Builder(allowed, named=named, **instantiate.durations_of(state, config))
    try:
        facts = DataFacts.restored(state["facts"])
        changed = {name: config["data"][name] for name in ("image_size", "channels") if f"data.{name}" in changes}
        facts = replace(facts, **{name: value for name, value in changed.items() if value is not None})
        build = partial(instantiate.build_model, config, facts, builder)
        require_fitting(build, state["method"], builder)
        method = build()
    except CheckpointError:
        return _NO_FIT
    except Exception:  # raised again when a forced run is assembled
        return None
    shapes = {name: tensor.shape for name, tensor in method.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in state["method"].items()}:
        return _NO_FIT
    return None


def _refuse_to_overwrite(folder: checkpoint.CheckpointFolder, saved: Saved | None) -> None:
    """Refuse a fresh start or an older checkpoint in a run directory that holds newer checkpoints."""
    steps = [checkpoint.step_of(path) for path in checkpoint.numbered(folder.path)]
    if not steps:
        return
    if saved is None:
        raise ConfigError(f"{folder.path} holds a run already: continue it with resume=auto, or choose another run_dir")
    batch_size = saved.state["config"]["trainer"]["batch_size"]
    step = saved.state["training"]["images"] // batch_size
    if step < max(steps):
        raise ConfigError(
            f"{saved.path} was written at step {step}, but {folder.path} continues to step {max(steps)}: choose another "
            "run_dir to branch off from there"
        )


def _on_top_of(state: Node, composition: Composition) -> Node:
    """Return the checkpoint's unresolved config with the values that this command line sets."""
    saved, composed = state["raw_config"], composition.config
    typed = {override.key_or_group for override in composition.typed()}
    require_plain_references(_without(saved, {*typed, *_OF_THIS_COMMAND}))
    if saved.get("logger") and not composed["logger"]:
        log.warning(
            "the run used a logger, which a checkpoint never starts: to continue with it, choose it again with logger=NAME"
        )
    config = DictConfig(_NEW | saved)
    for override in composition.typed():
        key = override.key_or_group
        if key not in _OF_THIS_COMMAND:
            # A group chosen on the command line replaces the whole saved group, and no other group.
            OmegaConf.update(config, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    # allow is never taken from the checkpoint, because a downloaded one could allow its own code.
    for key in _OF_THIS_COMMAND:
        config[key] = composed[key]
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _without(raw: Node, keys: Collection[str]) -> Node:
    """Return a copy of the config without these dotted keys, which are about to be replaced."""
    left = copy.deepcopy(raw)
    for key in keys:
        *parents, name = key.split(".")
        node = _at(left, parents)
        if isinstance(node, dict):
            node.pop(name, None)
    return left


def _plain(config: DictConfig) -> Node:
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _resolved(source: Node) -> Node:
    return OmegaConf.to_container(OmegaConf.create(source), resolve=True)  # type: ignore[return-value]


def _harmless(key: str) -> bool:
    parts = key.split(".")
    # Paths may differ; check_facts compares the images themselves.
    is_path = parts[0] in _WITH_PATHS and parts[-1] in _PATHS
    return is_path or any(key == name or key.startswith(name + ".") for name in _HARMLESS)
