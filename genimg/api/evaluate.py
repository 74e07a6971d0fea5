"""Measure images, of a checkpoint or from anywhere, against real ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from omegaconf import OmegaConf
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint, check_own_images
from genimg.api.compare import compare_results
from genimg.api.copies import describe_copies, held_out_images, measure_copies
from genimg.api.data import GIVEN, build_dataset, build_loader, other_split
from genimg.api.evaluate_likelihood import evaluate_likelihood
from genimg.api.evaluate_translation import evaluate_translator
from genimg.api.inputs import Side, compose_evaluation, resolve
from genimg.api.results import report
from genimg.config import instantiate, untrusted
from genimg.config.compose import Composition, compose, require_all_values, thaw
from genimg.config.instantiate import Config
from genimg.data.datasets.builtin import Source
from genimg.data.datasets.external import dataset_of
from genimg.errors import ConfigError, DataError
from genimg.evaluation.compare import Evaluator
from genimg.evaluation.feature_extraction import full_float32
from genimg.evaluation.image_sets import DatasetImages, ImageSet, Subset
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.evaluation.nearest import nearest_images
from genimg.evaluation.periodic import Evaluation
from genimg.evaluation.stats_cache import SavedStatistics
from genimg.methods.image_to_image import Translation
from genimg.training.device import choose_device
from genimg.utils.distributed import first_of_each_host, processes_of_torchrun, rank
from genimg.utils.files import check_writable
from genimg.utils.images import grid, to_uint8, write_png
from genimg.utils.mappings import flatten, merged
from genimg.utils.words import quoted

log = logging.getLogger(__name__)

_NEIGHBORS = 7  # beside each generated image in the picture of nearest real images


def evaluate(
    images: object,
    real: object,
    *,
    evaluation: str = "inception",
    num_images: int | None = None,
    batch_size: int | None = None,
    bootstrap: int | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Measure images against real ones, as ``genimg-eval images=... real=...`` does.

    Args:
        images: Float images [N, C, H, W] in [-1, 1], as a model's ``sample`` returns; uint8 images or a dataset (see
            ``as_dataset``); or text or a path: a folder, an .npz, or a dataset such as ``mnist:test``.
        real: The same, or the path of saved statistics.
        evaluation: Option of the group ``evaluation``, which names the extractor and the metrics.
        num_images: Number of images, a fixed choice of them; None takes all.
        batch_size: Of the extraction; has no influence on the values.
        bootstrap: Number of resamples for 95 % intervals.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        overrides: Further arguments of ``genimg-eval``.

    Returns:
        The values by name, intervals, what they depend on, and warnings.

    Raises:
        UserError: If there are no such images, or they cannot be measured in this way.
    """
    given = {"num_images": num_images, "batch_size": batch_size, "bootstrap": bootstrap}
    arguments = [f"evaluation={evaluation}", f"device={device}", *(f"{k}={v}" for k, v in given.items() if v is not None)]
    sides = {"images": images, "real": real}
    arguments += [f"{key}={quoted(str(value))}" for key, value in sides.items() if isinstance(value, str | Path)]
    own = {key: own_images(value, key) for key, value in sides.items() if not isinstance(value, str | Path)}
    result = measure(compose([*arguments, *overrides], "eval"), own)
    assert result is not None
    return result


