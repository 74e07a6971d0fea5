"""A pool of generated images, from which a discriminator sees older ones, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genimg.types import height_width
from genimg.utils.distributed import equal_rows_of_all_ranks, rank


class ImagePool(nn.Module):
    """New images and older ones: Shrivastava et al. 2017, section 2.3, in the form of CycleGAN (Zhu et al. 2017, section 4).

    Images go in one by one. Until the pool is full they are kept and shown; then each is shown with probability 1/2, or else it
    takes the place of a random one of the pool, which is shown instead. All of it is in buffers, so that a checkpoint holds the
    pool, and on the device, so that nothing waits. All ranks put all ranks' images into it, so that any rank's is everyone's.

    Args:
        size: images that are kept, 50 in the paper; 0 shows images as they come.
        channels: of the images.
        image_size: pixels, one number or [height, width].

    Raises:
        ValueError: if ``size`` is negative.
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
        """What is shown in place of ``images`` [N, C, H, W]: the same shape and type, without a graph."""
        if self.size == 0:
            return images.detach()
        device, count = images.device, len(images)
        chances = [(torch.randint(self.size, (1,), device=device), torch.rand((), device=device)) for _ in range(count)]
        slots, coins = (torch.stack(each) for each in zip(*chances, strict=True))
        everyone = [equal_rows_of_all_ranks(each) for each in (images.detach(), slots, coins)]
        shown = [self._exchange(image[None], slot, coin) for image, slot, coin in zip(*everyone, strict=True)]
        return torch.cat(shown[rank() * count : (rank() + 1) * count])

    def _exchange(self, image: Tensor, random: Tensor, coin: Tensor) -> Tensor:
        """[1, C, H, W] for [1, C, H, W], with a random slot [1] and a number of [0, 1)."""
        full = self.count >= self.size
        slot = torch.where(full, random, self.count)
        old = self.images.index_select(0, slot)
        swap = full & (coin < 0.5)
        self.images.index_copy_(0, slot, torch.where(full & ~swap, old, image.to(old.dtype)))
        self.count.add_(~full)
        return torch.where(swap, old.to(image.dtype), image)
