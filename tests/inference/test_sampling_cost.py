"""The sampler behind genimg-sample and ``Model.sample``: what it computes once, and what it logs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from genimg.inference.conditions import Condition
from genimg.inference.sample import Sampler
from genimg.inference.sample_files import PngFolder
from genimg.inference.sample_grid import write_samples
from genimg.methods.options import SamplingOptions, setting
from genimg.types import Batch


@dataclass(frozen=True)
class Steps(SamplingOptions):
    steps: int = setting("Number of steps", 3)

    @property
    def num_evaluations(self) -> int:
        return 2 * self.steps


@dataclass(frozen=True)
class Once(SamplingOptions):
    @property
    def num_evaluations(self) -> int:
        return 1


class Adder:
    """A model that draws the index, and whose samples are the latents."""

    batch_keys = ("image", "label")
    sampling_options = Steps()
    num_located = 0

    def before_sampling(self) -> None: ...
    def check_options(self, options: Steps) -> None: ...
    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        return {"latent": torch.tensor([[float(index)] for index in indices]) / 10}

    def sample(self, batch: Batch, options: Steps | None = None) -> torch.Tensor:
        return batch["latent"][:, :, None, None].expand(-1, 1, 2, 2)

    def locate(self, image: torch.Tensor, drawn: Batch) -> Batch:
        self.num_located += 1
        return {"latent": image.mean(dim=(2, 3))}

    def perturb(self, located: Batch, drawn: Batch, spread: float) -> Batch:
        return {"latent": located["latent"] + spread * drawn["latent"]}


def test_an_image_is_located_once_for_all_batches() -> None:
    sampler = Sampler(Adder(), torch.device("cpu"), 0, 2, None, torch.full((1, 1, 2, 2), 0.25), 2.0)
    made = torch.cat([images for _, _, images in sampler.make_all(5, sampler.draw, "sampling")])
    torch.testing.assert_close(made[:, 0, 0, 0], 0.25 + 2.0 * torch.arange(5) / 10)
    assert sampler.method.num_located == 1


def test_the_search_for_the_noise_of_an_image_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="genimg")
    for near in (None, torch.zeros(1, 1, 2, 2)):
        sampler = Sampler(Adder(), torch.device("cpu"), 0, 2, Once(), near)
        list(sampler.make_all(2, sampler.draw, "sampling"))
        sampler.log_cost()
    without, counted = (record.getMessage() for record in caplog.records)
    assert without.startswith("1 network evaluation and")
    assert ("near=" in without, "near=" in counted) == (False, True)


@pytest.mark.parametrize("num_conditions", [1, 3])
def test_the_cost_of_an_image_is_logged_once(num_conditions: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="genimg")
    sampler = Sampler(Adder(), torch.device("cpu"), 0, 2, Steps(5))
    conditions = [Condition(f"c{number}", {"label": torch.tensor([number])}) for number in range(num_conditions)]
    write_samples(sampler, conditions, PngFolder(tmp_path / "out", None, {"made_by": "test"}), 4, "test")
    assert sampler.cost.num_images == 4 * num_conditions
    assert [record.getMessage()[:22] for record in caplog.records].count("10 network evaluations") == 1
