"""Trials that log nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def silent(level: int = logging.WARNING) -> Iterator[None]:
    """Log nothing up to a level within the block, because the same is logged again, or is about a mere trial."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)
