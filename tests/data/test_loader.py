import io
import itertools
import logging
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest
import torch
from errors import raises

from genimg.data.captions import decode
from genimg.data.corrupt import read_valid
from genimg.data.datasets.builtin import ArrayDataset, CorruptImageError, ImageDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.loader import ImageLoader, UnpairedImageLoader
from genimg.data.sampler import InfiniteSampler
from genimg.data.tasks.base import Pair, Task
from genimg.data.tasks.degradations import Denoise, Inpaint
from genimg.data.tasks.masks import Boxes
from genimg.data.transforms import SampleAugment
from genimg.errors import ConfigError, DataError
from genimg.utils.images import to_float

PLACED = ["device", "host", "workers"]


class ToyDataset(ImageDataset):
    """Random images that must be decoded, some of which cannot be, with captions of unlike lengths."""

    captioned = True

    def __init__(self, count: int = 10, *, corrupt: tuple[int, ...] = (), labels: bool = True, seconds: float = 0.0) -> None:
        self.name = "toy"
        self.values = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 6), dtype=np.uint8)
        self.shape = (3, 4, 6)
        self.labels = np.arange(count, dtype=np.int64) if labels else None
        self.fingerprint = "toy"
        self.corrupt = corrupt
        self.seconds = seconds
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self.values)

    def read(self, index: int) -> np.ndarray:
        self.num_reads += 1
        time.sleep(self.seconds)
        if index in self.corrupt:
            raise CorruptImageError(f"/toy/{index}.png: broken")
        return self.values[index]

    def caption(self, index: int) -> str | None:
        return None if index == 6 else f"numéro {index}, " * index


def keys_of(source: ImageDataset) -> tuple[str, ...]:
    return ("image", *["label"] * (source.labels is not None), *["caption"] * source.captioned)


def place(
    source: ImageDataset,
    storage: str,
    *,
    flip: bool = True,
    num_workers: int | str = 0,
    max_corrupt: int = 0,
    keys: tuple[str, ...] | None = None,
    augment: SampleAugment | None = None,
    task: Task | None = None,
) -> ImageLoader:
    """Batches have all that the source has, unless told otherwise or made by a task."""
    return ImageLoader(
        source,
        storage=storage,
        num_workers=num_workers,
        horizontal_flip=flip,
        max_corrupt=max_corrupt,
        device=torch.device("cpu"),
        keys=("image",) if task else keys_of(source) if keys is None else keys,
        augment=augment,
        task=task,
    )


def take(data: ImageLoader, count: int, *, position: int = 0, batch_size: int = 4, **settings: int) -> dict[str, torch.Tensor]:
    """The first batches of a stream, joined."""
    batches = list(itertools.islice(data.batches(position, batch_size=batch_size, seed=5, **settings), count))
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("storage", PLACED)
def test_batches_are_the_images_of_the_order_with_their_labels_and_flips(storage):
    source = ToyDataset()
    result = take(place(source, storage), 8)  # 32 positions: three epochs and a part
    order = InfiniteSampler(10, seed=5, horizontal_flip=True)
    indices, flips = order.indices(0, 32), order.flips(0, 32)
    assert flips.any()
    assert not flips.all()
    expected = np.stack(
        [source.values[i, :, :, ::-1] if flip else source.values[i] for i, flip in zip(indices, flips, strict=True)]
    )
    assert torch.equal(result["image"], to_float(torch.from_numpy(expected)))
    assert result["label"].tolist() == indices.tolist()
    assert result["label"].dtype == torch.int64


@pytest.mark.parametrize(("storage", "num_workers"), [("host", 0), ("workers", 0), ("workers", 1), ("workers", 2)])
@pytest.mark.parametrize("in_memory", [False, True])
def test_all_placements_give_the_same_batches(storage, num_workers, in_memory):
    source = ToyDataset()
    if in_memory:
        source = ArrayDataset("toy", source.values, source.labels, captions=[source.caption(i) for i in range(10)])
    reference = take(place(source, "device"), 7, position=3)
    assert_equal(take(place(source, storage, num_workers=num_workers), 7, position=3), reference)


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("skipped", [1, 2, 3, 5])
def test_a_stream_started_later_is_the_tail_of_one_started_at_zero(storage, skipped):
    whole = take(place(ToyDataset(), storage), 8)
    tail = take(place(ToyDataset(), storage), 8 - skipped, position=4 * skipped)
    assert_equal(tail, {key: value[4 * skipped :] for key, value in whole.items()})


