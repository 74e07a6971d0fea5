"""A codebook, which replaces each vector of an encoder by the nearest code.

van den Oord et al., "Neural discrete representation learning", NeurIPS 2017, section 3 and appendix A.1; Razavi et al.,
"Generating diverse high-fidelity images with VQ-VAE-2", NeurIPS 2019, equation 2. The codebook has K codes of D numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.utils.distributed import all_gather_equal_rows, all_reduce_
from genimg.utils.numbers import require_least

_EPSILON = 1e-5  # of the Laplace smoothing, as in the paper's code


class Usage(NamedTuple):
    """Usage of the codebook in a microbatch.

    Attributes:
        counts: Number of vectors nearest to each code, [K].
        sums: Sum of those vectors, [K, D].
        candidates: Vectors drawn at random, one for each code in case it restarts, [K, D].
        priorities: Random priorities [K]. The candidate with the highest priority among all microbatches is used.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor
    priorities: Tensor


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest code, always in float32.

    With a ``decay``, each code is the moving average of its nearest vectors (appendix A.1), with Laplace smoothing of the
    counts. It is updated once per step from all microbatches of all ranks. Rarely used codes restart at random vectors of the
    step, with the weight of a code of average use (random restarts: Dhariwal et al. 2020, "Jukebox", section 3.1). In the first
    step, every unused code restarts.

    Args:
        num_codes: Number of codes K.
        dim: Number of dimensions D.
        decay: Weight of the old averages in an update; None for a codebook that is learnt by gradient (equation 3).
        restart_below: Fraction of the average use below which a code restarts; 0 for no restarts after the first step. It must
            be None if and only if ``decay`` is None.

    Raises:
        ValueError: If a setting is out of range or would have no effect.
    """

    def __init__(self, *, num_codes: int, dim: int, decay: float | None, restart_below: float | None) -> None:
        super().__init__()
        require_least(2, num_codes=num_codes)
        require_least(1, dim=dim)
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay={decay} must lie between 0 and 1, or be null for a codebook that is trained by gradient")
        if (decay is None) != (restart_below is None):
            restart, kept = ("null" if value is None else value for value in (restart_below, decay))
            raise ValueError(
                f"restart_below={restart} does not match decay={kept}: a codebook of moving "
                "averages needs a number; one that is trained by gradient cannot restart codes, and needs null"
            )
        if restart_below is not None and not 0 <= restart_below < 1:
            raise ValueError(f"restart_below={restart_below} must be 0 or more, and below 1")
        self.num_codes = num_codes
        self.dim = dim
        self.decay = decay
        self.restart_below = restart_below
        self.codebook: Tensor
        start = torch.empty(num_codes, dim).uniform_(-1.0 / num_codes, 1.0 / num_codes)
        if decay is None:
            self.codebook = nn.Parameter(start)
        else:
            self.counts: Tensor
            self.sums: Tensor
            self.register_buffer("codebook", start)
            self.register_buffer("counts", torch.zeros(num_codes))
            self.register_buffer("sums", torch.zeros(num_codes, dim))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes of features [N, D, h, w]: indices int64 [N, h, w] and vectors float32 [N, D, h, w]."""
        codes = self.nearest(features)
        return codes, self.lookup(codes)

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """Return indices int64 [N, h, w] of the codes nearest to features [N, D, h, w], the first in a tie: equation 1."""
        with torch.autocast(features.device.type, enabled=False):
            # Centred at the codes' mean, which preserves distances: squares of large numbers would hide small differences,
            # especially in TF32 on GPUs. |z|^2 is omitted, because it is the same for all codes.
            centre = self.codebook.mean(dim=0)
            rows, codebook = _rows(features) - centre, self.codebook - centre
            distances = torch.addmm(codebook.square().sum(dim=1), rows, codebook.t(), alpha=-2.0)
            return distances.argmin(dim=1).view(len(features), *features.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Map indices int64 [N, h, w] to codes float32 [N, D, h, w]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def usage(self, features: Tensor, codes: Tensor) -> Usage:
        """Return the usage in one microbatch of vectors [N, D, h, w] with codes int64 [N, h, w]."""
        rows, flat = _rows(features), codes.flatten()
        chosen = torch.randint(len(rows), (self.num_codes,), device=rows.device)
        return Usage(
            counts=torch.zeros(self.num_codes, device=rows.device).index_add_(0, flat, torch.ones_like(rows[:, 0])),
            # The gradient of a lookup is this sum. It adds in a fixed order, unlike index_add_ on a GPU.
            sums=torch.ops.aten.embedding_dense_backward(rows, flat, self.num_codes, -1, False),
            candidates=rows[chosen],
            priorities=torch.rand(self.num_codes, device=rows.device),
        )

    @torch.no_grad()
    def learn(self, usages: Sequence[Usage]) -> Tensor:
        """Update the codebook at the end of a step, unless it is learnt by gradient.

        Args:
            usages: Usages of this rank's microbatches, each with equally many vectors on every rank.

        Returns:
            Number of vectors for each code over all microbatches and ranks, [K].
        """
        counts, sums = (torch.stack(each).sum(dim=0) for each in list(zip(*usages, strict=True))[:2])
        all_reduce_([counts, sums])
        if self.decay is None:
            return counts
        assert self.restart_below is not None
        self.counts.lerp_(counts, 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        average = self.counts.mean()
        dead = self.counts <= self.restart_below * average
        self.sums.copy_(torch.where(dead[:, None], average * _candidates(usages), self.sums))
        self.counts.copy_(torch.where(dead, average, self.counts))
        total = self.counts.sum()
        smoothed = (self.counts + _EPSILON) / (total + self.num_codes * _EPSILON) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
        return counts


def straight_through(features: Tensor, vectors: Tensor) -> Tensor:
    """Return the vectors with a gradient that passes to the features unchanged (section 3.2); [N, D, h, w] each."""
    return features + (vectors - features).detach()


def perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of the codes' use [K]: K for uniform use, 1 if only one code is used; 0-d."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()


def _rows(features: Tensor) -> Tensor:
    """Map [N, D, h, w] to float32 [N h w, D], without a graph."""
    return features.detach().float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _candidates(usages: Sequence[Usage]) -> Tensor:
    """Return, for every code, the candidate [K, D] with the highest priority among all microbatches of all ranks.

    All vectors of the step are equally likely, and the result does not depend on how microbatches are distributed over ranks.
    """
    candidates, priorities = (torch.stack(each) for each in list(zip(*usages, strict=True))[2:])  # [M, K, D], [M, K]
    for gather in (False, True):
        if gather:
            candidates, priorities = all_gather_equal_rows(candidates), all_gather_equal_rows(priorities)
        best = priorities.argmax(dim=0, keepdim=True)  # [1, K]
        priorities = priorities.gather(0, best)
        candidates = candidates.gather(0, best[..., None].expand(-1, -1, candidates.shape[2]))
    return candidates[0]
