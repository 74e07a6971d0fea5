"""genimg-eval compare=[A,B]: print two results side by side, and whether they are comparable."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genimg.api.results import table
from genimg.errors import ConfigError, DataError
from genimg.evaluation.comparability import describe_differences, differences
from genimg.utils.json_text import parse_json
from genimg.utils.paths import expanded, relative

log = logging.getLogger(__name__)

_LONGEST_TITLE = 26  # characters of a column's header; longer ones would run into each other on a terminal


@dataclass(frozen=True)
class _Result:
    """An evaluation result read from a file.

    Attributes:
        metrics: Values by name.
        provenance: Settings and versions that the values depend on.
    """

    metrics: dict[str, float]
    provenance: dict[str, Any]


def compare_results(given: Sequence[str], which: str) -> None:
    """Print both results and the differences that make them incomparable.

    The columns are named A and B, with a line for each above the table, if the names would be too long or the same.

    Args:
        given: Two files written by ``output=``, or run directories.
        which: Evaluation of a run directory, ``last`` or ``best``.

    Raises:
        ConfigError: If the number of results is not two.
        DataError: If one of them is not a result.
    """
    if len(given) != 2:
        raise ConfigError(f"compare={given} must name two results: compare=[A.json,B.json]")
    records = [_read_result(expanded("compare", path), which) for path in given]
    titles = [str(path) for path in given]
    if max(map(len, titles)) > _LONGEST_TITLE or titles[0] == titles[1]:
        titles = ["A", "B"]
        for title, path in zip(titles, given, strict=True):
            log.info("%s: %s", title, path)
    log.info("%s", table({title: record.metrics for title, record in zip(titles, records, strict=True)}))
    found = differences(records[0].provenance, records[1].provenance)
    grave = [difference for difference in found if difference.matters]
    if grave:
        log.info("not comparable:\n%s", describe_differences(grave))
    else:
        log.info("comparable: everything that the values depend on is the same")
    slight = [difference for difference in found if not difference.matters]
    if slight:
        log.info("other differences (the values are still comparable):\n%s", describe_differences(slight))


def _read_result(path: Path, which: str) -> _Result:
    """Read a file written by ``output=``, or a run directory's summary."""
    file = path / "summary.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path} is neither a result that output= wrote nor a run directory with a summary.json")
    problem = f"{relative(file)} is not a result of genimg-eval or genimg-train"
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{problem} ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{problem} (it holds no evaluation)")
    key = "metrics" if "metrics" in record else which
    if missing := [each for each in (key, "provenance") if each not in record]:
        raise DataError(f"{problem}: it has no {missing[0]!r}")
    metrics, provenance = record[key], record["provenance"]
    if not (isinstance(metrics, dict) and isinstance(provenance, dict) and metrics and provenance):
        raise DataError(f"{problem} (it holds no evaluation)")
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise DataError(f"{problem} (its metrics are not numbers)")
    return _Result({name: float(value) for name, value in metrics.items()}, provenance)