@pytest.mark.parametrize("storage", PLACED)
def test_a_stream_may_start_at_a_position_that_no_batch_starts_at(storage):
    whole = take(place(ToyDataset(), storage), 8)
    shifted = take(place(ToyDataset(), storage), 6, position=3)
    assert_equal(shifted, {key: value[3:27] for key, value in whole.items()})


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_read_the_batch_of_a_single_rank(storage, world_size):
    data = place(ToyDataset(), storage)
    whole = data.batches(8, batch_size=4, seed=5)
    ranks = [data.batches(8, batch_size=4, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(5):
        parts = [next(rank) for rank in ranks]
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        assert_equal(joined, next(whole))


@pytest.mark.parametrize("storage", PLACED)
def test_a_batch_may_be_larger_than_the_data(storage):
    result = take(place(ToyDataset(3), storage), 2, batch_size=9)
    for epoch in result["label"].reshape(6, 3).tolist():
        assert sorted(epoch) == [0, 1, 2]


@pytest.mark.parametrize("storage", PLACED)
def test_images_are_float_in_range_channels_last(storage):
    image = take(place(ToyDataset(), storage), 1)["image"]
    assert image.shape == (4, 3, 4, 6)
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert -1 <= image.min() < image.max() <= 1


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("keys", [("image",), ("image", "label"), ("image", "caption"), ("image", "label", "caption")])
def test_batches_have_the_keys_that_were_requested(storage, keys):
    whole = take(place(ToyDataset(), storage), 3)
    assert_equal(take(place(ToyDataset(), storage, keys=keys), 3), {key: whole[key] for key in keys})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("image", "label"), "provide"),
        (("image", "caption"), "provide"),
        (("image", "mask"), "provide"),
        (("label",), "provide"),
    ],
)
def test_keys_that_the_source_has_not_are_refused_by_name(keys, words):
    with raises(DataError, word=words):
        place(ArrayDataset("toy", ToyDataset().values), "device", keys=keys)


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 0), ("host", 0), ("workers", 0), ("workers", 1)])
def test_captions_are_those_of_the_order_in_rows_of_one_length(storage, num_workers):
    source = ToyDataset()
    data = place(source, storage, num_workers=num_workers, keys=("image", "caption"))
    captions = take(data, 8)["caption"]
    assert captions.dtype == torch.uint8
    assert captions.shape == (32, data.caption_length) == (32, 112)  # 9 times 12 bytes, rounded up to a multiple of 16
    indices = InfiniteSampler(10, seed=5, horizontal_flip=False).indices(0, 32).tolist()
    assert decode(captions) == [source.caption(i) or "" for i in indices]


def test_a_long_caption_is_cut_alike_everywhere(caplog):
    captions = ["a", "é" * 200, "b" * 256, "c" * 257]
    source = ArrayDataset("toy", ToyDataset(4).values, captions=captions)
    with caplog.at_level(logging.WARNING):
        data = {storage: place(source, storage) for storage in PLACED}
    assert caplog.messages == ["2 of 4 captions are truncated to 256 bytes: the longest has 400"] * 3
    assert {placed.caption_length for placed in data.values()} == {256}
    batches = {storage: take(placed, 2)["caption"] for storage, placed in data.items()}
    for batch in batches.values():
        assert torch.equal(batch, batches["device"])
        assert set(decode(batch)) == {"a", "é" * 128, "b" * 256, "c" * 256}


@pytest.mark.parametrize("storage", PLACED)
def test_captions_that_nobody_requested_are_not_read(storage):
    source = ToyDataset()
    source.captions = None
    take(place(source, storage, keys=("image", "label")), 2)


