"""Contrastive losses between features of corresponding places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """How badly each place of an image is told from its others: Park et al. 2020 (CUT), equation 3, for one layer.

    The mean over places s of the cross-entropy, in nats, of finding key s among all keys of the same image by its cosine with
    query s, divided by the temperature. It is computed in float32.

    Args:
        queries: features [N, P, D] of the translations at P places.
        keys: [N, P, D] of the sources at the same places.
        temperature: tau.

    Returns:
        A loss for each image, [N]; log(P) where all features are alike.
    """
    with torch.autocast(queries.device.type, enabled=False):  # which would multiply in bfloat16
        q, k = (F.normalize(each.to(torch.promote_types(each.dtype, torch.float32)), dim=2) for each in (queries, keys))
        logits = q @ k.transpose(1, 2) / temperature  # [N, P of queries, P of keys]
        return (logits.logsumexp(dim=2) - logits.diagonal(dim1=1, dim2=2)).mean(dim=1)
