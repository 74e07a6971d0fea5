"""Randomness as a pure function of (seed, stream, position), so resuming needs no saved RNG state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BEHIND_THE_SEED, _UNNUMBERED = 100, 200  # the first members of ``Stream`` that are hashed differently
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """The purpose of a random number. Different purposes never share the numbers of a seed.

    Each comment describes the random quantity and, after the colon, its position. The seed is that of the training run, the
    evaluation or the command unless the comment says otherwise.

    A stream's number decides how it enters the hash. Below 100, the number is hashed before the seed. From 100 to 199, the
    number minus 100 is hashed after the seed. From 200 on, it is not hashed: these streams differ in the form of positions or
    the kind of generator that they seed. Results depend on the numbers, so never change one or reuse that of a removed stream.
    """

    PREVIEW = 1  # the seed of everything random in the preview pictures: no position
    LATENT = 2  # latents of generated samples: sample
    CONDITION = 3  # labels or captions of generated samples: sample
    DOMAIN = 5  # the seed of the order of one domain of unpaired images: domain
    TRANSLATION = 7  # the seed of everything random in the evaluation of a translator: no position
    BLOCK = 8  # torch's random numbers outside training steps, such as dropout's: number chosen by the caller
    CONTENT = 9  # noise that depends only on an image's pixels, without a seed: place in the image
    CODE = 10  # numbers with which a VQ-VAE's prior draws the codes of a generated sample: sample
    COMPONENT = 11  # mixture component of a generated sample's latent: sample
    KMEANS_START = 12  # first centres of k-means, without a seed: cluster
    LIKELIHOOD = 13  # latents of a likelihood's importance samples: image
    SUBSET = 14  # images chosen from a dataset, with the choice's own seed: image
    SUBSET_TIE = 15  # which class gets one more image when shares are rounded, with the choice's own seed: class
    PIXEL_NOISE = 21  # noise added inside a generator, such as StyleGAN2's: sample
    BOOTSTRAP = 22  # generated images in a bootstrap resample: no position
    DENOISING = 23  # times, noise and dropped conditions of diffusion training: sample
    DENOISING_ERROR = 24  # noise in the evaluation of a diffusion model's loss: image, level
    TRANSLATION_NOISE = 31  # noise of a random translation: image, which translation of it
    PROJECTION = 32  # starts and perturbations of a projection into a generator's latents: digest of the image
    PATH_POSITION = 33  # positions on ways through a generator's latents, whose lengths are measured: way

    SAMPLE_AUGMENT = 102  # random augmentation of training images (``augment``): operation, sample
    DEGRADATION = 106  # noise and blur that tasks add to images: which number, sample
    MASK = 107  # holes of inpainting: which number, (box, stroke or leg,) sample

    STEP = 200  # torch's random numbers in a training step: step(, microbatch other than the first)
    EPOCH_ORDER = 201  # order of the images of an epoch: epoch
    FLIP = 202  # whether a training image is mirrored (``data.horizontal_flip``): sample, 1
    DRAWN_SHAPES = 203  # content of the ``shapes`` dataset, with the dataset's own seed: image, object, attribute
    WORD_HASH = 204  # factors of the hash of words, seeded with the number of the table: hash, byte or place


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[1]
    return x ^ (x >> np.uint64(31))


def hash_integers(*keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of a tuple of integers; array arguments broadcast."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _splitmix64(state ^ np.asarray(key, dtype=np.int64).astype(np.uint64))
    return state


def keys_of(seed: int | None, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits that depend only on the arguments; arrays broadcast.

    Args:
        seed: Any integer; None for a stream that is the same in every run.
        stream: Purpose of the bits.
        position: Integers, or arrays of integers, that select numbers of the stream.

        Returns:
            The bits, uint64, in the common shape of the positions ([1] if none is an array), for direct use or as keys of
            ``uniform_field`` and ``normal_field``.
    """
    number = int(stream)
    if seed is None:
        assert number < _BEHIND_THE_SEED
        return hash_integers(number, *position)
    if number < _BEHIND_THE_SEED:
        return hash_integers(number, seed, *position)
    if number < _UNNUMBERED:
        return hash_integers(seed, number - _BEHIND_THE_SEED, *position)
    return hash_integers(seed, *position)


