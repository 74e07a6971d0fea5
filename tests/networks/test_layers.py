import re

import pytest
import torch
from torch import nn

from genimg.networks.layers import halvings, initialise


@pytest.mark.parametrize(
    ("size", "count", "base"),
    [
        (64, 4, (4, 4)),
        (32, 3, (4, 4)),
        (16, 2, (4, 4)),
        (28, 2, (7, 7)),
        ([48, 32], 3, (6, 4)),
        ([16, 128], 2, (4, 32)),
        (256, 6, (4, 4)),
        (20, 2, (5, 5)),
    ],
)
def test_halvings_worked_out_by_hand(size, count, base):
    assert halvings(size) == (count, base)


ALL_SIZES = [(height, width) for height in range(1, 100) for width in range(1, 100, 3)]


def fits(height: int, width: int) -> bool:
    """Two halvings leave whole sides of 4 or more."""
    return height % 4 == 0 and width % 4 == 0 and min(height, width) >= 16


def test_every_size_that_fits_is_halved_exactly():
    for height, width in filter(lambda size: fits(*size), ALL_SIZES):
        count, base = halvings([height, width])
        assert (base[0] * 2**count, base[1] * 2**count) == (height, width)
        assert count >= 2
        assert min(base) >= 4
        assert min(base) < 8 or base[0] % 2 or base[1] % 2  # it could not be halved once more


def test_every_size_that_does_not_fit_is_refused_with_one_that_does():
    for height, width in filter(lambda size: not fits(*size), ALL_SIZES):
        with pytest.raises(ValueError, match=f"image size {height}x{width} cannot be made") as caught:
            halvings([height, width])
        suggestion = re.search(r"data\.image_size=\[(\d+),(\d+)\]$", str(caught.value))
        assert suggestion
        assert fits(*map(int, suggestion.groups()))


def test_refusal_names_the_rule():
    with pytest.raises(ValueError, match="height and width must be multiples of 4 and at least 16"):
        halvings(30)


def test_initialise_follows_radford_et_al():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 4), nn.BatchNorm2d(20_000), nn.ConvTranspose2d(64, 64, 4, bias=False))
    nn.init.constant_(network[1].bias, 5.0)
    initialise(network)
    for layer, mean in ((network[0], 0.0), (network[1], 1.0), (network[2], 0.0)):
        # Five standard errors of a sample of n: 0.02/sqrt(n) for the mean, 0.02/sqrt(2n) for the deviation.
        n = layer.weight.numel()
        assert layer.weight.mean().item() == pytest.approx(mean, abs=5 * 0.02 / n**0.5)
        assert layer.weight.std().item() == pytest.approx(0.02, abs=5 * 0.02 / (2 * n) ** 0.5)
    assert (network[0].bias == 0).all()
    assert (network[1].bias == 0).all()
