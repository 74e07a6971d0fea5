"""Contrastive losses between features at corresponding positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Return the PatchNCE loss of each image: Park et al. 2020 (CUT), equation 3, for one layer.

    For each position s, the logits are the cosines of query s with all keys of the same image, divided by the temperature. The
    loss is the cross-entropy in nats with key s as the target, averaged over positions. It is computed in float32.

    Args:
        queries: Features [N, P, D] of the translations at P positions.
        keys: Features [N, P, D] of the sources at the same positions.
        temperature: Temperature tau.

    Returns:
        Losses [N]; log(P) if all features are equal.
    """
    with torch.autocast(queries.device.type, enabled=False):  # autocast would multiply in bfloat16
        q, k = (F.normalize(each.to(torch.promote_types(each.dtype, torch.float32)), dim=2) for each in (queries, keys))
        logits = q @ k.transpose(1, 2) / temperature  # [N, P of queries, P of keys]
        return (logits.logsumexp(dim=2) - logits.diagonal(dim1=1, dim2=2)).mean(dim=1)
