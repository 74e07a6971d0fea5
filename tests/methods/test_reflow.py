import numpy as np
import pytest
import torch
from errors import raises
from test_diffusion import DDPM, LINE, PLAIN, Denoiser, build
from torch import nn

from genimg.diffusion.paths import StraightLine
from genimg.diffusion.times import Uniform
from genimg.errors import ConfigError, DataError
from genimg.methods.diffusion_options import DiffusionOptions
from genimg.methods.reflow import Reflow
from genimg.networks.conditioning import OneHot, Unconditional
from genimg.types import Batch

GAIN, SHIFT = 0.4, 0.1
"""The images of the pairs are ``GAIN * noise + SHIFT``, so their paths never cross."""


class LinearVelocity(nn.Module):
    """The velocity of the flow that maps noise z to GAIN z + SHIFT along straight lines: a function of x_t and t."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = Unconditional()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, noisy, time, condition, keep=None):
        time = (time / 1000.0)[:, None, None, None]
        noise = (noisy - (1 - time) * SHIFT) / (time + (1 - time) * GAIN)
        return noise - (GAIN * noise + SHIFT)


def reflow(num_classes=0, **changes) -> Reflow:
    torch.manual_seed(0)
    settings = {
        "network": Denoiser(OneHot(num_classes=num_classes) if num_classes else Unconditional()), "path": LINE,
        "prediction": "velocity", "times": Uniform(), "loss": PLAIN, "sampler": DiffusionOptions(sampler="euler", steps=1),
        "sigma_data": None, "condition_dropout": 0.0, "image_size": 8, "channels": 3,
    }  # fmt: skip
    return Reflow(**(settings | changes))


def pairs(count=6, num_classes=0) -> Batch:
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    made = {"image": GAIN * noise.float() + SHIFT, "noise": noise, "noise_key": torch.arange(count) * 7919 + 13}
    return made | ({"label": torch.arange(count) % num_classes} if num_classes else {})


def test_the_target_is_the_line_of_the_pair():
    """The velocity that is exact for the pairs has no loss; independent noise would give it one."""
    whole = pairs()
    loss, metrics = reflow(network=LinearVelocity())._loss(whole)
    assert loss.item() == pytest.approx(0.0, abs=1e-8)
    assert metrics["loss/denoising"].item() == loss.item()
    independent, _ = build(network=LinearVelocity())._loss(whole)
    shuffled, _ = reflow(network=LinearVelocity())._loss(whole | {"noise": whole["noise"].flip(0)})
    assert min(independent.item(), shuffled.item()) > 0.1


def test_the_loss_is_that_of_flow_matching_at_the_same_times_with_the_noise_of_the_batch():
    method, whole, seen = reflow(), pairs(), {}
    method.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.update(noisy=inputs[0], time=inputs[1]))
    loss, _ = method._loss(whole)
    noise, time = whole["noise"].float(), (seen["time"] / 1000.0)[:, None, None, None]
    torch.testing.assert_close(seen["noisy"], (1 - time) * whole["image"] + time * noise)
    output = method.denoiser.network(seen["noisy"], seen["time"], torch.empty(6, 0))
    assert loss.item() == pytest.approx((output - (noise - whole["image"])).square().mean().item(), rel=1e-5)
    times = seen["time"].clone()
    build()._loss(whole)
    method._loss(whole | {"noise": torch.zeros_like(whole["noise"])})
    assert torch.equal(seen["time"], times)


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    method, whole = reflow(num_classes=2, condition_dropout=0.5), pairs(num_classes=2)
    each = [method._loss({key: value[i : i + 1] for key, value in whole.items()})[0].item() for i in range(6)]
    assert method._loss(whole)[0].item() == pytest.approx(sum(each) / 6, rel=1e-5)
    assert method.batch_keys == ("image", "label", "noise_key", "noise")


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_step_suffices_on_straight_paths(steps):
    method = reflow(network=LinearVelocity())
    drawn = method.draw(range(4), 0)
    images = method.sample(drawn, DiffusionOptions(sampler="euler", steps=steps))
    expected = (GAIN * method.noise_of(drawn) + SHIFT).clamp(-1.0, 1.0)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_held_out_pairs_are_measured_with_their_own_noise():
    method, whole = reflow(network=LinearVelocity()), pairs()
    keys = np.arange(6, dtype=np.uint64)
    assert method.denoising_loss(whole, 0.5, keys).max().item() == pytest.approx(0.0, abs=1e-8)
    with raises(DataError, word="noise"):
        method.denoising_loss({"image": whole["image"]}, 0.5, keys)


def test_previews_and_checks_work_with_pairs():
    method, whole = reflow(num_classes=2), pairs(num_classes=2)
    made = method.preview(whole, method.draw(range(8), 0))
    assert made["samples"].shape[2:] == (3, 8, 8)
    assert made["denoised"].shape[0] == 6
    method.check({"image": whole["image"]})


def test_a_reflow_has_the_weights_of_a_flow():
    assert reflow().state_dict().keys() == build().state_dict().keys()


@pytest.mark.parametrize(("changes", "key"), [
    ({"path": DDPM}, "path"), ({"prediction": "data"}, "prediction"), ({"prediction": "edm", "sigma_data": 0.5}, "prediction"),
], ids=["path", "data", "edm"])  # fmt: skip
def test_other_paths_and_predictions_are_refused(changes, key):
    with raises(ConfigError, key):
        reflow(**changes)
    assert isinstance(reflow(path=StraightLine(shift=2.0)).path, StraightLine)
