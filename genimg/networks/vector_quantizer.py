"""A codebook: vectors by which the vectors of an encoder are replaced, each by the nearest.

van den Oord et al., "Neural discrete representation learning", NeurIPS 2017, section 3 and appendix A.1; Razavi et al.,
"Generating diverse high-fidelity images with VQ-VAE-2", NeurIPS 2019, equation 2. Letters: K codes of D numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.utils.distributed import all_reduce_, equal_rows_of_all_ranks
from genimg.utils.numbers import require_least

_EPSILON = 1e-5  # of the Laplace smoothing, as in the paper's code


class Usage(NamedTuple):
    """What a microbatch says about the codebook.

    Attributes:
        counts: [K], of vectors to which each code is nearest.
        sums: [K, D], of those vectors.
        candidates: [K, D], vectors drawn at random, one for each code that may have to start anew.
        priorities: [K], random; of several microbatches, the candidate with the highest is taken.
    """

    counts: Tensor
    sums: Tensor
    candidates: Tensor
    priorities: Tensor


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest code, always in float32.

    With a ``decay`` the codebook is the moving average of the vectors that came to each code (appendix A.1), with Laplace
    smoothing of the counts. It moves once a step, by what all microbatches of all ranks say together. Codes that hardly
    anything comes to start anew at random vectors of the step, weighing as much as a code of average use (random restarts:
    Dhariwal et al. 2020, "Jukebox", section 3.1); so does, in the first step, every code that nothing came to.

    Args:
        num_codes: K.
        dim: D.
        decay: weight of the old averages after a step; None for a codebook that is a parameter and learns by gradient
            (equation 3).
        restart_below: share of the average use, below which a code starts anew; 0 for none after the first step. None, and
            only None, without a decay.

    Raises:
        ValueError: if a setting is out of range, or would have no effect.
    """

    def __init__(self, *, num_codes: int, dim: int, decay: float | None, restart_below: float | None) -> None:
        super().__init__()
        require_least(2, num_codes=num_codes)
        require_least(1, dim=dim)
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay={decay} must lie between 0 and 1, or be null for a codebook that learns by gradient")
        if (decay is None) != (restart_below is None):
            restart, kept = ("null" if value is None else value for value in (restart_below, decay))
            raise ValueError(
                f"restart_below={restart} does not go with decay={kept}: only a codebook "
                "of averages can restart codes, and it needs a number; one that learns by gradient takes null"
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
        """[N, D, h, w] -> the nearest codes' numbers, int64 [N, h, w], and the codes themselves, float32 [N, D, h, w]."""
        codes = self.nearest(features)
        return codes, self.lookup(codes)

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """Equation 1: [N, D, h, w] -> int64 [N, h, w], of equally near codes the first."""
        with torch.autocast(features.device.type, enabled=False):
            # Around the codes' mean, which leaves distances as they are: squares of large numbers would hide small differences,
            # all the more in the TF32 of GPUs. And without |z|^2, which is the same for all codes.
            centre = self.codebook.mean(dim=0)
            rows, codebook = _rows(features) - centre, self.codebook - centre
            distances = torch.addmm(codebook.square().sum(dim=1), rows, codebook.t(), alpha=-2.0)
            return distances.argmin(dim=1).view(len(features), *features.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 [N, h, w] -> float32 [N, D, h, w]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def usage(self, features: Tensor, codes: Tensor) -> Usage:
        """What one microbatch says: vectors [N, D, h, w] and their codes int64 [N, h, w]."""
        rows, flat = _rows(features), codes.flatten()
        chosen = torch.randint(len(rows), (self.num_codes,), device=rows.device)
        return Usage(
            counts=torch.zeros(self.num_codes, device=rows.device).index_add_(0, flat, torch.ones_like(rows[:, 0])),
            # The gradient of a lookup is this sum. It adds in one order everywhere, which index_add_ does not on a GPU.
            sums=torch.ops.aten.embedding_dense_backward(rows, flat, self.num_codes, -1, False),
            candidates=rows[chosen],
            priorities=torch.rand(self.num_codes, device=rows.device),
        )

    @torch.no_grad()
    def learn(self, usages: Sequence[Usage]) -> Tensor:
        """Move the codebook at the end of a step, unless it learns by gradient.

        Args:
            usages: of this rank's microbatches, each of which has equally many vectors on every rank.

        Returns:
            [K], how many vectors came to each code, over all microbatches and ranks.
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
    """The vectors, with a gradient that goes to the features as it is (section 3.2); [N, D, h, w] each."""
    return features + (vectors - features).detach()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the codes' use [K]: K where all are used alike, 1 where it is always the same; 0-d."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()


def _rows(features: Tensor) -> Tensor:
    """[N, D, h, w] -> float32 [N h w, D], without a graph."""
    return features.detach().float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _candidates(usages: Sequence[Usage]) -> Tensor:
    """Of every code, the candidate [K, D] that has the highest priority among all microbatches of all ranks.

    So each vector of the step is as likely, and it makes no difference which rank a microbatch was on.
    """
    candidates, priorities = (torch.stack(each) for each in list(zip(*usages, strict=True))[2:])  # [M, K, D], [M, K]
    for gather in (False, True):
        if gather:
            candidates, priorities = equal_rows_of_all_ranks(candidates), equal_rows_of_all_ranks(priorities)
        best = priorities.argmax(dim=0, keepdim=True)  # [1, K]
        priorities = priorities.gather(0, best)
        candidates = candidates.gather(0, best[..., None].expand(-1, -1, candidates.shape[2]))
    return candidates[0]
