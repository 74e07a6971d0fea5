"""Maximum mean discrepancy between latents and a prior, and the loss of the Wasserstein autoencoder that it makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.losses.likelihoods import Likelihood
from genimg.losses.regularised_autoencoder import AutoencoderLoss
from genimg.schedules import Number, Scheduled, is_positive, shown

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the kernel, in the code of Tolstikhin et al. 2018


class MMDLoss(AutoencoderLoss):
    """Reconstruction + lambda MMD(q(z), N(0, I)): Tolstikhin et al. 2018, "Wasserstein auto-encoders", algorithm 2.

    The authors' code weighs squares by 0.05, and those of MNIST are of [0, 1]: its lambda of 10 is 800 here. The discrepancy
    is that of each microbatch, whose expectation does not depend on its size.

    Args:
        likelihood: p(x | z).
        mmd_weight: lambda.

    Raises:
        ValueError: for a weight that is not above 0.
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
    """The unbiased estimate of the squared MMD of two distributions from samples [N, Z] and [M, Z]; it can be negative.

    With the inverse multiquadratics kernel C / (C + ||x - y||^2), added up over C = 2 Z s for the scales s: 2 Z is the expected
    squared distance of two samples of N(0, I). Gretton et al. 2012, equation 3. In float32 or better.

    Raises:
        ConfigError: For fewer than two samples of either.
    """
    if min(len(x), len(y)) < 2:
        raise ConfigError(
            f"the MMD needs 2 images or more in each microbatch, not {min(len(x), len(y))}",
            "choose a larger batch size or less accumulation",
        )
    count, others = len(x), len(y)
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    # A sample with itself is no pair.
    return (
        (within_x.sum() - within_x.diagonal().sum()) / (count * (count - 1))
        + (within_y.sum() - within_y.diagonal().sum()) / (others * (others - 1))
        - 2.0 * _kernel(x, y).mean()
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """[N, Z] and [M, Z] -> [N, M]."""
    with torch.autocast(x.device.type, enabled=False):
        # Not by a product of matrices, which GPUs round to TF32.
        squares = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        constants = [2.0 * x.shape[1] * scale for scale in SCALES]
        return torch.stack([constant / (constant + squares) for constant in constants]).sum(dim=0)
