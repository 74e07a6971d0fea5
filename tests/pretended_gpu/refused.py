"""What a CUDA graph cannot hold."""

from __future__ import annotations

from torch import Tensor

from genimg.losses.adversarial import nonsaturating_generator_loss


def waiting_loss(fake_logits: Tensor) -> Tensor:
    """Compute the non-saturating loss, and its value on the host, for which this waits."""
    loss = nonsaturating_generator_loss(fake_logits)
    assert loss.item() > 0.0
    return loss
