"""Checks of the threads that copy batches to the GPU. Prints the failures as JSON, by check.

The dispatch mode of device.py does not cover these threads: they must only copy, which the preloaded library does itself.
"""

from __future__ import annotations

import _thread
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.data.prefetch import prefetch
from genimg.types import Batch
from pretended_gpu.checks import fails, pretending, print_failures

_NUM_BATCHES = 7


def batches_are_those_of_the_cpu() -> None:
    """A stream gives the same batches from any position, whatever the storage, and draws no random numbers."""
    for storage, num_workers, start in itertools.product(("host", "workers"), (0, 2), (0, 5)):
        expected = _batches_of("cpu", storage, num_workers, start)
        with pretending() as gpu:
            states = torch.get_rng_state(), torch.cuda.get_rng_state()
            found = _batches_of("cuda", storage, num_workers, start)
            assert all(map(torch.equal, states, (torch.get_rng_state(), torch.cuda.get_rng_state())))
        assert gpu.launches == 0
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert torch.equal(value, other[key]), (storage, num_workers, start, key)
                assert value.stride() == other[key].stride(), key
    assert not _threads()


def the_next_batch_is_read_while_one_is_used() -> None:
    """One batch more than used is read, in another thread, and kept batches are not overwritten."""
    source = _Source(_NUM_BATCHES)
    with pretending(), closing(prefetch(iter(source), torch.device("cuda"))) as stream:
        kept = [next(stream) for _ in range(3)]
        assert source.read[3].wait(10), "batch 3 must be read before it is requested"
        time.sleep(0.05)
        assert not source.read[4].is_set()
        assert [extra for _, extra in kept] == [0, 1, 2]
        assert [batch["image"].cpu()[0].item() for batch, _ in kept] == [0, 1, 2]
        assert source.threads[1:] == [_threads()[0].ident] * 3
    assert not _threads()


def an_error_takes_the_place_of_its_batch() -> None:
    """What reading a batch raises is raised when this batch is requested, and the thread ends."""
    with pretending():
        stream = prefetch(iter(_Source(2)), torch.device("cuda"))
        assert next(stream)[1] == 0
        time.sleep(0.05)
        assert next(stream)[1] == 1
        assert fails(OSError, lambda: next(stream))
    assert not _threads()


def an_interrupted_wait_ends_the_thread() -> None:
    """After Ctrl-C during the wait for a batch, the stream ends as soon as this batch has been read."""
    with pretending():
        stream = prefetch(iter(_Source(_NUM_BATCHES, seconds=0.3)), torch.device("cuda"))
        next(stream)
        threading.Timer(0.1, _thread.interrupt_main).start()
        assert fails(KeyboardInterrupt, lambda: next(stream))
    assert not _threads()


def an_abandoned_stream_ends_its_thread() -> None:
    """A stream that nobody refers to any more ends its thread."""
    with pretending():
        stream = prefetch(iter(_Source(_NUM_BATCHES)), torch.device("cuda"))
        next(stream)
        assert len(_threads()) == 1
        del stream
    assert not _threads()


class _Source:
    """Batches that hold their number, and an error after the last one.

    Args:
        count: Number of batches.
        seconds: Time to read one.

    Attributes:
        read: Events that are set when a batch is read.
        threads: Threads in which batches were read.
    """

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self.read = [threading.Event() for _ in range(count)]
        self.threads: list[int | None] = []
        self._seconds = seconds

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        for number, event in enumerate(self.read):
            time.sleep(self._seconds)
            event.set()
            self.threads.append(threading.get_ident())
            yield {"image": torch.full((100,), float(number)).pin_memory()}, number
        raise OSError(f"no batch {len(self.read)}")


def _batches_of(device: str, storage: str, num_workers: int, start: int) -> list[dict[str, Tensor]]:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 6), dtype=np.uint8)
    loader = ImageLoader(
        ArrayDataset("toy", images, np.arange(10, dtype=np.int64)), storage=storage, num_workers=num_workers,
        horizontal_flip=True, max_corrupt=0, device=torch.device(device), keys=("image", "label", "noise_key"),
    )  # fmt: skip
    with closing(loader.batches(start, batch_size=4, seed=5)) as stream:
        return [{key: value.cpu() for key, value in batch.items()} for batch in itertools.islice(stream, _NUM_BATCHES)]


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("genimg-prefetch")]


CHECKS = (
    batches_are_those_of_the_cpu, the_next_batch_is_read_while_one_is_used, an_error_takes_the_place_of_its_batch,
    an_interrupted_wait_ends_the_thread, an_abandoned_stream_ends_its_thread,
)  # fmt: skip

if __name__ == "__main__":
    print_failures(CHECKS)
