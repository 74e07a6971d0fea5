import io
import os
import pty
import sys

import pytest

from genimg.utils import progress
from genimg.utils.progress import Progress, reporting_to
from genimg.utils.terminal import is_terminal


class Clock:
    """A clock that the work itself advances."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def stderr(monkeypatch, *, terminal):
    """Replace standard error. A fixture could not, because pytest's capture replaces it again before the test."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_pipe_gets_a_line_every_ten_seconds(monkeypatch, clock):
    pipe = stderr(monkeypatch, terminal=False)
    with Progress(total=5000, desc="packing toy", unit="image") as bar:
        for _ in range(5):
            clock.now += 6
            bar.update(1000)
    assert pipe.getvalue().splitlines() == [
        "packing toy: 2,000 of 5,000 images, 00:18 left",
        "packing toy: 4,000 of 5,000 images, 00:06 left",
    ]


def test_iterating_counts_too_and_an_unknown_total_has_no_end(monkeypatch, clock):
    pipe = stderr(monkeypatch, terminal=False)

    def files():
        for number in range(3):
            clock.now += 11
            yield number

    assert list(Progress(files(), desc="listing toy", unit="file")) == [0, 1, 2]
    assert pipe.getvalue().splitlines() == ["listing toy: 1 files", "listing toy: 2 files", "listing toy: 3 files"]


def test_short_work_writes_nothing_into_a_pipe(monkeypatch, clock):
    pipe = stderr(monkeypatch, terminal=False)
    assert list(Progress(range(3), desc="work", unit="step")) == [0, 1, 2]
    assert pipe.getvalue() == ""


def test_a_monkeypatch_gets_a_bar(monkeypatch):
    terminal = stderr(monkeypatch, terminal=True)
    assert list(Progress(range(3), desc="work", unit="step")) == [0, 1, 2]
    assert "work: 100%" in terminal.getvalue()


@pytest.mark.parametrize("total", [None, 0])
def test_no_bar_of_no_items_appears(monkeypatch, total):
    terminal = stderr(monkeypatch, terminal=True)
    with Progress([], desc="work", unit="step") if total is None else Progress(total=0, desc="work", unit="step"):
        pass
    assert list(Progress(range(0), desc="work", unit="step")) == []
    assert terminal.getvalue() == ""


def test_steps_are_shown_only_within_the_block(monkeypatch):
    terminal = stderr(monkeypatch, terminal=True)
    assert list(progress.steps(3, "work")) == [0, 1, 2]
    assert terminal.getvalue() == ""
    with progress.showing_steps():
        assert list(progress.steps(2, "work")) == [0, 1]
    assert "work" in terminal.getvalue()


def test_an_error_in_the_block_hides_them_again(monkeypatch):
    terminal = stderr(monkeypatch, terminal=True)
    with pytest.raises(RuntimeError), progress.showing_steps():
        raise RuntimeError
    list(progress.steps(1, "work"))
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_of_no_columns_counts_as_none(columns):
    import termios

    theirs, ours = pty.openpty()
    with open(theirs, "rb"), open(ours, "w") as stream:
        termios.tcsetwinsize(ours, (24, columns))
        assert os.get_terminal_size(ours).columns == columns
        assert is_terminal(stream) == (columns > 0)


def test_a_pipe_is_no_terminal():
    assert not is_terminal(io.StringIO())


@pytest.mark.parametrize("terminal", [False, True])
def test_a_listener_is_told_instead_of_the_terminal(monkeypatch, clock, terminal):
    stream = stderr(monkeypatch, terminal=terminal)
    heard = []
    with reporting_to(lambda *progress: heard.append(progress)):
        assert list(Progress([5, 6], desc="looking", unit="image")) == [5, 6]
        with Progress(desc="counting", unit="image", hidden=True) as bar:
            bar.update(3)
    assert heard == [("looking", 1, 2), ("looking", 2, 2), ("counting", 3, None)]
    assert stream.getvalue() == ""


def test_an_error_of_the_listener_ends_the_work(monkeypatch, clock):
    def stop(what, done, total):
        raise KeyError(done)

    with pytest.raises(KeyError), reporting_to(stop):
        list(Progress(range(5), desc="looking", unit="image"))
    assert list(Progress(range(2), desc="later", unit="image")) == [0, 1]
