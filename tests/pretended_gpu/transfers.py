"""Checks of the code that copies batches to the GPU, and states to the host. Prints the failures as JSON, by check.

The dispatch mode of device.py does not cover other threads: they must only copy, which the preloaded library does itself.
"""

from __future__ import annotations

import _thread
import itertools
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader
from genimg.data.prefetch import prefetch
from genimg.training.async_writer import Background
from genimg.training.host_copies import PinnedCopies, snapshot
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    with pretending():
        stream = prefetch(iter(_Source(_NUM_BATCHES, seconds=2.0)), torch.device("cuda"))
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


def copies_equal_snapshots_and_need_no_wait() -> None:
    """A copy has a snapshot's values, types and strides, and later changes do not reach it."""
    with pretending() as gpu:
        state = _state()
        expected, copies = snapshot(state), PinnedCopies()
        with gpu.during("copy"):
            copy, wait = copies.copy(state)
        for tensor in _tensors(state):
            tensor.zero_()
        wait()
        assert not gpu.waits["copy"]
    assert copy["names"] == ("a", 3)
    assert copy["empty"].shape == (0, 4)
    assert (copy["bf16"].is_pinned(), copy["on_host"].is_pinned()) == (True, False)
    for one, other in zip(_tensors(copy), _tensors(expected), strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.stride(), one.device.type) == (other.dtype, other.stride(), "cpu")
        assert not one.requires_grad


def views_and_repeated_rows_are_copied() -> None:
    """Tensors that are not dense are copied like others, though the GPU has to rearrange them first."""
    with pretending():
        whole = torch.arange(12.0, device="cuda").view(3, 4)
        state = [whole[:, 1:3], whole[0].expand(5, 4), whole.t()]
        copy, wait = PinnedCopies().copy(state)
        wait()
        for one, other in zip(copy, snapshot(state), strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()


def the_memory_is_used_again() -> None:
    """A second copy is in the memory of the first one, and a larger one gets more."""
    with pretending():
        copies, weight = PinnedCopies(), torch.ones(1000, device="cuda")
        first, _ = copies.copy({"weight": weight})
        second, _ = copies.copy({"weight": weight + 1})
        assert first["weight"].data_ptr() == second["weight"].data_ptr()
        large, wait = copies.copy([weight, weight + 2])
        wait()
        assert [each.unique().tolist() for each in large] == [[1.0], [3.0]]


def a_copy_waits_for_the_job_with_the_last_one() -> None:
    """Jobs see the values of their submission, though the memory is the same, and begin when the GPU has made the copy."""
    seen: list[object] = []

    def job(copy: dict[str, Tensor]) -> None:
        time.sleep(0.05)
        seen.append(copy["weight"].unique().tolist())

    def synchronize(event: torch.cuda.Event) -> None:
        seen.append("made")

    with pretending(), mock.patch.object(torch.cuda.Event, "synchronize", synchronize), closing(Background()) as background:
        weight = torch.zeros(1000, device="cuda")
        for number in range(3):
            weight.fill_(number)
            background.submit_with_copy(job, {"weight": weight})
        weight.fill_(9)
    assert seen == ["made", [0.0], "made", [1.0], "made", [2.0]]


def a_written_copy_is_as_small_as_a_snapshot_and_safe_to_load() -> None:
    """A file holds each tensor's own bytes, not those of the memory around them."""
    with pretending(), tempfile.TemporaryDirectory() as folder:
        state, files = _state(), [Path(folder, "copy.pt"), Path(folder, "snapshot.pt")]
        expected = snapshot(state)
        with closing(Background()) as background:
            background.submit_with_copy(partial(torch.save, f=files[0]), state)
        torch.save(expected, files[1])
        loaded = torch.load(files[0], weights_only=True)
        assert all(map(torch.equal, _tensors(loaded), _tensors(expected)))
        assert [one.stride() for one in _tensors(loaded)] == [other.stride() for other in _tensors(expected)]
        sizes = [file.stat().st_size for file in files]
        assert abs(sizes[0] - sizes[1]) < 1000, sizes


def without_pinned_memory_copies_are_the_same() -> None:
    """Where no memory can be pinned, other memory is used."""
    empty = torch.empty

    def refusing(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **kwargs)

    with pretending(), mock.patch.object(torch, "empty", refusing):
        copy, wait = PinnedCopies().copy(_state())
        wait()
        assert not copy["bf16"].is_pinned()
        assert all(map(torch.equal, _tensors(copy), _tensors(snapshot(_state()))))


def _state() -> dict[str, Any]:
    """Return a state with tensors of several types and memory formats, on the GPU and on the host."""
    numbers = torch.arange(48.0)
    return {
        "weights": [numbers.view(1, 3, 4, 4).cuda().contiguous(memory_format=torch.channels_last)],
        "bf16": numbers.bfloat16().cuda(), "int": numbers.long().cuda(), "bool": (numbers > 5).cuda(),
        "empty": torch.zeros(0, 4, device="cuda"), "none": torch.zeros(0, device="cuda", dtype=torch.int64),
        "number": torch.tensor(2.5, device="cuda"),
        "transposed": numbers.view(6, 8).cuda().t(), "on_host": torch.arange(3.0), "names": ("a", 3),
    }  # fmt: skip


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    return [*state["weights"], *(value for value in state.values() if isinstance(value, Tensor))]


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
    copies_equal_snapshots_and_need_no_wait, views_and_repeated_rows_are_copied, the_memory_is_used_again,
    a_copy_waits_for_the_job_with_the_last_one, a_written_copy_is_as_small_as_a_snapshot_and_safe_to_load,
    without_pinned_memory_copies_are_the_same,
)  # fmt: skip

if __name__ == "__main__":
    print_failures(CHECKS)
