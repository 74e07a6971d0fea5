"""Contrastive losses between features of corresponding places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Return the PatchNCE loss of each image: Park et al. 2020 (CUT), equation 3, for one layer.

    The loss is the mean over places s of the cross-entropy, in nats, of finding key s among all keys of the same image by its
    cosine with query s, divided by the temperature. It is computed in float32.

    Args:
        queries: Features [N, P, D] of the translations at P places.
        keys: Features [N, P, D] of the sources at the same places.
        temperature: Temperature tau.

    Returns:
        Losses [N]; log(P) if all features are alike.
    """
    with torch.autocast(queries.device.type, enabled=False):  # autocast would multiply in bfloat16
        q, k = (F.normalize(each.to(torch.promote_types(each.dtype, torch.float32)), dim=2) for each in (queries, keys))
        logits = q @ k.transpose(1, 2) / temperature  # [N, P of queries, P of keys]
        return (logits.logsumexp(dim=2) - logits.diagonal(dim1=1, dim2=2)).mean(dim=1)
