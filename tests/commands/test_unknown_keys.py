"""A key that a command does not read is refused, with the nearest one, by every command that shares read_options."""

from __future__ import annotations

from pathlib import Path

import pytest
from fork_server import run_command

COMMANDS = {
    "sample": (["ckpt=RUN"], "num_image", "num_images"),
    "play": (["ckpt=RUN"], "prot", "port"),
    "translate": (["ckpt=RUN", "input=IN", "output=OUT"], "overlapp", "overlap"),
    "export": (["ckpt=RUN"], "truncatoin", "truncation"),
    "features": (["data=folder", "data.root=DIR", "data.image_size=16", "name=mine"], "epoch", "epochs"),
    "prepare": (["data=folder", "data.root=DIR", "data.image_size=16", "output=OUT"], "shard_sise", "shard_size"),
    "augment": (["input=IN", "output=OUT"], "rotatoin", "rotation"),
    "report": (["RUN"], "outptu", "output"),
}  # required arguments, a misspelt key, and the key that it is near


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_key_ends_in_one_line_with_the_nearest(command: str, tmp_path: Path) -> None:
    required, misspelt, nearest = COMMANDS[command]
    for key, hint in (("nonsense", ""), (misspelt, f" (did you mean '{nearest}'?): ")):
        result = run_command(command, *required, f"+{key}=1", cwd=tmp_path)
        assert result.returncode == 2, result.stdout + result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"genimg-{command}: error: unknown key {key}{hint}")
        assert line.endswith(": nothing reads it; --cfg job shows all keys")
    assert not list(tmp_path.iterdir())