@pytest.mark.parametrize("storage", PLACED)
def test_without_horizontal_flip_nothing_is_mirrored(storage):
    source = ToyDataset()
    result = take(place(source, storage, flip=False), 3)
    assert torch.equal(result["image"], to_float(torch.from_numpy(source.values[result["label"].numpy()])))


@pytest.mark.parametrize("storage", PLACED)
def test_plain_images_are_those_of_the_source_before_and_after_training_has_started(storage):
    source = ToyDataset()
    data = place(source, storage)
    indices = np.array([7, 0, 7, 2])
    for _ in range(2):
        images = data.images(indices)
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), source.values[indices])
        take(data, 1)


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 1), ("host", 1), ("workers", 0), ("workers", 1)])
def test_reading_draws_nothing_from_the_random_stream_of_training(storage, num_workers):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    data = place(ToyDataset(), storage, num_workers=num_workers)
    take(data, 2)
    data.images(np.array([1, 2]))
    assert torch.equal(torch.get_rng_state(), state)


class BatchedDataset(ToyDataset):
    """Gives many images at once, and none alone."""

    def read(self, index: int) -> np.ndarray:
        raise AssertionError("read one by one")

    def read_many(self, indices: np.ndarray) -> np.ndarray:
        self.num_reads += 1
        return self.values[indices]


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 0), ("host", 0), ("workers", 0), ("workers", 1)])
def test_a_source_that_reads_many_at_once_is_never_read_one_by_one(storage, num_workers):
    data = place(BatchedDataset(), storage, num_workers=num_workers)
    assert_equal(take(data, 7, position=3), take(place(ToyDataset(), storage), 7, position=3))
    indices = np.array([7, 0, 7, 2])
    assert np.array_equal(data.images(indices).numpy(), data.source.values[indices])


def test_a_worker_reads_a_whole_batch_at_once():
    source = BatchedDataset()
    take(place(source, "workers"), 5)
    assert source.num_reads == 5


@pytest.mark.parametrize("storage", PLACED)
def test_no_images_are_none(storage):
    assert place(ToyDataset(), storage).images(np.array([], dtype=np.int64)).shape == (0, 3, 4, 6)


@pytest.mark.parametrize("storage", ["device", "host"])
def test_images_in_memory_are_decoded_once(storage):
    source = ToyDataset()
    data = place(source, storage)
    take(data, 6)
    data.load()
    take(data, 6)
    assert source.num_reads == 10


def test_workers_decode_only_what_they_need():
    source = ToyDataset()
    data = place(source, "workers")
    data.load()
    assert source.num_reads == 0
    take(data, 2)
    assert source.num_reads <= 12  # at most one batch ahead


# Corrupt images


@pytest.mark.parametrize(("storage", "num_workers"), [("host", 0), ("workers", 0), ("workers", 2)])
def test_all_placements_replace_corrupt_images_alike(storage, num_workers):
    reference = take(place(ToyDataset(corrupt=(3, 4, 9)), "device", max_corrupt=3), 6)
    result = take(place(ToyDataset(corrupt=(3, 4, 9)), storage, num_workers=num_workers, max_corrupt=3), 6)
    assert_equal(result, reference)


@pytest.mark.parametrize("storage", PLACED)
def test_the_next_image_takes_a_corrupt_ones_place_with_its_own_label_and_caption(storage):
    source = ToyDataset(corrupt=(3, 4, 9))
    result = take(place(source, storage, max_corrupt=3, flip=False), 5)
    wanted = InfiniteSampler(10, seed=5, horizontal_flip=False).indices(0, 20)
    taken = [{3: 5, 4: 5, 9: 0}.get(index, index) for index in wanted.tolist()]
    assert result["label"].tolist() == taken
    assert decode(result["caption"]) == [source.caption(index) or "" for index in taken]
    assert torch.equal(result["image"], to_float(torch.from_numpy(source.values[taken])))


