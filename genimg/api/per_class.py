"""genimg-eval per_class=true: the Fréchet distance of each class, as values, a table and a picture."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from genimg.api.inputs import Side
from genimg.config.schema.commands import Eval
from genimg.errors import ConfigError
from genimg.evaluation.evaluator import Evaluator
from genimg.evaluation.image_sets import ImageSet
from genimg.evaluation.per_class import check_classes, class_distances
from genimg.evaluation.result import Evaluation
from genimg.reporting.class_bars import write_class_bars
from genimg.utils.distributed import rank
from genimg.utils.outputs import require_own_file, stamp_of

log = logging.getLogger(__name__)


def check_per_class(options: Eval, real: Side, made: ImageSet) -> None:
    """Check before the evaluation that the distances of classes can be measured and their picture can be written.

    Raises:
        ConfigError: If they cannot.
    """
    if not options.per_class:
        return
    if real.images is None:
        raise ConfigError(f"per_class=true needs the real images themselves, but real={options.real} holds statistics: give "
                          "images, or remove it", key="per_class")  # fmt: skip
    check_classes(real.images, made)
    require_own_file(_picture(options), "the picture of per_class=true")


def with_classes(
    options: Eval, result: Evaluation, evaluator: Evaluator, real: Side, made: ImageSet, device: torch.device
) -> Evaluation:
    """Return a result with the distance of each class, if requested, and write the picture of these distances."""
    if not options.per_class:
        return result
    assert real.images is not None
    found = class_distances(evaluator, real.images, made, device)
    described = [
        {
            "label": each.label, "name": each.class_name, "metric": each.name, "num_real": each.num_real,
            "num_generated": each.num_generated,
        }
        for each in found
    ]  # fmt: skip
    if rank() == 0:
        title = f"fd of each class ({evaluator.extractor.name})"  # the font has no accents
        write_class_bars(
            _picture(options), title, [(each.class_name, each.value) for each in found], stamp_of("genimg-eval")
        )  # fmt: skip
    return replace(
        result,
        values=result.values | {each.name: each.value for each in found},
        provenance=result.provenance | {"per_class": described},
    )


def log_classes(options: Eval, result: Evaluation) -> None:
    """Log a table of the classes and the path of the picture, if requested."""
    if not options.per_class:
        return
    described = result.provenance["per_class"]
    width = max(len("class"), *(len(each["name"]) for each in described)) + 2
    log.info("%s%10s%12s%12s", "class".ljust(width), "real", "generated", "distance")
    for each in described:
        value = result.values[each["metric"]]
        log.info("%s%10d%12d%12.6g", each["name"].ljust(width), each["num_real"], each["num_generated"], value)
    log.info("distances of the classes: %s", _picture(options))


def _picture(options: Eval) -> Path:
    """Return the path of the picture: beside the result file, if there is one, or in the current directory."""
    if options.output is None:
        return Path("per_class.png")
    path = Path(options.output)
    return path.with_name(f"{path.stem}_per_class.png")
