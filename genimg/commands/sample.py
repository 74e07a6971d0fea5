"""genimg-sample: images from a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from genimg import build
from genimg.commands.common import Config, load_method, open_checkpoint, require_all_values
from genimg.images import grid, to_uint8, write_png
from genimg.training.device import choose_device

log = logging.getLogger(__name__)


def sample(composed: DictConfig) -> None:
    """Write generated images as PNG files and one grid."""
    require_all_values(composed)
    options: Config = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    num_images, batch_size = options["num_images"], options["batch_size"]
    for key in ("num_images", "batch_size"):
        if not isinstance(options[key], int) or options[key] < 1:
            raise ValueError(f"{key}={options[key]} must be 1 or more")
    path, state = open_checkpoint(options["ckpt"], options["which"])
    config = state["config"]
    device = choose_device(options["device"])
    allowed = (*build.ALLOWED, *options["allow"])
    builder = build.Builder(allowed, epoch_size=state["num_images"], batch_size=config["trainer"]["batch_size"])
    method = load_method(config, builder, state, device)
    for key in ("label", "text"):
        if options[key] is not None and key not in method.batch_keys:
            raise ValueError(f"{key}={options[key]}: this model was trained without {key}s and cannot be asked for one")
    default = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = Path(options["output"]) if options["output"] else default / f"samples-seed{options['seed']}"
    folder.mkdir(parents=True, exist_ok=True)
    shown: list[torch.Tensor] = []
    for start in tqdm(range(0, num_images, batch_size), desc="sampling", unit="batch", disable=None):
        indices = range(start, min(start + batch_size, num_images))
        drawn = {key: value.to(device) for key, value in method.draw(indices, options["seed"]).items()}
        images = method.sample(drawn).float().cpu()
        for index, image in zip(indices, to_uint8(images), strict=True):
            write_png(image, folder / f"{index:06d}.png")
        if start < 256:
            shown.append(images)
    picture = folder.with_name(folder.name + ".png")
    write_png(grid(torch.cat(shown)[:256]), picture)
    log.info("from %s, trained on %d images", path, state["training"]["images"])
    log.info("%d images: %s", num_images, folder)
    log.info("grid: %s", picture)
