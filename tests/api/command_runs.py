"""Small runs by the commands, to compare the Python API with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SMALL = [
    "data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=16", "trainer.duration=2 steps",
    "trainer.preview_images=4", "evaluation=none", "device=cpu",
]  # fmt: skip
GAN = [*SMALL, "model=dcgan_small", "model.generator.width=8", "conditioning=projection"]
VAE = [*SMALL, "model=vae_small", "model.encoder.width=4"]
_TRANSLATOR = ["model.translator.width=4", "task=denoise"]
DENOISER = [*SMALL, "model=restoration", *_TRANSLATOR, "model.translator.num_blocks=1"]
PIX2PIX = [*SMALL, "model=pix2pix", *_TRANSLATOR, "model.discriminator.width=4", "model.discriminator.num_strided=1"]
INPAINTER = [*SMALL, "model=restoration", "model.translator.width=4", "task=inpaint_boxes", "model.translator.num_blocks=1"]


@dataclass(frozen=True)
class Commands:
    """What they wrote below ``home``, and what genimg-eval printed."""

    home: Path
    printed: str
