"""What the commands write, for the tests that compare the Python API with them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from command_runs import DENOISER, GAN, INPAINTER, PIX2PIX, VAE, Commands
from fork_server import run_command, run_commands
from PIL import Image


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Runs of several models, with samples, translations and an evaluation, all by one thread."""
    home = tmp_path_factory.mktemp("commands")
    (home / "photos").mkdir()
    numbers = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(numbers.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(home / "photos" / f"{i:02d}.png")
    runs = {"gan": GAN, "vae": VAE, "denoiser": DENOISER, "pix2pix": PIX2PIX, "inpainter": INPAINTER}
    words = [["train", *arguments, f"run_dir={home / name}"] for name, arguments in runs.items()]
    words += [
        ["sample", f"ckpt={home / 'gan'}", "num_images=6", "seed=3", "label=1", "device=cpu", f"output={home / 'samples'}"],
        ["sample", f"ckpt={home / 'vae'}", f"reconstruct={home / 'photos'}", "device=cpu", f"output={home / 'rebuilt'}"],
        *(
            ["translate", f"ckpt={home / name}", f"input={home / 'photos'}", f"output={home / f'by_{name}'}", "device=cpu"]
            for name in ("denoiser", "pix2pix")
        ),
        ["eval", f"ckpt={home / 'gan'}", "evaluation=shapes", "num_images=24", "num_real=24", "device=cpu",
         f"output={home / 'result.json'}"],
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENIMG_CACHE": str(home / "cache")}
    codes, output = run_commands(words[:-1], home, environment)
    assert codes == [0] * len(codes), output
    evaluated = run_command(*words[-1], cwd=home, env=environment)
    assert evaluated.returncode == 0, evaluated.stderr
    return Commands(home, evaluated.stdout + evaluated.stderr)
