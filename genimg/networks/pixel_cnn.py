"""Gated PixelCNN: van den Oord et al., "Conditional image generation with PixelCNN decoders", NeurIPS 2016, section 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder
from genimg.utils.exact import has_float64
from genimg.utils.numbers import require_least


class Gate(nn.Module):
    """Gated activation tanh(a) sigmoid(b) of features and a condition: equation 4.

    Args:
        width: Number of output channels; the input has twice as many.
        condition_dim: Length E of the condition vector; 0 for none.
        dropout: Dropout probability after the product.
    """

    def __init__(self, *, width: int, condition_dim: int, dropout: float) -> None:
        super().__init__()
        self.condition = nn.Linear(condition_dim, 2 * width, bias=False) if condition_dim else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map features [N, 2 C, h, w] and conditions [N, E] to [N, C, h, w]."""
        if self.condition is not None:
            features = features + self.condition(condition)[:, :, None, None]
        a, b = features.chunk(2, dim=1)
        return self.dropout(a.tanh() * b.sigmoid())


class Block(nn.Module):
    """One layer of both stacks: figure 2.

    Instead of masks, the kernels are cropped to the visible positions: n//2 + 1 rows in the vertical stack, the last of which
    is the position's own, and n//2 + 1 columns in the horizontal stack. The input is already shifted by one position.

    Args:
        width: Number of channels of each stack.
        kernel_size: Kernel size n, odd.
        condition_dim: Length E of the condition vector.
        dropout: Dropout probability.
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
        """Apply the layer to the features [N, C, h, w] of both stacks and the condition [N, E]."""
        vertical, link = self.down(vertical, condition)
        return vertical, self.right(horizontal, link, condition)

    def down(self, vertical: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vertical stack's next features [N, C, h, w], and its input to the horizontal stack [N, 2 C, h, w]."""
        features = self.vertical(F.pad(vertical, (self.reach, self.reach, self.reach, 0)))
        return self.vertical_gate(features, condition), self.link(features)

    def right(self, horizontal: Tensor, link: Tensor, condition: Tensor) -> Tensor:
        """Return the horizontal stack's next features [N, C, h, w], given the vertical stack's ``link`` [N, 2 C, h, w]."""
        features = self.horizontal(F.pad(horizontal, (self.reach, 0, 0, 0))) + link
        return horizontal + self.residual(self.horizontal_gate(features, condition))


class PixelCNN(nn.Module):
    """Autoregressive distribution of a grid of codes, in raster order. The grid can have any size.

    Args:
        num_codes: Number of codes K.
        width: Number of channels of each stack.
        num_blocks: Number of layers.
        kernel_size: Kernel size n, odd. A position depends on up to num_blocks * (n // 2) + 1 rows above it, and on as many
            columns on either side.
        dropout: Dropout probability in every layer.
        condition: Encoder of the condition.

    Raises:
        ValueError: If a setting is out of range.
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
        self.condition_dropout = 0.0
        self.condition = condition
        self.embedding = nn.Embedding(num_codes, width)
        self.blocks = nn.ModuleList(
            Block(width=width, kernel_size=kernel_size, condition_dim=condition.dim, dropout=dropout) for _ in range(num_blocks)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, num_codes, 1))

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """Return logits [N, K, h, w] for codes int64 [N, h, w]; each logit depends on the codes before it in raster order."""
        condition = self.condition(condition)
        embedded = self._embed(codes)
        vertical, horizontal = _shifted_down(embedded), _shifted_right(embedded)
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, condition)
        return self.head(horizontal)

    @torch.no_grad()
    def sample(self, uniform: Tensor, condition: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Draw grids by ancestral sampling, with the inverse of each distribution function.

        The vertical stack is computed once per row, the horizontal stack only for the current row.

        Args:
            uniform: Uniform numbers [N, h, w] in [0, 1), one per position, so a grid does not depend on the rest of the batch.
            condition: Raw condition of each grid.
            temperature: Positive divisor of the logits.

        Returns:
            Codes, int64 [N, h, w].
        """
        condition = self.condition(condition)
        codes = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        for row in range(uniform.shape[1]):
            links = self._links(codes[:, : row + 1], condition)
            for column in range(uniform.shape[2]):
                seen = slice(column + 1)
                logits = self._last_logits(codes[:, row : row + 1, seen], [link[..., seen] for link in links], condition)
                codes[:, row, column] = inverse_cdf(logits / temperature, uniform[:, row, column])
        return codes

    def _embed(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).permute(0, 3, 1, 2)  # [N, C, h, w]

    def _links(self, codes: Tensor, condition: Tensor) -> list[Tensor]:
        """Return the inputs from the vertical to the horizontal stack in the last row, [N, 2 C, 1, w] for each layer."""
        vertical, links = _shifted_down(self._embed(codes)), []
        for block in self.blocks:
            assert isinstance(block, Block)
            vertical, link = block.down(vertical, condition)
            links.append(link[:, :, -1:])
        return links

    def _last_logits(self, codes: Tensor, links: Sequence[Tensor], condition: Tensor) -> Tensor:
        """Return logits [N, K] of the last position, given the row's codes up to it [N, 1, w]."""
        horizontal = _shifted_right(self._embed(codes))
        for block, link in zip(self.blocks, links, strict=True):
            assert isinstance(block, Block)
            horizontal = block.right(horizontal, link, condition)
        logits: Tensor = self.head(horizontal[..., -1:])
        return logits[:, :, 0, 0]


def _shifted_down(features: Tensor) -> Tensor:
    """Shift features down by one row, filling with zeros."""
    return F.pad(features, (0, 0, 1, -1))


def _shifted_right(features: Tensor) -> Tensor:
    """Shift features right by one column, filling with zeros."""
    return F.pad(features, (1, -1, 0, 0))


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Map logits [N, K] and numbers [N] in [0, 1) to codes int64 [N]; a code of probability 0 is never chosen."""
    # float64 keeps sums of small probabilities accurate to the 24 bits of the numbers; Apple's GPUs do not support it.
    exact = logits.to(torch.float64 if has_float64(logits.device) else torch.float32)
    cumulative = exact.softmax(dim=1).cumsum(dim=1)
    reached = cumulative <= uniform[:, None] * cumulative[:, -1:]
    return reached.sum(dim=1).clamp(max=logits.shape[1] - 1)
