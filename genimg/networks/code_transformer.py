"""Causal transformer over a grid of codes, as in LlamaGen (Sun et al. 2024, "Autoregressive model beats diffusion").

It predicts the codes of an image one by one in raster order, after a first token that stands for the condition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.diffusion_layers import sines_and_cosines
from genimg.networks.pixel_cnn import inverse_cdf
from genimg.utils.numbers import require_least

_MLP_RATIO = 4
_STD = 0.02  # of the initial embeddings, as in GPT-2
Cache = tuple[Tensor, Tensor]  # keys and values of earlier positions, each [N, heads, T, D]


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a layer norm and with a skip.

    Args:
        width: Length of a token.
        num_heads: Number of attention heads.
        dropout: Dropout probability of both branches.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, _MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(_MLP_RATIO * width, width)
        )
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Map tokens [N, T, W] to [N, T, W].

        Args:
            tokens: All tokens, or, with a cache, the next one.
            cache: Keys and values of the tokens before; None if there are none.

        Returns:
            The tokens, and the keys and values of all tokens so far.
        """
        heads = self.qkv(self.first_norm(tokens)).unflatten(2, (3, self.num_heads, -1))  # [N, T, 3, heads, D]
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            key, value = (torch.cat([before, now], dim=2) for before, now in zip(cache, (key, value), strict=True))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=tokens.shape[1] > 1)
        tokens = tokens + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.mlp(self.second_norm(tokens))), (key, value)


class CodeTransformer(nn.Module):
    """Transformer that predicts each code of a grid from those before it in raster order, and from a condition.

    Args:
        num_codes: Number of codes K.
        width: Length W of a token.
        num_blocks: Number of blocks.
        num_heads: Number of attention heads.
        dropout: Dropout probability.
        condition_dropout: Share of samples that the caller trains without the condition, which guidance needs; 0 without
            conditions.
        condition: Encoder of the condition.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        num_codes: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        condition_dropout: float,
        condition: ConditionEncoder,
    ) -> None:
        super().__init__()
        require_least(1, num_codes=num_codes, width=width, num_blocks=num_blocks, num_heads=num_heads)
        if width % num_heads or width % 4:
            raise ValueError(f"width={width} must be a multiple of num_heads={num_heads} and of 4")
        for name, value in (("dropout", dropout), ("condition_dropout", condition_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be a probability from 0 to below 1")
        self.num_codes = num_codes
        self.condition = condition
        self.condition_dropout = condition_dropout if condition.dim else 0.0
        self.embedding = nn.Embedding(num_codes, width)
        self.start = nn.Parameter(torch.empty(width))  # the first token without a condition
        self.label = nn.Linear(condition.dim, width, bias=False) if condition.dim else None
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes)
        for weight in (
            self.embedding.weight,
            self.start,
            self.head.weight,
            *([] if self.label is None else [self.label.weight]),
        ):
            nn.init.normal_(weight, 0.0, _STD)

    def forward(self, codes: Tensor, condition: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return logits [N, K, h, w] for codes int64 [N, h, w]; each logit depends on the codes before it in raster order.

        Args:
            codes: The codes.
            condition: Raw conditions.
            keep: 0 for grids whose condition is ignored [N]; None for none.
        """
        height, width = codes.shape[1:]
        before = self.embedding(codes.flatten(1)[:, :-1])  # the last code predicts nothing
        tokens = torch.cat([self._first(condition, keep, len(codes)), before], dim=1) + self._positions(height, width)
        for block in self.blocks:
            tokens, _ = block(tokens)
        logits: Tensor = self.head(self.norm(tokens))
        return logits.transpose(1, 2).unflatten(2, (height, width))

    @torch.no_grad()
    def sample(self, uniform: Tensor, condition: Tensor, *, temperature: float = 1.0, guidance: float = 1.0) -> Tensor:
        """Draw grids code by code, with the inverse of each distribution function and a cache of keys and values.

        Args:
            uniform: Uniform numbers [N, h, w] in [0, 1), one per position, so a grid does not depend on the rest of the batch.
            condition: Raw condition of each grid.
            temperature: Positive divisor of the logits.
            guidance: Scale g of classifier-free guidance; 1 for none. Logits are u + g (c - u), where c are those with the
                condition, and u those without it.

        Returns:
            Codes, int64 [N, h, w].
        """
        count, height, width = uniform.shape
        keep = None
        if guidance != 1:
            keep = torch.arange(2, device=uniform.device).repeat_interleave(count)
            condition = torch.cat([condition, condition])
        copies = 1 if keep is None else 2
        positions, token = self._positions(height, width), self._first(condition, keep, copies * count)
        caches: list[Cache | None] = [None] * len(self.blocks)
        codes = torch.zeros(count, height * width, dtype=torch.int64, device=uniform.device)
        for place in range(height * width):
            token = token + positions[place]
            for number, block in enumerate(self.blocks):
                token, caches[number] = block(token, caches[number])
            logits = self.head(self.norm(token))[:, 0].float()
            if keep is not None:
                without, given = logits.chunk(2)
                logits = without + guidance * (given - without)
            codes[:, place] = inverse_cdf(logits / temperature, uniform.flatten(1)[:, place])
            token = self.embedding(codes[:, place : place + 1]).repeat(copies, 1, 1)
        return codes.unflatten(1, (height, width))

    def _first(self, condition: Tensor, keep: Tensor | None, count: int) -> Tensor:
        """Return the first tokens [N, 1, W]: ``start``, plus the embedded condition where it is kept."""
        first = self.start.expand(count, 1, -1)
        if self.label is None:
            return first
        added: Tensor = self.label(self.condition(condition))
        return first + (added if keep is None else added * keep.to(added.dtype)[:, None])[:, None]

    def _positions(self, height: int, width: int) -> Tensor:
        """Return position embeddings [h w, W]: half of the values encode the row, half the column."""
        dim, device = self.start.shape[0], self.start.device
        rows = sines_and_cosines(torch.arange(height, device=device), dim // 2)[:, None].expand(-1, width, -1)
        columns = sines_and_cosines(torch.arange(width, device=device), dim // 2)[None].expand(height, -1, -1)
        return torch.cat([rows, columns], dim=2).flatten(0, 1)
