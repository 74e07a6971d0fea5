import threading
import time

import pytest
import torch
from errors import raises

from genimg.training.async_writer import Background


def test_jobs_run_one_after_the_other_beside_the_caller():
    background, order, may_end = Background(), [], threading.Event()

    def slow() -> None:
        may_end.wait(10)
        order.append("slow")

    background.submit(slow)
    order.append("caller")  # does not wait for the job under way
    threading.Timer(0.05, may_end.set).start()
    background.submit(lambda: order.append("fast"))
    background.wait()
    assert order == ["caller", "slow", "fast"]
    background.close()


def test_jobs_use_one_thread_of_pytorch_and_others_the_same_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        background, used = Background(), []
        background.submit(lambda: used.append(torch.get_num_threads()))
        background.wait()
        other = threading.Thread(target=lambda: used.append(torch.get_num_threads()))
        other.start()
        other.join()
        background.close()
        assert [*used, torch.get_num_threads()] == [1, 3, 3]
    finally:
        torch.set_num_threads(before)


def fail() -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("then", ["submit", "wait", "close"])
def test_what_a_job_raises_is_raised_once_by_the_next_call(then):
    background = Background()
    background.submit(fail)
    arguments = [lambda: None] if then == "submit" else []
    with raises(OSError, word="disk"):
        getattr(background, then)(*arguments)
    background.wait()
    background.close()


def test_closing_waits_for_the_job():
    background, done = Background(), []
    background.submit(lambda: (time.sleep(0.05), done.append(1)))
    background.close()
    assert done == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("genimg-writer")]


def test_a_job_gets_a_copy_made_after_the_job_before_it():
    background, seen, weight = Background(), [], torch.zeros(3)
    for number in range(3):
        weight.fill_(number)
        background.submit_with_copy(lambda copy: (time.sleep(0.05), seen.append(copy["weight"].tolist())), {"weight": weight})
    weight.fill_(9)
    background.close()
    assert seen == [[0.0] * 3, [1.0] * 3, [2.0] * 3]


def test_no_copy_is_made_if_the_job_before_has_failed():
    background, seen = Background(), []
    background.submit(fail)
    with raises(OSError, word="disk"):
        background.submit_with_copy(seen.append, {})
    background.close()
    assert seen == []
