import math

import numpy as np
import pytest

from genimg.data.sampler import InfiniteSampler, Locality


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


# Files that are read one after another


SIZES = np.array([4, 6, 5, 3, 7, 2])
FILES = np.repeat(np.arange(6), SIZES)


def local_order(buffer: int, *, seed: int = 3) -> InfiniteSampler:
    return InfiniteSampler(27, seed=seed, horizontal_flip=False, locality=Locality(SIZES, buffer))


@pytest.mark.parametrize("buffer", [1, 7, 10, 26])
def test_an_epoch_uses_up_a_group_of_files_before_the_next_one(buffer):
    stream = local_order(buffer)
    for epoch in range(4):
        indices = stream.indices(27 * epoch, 27 * (epoch + 1))
        assert sorted(indices) == list(range(27))
        start = 0
        while start < 27:  # the files of a group are those that must be complete before another one begins
            group: set[int] = set()
            stop = start
            while stop == start or sorted(indices[start:stop]) != [i for i in range(27) if FILES[i] in group]:
                group.add(int(FILES[indices[stop]]))
                stop += 1
            assert len(group) == 1 or sum(SIZES[list(group)]) <= buffer
            start = stop


def test_files_and_the_images_of_a_group_are_shuffled_in_every_epoch():
    epochs = local_order(10).indices(0, 27 * 20).reshape(20, 27)
    assert len({tuple(dict.fromkeys(FILES[epoch])) for epoch in epochs}) > 15
    assert len({tuple(epoch) for epoch in epochs}) == 20
    of_two = [tuple(FILES[epoch]) for epoch in epochs]
    assert any(list(files) != sorted(files, key=files.index) for files in of_two)  # files of a group are mixed


def test_an_order_by_files_is_a_function_of_seed_and_position():
    whole = local_order(10).indices(0, 80)
    for start in (0, 5, 27, 40):
        assert np.array_equal(local_order(10).indices(start, 80), whole[start:])
    assert not np.array_equal(local_order(10, seed=4).indices(0, 27), whole[:27])


def test_a_buffer_for_all_images_gives_the_usual_order():
    usual = InfiniteSampler(27, seed=3, horizontal_flip=False).indices(0, 54)
    assert np.array_equal(local_order(27).indices(0, 54), usual)
    assert not np.array_equal(local_order(26).indices(0, 54), usual)


def test_a_part_of_the_images_keeps_the_files_that_it_uses():
    chosen = np.array([0, 3, 4, 10, 20, 25, 26])
    part = Locality(SIZES, 5).of(chosen)
    assert part.sizes.tolist() == [2, 1, 1, 1, 2]  # nothing of the fourth file
    assert part.buffer == 5
