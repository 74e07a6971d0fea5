"""Nearest real images of generated images, to check for memorisation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg.evaluation.extractors.base import Extractor, three_channels
from genimg.evaluation.image_sets import ImageSet
from genimg.utils.images import to_float
from genimg.utils.progress import Progress


def nearest_images(
    real: ImageSet, fake: ImageSet, extractor: Extractor, *, count: int, neighbors: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the nearest real images of the first generated ones, by Euclidean distance between features.

    Args:
        real, fake: Sets of images.
        extractor: Feature extractor, on its device.
        count: Number of generated images.
        neighbors: Number of neighbours.
        batch_size: Batch size of extraction.

    Returns:
        Distances [count, neighbors], indices [count, neighbors] of the real images, and images for a grid, each generated
        image followed by its neighbours, [count * (neighbors + 1), C, H, W] in [-1, 1].
    """
    count, neighbors = min(count, len(fake)), min(neighbors, len(real))
    parts = [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    made = torch.cat([fake.images(part)[0] for part in parts])
    fake.check()
    queries = torch.cat([extractor(batch)[0].float() for batch in made.split(batch_size)])
    distances = torch.full((count, neighbors), torch.inf, device=queries.device)
    indices = torch.full((count, neighbors), -1, dtype=torch.int64, device=queries.device)
    with Progress(total=len(real), desc="searching the real images", unit="image", leave=False) as bar:
        for start in range(0, len(real), batch_size):
            numbers = np.arange(start, min(start + batch_size, len(real)))
            features = extractor(real.images(numbers)[0])[0].float()
            found = torch.cdist(queries, features, compute_mode="donot_use_mm_for_euclid_dist")
            own = torch.from_numpy(numbers).to(indices.device).expand(count, -1)
            candidates = torch.cat([distances, found], dim=1)
            distances, order = candidates.topk(neighbors, dim=1, largest=False)
            indices = torch.cat([indices, own], dim=1).gather(1, order)
            bar.update(len(numbers))
    shown = real.images(indices.flatten().cpu().numpy())[0]
    channels = max(shown.shape[1], made.shape[1])
    originals = _as_shown(made, channels, tuple(shown.shape[2:]))
    matches = _as_shown(shown, channels, tuple(shown.shape[2:])).unflatten(0, (count, neighbors))
    return distances.cpu(), indices.cpu(), torch.cat([originals[:, None], matches], dim=1).flatten(0, 1)


def _as_shown(images: Tensor, channels: int, size: tuple[int, ...]) -> Tensor:
    """Convert images to a common size and number of channels, for display only."""
    values = to_float(images if images.shape[1] == channels else three_channels(images)).cpu()
    return values if tuple(values.shape[2:]) == size else F.interpolate(values, size=size, mode="nearest")
