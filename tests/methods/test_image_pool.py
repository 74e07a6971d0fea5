import pytest
import torch
from errors import raises
from scipy import stats

from genimg.methods.image_pool import ImagePool


def pool(size: int = 4) -> ImagePool:
    return ImagePool(size=size, channels=1, image_size=[2, 3])


def numbered(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3)


def shown(kept: ImagePool, *numbers: float) -> list[float]:
    images = kept(numbered(*numbers))
    assert images.shape == (len(numbers), 1, 2, 3)
    assert (images == images[:, :, :1, :1]).all()  # whole images, never mixed
    return images[:, 0, 0, 0].tolist()


def test_images_are_shown_as_they_come_until_the_pool_is_full():
    kept = pool(4)
    assert shown(kept, 0.0, 1.0, 2.0) == [0.0, 1.0, 2.0]
    assert shown(kept, 3.0) == [3.0]
    assert kept.images[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert kept.count.item() == 4


def test_afterwards_it_does_what_a_list_does_with_the_same_random_numbers():
    torch.manual_seed(0)
    kept, by_hand = pool(3), []
    found = [shown(kept, *range(start, start + 4)) for start in range(0, 200, 4)]
    torch.manual_seed(0)
    for start in range(0, 200, 4):
        for number, seen in zip(range(start, start + 4), found[start // 4], strict=True):
            slot, swap = torch.randint(3, (1,)).item(), torch.rand(()).item() < 0.5
            if len(by_hand) < 3:
                by_hand.append(number)
                assert seen == number
            elif swap:
                assert seen == by_hand[slot]
                by_hand[slot] = number
            else:
                assert seen == number
    assert kept.images[:, 0, 0, 0].tolist() == by_hand


def test_half_of_the_images_are_new_and_every_place_is_taken_equally_often():
    torch.manual_seed(0)
    kept = pool(5)
    shown(kept, *range(5))
    count, places = 4000, [0] * 5
    new = 0
    for number in range(5, 5 + count):
        before = kept.images[:, 0, 0, 0].tolist()
        (seen,) = shown(kept, float(number))
        if seen == number:
            new += 1
        else:
            places[before.index(seen)] += 1
    assert stats.binomtest(new, count, 0.5).pvalue > 0.01
    assert stats.chisquare(places).pvalue > 0.01


def test_an_image_stays_for_as_long_as_the_pool_is_large():
    """Each new image drives out a given one with probability 1 / (2 K), so that it stays 2 K images on the average."""
    torch.manual_seed(1)
    kept, ages = pool(10), []
    for number in range(6000):
        (seen,) = shown(kept, float(number))
        if seen != number:
            ages.append(number - seen)
    assert torch.tensor(ages[500:]).mean().item() == pytest.approx(20.0, rel=0.05)


def test_a_saved_pool_goes_on_as_if_nothing_had_happened():
    torch.manual_seed(2)
    kept = pool()
    shown(kept, *range(9))
    again = pool()
    again.load_state_dict(kept.state_dict())
    results = []
    for each in (kept, again):
        torch.manual_seed(3)
        results.append(shown(each, *range(9, 30)))
    assert results[0] == results[1]
    assert torch.equal(kept.images, again.images)


def test_no_pool_shows_every_image():
    assert shown(pool(0), *range(20)) == list(range(20))


@pytest.mark.parametrize("size", [0, 4])
def test_the_graph_ends_here_and_the_type_stays(size):
    images = numbered(1.0, 2.0).bfloat16().requires_grad_()
    result = pool(size)(images)
    assert not result.requires_grad
    assert result.dtype == torch.bfloat16


def test_a_negative_size_is_refused():
    with raises(ValueError, "size=-1"):
        pool(-1)
