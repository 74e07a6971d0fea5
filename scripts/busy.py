"""A process that keeps a processor core busy, for measurements beside other work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:  # the loop also ends if the parent is killed
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_process() -> Iterator[int]:
    """Run a process beside the block that computes without a pause; yield its number."""
    process = subprocess.Popen([sys.executable, "-S", "-c", _SPIN], stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
