import io
import logging

import pytest

from genimg.utils import run_log
from genimg.utils.run_log import ConsoleFormatter, ListMessage, RunLogHandler

_EVALUATION = ListMessage("2048 images: ", [f"metric{i}_mnist_v2 {i}.25" for i in range(9)], " (best)")


def console_line(monkeypatch, columns):
    monkeypatch.setattr(run_log, "columns_of", lambda stream: columns)
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "%s", (_EVALUATION,), None)
    return ConsoleFormatter("%(message)s").format(record)


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_a_terminal_gets_one_line_that_is_cut_between_metrics(monkeypatch, columns):
    line = console_line(monkeypatch, columns)
    assert len(line) <= columns
    shown, more = line.removeprefix("2048 images: ").removesuffix(" (best)").rsplit(", ", 1)
    parts = shown.split(", ")
    assert parts == _EVALUATION.parts[: len(parts)]
    assert more == f"{9 - len(parts)} more"


@pytest.mark.parametrize("columns", [0, 500])
def test_a_pipe_and_a_wide_terminal_get_the_whole_line(monkeypatch, columns):
    assert console_line(monkeypatch, columns) == str(_EVALUATION)


def test_the_log_file_holds_all_metrics(monkeypatch, tmp_path):
    monkeypatch.setattr(run_log, "columns_of", lambda stream: 60)
    handlers = [console := logging.StreamHandler(io.StringIO()), file := RunLogHandler(str(tmp_path / "train.log"))]
    console.setFormatter(ConsoleFormatter("%(message)s"))
    logger = logging.Logger("a")
    for handler in handlers:
        logger.addHandler(handler)
    file.begin()
    logger.info("%s", _EVALUATION)
    file.close()
    assert (tmp_path / "train.log").read_text() == f"{_EVALUATION}\n"
    assert len(console.stream.getvalue()) <= 61
    assert " more (best)" in console.stream.getvalue()


def test_other_messages_are_never_cut(monkeypatch):
    monkeypatch.setattr(run_log, "columns_of", lambda stream: 10)
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "%s and %d", ("a long message", 3), None)
    assert ConsoleFormatter("%(message)s").format(record) == "a long message and 3"
