"""Streams that survive, and the signals that ask for a stop."""

from __future__ import annotations

import io
import logging
import signal
import subprocess
import sys

import pytest

from genimg.utils.terminal import TolerantStream, VisibleRecord, as_many_as_fit, stop_signals


def test_a_full_disk_is_survived_and_the_length_returned() -> None:
    stream = TolerantStream(open("/dev/full", "w", encoding="utf-8"))  # noqa: SIM115
    assert stream.write("x" * 100_000) == 100_000
    stream.flush()
    assert not stream.isatty()


def test_a_closed_stream_is_survived(tmp_path) -> None:
    file = (tmp_path / "log").open("w", encoding="utf-8")
    stream = TolerantStream(file)
    assert stream.write("before") == 6
    file.close()
    assert stream.write("after") == 5
    stream.flush()
    assert not stream.isatty()
    assert (tmp_path / "log").read_text() == "before"


def test_descriptors_that_are_closed_are_not_given_to_the_next_file(tmp_path) -> None:
    program = (
        "import os, sys; from genimg.utils.terminal import protect_standard_streams; protect_standard_streams(); "
        f"file = open({str(tmp_path / 'file')!r}, 'w'); print('lost'); print('lost', file=sys.stderr); "
        "file.write(str(file.fileno())); file.close()"
    )
    subprocess.run(["bash", "-c", f'exec {sys.executable} -c "$0" <&- >&- 2>&-', program], check=True)
    assert int((tmp_path / "file").read_text()) > 2


def test_what_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # whatever these tests were started by
    assert set(stop_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_names_that_files_bring_change_nothing_on_a_terminal():
    stream = io.StringIO()
    text = "a\x1b]0;title\x07b\x9b31mc\x08\u202ed\x00e\n\tf\rg\x1b[A\x1b[K"
    assert TolerantStream(stream).write(text) == len(text)
    assert stream.getvalue() == "a\\x1b]0;title\\x07b\\x9b31mc\\x08\\u202ed\\x00e\n\tf\rg\x1b[A\x1b[K"


def test_a_log_record_moves_no_cursor() -> None:
    record = VisibleRecord("genimg", logging.INFO, "", 0, "skipped %s\nand %s", ("a\x1b[5A\x1b[0Jb\rc", "d"), None)
    assert record.getMessage() == "skipped a\\x1b[5A\\x1b[0Jb\\x0dc\nand d"


@pytest.mark.parametrize(
    ("width", "line"),
    [(80, "aa 1, bb 2, cc 3"), (16, "aa 1, bb 2, cc 3"), (15, "aa 1, 2 more"), (12, "aa 1, 2 more"), (3, "aa 1, 2 more")],
)
def test_a_list_is_cut_between_its_parts(width, line):
    assert as_many_as_fit(["aa 1", "bb 2", "cc 3"], width) == line


def test_a_list_of_one_part_is_never_cut():
    assert as_many_as_fit(["aa 1"], 1) == "aa 1"
