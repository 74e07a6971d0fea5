import numpy as np
import pytest
import torch
from torch import nn

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.diffusion.paths import StraightLine, VarianceExploding
from genimg.diffusion.times import LogNormalSigma, Uniform
from genimg.evaluation.denoising import DenoisingEvaluator
from genimg.evaluation.image_sets import DatasetImages
from genimg.evaluation.result import Evaluation
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.diffusion import Diffusion
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.networks.conditioning import Unconditional

CPU = torch.device("cpu")


class Silent(nn.Module):
    """Predicts 0, so its loss is the mean square of the target."""

    def __init__(self):
        super().__init__()
        self.condition = Unconditional()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, noisy, time, condition, keep=None):
        return torch.zeros_like(noisy)


def method(**changes):
    settings = {
        "network": Silent(), "path": StraightLine(shift=1.0), "prediction": "velocity", "times": Uniform(),
        "loss": DenoisingLoss(weighting="plain", gamma=None, reduction="mean"),
        "sampler": DiffusionOptions(sampler="euler", steps=2), "sigma_data": None, "condition_dropout": 0.0, "augment": None,
        "uncertainty": None, "image_size": 8, "channels": 1,
    }  # fmt: skip
    return Diffusion(**(settings | changes))


def images(count=40):
    array = np.full((count, 1, 8, 8), 255, dtype=np.uint8)
    loader = ImageLoader(
        ArrayDataset("white", array), storage="host", num_workers=0, horizontal_flip=False, max_corrupt=0, device=CPU
    )
    loader.load()
    return DatasetImages(loader)


def measured(model, *, count=40, batch_size=16, seed=0):
    evaluator = DenoisingEvaluator(num_images=count, batch_size=batch_size, seed=seed)
    return evaluator.added_to(Evaluation({"fd": 1.0}, {}), model, images(), "held_out", lambda: False)


def test_the_loss_is_that_of_the_target_at_every_level():
    """The target is noise minus white, whose mean square is 2."""
    result = measured(method())
    assert result.values["fd"] == 1.0
    assert set(result.values) == {"fd", "denoising_held_out_40", *(f"denoising_held_out_level{i}_40" for i in range(1, 9))}
    for name, value in result.values.items():
        if name != "fd":
            assert value == pytest.approx(2.0, abs=0.1), name
    mean = np.mean([result.values[f"denoising_held_out_level{i}_40"] for i in range(1, 9)])
    assert result.values["denoising_held_out_40"] == pytest.approx(mean)
    assert result.provenance["denoising"]["num_images"] == 40


def test_the_loss_depends_on_neither_the_batch_size_nor_the_random_state():
    first = measured(method()).values
    torch.manual_seed(7)
    second = measured(method(), batch_size=7).values
    assert first == pytest.approx(second, rel=1e-5)
    assert measured(method(), seed=1).values["denoising_held_out_40"] != first["denoising_held_out_40"]


def test_levels_are_quantiles_of_the_times_in_training():
    seen = []
    model = method(
        path=VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0), prediction="edm", sigma_data=0.5,
        times=LogNormalSigma(mean=-1.2, std=1.2),
    )  # fmt: skip
    model.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1][0].item()))
    measured(model, batch_size=40)
    quantiles = torch.distributions.Normal(-1.2, 1.2).icdf((torch.arange(8) + 0.5) / 8)
    assert seen == pytest.approx((quantiles / 4).tolist(), abs=1e-5)
