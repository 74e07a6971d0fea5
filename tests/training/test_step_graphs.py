"""Which steps are of one kind. What a graph computes is tested on a pretended GPU (test_pretended_gpu.py)."""

import pytest

from genimg.training.step_graphs import Questions, WatchedProgress, _Kind
from genimg.types import Progress
from genimg.utils.random_streams import StepDraws

BATCH = 4


def asked(progress: Progress) -> Questions:
    """Of a method with an update every 3 steps, then a lazy penalty every 6, and another phase from 40 images on."""
    questions = Questions()
    watched = WatchedProgress(progress, questions)
    if watched.due(3):
        watched.due(6)
    watched.reached(40)
    return questions


def test_questions_get_the_answers_of_the_progress() -> None:
    for step in range(24):
        progress = Progress(step * BATCH, BATCH)
        watched = WatchedProgress(progress, Questions())
        assert (watched.due(3), watched.due(6), watched.reached(40)) == (step % 3 == 0, step % 6 == 0, step >= 10)
        assert watched.batch_size == BATCH


def test_steps_with_the_same_answers_are_of_one_kind() -> None:
    kinds: list[_Kind] = []
    found = []
    for step in range(36):
        progress = Progress(step * BATCH, BATCH)
        matching = [number for number, kind in enumerate(kinds) if kind.includes(progress, ())]
        if not matching:
            kinds.append(_Kind(asked(progress).answers, (), [], StepDraws()))
            matching = [len(kinds) - 1]
        (number,) = matching  # never two
        assert kinds[number].answers == asked(progress).answers
        found.append(number)
    assert len(kinds) == 6
    assert found[:10] == [0, 1, 1, 2, 1, 1, 0, 1, 1, 2]


def test_zeros_of_scheduled_numbers_make_another_kind() -> None:
    kind = _Kind({}, (True, False), [], StepDraws())
    assert kind.includes(Progress(0, BATCH), (True, False))
    assert not kind.includes(Progress(0, BATCH), (False, False))


@pytest.mark.parametrize("name", ["images", "step"])
def test_reading_a_number_is_noticed(name: str) -> None:
    questions = Questions()
    assert getattr(WatchedProgress(Progress(20, BATCH), questions), name) == {"images": 20, "step": 5}[name]
    assert questions.reads_number
    assert not asked(Progress(20, BATCH)).reads_number
