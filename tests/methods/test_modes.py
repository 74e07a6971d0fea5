"""Networks in another mode for a while."""

from __future__ import annotations

import math

import pytest
import torch
from errors import raises
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from genimg.methods.modes import eval_mode, train_mode


def images() -> torch.Tensor:
    return torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(1))


def network(*, dropout: float = 0.5) -> nn.Sequential:
    """With batch norm, whose averages are not those of any batch, dropout, and spectral norm."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(dropout), spectral_norm(nn.Conv2d(2, 3, 3, padding=1)))
    layers[0].running_mean.fill_(0.7)
    layers[0].running_var.fill_(3.0)
    return layers


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def unlike(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The buffers with other bits than before."""
    after = buffers(module)
    assert after.keys() == before.keys()
    return {name.rsplit(".", 1)[1] for name in before if not torch.equal(before[name], after[name])}


CHANGING = {"running_mean", "running_var", "num_batches_tracked", "_u", "_v"}


@pytest.mark.parametrize("training", [False, True])
def test_in_train_mode_buffers_change_within_the_block_alone(training):
    module = network().train(training)
    before = buffers(module)
    with train_mode(module) as same, torch.no_grad():
        assert same is module
        assert all(layer.training for layer in module.modules())
        module(images())
        assert unlike(module, before) == CHANGING
    assert unlike(module, before) == set()
    assert all(layer.training == training for layer in module.modules())


def test_train_mode_has_the_statistics_of_the_batch_and_eval_mode_the_averages():
    module = network(dropout=0.0)[:1].eval()
    batch = images()
    x = batch.double()
    mean, variance = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    with train_mode(module):
        found = module(batch)
    assert torch.allclose(found.double(), (x - mean) / (variance + 1e-5).sqrt(), rtol=0, atol=1e-5)
    with eval_mode(module):
        found = module(batch)
    assert torch.allclose(found.double(), (x - 0.7) / math.sqrt(3.0 + 1e-5), rtol=0, atol=1e-5)


def test_dropout_is_on_in_train_mode_and_off_in_eval_mode():
    module = nn.Dropout(0.5)
    ones = torch.ones(10_000)
    with train_mode(module):
        first, second = module(ones), module(ones)
    assert set(first.tolist()) == {0.0, 2.0}
    assert first.mean().item() == pytest.approx(1.0, abs=0.04)  # 4 standard errors
    assert not torch.equal(first, second)
    with eval_mode(module):
        assert torch.equal(module(ones), ones)


@pytest.mark.parametrize("training", [False, True])
def test_in_eval_mode_no_buffer_changes_even_within(training):
    module = network().train(training)
    before = buffers(module)
    with eval_mode(module), torch.no_grad():
        assert not any(layer.training for layer in module.modules())
        first = module(images())
        assert torch.equal(module(images()), first)
    assert unlike(module, before) == set()
    assert all(layer.training == training for layer in module.modules())
    assert torch.equal(first, network().eval()(images()))


@pytest.mark.parametrize("mode", [train_mode, eval_mode])
@pytest.mark.parametrize("training", [False, True])
def test_mode_and_buffers_come_back_when_the_block_raises(mode, training):
    module = network().train(training)
    before = buffers(module)

    def fail() -> None:
        with mode(module), torch.no_grad():
            module(images())
            raise KeyError("within")

    with raises(KeyError, word="within"):
        fail()
    assert unlike(module, before) == set()
    assert all(layer.training == training for layer in module.modules())
