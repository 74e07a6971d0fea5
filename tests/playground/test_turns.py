"""One request at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from genimg.playground.turns import ReplacedError, Turns
from genimg.utils.progress import Progress


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.close()


class Waiting:
    """Work that runs until it is released."""

    def __init__(self, turns: Turns, page: str) -> None:
        self.begun, self.may_end, self.outcome = threading.Event(), threading.Event(), ""
        self._thread = threading.Thread(target=self._run, args=(turns, page))
        self._thread.start()

    def _run(self, turns: Turns, page: str) -> None:
        try:
            self.outcome = turns.run(page, self._work)
        except ReplacedError:
            self.outcome = "replaced"

    def _work(self) -> str:
        for _ in Progress(range(2), desc="waiting", unit="step"):
            self.begun.set()
            self.may_end.wait(10)
        return "finished"

    def end(self) -> str:
        self.may_end.set()
        self._thread.join(10)
        return self.outcome


def test_work_runs_one_after_the_other(turns: Turns) -> None:
    first = Waiting(turns, "a")
    assert first.begun.wait(10)
    second = Waiting(turns, "b")
    assert not second.begun.wait(0.05)
    assert turns.state("b")["own"] is False
    assert (first.end(), second.end()) == ("finished", "finished")
    assert turns.state("a") == {"busy": False}


def test_newer_work_of_a_page_replaces_what_runs_and_what_waits(turns: Turns) -> None:
    running = Waiting(turns, "a")
    assert running.begun.wait(10)
    waiting = Waiting(turns, "a")
    while waiting._thread.is_alive() and turns._newest["a"] < 1:
        pass
    newest = Waiting(turns, "a")
    while turns._newest["a"] < 2:
        pass
    assert running.end() == "replaced"
    assert waiting.end() == "replaced"
    assert not waiting.begun.is_set()
    assert newest.end() == "finished"


def test_an_error_of_the_work_is_raised_and_work_goes_on(turns: Turns) -> None:
    with pytest.raises(ZeroDivisionError):
        turns.run("a", lambda: 1 // 0)
    assert turns.run("a", lambda: 3) == 3


def test_closing_stops_the_work() -> None:
    turns = Turns()
    running = Waiting(turns, "a")
    assert running.begun.wait(10)
    threading.Timer(0.05, running.may_end.set).start()
    turns.close()
    assert running.end() == "replaced"
    with pytest.raises(ReplacedError):
        turns.run("a", lambda: 1)
