"""Pictures of a model during training, always of the same data and the same random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.data.loader import ImageLoader
from genimg.data.sampler import InfiniteSampler
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Translates
from genimg.types import Batch
from genimg.utils.rng import Stream, seed_of, steady


def preview(
    method: Method, data: ImageLoader, count: int, *, seed: int, device: torch.device, with_data: bool
) -> dict[str, Tensor]:
    """Return a method's pictures by name: see ``Method.preview``.

    Args:
        method: Method, on its device.
        data: Loader of the training images; pictures of translations use its held-out images, if there are any.
        count: Number of images in each picture.
        seed: Seed of the training.
        device: Device of the method.
        with_data: Whether to add the images themselves, as ``real``.
    """
    data = data.validation or data if isinstance(method, Translates) else data
    order = InfiniteSampler(len(data.source), seed=seed, horizontal_flip=False)
    own_seed = seed_of(seed, Stream.PREVIEW)
    with steady(own_seed, 0):
        batch = data.examples(order.indices(0, min(count, len(data.source))), own_seed)
        drawn: Batch = {}
        if isinstance(method, Generates):
            method.before_sampling()
            drawn = method.draw(range(count), own_seed)
        pictures = method.preview(batch, {key: value.to(device) for key, value in drawn.items()})
    return pictures | ({"real": batch["image"]} if with_data and "image" in batch else {})
