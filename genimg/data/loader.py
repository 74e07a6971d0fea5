"""Storage of training samples: on the device, in host memory, or decoded by workers when needed.

All three give the same batches. Samples stay uint8 until they are on the device.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genimg.data.captions import caption_length, encode
from genimg.data.corrupt import Corruption, read_many_valid
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.datasets.prepared import PreparedDataset
from genimg.data.datasets.unpaired import UnpairedDataset
from genimg.data.packed_files import NOISE
from genimg.data.prefetch import prefetch
from genimg.data.sampler import InfiniteSampler
from genimg.data.split import Subset
from genimg.data.tasks.base import Task
from genimg.data.transforms import SampleAugment
from genimg.errors import ConfigError, DataError
from genimg.types import Batch
from genimg.utils.environment import num_cores
from genimg.utils.images import to_float
from genimg.utils.progress import Progress
from genimg.utils.rng import Stream, keys_of, seed_of
from genimg.utils.terminal import stop_signals
from genimg.utils.torchrun import processes_of_this_host

NOISE_KEY = "noise_key"
"""Key of the batches for random keys, int64 [N]; each is a function of the seed and the sample's position in the training."""

STORAGES = ("auto", "device", "host", "workers")
_RESIDENT_BYTES = 4 * 2**30  # above this size, decoding all images before the first step would take minutes
_PIECE = 64  # images per task of a thread
_MEMORY_SHARE = 0.25  # share of the free memory for images; the rest is for training

_Batches = Generator[tuple[Batch, list[str]], None, None]
"""Batches as they were read, with the errors of corrupt images."""


