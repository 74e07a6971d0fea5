"""Padding to a network's sizes, and tiles that blend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genimg.inference.tiling import in_tiles, num_tiles, padded
from genimg.networks.resnet_translator import Translator


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def translator(num_downs: int = 0, normalisation: str = "none") -> nn.Module:
    torch.manual_seed(3)
    return Translator(
        source_channels=3, target_channels=2, width=4, num_downs=num_downs, num_blocks=1, normalisation=normalisation,
        padding="reflect", upsampling="transposed", dropout=0.0, initialisation="default", spectral_norm=False,
    ).eval()  # fmt: skip


# Padding


def test_images_are_reflected_at_the_right_and_at_the_bottom() -> None:
    image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    expected = torch.tensor([[[[1.0, 2.0, 3.0, 2.0], [4.0, 5.0, 6.0, 5.0], [4.0, 5.0, 6.0, 5.0], [4.0, 5.0, 6.0, 5.0]]]])
    assert torch.equal(padded(image, 4), expected)  # two rows more than the one that a reflection has: the last is repeated
    assert padded(image, 1) is image


@pytest.mark.parametrize(
    ("size", "multiple", "least", "to", "modes"),
    [
        ((20, 30), 4, 4, (20, 32), ("reflect", "reflect")),
        ((20, 30), 16, 16, (32, 32), ("reflect", "reflect")),
        ((5, 4), 8, 8, (8, 8), ("reflect", "edge")),
        ((1, 9), 4, 4, (4, 12), ("edge", "reflect")),
        ((3, 6), 2, 8, (8, 8), ("edge", "reflect")),
        ((2, 3), 1, 4, (4, 4), ("edge", "reflect")),
        ((16, 8), 8, 8, (16, 8), ("reflect", "reflect")),
    ],
)
def test_padding_is_that_of_numpy(
    size: tuple[int, int], multiple: int, least: int, to: tuple[int, int], modes: tuple[str, str]
) -> None:
    images = noise(2, 3, *size)
    expected = images.numpy()
    expected = np.pad(expected, [(0, 0)] * 3 + [(0, to[1] - size[1])], mode=modes[1])  # type: ignore[call-overload]
    expected = np.pad(expected, [(0, 0)] * 2 + [(0, to[0] - size[0]), (0, 0)], mode=modes[0])
    assert np.array_equal(padded(images, multiple, least).numpy(), expected)


# Tiles


@pytest.mark.parametrize("size", [(16, 16), (20, 16), (16, 33), (40, 61), (100, 17)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (16, 1), (16, 4), (16, 7), (17, 8)])
def test_tiles_of_the_image_itself_are_the_image(size: tuple[int, int], tile: int, overlap: int) -> None:
    image, seen = noise(1, 2, *size), []

    def itself(tiles: Tensor) -> Tensor:
        seen.append(tiles.shape)
        return tiles

    result = in_tiles(itself, image, tile=tile, overlap=overlap, multiple=1, batch_size=3)
    assert (result - image).abs().max() < 1e-6
    assert all(shape[0] <= 3 and max(shape[2:]) <= tile for shape in seen)
    assert sum(shape[0] for shape in seen) == num_tiles(*size, tile=tile, overlap=overlap, multiple=1)


def test_tiles_blend_linearly_in_the_middle_of_what_they_share() -> None:
    """Two tiles of 16 share 8 pixels; the outer 3 of either are not used, and the 2 between are blended."""
    values = iter([0.0, 1.0])
    image = torch.zeros(1, 1, 4, 24)
    result = in_tiles(lambda tiles: tiles + next(values), image, tile=16, overlap=4, multiple=1, batch_size=1)
    expected = torch.tensor([0.0] * 11 + [0.25, 0.75] + [1.0] * 11)
    assert torch.allclose(result, expected.expand(1, 1, 4, 24), atol=1e-6)


def test_the_last_tile_ends_with_the_image_and_all_begin_at_multiples() -> None:
    seen: list[int] = []

    def note(tiles: Tensor) -> Tensor:
        seen.append(int(tiles[0, 0, 0, 0]))
        return tiles

    image = torch.arange(44.0).expand(1, 1, 4, 44)  # a pixel's value is its place
    in_tiles(note, image, tile=16, overlap=3, multiple=4, batch_size=1)
    assert seen == [0, 8, 16, 24, 28]
    seen.clear()
    in_tiles(note, image, tile=16, overlap=3, multiple=16, batch_size=1)  # no room for steps of 16
    assert seen == [0, 10, 20, 28]


@pytest.mark.parametrize(("num_downs", "reach"), [(0, 8), (1, 14)])
def test_tiles_are_the_whole_where_the_network_sees_no_further(num_downs: int, reach: int) -> None:
    """A 7x7 convolution, a block of two 3x3 ones and a 7x7 one see 3 + 2 + 3 pixels; at half the size they see further."""
    network, image = translator(num_downs), noise(1, 3, 60, 90)
    with torch.no_grad():
        whole = network(image)
        enough = in_tiles(network, image, tile=48, overlap=-(-reach * 4 // 3), multiple=2, batch_size=4)
        less = in_tiles(network, image, tile=48, overlap=4, multiple=2, batch_size=4)
    assert whole.shape == enough.shape == (1, 2, 60, 90)
    assert (enough - whole).abs().max() < 1e-6
    assert (less - whole).abs().max() > 1e-6


def test_tiles_differ_where_a_network_normalises_over_the_image() -> None:
    network, image = translator(normalisation="instance"), noise(1, 3, 60, 90)
    with torch.no_grad():
        tiles = in_tiles(network, image, tile=48, overlap=12, multiple=1, batch_size=4)
        assert (tiles - network(image)).abs().max() > 1e-3
