import threading
import time

import pytest
import torch
from errors import raises

from genimg.training.async_writer import Background, snapshot


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


def test_a_snapshot_keeps_its_values_and_memory_format_while_the_original_changes():
    weight = torch.nn.Parameter(torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    state = {"weights": [weight], "step": 3, "names": ("a", "b")}
    copy = snapshot(state)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(copy["weights"][0], before)
    assert copy["weights"][0].stride() == weight.stride()
    assert not copy["weights"][0].requires_grad
    assert (copy["step"], copy["names"]) == (3, ("a", "b"))
