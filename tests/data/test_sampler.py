import math

import numpy as np
import pytest

from genimg.data.sampler import InfiniteSampler


def order(num_images: int = 10, *, seed: int = 3, horizontal_flip: bool = True) -> InfiniteSampler:
    return InfiniteSampler(num_images, seed=seed, horizontal_flip=horizontal_flip)


@pytest.mark.parametrize("num_images", [1, 2, 10, 101])
def test_every_epoch_is_a_permutation(num_images):
    indices = order(num_images).indices(0, 5 * num_images)
    assert indices.dtype == np.int64
    for epoch in indices.reshape(5, num_images):
        assert sorted(epoch) == list(range(num_images))


def test_epochs_and_seeds_have_orders_of_their_own():
    epochs = order(50).indices(0, 200).reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(order(50, seed=4).indices(0, 50), epochs[0])


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 25, 40])
def test_an_order_started_anywhere_is_the_tail_of_one_started_at_zero(start):
    whole = order()
    assert np.array_equal(order().indices(start, 45), whole.indices(0, 45)[start:])
    assert np.array_equal(order().flips(start, 45), whole.flips(0, 45)[start:])


def test_steps_of_any_size_give_the_same_order():
    whole = order().indices(0, 60)
    for size in (1, 4, 7, 30):
        pieces = [order().indices(start, min(start + size, 60)) for start in range(0, 60, size)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_a_range_may_span_several_epochs():
    indices = order(3).indices(2, 13)
    assert len(indices) == 11
    assert sorted(indices[1:4]) == sorted(indices[4:7]) == sorted(indices[7:10]) == [0, 1, 2]


def test_far_positions_are_found_directly():
    far = 10**12
    assert np.array_equal(np.sort(order(10).indices(far, far + 10)), np.arange(10))


def test_half_of_the_samples_are_mirrored():
    flips = order(100).flips(0, 20_000)
    assert flips.dtype == np.bool_
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)


def test_an_image_is_not_mirrored_alike_in_every_epoch():
    stream = order(20)
    mirrored = np.zeros((8, 20), dtype=bool)
    for epoch in range(8):
        indices = stream.indices(20 * epoch, 20 * (epoch + 1))
        mirrored[epoch, indices] = stream.flips(20 * epoch, 20 * (epoch + 1))
    assert mirrored.any(axis=0).sum() >= 15
    assert mirrored.all(axis=0).sum() <= 5


def test_flips_depend_on_the_seed():
    assert not np.array_equal(order(seed=1).flips(0, 100), order(seed=2).flips(0, 100))


def test_nothing_is_mirrored_unless_requested():
    flips = order(horizontal_flip=False).flips(5, 50)
    assert flips.shape == (45,)
    assert not flips.any()


def test_mirroring_does_not_change_the_order():
    assert np.array_equal(order(horizontal_flip=False).indices(0, 40), order(horizontal_flip=True).indices(0, 40))
