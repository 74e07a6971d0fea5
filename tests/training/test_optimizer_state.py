"""The state of optimizers in a checkpoint: by the number of each parameter, whatever groups the optimizer has."""

import copy

import pytest
import torch
from torch import nn

from genimg.training.optimizers import plain_state, restore_state


class CountsItself(torch.optim.SGD):
    """An optimizer with state that belongs to no parameter, as MADGRAD has."""

    def step(self, closure=None):
        self.state["k"] = {"steps": self.state.get("k", {"steps": 0})["steps"] + 1}
        return super().step(closure)


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(1))]


def trained(optimizer, weights, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((weight**4).sum() for weight in weights).backward()
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


@pytest.mark.parametrize("make", [torch.optim.Adam, CountsItself])
def test_a_state_continues_in_an_optimizer_with_other_groups(make):
    settings = {"lr": 0.1} if make is torch.optim.Adam else {"lr": 0.1, "momentum": 0.9}
    one = parameters()
    first = make(one, **settings)
    trained(first, one, 3)
    state = copy.deepcopy(plain_state(first, one)["state"])
    expected = trained(first, one, 2)

    other = parameters()
    trained(make(other, **settings), other, 3)
    grouped = make([{"params": [other[2], other[0]]}, {"params": [other[1]]}], **settings)
    restore_state(grouped, other, state, None)
    assert plain_state(grouped, other)["state"].keys() == state.keys()
    for weight, wanted in zip(trained(grouped, other, 2), expected, strict=True):
        assert torch.equal(weight, wanted)
    if make is CountsItself:
        assert grouped.state["k"] == {"steps": 5}


def test_the_record_has_one_group_with_numbers_on_the_host():
    weights = parameters()
    optimizer = torch.optim.Adam([{"params": weights[1:]}, {"params": weights[:1]}], lr=torch.tensor(0.25), capturable=False)
    (group,) = plain_state(optimizer, weights)["param_groups"]
    assert group["params"] == [0, 1, 2]
    assert group["lr"] == 0.25
    assert type(group["lr"]) is float
