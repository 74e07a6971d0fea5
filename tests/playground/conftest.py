"""Runs of tiny models, and a server for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny
from fork_server import run_command
from pages import Page
from PIL import Image

from genimg.api.play import open_playground
from genimg.playground.server import PlaygroundServer

_OF_FILES = ["data.image_size=16", "trainer.batch_size=2", "trainer.preview_images=2", "evaluation=none", "device=cpu"]
_RUNS = {
    "gan": [*tiny.SHORT_RUN, "conditioning=projection"],
    "flow": [*tiny.SHORT_RUN, "model=flow_small", "conditioning=label", *tiny.DIFFUSION],
    "vae": [*tiny.SHORT_RUN, "model=vae_small", *tiny.AUTOENCODERS["vae_small"]],
    "denoiser": [*tiny.SHORT_RUN, "model=restoration", *tiny.TRANSLATORS["restoration"]],
    "inpaint": [*tiny.SHORT_RUN, "model=restoration_gated", *tiny.TRANSLATORS["restoration_gated"]],
    "text": [*tiny.SHORT_RUN, "conditioning=text_conditional_batchnorm", "data.num_objects=2"],
    "random": [*tiny.SHORT_RUN, "model=bridge_small", *tiny.RANDOM_TRANSLATORS["bridge_small"]],
    "paired": [
        *_OF_FILES, "data=paired", "data.root=pairs", "model=pix2pix",
        *(each for each in tiny.TRANSLATORS["pix2pix"] if each not in ("task=denoise", "evaluation=translation")),
    ],
    "cyclegan": [
        *_OF_FILES, "model=cyclegan", *(each for each in tiny.TRANSLATORS["cyclegan"] if not each.startswith("evaluation")),
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the run directory of a model of ``_RUNS``, trained for two steps when it is first needed."""
    root = tmp_path_factory.mktemp("played")
    tiny.unpaired_folders(root / "unpaired")
    (root / "pairs").mkdir()
    for i in range(2):
        Image.effect_noise((32, 16), 80).convert("RGB").save(root / f"pairs/{i}.png")

    def run(name: str) -> Path:
        if not (root / name).is_dir():
            arguments = [each for each in _RUNS[name] if not (name != "gan" and each.startswith("model.generator"))]
            done = run_command("train", *arguments, "trainer.duration=2 steps", f"run_dir={name}", cwd=root)
            assert done.returncode == 0, done.stdout + done.stderr
        return root / name

    return run


@pytest.fixture
def page_of(run_of: Callable[[str], Path], one_thread: None) -> Iterator[Callable[[str], Page]]:
    """A function that serves a model and returns a client of its server."""
    servers: list[PlaygroundServer] = []
    closing = ExitStack()

    def page(name: str) -> Page:
        playground = closing.enter_context(open_playground(run_of(name), device="cpu", start={"num_images": 3}))
        server = closing.enter_context(PlaygroundServer(playground))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return Page(server.server_port)

    yield page
    for server in servers:
        server.shutdown()
    closing.close()