class ImageLoader:
    """Loads a dataset: an infinite stream of training batches, and unmodified images for evaluation.

    Args:
        source: Dataset.
        storage: ``auto``, ``device``, ``host`` or ``workers``.
        num_workers: Number of decoding processes, for ``workers``; ``auto`` uses one per core, at most eight.
        horizontal_flip: Whether to mirror a random half of the training samples.
        max_corrupt: Number of undecodable images to skip with a warning before the run stops; None if none may be skipped.
        device: Device of the batches.
        keys: Keys of the batches: ``image``, and ``label``, ``caption``, ``noise_key`` and the dataset's ``latent_key`` if the
            method needs them. Latents, and noise from which images were generated, belong to images without augmentation.
        augment: Augmentation of training samples; None for no augmentation.
        task: Task that makes sources and targets from images; None for no task.

    Attributes:
        caption_length: Length of the batches' captions in bytes; 0 without captions.
        validation: Loader of the held-out images; None if there are none.
    """

    def __init__(
        self,
        source: ImageDataset,
        *,
        storage: str,
        num_workers: int | str,
        horizontal_flip: bool,
        max_corrupt: int | None,
        device: torch.device,
        keys: Sequence[str] = ("image",),
        augment: SampleAugment | None = None,
        task: Task | None = None,
    ) -> None:
        if storage not in STORAGES:
            raise ConfigError(f"storage={storage} is unknown: choose one of {', '.join(STORAGES)}")
        if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
            raise ConfigError(f"num_workers={num_workers} must be auto, or 0 or more processes")
        if not isinstance(horizontal_flip, bool):
            raise ConfigError(f"horizontal_flip={horizontal_flip} must be true or false")
        if max_corrupt is not None and (not isinstance(max_corrupt, int) or max_corrupt < 0):
            raise ConfigError(f"max_corrupt={max_corrupt} must be 0 or more images")
        available = (*available_keys(source), NOISE_KEY)
        if "image" not in keys or not set(keys) <= set(available):
            raise DataError(f"{source.name} cannot provide {', '.join(keys)}: it has {', '.join(available)}")
        if augment is not None:
            augment.check(source.shape)
            if horizontal_flip and augment.horizontal_flip:
                raise ConfigError(
                    "horizontal_flip=true mirrors images, and so does the augmentation, with a probability of "
                    f"{augment.horizontal_flip}: switch one of them off"
                )
        self._latent_key = source.latent_key if source.latent_key in keys else None
        if self._latent_key is not None and (horizontal_flip or augment is not None):
            what = "the noise that they were generated from" if self._latent_key == NOISE else "their packed latents"
            raise ConfigError(f"horizontal_flip=true and augmentation change images, so {what} cannot be used: switch them off")
        self.source = source
        self.device = device
        self.horizontal_flip = horizontal_flip
        self.keys = tuple(keys)
        self.augment = augment
        self.task = task
        self.validation = None if source.validation is None else ImageLoader(
            source.validation, storage=storage, num_workers=num_workers, horizontal_flip=False, max_corrupt=max_corrupt,
            device=device, keys=keys, task=task,
        )  # fmt: skip
        cores = max(1, num_cores() // processes_of_this_host())
        self.num_workers = min(cores, 8) if num_workers == "auto" else int(num_workers)
        self.storage = _choose_storage(source, device, self._latent_key is not None) if storage == "auto" else storage
        # Only batches are pinned, not all images: that suffices for asynchronous copies.
        self._pins = self.storage != "device" and device.type == "cuda"
        self._corruption = Corruption(max_corrupt)
        self._replaced: dict[int, int] = {}  # index of a corrupt image -> index of its replacement
        self._resident: Tensor | None = None
        self._annotations: dict[str, Tensor] = {}
        if source.labels is not None:  # always kept, because the replacement of a corrupt image changes its label
            self._annotations["label"] = torch.from_numpy(source.labels)
        self.caption_length = 0
        if "caption" in self.keys:
            texts = source.captions(np.arange(len(source), dtype=np.int64))
            self.caption_length = caption_length(texts)
            if self.storage != "workers":
                self._annotations["caption"] = encode(texts, self.caption_length)

    def batches(
        self, position: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield this rank's share of every batch, without end.

        Close the generator to end the thread or the processes that read ahead.

        Args:
            position: Start, in images seen by all ranks; need not be a multiple of the batch size.
            batch_size: Batch size of all ranks together, a multiple of ``world_size``.
            seed: Seed of the order.
            rank: Rank of this process.
            world_size: Number of processes.
        """
        order = InfiniteSampler(
            len(self.source), seed=seed, horizontal_flip=self.horizontal_flip, locality=self.source.locality
        )
        share = batch_size // world_size
        stream = self._stream(order, position + rank * share, share, batch_size)
        _STREAMS.add(stream)
        return stream

    def images(self, indices: NDArray[np.int64]) -> Tensor:
        """Return images without augmentation: uint8 [N, C, H, W] on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(indices).to(self._resident.device, non_blocking=True)].to(self.device)
        # Threads suffice because Pillow releases the GIL while decoding.
        pieces = np.array_split(indices, max(1, min(len(indices), 4 * self.num_workers)))
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            results = list(pool.map(partial(read_many_valid, self.source, allowed=self._corruption.allowed), pieces))
        for piece, (_, taken, problems) in zip(pieces, results, strict=True):
            self._note(piece, taken)
            self._report(problems)
        return torch.from_numpy(np.concatenate([images for images, _, _ in results])).to(self.device)

    def examples(self, indices: NDArray[np.int64], seed: int) -> Batch:
        """Return a batch of images without augmentation; a task's randomness is a function of (seed, index)."""
        images = to_float(self.images(indices))
        if self.task is not None:
            return self.task(images, indices, seed)
        return {"image": images} | self.conditions(indices, self.keys)

    def conditions(self, indices: NDArray[np.int64], keys: Sequence[str]) -> Batch:
        """Return the images' ``label``, ``caption`` and packed ``noise``, if named in ``keys``, as a batch on the device."""
        batch: Batch = {}
        indices = np.array([self._replaced.get(index, index) for index in indices.tolist()], dtype=np.int64)
        if "label" in keys:
            batch["label"] = self._annotations["label"][torch.from_numpy(indices)].to(self.device)
        if "caption" in keys:
            texts = self.source.captions(indices)
            batch["caption"] = encode(texts, self.caption_length or caption_length(texts)).to(self.device)
        if NOISE in keys and self.source.latent_key == NOISE:
            batch[NOISE] = torch.from_numpy(self.source.latents(indices)).to(self.device)
        return batch

    def _note(self, indices: NDArray[np.int64], taken: NDArray[np.int64]) -> None:
        """Record which images replace corrupt ones."""
        different = indices != taken
        self._replaced.update(zip(indices[different].tolist(), taken[different].tolist(), strict=True))

    def load(self) -> None:
        """Load the images into their storage; do nothing for ``workers`` or if they are loaded.

        Raises:
            DataError: If too many images are corrupt.
        """
        if self.validation is not None:
            self.validation.load()
        if self.storage == "workers" or self._resident is not None:
            return
        if self._latent_key is not None:
            latents = self.source.latents(np.arange(len(self.source), dtype=np.int64))
            self._annotations[self._latent_key] = torch.from_numpy(latents)
        images = torch.from_numpy(self._decode_all())
        self._resident = images.to(self.device) if self.storage == "device" else images

    def _decode_all(self) -> NDArray[np.uint8]:
        if isinstance(self.source, ArrayDataset):
            return self.source.images
        images = np.empty((len(self.source), *self.source.shape), dtype=np.uint8)

        def decode(start: int) -> tuple[int, list[str]]:
            indices = np.arange(start, min(start + _PIECE, len(images)), dtype=np.int64)
            images[indices], taken, problems = read_many_valid(self.source, indices, self._corruption.allowed)
            self._note(indices, taken)
            if (replaced := taken != indices).any():
                for tensor in self._annotations.values():
                    tensor[torch.from_numpy(indices[replaced])] = tensor[torch.from_numpy(taken[replaced])]
            return len(indices), problems

        pool = ThreadPoolExecutor(max(1, self.num_workers))
        progress = Progress(total=len(images), desc=f"loading {self.source.name}", unit="image")
        try:
            for count, problems in pool.map(decode, range(0, len(images), _PIECE)):
                self._report(problems)
                progress.update(count)
        finally:
            progress.close()
            pool.shutdown(cancel_futures=True)  # after too many corrupt images, do not decode the rest
        return images

    def _report(self, problems: list[str]) -> None:
        for problem in problems:
            self._corruption.report(problem)

    def _stream(self, order: InfiniteSampler, start: int, share: int, stride: int) -> Generator[Batch, None, None]:
        ranges = _ranges(start, share, stride)
        batches = self._from_workers(order, ranges) if self.storage == "workers" else self._from_memory(order, ranges)
        if self._pins:
            batches = prefetch(batches, self.device)
        with contextlib.closing(batches):
            for batch, problems in batches:
                self._report(problems)
                yield self._assemble(batch, order, start)
                start += stride

    def _from_memory(self, order: InfiniteSampler, ranges: Iterator[range]) -> _Batches:
        self.load()
        assert self._resident is not None
        device = self._resident.device
        annotations = {key: tensor.to(device) for key, tensor in self._annotations.items() if key in self.keys}
        stored = {"image": self._resident, **annotations}

        def rows(positions: range) -> Batch:
            indices = torch.from_numpy(order.indices(positions.start, positions.stop)).to(device, non_blocking=True)
            return {key: _rows(tensor, indices, pin=self._pins) for key, tensor in stored.items()}

        return ((rows(positions), []) for positions in ranges)

    def _from_workers(self, order: InfiniteSampler, ranges: Iterator[range]) -> _Batches:
        labels = self._annotations["label"] if "label" in self.keys else None
        loader = DataLoader(
            _Positions(self.source, order, labels, self.caption_length, self._corruption.allowed, self._latent_key),
            sampler=ranges,
            batch_size=None,  # the dataset returns whole batches
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=self._pins,
            prefetch_factor=4 if self.num_workers else None,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # the default would draw the workers' seeds from the RNG of the first step
        )
        batches = iter(loader)  # here, because PyTorch reports a killed worker only if the main thread has started it
        return (each for each in batches)

    def _assemble(self, batch: Batch, order: InfiniteSampler, start: int) -> Batch:
        """Return the training batch of the samples from position ``start`` on."""
        batch = {key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()}
        images, stop = batch["image"], start + len(batch["image"])
        if order.horizontal_flip:
            flips = torch.from_numpy(order.flips(start, stop)).to(self.device, non_blocking=True)
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        images = to_float(images)
        positions = np.arange(start, stop, dtype=np.int64)
        if self.augment is not None:
            images = self.augment(images, positions, order.seed)
        keys: Batch = {}
        if NOISE_KEY in self.keys:
            bits = keys_of(order.seed, Stream.DENOISING, positions).view(np.int64)
            keys[NOISE_KEY] = torch.from_numpy(bits).to(self.device, non_blocking=True)
        if self.task is not None:
            return self.task(images, positions, order.seed) | keys
        return {**batch, "image": images.contiguous(memory_format=torch.channels_last)} | keys


class UnpairedImageLoader(ImageLoader):
    """Loads images of two domains, each in its own order; the larger domain defines the length of an epoch.

    Args:
        source: The two domains.
        augment: Augmentation of both domains, with different random numbers in each.
        settings: Settings of ``ImageLoader``.
    """

    def __init__(self, source: UnpairedDataset, *, augment: SampleAugment | None, **settings: Any) -> None:
        super().__init__(source, task=source.task, **settings)
        self.domains = [ImageLoader(domain, augment=augment, **settings) for domain in (source.a, source.b)]

    def load(self) -> None:
        for domain in self.domains:
            domain.load()
        if self.validation is not None:
            self.validation.load()

    def batches(
        self, position: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Generator[Batch, None, None]:
        streams = (
            domain.batches(position, batch_size=batch_size, seed=seed_of(seed, Stream.DOMAIN, number), rank=rank,
                           world_size=world_size)
            for number, domain in enumerate(self.domains)
        )  # fmt: skip
        return ({"a": a["image"], "b": b["image"]} for a, b in zip(*streams, strict=True))


def available_keys(source: ImageDataset) -> tuple[str, ...]:
    """Return the keys that batches of a dataset can have."""
    conditions = (["label"] if source.labels is not None else []) + (["caption"] if source.captioned else [])
    return "image", *conditions, *([source.latent_key] if source.latent_key is not None else [])


_STREAMS: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """End the workers of streams that nobody has closed, before multiprocessing waits for them: they ignore its signals."""
    for stream in list(_STREAMS):
        with contextlib.suppress(ValueError):  # another thread reads from it
            stream.close()


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore stop signals: they reach every process, but only the trainer acts on them, after a last batch."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


class _Positions(Dataset[Any]):
    """Maps the positions of a batch to the batch and the errors of corrupt images."""

    def __init__(
        self,
        source: ImageDataset,
        order: InfiniteSampler,
        labels: Tensor | None,
        caption_length: int,
        allowed: int,
        latent_key: str | None,
    ) -> None:
        self.latent_key = latent_key
        self.source, self.order, self.labels, self.allowed = source, order, labels, allowed
        self.caption_length = caption_length

    def __getitem__(self, positions: range) -> tuple[Batch, list[str]]:
        indices = self.order.indices(positions.start, positions.stop)
        self.source.expect(indices)
        # Too many corrupt images are reported, not raised, so the parent stops the run and no other worker waits.
        images, taken, problems = read_many_valid(self.source, indices, self.allowed)
        batch = {"image": torch.from_numpy(images)}
        if self.labels is not None:
            batch["label"] = self.labels[torch.from_numpy(taken)]
        if self.caption_length:
            batch["caption"] = encode(self.source.captions(taken), self.caption_length)
        if self.latent_key is not None:
            batch[self.latent_key] = torch.from_numpy(self.source.latents(taken))
        return batch, problems


def _ranges(start: int, share: int, stride: int) -> Iterator[range]:
    """Return the positions of each batch, without end."""
    return (range(first, first + share) for first in count(start, stride))


def _rows(tensor: Tensor, indices: Tensor, *, pin: bool) -> Tensor:
    """Return ``tensor[indices]``; from host memory about eight times as fast as by indexing, into pinned memory if ``pin``."""
    if tensor.device.type != "cpu":
        return tensor[indices]
    rows = torch.empty(len(indices), *tensor.shape[1:], dtype=tensor.dtype, pin_memory=pin)
    return torch.index_select(tensor, 0, indices, out=rows)


def _unchanged(batch: Any) -> Any:
    return batch


def _choose_storage(source: ImageDataset, device: torch.device, has_latents: bool) -> str:
    first = source.latents(np.zeros(1, dtype=np.int64)).nbytes if has_latents else 0
    size = len(source) * (int(np.prod(source.shape)) + first)
    source = source.whole if isinstance(source, Subset) else source  # its pixels have the same storage
    if not isinstance(source, ArrayDataset | PreparedDataset) and size > _RESIDENT_BYTES:
        return "workers"
    free = _available_memory() // processes_of_this_host()  # images pass through host memory on the way to a GPU
    if device.type == "cuda":
        on_gpu = torch.cuda.mem_get_info(device)[0]
        free = on_gpu if isinstance(source, ArrayDataset) else min(free, on_gpu)
    if size <= _MEMORY_SHARE * free:
        return "device"
    return "host" if isinstance(source, ArrayDataset) else "workers"


def _available_memory() -> int:
    """Return the bytes of host memory available without swapping, including the page cache."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration):  # Windows and macOS do not have this file
        return _RESIDENT_BYTES
