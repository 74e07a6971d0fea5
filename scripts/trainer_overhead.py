#!/usr/bin/env python3
"""What genimg's trainer costs over a bare hand-written loop: the same DCGAN, batch, precision and memory format.

    python scripts/trainer_overhead.py                      64 px, batch 64, full width
    python scripts/trainer_overhead.py --image-size 32 --width 32 --blocks 30

The bare loop is written as the public reference implementations write it: one generator forward a step, whose fakes serve
both updates, and the losses read every 50 steps. Blocks of steps of the two alternate within one process, so that whatever
else the machine does hits both; the trainer's time is all of it from one batch to the next, with moving average, gradient
norms, finite checks, logging and learning-rate schedule.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from genimg import build
from genimg.data.placement import Data
from genimg.interfaces import Batch
from genimg.networks.dcgan import Discriminator, Generator
from genimg.paths import config_dir
from genimg.training.checkpoint import CheckpointFolder
from genimg.training.device import choose_device, choose_precision, describe_hardware
from genimg.training.logger import Logger
from genimg.training.trainer import Trainer


class Alternating(Data):
    """Training data that lets the bare loop run between blocks of the trainer's steps, and times both."""

    block: int
    bare_block: Callable[[], float]
    blocks: list[tuple[float, float]]

    def batches(self, position: int, **options: int) -> Iterator[Batch]:
        stream = super().batches(position, **options)
        while True:
            start = time.perf_counter()
            for _ in range(self.block):
                yield next(stream)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            trainer = time.perf_counter() - start
            self.blocks.append((trainer, self.bare_block()))


def make_bare_loop(
    data: torch.Tensor, device: torch.device, precision: str, width: int, batch_size: int, steps: int
) -> Callable[[], float]:
    _, channels, image_size, _ = data.shape
    sizes = {"image_size": image_size, "channels": channels, "width": width}
    generator = Generator(latent_dim=100, **sizes).to(device, memory_format=torch.channels_last)
    discriminator = Discriminator(**sizes).to(device, memory_format=torch.channels_last)
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    ones, zeros = torch.ones(batch_size, device=device), torch.zeros(batch_size, device=device)
    counter = 0

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        nonlocal counter
        indices = torch.randint(len(data), (batch_size,), device=device)
        real = data[indices].to(torch.float32, memory_format=torch.channels_last).div(127.5).sub(1)
        with autocast():
            fake = generator(torch.randn(batch_size, 100, device=device))
            loss_d = F.binary_cross_entropy_with_logits(discriminator(real).float(), ones)
            loss_d = loss_d + F.binary_cross_entropy_with_logits(discriminator(fake.detach()).float(), zeros)
        discriminator.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        with autocast():
            loss_g = F.binary_cross_entropy_with_logits(discriminator(fake).float(), ones)
        generator.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        counter += 1
        if counter % 50 == 0:
            loss_d.item(), loss_g.item()

    def block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--block", type=int, default=5, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=20, help="blocks that are timed, after two that are not")
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    precision.apply_globally()
    overrides = [
        "model=dcgan", f"model.generator.width={arguments.width}", f"data.image_size={arguments.image_size}",
        "data.num_images=512", f"trainer.batch_size={arguments.batch_size}", "trainer.checkpoint_interval=1M steps",
        f"trainer.duration={arguments.block * (arguments.blocks + 2)} steps", "trainer.preview_interval=1M steps",
    ]  # fmt: skip
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("train", overrides=[*overrides, "run_dir=unused", "evaluation=none"])
    config = OmegaConf.to_container(composed, resolve=True)
    builder = build.Builder(epoch_size=512, batch_size=arguments.batch_size)
    source = build.build_source(config, builder)
    method = build.build_method(config, source, builder).to(device, memory_format=torch.channels_last)
    data = Alternating(
        source, placement="device", num_workers="auto", horizontal_flip=False, max_corrupt=0, device=device
    )  # fmt: skip
    data.load()
    data.block, data.blocks = arguments.block, []
    images = data.images(torch.arange(len(source)).numpy())
    data.bare_block = make_bare_loop(
        images, device, precision.name, arguments.width, arguments.batch_size, arguments.block
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            builder.trainer_settings(config["trainer"]),
            method,
            build.build_optimizers(config, method, builder),
            build.build_schedule(config, builder),
            data,
            None,
            precision=precision,
            seed=0,
            folder=CheckpointFolder(Path(folder), keep_last=1),
            make_logger=lambda step, _: Logger(Path(folder), step=step),
            describe={},
        )
        trainer.fit()
    blocks = data.blocks[2:]
    ratios = [trainer_time / bare_time for trainer_time, bare_time in blocks]
    total = sum(t for t, _ in blocks) / sum(b for _, b in blocks)
    print(f"{describe_hardware(device)}, torch {torch.__version__}, precision {precision.name}")
    setting = f"{arguments.image_size} px, width {arguments.width}, batch {arguments.batch_size}"
    print(f"{setting}, {len(blocks)} blocks of {arguments.block} steps")
    print(f"bare loop  {statistics.median(b for _, b in blocks) / arguments.block * 1e3:8.1f} ms a step (median)")
    print(f"trainer    {statistics.median(t for t, _ in blocks) / arguments.block * 1e3:8.1f} ms a step (median)")
    print(f"ratio      {total:8.4f} of the totals, {statistics.median(ratios):.4f} median of blocks")


if __name__ == "__main__":
    main()
