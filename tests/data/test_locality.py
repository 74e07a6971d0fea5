"""An epoch uses up one group of files after another, and is a function of seed and position."""

import numpy as np
import pytest

from genimg.data.locality import Locality
from genimg.data.sampler import InfiniteSampler

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
