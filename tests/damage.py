"""Damage to files, a bit at a time."""

from pathlib import Path


def flip(path: Path, place: int) -> bytes:
    """Flip one bit of a file, counted from its begin, and return the content of before."""
    before = path.read_bytes()
    content = bytearray(before)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return before