def subkeys(keys: NDArray[np.uint64], numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a key for every pair of a key [N] and a number [M]: [N * M], grouped by key."""
    return hash_integers(keys.view(np.int64)[:, None], numbers[None]).ravel()


def uniform(seed: int | None, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return numbers uniform in [0, 1), derived from ``keys_of`` with the same arguments."""
    return (keys_of(seed, stream, *position) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(seed: int, stream: Stream, *position: int) -> int:
    """Return a seed for ``torch.manual_seed`` or further streams, derived from ``keys_of`` with the same arguments."""
    return int(keys_of(seed, stream, *position)[0] >> np.uint64(1))


@contextmanager
def steady(seed: int, position: int) -> Iterator[None]:
    """Make torch's random numbers, such as dropout's, a function of (seed, position) in the block; restore the state after."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed_of(seed, Stream.BLOCK, position))
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of a device as ``torch.manual_seed`` does, which takes a hundred times as long."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed) if device.index is None else torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def normal_latents(seed: int, indices: Sequence[int], latent_dim: int) -> Tensor:
    """Return standard normal latents [N, Z] on the CPU; row i depends only on (seed, indices[i])."""
    generator = torch.Generator()
    seeds = (seed_of(seed, Stream.LATENT, index) for index in indices)
    rows = [torch.randn(latent_dim, generator=generator.manual_seed(each)) for each in seeds]
    return torch.stack(rows)


def _bits(keys: Tensor, count: int) -> Tensor:
    """Generate 64-bit random integers, int64 [N, count]: the first outputs of SplitMix64 seeded with each key.

    The arithmetic wraps as for unsigned integers. Keys must be well mixed, as from ``keys_of``; similar keys would give shifts
    of one sequence.
    """
    counter = torch.arange(1, count + 1, device=keys.device)
    return _mixed_(keys[:, None] + _signed(_GOLDEN) * counter)


def _mixed_(x: Tensor) -> Tensor:
    """Apply the finaliser of ``_splitmix64`` in place."""
    x = x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(_FACTORS[0]))
    x = x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(_FACTORS[1]))
    return x.bitwise_xor_(_shifted(x, 31))


def content_uniform(images: Tensor) -> Tensor:
    r"""Return numbers uniform in [0, 1), float32, for images [N, \*shape] in [-1, 1]; row i depends only on image i.

    An image's 8-bit levels are hashed to a key by a wrapping sum with random odd weights, and then SplitMix64.
    """
    levels = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).long().flatten(1)
    sums = (levels * _content_weights(levels.shape[1], levels.device)).sum(dim=1)
    return uniform_numbers(_mixed_(sums + _signed(_GOLDEN)), images.shape[1:])


@lru_cache(maxsize=8)
def _content_weights(count: int, device: torch.device) -> Tensor:
    weights = keys_of(None, Stream.CONTENT, np.arange(count, dtype=np.int64)) | np.uint64(1)
    return torch.from_numpy(weights.view(np.int64)).to(device)


def uniform_field(keys: NDArray[np.uint64], shape: Sequence[int], device: torch.device) -> Tensor:
    r"""Return 24-bit numbers uniform in [0, 1), float32 [N, \*shape]; row i depends only on ``keys[i]`` and the shape."""
    return uniform_numbers(torch.from_numpy(keys.view(np.int64)).to(device, non_blocking=True), shape)


def uniform_numbers(keys: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Return ``uniform_field`` for keys, int64 [N], that are already on the device: float32 [N, \*shape]."""
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    numbers = torch.cat([_shifted(bits, 40), _shifted(bits, 16) & 0xFFFFFF], dim=1)[:, :count]
    return numbers.float().mul_(2.0**-24).view(len(keys), *shape)


def normal_field(keys: NDArray[np.uint64], shape: Sequence[int], device: torch.device) -> Tensor:
    r"""Return standard normal numbers, float32 [N, \*shape]; row i depends only on ``keys[i]`` and the shape.

    Box & Muller 1958, with 32 bits for the radius and 32 for the angle; no number is above 6.7. Devices differ only in the
    rounding of logarithms and cosines.
    """
    return normal_numbers(torch.from_numpy(keys.view(np.int64)).to(device, non_blocking=True), shape)


def mixed_keys(keys: Tensor, *numbers: int) -> Tensor:
    """Return keys, int64 [N], for another purpose; each depends only on ``keys[i]`` and the numbers."""
    for number in numbers:
        keys = _mixed_(keys ^ _signed(hash_integers(number)[0]))
    return keys


def normal_numbers(keys: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Return ``normal_field`` for keys, int64 [N], that are already on the device: float32 [N, \*shape]."""
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    radius = ((_shifted(bits, 32) + 1).float() * 2.0**-32).log_().mul_(-2.0).sqrt_()  # log of a number in (0, 1]
    angle = (bits & 0xFFFFFFFF).float() * (2.0 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].view(len(keys), *shape)


def _signed(number: np.uint64) -> int:
    """Return the same 64 bits as a signed integer, because torch cannot multiply unsigned ones."""
    return int(number.astype(np.int64))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return x >> bits with zeros shifted in, as for unsigned integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
