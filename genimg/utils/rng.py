"""Randomness as a pure function of (seed, stream, position), so that nothing about it has to be saved to resume."""

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

_BEHIND_THE_SEED, _UNNUMBERED = 100, 200  # the first members of ``Stream`` that are hashed in another way
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What a random number is for; two streams give different numbers for the same seed and position.

    The seed is the run's (of the training, the evaluation or the command) unless the comment says otherwise. After the colon
    stands the position. The hundreds digit says how the number enters the hash: below 100 it comes before the seed; from 100
    to 199 it comes after the seed, without the hundred; from 200 on it is not hashed, because the seed comes first and the
    positions tell these streams apart. Results depend on these numbers: never change one, never use a removed one again.
    """

    PREVIEW = 1  # the seed of everything random in the preview pictures: no position
    LATENT = 2  # latents of generated samples: sample
    CONDITION = 3  # labels or captions of generated samples: sample
    DOMAIN = 5  # the seed of the order of one domain of unpaired images: domain
    TRANSLATION = 7  # the seed of everything random in the evaluation of a translator: no position
    BLOCK = 8  # torch's own random numbers outside of training steps, such as dropout's: number chosen by the caller
    CONTENT = 9  # noise that depends on an image's pixels alone, without a seed: place in the image
    CODE = 10  # numbers that a VQ-VAE's prior draws the codes of a generated sample with: sample
    COMPONENT = 11  # component of a mixture of Gaussians that a generated sample's latent comes from: sample
    KMEANS_START = 12  # first centres of k-means, without a seed: cluster
    LIKELIHOOD = 13  # latents of a likelihood's importance samples: image
    SUBSET = 14  # images chosen from a dataset, of the choice's own seed: image
    SUBSET_TIE = 15  # which class gets one more image when shares are rounded, of the choice's own seed: class
    PIXEL_NOISE = 21  # noise added inside a generator, such as StyleGAN2's: sample
    BOOTSTRAP = 22  # the generated images that a resample holds: no position

    SAMPLE_AUGMENT = 102  # random changes to training images (``data_augment``): which change, sample
    DEGRADATION = 106  # noise and blur that tasks add to images: which number, sample
    MASK = 107  # holes of inpainting: which number, (box, stroke or leg,) sample

    STEP = 200  # torch's random numbers in a training step: step(, microbatch other than the first)
    EPOCH_ORDER = 201  # order of the images of an epoch: epoch
    FLIP = 202  # whether a training image is mirrored (``data.horizontal_flip``): sample, 1
    DRAWN_SHAPES = 203  # content of the ``shapes`` dataset, of the dataset's own seed: image, object, attribute
    WORD_HASH = 204  # factors of the hash of words, with the number of the table for a seed: hash, byte or place


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _FACTORS[0]
    x = (x ^ (x >> np.uint64(27))) * _FACTORS[1]
    return x ^ (x >> np.uint64(31))


def hash_integers(*keys: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A 64-bit hash of a tuple of integers; array arguments broadcast."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _splitmix64(state ^ np.asarray(key, dtype=np.int64).astype(np.uint64))
    return state


def keys_of(seed: int | None, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits that depend on the arguments alone; arrays broadcast.

    Args:
        seed: Any integer; None for a stream that is the same in every run.
        stream: What the bits are for.
        position: Integers, or arrays of them, that say which of the stream's numbers are wanted.

    Returns:
        The bits, uint64, in the common shape of the positions ([1] if none is an array): numbers by themselves, or the keys
        of ``uniform_field`` and ``normal_field``.
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
    """Return a key for every pair of a key [N] and a number [M]: [N * M], those of the first key first."""
    return hash_integers(keys.view(np.int64)[:, None], numbers[None]).ravel()


def uniform(seed: int | None, stream: Stream, *position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return numbers uniform in [0, 1), made of ``keys_of`` the same arguments."""
    return (keys_of(seed, stream, *position) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(seed: int, stream: Stream, *position: int) -> int:
    """Return a seed for ``torch.manual_seed``, or for further streams, made of ``keys_of`` the same arguments."""
    return int(keys_of(seed, stream, *position)[0] >> np.uint64(1))


@contextmanager
def steady(seed: int, position: int) -> Iterator[None]:
    """A block in which torch's random numbers, such as dropout's, are a function of (seed, position); none are used up."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed_of(seed, Stream.BLOCK, position))
        yield


def normal_latents(seed: int, indices: Sequence[int], latent_dim: int) -> Tensor:
    """Return standard normal latents [N, Z] on the CPU; row i is a function of (seed, indices[i]) alone."""
    generator = torch.Generator()
    seeds = (seed_of(seed, Stream.LATENT, index) for index in indices)
    rows = [torch.randn(latent_dim, generator=generator.manual_seed(each)) for each in seeds]
    return torch.stack(rows)


def bits_field(keys: NDArray[np.uint64], count: int, device: torch.device) -> Tensor:
    """64 random bits each, int64 [N, count], made on the device; row i is a function of ``keys[i]`` alone.

    The first outputs of SplitMix64 seeded with the key, in arithmetic that wraps as that of unsigned integers does.

    Args:
        keys: [N], well mixed, as ``keys_of`` makes them: near keys would give shifts of one sequence.
    """
    return _bits(torch.from_numpy(keys.view(np.int64)).to(device, non_blocking=True), count)


def _bits(keys: Tensor, count: int) -> Tensor:
    counter = torch.arange(1, count + 1, device=keys.device)
    return _mixed_(keys[:, None] + _signed(_GOLDEN) * counter)


def _mixed_(x: Tensor) -> Tensor:
    """The finaliser of ``_splitmix64``, in place."""
    x = x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(_FACTORS[0]))
    x = x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(_FACTORS[1]))
    return x.bitwise_xor_(_shifted(x, 31))


def content_uniform(images: Tensor) -> Tensor:
    r"""Numbers uniform in [0, 1) for images [N, \*shape] in [-1, 1], float32; row i is a function of image i's levels alone.

    The levels (of 8 bits) are hashed to a key: a sum with random odd weights that wraps, then SplitMix64.
    """
    levels = images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).long().flatten(1)
    sums = (levels * _content_weights(levels.shape[1], levels.device)).sum(dim=1)
    return _uniform(_mixed_(sums + _signed(_GOLDEN)), images.shape[1:])


@lru_cache(maxsize=8)
def _content_weights(count: int, device: torch.device) -> Tensor:
    weights = keys_of(None, Stream.CONTENT, np.arange(count, dtype=np.int64)) | np.uint64(1)
    return torch.from_numpy(weights.view(np.int64)).to(device)


def uniform_field(keys: NDArray[np.uint64], shape: Sequence[int], device: torch.device) -> Tensor:
    r"""Numbers uniform in [0, 1), float32 [N, \*shape] of 24 bits; row i is a function of ``keys[i]`` and the shape alone."""
    return _uniform(torch.from_numpy(keys.view(np.int64)).to(device, non_blocking=True), shape)


def _uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    numbers = torch.cat([_shifted(bits, 40), _shifted(bits, 16) & 0xFFFFFF], dim=1)[:, :count]
    return numbers.float().mul_(2.0**-24).view(len(keys), *shape)


def normal_field(keys: NDArray[np.uint64], shape: Sequence[int], device: torch.device) -> Tensor:
    r"""Standard normal numbers, float32 [N, \*shape]; row i is a function of ``keys[i]`` and the shape alone.

    Box & Muller 1958, from 32 bits for the radius and 32 for the angle; no number is above 6.7. Equal to a rounding of their
    logarithms and cosines on every device.
    """
    return normal_numbers(torch.from_numpy(keys.view(np.int64)).to(device, non_blocking=True), shape)


def mixed_keys(keys: Tensor, *numbers: int) -> Tensor:
    """Return keys, int64 [N], for another purpose; each is a function of ``keys[i]`` and the numbers alone."""
    for number in numbers:
        keys = _mixed_(keys ^ _signed(hash_integers(number)[0]))
    return keys


def normal_numbers(keys: Tensor, shape: Sequence[int]) -> Tensor:
    r"""``normal_field`` of keys, int64 [N], that lie on their device: float32 [N, \*shape]."""
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    radius = ((_shifted(bits, 32) + 1).float() * 2.0**-32).log_().mul_(-2.0).sqrt_()  # of a number in (0, 1]
    angle = (bits & 0xFFFFFFFF).float() * (2.0 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].view(len(keys), *shape)


def _signed(number: np.uint64) -> int:
    """The same 64 bits as a signed integer: torch multiplies no unsigned ones."""
    return int(number.astype(np.int64))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits, with zeros moving in from the left as in unsigned integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
