"""A pool of generated images, so a discriminator also sees older ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.types import height_width
from genimg.utils.distributed import all_gather_equal_rows, rank


class ImagePool(nn.Module):
    """A mix of new and older images: Shrivastava et al. 2017, section 2.3, as in CycleGAN (Zhu et al. 2017, section 4).

    Images are added one by one. Until the pool is full, each image is stored and returned. Afterwards, each image is returned
    with probability 1/2; otherwise it replaces a random image of the pool, which is returned instead. All state is in buffers
    on the device, so a checkpoint holds the pool and nothing waits. Every rank stores the images of all ranks, so all pools are
    equal.

    Args:
        size: Number of stored images, 50 in the paper; 0 returns images unchanged.
        channels: Number of channels of the images.
        image_size: Side in pixels, or [height, width].

    Raises:
        ValueError: If ``size`` is negative.
    """

    def __init__(self, *, size: int, channels: int, image_size: int | Sequence[int]) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"size={size} must be 0 images or more")
        self.size = size
        self.images: Tensor
        self.count: Tensor
        self.register_buffer("images", torch.zeros(size, channels, *height_width(image_size)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the images to use in place of ``images`` [N, C, H, W]: the same shape and type, without a graph."""
        if self.size == 0:
            return images.detach()
        device, count = images.device, len(images)
        chances = [(torch.randint(self.size, (1,), device=device), torch.rand((), device=device)) for _ in range(count)]
        slots, coins = (torch.stack(each) for each in zip(*chances, strict=True))
        everyone = [all_gather_equal_rows(each) for each in (images.detach(), slots, coins)]
        shown = [self._exchange(image[None], slot, coin) for image, slot, coin in zip(*everyone, strict=True)]
        return torch.cat(shown[rank() * count : (rank() + 1) * count])

    def _exchange(self, image: Tensor, random: Tensor, coin: Tensor) -> Tensor:
        """Exchange an image [1, C, H, W] for another, given a random slot [1] and a random number in [0, 1)."""
        full = self.count >= self.size
        slot = torch.where(full, random, self.count)
        old = self.images.index_select(0, slot)
        swap = full & (coin < 0.5)
        self.images.index_copy_(0, slot, torch.where(full & ~swap, old, image.to(old.dtype)))
        self.count.add_(~full)
        return torch.where(swap, old.to(image.dtype), image)
