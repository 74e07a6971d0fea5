"""What a command writes before its slow imports."""

import os
import pty
import subprocess
import sys
import termios

import pytest

_LINE = "genimg-train: starting (loading PyTorch takes a few seconds)"
_UNKNOWN = ["model=dcgan_small", "data=shapes", "no_such_key=1"]  # fails before the imports, so the test is fast


def run(*arguments, columns, command="train"):
    """Run a command whose standard error is a terminal, and return its exit code and both of its streams."""
    theirs, ours = pty.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    call = [sys.executable, "-c", f"from genimg.cli import {command}; {command}()", *arguments]
    with os.fdopen(theirs, "rb", buffering=0) as reader:
        result = subprocess.run(call, stdout=subprocess.PIPE, stderr=ours, check=False, timeout=300)
        os.close(ours)
        written = b""
        try:
            while part := reader.read(65536):
                written += part
        except OSError:  # Linux: the terminal has no writer left
            pass
    return result.returncode, result.stdout.decode(), written.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_line_at_once():
    code, out, err = run(*_UNKNOWN, columns=80)
    assert code == 2
    assert out == ""
    assert err.startswith(f"{_LINE}\ngenimg-train: error: ")


def test_a_terminal_of_no_columns_gets_none():
    assert _LINE not in run(*_UNKNOWN, columns=0)[2]


@pytest.mark.parametrize(
    "flags", [["--help"], ["--version"], ["--cfg", "job"], ["-sc", "query=bash"], ["--info", "searchpath"]]
)
def test_flags_that_only_print_have_no_line(flags):
    _, out, err = run("model=dcgan_small", *flags, columns=80)
    assert _LINE not in out + err


def test_a_pipe_gets_none():
    result = subprocess.run(
        [sys.executable, "-m", "genimg.train", *_UNKNOWN], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.stdout == ""
    assert result.stderr.startswith("genimg-train: error: ")
