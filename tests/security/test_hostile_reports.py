"""Run directories that a stranger has packed: a report shows what makes sense, quickly, and nothing of other files."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genimg.reporting import write_report
from genimg.utils.terminal import visible

SECONDS = 10.0  # within which even a slow machine must have read a run
WORDS = ["", "loss/generator", "evaluation/fid", "evaluation/fid_low", "images", "step", "status", "best", "provenance",
         "</script><script>alert(1)</script>", "\x1b[31m", "${oc.env:A}", "a" * 3000, "\u202e", "\ud800", "=1"]  # fmt: skip
NUMBERS = [0, -1, 7, 1e308, float("nan"), float("inf"), 10**300, 10**4000, True, None, 2**63, -0.0]


def run_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {width: 8}\ndata: {root: null}\n")
    lines = [{"step": i, "images": 8 * i, "loss/generator": 1.0 / i, "evaluation/fid": 9.0 / i} for i in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"status": "completed", "images": 24, "best": {"fid": 3.0}}))
    (folder / "samples").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "samples" / "samples-000000024.png")
    return folder


def report_of(*folders: Path) -> str:
    start = time.monotonic()
    page = write_report(list(folders), folders[0].parent / "report.html").html.read_text(encoding="utf-8", errors="replace")
    assert time.monotonic() - start < SECONDS
    return page


def test_aliases_of_yaml_do_not_grow_without_end(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
    ]
    (run / "config.yaml").write_text("\n".join(lines))
    assert "run" in report_of(run)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", ".hydra/overrides.yaml"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "- " * 50_000, "\0\x01\udcff", "{" * 3000 + "}" * 3000])
def test_files_of_deep_or_broken_content_are_skipped(tmp_path: Path, name: str, content: str) -> None:
    run = run_in(tmp_path / "run")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    report_of(run)


def test_one_bad_byte_costs_one_line(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content + b'{"step": 4, "images": 32, "loss/\xff": 1.0}\n\xff\n' + content)
    report_of(run)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "train.log", "console.log", "samples"])
def test_links_show_nothing_of_other_files(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    run, private = run_in(tmp_path / "run"), tmp_path / "private"
    private.mkdir()
    (private / "text").write_text("genimg-train: error: very-secret-words\nvery-secret-words: 1\n")
    Image.effect_noise((64, 64), 90).convert("RGB").save(private / "samples-000000048.png")
    target = private if name == "samples" else private / "text"
    if name == "samples":
        (run / "samples" / "samples-000000024.png").unlink()
        (run / "samples").rmdir()
    else:
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    page = report_of(run)
    assert "very-secret-words" not in page
    assert "data:image/webp" not in page or name != "samples"
    if name in ("config.yaml", "metrics.jsonl", "summary.json", "samples"):
        assert f"{name} is a link" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_named_pipes_do_not_hang(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run")
    for name in ("config.yaml", "summary.json", "samples/samples-000000024.png"):
        (run / name).unlink()
    for name in ("config.yaml", "summary.json", "train.log", "console.log", "samples/samples-000000024.png"):
        os.mkfifo(run / name)
    report_of(run)


def odd(generator: random.Random, depth: int = 0) -> Any:
    kind = generator.randrange(5 if depth < 3 else 3)
    if kind == 0:
        return generator.choice(NUMBERS)
    if kind == 1:
        return generator.choice(WORDS)
    if kind == 2:
        return generator.random()
    if kind == 3:
        return [odd(generator, depth + 1) for _ in range(generator.randrange(4))]
    return {generator.choice(WORDS): odd(generator, depth + 1) for _ in range(generator.randrange(5))}


def as_json(value: Any) -> bytes:
    import sys

    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("seed", range(40))
def test_values_of_other_types_are_shown_or_skipped(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    run, other = run_in(tmp_path / "run"), run_in(tmp_path / "other")
    lines = []
    for i in range(6):
        line = {"step": i, "images": 8 * i, "loss/generator": 1.0, "evaluation/fid": 3.0, "provenance": {"extractor": "x"}}
        for _ in range(generator.randrange(3)):
            line[generator.choice([*WORDS, *line])] = odd(generator)
        lines.append(as_json(line) if generator.random() < 0.9 else as_json(odd(generator)))
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    summary = {"status": "completed", "images": 48, "best": {"fid": 3.0}, "seconds": 3.0, "overrides": ["model=vae"]}
    for _ in range(3):
        summary[generator.choice([*WORDS, *summary])] = odd(generator)
    (run / "summary.json").write_bytes(as_json(summary))
    (run / "config.yaml").write_bytes(as_json({"model": odd(generator), "data": odd(generator), "evaluation": odd(generator)}))
    page = report_of(run, other)
    assert "<script>alert(1)" not in page
    for text in (page, *((tmp_path / f"report.{ending}").read_text(encoding="utf-8") for ending in ("md", "csv"))):
        assert visible(text) == text


def test_the_largest_numbers_are_skipped_or_shown(tmp_path: Path) -> None:
    runs = [run_in(tmp_path / f"run{number}") for number in range(9)]
    for number, run in enumerate(runs):
        line = {"step": 3, "images": 24, "evaluation/fid": 10.0 ** (30 * number) * (-1) ** number, "loss/generator": 1e-300}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (run / "config.yaml").write_text(f"seed: {number}\nmodel: {{width: .inf}}\n")
        (run / ".hydra").mkdir()
        (run / ".hydra" / "overrides.yaml").write_text(f"[seed={number}, 'lr={['.inf', '1e999', 'x'][number % 3]}']")
    assert "run0" in report_of(*runs)
