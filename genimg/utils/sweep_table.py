"""Safe reading of a sweep's table, sweep.csv, which may come from another machine."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

from genimg.utils.csv_cells import original
from genimg.utils.regular_files import UnsafeFileError, read_regular, refuse_links

log = logging.getLogger(__name__)

TITLES = ("job", "status", "best", "directory", "note", "overrides")
_MOST_BYTES = 2**26


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a sweep's table as values by column title; return no rows if the table is missing or unreadable.

    A row whose directory is outside the sweep is skipped with a warning.

    Args:
        path: Path of the table in the sweep's directory.
    """
    folder = path.parent
    try:
        text = read_regular(path, below=folder, most=_MOST_BYTES).decode("utf-8", errors="replace")
        read = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        return []
    except (OSError, UnsafeFileError, csv.Error) as error:
        log.warning("the table %s is skipped: %s", path, error)
        return []
    rows = [{title: original(row.get(title) or "") for title in TITLES} for row in read]
    return [row for row in rows if row["directory"] and _is_inside(folder, row["directory"])]


def _is_inside(folder: Path, directory: str) -> bool:
    try:
        refuse_links(folder / directory, below=folder)
    except (UnsafeFileError, OSError, ValueError) as error:  # ValueError: a NUL character
        log.warning("a job of %s is skipped: %s", folder, error)
        return False
    return (folder / directory) != folder
