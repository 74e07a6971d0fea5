"""Bits that flip and pages that are lost on a disk: noticed whenever a checkpoint is read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from damage import flip
from errors import raises

from genimg.errors import CheckpointError
from genimg.training import checkpoint
from genimg.training.checkpoint import CheckpointFolder

PAGE = 4096


def state(step: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "method": {f"layer{i}.weight": torch.randn(40, 50, generator=generator) for i in range(12)},
        "config": {"model": {"width": 64, "names": ["a", "b"]}},
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def is_noticed(path: Path) -> bool:
    """Whether a damaged file is refused, or nothing in it that is read has changed."""
    try:
        found = checkpoint.load(path)
    except CheckpointError:
        return True
    return same({key: found[key] for key in state(1)}, state(1))


@pytest.mark.parametrize("seed", range(120))
def test_a_flipped_bit_is_noticed(tmp_path: Path, seed: int) -> None:
    checkpoint.save(state(1), path := tmp_path / "saved.pt")
    flip(path, place := random.Random(seed).randrange(8 * path.stat().st_size))
    assert is_noticed(path), f"bit {place % 8} of byte {place // 8}"


def test_every_page_of_zeros_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(state(1), path := tmp_path / "saved.pt")
    whole = path.read_bytes()
    for start in range(0, len(whole), PAGE):
        path.write_bytes(whole[:start] + bytes(len(whole[start : start + PAGE])) + whole[start + PAGE :])
        assert is_noticed(path), f"page at {start}"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=3)
    for step in (1, 2, 3):
        folder.save(state(step), step, best=step == 1)
    damage(folder.path / "last.pt")  # and so the file of its step, to which it is a link
    found, path = checkpoint.load_named(tmp_path)
    assert (found["step"], path.name) == (2, "step-00000002.pt")
    assert "last.pt is damaged" in caplog.text
    assert "; using " in caplog.text
    assert folder.load_last()[0]["step"] == 2
    damage(folder.path / "best.pt")
    with raises(CheckpointError, word="best.pt"):
        checkpoint.load_named(tmp_path, "best")
    with raises(CheckpointError, word="damaged"):
        checkpoint.load_named(folder.path / "last.pt")  # a file that is named is that one or none
