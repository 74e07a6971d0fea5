import itertools
from typing import Any

import pytest
import torch
from errors import raises

from genimg.networks.code_transformer import CodeTransformer
from genimg.networks.conditioning import OneHot, Unconditional


def prior(**changes: Any) -> CodeTransformer:
    torch.manual_seed(0)
    settings = {
        "num_codes": 7, "width": 8, "num_blocks": 2, "num_heads": 2, "dropout": 0.0, "condition_dropout": 0.1,
        "condition": OneHot(num_classes=3),
    }  # fmt: skip
    network = CodeTransformer(**(settings | changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4.0)  # far from uniform
    return network


CODES = torch.randint(7, (4, 3, 4), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0])
NUMBERS = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(2))


def test_logits_depend_on_all_codes_before_their_position_and_on_none_behind():
    network, embedded = prior(), {}
    network.embedding.register_forward_hook(
        lambda _, __, output: embedded.setdefault("codes", output.detach().requires_grad_())
    )
    logits = network(CODES[:1], LABELS[:1]).flatten(2)
    for position in range(12):
        (gradient,) = torch.autograd.grad(
            logits[0, :, position].square().sum(), embedded["codes"], retain_graph=True, allow_unused=True
        )
        reached = {other for other in range(11) if gradient[0, other].abs().max() > 0}
        assert reached == set(range(position))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_samples_are_those_of_the_plain_network_at_each_position(guidance: float):
    network = prior()
    expected = torch.zeros(4, 3, 4, dtype=torch.int64)
    for row, column in itertools.product(range(3), range(4)):
        with torch.no_grad():
            given, without = (network(expected, LABELS, keep)[:, :, row, column] for keep in (torch.ones(4), torch.zeros(4)))
        cumulative = ((without + guidance * (given - without)) / 0.7).double().softmax(1).cumsum(1)
        expected[:, row, column] = (cumulative <= NUMBERS[:, row, column, None]).sum(1)
    assert torch.equal(network.sample(NUMBERS, LABELS, temperature=0.7, guidance=guidance), expected)


def test_a_grid_does_not_depend_on_its_batch_and_a_dropped_condition_has_no_effect():
    network = prior()
    whole = network.sample(NUMBERS, LABELS, guidance=2.0)
    assert torch.equal(network.sample(NUMBERS[1:2], LABELS[1:2], guidance=2.0), whole[1:2])
    nothing = torch.zeros(4)
    assert torch.equal(network(CODES, LABELS, nothing), network(CODES, LABELS.flip(0), nothing))
    assert not torch.equal(network(CODES, LABELS), network(CODES, LABELS.flip(0)))
    assert network.sample(NUMBERS, LABELS, guidance=0.0).shape == (4, 3, 4)


def test_without_a_condition_nothing_is_dropped():
    network = prior(condition=Unconditional())
    assert network.condition_dropout == 0.0
    assert network.train()(CODES, torch.empty(4, 0)).shape == (4, 7, 3, 4)


def test_errors_name_the_parameter():
    for change in ({"width": 6}, {"num_heads": 3}, {"dropout": 1.0}, {"condition_dropout": -0.1}, {"num_blocks": 0}):
        with raises(ValueError, word=next(iter(change))):
            prior(**change)