@pytest.mark.parametrize("storage", PLACED)
def test_each_corrupt_image_is_warned_of_once(storage, caplog):
    with caplog.at_level(logging.WARNING):
        take(place(ToyDataset(corrupt=(3, 4)), storage, max_corrupt=2), 12)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "skipped a corrupt image: /toy/3.png: broken",
        "skipped a corrupt image: /toy/4.png: broken",
    ]


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 0), ("host", 0), ("workers", 0), ("workers", 2)])
@pytest.mark.parametrize("allowed", [0, 1])
def test_more_corrupt_images_than_allowed_stop_the_run_and_are_named(storage, num_workers, allowed):
    data = place(ToyDataset(corrupt=(2, 7)), storage, num_workers=num_workers, max_corrupt=allowed)
    with raises(DataError, f"max_corrupt={allowed}") as caught:
        take(data, 3)  # a whole epoch
    named = [f"/toy/{index}.png: broken" in str(caught.value) for index in (2, 7)]
    assert sum(named) == allowed + 1
    assert f"{allowed + 1} corrupt image{'s' if allowed else ''} so far" in str(caught.value)


def test_plain_images_respect_max_corrupt_too():
    source = ToyDataset(corrupt=(2,))
    with raises(DataError, "max_corrupt=0"):
        place(source, "workers").images(np.array([1, 2]))
    images = place(source, "workers", max_corrupt=1).images(np.array([1, 2]))
    assert np.array_equal(images.numpy(), source.values[[1, 3]])


