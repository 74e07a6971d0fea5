"""Pictures of what an autoencoder's latents do."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from genimg.methods.latent_pictures import LatentScatter, activity_bars, normal_quantiles

BLUE, ORANGE = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)


def levels(picture: torch.Tensor) -> torch.Tensor:
    return ((picture + 1) * 127.5).round().long()


@pytest.mark.parametrize("count", [1, 2, 15])
def test_quantiles_are_in_the_middle_of_equal_shares(count):
    found = normal_quantiles(count)
    assert found.shape == (count,)
    assert found.dtype == torch.float32
    assert stats.norm.cdf(found.double().numpy()) * count == pytest.approx([i + 0.5 for i in range(count)], abs=1e-5)


# Bars


def heights(picture: torch.Tensor) -> list[int]:
    """White pixels of every bar."""
    columns = (picture[0, 0] == 1).sum(dim=0).view(-1, 8)
    assert torch.equal(columns[:, :7], columns[:, :1].expand(-1, 7))
    assert (columns[:, 7] == 0).all()  # a gap
    return columns[:, 0].tolist()


def test_bars_stand_for_variances_from_a_ten_thousandth_to_ten_the_largest_first():
    variance = torch.tensor([0.1, 10.0, 1e-4, 1.0, 1e-3, 0.01])
    picture = activity_bars(variance, 0.01)
    assert picture.shape == (1, 1, 96, 48)
    assert set(picture.unique().tolist()) == {-1.0, 0.0, 1.0}
    # A decade is a fifth of 96 pixels; the least is a pixel, so that every latent is there.
    assert heights(picture) == [96, 77, 58, 38, 19, 1]
    assert all((bar[-height:] == 1).all() for bar, height in zip(picture[0, 0, :, ::8].T, heights(picture), strict=True))


@pytest.mark.parametrize(("variance", "height"), [(0.0, 1), (1e-30, 1), (1e9, 96)])
def test_bars_of_extreme_variances_are_the_least_and_the_greatest(variance, height):
    assert heights(activity_bars(torch.tensor([variance]), 0.01)) == [height]


def test_the_line_of_activity_is_behind_the_bars():
    picture = activity_bars(torch.tensor([1.0, 1e-4]), 0.01)[0, 0]
    line = 96 - 38  # two fifths of the way up
    assert (picture[line, 8:] == 0).all()
    assert (picture[line, :7] == 1).all()
    assert (picture == 0).sum().item() == 9  # of sixteen columns, seven of which are a bar


# Scatters


def coloured(picture: torch.Tensor) -> dict[tuple[int, int], tuple[int, ...]]:
    """Pixels that are not white, by row and column."""
    values = levels(picture[0])
    places = (values != 255).any(dim=0).nonzero().tolist()
    return {(row, column): tuple(values[:, row, column].tolist()) for row, column in places}


def test_a_point_is_two_by_two_pixels_of_its_labels_colour_from_minus_four_to_four_upwards():
    scatter = LatentScatter()
    scatter.add(torch.tensor([[-4.0, -4.0], [4.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 1, 10]))
    picture = scatter.picture()
    assert picture.shape == (1, 3, 384, 384)
    assert picture.abs().max() <= 1
    found = coloured(picture)
    expected = {}
    for (row, column), colour in (((382, 0), BLUE), ((0, 382), ORANGE), ((96, 191), BLUE)):  # label 10 has the colour of 0
        expected |= {(row + down, column + right): colour for down in (0, 1) for right in (0, 1)}
    assert found == expected


def test_points_beyond_the_edges_are_on_them():
    scatter = LatentScatter()
    scatter.add(torch.tensor([[100.0, -100.0]]), torch.tensor([1]))
    assert set(coloured(scatter.picture())) == {(382, 382), (382, 383), (383, 382), (383, 383)}


def test_a_scatter_begins_white_and_holds_the_newest_points():
    scatter = LatentScatter()
    assert (scatter.picture() == 1).all()
    capacity = len(scatter.means)
    scatter.add(torch.zeros(capacity - 1, 2), None)
    assert set(coloured(scatter.picture()).values()) == {BLUE}  # without labels: all of one class
    scatter.add(torch.full((2, 2), 3.0), torch.tensor([1, 1]))
    assert (scatter.means == 3).all(dim=1).nonzero().flatten().tolist() == [0, capacity - 1]
    scatter.add(torch.full((capacity, 2), -2.0), torch.ones(capacity, dtype=torch.int64))
    assert len(coloured(scatter.picture())) == 4


def test_a_scatter_takes_half_precision_and_is_in_no_checkpoint():
    scatter = LatentScatter()
    scatter.add(torch.ones(2, 2, dtype=torch.bfloat16), None)
    assert len(coloured(scatter.picture())) == 4
    assert not scatter.state_dict()


def test_points_that_are_no_numbers_are_left_out():
    scatter = LatentScatter()
    scatter.add(torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0]]), None)
    assert len(coloured(scatter.picture())) == 4  # of the infinite one, at the edge
