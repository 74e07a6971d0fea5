"""Gated PixelCNN: van den Oord et al., "Conditional image generation with PixelCNN decoders", NeurIPS 2016, section 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder
from genimg.utils.numbers import require_least


class Gate(nn.Module):
    """tanh(a) sigmoid(b) of features and a condition: equation 4.

    Args:
        width: channels that come out; twice as many go in.
        condition_dim: E; 0 for none.
        dropout: probability, behind the product.
    """

    def __init__(self, *, width: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.condition = nn.Linear(condition_dim, 2 * width, bias=False) if condition_dim else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """[N, 2 C, h, w] and [N, E] -> [N, C, h, w]."""
        if self.condition is not None:
            features = features + self.condition(condition)[:, :, None, None]
        a, b = features.chunk(2, dim=1)
        return self.dropout(a.tanh() * b.sigmoid())


class Block(nn.Module):
    """A layer of both stacks: figure 2.

    Kernels have no weights for what must not be seen, instead of a mask over them: n//2 + 1 rows of the vertical stack, the
    last of which is the position's own, and n//2 + 1 columns of the horizontal one. What comes in is shifted by one already.

    Args:
        width: channels of each stack.
        kernel_size: n, odd.
        condition_dim: E.
        dropout: probability.
    """

    def __init__(self, *, width: int, kernel_size: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        self.vertical = nn.Conv2d(width, 2 * width, (self.reach + 1, kernel_size))
        self.vertical_gate = Gate(width=width, condition_dim=condition_dim, dropout=dropout)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.reach + 1))
        self.horizontal_gate = Gate(width=width, condition_dim=condition_dim, dropout=dropout)
        self.residual = nn.Conv2d(width, width, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Both stacks' features [N, C, h, w] and the condition [N, E] -> both stacks' features [N, C, h, w]."""
        vertical, link = self.down(vertical, condition)
        return vertical, self.right(horizontal, link, condition)

    def down(self, vertical: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Vertical features [N, C, h, w] -> those of the next layer, and [N, 2 C, h, w] for the horizontal stack."""
        features = self.vertical(F.pad(vertical, (self.reach, self.reach, self.reach, 0)))
        return self.vertical_gate(features, condition), self.link(features)

    def right(self, horizontal: Tensor, link: Tensor, condition: Tensor) -> Tensor:
        """Horizontal features [N, C, h, w], and what the vertical stack adds [N, 2 C, h, w] -> those of the next layer."""
        features = self.horizontal(F.pad(horizontal, (self.reach, 0, 0, 0))) + link
        return horizontal + self.residual(self.horizontal_gate(features, condition))


class PixelCNN(nn.Module):
    """The distribution of a grid of codes, each given those above it and those to its left; of grids of any size.

    Args:
        num_codes: K.
        width: channels of each stack.
        num_blocks: layers.
        kernel_size: n, odd. A position sees num_blocks * (n // 2) + 1 rows up, and as far to either side.
        dropout: probability, in every layer.
        condition: encoder of the condition.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(
        self, *, num_codes: int, width: int, num_blocks: int, kernel_size: int, dropout: float, condition: ConditionEncoder
    ) -> None:
        super().__init__()
        require_least(1, width=width, num_blocks=num_blocks)
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd, and 3 or more")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be a probability from 0 to below 1")
        self.num_codes = num_codes
        self.condition = condition
        self.embedding = nn.Embedding(num_codes, width)
        self.blocks = nn.ModuleList(
            Block(width=width, kernel_size=kernel_size, condition_dim=condition.dim, dropout=dropout) for _ in range(num_blocks)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, num_codes, 1))

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """int64 [N, h, w] and the condition -> logits [N, K, h, w], each of which sees the codes before it in raster order."""
        condition = self.condition(condition)
        embedded = self._embed(codes)
        vertical, horizontal = _shifted_down(embedded), _shifted_right(embedded)
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, condition)
        return self.head(horizontal)

    @torch.no_grad()
    def sample(self, uniform: Tensor, condition: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Draw grids, one position after the other: ancestral sampling by the inverse of each distribution function.

        The vertical stack is computed once a row, and the horizontal one for the row alone.

        Args:
            uniform: [N, h, w] in [0, 1), a number for each position, so that a grid does not depend on others of the batch.
            condition: of each grid.
            temperature: by which logits are divided, above 0.

        Returns:
            int64 [N, h, w].
        """
        condition = self.condition(condition)
        codes = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        for row in range(uniform.shape[1]):
            links = self._links(codes[:, : row + 1], condition)
            for column in range(uniform.shape[2]):
                seen = slice(column + 1)
                logits = self._last_logits(codes[:, row : row + 1, seen], [link[..., seen] for link in links], condition)
                codes[:, row, column] = _inverse_cdf(logits / temperature, uniform[:, row, column])
        return codes

    def _embed(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).permute(0, 3, 1, 2)  # [N, C, h, w]

    def _links(self, codes: Tensor, condition: Tensor) -> list[Tensor]:
        """What the vertical stack adds to the horizontal one in the last row [N, 2 C, 1, w], of every layer."""
        vertical, links = _shifted_down(self._embed(codes)), []
        for block in self.blocks:
            assert isinstance(block, Block)
            vertical, link = block.down(vertical, condition)
            links.append(link[:, :, -1:])
        return links

    def _last_logits(self, codes: Tensor, links: Sequence[Tensor], condition: Tensor) -> Tensor:
        """Logits [N, K] of the last of a row's first codes [N, 1, w]."""
        horizontal = _shifted_right(self._embed(codes))
        for block, link in zip(self.blocks, links, strict=True):
            assert isinstance(block, Block)
            horizontal = block.right(horizontal, link, condition)
        logits: Tensor = self.head(horizontal[..., -1:])
        return logits[:, :, 0, 0]


def _shifted_down(features: Tensor) -> Tensor:
    """By a row, zeros coming in."""
    return F.pad(features, (0, 0, 1, -1))


def _shifted_right(features: Tensor) -> Tensor:
    """By a column, zeros coming in."""
    return F.pad(features, (1, -1, 0, 0))


def _inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Logits [N, K] and numbers [N] in [0, 1) -> int64 [N]; a code of probability 0 is never chosen."""
    # float64, so that sums of small probabilities are right to the numbers' own 24 bits; Apple's GPUs have none.
    exact = logits.float() if logits.device.type == "mps" else logits.double()
    cumulative = exact.softmax(dim=1).cumsum(dim=1)
    reached = cumulative <= uniform[:, None] * cumulative[:, -1:]
    return reached.sum(dim=1).clamp(max=logits.shape[1] - 1)
