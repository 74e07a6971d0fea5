"""Evaluation results as text."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genimg.config.schema.commands import Eval
from genimg.evaluation.result import Evaluation
from genimg.training.device import describe_hardware
from genimg.utils.distributed import rank
from genimg.utils.environment import git_commit
from genimg.utils.files import write_json

log = logging.getLogger(__name__)


def table(columns: dict[str, dict[str, float]]) -> str:
    """Format values as a table with a row per name and a column per title; missing values are left empty."""
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    width = max(map(len, names)) + 2
    widths = {title: max(28, len(title) + 2) for title in columns}
    header = " " * width + "".join(title.rjust(widths[title]) for title in columns)
    rows = [
        name.ljust(width)
        + "".join((f"{values[name]:.6g}" if name in values else "").rjust(widths[title]) for title, values in columns.items())
        for name in names
    ]
    return "\n".join([header.rstrip(), *(row.rstrip() for row in rows)])


def sentence(provenance: Mapping[str, Any]) -> str:
    """Summarize the provenance of a value in one sentence."""
    if "translation" in provenance:
        made = provenance["translation"]
        which = "held-out" if made["held_out"] else "training"
        return f"{made['num_images']} {which} images of {made['source']}, translated in {made['mode']} mode"
    if "path_length" in provenance:
        made = provenance["path_length"]
        return (
            f"{made['distance']}, {made['num_paths']} paths in {made['space']} ({made['way']}, steps of {made['epsilon']:g} of "
            f"the path), {provenance['weights']} weights, seed {made['seed']}"
        )
    if "likelihood" in provenance:
        made = provenance["likelihood"]
        which = {True: "held-out ", False: "training ", None: ""}[made["held_out"]]
        return (
            f"{made['num_images']} {which}images of {made['source']}, {made['num_samples']} samples of each, {made['of']}, "
            f"seed {made['seed']}"
        )
    if "generated" not in provenance:
        made, extractor = provenance["reconstructions"], provenance["extractor"]
        which = {"held_out": "held-out ", "train": "training ", "real": ""}[made["side"]]
        return (
            f"{extractor['name']} ({(extractor['weights_sha256'] or 'no file')[:8]}), reconstructions of {made['num_images']} "
            f"{which}images of {made['source']}, {provenance['weights']} weights"
        )
    made, real = provenance["generated"], provenance["real"]
    extractors = [provenance["extractor"], *(each["extractor"] for each in provenance.get("additional", {}).values())]
    named = " and ".join(f"{each['name']} ({(each['weights_sha256'] or 'no file')[:8]})" for each in extractors)
    count = "an unrecorded number of" if real["num_images"] is None else real["num_images"]
    text = f"{named}, {made['num_images']} generated against {count} real images of {real['source']}"
    if "extractor" in real:
        text += " (whose extractor is not recorded)"
    if "weights" in made:
        return text + f", {made['weights']} weights, seed {made['seed']}"
    return text + f", generated: {made['source']}"


def with_intervals(result: Evaluation) -> dict[str, dict[str, float]]:
    """Return the columns of a result's table: its values, and their 95 % intervals if available."""
    if not result.intervals:
        return {"value": result.values}
    lows = {name: low for name, (low, _) in result.intervals.items()}
    highs = {name: high for name, (_, high) in result.intervals.items()}
    return {"value": result.values, "95 % from": lows, "to": highs}


def report(
    what: str,
    columns: dict[str, dict[str, float]],
    result: Evaluation,
    options: Eval,
    device: torch.device,
    subject: Mapping[str, Any],
) -> None:
    """Print a result with its provenance, and write it to the file ``output`` if given.

    Args:
        what: Description of what was measured.
        columns: Columns of the printed table, by title.
        result: The result.
        options: Options of the command; ``provenance`` and ``output`` are used.
        device: Device of the measurement.
        subject: Further entries of the written record.
    """
    log.info("%s", what)
    log.info("%s", table(columns))
    log.info("measured with %s", sentence(result.provenance))
    if options.provenance:
        log.info("%s", json.dumps(result.provenance, indent=2, ensure_ascii=False))
    if options.output is not None and rank() == 0:
        record = {
            **subject,
            "metrics": result.values,
            "intervals": {name: list(bounds) for name, bounds in result.intervals.items()},
            "provenance": result.provenance,
            "warnings": list(result.warnings),
            "hardware": describe_hardware(device),
            "git_commit": git_commit(),
        }
        write_json(Path(options.output), record)
        log.info("written to %s", options.output)
