import pytest

from genimg.utils import progress


@pytest.fixture
def bars(monkeypatch):
    """What each bar was told about being shown."""
    seen = []

    def tqdm(numbers, **settings):
        seen.append(settings["disable"])
        return numbers

    monkeypatch.setattr(progress, "tqdm", tqdm)
    return seen


def test_steps_are_shown_only_within_the_block(bars):
    assert list(progress.steps(3, "work")) == [0, 1, 2]
    with progress.showing_steps():
        assert list(progress.steps(2, "work")) == [0, 1]
    list(progress.steps(1, "work"))
    assert bars == [True, None, True]  # None: only in a terminal


def test_an_error_in_the_block_hides_them_again(bars):
    with pytest.raises(RuntimeError), progress.showing_steps():
        raise RuntimeError
    list(progress.steps(1, "work"))
    assert bars == [True]