@pytest.mark.parametrize(("storage", "num_workers"), [("device", 0), ("host", 0), ("workers", 0), ("workers", 1)])
def test_when_all_images_are_corrupt_the_run_stops_whatever_is_allowed(storage, num_workers):
    data = place(ToyDataset(corrupt=tuple(range(10))), storage, num_workers=num_workers, max_corrupt=1000)
    with raises(DataError, word="decoded") as caught:
        take(data, 1)
    # An error raised in a worker holds the loader in a reference cycle; left to the collector, its end takes five seconds.
    traceback.clear_frames(caught.tb)


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_a_corrupt_image_stops_the_loading_before_the_rest_is_decoded(monkeypatch, on_a_terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: on_a_terminal  # the progress bar is shown on a terminal only
    monkeypatch.setattr(sys, "stderr", stderr)
    source = ToyDataset(400, corrupt=(0,), seconds=0.002)
    with raises(DataError, "max_corrupt=0"):
        place(source, "device", num_workers=1).load()
    assert ("loading toy" in stderr.getvalue()) == on_a_terminal
    assert source.num_reads < 200


def test_read_valid_goes_round_the_end_and_says_what_was_corrupt():
    source = ToyDataset(corrupt=(8, 9))
    image, taken, problems = read_valid(source, 8, allowed=2)
    assert taken == 0
    assert np.array_equal(image, source.values[0])
    assert problems == ["/toy/8.png: broken", "/toy/9.png: broken"]


def test_read_valid_gives_up_after_more_corrupt_images_than_allowed():
    image, _, problems = read_valid(ToyDataset(corrupt=(2, 3, 4, 5)), 2, allowed=1)
    assert image is None
    assert problems == ["/toy/2.png: broken", "/toy/3.png: broken"]


# Augmentation


AUGMENT = SampleAugment(
    horizontal_flip=0.5, vertical_flip=0.5, crop_padding=2, rotation=20, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1
)


@pytest.mark.parametrize("storage", PLACED)
def test_augmentation_is_applied_to_the_samples_by_their_positions(storage):
    plain = take(place(ToyDataset(), storage, flip=False), 6, position=3)
    result = take(place(ToyDataset(), storage, flip=False, augment=AUGMENT), 6, position=3)
    assert_equal(result, plain | {"image": AUGMENT(plain["image"], np.arange(3, 27), 5)})
    assert result["image"].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(result["image"], plain["image"])


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_neither_ranks_nor_resuming_nor_the_batch_size_change_the_augmentation(storage, world_size):
    whole = take(place(ToyDataset(), storage, flip=False, augment=AUGMENT), 6)["image"]
    data = place(ToyDataset(), storage, flip=False, augment=AUGMENT)
    ranks = [take(data, 4, position=8, rank=rank, world_size=world_size)["image"] for rank in range(world_size)]
    assert torch.equal(torch.cat([images.unflatten(0, (4, -1)) for images in ranks], dim=1).flatten(0, 1), whole[8:])
    assert torch.equal(take(data, 8, batch_size=3)["image"], whole)


def test_plain_images_are_not_augmented():
    source = ToyDataset()
    data = place(source, "device", flip=False, augment=AUGMENT)
    assert np.array_equal(data.images(np.arange(10)).numpy(), source.values)


def test_an_augmentation_that_does_not_fit_the_images_is_refused():
    grey = ArrayDataset("toy", ToyDataset().values[:, :1])
    with raises(ConfigError, "saturation=0.2"):
        place(grey, "device", flip=False, augment=AUGMENT)


def test_mirroring_twice_is_refused():
    with raises(ConfigError, "horizontal_flip=true"):
        place(ToyDataset(), "device", flip=True, augment=AUGMENT)


# Tasks


TASKS = [
    Pair(source_channels=1),
    Denoise(noise="gaussian", amount=[10, 55]),
    Denoise(noise="poisson", amount=30),
    Inpaint(mask=Boxes(num_boxes=2, side=[0.25, 0.75])),
]
FOUND = [("device", 0), ("host", 0), ("workers", 0), ("workers", 1)]


@pytest.mark.parametrize(("storage", "num_workers"), FOUND)
@pytest.mark.parametrize("augment", [None, AUGMENT])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_task_makes_sources_and_targets_of_the_samples_by_their_positions(task, augment, storage, num_workers):
    settings = {"flip": augment is None, "augment": augment, "num_workers": num_workers}
    image = take(place(ToyDataset(), storage, keys=("image",), **settings), 6, position=3)["image"]
    result = take(place(ToyDataset(), storage, task=task, **settings), 6, position=3)
    assert tuple(result) == task.keys
    assert_equal(result, task(image, np.arange(3, 27), 5))


@pytest.mark.parametrize(("storage", "num_workers"), FOUND)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_neither_ranks_nor_resuming_nor_the_batch_size_change_what_a_task_makes(task, storage, num_workers):
    geometric = SampleAugment(
        horizontal_flip=0.5, vertical_flip=0, crop_padding=2, rotation=0, brightness=0, contrast=0, saturation=0, hue=0
    )
    data = place(ToyDataset(), storage, flip=False, num_workers=num_workers, augment=geometric, task=task)
    whole = take(data, 7)
    for world_size in (1, 2):
        ranks = [take(data, 4, position=6, rank=rank, world_size=world_size) for rank in range(world_size)]
        joined = {
            key: torch.cat([batch[key].unflatten(0, (4, -1)) for batch in ranks], dim=1).flatten(0, 1) for key in task.keys
        }
        assert_equal(joined, {key: value[6:22] for key, value in whole.items()})
    assert_equal(take(data, 9, position=1, batch_size=3), {key: value[1:] for key, value in whole.items()})


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("augment", [None, SampleAugment(
    horizontal_flip=0.5, vertical_flip=0.5, crop_padding=2, rotation=20, brightness=0, contrast=0, saturation=0, hue=0
)], ids=["flip", "augment"])  # fmt: skip
def test_source_and_target_are_moved_alike(storage, augment):
    values = ToyDataset().values
    pairs = ArrayDataset("pairs", np.concatenate([values, 255 - values], axis=1))  # a target is its source's negative
    settings = {"flip": augment is None, "augment": augment, "task": Pair(source_channels=3)}
    moved = take(place(pairs, storage, **settings), 5)
    assert torch.allclose(moved["source"], -moved["target"], atol=1e-6)
    still = take(place(pairs, storage, flip=False, task=Pair(source_channels=3)), 5)
    same = (moved["source"] == still["source"]).flatten(1).all(dim=1)
    assert not same.all()
    assert augment or 5 <= same.sum() <= 15  # about half are mirrored


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_examples_are_a_function_of_seed_and_index(task, storage):
    source = ToyDataset()
    data = place(source, storage, flip=True, task=task)
    together = data.examples(np.arange(10), 3)
    assert_equal(together, task(to_float(torch.from_numpy(source.values)), np.arange(10), 3))
    for indices in ([7], [7, 0], [2, 7, 7, 1]):
        assert_equal(data.examples(np.array(indices), 3), {key: value[indices] for key, value in together.items()})
    take(data, 3)
    assert_equal(data.examples(np.arange(10), 3), together)
    other = data.examples(np.arange(10), 4)
    assert torch.equal(other["source"], together["source"]) == isinstance(task, Pair)
    assert torch.equal(other["target"], together["target"])


@pytest.mark.parametrize("storage", PLACED)
@pytest.mark.parametrize("keys", [("image",), ("image", "label"), ("image", "caption"), ("image", "label", "caption")])
def test_examples_without_a_task_are_the_images_and_what_the_batches_have_beside_them(storage, keys):
    source = ToyDataset()
    data = place(source, storage, flip=True, keys=keys)
    for _ in range(2):
        batch = data.examples(np.array([3, 1, 6]), 0)
        assert set(batch) == set(keys)
        assert torch.equal(batch["image"], to_float(torch.from_numpy(source.values[[3, 1, 6]])))
        if "label" in keys:
            assert batch["label"].tolist() == [3, 1, 6]
            assert batch["label"].dtype == torch.int64
        if "caption" in keys:
            assert batch["caption"].shape == (3, data.caption_length)
            assert decode(batch["caption"]) == [source.caption(3), source.caption(1), ""]
        take(data, 1)


def test_examples_of_kept_out_images_have_labels_and_captions_of_their_own():
    source = ToyDataset()
    source.validation = ToyDataset(4)
    source.validation.labels = np.array([9, 8, 7, 6])
    batch = place(source, "host").validation.examples(np.array([3, 1]), 0)
    assert batch["label"].tolist() == [6, 8]
    assert decode(batch["caption"]) == [source.validation.caption(3), source.validation.caption(1)]


@pytest.mark.parametrize("storage", PLACED)
def test_conditions_are_given_also_where_batches_are_without_them(storage):
    source = ToyDataset()
    data = place(source, storage, keys=("image",))
    indices = np.array([5, 0, 5])
    assert data.conditions(indices, ("image",)) == {}
    found = data.conditions(indices, ("label", "image", "caption"))
    assert found["label"].tolist() == [5, 0, 5]
    assert decode(found["caption"]) == [source.caption(5), "", source.caption(5)]
    assert data.conditions(np.array([], dtype=np.int64), ("label",))["label"].shape == (0,)


@pytest.mark.parametrize("storage", PLACED)
def test_conditions_of_an_image_that_took_a_corrupt_ones_place_are_its_own(storage):
    data = place(ToyDataset(corrupt=(3,)), storage, max_corrupt=1)
    data.load()
    batch = data.examples(np.array([3, 2]), 0)
    assert torch.equal(batch["image"], to_float(torch.from_numpy(data.source.values[[4, 2]])))
    assert batch["label"].tolist() == [4, 2]
    assert decode(batch["caption"]) == [data.source.caption(4), data.source.caption(2)]


@pytest.mark.parametrize("task", [None, TASKS[1]])
def test_images_that_were_kept_out_have_the_task_and_are_never_moved(task):
    source = ToyDataset()
    assert place(source, "device", task=task).validation is None
    source.validation = ToyDataset(4)
    held_out = place(source, "host", flip=True, task=task).validation
    assert held_out.source is source.validation
    assert held_out.storage == "host"
    assert held_out.task is task
    assert not held_out.horizontal_flip
    assert place(source, "device", flip=False, augment=AUGMENT, task=task).validation.augment is None


# Unpaired domains


def gradients(count: int, start: int) -> ArrayDataset:
    """Image i has the level start + i on the left and 255 on the right; with labels and captions, which nobody asks for."""
    images = np.full((count, 3, 4, 6), 255, dtype=np.uint8)
    images[..., :3] = np.arange(start, start + count)[:, None, None, None]
    labels = np.zeros(count, dtype=np.int64)
    return ArrayDataset(f"gradients {start}", images, labels, ("one",), ["a caption"] * count)


class Decoded(ImageDataset):
    """The same, decoded when read."""

    def __init__(self, source: ArrayDataset) -> None:
        self._source = source
        self.name, self.shape, self.labels, self.class_names = source.name, source.shape, source.labels, source.class_names
        self.captioned, self.fingerprint = True, source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> np.ndarray:
        return self._source.images[index]

    def caption(self, index: int) -> str | None:
        return self._source.caption(index)


def unpaired(
    counts: tuple[int, int] = (10, 4),
    storage: str = "device",
    *,
    flip: bool = True,
    augment: SampleAugment | None = None,
    num_workers: int = 0,
) -> UnpairedImageLoader:
    source = UnpairedDataset(Decoded(gradients(counts[0], 0)), Decoded(gradients(counts[1], 100)))
    return UnpairedImageLoader(source, augment=augment, storage=storage, num_workers=num_workers, horizontal_flip=flip,
                        max_corrupt=0, device=torch.device("cpu"))  # fmt: skip


def numbers_of(images: torch.Tensor, start: int) -> list[int]:
    levels = images.amin(dim=(1, 2, 3)).add(1).mul(127.5).round().int() - start
    return levels.tolist()


def test_each_domain_has_an_order_of_its_own_and_the_smaller_one_begins_again():
    batch = take(unpaired(), 10)  # 40 positions: four epochs of a, ten of b
    assert tuple(batch) == ("a", "b")
    a, b = numbers_of(batch["a"], 0), numbers_of(batch["b"], 100)
    epochs_a, epochs_b = [a[i : i + 10] for i in range(0, 40, 10)], [b[i : i + 4] for i in range(0, 40, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs_a)
    assert all(sorted(epoch) == list(range(4)) for epoch in epochs_b)
    for epoch in range(4):  # every image of the smaller domain is met several times in one of the larger
        met = np.bincount(b[10 * epoch : 10 * epoch + 10], minlength=4)
        assert met.min() >= 2
        assert met.max() <= 3
    assert len({tuple(epoch) for epoch in epochs_a}) == 4
    assert len({tuple(epoch) for epoch in epochs_b}) > 3


@pytest.mark.parametrize("counts", [(10, 10), (10, 5), (5, 10)])
def test_pairs_differ_between_epochs_and_from_the_files_order(counts):
    batch = take(unpaired(counts), 10)
    pairs = list(zip(numbers_of(batch["a"], 0), numbers_of(batch["b"], 100), strict=True))
    epochs = [frozenset(pairs[i : i + 10]) for i in range(0, 40, 10)]
    assert len(set(epochs)) == 4
    assert len(set(pairs)) > 2 * max(counts)
    if counts[0] == counts[1]:
        assert all(any(a != b for a, b in epoch) for epoch in epochs)


@pytest.mark.parametrize(("storage", "num_workers"), FOUND)
@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_unpaired_batches_depend_on_the_position_alone(storage, num_workers, augment):
    reference = take(unpaired(flip=augment is None, augment=augment), 7)
    data = unpaired(storage=storage, num_workers=num_workers, flip=augment is None, augment=augment)
    assert_equal(take(data, 7), reference)
    for start in (3, 8):
        assert_equal(take(data, 4, position=start), {key: value[start : start + 16] for key, value in reference.items()})
    ranks = [take(data, 5, position=4, rank=rank, world_size=2) for rank in range(2)]
    for key, value in reference.items():
        joined = torch.cat([batch[key].unflatten(0, (5, -1)) for batch in ranks], dim=1).flatten(0, 1)
        assert torch.equal(joined, value[4:24])
        assert value.is_contiguous(memory_format=torch.channels_last)


def test_each_domain_is_mirrored_by_chances_of_its_own():
    batch = take(unpaired(), 50)
    mirrored = {key: images[:, 0, 0, 0] == 1.0 for key, images in batch.items()}  # 255 is on the left
    counts = torch.bincount(mirrored["a"] * 2 + mirrored["b"] * 1, minlength=4)
    assert counts.sum() == 200
    assert counts.min() >= 30  # 50 of each on average, with a deviation of 6
    still = take(unpaired(flip=False), 50)
    assert all((images[:, 0, 0, 0] < 1.0).all() for images in still.values())


def test_augmentation_takes_other_chances_in_each_domain():
    images = ToyDataset().values
    source = UnpairedDataset(ArrayDataset("a", images[:1]), ArrayDataset("b", images[:1]))
    data = UnpairedImageLoader(source, augment=AUGMENT, storage="device", num_workers=0, horizontal_flip=False, max_corrupt=0,
                        device=torch.device("cpu"))  # fmt: skip
    batch = take(data, 5)
    assert not (batch["a"] == batch["b"]).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("storage", PLACED)
def test_examples_of_unpaired_data_are_the_items_of_the_source(storage):
    data = unpaired(storage=storage)
    for _ in range(2):
        batch = data.examples(np.array([9, 0, 4]), 0)
        assert tuple(batch) == ("a", "b")
        assert numbers_of(batch["a"], 0) == [9, 0, 4]
        assert numbers_of(batch["b"], 100) == [1, 0, 0]
        assert all((images[:, 0, 0, 0] < 1.0).all() for images in batch.values())
        take(data, 1)


def test_unpaired_images_that_were_kept_out_come_with_both_domains():
    source = UnpairedDataset(gradients(10, 0), gradients(4, 100))
    source.validation = UnpairedDataset(gradients(3, 50), gradients(2, 150))
    data = UnpairedImageLoader(source, augment=None, storage="device", num_workers=0, horizontal_flip=True, max_corrupt=0,
                        device=torch.device("cpu"))  # fmt: skip
    batch = data.validation.examples(np.arange(3), 0)
    assert numbers_of(batch["a"], 50) == [0, 1, 2]
    assert numbers_of(batch["b"], 150) == [0, 1, 0]


def test_mirroring_unpaired_images_twice_is_refused():
    with raises(ConfigError, "horizontal_flip=true"):
        unpaired(flip=True, augment=AUGMENT)


# Settings


def test_unknown_placement_is_refused():
    with raises(ConfigError, "storage=disk"):
        place(ToyDataset(), "disk")


@pytest.mark.parametrize("num_workers", [-1, "many", 1.5, None])
def test_a_number_of_workers_that_is_none_is_refused(num_workers):
    with raises(ConfigError, f"num_workers={num_workers}"):
        place(ToyDataset(), "workers", num_workers=num_workers)


def test_auto_workers_are_between_one_and_eight():
    assert 1 <= place(ToyDataset(), "workers", num_workers="auto").num_workers <= 8


class HugeDataset(ToyDataset):
    captioned = False

    def __len__(self) -> int:
        return 10**9


def test_auto_keeps_small_data_on_the_device_and_streams_what_is_too_large():
    assert place(ToyDataset(), "auto").storage == "device"
    assert place(HugeDataset(), "auto").storage == "workers"


def test_auto_leaves_scarce_memory_to_training(monkeypatch):
    monkeypatch.setattr("genimg.data.loader._available_memory", lambda: 1000)
    source = ToyDataset()
    assert place(source, "auto").storage == "workers"
    assert place(ArrayDataset("toy", source.values, source.labels), "auto").storage == "host"


def test_a_program_ends_although_nobody_closes_its_stream():
    program = """
import numpy as np, torch
from genimg.data.datasets.builtin import ArrayDataset
from genimg.data.loader import ImageLoader

source = ArrayDataset("noise", np.zeros((16, 3, 8, 8), np.uint8))
settings = dict(horizontal_flip=False, max_corrupt=0, device=torch.device("cpu"))
stream = ImageLoader(source, storage="workers", num_workers=1, **settings).batches(0, batch_size=4, seed=0)
print(next(stream)["image"].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "torch.Size([4, 3, 8, 8])\n", "")
