import itertools
from typing import Any

import pytest
import torch
from errors import raises
from scipy import stats

from genimg.networks.conditioning import ConditionEncoder, OneHot, Unconditional
from genimg.networks.pixel_cnn import PixelCNN, inverse_cdf


def prior(**changes: Any) -> PixelCNN:
    torch.manual_seed(0)
    settings = {
        "num_codes": 7, "width": 6, "num_blocks": 3, "kernel_size": 3, "dropout": 0.0, "condition": Unconditional(),
    }  # fmt: skip
    return PixelCNN(**(settings | changes)).eval()


def codes(*shape: int, num_codes: int = 7) -> torch.Tensor:
    return torch.randint(num_codes, shape, generator=torch.Generator().manual_seed(1))


def nothing(count: int) -> torch.Tensor:
    return torch.empty(count, 0)


def uniform(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_logits_depend_on_all_codes_before_their_position_and_on_none_behind(kernel_size):
    """By the gradient with respect to the embedded codes; no blind spot."""
    network = prior(num_blocks=5, kernel_size=kernel_size, width=16).double()
    embedded = network.embedding(codes(1, 4, 5)).detach().requires_grad_()
    network.embedding.forward = lambda _: embedded
    logits = network(codes(1, 4, 5), nothing(1).double())
    positions = list(itertools.product(range(4), range(5)))
    for position in positions:
        (gradient,) = torch.autograd.grad(logits[0, :, *position].square().sum(), embedded, retain_graph=True)
        reached = {other for other in positions if gradient[0, *other].abs().max() > 0}
        assert reached == {other for other in positions if other < position}


def test_a_position_sees_as_many_rows_up_as_the_docstring_says():
    network = prior(num_blocks=2, kernel_size=5)
    grid = codes(1, 9, 1)
    for row in range(9):
        changed = grid.clone()
        changed[0, row] = (changed[0, row] + 1) % 7
        differs = (network(grid, nothing(1)) - network(changed, nothing(1))).abs().amax(dim=1)[0, :, 0] > 0
        assert differs.nonzero().flatten().tolist() == list(range(row + 1, min(row + 2 * 2 + 1, 8) + 1))


@pytest.mark.parametrize("condition", [Unconditional(), OneHot(num_classes=3)])
def test_samples_are_those_of_the_plain_network_at_each_position(condition: ConditionEncoder):
    """One forward of the whole grid for every position."""
    network = prior(condition=condition)
    given = nothing(4) if condition.key is None else torch.tensor([0, 1, 2, 0])
    numbers = uniform(4, 3, 4)
    expected = torch.zeros(4, 3, 4, dtype=torch.int64)
    for row, column in itertools.product(range(3), range(4)):
        logits = network(expected, given)[:, :, row, column]
        cumulative = (logits / 0.7).double().softmax(1).cumsum(1)
        for n in range(4):
            expected[n, row, column] = int((cumulative[n] <= numbers[n, row, column]).sum())
    assert torch.equal(network.sample(numbers, given, temperature=0.7), expected)


def test_samples_have_the_probabilities_of_the_network():
    """All 16 grids of 2x2 codes out of 2, against their products of conditional probabilities."""
    network = prior(num_codes=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)  # far from uniform
    grids = torch.tensor(list(itertools.product(range(2), repeat=4))).view(16, 2, 2)
    log_probabilities = network(grids, nothing(16)).double().log_softmax(1).gather(1, grids[:, None]).sum(dim=(1, 2, 3))
    expected = log_probabilities.exp()
    assert expected.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert expected.max() > 2 * expected.min()
    drawn = network.sample(uniform(20_000, 2, 2), nothing(20_000)).flatten(1)
    counts = torch.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert stats.chisquare(counts, (expected / expected.sum()).detach() * 20_000).pvalue > 0.001


def test_a_grid_does_not_depend_on_the_batch_that_it_is_drawn_in():
    network = prior()
    numbers = uniform(6, 4, 4)
    whole = network.sample(numbers, nothing(6))
    parts = torch.cat([network.sample(each, nothing(len(each))) for each in numbers.split([1, 3, 2])])
    assert torch.equal(parts, whole)
    assert len(whole.flatten(1).unique(dim=0)) == 6


def test_the_condition_changes_logits_at_every_position():
    network = prior(condition=OneHot(num_classes=2))
    grid = codes(1, 3, 3)
    zero, one = (network(grid, torch.tensor([label])) for label in range(2))
    assert ((zero - one).abs().amax(dim=1) > 0).all()


def test_every_weight_learns():
    network = prior(condition=OneHot(num_classes=2)).train()
    network(codes(2, 4, 4), torch.tensor([0, 1])).square().sum().backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    # What the last layer's vertical stack gives to a next one is not needed.
    assert idle == ["blocks.2.vertical_gate.condition.weight"]


def test_dropout_is_for_training_alone():
    network = prior(dropout=0.5)
    grid = codes(2, 3, 3)
    assert torch.equal(network(grid, nothing(2)), network(grid, nothing(2)))
    network.train()
    assert not torch.equal(network(grid, nothing(2)), network(grid, nothing(2)))


def testinverse_cdf_takes_the_code_whose_interval_holds_the_number():
    logits = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0]).log()  # codes of probability 0 at both ends and in between
    numbers = torch.tensor([0.0, 0.1, 0.26, 0.5, 0.74, 0.76, 0.9, 1 - 2**-24])
    found = inverse_cdf(logits.expand(8, -1), numbers)
    assert found.tolist() == [1, 1, 2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "width=0"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"kernel_size": 4}, "kernel_size=4"),
        ({"kernel_size": 1}, "kernel_size=1"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        prior(**changes)
