"""Maximum mean discrepancy between latents and a prior, and the Wasserstein autoencoder's loss based on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.likelihoods import Likelihood
from genimg.losses.regularised_autoencoder import AutoencoderLoss
from genimg.schedules import Number, Scheduled, is_positive, shown

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # kernel scales in the code of Tolstikhin et al. 2018


class MMDLoss(AutoencoderLoss):
    """Reconstruction + lambda MMD(q(z), N(0, I)): Tolstikhin et al. 2018, "Wasserstein auto-encoders", algorithm 2.

    The authors' code weights squared errors by 0.05, on MNIST images in [0, 1], so its lambda of 10 corresponds to 800 here.
    The discrepancy is computed per microbatch; its expectation does not depend on the microbatch's size.

    Args:
        likelihood: Likelihood p(x | z).
        mmd_weight: Weight lambda.

    Raises:
        ValueError: If the weight is not above 0.
    """

    mmd_weight = Scheduled()

    def __init__(self, *, likelihood: Likelihood, mmd_weight: Number) -> None:
        super().__init__(likelihood)
        if not is_positive(mmd_weight):
            raise ValueError(
                f"mmd_weight={shown(mmd_weight)} must be above 0: for latents without a prior, choose another loss"
            )
        self.mmd_weight = mmd_weight

    def penalty(self, latent: Tensor, output: Tensor, decoder: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        mmd = unbiased_mmd(torch.randn_like(latent), latent)
        return self.mmd_weight * mmd, {"mmd": mmd}


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared MMD between samples [N, Z] and [M, Z]; it can be negative.

    The kernel is the inverse multiquadratic C / (C + ||x - y||^2), summed over C = 2 Z s for the scales s; 2 Z is the expected
    squared distance of two samples of N(0, I). Gretton et al. 2012, equation 3. Computed in float32 or better.

    Raises:
        ConfigError: If there are fewer than two samples of either.
    """
    if min(len(x), len(y)) < 2:
        raise ConfigError(
            f"the MMD needs 2 images or more in each microbatch, not {min(len(x), len(y))}",
            "choose a larger batch size or less accumulation",
        )
    count, others = len(x), len(y)
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    # Pairs of a sample with itself do not count.
    return (
        (within_x.sum() - within_x.diagonal().sum()) / (count * (count - 1))
        + (within_y.sum() - within_y.diagonal().sum()) / (others * (others - 1))
        - 2.0 * _kernel(x, y).mean()
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return the kernel of samples [N, Z] and [M, Z]: [N, M]."""
    with torch.autocast(x.device.type, enabled=False):
        # No matmul is used, because GPUs would round it to TF32.
        squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        constants = [2.0 * x.shape[1] * scale for scale in SCALES]
        return torch.stack([constant / (constant + squares) for constant in constants]).sum(dim=0)
