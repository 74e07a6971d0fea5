"""Training on a real CUDA GPU. Nothing here runs without one; test_pretended_gpu.py covers most of it on a CPU."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from fork_server import run_command
from torch import Tensor

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.training.async_writer import Background
from genimg.training.step_graphs import StepGraphs, on_stream_of
from genimg.types import Batch, Progress
from genimg.utils.random_streams import RandomStream, StreamPosition

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_name(0).startswith("pretended"), reason="no GPU"),
]

_SHAPES = [
    "data=shapes", "data.num_images=64", "data.image_size=16", "trainer.batch_size=8", "trainer.preview_images=4",
    "evaluation=none", "device=cuda", "precision=fp32", "performance.compile=false", "trainer.log_interval=1 steps",
]  # fmt: skip
FAMILIES = {
    "dcgan_small": [*tiny.SIZES["dcgan_small"], "discriminator_augment=ada", "ema=[exponential,power]", "schedule=cosine"],
    "stylegan2_small": [*tiny.SIZES["stylegan2_small"], "penalty=[r1,path_length]", "penalty.r1.interval=4",
                        "penalty.path_length.interval=4"],
    "vae_small": tiny.AUTOENCODERS["vae_small"],
    "vq_vae_small": tiny.AUTOENCODERS["vq_vae_small"],
    "flow_small": tiny.DIFFUSION,
    "restoration_unet": tiny.TRANSLATORS["restoration_unet"],
    "ect_small": [*tiny.DIFFUSION, "model.network.dropout=0.1", "trainer.accumulation=2"],
}  # fmt: skip


def train(run: Path, *arguments: str, steps: int = 16) -> list[dict[str, float]]:
    """The records of a training, without those that depend on the clock."""
    done = run_command("train", *_SHAPES, *arguments, f"trainer.duration={steps} steps", f"run_dir={run}", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key.startswith("loss/")} for record in records]


@pytest.mark.parametrize("model", FAMILIES)
def test_graphs_have_the_losses_of_plain_steps(model: str, tmp_path: Path) -> None:
    arguments = [f"model={model}", *FAMILIES[model]]
    plain = train(tmp_path / "plain", *arguments, "performance.graph=false")
    graph = train(tmp_path / "graph", *arguments, "performance.graph=true")
    assert "some steps do not run" not in (tmp_path / "graph" / "train.log").read_text()
    assert len(graph) == len(plain) == 16
    assert graph[:4] == [pytest.approx(record, rel=1e-2, abs=1e-3) for record in plain[:4]]
    assert graph == [pytest.approx(record, rel=0.2, abs=0.05) for record in plain]  # atomic additions differ from run to run


def test_graphs_draw_the_random_numbers_of_plain_steps() -> None:
    device = torch.device("cuda")
    streams = [RandomStream(device), RandomStream(device)]
    found = torch.zeros(8, 3, device=device)

    def work(batch: Batch, progress: Progress) -> list[str]:
        rows = [torch.rand(3, device=device)]
        for stream in streams:
            with stream.drawing():
                rows.append(torch.rand(3, device=device))
                position = StreamPosition(device)
                rows.append(torch.rand(3, device=device))
        with streams[1].drawing():
            with position.repeated():
                rows.append(torch.rand(3, device=device))
            rows.append(torch.rand(3, device=device))
        rows.append(torch.rand(3, device=device))
        found.copy_(torch.stack(rows))
        return []

    def numbers(run: Callable[[Batch, Progress], object]) -> list[Tensor]:
        results = []
        for step in range(5):
            torch.cuda.manual_seed(step)
            for number, stream in enumerate(streams):
                stream.restart(10 * step + number)
            run({"image": torch.zeros(1, device=device)}, Progress(step, 1))
            results.append(found.clone())
        return results

    graphs = StepGraphs(work, device, abandon=lambda: None)
    with on_stream_of(graphs, device):
        from_graphs = numbers(lambda batch, progress: graphs.run(batch, progress, ()))
    plain = numbers(work)
    assert torch.equal(torch.stack(from_graphs), torch.stack(plain))
    assert torch.equal(plain[0][4], plain[0][5]), "repeated"
    assert not graphs.reasons


@pytest.mark.parametrize("graph", ["true", "false"])
def test_a_training_continues_where_it_was_interrupted(graph: str, tmp_path: Path) -> None:
    arguments = ["model=vae_small", *FAMILIES["vae_small"], f"performance.graph={graph}"]
    whole = train(tmp_path / "whole", *arguments)
    train(tmp_path / "resumed", *arguments, steps=8)
    resumed = train(tmp_path / "resumed", *arguments)
    assert resumed == [pytest.approx(record, rel=1e-3) for record in whole]


def test_auto_chooses_and_says_what(tmp_path: Path) -> None:
    train(tmp_path / "run", "model=dcgan_small", "performance.graph=auto", steps=4)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["decisions"]["graph"] is False  # so short a training needs no trial


@pytest.mark.parametrize(("storage", "num_workers"), [("host", 0), ("workers", 0), ("workers", 2)])
def test_batches_copied_ahead_are_those_that_stay_on_the_gpu(storage: str, num_workers: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (256, 3, 64, 64), dtype=np.uint8)
    source = ArrayDataset("toy", images, np.arange(256, dtype=np.int64))
    loaders = [
        ImageLoader(source, storage=each, num_workers=num_workers, horizontal_flip=True, max_corrupt=0,
                    device=torch.device("cuda"), keys=("image", "label")) for each in ("device", storage)
    ]  # fmt: skip
    busy, differences = torch.rand(2048, 2048, device="cuda"), []
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(contextlib.closing(each.batches(0, batch_size=64, seed=0))) for each in loaders]
        for _ in range(50):  # no number is read before the end, so the host is ahead of the GPU
            busy = (busy @ busy).softmax(dim=1)
            one, other = (next(stream) for stream in streams)
            differences += [(one[key] - other[key]).abs().sum() for key in one]
    assert torch.stack([each.float() for each in differences]).sum().item() == 0


def test_a_copy_holds_the_numbers_at_its_submission() -> None:
    busy, weights = torch.rand(2048, 2048, device="cuda"), [torch.zeros(2**22, device="cuda") for _ in range(4)]
    seen: list[list[float]] = []
    with contextlib.closing(Background()) as background:
        for number in range(5):
            busy = (busy @ busy).softmax(dim=1)
            for weight in weights:
                weight.fill_(number)
            background.submit_with_copy(lambda copy: seen.append([each.unique().tolist() for each in copy]), weights)
            for weight in weights:
                weight.fill_(-1)
    assert seen == [[[float(number)]] * 4 for number in range(5)]