def own_images(images: object, key: str) -> Source:
    """Return images that a function of the Python API receives as ``key``: float [N, C, H, W] in [-1, 1], or a dataset.

    Raises:
        DataError: If they are neither.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        if not images.isfinite().all():
            raise DataError(f"{key}=... holds NaN or infinite values", key=key)
        images = to_uint8(images)
    return dataset_of(images, key, name=key)


def measure(composition: Composition, own: Mapping[str, Source] = MappingProxyType({})) -> Evaluation | None:
    """Measure what the options of ``genimg-eval`` say, and log the result.

    Args:
        composition: The options.
        own: Images in place of those that ``images`` and ``real`` would name, by option.

    Returns:
        The result; None where two results were compared, or statistics made.
    """
    composed = composition.config
    require_all_values(composed)
    # The group's key is absent where none of its options is chosen.
    options: Config = {"evaluation": None, **OmegaConf.to_container(composed, resolve=True), **own}  # type: ignore[dict-item]
    if options["evaluation"] == {}:
        raise ConfigError("evaluation=none evaluates nothing: choose another of the group")
    _check_options(options)
    _refuse_what_has_no_effect(options, _typed(composition))
    if options["compare"] is not None:
        compare_results(options["compare"], options["which"])
        return None
    if options["ckpt"] is not None and options["images"] is not None:
        raise ConfigError(
            f"ckpt={options['ckpt']} and images={options['images']} both say what to evaluate: remove one of them"
        )
    if options["ckpt"] is None and options["images"] is None and not (options["real"] and options["save_statistics"]):
        raise ConfigError(
            "nothing to evaluate: give ckpt=CHECKPOINT, or images=DIR with real=WHAT; or real=DIR with save_statistics=FILE to "
            "make statistics; genimg-eval --help shows examples",
            key="ckpt",
        )
    if options["images"] is not None and options["real"] is None:
        raise ConfigError(
            f"images={options['images']} needs something to compare with: give real=DIR, an .npz, saved statistics or a dataset"
        )
    with processes_of_torchrun(options["device"]) as device_name:
        if rank() > 0:
            logging.disable(logging.WARNING)  # the first rank says it
        device = choose_device(device_name)
        return (
            _of_checkpoint(options, _typed(composition), device) if options["ckpt"] is not None else _of_images(options, device)
        )


_LEAST = {
    "num_images": 2, "num_samples": 1, "num_real": 2, "batch_size": 1, "seed": 0, "bootstrap": 0, "image_size": 1,
    "neighbors": 0,
}  # fmt: skip


def _check_options(options: Config) -> None:
    """Before any work, so that no mistake costs an evaluation.

    Raises:
        ConfigError: Naming the key.
    """
    for key, least in _LEAST.items():
        value = options[key]
        if value is not None and value < least:
            raise ConfigError(f"{key}={value} must be a whole number, {least} or more")
    if options["save_statistics"] is not None and not str(options["save_statistics"]).endswith(".pt"):
        raise ConfigError(f"save_statistics={options['save_statistics']} must end in .pt, by which real= knows it again")
    for key in ("output", "picture", "save_statistics", "table"):
        if options[key] is not None:
            check_writable(key, Path(str(options[key])))


_OF_STATISTICS = {
    "real", "save_statistics", "evaluation", "device", "num_images", "num_real", "batch_size", "image_size", "range",
    "data_root", "inception_weights", "allow", "traceback",
}  # fmt: skip


_OF_CHECKPOINTS = {
    "which", "seed", "model_mode", "classical", "table", "split", "num_samples", "conditioning", "loss", "model",
}  # fmt: skip


def _check_picture(options: Config) -> None:
    if options["picture"] is not None and not options["neighbors"]:
        raise ConfigError(f"picture={options['picture']} has no effect without neighbors=: remove it")


def _typed(composition: Composition) -> dict[str, str]:
    """Return what is overridden: option, or group, -> the first override of it."""
    found: dict[str, str] = {}
    for override in composition.overrides:
        found.setdefault(re.split(r"[.@=]", override.lstrip("+~"))[0], override.lstrip("+~"))
    return found


def _refuse_what_has_no_effect(options: Config, typed: Mapping[str, str]) -> None:
    """A setting that does nothing is a mistake.

    Raises:
        ConfigError: Naming the key.
    """
    if options["compare"] is not None:
        useless, why = typed.keys() - {"compare", "which", "traceback"}, "with compare="
    elif options["ckpt"] is None and options["images"] is None:
        useless, why = typed.keys() - _OF_STATISTICS, "where statistics are all that is made"
    elif options["images"] is not None:
        useless, why = typed.keys() & _OF_CHECKPOINTS, "on images that exist already"
        if not useless:
            _check_picture(options)
    else:
        useless, why = (
            (typed.keys() & {"image_size", "range", "accept_unrecorded"} if options["real"] is None else set()),
            "without real=",
        )
    if useless:
        raise ConfigError(f"{typed[sorted(useless)[0]]} has no effect {why}: remove it")


def _of_checkpoint(options: Config, typed: Mapping[str, str], device: torch.device) -> Evaluation:
    given = options.pop("evaluation")
    checkpoint = TrainedCheckpoint.of_command(options)
    config = thaw(checkpoint.config)  # of this evaluation
    builder = replace(checkpoint.builder, epoch_size=1, batch_size=1)
    if given is not None and "_target_" in given:  # composed by the user's own command line
        own = {place.key: place.value for place in untrusted.places(given, builder)}
        options["evaluation"] = given
    else:
        own = flatten(given) if given else {}
        options["evaluation"], config["evaluation"] = None, merged(config["evaluation"], given or {})
    if options["inception_weights"] is not None:
        own["weights"] = options["inception_weights"]
    builder = untrusted.naming(builder, own)
    if options["real"] is None and config["data"]["_target_"] == GIVEN:
        raise ConfigError(
            "real is required: this model was trained on images that a Python program brought: give images to compare with",
            key="real",
        )
    translates = issubclass(builder.locate(config["model"]["_target_"], "model"), Translation)
    if options["evaluation"] is None and "_target_" not in config["evaluation"]:
        fitting = "translation (unpaired_translation for unpaired data)" if translates else "inception or another of the group"
        raise ConfigError(
            f"ckpt={options['ckpt']} was trained with evaluation=none, so there is nothing to evaluate it with: choose "
            f"evaluation={fitting}"
        )
    typed = {key: override for key, override in typed.items() if key not in ("conditioning", "loss", "model")}
    if options["data_root"] is not None and options["real"] is None:
        key = next((key for key in ("root", "path") if key in config["data"]), None)
        if config["data"].get("a") is not None:
            raise ConfigError(
                f"data_root={options['data_root']} has no effect, because this checkpoint's data are two folders, data.a and "
                "data.b: remove it"
            )
        if key is None:
            raise ConfigError(
                f"data_root={options['data_root']} has no effect, because this checkpoint's data is not read from a directory: "
                "remove it"
            )
        config["data"][key] = options["data_root"]
    if options["split"] is not None:
        _take_split(options, config)
    if options["evaluation"] is None:
        if options["inception_weights"] is not None and _uses_inception(config["evaluation"]):
            config["evaluation"]["extractor"]["weights"] = options["inception_weights"]
        untrusted.take_out(config, builder, ("evaluation",))
    checkpoint = checkpoint.changed(config, builder)
    if translates:
        return evaluate_translator(options, typed, checkpoint, device)
    chosen = options["evaluation"] or config["evaluation"]
    if issubclass(builder.locate(chosen["_target_"], "evaluation"), LikelihoodEvaluator):
        return evaluate_likelihood(options, typed, checkpoint, device, chosen)
    if useless := sorted(typed.keys() & {"model_mode", "classical", "table"}):
        raise ConfigError(f"{typed[useless[0]]} is for models that translate images: remove it")
    if options["num_samples"] is not None:
        raise ConfigError(f"num_samples={options['num_samples']} is for evaluation=likelihood: choose that, or remove it")
    _check_picture(options)
    with first_of_each_host():  # both may download
        if options["real"] is not None:
            real = resolve("real", options, builder, device)
        else:
            source = build_dataset(config, builder)
            real = Side(source=source, images=DatasetImages(build_loader(config, source, device)))
        evaluator = _evaluator(options, chosen, builder, real)
        held_out = held_out_images(options, config if options["real"] is None else None, real, builder, device)
    measure_copies(options, evaluator, held_out)
    method = checkpoint.method(device)
    if options["real"] is None:
        assert real.source is not None
        check_own_images(real.source, method, checkpoint.state, other_split=options["split"] is not None)
    if real.source is not None:
        with instantiate.mounted("evaluation", evaluator):
            evaluator.check_reconstructions(method, real.source.shape)
    made = evaluator.generated(method, device, checkpoint.class_names)
    compared = real.statistics if real.images is None else real.images
    assert compared is not None
    save = Path(options["save_statistics"]) if options["save_statistics"] else None
    result = evaluator.compare(compared, made, device, save_statistics=save, held_out=held_out, published=_beside(real))
    if isinstance(compared, DatasetImages):
        apart = held_out
        if options["held_out"] is not None and method.reconstructs:  # of any size; they serve the comparison of neighbours only
            own_data = config if options["real"] is None else None
            apart = held_out_images({**options, "held_out": None}, own_data, real, builder, device)
        side, images = _to_reconstruct(options, compared, apart)
        result = evaluator.with_reconstructions(result, method, images, side, device)
    subject = {"checkpoint": str(checkpoint.path), "images": checkpoint.images}
    _finish(result, f"{checkpoint.path}, trained on {checkpoint.images} images", options, device, subject)
    _show_neighbors(options, evaluator, compared, made, result, held_out)
    return result


def _to_reconstruct(options: Config, real: DatasetImages, held_out: DatasetImages | None) -> tuple[str, DatasetImages]:
    """Return the name of the images to reconstruct, and the images: held-out ones if available."""
    if options["real"] is not None:
        return "real", real
    if options["split"] is not None:
        return "held_out", real
    return ("train", real) if held_out is None else ("held_out", held_out)


def _take_split(options: Config, config: Config) -> None:
    """Have the checkpoint's data be its other split, all of it.

    Raises:
        ConfigError: If it has none.
    """
    if options["real"] is not None:
        raise ConfigError(
            f"split={options['split']} is of the checkpoint's own data, and real={options['real']} names others: remove one of "
            "them"
        )
    config["data"] = other_split(config["data"], options["split"], key="split", instead="use real=DIR")


def _of_images(options: Config, device: torch.device) -> Evaluation | None:
    builder = instantiate.Builder(allowed=(*instantiate.ALLOWED, *options["allow"]), epoch_size=1)
    with first_of_each_host():  # datasets may be downloaded
        real = resolve("real", options, builder, device)
        fake = None if options["images"] is None else resolve("images", options, builder, device)
    if fake is not None and fake.images is None:
        raise ConfigError(f"images={options['images']} holds statistics, not images; statistics can stand on the side of real=")
    chosen = options["evaluation"] or {}
    if "_target_" not in chosen:
        chosen = merged(real.evaluation or compose_evaluation("evaluation=inception")["evaluation"], chosen)
    if fake is None:
        _save_statistics(options, _evaluator(options, chosen, builder, real), real, device)
        return None
    assert fake.source is not None
    assert fake.images is not None
    made: ImageSet = fake.images
    if len(made) < 2:
        raise DataError(f"images={options['images']} holds {len(made)} image: a covariance needs 2 or more")
    if options["num_images"] is not None:
        made = Subset(made, options["num_images"])
    evaluator = _evaluator(options, chosen, builder, real, num_images=len(made))
    compared = real.statistics if real.images is None else real.images
    assert compared is not None
    if real.source is not None and real.source.shape[1:] != fake.source.shape[1:]:
        log.warning(
            "the images are %s pixels and the real ones %s: the extractor resizes both, but sharpness alone then differs",
            "x".join(map(str, fake.source.shape[1:])), "x".join(map(str, real.source.shape[1:])),
        )  # fmt: skip
    save = Path(options["save_statistics"]) if options["save_statistics"] else None
    held_out = held_out_images(options, None, real, builder, device)
    measure_copies(options, evaluator, held_out)
    result = evaluator.compare(compared, made, device, save_statistics=save, held_out=held_out, published=_beside(real))
    _finish(result, f"{options['images']} against {options['real']}", options, device, {"images_from": str(options["images"])})
    _show_neighbors(options, evaluator, compared, made, result, held_out)
    return result


def _save_statistics(options: Config, evaluator: Evaluator, real: Side, device: torch.device) -> None:
    if real.images is None or real.source is None:
        raise ConfigError(f"real={options['real']} holds statistics already: give images to make statistics of")
    statistics = evaluator.statistics(real.images, device)
    path = Path(options["save_statistics"])
    if rank() == 0:
        statistics.write(path)
    log.info("statistics of %d images of %s by %s: %s", statistics.summary.num_images, real.source.name,
             evaluator.extractor.name, path)  # fmt: skip


def _evaluator(
    options: Config, chosen: Config, builder: instantiate.Builder, real: Side, num_images: int | None = None
) -> Evaluator:
    config = {**chosen}
    config["num_images"] = num_images or config["num_images"]
    for key in ("num_images", "num_real", "batch_size", "seed", "bootstrap"):
        if options[key] is not None and (key != "num_images" or num_images is None):
            config[key] = options[key]
    if options["inception_weights"] is not None:
        if not _uses_inception(config):
            raise ConfigError(
                f"inception_weights={options['inception_weights']} has no effect, because this evaluation does not use "
                "Inception: remove it"
            )
        config["extractor"] = {**config["extractor"], "weights": options["inception_weights"]}
    if real.images is None and options["num_real"] is not None:
        raise ConfigError(f"num_real={options['num_real']} has no effect on statistics that exist already: remove it")
    if real.images is None and options["neighbors"]:
        raise ConfigError(
            f"neighbors={options['neighbors']} needs the real images themselves, but real={options['real']} holds statistics: "
            "give images, or remove it"
        )
    evaluator = builder.build_group({"evaluation": config}, "evaluation")
    if not isinstance(evaluator, Evaluator):
        measured = (
            "the likelihood of images under a model"
            if isinstance(evaluator, LikelihoodEvaluator)
            else "translations by a model"
        )
        raise ConfigError(f"this evaluation measures {measured}: choose evaluation=inception or another one", key="evaluation")
    if real.statistics is not None:
        assert real.path is not None
        real.statistics.check_extractor(evaluator.extractor, real.path, accept_unrecorded=options["accept_unrecorded"])
    return evaluator


def _beside(real: Side) -> SavedStatistics | None:
    """Statistics that came with the real images."""
    return None if real.images is None else real.statistics


def _uses_inception(evaluation: Config) -> bool:
    return str((evaluation.get("extractor") or {}).get("_target_", "")).endswith(".Inception")


def _finish(result: Evaluation, what: str, options: Config, device: torch.device, subject: Config) -> None:
    columns = {"value": result.values}
    if result.intervals:
        columns |= {"95 % from": {name: low for name, (low, _) in result.intervals.items()},
                    "to": {name: high for name, (_, high) in result.intervals.items()}}  # fmt: skip
    report(what, columns, result, options, device, subject)


def _show_neighbors(
    options: Config, evaluator: Evaluator, real: ImageSet | SavedStatistics, fake: ImageSet, result: Evaluation,
    held_out: DatasetImages | None,
) -> None:  # fmt: skip
    count = options["neighbors"]
    if count == 0:
        return
    assert not isinstance(real, SavedStatistics)
    if rank() > 0:
        return
    with full_float32():
        distances, indices, shown = nearest_images(
            real, fake, evaluator.extractor, count=count, neighbors=_NEIGHBORS, batch_size=evaluator.batch_size
        )
    path = Path(options["picture"] or "neighbors.png")
    write_png(grid(shown, columns=indices.shape[1] + 1), path)
    describe_copies(result, evaluator, len(fake), held_out)
    log.info("nearest real images: %s (each row: a generated image, then its nearest real ones)", path)
    for i, (row, numbers) in enumerate(zip(distances.tolist(), indices.tolist(), strict=True)):
        log.info(
            "  image %d: real image %d at distance %.4g, the next at %.4g", i, numbers[0], row[0], row[min(1, len(row) - 1)]
        )
